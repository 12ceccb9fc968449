"""The drills of a fleet, one by one: users enabled, repeated calls, and the highest rate.

    python benchmarks/fleet.py [name ...]

12,000 users, 3 workers, answers after 20 ms, at most 300 requests a second where nothing else is
said. Prints the table of docs/fleet.md, 40 minutes for all. Each drill fails unless every user is
enabled and recorded once, and no more calls were repeated than it may cost; what a fault costs
differs between runs, because it depends on the time since the last heartbeat.

The status is compared with what the tenant has seen, once a second (`watch`), and each drill looks
for what it must say of the fault. Some drills need root, for a disk of their own or a file that
only one process sees, and those of two versions need the history of this repository.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from asyncio import (
    to_thread as apart,
)  # the tenant records the time of requests, so it must not wait
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

from fleets import Fleet, Part, fleet, temporal

from monocloud_async.fleet import FleetError, FleetReport, FleetRun, Progress, WorkerProgress
from monocloud_async.fleet.temporal import workflow_id

USERS = 12_000
RATE = 300.0
WORKERS = 3
HALF = USERS // 2
# The version before results were recorded at once, and the rate was measured.
EARLIER = "4dfca16"
# Seconds: what a worker has done is told once a second, and all of this shares two cores.
LAG = 3.0
WARM = 12  # seconds: at first, one worker has all of the rate, which moves to others
BEFORE, AFTER = 8, 2  # seconds: the rate is that of the last five, and told a second later
SILENT = 14.0  # seconds without a request, after which the status must say why

Fault = Callable[[Fleet, FleetRun, Part], Awaitable[None]]


class Drill(NamedTuple):
    """A fault, and what it may cost.

    Attributes:
        fault: what happens.
        most: repeated calls at most.
        told: requests a second at most, as the run is told.
        tenant: options of the tenant.
        unknown: ids that nobody has, behind those of the users.
        seconds: that the calls may last: a fifth more than the ideal, as two cores do all of this.
        silent: whether nobody may be able to tell the status for a while, or it begins again.
        coordinator: options of the first one.
        disk: whether the coordinator has a disk of its own.
        earlier: whether all begins with an earlier version.
        rate: whether all workers tell their rate: those of an earlier version do not.
    """

    fault: Fault
    most: int = 0
    told: float | None = RATE
    tenant: Mapping[str, Any] = MappingProxyType({})
    unknown: int = 0
    seconds: float | None = None
    silent: bool = False
    coordinator: Mapping[str, Any] = MappingProxyType({})
    disk: bool = False
    earlier: bool = False
    rate: bool = True


class Watch:
    """Compares the status of a run with what the tenant has seen, once a second.

    Attributes:
        wrong: what was untrue.
    """

    def __init__(self, parts: Fleet, run: FleetRun, drill: Drill) -> None:
        self.wrong: list[str] = []
        self._sandbox = parts.sandbox
        self._run = run
        self._drill = drill
        self._counted = 0
        self._rates: deque[tuple[float, float]] = deque()
        self._cold_until = 0.0  # when the second run of a drill has warmed up
        self._began = time.monotonic()

    async def keep_looking(self) -> None:
        await until(self._run, lambda _: True)  # all parts begin at once
        while True:
            await asyncio.sleep(1)
            before = time.monotonic()
            try:
                progress = await self._run.progress()
            except FleetError as error:
                self._began = time.monotonic()  # of a silence that the status may not be silent of
                if not self._drill.silent:
                    self.wrong.append(f"no status: {error}")
            else:
                self.wrong += self._untrue(progress, before)
            self.wrong += self._wrong_rates(before - AFTER)

    def _wrong_rates(self, until: float) -> Iterator[str]:
        """Compare what was said of the rate with the seconds before and after."""
        while self._rates and self._rates[0][0] < until:
            moment, rate = self._rates.popleft()
            seconds = [
                self._sandbox.asked_in(moment + n, moment + n + 1) for n in range(-BEFORE, AFTER)
            ]
            is_warm = self._sandbox.asked_in(0.0, moment - WARM) > 0 and moment > self._cold_until
            if (
                self._drill.rate
                and is_warm
                and not 0.8 * min(seconds) - 5 < rate < 1.2 * max(seconds) + 5
            ):
                yield f"{rate:.0f} requests a second, and there were {seconds}"

    def _untrue(self, progress: Progress, before: float) -> Iterator[str]:
        sandbox, most = self._sandbox, self._drill.most
        if self._drill.silent and not progress.done:  # the journal was not read yet
            self._counted = 0
            self._cold_until = before + WARM
            return
        enabled, counted = progress.enabled, self._counted
        self._counted = enabled
        # The steps of an earlier version do not count chunks that wait for another worker.
        is_whole = not self._drill.earlier
        if is_whole and enabled < counted:
            yield f"{enabled} enabled, after {counted}"
        if enabled > len(sandbox.enabled):
            yield f"{enabled} enabled, and the tenant knows {len(sandbox.enabled)}"
        if is_whole and enabled < (known := sandbox.enabled_by(before - LAG)) - most:
            yield f"{enabled} enabled, and there were {known} of them {LAG:.0f} s ago"
        if enabled + progress.failed + progress.under_way > USERS + self._drill.unknown:
            yield f"{enabled} enabled, {progress.failed} failed, {progress.under_way} under way"
        if progress.chunks:
            self._rates.append((before, progress.rate))
        waits = progress.pause_left or progress.outage or progress.waiting
        said = waits or progress.paused or progress.trouble or progress.done == progress.size
        last = max(sandbox.asked[-1][0] if sandbox.asked else 0.0, self._began)
        if before - last > SILENT and not said:
            yield f"no request for {before - last:.0f} s, and no word of it: {progress}"


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


def member(progress: Progress, part: Part) -> WorkerProgress:
    """Return what the status says of this process."""
    return next(each for each in progress.members if each.name.startswith(f"{part.pid}@"))


def away(progress: Progress) -> dict[int, str]:
    """Return the processes that have left the run, and why."""
    return {int(name.partition("@")[0]): why for name, why in progress.away.items()}


def assert_fine(progress: Progress) -> None:
    """Check that the status says nothing of a fault."""
    assert (progress.paused, progress.trouble, progress.away) == (None, [], {}), progress


async def refusal(run: FleetRun) -> str:
    """Return why there is no status."""
    try:
        progress = await run.progress()
    except FleetError as error:
        return str(error)
    raise AssertionError(progress)


async def no_fault(_fleet: Fleet, _run: FleetRun, _first: Part) -> None:
    """No fault"""


async def kill_worker(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """kill -9 of a worker, replaced after 10 s"""
    await parts.until(USERS // 4)
    worker = await parts.busy_worker()
    await apart(worker.kill)
    await until(run, lambda progress: member(progress, worker).seconds > 4, 8)
    await until(run, lambda progress: "its worker was lost" in " ".join(progress.trouble), 8)
    await apart(parts.part, "worker")


async def kill_two(parts: Fleet, _run: FleetRun, _first: Part) -> None:
    """kill -9 of a worker, and of another one 15 s later"""
    await parts.until(USERS // 4)
    await apart((await parts.busy_worker()).kill)
    await asyncio.sleep(15)
    await apart((await parts.busy_worker()).kill)


async def stop_worker(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """SIGSTOP of a worker for 20 s"""
    await parts.until(USERS // 4)
    worker = await parts.busy_worker()
    worker.send(signal.SIGSTOP)
    began = time.monotonic()
    await until(run, lambda progress: member(progress, worker).seconds > 4, 8)
    await until(run, lambda progress: "its worker was lost" in " ".join(progress.trouble), 8)
    await asyncio.sleep(began + 20 - time.monotonic())
    worker.send(signal.SIGCONT)
    await until(run, lambda progress: member(progress, worker).seconds < 3, 20)


async def terminate(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """SIGTERM of a worker"""
    await parts.until(USERS // 4)
    worker = await parts.busy_worker()
    worker.send(signal.SIGTERM)
    progress = await until(run, lambda progress: not member(progress, worker).chunks, 10)
    assert_fine(progress)


async def pause(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Pause for 5 s, and resume"""
    await parts.until(HALF)
    await run.pause("a deployment")
    progress = await parts.until_paused(run)
    assert (progress.paused, progress.rate, progress.under_way) == ("a deployment", 0, 0)
    assert progress.enabled == parts.recorded()["enabled"] == len(parts.sandbox.asked)
    await asyncio.sleep(5)
    await run.resume()


async def slower(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Change of rate, from 300 to 200 and back"""
    await parts.until(USERS // 4)
    await run.set_rate(200)
    await asyncio.sleep(10)
    progress = await run.progress()
    assert (progress.max_rate, 160 < progress.rate < 210) == (200, True), progress
    await run.set_rate(RATE)


async def cancel(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """Cancel, and a second run with the same journal"""
    await parts.until(HALF)
    await run.cancel()
    report = await run.result()
    progress = await run.progress()
    assert report.enabled == progress.enabled == parts.recorded()["enabled"]
    assert report.enabled == len(parts.sandbox.asked)
    await parts.start(RATE)


async def kill_coordinator(parts: Fleet, run: FleetRun, first: Part) -> None:
    """kill -9 of the coordinator, replaced after 10 s"""
    await parts.until(USERS // 4)
    await apart(first.kill)
    began = time.monotonic()
    assert "no coordinator answers" in await refusal(run)
    await asyncio.sleep(began + 10 - time.monotonic())
    await apart(parts.part, "coordinator")


async def kill_temporal(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """kill -9 of the Temporal server, back after 8 s"""
    await parts.until(USERS // 4)
    await apart(parts.server.kill)
    began = time.monotonic()
    assert "Temporal" in await refusal(run)
    await asyncio.sleep(began + 8 - time.monotonic())
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
    """kill -9 of all workers, others after 2 minutes"""
    await parts.until(USERS // 4)
    for worker in parts.workers:
        await apart(worker.kill)
    progress = await until(run, lambda progress: progress.waiting)
    assert progress.rate == 0
    await asyncio.sleep(100)
    progress = await run.progress()
    assert progress.waiting
    assert min(each.seconds for each in progress.members if each.role == "worker") > 60
    assert progress.enabled == parts.recorded()["enabled"]
    for _ in range(WORKERS):
        await apart(parts.part, "worker")


async def down(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The tenant cannot be reached for 20 s"""
    await parts.until(USERS // 4)
    await parts.sandbox.stop()
    await outage(run)
    await parts.sandbox.start()


async def unavailable(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The tenant answers 503 for 20 s"""
    await parts.until(USERS // 4)
    parts.sandbox.unavailable = True
    await outage(run)
    parts.sandbox.unavailable = False


async def outage(run: FleetRun) -> None:
    began = time.monotonic()
    await asyncio.sleep(15)
    progress = await until(run, lambda progress: progress.outage, 3)
    assert 8 < progress.outage < time.monotonic() - began
    assert progress.rate < 30
    await asyncio.sleep(began + 20 - time.monotonic())


async def grants_less(_parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A tenant that allows 200 a second"""
    await until(run, lambda progress: abs((progress.learnt or 0) - 200) < 70)
    progress = await until(run, lambda progress: progress.enabled > 0.9 * USERS, 90)
    assert abs((progress.learnt or 0) - 200) < 70, progress
    assert progress.throttled


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
    progress = await parts.until_paused(run)
    assert "401" in (progress.paused or ""), progress
    parts.sandbox.api_key = key
    await run.resume()


async def touch(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The file is touched"""
    await parts.until(HALF)
    parts.ids.touch()
    for _ in range(10):
        await asyncio.sleep(0.5)
        assert_fine(await run.progress())


async def append(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A line is appended to the file, and removed again"""
    await parts.until(HALF)
    content = parts.ids.read_text()
    parts.ids.write_text(content + "somebody-else\n")
    progress = await parts.until_paused(run)
    assert "changed since the run was planned" in (progress.paused or ""), progress
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
    progress = await parts.until_pausing(run)
    assert f"coordinator {second.pid}@" in (progress.paused or ""), progress
    assert time.monotonic() - began < 15
    await apart(second.kill)
    await run.resume()


async def old_key(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker has an old key"""
    await parts.until(USERS // 4)
    bad = await apart(lambda: parts.part("worker", key="old"))
    ((pid, why),) = away(await parts.until_away(run)).items()
    assert (pid, "401" in why) == (bad.pid, True), why


async def no_file(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker does not have the file"""
    await parts.until(USERS // 4)
    folder = parts.folder / "empty"
    folder.mkdir()
    bad = await apart(lambda: parts.part("worker", source=folder))
    ((pid, why),) = away(await parts.until_away(run)).items()
    assert (pid, "ids.txt" in why) == (bad.pid, True), why


async def one_folder(parts: Fleet, _run: FleetRun, first: Part) -> None:
    """A second coordinator, in the same folder; the first one is killed"""
    await parts.until(USERS // 4)
    await apart(parts.part, "coordinator")
    await asyncio.sleep(5)
    await apart(first.kill)


async def other_date(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker has the file with another date"""
    await parts.until(USERS // 4)
    copy = parts.folder / "copy.txt"
    copy.write_bytes(parts.ids.read_bytes())
    os.utime(copy, (0, 0))
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, "sh", str(copy), str(parts.ids)]
    await is_taken_in(run, await apart(lambda: parts.part("worker", under=alone)))


async def other_clock(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker's clock is an hour fast"""
    await parts.until(USERS // 4)
    library = parts.folder / "clock.so"
    compiler = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    await apart(lambda: subprocess.run(compiler, input=CLOCK, check=True))
    variables = {"LD_PRELOAD": str(library)}
    worker = await apart(lambda: parts.part("worker", variables=variables))
    await is_taken_in(run, worker)
    assert member(await run.progress(), worker).seconds < 60


# Wall-clock time alone; the time of the event loop has no date.
CLOCK = b"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && !failed) now->tv_sec += 3600;
    return failed;
}
"""


async def is_taken_in(run: FleetRun, worker: Part) -> None:
    """Wait until this worker has chunks as the others do."""
    name = f"{worker.pid}@"

    def has_chunk(progress: Progress) -> bool:
        return any(each.chunks for each in progress.members if each.name.startswith(name))

    assert_fine(await until(run, has_chunk))


async def full_disk(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The journal's disk is full for 40 s"""
    await parts.until(USERS // 4)
    filler = parts.journal.with_name("filler")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    began = time.monotonic()
    progress = await until(run, lambda progress: "full" in " ".join(progress.trouble), 35)
    assert progress.paused is None
    await asyncio.sleep(began + 40 - time.monotonic())
    filler.unlink()


async def new_histories(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """The history begins anew several times"""
    await until(run, lambda progress: progress.done == progress.size, 90)
    await have_begun(parts, 4)


async def failures_in_new_histories(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """20,000 users more who do not exist, 2.4 MB of failures, and new histories"""
    await until(run, lambda progress: progress.failed > 100, 120)
    await until(run, lambda progress: progress.done == progress.size, 120)
    await have_begun(parts, 4)


async def have_begun(parts: Fleet, least: int) -> None:
    """Check that there were so many histories of the run."""
    query = f"WorkflowId = '{workflow_id(parts.sandbox.url)}'"
    client = await parts.server.client()
    assert len([each async for each in client.list_workflows(query)]) >= least


async def upgrade(parts: Fleet, run: FleetRun, first: Part) -> None:
    """An upgrade: the run began with an earlier version, and each part is replaced"""
    await parts.until(USERS // 4)
    first.send(signal.SIGTERM)
    await apart(first.ended)
    coordinator = await apart(parts.part, "coordinator")
    for worker in parts.workers[:WORKERS]:
        worker.send(signal.SIGTERM)
        await apart(worker.ended)
        await apart(parts.part, "worker")
    progress = await until(run, lambda progress: progress.chunks)
    assert member(progress, coordinator).role == "coordinator"
    assert (progress.paused, progress.away) == (None, {}), progress


async def earlier_worker(parts: Fleet, run: FleetRun, _first: Part) -> None:
    """A fourth worker is of an earlier version"""
    await parts.until(USERS // 4)
    worker = await apart(lambda: parts.part("worker", tree=earlier(parts.folder)))
    await is_taken_in(run, worker)


async def earlier_coordinator(parts: Fleet, run: FleetRun, first: Part) -> None:
    """A coordinator of an earlier version follows, and then one of this version again"""
    await parts.until(USERS // 4)
    await apart(first.kill)
    wrong = await apart(lambda: parts.part("coordinator", tree=earlier(parts.folder)))
    deadline = time.monotonic() + 30
    while "a step of it fails" not in (said := await refusal(run)):
        assert time.monotonic() < deadline, said
        await asyncio.sleep(0.5)
    assert f"{wrong.pid}@" in said
    await apart(wrong.kill)
    await apart(parts.part, "coordinator")


LESS: dict[str, Any] = {"rate_limit": 200}
OFTEN = "from monocloud_async.fleet import workflow; workflow._MAX_EVENTS = 200"
DRILLS: list[Drill] = [
    Drill(no_fault, seconds=48),
    Drill(kill_worker, 600),
    Drill(kill_two, 600),
    Drill(stop_worker, 600),
    Drill(terminate),
    Drill(pause),
    Drill(slower),
    Drill(cancel, silent=True),
    Drill(kill_coordinator, silent=True),
    Drill(one_folder, silent=True),
    Drill(two_folders, 1000),
    Drill(kill_temporal, 3000, silent=True),
    Drill(temporal_gone, 3000, silent=True),
    Drill(workers_gone, 600),
    Drill(down, 300),
    Drill(unavailable),
    Drill(grants_less, told=None, tenant=LESS, seconds=71),
    Drill(grants_less, told=2000, tenant=LESS, seconds=71),
    Drill(grants_less, tenant=LESS, seconds=71),
    Drill(retry_after, seconds=120),
    Drill(refuses_key),
    Drill(touch),
    Drill(append),
    Drill(old_key),
    Drill(no_file),
    Drill(other_date),
    Drill(other_clock),
    Drill(full_disk, disk=True),
    Drill(failures, unknown=USERS),
    Drill(new_histories, coordinator={"before": OFTEN}),
    Drill(failures_in_new_histories, told=1000, unknown=20_000, coordinator={"before": OFTEN}),
    Drill(upgrade, earlier=True, silent=True, rate=False),
    Drill(earlier_worker, rate=False),
    Drill(earlier_coordinator, silent=True),
]


def earlier(folder: Path) -> Path:
    """Return a folder with an earlier version."""
    tree = folder / EARLIER
    if not tree.exists():
        tree.mkdir()
        command = f"git archive {EARLIER} monocloud_async | tar --extract --directory {tree}"
        subprocess.run(["sh", "-c", command], cwd=Path(__file__).parent.parent, check=True)
    return tree


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Make this folder a disk of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def measured(drill: Drill) -> str:
    """Return a row of the table; raises unless every user is enabled and recorded exactly once."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = stack.enter_context(temporal(folder, folder / "temporal.db"))
        options = dict(drill.coordinator)
        if drill.disk:
            options["folder"] = folder / "disk"
            stack.enter_context(disk(folder / "disk"))
        async with fleet(folder, server, USERS, latency=0.02, **drill.tenant) as parts:
            with parts.ids.open("a") as ids:
                ids.writelines(f"nobody{number}\n" for number in range(drill.unknown))
            parts.journal = options.get("folder", folder) / parts.journal.name
            tree = earlier(folder) if drill.earlier else None
            coordinator = parts.part("coordinator", tree=tree, **options)
            for _ in range(WORKERS):
                parts.part("worker", tree=tree)
            if tree is None:
                run = await parts.start(drill.told)
            else:
                run = await parts.start_earlier(tree, RATE)
            watch = Watch(parts, run, drill)
            watching = asyncio.create_task(watch.keep_looking())
            try:
                await drill.fault(parts, run, coordinator)
                report = await run.result()
            finally:
                watching.cancel()
            assert not watch.wrong, watch.wrong[:3]
            return _row(drill, parts, report, await run.progress())


def _row(drill: Drill, parts: Fleet, report: FleetReport, progress: Progress) -> str:
    sandbox = parts.sandbox
    assert (report.how, report.gaps) == ("finished", []), report
    assert parts.recorded() == {"enabled": USERS} | (
        {"failed": drill.unknown} if drill.unknown else {}
    )
    for told in (report, progress):
        assert (told.enabled, told.failed, told.unknown) == (USERS, drill.unknown, 0), told
    assert (progress.done, progress.chunks, progress.rate) == (progress.size, 0, 0), progress
    assert sandbox.stats().users == {"enabled": USERS, "disabled": 0}
    moments = [moment for moment, _ in sandbox.asked]
    by_status = sandbox.stats().by_status
    refused = sum(by_status.get(status, 0) for status in ("401", "429", "503"))
    repeats = sandbox.repeats() - refused
    lasted = moments[-1] - moments[0]
    row = (
        f"| {_named(drill)} | {repeats:,} | {refused or ''} |"
        f" {sandbox.worst_second()} | {lasted:.0f} s |"
    )
    assert repeats <= drill.most, row
    assert drill.seconds is None or lasted <= drill.seconds, row
    return row


def _named(drill: Drill) -> str:
    told = "nothing" if drill.told is None else f"{drill.told:g}"
    return f"{drill.fault.__doc__}" + ("" if drill.told == RATE else f", told {told}")


async def main(names: list[str]) -> None:
    print("| Event | Repeated calls | Refused (401, 429, 503) | Worst second | Calls lasted |")
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
