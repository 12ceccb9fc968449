"""The drills of a fleet, one by one: users enabled, repeated calls, and the highest rate.

    python benchmarks/fleet.py [name ...]

12,000 users, 3 workers, answers after 20 ms, at most 300 requests a second where nothing else is
said. Prints the table of docs/fleet.md, half an hour for all. Each drill fails unless every user is
enabled and recorded once, the status told the truth, and no more calls were repeated than it may
cost; what a fault costs differs between runs, because it depends on the time since the last
heartbeat.
"""

import asyncio
import signal
import sys
import time
from asyncio import (
    to_thread as apart,
)  # the tenant records the time of requests, so it must not wait
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

from fleets import Fleet, Part, fleet, temporal

from monocloud_async.fleet import FleetError, FleetRun, Progress

USERS = 12_000
RATE = 300.0
WORKERS = 3
HALF = USERS // 2

Fault = Callable[[Fleet, FleetRun, Part], Awaitable[None]]


class Drill(NamedTuple):
    """A fault, and what it may cost.

    Attributes:
        fault: what happens.
        most: repeated calls at most.
        told: requests a second at most, as the run is told.
        tenant: options of the tenant.
        unknown: ids that nobody has, behind those of the users.
        seconds: that the calls may last.
    """

    fault: Fault
    most: int = 0
    told: float | None = RATE
    tenant: Mapping[str, Any] = MappingProxyType({})
    unknown: int = 0
    seconds: float | None = None


async def until(
    run: FleetRun, what: Callable[[Progress], object], seconds: float = 60.0
) -> Progress:
    """Wait until the status says this, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            progress = await run.progress()
        except FleetError as error:
            last: object = error
        else:
            if what(progress):
                return progress
            last = progress
        assert time.monotonic() < deadline, last
        await asyncio.sleep(0.2)


async def no_fault(_fleet: Fleet, _run: FleetRun, _first: Part) -> None:
    """No fault"""


async def kill_worker(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """kill -9 of a worker, replaced after 10 s"""
    await parts.until(USERS // 4)
    await apart((await parts.busy_worker()).kill)
    await asyncio.sleep(10)
    await apart(parts.part, "worker")


async def kill_two(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """kill -9 of a worker, and of another one 15 s later"""
    await parts.until(USERS // 4)
    await apart((await parts.busy_worker()).kill)
    await asyncio.sleep(15)
    await apart((await parts.busy_worker()).kill)


async def stop_worker(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """SIGSTOP of a worker for 12 s"""
    await parts.until(USERS // 4)
    worker = await parts.busy_worker()
    worker.send(signal.SIGSTOP)
    await asyncio.sleep(12)
    worker.send(signal.SIGCONT)


async def terminate(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """SIGTERM of a worker"""
    await parts.until(USERS // 4)
    (await parts.busy_worker()).send(signal.SIGTERM)


async def pause(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Pause for 5 s, and resume"""
    await parts.until(HALF)
    await run.pause()
    await asyncio.sleep(5)
    await run.resume()


async def slower(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Change of rate, from 300 to 200 and back"""
    await parts.until(USERS // 4)
    await run.set_rate(200)
    await asyncio.sleep(10)
    await run.set_rate(RATE)


async def cancel(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Cancel, and a second run with the same journal"""
    await parts.until(HALF)
    await run.cancel()
    await run.result()
    await parts.start(RATE)


async def kill_coordinator(parts: Fleet, _run: FleetRun, first: Part) -> None:
    """kill -9 of the coordinator, replaced after 10 s"""
    await parts.until(USERS // 4)
    await apart(first.kill)
    await asyncio.sleep(10)
    await apart(parts.part, "coordinator")


async def kill_temporal(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """kill -9 of the Temporal server, back after 6 s"""
    await parts.until(USERS // 4)
    await apart(parts.server.kill)
    await asyncio.sleep(6)
    await apart(parts.server.start)


async def temporal_gone(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """kill -9 of the Temporal server, back after 150 s"""
    await parts.until(USERS // 4)
    await apart(parts.server.kill)
    await asyncio.sleep(150)
    await apart(parts.server.start)
    progress = await until(run, lambda progress: progress.chunks)
    assert progress.enabled + progress.under_way <= USERS


async def workers_gone(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """kill -9 of all workers, others after 30 s"""
    await parts.until(USERS // 4)
    for worker in parts.workers:
        await apart(worker.kill)
    await asyncio.sleep(30)
    progress = await until(run, lambda progress: progress.waiting)
    assert progress.rate == 0
    assert progress.enabled == parts.recorded()["enabled"]
    for _ in range(WORKERS):
        await apart(parts.part, "worker")


async def down(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The tenant answers 500 for 20 s"""
    await parts.until(USERS // 4)
    parts.sandbox.error_rate = 1.0
    await asyncio.sleep(15)
    assert (await until(run, lambda progress: progress.outage)).outage < 30
    await asyncio.sleep(5)
    parts.sandbox.error_rate = 0.0


async def grants_less(_parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A tenant that allows 200 a second"""
    progress = await until(run, lambda progress: progress.learnt)
    assert progress.learnt is not None
    assert 50 < progress.learnt < 10_000


async def retry_after(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """One Retry-After of 60 s"""
    parts.sandbox.script(parts.sandbox.user_ids()[HALF], "429:60")
    progress = await until(run, lambda progress: progress.pause_left > 40)
    asked = len(parts.sandbox.asked)
    await asyncio.sleep(20)
    assert len(parts.sandbox.asked) <= asked + RATE  # the others hear of it within a second
    assert (await run.progress()).pause_left < progress.pause_left - 15


async def failures(_parts: Fleet, run: FleetRun, _first: Part) -> None:
    """12,000 users more who do not exist"""
    await until(run, lambda progress: progress.failed > 100, 120)
    assert (await run.failures())[0].status == 404


async def refuses_key(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A key refused during the run, and accepted again"""
    await parts.until(HALF)
    key, parts.sandbox.api_key = parts.sandbox.api_key, "another-key"
    await parts.until_paused(run)
    parts.sandbox.api_key = key
    await run.resume()


async def touch(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """The file is touched"""
    await parts.until(HALF)
    parts.ids.touch()


async def append(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A line is appended to the file, and removed again"""
    await parts.until(HALF)
    content = parts.ids.read_text()
    parts.ids.write_text(content + "somebody-else\n")
    progress = await parts.until_paused(run)
    assert progress.enabled == parts.recorded()["enabled"] == len(parts.sandbox.asked)
    parts.ids.write_text(content)
    await run.resume()


async def two_folders(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A second coordinator, in another folder, ended when the run is paused"""
    await parts.until(USERS // 4)
    folder = parts.folder / "other"
    folder.mkdir()
    second = await apart(lambda: parts.part("coordinator", folder=folder))
    began = time.monotonic()
    await parts.until_pausing(run)
    assert time.monotonic() - began < 15
    await apart(second.kill)
    await run.resume()


async def old_key(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker has an old key"""
    await parts.until(USERS // 4)
    bad = await apart(lambda: parts.part("worker", key="old"))
    progress = await parts.until_away(run)
    assert [name.partition("@")[0] for name in progress.away] == [str(bad.pid)]


async def no_file(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker does not have the file"""
    await parts.until(USERS // 4)
    folder = parts.folder / "empty"
    folder.mkdir()
    bad = await apart(lambda: parts.part("worker", source=folder))
    ((name, why),) = (await parts.until_away(run)).away.items()
    assert name.partition("@")[0] == str(bad.pid)
    assert "ids.txt" in why


async def one_folder(parts: Fleet, _run: FleetRun, first: Part) -> None:
    """A second coordinator, in the same folder; the first one is killed"""
    await parts.until(USERS // 4)
    await apart(parts.part, "coordinator")
    await asyncio.sleep(5)
    await apart(first.kill)


LESS: dict[str, Any] = {"rate_limit": 200}
DRILLS: list[Drill] = [
    Drill(no_fault, seconds=44),
    Drill(kill_worker, 600),
    Drill(kill_two, 600),
    Drill(stop_worker, 600),
    Drill(terminate),
    Drill(pause),
    Drill(slower),
    Drill(cancel),
    Drill(kill_coordinator),
    Drill(one_folder),
    Drill(two_folders, 1000),
    Drill(kill_temporal, 2000),
    Drill(temporal_gone, 3000),
    Drill(workers_gone, 600),
    Drill(down),
    Drill(grants_less, told=None, tenant=LESS, seconds=66),
    Drill(grants_less, told=2000, tenant=LESS, seconds=66),
    Drill(grants_less, tenant=LESS, seconds=66),
    Drill(retry_after, seconds=120),
    Drill(refuses_key),
    Drill(touch),
    Drill(append),
    Drill(old_key),
    Drill(no_file),
    Drill(failures, unknown=USERS),
]


async def measured(drill: Drill) -> str:
    """Return a row of the table; raises unless every user is enabled and recorded exactly once."""
    with TemporaryDirectory() as folder, temporal(Path(folder)) as server:
        async with fleet(Path(folder), server, USERS, latency=0.02, **drill.tenant) as parts:
            with parts.ids.open("a") as ids:
                ids.writelines(f"nobody{number}\n" for number in range(drill.unknown))
            coordinator = parts.part("coordinator")
            for _ in range(WORKERS):
                parts.part("worker")
            run = await parts.start(drill.told)
            await drill.fault(parts, run, coordinator)
            report = await run.result()
            sandbox = parts.sandbox
            assert (report.how, report.gaps) == ("finished", []), report
            assert parts.recorded() == {"enabled": USERS} | (
                {"failed": drill.unknown} if drill.unknown else {}
            )
            assert (report.enabled, report.failed) == (USERS, drill.unknown)
            assert sandbox.stats().users == {"enabled": USERS, "disabled": 0}
            moments = [moment for moment, _ in sandbox.asked]
            by_status = sandbox.stats().by_status
            refused = sum(by_status.get(status, 0) for status in ("401", "429", "500"))
            repeats = sandbox.repeats() - refused
            row = (
                f"| {_named(drill)} | {repeats:,} | {refused or ''} |"
                f" {sandbox.worst_second()} | {moments[-1] - moments[0]:.0f} s |"
            )
            assert repeats <= drill.most, row
            assert drill.seconds is None or moments[-1] - moments[0] <= drill.seconds, row
            return row


def _named(drill: Drill) -> str:
    told = "nothing" if drill.told is None else f"{drill.told:g}"
    return f"{drill.fault.__doc__}" + ("" if drill.told == RATE else f", told {told}")


async def main(names: list[str]) -> None:
    print("| Event | Repeated calls | Refused (401, 429, 500) | Worst second | Calls lasted |")
    print("|---|---|---|---|---|")
    failed = False
    for drill in DRILLS:
        if not names or drill.fault.__name__ in names:
            try:
                print(await measured(drill), flush=True)
            except AssertionError as error:
                failed = True
                print(f"| {_named(drill)} | FAILED: {error} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
