"""Implements the `fleet` commands: runs its processes, and shows and controls a run."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import PLAIN_TICK, LiveBar, say
from monocloud_async.cli.estimate import Estimate
from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED, STOPPED
from monocloud_async.cli.fleet import logs
from monocloud_async.config import base_url
from monocloud_async.endpoint import bulk_operation
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import Format
from monocloud_async.sanitize import clean, format_rate

try:
    from monocloud_async.fleet import (
        Failure,
        FleetError,
        FleetReport,
        FleetRun,
        Progress,
        WorkerProgress,
        check_fleet,
        connect,
        run_coordinator,
        run_worker,
    )
    from monocloud_async.fleet.health import tell_stopping, watched
    from monocloud_async.fleet.id_file import shown
    from monocloud_async.fleet.metrics import run_metrics, runtime
except ImportError as error:
    raise ConfigurationError(str(error)) from None

if TYPE_CHECKING:
    from temporalio.client import Client

T = TypeVar("T")

PROGRAM = "monocloud-async"
_ASK = 0.2  # seconds between two questions whether the run has begun
_ASKED = 50
_KINDS = 5  # of failures, in the status
_LONGEST = 10_000  # characters of the status: each of its parts that others write is cut before
_STARTING = 15.0  # seconds that a coordinator may take until it answers for the first time
_TICK = 1.0  # seconds between two updates: workers report their progress once a second


class Service(NamedTuple):
    """How a part of the fleet is watched: addresses for health checks and metrics, and the logs."""

    health: str | None = None
    metrics: str | None = None
    json_logs: bool = False


def coordinator(domain: str | None, sources: Sequence[str], service: Service) -> int:
    """Host runs until Ctrl-C, and return the exit code."""
    tenant = base_url(domain)

    async def host(client: "Client") -> None:
        # Nobody sees the gauges otherwise, and they are a question to Temporal every few seconds.
        shown = nullcontext() if service.metrics is None else run_metrics(client, tenant)
        async with shown:
            await run_coordinator(domain, sources=sources, client=client)

    what = (
        f"Hosting the runs of {tenant}; journals go to this folder. After Ctrl-C,"
        " another coordinator can continue"
    )
    return loop.run(_until_interrupted(host, what, service))


def worker(access: Access, sources: Sequence[str], service: Service) -> int:
    """Work until Ctrl-C, and return the exit code."""

    async def serve(client: "Client") -> None:
        async with access.session() as session:
            await run_worker(session, sources=sources, client=client)

    what = f"Working for {access.tenant}. Ctrl-C ends this worker; no user is sent twice"
    return loop.run(_until_interrupted(serve, what, service))


async def _until_interrupted(
    part: "Callable[[Client], Awaitable[None]]", what: str, service: Service
) -> int:
    """Run a part of the fleet until a signal; a third signal ends the process at once."""
    log = logs.set_up(json=service.json_logs)

    async def run() -> None:
        client = await connect(runtime=runtime(service.metrics, log))
        async with watched(client, service.health):
            await part(client)

    def tell(line: str) -> None:
        if service.json_logs:
            log.info(line)
        else:
            say(streams.err(), line)

    def interrupt(_signal: signal.Signals) -> None:
        tell_stopping()
        tell("Stopping: calls in flight finish first")
        task.cancel()

    task = asyncio.create_task(run())
    tell(what)
    with loop.signals(interrupt), suppress(asyncio.CancelledError):
        await task
    return ALL_DONE


def check_outputs(file: str | None) -> None:
    """Check that no output of a command goes to the file of ids, which the fleet reads.

    Raises:
        ConfigurationError: stdout or stderr does.
    """
    if file is not None and "://" not in file:
        streams.check_streams("the input", Path(file))


def start(
    file: str,
    *,
    max_rate: float | None,
    form: Format | None,
    column: str | None,
    journal: str | None,
    max_outage: float,
    domain: str | None,
) -> None:
    """Start a run, and print how to watch it; raises if the coordinator refuses it at once."""
    check_outputs(file)

    async def begin() -> tuple[FleetRun, bool]:
        run = await FleetRun.start(
            file,
            max_rate=max_rate,
            form=form,
            column=column,
            journal=journal,
            max_outage=max_outage,
            domain=domain,
        )
        return run, await _is_hosted(run)

    run, hosted = ask(begin())
    out = streams.out()
    say(out, f"The run of {shown(file)} on {run.tenant} has started, {at_most(max_rate)}")
    if not hosted:
        say(out, "It waits for a coordinator; start one with: monocloud-async fleet coordinator")
    say(out, "Watch it with: monocloud-async fleet status --follow")


def at_most(max_rate: float | None) -> str:
    """Return the highest rate of a run in words."""
    if max_rate is None:
        return "at the rate that the tenant grants"
    return f"at {max_rate:g} requests a second at most"


async def _is_hosted(run: FleetRun) -> bool:
    """Wait until the run has begun, and return whether there is a coordinator.

    Raises:
        FleetError: the coordinator refused the run, for example because of its journal.
    """
    for _ in range(_ASKED):
        if await run.over():
            await run.result()
            return True
        try:
            progress = await run.progress()
        except FleetError:
            return await run.over()
        if progress.chunks or progress.paused or progress.trouble:
            return True
        await asyncio.sleep(_ASK)
    return True


def doctor(
    file: str | None,
    *,
    form: Format | None,
    column: str | None,
    journal: str | None,
    domain: str | None,
    json: bool,
) -> int:
    """Show what is fine and what is not, one line each, and return the exit code."""
    check_outputs(file)
    findings = ask(check_fleet(file, form=form, column=column, journal=journal, domain=domain))
    if json:
        _write_json(*findings)
    else:
        out = streams.out()
        for each in findings:
            say(out, f"{'ok' if each.ok else 'problem':<8} {each.what}: {each.said}")
    return ALL_DONE if all(each.ok for each in findings) else SOME_FAILED


def steer(
    domain: str | None,
    order: Callable[[FleetRun], Awaitable[None]],
    done: Callable[[Progress], str],
) -> None:
    """Give the tenant's run this order, and confirm it with words for the run as it was before."""

    async def give() -> Progress | None:
        run = await FleetRun.attach(domain)
        before: Progress | None = None
        with suppress(FleetError, msgspec.MsgspecError):  # it may be of another version
            before = await run.progress()
        await order(run)
        return before

    before = ask(give())
    if before is not None:
        say(streams.out(), done(before))
        return
    say(
        streams.out(),
        "Temporal keeps this order, but no coordinator could say that it has heard it: calls may go"
        f" on until one does. If there is none, start one with: {PROGRAM} fleet coordinator",
    )


def failures(domain: str | None, *, json: bool) -> None:
    """Show the users for whom the operation was not done."""

    async def fetch() -> list[Failure]:
        return await (await FleetRun.attach(domain)).failures()

    found = ask(fetch())
    if json:
        _write_json(*found)
        return
    out = streams.out()
    for each in found:
        parts = (each.error, each.status, each.title)
        say(
            out,
            f"id number {each.position + 1:,}, user {each.user_id!r}: {each.outcome}, "
            + " ".join(str(part) for part in parts if part)
            + (f", trace id {each.trace_id}" if each.trace_id else ""),
        )


def _write_json(*objects: Struct) -> None:
    """Write the objects to stdout, whole, one in a line."""
    streams.results().write(b"".join(msgspec.json.encode(each) + b"\n" for each in objects))


def status(domain: str | None, *, follow: bool, json: bool) -> int:
    """Show the run, and return the exit code; without `follow`, 0 while the run goes on."""
    return ask(_status(domain, follow=follow, json=json))


async def _status(domain: str | None, *, follow: bool, json: bool) -> int:
    out = streams.out()
    run = await FleetRun.attach(domain)
    if await run.over():
        report = await run.result()
        if json:
            _write_json(report)
        else:
            sum_up(out, report)
        return exit_code(report)
    if not follow:
        progress = await run.progress()
        if json:
            _write_json(progress)
            return ALL_DONE
        for line in progress_lines(progress):
            say(out, line, _LONGEST)
        return ALL_DONE
    task = asyncio.create_task(watch(run, streams.err()))

    def stop_watching(_signal: signal.Signals) -> None:
        task.cancel()

    with loop.signals(stop_watching):
        try:
            report = await task
        except asyncio.CancelledError:
            return INTERRUPTED
    if json:
        _write_json(report)
    else:
        sum_up(out, report)
    return exit_code(report)


async def watch(run: FleetRun, console: Console, program: str = PROGRAM) -> FleetReport:
    """Show the run to its end and return its report; `program` is the command to suggest."""
    ended = asyncio.create_task(run.result())
    lines = ["waiting for the coordinator"]
    clock = asyncio.get_running_loop().time
    began, has_answered = clock(), False
    estimate = Estimate()
    bar = LiveBar(console, lambda: lines[1:], estimate)
    done = expected = 0
    live = streams.is_live(console)
    if live:
        bar.start()
    said = -PLAIN_TICK
    try:
        while not ended.done():
            try:
                progress = await run.progress()
            except FleetError as error:
                if has_answered or clock() - began > _STARTING:
                    lines[1:] = [str(error)]
            else:
                has_answered = True
                progress.members = []  # too long to repeat every second
                lines = progress_lines(progress, program)
                done = progress.processed
                expected = max(done, progress.expected)
            now = clock()
            estimate.update(now, done)
            if live:
                bar.show(now, done, expected or None)
            elif now - said >= PLAIN_TICK:
                said = now
                say(console, " | ".join(lines), _LONGEST)
            await asyncio.wait({ended}, timeout=_TICK)
        return ended.result()
    finally:
        ended.cancel()
        if live:
            bar.stop()


def progress_lines(progress: Progress, program: str = PROGRAM) -> list[str]:
    """Return the progress of a run as lines, the amount first."""
    counts = f"{progress.users_done:,} {bulk_operation(progress.operation).done}"
    for count, name in (
        (progress.failed, "failed"),
        (progress.unknown, "unknown"),
        (progress.bad_lines, "bad line" if progress.bad_lines == 1 else "bad lines"),
    ):
        counts += f", {count:,} {name}" if count else ""
    kinds = sorted(progress.kinds.items(), key=lambda each: -each[1])[:_KINDS]
    shown = ", ".join(f"{n:,} {clean(kind)}" for kind, n in kinds)
    counts += f" ({shown})" if kinds else ""
    rest = progress.seconds_left
    under_way = f"{progress.under_way:,} users under way in {_chunks(progress.chunks)}"
    lines = [
        f"{progress.share:.1%} of {clean(progress.source)} is processed"
        + (f", about {timedelta(seconds=round(rest))} left" if rest is not None else ""),
        counts,
        f"{_rates(progress)}; {under_way}",
    ]
    if progress.outage:
        left = progress.max_outage - progress.outage
        lines.append(
            f"The tenant has been down for {progress.outage:.0f} s;"
            f" workers leave the run in {max(0.0, left):.0f} s, if it stays down"
        )
    elif progress.pause_left > 0:
        lines.append(f"The tenant asks to wait, {progress.pause_left:.0f} s more")
    if progress.throttled or progress.retries:
        lines.append(f"{progress.throttled:,} answers 429, {progress.retries:,} retries")
    lines += [f"{member.role.capitalize()} {_described(member)}" for member in progress.members]
    lines += [
        f"Left the run: worker {clean(who)}: {clean(why)}" for who, why in progress.away.items()
    ]
    if progress.waiting:
        lines.append(
            f"{_chunks(progress.waiting)} without a worker; start one: {program} fleet worker"
        )
    lines += [f"Trouble: {clean(each)}" for each in progress.trouble]
    if progress.paused is not None:
        lines.append(f"Paused: {clean(progress.paused)}. Resume with: {program} fleet resume")
    elif progress.away:
        lines.append(f"When they are mended, take them in with: {program} fleet resume")
    return lines


def _rates(progress: Progress) -> str:
    rates = f"{format_rate(progress.rate)} requests a second now"
    if progress.learnt is not None:
        rates += f", the tenant grants about {format_rate(progress.learnt)}"
    return rates if progress.max_rate is None else f"{rates}, at most {progress.max_rate:g}"


def _described(member: WorkerProgress) -> str:
    chunks = f", {_chunks(member.chunks)}" if member.chunks else ""
    return f"{clean(member.name)}: last seen {member.seconds:.0f} s ago{chunks}"


def _chunks(number: int) -> str:
    return f"{number} chunk" if number == 1 else f"{number} chunks"


def sum_up(console: Console, report: FleetReport) -> None:
    """Print the report of a run."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", overflow="fold")
    table.add_column(overflow="fold")
    table.add_row(f"{report.users_done:,}", bulk_operation(report.operation).done)
    for count, name in (
        (report.failed, "failed"),
        (report.unknown, "unknown: a request was sent, but no response arrived"),
        (report.bad_lines, "bad line" if report.bad_lines == 1 else "bad lines"),
    ):
        if count:
            table.add_row(f"{count:,}", name)
    console.print(table)
    say(
        console,
        f"{report.requests:,} requests, {report.retries:,} of them retries,"
        f" {report.throttled:,} answered 429",
    )
    for each in report.trouble:
        say(console, f"Trouble: {clean(each)}")
    if report.gaps:
        left = sum(gap.end - gap.start for gap in report.gaps)
        say(console, f"The run was {report.how}: users are left in {left:,} bytes of ids")
        say(console, "To do the rest, start it again, with the same file and journal")
    elif not report.requests and report.users_done:
        say(console, "The journal covers the whole file; nobody was asked in this run, because")
        say(console, "all were recorded before it. To ask again, start it with another --journal")
    else:
        say(console, "The journal covers the whole file, without gaps")


def exit_code(report: FleetReport) -> int:
    """Return the exit code, with the same meaning as for `bulk`."""
    if report.gaps:
        return STOPPED
    return SOME_FAILED if report.failed or report.unknown or report.bad_lines else ALL_DONE


@cache
def _silence() -> None:
    """Keep the log of Temporal's client from the display: a command tells what is wrong itself."""
    from temporalio.runtime import Runtime, TelemetryConfig  # noqa: PLC0415  optional

    silent = Runtime(telemetry=TelemetryConfig(logging=None))
    Runtime.set_default(silent, error_if_already_set=False)


def ask(question: Coroutine[object, object, T]) -> T:
    """Await a question to Temporal on a new event loop, and return the answer."""
    _silence()

    async def ask() -> T:
        try:
            return await question
        finally:
            # A process that exits right after an answer may crash in the client's threads
            # (https://github.com/temporalio/sdk-python/issues/300).
            await asyncio.sleep(0.05)

    return loop.run(ask())
