"""What people see of a run: a live display on a terminal, plain lines elsewhere, a summary."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

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
from monocloud_async.errors import (
    InvalidResponseError,
    MonoCloudError,
    RequestTimeoutError,
    StatusError,
    TransportError,
)
from monocloud_async.outcome import BulkReport, Outcome
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.sanitize import clean

TICK = 0.2  # seconds between two looks at a terminal
PLAIN_TICK = 10.0  # seconds between two plain lines, in a log that somebody may read for hours
_SHOWN = 10  # failures that are told one by one
_KINDS = 5
_MOST_KINDS = 100  # that are told apart: a kind has the tenant's words in it
_OTHERS = "other failures"
_BAD_LINE = "bad line"
_SHORT = 0.1  # seconds of waiting that nobody needs to hear of


class Tally:
    """What is known beside the run's own report: bad lines, and failures by kind."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self.kinds: Counter[str] = Counter()
        self.advice: dict[str, str] = {}

    def outcome(self, outcome: Outcome) -> None:
        """Count what did not end well."""
        if outcome.status in {"failed", "unknown"}:
            name = kind(outcome.error)
            if name not in self.kinds and len(self.kinds) >= _MOST_KINDS:
                name = _OTHERS
            self.kinds[name] += 1
            if outcome.error is not None:
                self.advice[name] = outcome.error.advice

    def bad_line(self) -> None:
        """Count a line without a usable id."""
        self.bad_lines += 1
        self.kinds[_BAD_LINE] += 1

    def listed(self) -> str:
        """The most frequent kinds of failure, and how many others there are."""
        most = self.kinds.most_common(_KINDS)
        others = self.kinds.total() - sum(count for _, count in most)
        parts = [f"{name}: {count:,}" for name, count in most]
        return ", ".join([*parts, f"others: {others:,}"] if others else parts)


def kind(error: MonoCloudError | None) -> str:
    """A failure in two or three words, the same for all of its kind."""
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
            return "not a user's answer"
        case _:
            return "bad id"


class Display(AbstractContextManager["Display"]):
    """A run on stderr, redrawn in place where that is a terminal.

    Args:
        console: stderr.
        run: what to show.
        tally: what else to show.
        title: what is enabled where; without one, only what goes wrong or lasts is told.
        expected: about how many ids the input has, or None when nobody knows.
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
        """Lines whose end is known."""
        return finished(self._run.report) + self._tally.bad_lines

    def say(self, text: str) -> None:
        """One line for people, above the display."""
        say(self._console, text)

    def failure(self, text: str) -> None:
        """One failure, while there are few enough of them to be read."""
        self._shown += 1
        if self._shown <= _SHOWN:
            self.say(text)
        elif self._shown == _SHOWN + 1:
            self.say("... and more failures, counted below; --failures FILE keeps them all")

    def ending(self, why: str) -> None:
        """The run ends early: say so, once and then in the display."""
        self._ending = why
        self.say(why)

    def refresh(self) -> None:
        """Show how things stand, if it is time to."""
        total = self._expected
        if self._run.report.exhausted:  # now the number is known
            total = self._run.report.total + self._tally.bad_lines
        # Who was enabled before takes no time, and would make the rest look as quick.
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
        report = self._run.report
        parts = [f"{report.enabled:,} enabled, {self._run.in_flight:,} in flight"]
        if report.already_enabled:
            parts.append(f"{report.already_enabled:,} were enabled before")
        if self._tally.kinds:
            parts.append(f"{self._tally.kinds.total():,} failed ({self._tally.listed()})")
        if self._ending:
            parts.append(self._ending)
        elif told := _limiter_status(self._run.pace):
            parts.append(told)
        return parts


class LiveBar(Progress):
    """A bar with the run's own lines below it."""

    def __init__(self, console: Console, status: Callable[[], list[str]]) -> None:
        self._status = status  # first: the base class renders once while it is made
        super().__init__(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            auto_refresh=False,
            expand=True,
            transient=True,  # the summary says it all
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the lines."""
        yield from super().get_renderables()
        for line in self._status():
            yield Text(f"  {line}", overflow="ellipsis", no_wrap=True)


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return Text(_amount(int(task.completed), total))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def _limiter_status(limiter: RateLimiter) -> str:
    """What the tenant is doing to us, or nothing while all is well."""
    if limiter.down:
        down = limiter.down_for(time.monotonic())  # the clock of event loops
        return f"the tenant is down for {down:.0f} s: probing, for {MAX_OUTAGE:.0f} s at most"
    if (left := limiter.pause_left) > _SHORT:
        return f"paused {left:.1f} s at the tenant's request"
    return "" if limiter.rate is None else f"keeping to {limiter.rate:,.0f}/s"


def _amount(done: int, total: int | None) -> str:
    return f"{done:,} done" if total is None else f"{done:,} of {total:,}"


def finished(report: BulkReport) -> int:
    """Users whose outcome is known."""
    done = report.enabled + report.disabled + report.skipped
    return done + report.failed + report.unknown + report.not_attempted


def say(console: Console, text: str) -> None:
    """One line, as it stands: no markup, no wrapping, nothing that moves a cursor."""
    console.print(Text(clean(text)), soft_wrap=True)


def summary(report: BulkReport, tally: Tally) -> Table:
    """The counts of a run that is over."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{report.enabled:,}", "enabled")
    rows = [
        (report.already_enabled, "enabled before, as the journal has it"),
        (report.unconfirmed, "of them unconfirmed: the answer still said disabled"),
        (report.failed, "failed"),
        (tally.bad_lines, "bad lines"),
        (report.unknown, "unknown: a request went out and no answer came"),
        (report.not_attempted, "not attempted"),
    ]
    for count, name in rows:
        if count:
            table.add_row(f"{count:,}", name)
    return table


def reasons(tally: Tally) -> list[str]:
    """The kinds of failure, the most frequent ones first, each with what to do about it."""
    return [
        f"{name}: {count:,}. {tally.advice.get(name, '')}".rstrip(" .")
        for name, count in tally.kinds.most_common(_KINDS)
        if name != _BAD_LINE
    ]


def speed(report: BulkReport) -> str:
    """How fast it went, and what it took."""
    called = finished(report) - report.skipped
    per_second = called / report.seconds if report.seconds else 0.0
    return (
        f"{report.seconds:,.1f} s, {per_second:,.0f} users a second; {report.requests:,} requests,"
        f" {report.retries:,} of them retries, {report.throttled:,} answered 429"
        + (f"; paused for {report.paused_seconds:,.1f} s" if report.paused_seconds else "")
    )
