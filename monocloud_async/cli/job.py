"""Runs one input from the command line: reads lines, shows outcomes, obeys signals."""

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from monocloud_async.bulk.run import BulkRun
from monocloud_async.cli import streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import TICK, Display, Tally, counted, reasons, say, speed, summary
from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED, STOPPED, USAGE
from monocloud_async.cli.loop import signals
from monocloud_async.cli.outputs import FailuresFile, JsonLines
from monocloud_async.endpoint import ENABLE, BulkOperation
from monocloud_async.errors import ConfigurationError, MonoCloudError, StatusError
from monocloud_async.inputs.lines import Line
from monocloud_async.journal.file import JournalFile
from monocloud_async.models import User
from monocloud_async.outcome import BulkReport, Outcome, RunStoppedError
from monocloud_async.sanitize import format_time

_AHEAD = 1000  # lines that are read from a pipe in advance
_TURN = 100  # lines without an id after which others get a turn

Lines = Iterable[Line]
EachUser = Callable[[User], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How fast and how far a run goes; see `MonoCloudSession.bulk_enable`."""

    concurrency: int = 100
    max_rate: float | None = None
    max_same_failures: int | None = 100
    check: bool = False
    limit: int | None = None


DEFAULT_LIMITS = Limits()


class Job:
    """One run with its display and its outputs.

    Args:
        operation: what to do for each user.
        name: the name of the input, for messages.
        lines: the input, in order.
        expected: about how many lines there are, or None.
        blocking: whether reading may block, as for a pipe.
        quiet: whether to leave out the title and the summary.
        notes: what people should know of the input; it may grow while lines are read.
    """

    def __init__(
        self,
        operation: BulkOperation,
        name: str,
        lines: Lines,
        *,
        expected: int | None = None,
        blocking: bool = False,
        quiet: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.operation = operation
        self.name = name
        self.stdout = streams.results()
        self.out = streams.out()
        self.err = streams.err()
        self.tally = Tally()
        self.each_user: EachUser | None = None
        self.json: JsonLines | None = None
        self.failures: FailuresFile | None = None
        self._journal: JournalFile | None = None
        self._journal_told = ""
        self._to_ask_again = ""
        self._lines = lines
        self._expected = expected
        self._blocking = blocking
        self._quiet = quiet
        self._notes = notes
        self._notes_told = 0
        self._settled = set[int]()  # lines of the users named, with an outcome
        self._told: list[BaseException | None] = []  # errors that were printed
        self._unfinished: dict[int, Line] = {}
        self._read = 0
        self._run: BulkRun | None = None
        self._display: Display | None = None
        self._interrupts = 0
        self._is_over = False  # only results are still written
        self._broken = False

    def keep(self, journal: JournalFile, path: Path) -> None:
        """Use this journal for the run, which tells its path."""
        self._journal = journal
        self._to_ask_again = (
            "--no-journal or another --journal asks for everybody again"
            if self.operation is ENABLE
            else f"without the file {path}, everybody is asked for again"  # `undo` has no option
        )
        before = os.path.exists(path) and path.stat().st_size > 0  # noqa: PTH110  the run tells why
        self._journal_told = (
            f"Resuming the run of the journal {path};"
            f" users {self.operation.done} there are not sent again"
            if before
            else f"The journal of this run is {path}: the same command resumes the run"
        )

    def _begin(self) -> None:
        """Tell what is done; from now on the run is refused no more."""
        if self._journal_told:
            say(self.err, self._journal_told)
            self._journal_told = ""
        if self._display is not None:
            self._display.begin()

    async def run(self, access: Access, limits: Limits = DEFAULT_LIMITS) -> int:
        """Run, print the summary, and return the exit code."""
        with signals(self._interrupt):
            return await self._run_all(access, limits)

    async def _run_all(self, access: Access, limits: Limits) -> int:
        if lost := self._lost():
            say(self.err, f"Error: {lost}; nothing was sent")
            return STOPPED
        async with access.session() as session:
            self._run = run = session.bulk(
                self.operation,
                self._ids(),
                concurrency=limits.concurrency,
                max_rate=limits.max_rate,
                max_same_failures=limits.max_same_failures,
                check=limits.check,
                limit=limits.limit,
                journal=self._journal,
                count=self._expected,
                # Whoever writes to a pipe may be slow: there, each user counts when it comes.
                on_skipped_many=self._skipped if self.json is None and not self._blocking else None,
            )
            try:
                with self._shown(run, access, limits.max_rate) as self._display:
                    await self._take(run)
            except RunStoppedError as error:
                # Here, people know the parameter as an option.
                error.advice = error.advice.replace("max_same_failures", "--max-same-failures")
                return await self._end(run.report, "stopped", error)
            except ConfigurationError as error:
                if run.report.total == run.skipped:
                    raise  # no summary: users who were skipped are no success of a refused run
                await self._end(run.report, "stopped", error)
                return USAGE
            except OSError as error:
                what = f"cannot read {self.name}: {error.strerror or error}"
                if not run.report.total:
                    raise ConfigurationError(what) from None
                return await self._end(run.report, "stopped", ConfigurationError(what))
            except MonoCloudError as error:
                if not run.report.total:
                    raise  # nothing was read, so there is nothing to sum up
                return await self._end(run.report, "stopped", error)
            if run.report.exhausted and not run.report.total and not self.tally.bad_lines:
                self._tell_notes()
                raise ConfigurationError(f"there are no ids in {self.name}")
        ended = "stopped" if self._broken else "interrupted" if self._interrupts else "finished"
        return await self._end(run.report, ended)

    def stop(self, why: str) -> None:
        """Stop the run, because results cannot be written; the calls in flight finish."""
        if not self._broken and self._run is not None and self._display is not None:
            self._broken = True
            if self._journal is not None:
                self._journal.ending = f"stopped: {why}"
            self._run.drain()
            self._display.ending(f"Stopping: {why}")

    def _shown(self, run: BulkRun, access: Access, max_rate: float | None) -> Display:
        way = "" if access.proxy is None else f" through {urlsplit(access.proxy).hostname}"
        doing = self.operation.doing.capitalize()
        title = "" if self._quiet else f"{doing} {self.name} on {access.tenant}{way}"
        return Display(
            self.err, run, self.tally, title=title, expected=self._expected, max_rate=max_rate
        )

    async def _take(self, run: BulkRun) -> None:
        async with run:
            ticking = asyncio.create_task(self._tick())
            try:
                async for outcome in run:
                    self._outcome(self._unfinished.pop(outcome.position), outcome)
                    await self._keep_up()
            finally:
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self._display is not None:
                self._display.refresh()
            if self.json is not None:
                self.json.flush()
            self._check_outputs()

    def _lost(self) -> str:
        """Return which results cannot be written, and why, or an empty string."""
        is_needed = self.json is not None or self._quiet  # else stdout has only the summary
        if is_needed and (error := self.stdout.error) is not None:
            return f"cannot write to stdout ({error.strerror})"
        if self.failures is not None and (error := self.failures.error) is not None:
            return f"the file of failures cannot be written ({error.strerror})"
        return ""

    def _check_outputs(self) -> None:
        if lost := self._lost():
            self.stop(lost)

    async def _keep_up(self) -> None:
        """Wait for the readers of the results, and stop the run if these have nowhere to go."""
        self._check_outputs()
        await self.stdout.room()
        if self.failures is not None:
            await self.failures.output.room()

    async def _ids(self) -> AsyncIterator[str]:
        """Yield the ids; after some lines without one, signals, display and outputs get a turn."""
        since = 0
        async for line in _ahead(self._lines) if self._blocking else _each(self._lines):
            if user_id := self._admit(line):
                if self._read == 1:
                    self._begin()
                yield user_id
                since = 0
            elif (since := since + 1) % _TURN == 0:
                await self._keep_up()
                await asyncio.sleep(0)

    def _tell_notes(self) -> None:
        for note in self._notes[self._notes_told :]:
            say(self.err, note)
        self._notes_told = len(self._notes)

    def _admit(self, line: Line) -> str | None:
        if self._notes_told < len(self._notes):
            self._tell_notes()
        if self.failures is not None:
            self.failures.begin()
        if line.user_id is None:
            self.tally.bad_line()
            if self._journal is not None:
                self._journal.add_bad_line(line.number, line.problem or "")
            if self._display is not None:
                self._display.failure(f"line {line.number} {line.problem}")
            if self.json is not None:
                self.json.bad_line(line)
            if self.failures is not None:
                self.failures.add(line)
            return None
        self._unfinished[self._read] = line
        self._read += 1
        return line.user_id

    def _skipped(self, positions: range) -> None:
        for position in positions:
            del self._unfinished[position]

    def _outcome(self, line: Line, outcome: Outcome) -> None:
        self.tally.outcome(outcome)
        if self._quiet and outcome.status != "not_attempted":
            self._settled.add(line.number)
        if self.json is not None:
            self.json.outcome(line, outcome)
        if self.each_user is not None and outcome.user is not None:
            self.each_user(outcome.user)
        if outcome.status in {"failed", "unknown", "not_attempted"}:
            if self.failures is not None:
                self.failures.add(line)
            if self._display is not None and outcome.status != "not_attempted":
                self._display.failure(self._failure(line, outcome))

    def _failure(self, line: Line, outcome: Outcome) -> str:
        if self._quiet and outcome.error is not None:
            self._told.append(outcome.error)
            return str(outcome.error)
        # The summary gives the advice once for each kind of failure.
        where = "" if self._quiet else f"line {line.number}: "
        what = outcome.error.args[0] if outcome.error else f"{outcome.status}, cancelled"
        if isinstance(outcome.error, StatusError):  # `report` has the trace, and a line is short
            what = what.removesuffix(f" [trace {outcome.error.trace_id}]")
        return f"{where}user {outcome.user_id!r}: {what}"

    def _interrupt(self, heard: signal.Signals) -> None:
        self._interrupts += 1
        if self._journal is not None:
            self._journal.signal = heard.name
        if self._is_over:
            self._interrupt_outputs()
        elif self._run is None or self._display is None:
            return
        elif self._interrupts == 1:
            calls = self._run.in_flight
            self._run.drain()
            finish, them = ("finishes", "it") if calls == 1 else ("finish", "them")
            self._display.ending(
                f"Stopping: {counted(calls, 'call')} in flight {finish} first;"
                f" Ctrl-C again cancels {them}"
                if calls
                else "Stopping"
            )
        else:
            self._run.cancel()
            self._display.ending("Cancelling the calls in flight")

    def _interrupt_outputs(self) -> None:
        outputs = [self.stdout] if self.failures is None else [self.stdout, self.failures.output]
        for output in outputs:
            if self._interrupts > 1:
                output.lose()
            elif output.waiting:
                say(self.err, output.interrupted())

    async def _end(self, report: BulkReport, ended: str, error: Exception | None = None) -> int:
        self._is_over = True
        self._tell_notes()
        if self.failures is not None:
            if report.exhausted:
                self.failures.begin()
            await self.failures.finish()
            self._check_outputs()
            ended = "stopped" if self._broken else ended
        await self._write_summary(report, ended)
        self._tell_rest(report, ended, can_resume=not isinstance(error, ConfigurationError))
        if error is not None and (not self._quiet or error.__cause__ not in self._told):
            say(self.err, f"Error: {error}")
        if ended == "stopped":
            return STOPPED
        if self._interrupts:
            return INTERRUPTED
        return SOME_FAILED if self.tally.kinds else ALL_DONE

    def _since(self, journal: JournalFile, report: BulkReport, skipped: int) -> str:
        """Return how old the journal's word for skipped users is, and how to ask again."""
        what = "Some"
        if skipped == report.total:
            what = "All" if report.requests else "Nothing was sent: all"
        return (
            f"{what} of them were {self.operation.done} by {format_time(journal.latest)} UTC,"
            " according to the journal, which does not know what happened since (`check` tells how"
            f" it is now); {self._to_ask_again}"
        )

    def _tell_rest(self, report: BulkReport, ended: str, *, can_resume: bool) -> None:
        """Tell who was left out, and whether the same command goes on with them."""
        if self._quiet:
            left = [line.user_id for line in self._lines if line.number not in self._settled]
            if left:
                say(self.err, f"The run was {ended}; not attempted: {', '.join(map(repr, left))}")
        elif not report.exhausted:
            if ended == "finished" and self._run is not None and self._run.is_at_limit:
                ended = "finished, at its limit"
            say(self.err, f"The run was {ended}; the rest of {self.name} was not read")
            if self._journal is not None and report.total and can_resume:
                say(self.err, "The same command resumes the run")

    async def _write_summary(self, report: BulkReport, ended: str) -> None:
        """Write the summary to stdout; people get it on stderr if stdout has JSON or is lost."""
        if self.json is not None:
            self.json.summary(report, self.tally.bad_lines, ended)
            self.json.flush()
        elif not self._quiet:
            self._sum_up(self.out, report)
        await self.stdout.written()
        if not self._quiet and (self.json is not None or self.stdout.error is not None):
            self._sum_up(self.err, report)

    def _sum_up(self, console: Console, report: BulkReport) -> None:
        skipped = 0 if self._run is None else self._run.skipped
        console.print(summary(self.operation, report, self.tally, skipped=skipped))
        if skipped and self._journal is not None:
            say(console, self._since(self._journal, report, skipped))
        for reason in reasons(self.tally):
            say(console, reason)
        say(console, speed(report))
        if self.failures is not None and (self.failures.lines or self.failures.lost):
            hint = f"{counted(self.failures.lines, 'line')} to retry: {self.failures.name}"
            say(console, hint + self.failures.lost)
        elif report.unknown:
            doing = self.operation.doing.capitalize()
            say(console, f"{doing} twice is harmless: run the unknown ones again")


async def _each(lines: Lines) -> AsyncIterator[Line]:
    for line in lines:
        yield line


async def _ahead(lines: Lines) -> AsyncIterator[Line]:
    """Yield the lines, which a thread reads: a slow writer must not block the event loop."""
    loop = asyncio.get_running_loop()
    read: deque[Line | Exception | None] = deque()
    arrived = asyncio.Event()
    room = threading.Semaphore(_AHEAD)

    def hand_over(item: Line | Exception | None) -> None:
        read.append(item)
        with suppress(RuntimeError):  # the loop is closed: the rest is not needed
            loop.call_soon_threadsafe(arrived.set)

    def reader() -> None:
        end: Exception | None = RuntimeError("the thread that reads the input died")
        try:
            for line in lines:
                room.acquire()
                hand_over(line)
            end = None
        except (OSError, MonoCloudError) as error:
            end = error
        finally:
            hand_over(end)

    # A daemon thread: after Ctrl-C, the process must not wait for a silent writer.
    threading.Thread(target=reader, daemon=True, name="input").start()
    while True:
        while not read:
            arrived.clear()
            if not read:
                await arrived.wait()
        item = read.popleft()
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        room.release()
        yield item
