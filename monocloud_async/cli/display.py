"""The display of a run: live on a terminal, plain lines elsewhere, and a summary."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, get_args

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from monocloud_async.bulk.run import MAX_OUTAGE, BulkRun
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import (
    InvalidResponseError,
    MonoCloudError,
    RequestTimeoutError,
    StatusError,
    TransportError,
)
from monocloud_async.outcome import BulkReport, Outcome, Status
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.sanitize import clean

TICK = 0.2  # seconds between two updates of a terminal
PLAIN_TICK = 10.0  # seconds between two plain lines, so that logs of long runs stay short
_SHOWN = 10  # failures that are listed one by one
_KINDS = 5
_MOST_KINDS = 100  # kinds that are counted separately; they contain the tenant's words
_OTHERS = "other failures"
_BAD_LINE = "bad line"
_SHORT = 0.1  # seconds; shorter pauses are not shown


class Tally:
    """Counts that the report of the run lacks: bad lines, and failures by kind."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self.kinds: Counter[str] = Counter()
        self.advice: dict[str, str] = {}

    def outcome(self, outcome: Outcome) -> None:
        """Count this outcome if it is a failure."""
        if outcome.status in {"failed", "unknown"}:
            name = kind(outcome.error)
            if name not in self.kinds and len(self.kinds) >= _MOST_KINDS:
                name = _OTHERS
            self.kinds[name] += 1
            if outcome.error is not None:
                self.advice[name] = outcome.error.advice

    def bad_line(self) -> None:
        """Count a line without a valid id."""
        self.bad_lines += 1
        self.kinds[_BAD_LINE] += 1

    def listed(self) -> str:
        """Return the most frequent kinds of failure with counts, and how many others there are."""
        most = self.kinds.most_common(_KINDS)
        others = self.kinds.total() - sum(count for _, count in most)
        parts = [f"{name}: {count:,}" for name, count in most]
        return ", ".join([*parts, f"others: {others:,}"] if others else parts)


def kind(error: MonoCloudError | None) -> str:
    """Return a short name for the kind of this failure."""
    match error:
        case None:
            return "cancelled"
        case StatusError():
            return clean(f"{error.status} {error.problem.title or ''}".strip())[:40]
        case RequestTimeoutError():
            return "timed out"
        case TransportError():
            return "connection failed"
        case InvalidResponseError():
            return "invalid response"
        case _:
            return "bad id"


class Display(AbstractContextManager["Display"]):
    """Shows a run on stderr; on a terminal it is redrawn in place.

    Args:
        console: stderr.
        run: the run to show.
        tally: further counts to show.
        title: what is done where; if empty, only failures and delays are shown.
        expected: about how many ids the input has, or None if unknown.
    """

    def __init__(
        self, console: Console, run: BulkRun, tally: Tally, *, title: str, expected: int | None
    ) -> None:
        self._console = console
        self._run = run
        self._tally = tally
        self._title = title
        self._expected = expected
        self._ending = ""
        self._shown = 0
        self._live = bool(title) and console.is_terminal and not console.is_dumb_terminal
        self._progress = LiveBar(console, self._status)
        self._task = self._progress.add_task("", total=expected)
        self._said_at = asyncio.get_running_loop().time()

    def __enter__(self) -> Self:
        if self._title:
            say(self._console, self._title)
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self.refresh()
            self._progress.stop()

    @property
    def done(self) -> int:
        """How many lines are finished."""
        return finished(self._run.report) + self._tally.bad_lines

    def say(self, text: str) -> None:
        """Print one line above the display."""
        say(self._console, text)

    def failure(self, text: str) -> None:
        """Print one failure, unless there are already too many to read."""
        self._shown += 1
        if self._shown <= _SHOWN:
            self.say(text)
        elif self._shown == _SHOWN + 1:
            self.say("... and more failures, counted below; --failures FILE keeps them all")

    def ending(self, why: str) -> None:
        """Print and display why the run ends early."""
        self._ending = why
        self.say(why)

    def refresh(self) -> None:
        """Update the display, if it is time."""
        total = self._expected
        if self._run.report.exhausted:  # now the exact number is known
            total = self._run.report.total + self._tally.bad_lines
        # Skipped users take no time; counting them would distort the estimate.
        before = self._run.report.skipped
        left = None if total is None else total - before
        self._progress.update(self._task, completed=self.done - before, total=left)
        if self._live:
            self._progress.refresh()
            return
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= PLAIN_TICK:
            self._said_at = now
            self.say(" | ".join([_amount(self.done, total), *self._status()]))

    def _status(self) -> list[str]:
        report, operation = self._run.report, self._run.operation
        done = getattr(report, operation.done)
        if (listed := self._run.list_read) is not None:
            pages = "" if listed.pages is None else f" of {listed.pages:,}"
            return [f"looking users up: {listed.pages_read:,}{pages} pages of the list"]
        parts = [f"{done:,} {operation.done}, {self._run.in_flight:,} in flight"]
        if report.skipped:
            parts.append(f"{report.skipped:,} were {operation.done} before")
        if self._tally.kinds:
            parts.append(f"{self._tally.kinds.total():,} failed ({self._tally.listed()})")
        if self._ending:
            parts.append(self._ending)
        elif status := limiter_status(self._run.pace):
            parts.append(status)
        return parts


class LiveBar(Progress):
    """A progress bar with status lines below it."""

    def __init__(
        self, console: Console, status: Callable[[], list[str]], *, amounts_of: str = ""
    ) -> None:
        self._status = status  # first, because the base class renders in `__init__`
        super().__init__(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            _Amount(amounts_of),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            auto_refresh=False,
            expand=True,
            transient=True,  # the summary replaces the bar
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and the status lines."""
        yield from super().get_renderables()
        for line in self._status():
            yield Text(f"  {line}", overflow="ellipsis", no_wrap=True)


class _Amount(ProgressColumn):
    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return Text(f"{_amount(int(task.completed), total)} {self._what}".rstrip())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def limiter_status(limiter: RateLimiter) -> str:
    """Return how the tenant slows the run down, or an empty string."""
    if limiter.down:
        down = limiter.down_for(time.monotonic())  # the clock of event loops
        return f"the tenant is down for {down:.0f} s: probing, for at most {MAX_OUTAGE:.0f} s"
    if (left := limiter.pause_left) > _SHORT:
        return f"paused {left:.1f} s at the tenant's request"
    return "" if limiter.rate is None else f"limited to {limiter.rate:,.0f}/s"


def _amount(done: int, total: int | None) -> str:
    return f"{done:,} done" if total is None else f"{done:,} of {total:,}"


def finished(report: BulkReport) -> int:
    """Return how many users have an outcome."""
    return sum(getattr(report, status) for status in get_args(Status))


def say(console: Console, text: str) -> None:
    """Print one line literally: no markup, no wrapping, no control characters."""
    console.print(Text(clean(text)), soft_wrap=True)


def summary(
    operation: BulkOperation, report: BulkReport, tally: Tally, *, checked: bool = False
) -> Table:
    """Return the counts of a finished run as a table; `checked`: it looked each user up."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{getattr(report, operation.done):,}", operation.done)
    known = "" if checked else ", according to the journal"
    rows = [
        (report.skipped, f"{operation.done} before{known}"),
        (report.unconfirmed, "of them unconfirmed: the response still said the contrary"),
        (report.failed, "failed"),
        (tally.bad_lines, "bad lines"),
        (report.unknown, "unknown: a request was sent, but no response arrived"),
        (report.not_attempted, "not attempted"),
    ]
    for count, name in rows:
        if count:
            table.add_row(f"{count:,}", name)
    return table


def reasons(tally: Tally) -> list[str]:
    """Return the most frequent kinds of failure, each with advice."""
    return [
        f"{name}: {count:,}. {tally.advice.get(name, '')}".rstrip(" .")
        for name, count in tally.kinds.most_common(_KINDS)
        if name != _BAD_LINE
    ]


def speed(report: BulkReport) -> str:
    """Return the duration, the speed and the number of requests in words."""
    called = finished(report) - report.skipped
    per_second = called / report.seconds if report.seconds else 0.0
    return (
        f"{report.seconds:,.1f} s, {per_second:,.0f} users a second; {report.requests:,} requests,"
        f" {report.retries:,} of them retries, {report.throttled:,} answered 429"
        + (f"; paused for {report.paused_seconds:,.1f} s" if report.paused_seconds else "")
    )
