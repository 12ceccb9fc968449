"""The display of a run: live on a terminal, plain lines elsewhere, and a summary."""

import asyncio
import math
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
)
from rich.table import Table
from rich.text import Text

from monocloud_async.bulk import MAX_OUTAGE
from monocloud_async.bulk.run import BulkRun
from monocloud_async.cli.estimate import Estimate
from monocloud_async.cli.streams import is_live
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
from monocloud_async.sanitize import LONGEST, clean, format_rate

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
        max_rate: the limit of this run, in requests per second.
    """

    def __init__(
        self,
        console: Console,
        run: BulkRun,
        tally: Tally,
        *,
        title: str,
        expected: int | None,
        max_rate: float | None = None,
    ) -> None:
        self._console = console
        self._run = run
        self._tally = tally
        self._title = title
        self._expected = expected
        self._ending = ""
        self._shown = 0
        self._live = bool(title) and is_live(console)
        self._estimate = Estimate(run.pace, max_rate)
        self._bar = LiveBar(console, self._status, self._estimate)
        self._has_begun = False
        self._said_at = now = asyncio.get_running_loop().time()
        self._estimate.update(now, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live and self._has_begun:
            self.refresh()
            self._bar.stop()

    def begin(self) -> None:
        """Show the title, and the bar on a terminal; a run that is refused shows neither."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._title:
            say(self._console, self._title)
        if self._live:
            self._bar.start()

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
        if not self._run.is_ready:
            return  # it may yet be refused
        self.begin()
        report, now = self._run.report, asyncio.get_running_loop().time()
        total = self._expected
        if report.exhausted:  # now the exact number is known
            total = report.total + self._tally.bad_lines
        # Skipped users take no time; counting them would distort the estimate.
        before = report.skipped
        self._estimate.update(now, self.done - before, report.requests - report.throttled)
        if self._live:
            remaining = None if total is None else total - before
            self._bar.show(now, self.done - before, remaining)
        elif now - self._said_at >= PLAIN_TICK:
            self._said_at = now
            left = None if total is None else self._estimate.left(now, total - self.done)
            speed = ", ".join(filter(None, [_speed(self._estimate.rate), _left(left)]))
            parts = [_amount(self.done, total), speed, *self._status()]
            self.say(" | ".join(filter(None, parts)))

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
    """A progress bar with speed, time left, and status lines below it."""

    def __init__(
        self,
        console: Console,
        status: Callable[[], list[str]],
        estimate: Estimate,
        *,
        amounts_of: str = "",
    ) -> None:
        self._status = status  # first, because the base class renders in `__init__`
        self._estimate = estimate
        plain = not console.encoding.startswith("utf")
        super().__init__(
            SpinnerColumn("line" if plain else "dots"),
            BarColumn(bar_width=None),
            _Amount(amounts_of),
            _Speed(),
            console=console,
            auto_refresh=False,
            expand=True,
            transient=True,  # the summary replaces the bar
        )
        self._shown = self.add_task("", total=None)

    def show(self, now: float, done: int, total: int | None) -> None:
        """Draw the bar for this amount."""
        left = None if total is None else self._estimate.left(now, total - done)
        speed = " ".join(filter(None, [_speed(self._estimate.rate), _left(left)]))
        self.update(self._shown, completed=done, total=total, speed=speed)
        self.refresh()

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


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("speed", ""))


def _speed(rate: float | None) -> str:
    return "" if rate is None else f"{format_rate(rate)}/s"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02}:{seconds:02} left"


def counted(number: int, what: str) -> str:
    """Return the number with its noun, such as "1 line" or "1,208 lines"."""
    return f"{number:,} {what if number == 1 else what + 's'}"


def limiter_status(limiter: RateLimiter) -> str:
    """Return how the tenant slows the run down, or an empty string."""
    if limiter.down:
        down = limiter.down_for(time.monotonic())  # the clock of event loops
        return f"the tenant is down for {down:.0f} s: probing, for at most {MAX_OUTAGE:.0f} s"
    if (left := limiter.pause_left) > _SHORT:
        return f"waiting {math.ceil(left)} s for the tenant"
    return "" if limiter.rate is None else f"limited to {format_rate(limiter.rate)}/s"


def _amount(done: int, total: int | None) -> str:
    return f"{done:,} done" if total is None else f"{done:,} of {total:,}"


def finished(report: BulkReport) -> int:
    """Return how many users have an outcome."""
    return sum(getattr(report, status) for status in get_args(Status))


def say(console: Console, text: str, longest: int = LONGEST) -> None:
    """Print one line literally: no markup, no wrapping, no control characters, and not too long."""
    console.print(Text(clean(text, longest)), soft_wrap=True)


def summary(operation: BulkOperation, report: BulkReport, tally: Tally, *, skipped: int) -> Table:
    """Return the counts of a finished run as a table.

    `skipped` users were done before by the journal alone: the run did not look them up.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", overflow="fold")
    table.add_column(overflow="fold")
    table.add_row(f"{getattr(report, operation.done):,}", operation.done)
    rows = [
        (report.skipped - skipped, f"{operation.done} before"),
        (skipped, f"{operation.done} before, according to the journal"),
        (report.unconfirmed, "of them unconfirmed: the response still said the contrary"),
        (report.failed, "failed"),
        (tally.bad_lines, "bad line" if tally.bad_lines == 1 else "bad lines"),
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
    asked = finished(report) - report.skipped - report.not_attempted
    per_second = asked / report.seconds if report.seconds else 0.0
    return (
        f"{report.seconds:,.1f} s, {format_rate(per_second)} users a second;"
        f" {counted(report.requests, 'request')}, {report.retries:,} of them retries,"
        f" {report.throttled:,} answered 429"
        + (f"; paused for {report.paused_seconds:,.1f} s" if report.paused_seconds else "")
    )
