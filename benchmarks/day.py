"""A day of a web service in five minutes: is anybody lost, late or miscounted?

    python benchmarks/day.py [--seconds N]

The service is uvicorn with two workers, under `-X dev -W error`, with the recipes of docs/examples:
50 calls a second, of which each may take 5 seconds; a background job; 300 calls at once; an outage
of 20 seconds, in which the tenant answers 500, and then nothing; and a deploy: SIGTERM and a new
start. The tenant is a sandbox with a limit. Callers who are told to come later do so, and wait
while the service is stopped, as behind a load balancer. At the end, what the service said, and what
the metrics of its processes say, is compared with what the tenant did. Exit code 1: something was
not true. A call is late if it ended after its deadline and the longest lag of the event loop.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from monocloud_async.sandbox import Sandbox

HERE = Path(__file__).parent
CALLS, BURST, DEADLINE, OUTAGE = 50, 300, 5, 20.0
LIMIT, AT_ONCE, LATENCY = 200, 100, 0.05  # of the tenant
JOB = 60  # users for each second of the day
SLACK = 0.25  # seconds that an answer may be late on a busy machine
BAD = re.compile(
    r"Warning|Traceback|never (?:awaited|retrieved)|Unclosed|unclosed|exited with code"
)


class Service:
    """uvicorn, which is restarted on the same port."""

    def __init__(self, folder: Path, tenant: Sandbox) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.figures = folder / "figures"
        self.log = folder / "log.txt"
        self.figures.mkdir()
        self.open = asyncio.Event()  # whether the load balancer sends somebody here
        self.open.set()
        self._environment = os.environ | {
            "MONOCLOUD_MANAGEMENT_DOMAIN": tenant.url,
            "MONOCLOUD_MANAGEMENT_API_KEY": tenant.api_key,
            "FIGURES": str(self.figures),
            "JOBS": str(folder),
        }

    async def start(self) -> None:
        options = ["--workers", "2", "--port", str(self.port), "--no-access-log"]
        with self.log.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-X", "dev", "-W", "error", "-m", "uvicorn", "day_app:app"),
                *options,
                cwd=HERE,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    async def stop(self) -> float:
        """SIGTERM; return the seconds until it had ended."""
        self.open.clear()
        await asyncio.sleep(0.5)  # for those who are on their way
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        self.open.set()
        return time.monotonic() - began

    def lines(self) -> Iterator[list[dict[str, Any]]]:
        """Return what each process told of its metrics, in order."""
        for path in self.figures.iterdir():
            yield [json.loads(line) for line in path.read_text().splitlines()]

    def sums(self) -> Counter[tuple[str, ...]]:
        """Return the counters of all processes, by name and attributes, without the host."""
        sums: Counter[tuple[str, ...]] = Counter()
        for lines in self.lines():
            points = lines[-1]["points"]
            for *name, value in points:
                sums[tuple(part for part in name if part != "127.0.0.1")] += value
        return sums

    def late(self, deadline: float) -> int:
        """Return how many calls took longer than this and the longest lag of their process."""
        late = 0
        for lines in self.lines():
            last = lines[-1]
            limit = deadline + last["lag"]
            late += sum(n for bound, n in last["longer"] if bound >= limit)
        return late

    @property
    def lag(self) -> float:
        """The longest lag of the event loop of any process, in seconds."""
        return max(float(lines[-1]["lag"]) for lines in self.lines())

    def most(self, name: str) -> float:
        """Return the largest value that a gauge of any process ever had."""
        return max(
            (
                float(point[-1])
                for lines in self.lines()
                for line in lines
                for point in line["points"]
                if point[0] == name
            ),
            default=0,
        )


class Callers:
    """Everybody who calls the service, and what came of it."""

    def __init__(self, service: Service, client: aiohttp.ClientSession) -> None:
        self.service = service
        self.client = client
        self.answers: Counter[int] = Counter()
        self.late: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.enabled: set[str] = set()
        self.broken = 0  # connections that ended without an answer
        self.not_connected = 0

    async def call(self, user_id: str) -> None:
        """Call until the user is enabled, as a caller who comes back when told to."""
        while user_id not in self.enabled:
            wait = 0.2
            await self.service.open.wait()
            began = time.monotonic()
            try:
                async with self.client.post(
                    f"{self.service.url}/users/{user_id}/enable",
                    headers={"Prefer": f"wait={DEADLINE}"},
                ) as response:
                    await response.read()
                    self.seconds.append(time.monotonic() - began)
                    self.late[response.status] += self.seconds[-1] > DEADLINE + SLACK
                    self.answers[response.status] += 1
                    if response.status == 200:
                        self.enabled.add(user_id)
                    wait = float(response.headers.get("Retry-After", 1))
            except aiohttp.ClientConnectorError:
                self.not_connected += 1
            except aiohttp.ClientError:
                self.broken += 1
            if user_id not in self.enabled:
                await asyncio.sleep(wait)

    async def job(self, method: str, **options: object) -> dict[str, object]:
        """Ask for the job until a worker answers."""
        while True:
            with suppress(aiohttp.ClientError):
                async with self.client.request(
                    method, f"{self.service.url}/job", json=options.get("ids")
                ) as response:
                    answer: dict[str, object] = await response.json()
                    return answer
            await asyncio.sleep(0.2)


async def day(seconds: float, folder: Path, tenant: Sandbox, users: list[str]) -> list[str]:
    service = Service(folder, tenant)
    await service.start()
    job_users, callers_users = users[: int(JOB * seconds)], users[int(JOB * seconds) :]
    ids = iter(callers_users)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # a load balancer's pick each time
    async with aiohttp.ClientSession(connector=connector) as client, asyncio.TaskGroup() as group:
        callers = Callers(service, client)
        await callers.job("GET")  # it is up

        async def load() -> None:
            began = time.monotonic()
            for number in range(int(CALLS * seconds)):
                await asyncio.sleep(max(0.0, began + number / CALLS - time.monotonic()))
                group.create_task(callers.call(next(ids)))

        loading = group.create_task(load())
        share = seconds / 10
        await asyncio.sleep(share)
        told(f"a job of {len(job_users)} users", await callers.job("POST", ids=job_users))
        await asyncio.sleep(2 * share)
        told(f"{BURST} calls at once")
        for _ in range(BURST):
            group.create_task(callers.call(next(ids)))
        await asyncio.sleep(share)
        outage = min(OUTAGE, 2 * share)
        told(f"an outage of {outage:.0f} s")
        tenant.error_rate = 1.0
        await asyncio.sleep(outage / 2)
        tenant.error_rate, tenant.latency = 0.0, 60.0
        await asyncio.sleep(outage / 2)
        tenant.latency = LATENCY
        await asyncio.sleep(share)
        told("a deploy")
        stopped = await service.stop()
        await service.start()
        told(f"stopped in {stopped:.1f} s, started again")
        await loading
        told("the evening: the last callers and the job")
        while (folder / "job.json").exists():  # noqa: ASYNC110  another process removes it
            await asyncio.sleep(0.5)
    await service.stop()
    return verdict(service, callers, tenant, job_users, stopped)


def verdict(
    service: Service,
    callers: Callers,
    tenant: Sandbox,
    job_users: list[str],
    stopped: float,
) -> list[str]:
    sums, stats = service.sums(), tenant.stats()
    wrong = []

    def check(what: str, ours: object, theirs: object) -> None:
        true = ours == theirs
        print(f"| {what} | {ours} | {theirs} |{'' if true else ' WRONG'}")
        if not true:
            wrong.append(what)

    spans = statistics.quantiles(callers.seconds, n=100)
    print(
        f"\n{len(callers.seconds)} answers ({dict(callers.answers)}), p50 {spans[49]:.3f} s,"
        f" p99 {spans[98]:.3f} s, longest {max(callers.seconds):.2f} s;"
        f" {+callers.late} later than {DEADLINE + SLACK} s;"
        f" {callers.not_connected} could not connect; longest lag {service.lag:.2f} s;"
        f" largest gauges: waiting {service.most('monocloud.waiting')},"
        f" paused {service.most('monocloud.paused')}, down {service.most('monocloud.down')},"
        f" rate {service.most('monocloud.rate'):.0f}; tenant: {stats.by_status}\n"
    )
    print("| | the service | the truth |\n|---|---:|---:|")
    everybody = callers.enabled | set(job_users)
    check("users told to be enabled", len(everybody), stats.users["enabled"])
    check("of them disabled", sum(map(tenant.is_disabled, everybody)), 0)
    check("calls after the deadline", service.late(DEADLINE), 0)
    check("connections without an answer", callers.broken, 0)
    kinds = {kind: sums["monocloud.requests", kind] for kind in ("call", "run")}
    ours = sum(kinds.values())  # those of a run also count where there was no connection
    unconnected = ours - stats.requests
    check(f"requests {kinds}", ours, max(stats.requests, ours if unconnected <= ours / 1000 else 0))
    throttled = sum(sums["monocloud.throttled", kind] for kind in kinds)
    check("answered 429", throttled, stats.by_status.get("429", 0))
    durations = {key: n for key, n in sums.items() if key[0] == "monocloud.call.duration"}
    check(
        "calls that succeeded",
        durations["monocloud.call.duration", "enable", "ok"],
        callers.answers[200],
    )
    check("calls", sum(durations.values()), len(callers.seconds))
    refused = sum(n for key, n in durations.items() if "refused" in key)
    check("refusals", sum(n for key, n in sums.items() if key[0] == "monocloud.refusals"), refused)
    check("users of the job enabled", sums["monocloud.users", "enabled"], len(job_users))
    check("the outage was seen", service.most("monocloud.down"), 1)
    check("seconds of SIGTERM, within the drain", round(min(stopped, 22)), round(stopped))
    # uvicorn does not close the socket on which it listens.
    own = f"laddr=('127.0.0.1', {service.port})>"
    lines = service.log.read_text().splitlines()
    bad = [line for line in lines if BAD.search(line) and not line.endswith(own)]
    check("warnings and tracebacks", len(bad), 0)
    print(*bad[:20], sep="\n")
    return wrong


def told(*what: object) -> None:
    print(f"{time.strftime('%H:%M:%S')}", *what, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    count = int((JOB + CALLS) * options.seconds) + BURST
    users = [f"user-{number:06}" for number in range(count)]
    with (
        tempfile.TemporaryDirectory() as name,
        Sandbox(
            users=users,
            rate_limit=LIMIT,
            burst=AT_ONCE,
            latency=LATENCY,
            db=Path(name, "tenant.db"),
        ) as tenant,
    ):
        wrong = asyncio.run(day(options.seconds, Path(name), tenant, users))
    print("not true:" if wrong else "all true", *wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
