"""Single calls, as a web backend makes them, against a tenant that limits: over real sockets.

python benchmarks/single_calls.py              # all scenarios, ours on its default settings
python benchmarks/single_calls.py at-once      # those whose names contain this
python benchmarks/single_calls.py --others     # and beside it: tenacity, and aiolimiter

The tenant is a process of its own. "Others" are what is written otherwise: aiohttp, and tenacity
with Retry-After as a floor for the wait; or aiolimiter, told the tenant's limit.
"""

import argparse
import asyncio
import bisect
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import aiohttp
import tenacity
from tenants import Bucket
from web_server import ID, body

from monocloud_async import MonoCloudError, MonoCloudSession, RetryPolicy, StatusError

BEFORE, AFTER = body(ID).encode().split(ID.encode())


# The tenant


class Tenant(asyncio.Protocol):
    """Answers 200, or 429 where the bucket is empty; and its counts at /counts."""

    bucket: Bucket
    retry_after: int | None
    latency: float
    counts: ClassVar = {"granted": 0, "refused": 0}
    transport: asyncio.Transport
    left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *heads, self.left = (self.left + data).split(b"\r\n\r\n")
        for head in heads:
            answer = self.answer(head.split(b" ", 2)[1].split(b"/"))
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self.transport.write, answer)
            else:
                self.transport.write(answer)

    def answer(self, path: list[bytes]) -> bytes:
        if path[1] == b"counts":
            return _response(200, json.dumps(self.counts).encode())
        wait = self.bucket.take(time.monotonic())
        if wait is None:
            self.counts["granted"] += 1
            return _response(200, b"".join((BEFORE, path[3], AFTER)))
        self.counts["refused"] += 1
        asked = self.retry_after if self.retry_after is not None else int(wait)
        return _response(429, b'{"title":"Too Many Requests"}', b"Retry-After: %d\r\n" % asked)


def _response(status: int, content: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(content), headers) + content


async def serve(rate: float, burst: float, retry_after: int | None, latency: float) -> None:
    Tenant.bucket = Bucket(rate, burst)
    Tenant.bucket.filled_at = time.monotonic()
    Tenant.retry_after, Tenant.latency = retry_after, latency
    server = await asyncio.get_running_loop().create_server(Tenant, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# The ways to call it

Call = Callable[[str], Awaitable[object]]


@asynccontextmanager
async def ours(url: str, patience: float, **options: Any) -> AsyncIterator[Call]:
    policy = RetryPolicy() if patience == math.inf else RetryPolicy(total=patience)
    async with MonoCloudSession(url, "k", **options) as session:
        Run.session = session
        yield lambda user_id: session.enable_user(user_id, retry=policy)


class RefusedError(Exception):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response.status)
        self.retry_after = float(response.headers.get("Retry-After", 0))


@asynccontextmanager
async def with_tenacity(url: str, patience: float, **_options: Any) -> AsyncIterator[Call]:
    backoff = tenacity.wait_random_exponential(0.5, 8)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(getattr(error, "retry_after", 0.0), backoff(state))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        @tenacity.retry(wait=wait, stop=tenacity.stop_before_delay(min(patience, 60)), reraise=True)
        async def call(user_id: str) -> None:
            async with client.post(f"{url}/api/users/{user_id}/enable") as response:
                await response.read()
                if response.status != 200:
                    raise RefusedError(response)

        yield call


@asynccontextmanager
async def with_aiolimiter(
    url: str, patience: float, *, rate: float, **_options: Any
) -> AsyncIterator[Call]:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(1, 1 / rate)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def call(user_id: str) -> None:
            async with (
                asyncio.timeout(min(patience, 60)),
                limiter,
                client.post(f"{url}/api/users/{user_id}/enable") as response,
            ):
                await response.read()
                if response.status != 200:
                    raise RefusedError(response)

        yield call


WAYS = {"ours": ours, "tenacity": with_tenacity, "aiolimiter": with_aiolimiter}


# What is measured


@dataclass
class Ended:
    began: float
    ended: float
    error: Exception | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Run:
    """The calls of one scenario."""

    session: MonoCloudSession | None = None

    def __init__(self, call: Call, url: str) -> None:
        self.call, self.url = call, url
        self.ended: list[Ended] = []
        self.time = asyncio.get_running_loop().time
        self.began = self.time()

    @property
    def now(self) -> float:
        return self.time() - self.began

    async def one(self, number: int) -> None:
        began, error = self.now, None
        try:
            await self.call(f"u{number}")
        except (MonoCloudError, RefusedError, TimeoutError, aiohttp.ClientError) as caught:
            error = caught
        self.ended.append(Ended(began, self.now, error))

    async def at_once(self, count: int) -> None:
        await asyncio.gather(*map(self.one, range(count)))

    async def arrivals(self, rate: float, seconds: float, extra: int, extra_at: float) -> None:
        """So many calls a second, evenly, and some more once."""
        tasks, number = [], 0
        while self.now < seconds:
            due = number / rate
            if due > self.now:
                await asyncio.sleep(due - self.now)
            if extra and self.now >= extra_at:
                tasks += [asyncio.create_task(self.one(10**6 + n)) for n in range(extra)]
                extra = 0
            tasks.append(asyncio.create_task(self.one(number)))
            number += 1
        await asyncio.gather(*tasks)

    async def counts(self) -> dict[str, int]:
        if not self.url:
            return Tenant.counts
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.url}/counts") as response,
        ):
            counts: dict[str, int] = await response.json()
            return counts


def out_of_order(values: list[float]) -> float:
    """Share of values that are not in the longest run that is in order."""
    tails: list[float] = []
    for value in values:
        place = bisect.bisect_right(tails, value)
        tails[place : place + 1] = [value]
    return 1 - len(tails) / len(values) if values else 0.0


async def at_once(run: Run, *, count: int) -> str:
    cpu = time.process_time()
    await run.at_once(count)
    cpu = time.process_time() - cpu
    # `gather` starts them in order, so the order in which they began is that of their numbers.
    done = sorted((e for e in run.ended if e.error is None), key=lambda e: e.began)
    told = [e for e in run.ended if e.error is not None]
    counts = await run.counts()
    text = (
        f"{len(done)} of {count} succeed, {counts['refused']} answered 429,"
        f" {out_of_order([e.ended for e in done]):.1%} out of order, {run.now:.1f} s,"
        f" {cpu:.2f} s CPU"
    )
    if told:
        seconds = [e.seconds for e in told]
        waits = [e.error.retry_after for e in told if isinstance(e.error, StatusError)]
        text += f"; {len(told)} told after {statistics.median(seconds):.3f} s (median)"
        text += f", {sum(each > 1.5 for each in seconds)} of them after more than 1.5 s"
        if real := [wait for wait in waits if wait is not None]:
            text += f", retry_after {min(real):.1f} to {max(real):.1f} s"
        kinds = {type(e.error).__name__ for e in told}
        text += f" {sorted(kinds)}"
    return text


async def burst(run: Run, *, rate: float, extra: int, at: float = 5.0, seconds: float = 40) -> str:
    await run.arrivals(rate, seconds, extra, at)
    counts = await run.counts()
    later = [e for e in run.ended if e.began >= at + 10]
    good = [e for e in later if e.error is None]
    before = [e for e in run.ended if at <= e.began < at + 10]
    return (
        f"from 10 s after the burst {len(good) / len(later):.2%} of {len(later)} succeed,"
        f" p50 {statistics.median(e.seconds for e in later):.3f} s, p99"
        f" {statistics.quantiles([e.seconds for e in later], n=100)[98]:.2f} s; in those 10 s"
        f" {sum(e.error is None for e in before)} of {len(before)};"
        f" {counts['refused']} answered 429"
    )


async def beside_a_run(run: Run, *, rate: float, seconds: float = 30) -> str:
    assert run.session is not None
    bulk = run.session.bulk_enable(f"bulk-{n}" for n in range(10**6))
    task = asyncio.ensure_future(bulk)
    await asyncio.sleep(8)  # it has learnt the rate
    run.began, before, counts = run.time(), bulk.report.enabled, await run.counts()
    await run.arrivals(rate, seconds, 0, 0)
    share = bulk.report.enabled - before
    granted = (await run.counts())["granted"] - counts["granted"]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    good = sum(e.error is None for e in run.ended)
    return (
        f"{good} of {len(run.ended)} succeed, p50"
        f" {statistics.median(e.seconds for e in run.ended):.3f} s; the run gets"
        f" {share / granted:.1%} of {granted} granted"
    )


@dataclass
class Scenario:
    name: str
    limit: tuple[float, float]  # of the tenant: a second, at once
    calls: Callable[[Run], Awaitable[str]]
    patience: float = 10.0
    retry_after: int | None = None
    max_rate: float | None = None
    alone: bool = False  # nothing that the others could do


SCENARIOS = [
    Scenario("300 at once on 50/s burst 50", (50, 50), lambda run: at_once(run, count=300)),
    Scenario("1,000 at once on 50/s burst 50", (50, 50), lambda run: at_once(run, count=1000)),
    Scenario(
        "30/s, 40 extra once, on 100/s burst 10",
        (100, 10),
        lambda run: burst(run, rate=30, extra=40),
    ),
    Scenario(
        "25/s, 40 extra once, on 100/s burst 10, Retry-After 5",
        (100, 10),
        lambda run: burst(run, rate=25, extra=40),
        retry_after=5,
    ),
    Scenario(
        "25/s, 100 extra once, on 50/s burst 20",
        (50, 20),
        lambda run: burst(run, rate=25, extra=100),
    ),
    Scenario(
        "max_rate 60, 800 at once",
        (10_000, 10_000),
        lambda run: at_once(run, count=800),
        patience=8.0,
        max_rate=60,
    ),
    Scenario(
        "45/s beside a run on 50/s",
        (50, 50),
        lambda run: beside_a_run(run, rate=45),
        patience=math.inf,
        alone=True,
    ),
]


async def measure(scenario: Scenario, way: str, url: str) -> str:
    options: dict[str, Any] = {}
    if way == "aiolimiter":
        options = {"rate": scenario.max_rate or scenario.limit[0]}
    elif scenario.max_rate is not None:
        options = {"max_rate": scenario.max_rate}
    async with WAYS[way](url, scenario.patience, **options) as call:
        return await scenario.calls(Run(call, url))


def main() -> None:
    parser = argparse.ArgumentParser(description="Single calls on a tenant that limits.")
    parser.add_argument("names", nargs="*", help="parts of scenarios' names")
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of the tenant")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        rate, at_once_, retry_after, latency = options.serve
        wait = int(retry_after) if retry_after != "None" else None
        asyncio.run(serve(float(rate), float(at_once_), wait, float(latency)))
        return
    for scenario in SCENARIOS:
        if options.names and not any(name in scenario.name for name in options.names):
            continue
        print(scenario.name)
        for way in WAYS if options.others and not scenario.alone else ["ours"]:
            told = [*map(str, scenario.limit), str(scenario.retry_after), str(options.latency)]
            command = [sys.executable, __file__, "--serve", *told]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tenant:
                assert tenant.stdout is not None
                url = f"http://127.0.0.1:{tenant.stdout.readline().strip()}"
                try:
                    print(f"  {way:11}", asyncio.run(measure(scenario, way, url)), flush=True)
                finally:
                    tenant.terminate()


if __name__ == "__main__":
    main()
