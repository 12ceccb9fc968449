"""The long faults of a fleet, one by one: users enabled, repeated calls, and the highest rate.

    python benchmarks/fleet.py [name ...]

12,000 users, 300 requests a second, 3 workers, answers after 20 ms. Prints the table of
docs/fleet.md. About fifteen minutes for all; the cost of a fault differs between runs,
because it depends on the time since the last heartbeat.
"""

import asyncio
import signal
import sys
import time
from asyncio import (
    to_thread as apart,
)  # the tenant records the time of requests, so it must not wait
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fleets import Fleet, Part, fleet, temporal

from monocloud_async.fleet import FleetRun

USERS = 12_000
RATE = 300.0
WORKERS = 3
HALF = USERS // 2

Fault = Callable[[Fleet, FleetRun, Part], Awaitable[None]]


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


async def grants_less(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """A tenant that allows 200 a second"""
    parts.sandbox.rate_limit = 200


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
    print(f"paused after {time.monotonic() - began:.1f} s", flush=True)
    await apart(second.kill)
    await run.resume()


async def old_key(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker has an old key"""
    await parts.until(USERS // 4)
    bad = await apart(lambda: parts.part("worker", key="old"))
    progress = await parts.until_away(run)
    assert [name.partition("@")[0] for name in progress.away] == [str(bad.pid)]


FAULTS: list[Fault] = [
    no_fault, kill_worker, kill_two, stop_worker, terminate, pause, slower, cancel,
    kill_coordinator, kill_temporal, grants_less, refuses_key, touch, append, two_folders,
    old_key,
]  # fmt: skip


async def measured(fault: Fault) -> str:
    """Return a row of the table; raises unless every user is enabled and recorded exactly once."""
    with TemporaryDirectory() as folder, temporal(Path(folder)) as server:
        async with fleet(Path(folder), server, USERS, latency=0.02) as parts:
            coordinator = parts.part("coordinator")
            for _ in range(WORKERS):
                parts.part("worker")
            run = await parts.start(RATE)
            await fault(parts, run, coordinator)
            report = await run.result()
            sandbox = parts.sandbox
            assert (report.how, report.gaps) == ("finished", []), report
            assert parts.recorded() == {"enabled": USERS} == {"enabled": report.enabled}
            assert sandbox.stats().users == {"enabled": USERS, "disabled": 0}
            moments = [moment for moment, _ in sandbox.asked]
            by_status = sandbox.stats().by_status
            refused = sum(by_status.get(status, 0) for status in ("401", "429"))
            return (
                f"| {fault.__doc__} | {sandbox.repeats() - refused:,} | {refused or ''} |"
                f" {sandbox.worst_second()} | {moments[-1] - moments[0]:.0f} s |"
            )


async def main(names: list[str]) -> None:
    print("| Event | Repeated calls | Refused (401, 429) | Worst second | Calls lasted |")
    print("|---|---|---|---|---|")
    for fault in FAULTS:
        if not names or fault.__name__ in names:
            print(await measured(fault), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
