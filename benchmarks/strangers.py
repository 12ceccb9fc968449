"""Several processes on one tenant, each with a session of its own, over real sockets.

python benchmarks/strangers.py              # every scenario
python benchmarks/strangers.py pods         # those whose names contain this

The tenant is a process, and so is each session. Sessions do not talk to each other: all that they
have in common is the tenant's limit.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import aiohttp
from tenants import Bucket, Tenant, Window
from web_server import ID, body

from monocloud_async import MonoCloudError, MonoCloudSession

BEFORE, AFTER = body(ID).encode().split(ID.encode())


# The tenant


class Server(asyncio.Protocol):
    """Answers 200, or 429 where the tenant refuses; at /counts, who was granted what, and when."""

    tenant: ClassVar[Tenant]
    latency: ClassVar[float]
    tells: ClassVar[bool]
    began: ClassVar[float]
    granted: ClassVar[Counter[str]] = Counter()  # by "session second"
    refused: ClassVar[Counter[str]] = Counter()
    first: ClassVar[float] = -1.0
    last: ClassVar[float] = 0.0  # when one was granted
    transport: asyncio.Transport
    left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *heads, self.left = (self.left + data).split(b"\r\n\r\n")
        for head in heads:
            self._answer(head.split(b" ", 2)[1].split(b"/"))

    def _answer(self, path: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        if path[1] == b"counts":
            counts = {
                "granted": self.granted,
                "refused": self.refused,
                "seconds": self.last - self.first,
            }
            self.transport.write(_response(200, json.dumps(counts).encode()))
            return
        loop.call_later(self.latency / 2, self._decide, path[3])

    def _decide(self, user_id: bytes) -> None:
        now = self._now()
        key = f"{user_id.partition(b'-')[0].decode()} {int(now)}"
        wait = self.tenant.take(now)
        if wait is None:
            self.granted[key] += 1
            Server.first, Server.last = now if self.first < 0 else self.first, now
            answer = _response(200, b"".join((BEFORE, user_id, AFTER)))
        else:
            self.refused[key] += 1
            header = b"Retry-After: %d\r\n" % wait if self.tells else b""
            answer = _response(429, b'{"title":"Too Many Requests"}', header)
        asyncio.get_running_loop().call_later(self.latency / 2, self.transport.write, answer)

    def _now(self) -> float:
        return time.monotonic() - self.began


def _response(status: int, content: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (status, len(content), headers) + content


async def serve(limit: str, latency: float, *, tells: bool) -> None:
    kind, first, second = limit.split(",")
    Server.tenant = (
        Bucket(float(first), float(second))
        if kind == "bucket"
        else Window(int(first), float(second))
    )
    Server.latency, Server.tells, Server.began = latency, tells, time.monotonic()
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# The sessions


async def a_run(url: str, name: str, users: int, concurrency: int) -> dict[str, Any]:
    async with MonoCloudSession(url, "k") as session:
        ids = (f"{name}-{number}" for number in range(users))
        report = await session.bulk_enable(ids, concurrency=concurrency)
        return {"lost": users - report.enabled, "rate": session.pace.rate}


async def a_pod(url: str, name: str, rate: float, seconds: float) -> dict[str, Any]:
    """Single calls, evenly, whoever waits for them."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()

    async def one(session: MonoCloudSession, number: int) -> None:
        began = time.monotonic()
        try:
            await session.enable_user(f"{name}-{number}")
        except MonoCloudError as error:
            errors[f"{type(error).__name__}: {error}"] += 1
        latencies.append(time.monotonic() - began)

    async with MonoCloudSession(url, "k") as session, asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            group.create_task(one(session, number))
    return {"lost": errors.total(), "latencies": latencies, "errors": errors}


# The scenarios


@dataclass(frozen=True)
class Scenario:
    name: str
    limit: str
    runs: int = 0
    users: int = 0  # of each run
    gap: float = 0.0  # seconds between the starts of the runs
    pods: int = 0
    tells: bool = True
    leave: tuple[int, ...] = ()  # users of the first runs, where those differ
    pods_at: float = 0.0  # seconds, when the pods begin

    @property
    def rate(self) -> float:
        kind, first, second = self.limit.split(",")
        return float(first) if kind == "bucket" else float(first) / float(second)

    @property
    def burst(self) -> float:
        kind, first, second = self.limit.split(",")
        return float(second) if kind == "bucket" else float(first)


SCENARIOS = [
    Scenario("4 runs, 200/s burst 50", "bucket,200,50", runs=4, users=1500),
    Scenario("8 runs, 200/s burst 50", "bucket,200,50", runs=8, users=750),
    Scenario("3 runs, 300 per 2 s", "window,300,2", runs=3, users=1500),
    Scenario("pods beside a run, 200/s burst 50", "bucket,200,50", runs=1, users=6000, pods=3),
    Scenario(
        "pods after a run, 200/s burst 50",
        "bucket,200,50",
        runs=1,
        users=8000,
        pods=3,
        pods_at=10.0,
    ),
    Scenario("1 run, 200/s burst 50", "bucket,200,50", runs=1, users=6000),
    Scenario("1 run, 300 per 2 s", "window,300,2", runs=1, users=4500),
    Scenario("4 runs 3 s apart, 200/s burst 50", "bucket,200,50", runs=4, users=1500, gap=3.0),
    Scenario("4 runs, 200/s burst 50, no Retry-After", "bucket,200,50", 4, 1500, tells=False),
    Scenario("2 runs, 200/s burst 20", "bucket,200,20", runs=2, users=3000),
    Scenario("8 runs, 50/s burst 50", "bucket,50,50", runs=8, users=190),
    Scenario("2 runs, one leaves", "bucket,200,50", runs=2, users=4000, leave=(2000,)),
    Scenario("a late joiner", "bucket,200,50", runs=2, users=3000, gap=15.0),
]
POD_RATE, POD_SECONDS = 30.0, 30.0


@dataclass
class Found:
    seconds: float
    ended: list[dict[str, Any]]
    granted: dict[str, list[int]] = field(default_factory=dict)  # of each session, by the second
    refused: int = 0


def jain(shares: list[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares) or 1)


async def measure(scenario: Scenario, url: str) -> Found:
    async def process(delay: float, *arguments: object) -> dict[str, Any]:
        await asyncio.sleep(delay)
        child = await asyncio.create_subprocess_exec(
            sys.executable, __file__, *map(str, arguments), stdout=subprocess.PIPE
        )
        try:
            output, _ = await child.communicate()
        finally:
            with suppress(ProcessLookupError):
                child.kill()
        found: dict[str, Any] = json.loads(output)
        return found

    runs = [
        process(
            number * scenario.gap,
            "--run",
            url,
            f"run{number}",
            scenario.leave[number] if number < len(scenario.leave) else scenario.users,
            100,
        )
        for number in range(scenario.runs)
    ]
    pods = [
        process(scenario.pods_at, "--pod", url, f"pod{number}", POD_RATE, POD_SECONDS)
        for number in range(scenario.pods)
    ]
    ended = await asyncio.gather(*runs, *pods)
    async with aiohttp.ClientSession() as client, client.get(f"{url}/counts") as response:
        counts = await response.json()
    found = Found(0.0, ended)
    seconds = [int(key.split()[1]) for key in counts["granted"]]
    first = min(seconds)
    for key, count in counts["granted"].items():
        name, second = key.split()
        by_second = found.granted.setdefault(name, [0] * (max(seconds) - first + 1))
        by_second[int(second) - first] += count
    found.refused = sum(counts["refused"].values())
    found.seconds = counts["seconds"]
    return found


def tell(scenario: Scenario, found: Found) -> None:
    granted = sum(sum(each) for each in found.granted.values())
    ideal = max(0.0, granted - scenario.burst) / scenario.rate
    lost = sum(ended["lost"] for ended in found.ended)
    print(
        f"{scenario.name}: {found.seconds:.1f} s, {found.seconds / ideal:.2f} of the ideal;"
        f" {100 * found.refused / (granted + found.refused):.1f} % answered 429; {lost} lost"
    )
    if scenario.runs > 1:
        parts = []
        for begin in range(0, int(found.seconds) - 9, 10):
            shares = [float(sum(each[begin : begin + 10])) for each in found.granted.values()]
            fair = sum(shares) / len(shares) or 1
            parts.append(
                f"{begin}-{begin + 10} s: Jain {jain(shares):.2f}, poorest {min(shares) / fair:.2f}"
                f" ({' '.join(f'{share / 10:.0f}' for share in shares)})"
            )
        print("   " + "\n   ".join(parts))
    if scenario.pods:
        latencies = [second for ended in found.ended for second in ended.get("latencies", ())]
        begin = int(scenario.pods_at)
        run = found.granted["run0"]
        while_calling = run[begin : begin + int(POD_SECONDS)]
        after = run[begin + int(POD_SECONDS) : -2][:30]
        print(
            f"   calls: {lost} of {len(latencies)} fail, p50 {statistics.median(latencies):.3f},"
            f" p99 {statistics.quantiles(latencies, n=100)[98]:.2f} s, slowest"
            f" {max(latencies):.2f} s; the run gets {statistics.mean(while_calling):.0f}/s"
            f" (by 5 s: {_by_five(while_calling)}), afterwards {_by_five(after)}"
        )
        for error, count in sum(
            (Counter(e.get("errors", {})) for e in found.ended), Counter()
        ).items():
            print(f"   {count} x {error}"[:150])


def _by_five(counts: list[int]) -> str:
    return " ".join(f"{sum(counts[at : at + 5]) / 5:.0f}" for at in range(0, len(counts), 5))


def main() -> None:
    parser = argparse.ArgumentParser(description="Several processes on one tenant.")
    parser.add_argument("names", nargs="*", help="parts of scenarios' names")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of the tenant")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--pod", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        limit, latency, tells = options.serve
        asyncio.run(serve(limit, float(latency), tells=tells == "True"))
    elif options.run:
        url, name, users, concurrency = options.run
        print(json.dumps(asyncio.run(a_run(url, name, int(users), int(concurrency)))))
    elif options.pod:
        url, name, rate, seconds = options.pod
        print(json.dumps(asyncio.run(a_pod(url, name, float(rate), float(seconds)))))
    else:
        for scenario in SCENARIOS:
            if options.names and not any(name in scenario.name for name in options.names):
                continue
            told = [scenario.limit, str(options.latency), str(scenario.tells)]
            with subprocess.Popen(
                [sys.executable, __file__, "--serve", *told], stdout=subprocess.PIPE, text=True
            ) as tenant:
                assert tenant.stdout is not None
                url = f"http://127.0.0.1:{tenant.stdout.readline().strip()}"
                try:
                    tell(scenario, asyncio.run(measure(scenario, url)))
                finally:
                    tenant.terminate()
                sys.stdout.flush()


if __name__ == "__main__":
    main()
