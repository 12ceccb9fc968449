"""Reads the figures of a journal: counts, rates, times, and failures by kind."""

import math
import os
import socket
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct, field

from monocloud_async.journal.lock import LockState, lock_state
from monocloud_async.journal.paths import lock_path, resolved
from monocloud_async.journal.snapshot import reading
from monocloud_async.report.rows import UserRow, is_fleet, kind_and_message, operation_of
from monocloud_async.sanitize import clean, visible

_EXAMPLES: Final = 3  # ids of each kind of failure
_KINDS: Final = 50  # that are read; a tenant may say something else for each user
_POINTS: Final = 200  # at most, in a timeline
_SOON: Final = 2000  # milliseconds; see also _LAST_TIMES
_COMMIT: Final = 100  # milliseconds, at least, from the first user of a run to the first commit
_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_BINS: Final = tuple(k * 10**e for e in range(6) for k in (1, 2, 5))  # milliseconds


class Run(Struct, frozen=True):
    """One run of the command.

    `ended` is None while it runs, if it was killed, or if its journal could not be written.
    `login`, `command` and `note` tell who ran it; they are empty if unknown.

    Times are seconds since 1970; `seconds` is how long the run lasted, as far as is known. While it
    runs, or if it was cut off, there were at least so many `requests`.
    """

    began: float
    ended: float | None
    how: str
    process: str
    seconds: float
    requests: int
    retries: int
    throttled: int
    paused: float
    pid: int = 0
    host: str = ""
    login: str = ""
    command: str = ""
    note: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the run came to its end, maybe without a record of all that it did."""
        return self.ended is not None or bool(self.how)


class Group(Struct, frozen=True):
    """Failures of one kind: the class of the error, its message, the count, and some ids."""

    kind: str
    message: str
    count: int
    examples: list[str]


class Point(Struct):
    """One interval of the timeline: its start in seconds of work, and users per second."""

    seconds: float
    done: float = 0.0
    other: float = 0.0


class Halt(Struct, frozen=True):
    """An interval, in seconds of work, in which only probes or no requests were sent.

    A journal has a sample for every second. Where a pause begins and ends between two of them is
    known only if it is in several of these seconds; how long it was is always known.
    """

    start: float
    end: float
    what: str  # "paused" or "outage"
    seconds: float  # how long, within this interval


class JournalState(StrEnum):
    """Whether the runs of a journal have come to the end of the input."""

    FINISHED = "finished"
    AT_WORK = "at work"
    ENDED = "ended"  # early: it was interrupted, or stopped
    KILLED = "killed"
    UNKNOWN = "killed, or at work"  # on another machine, or this is a copy of the journal


class Figures(Struct):
    """The figures of all runs of a journal together.

    Attributes:
        done_status: the outcome that the runs were for: "enabled" or "disabled".
        done_before_status: the outcome of users who were so before: "already_enabled", or
            "already_disabled".
        outcomes: users by outcome.
        unrecorded: users who were in flight when a run was cut off, so their outcome is unknown; or
            who are in flight now.
        percentiles: for 50, 90, 99 and 100 percent of the users who are done, the milliseconds from
            the start of the call to its end, waits included.
        times: a histogram of these times: (upper bound in milliseconds, users).
        attempts: how many of these users took how many requests: (requests, users).
        step: seconds from one point of the timeline to the next.
        borders: where on the timeline one run ended and the next began.
        state: whether this is all, or a run is at work, or has ended early.
        ids: how many ids the input has; None until it was read to its end.
        at_least: how many ids were read.
        about: about how many ids the input has, or None.
        bad_lines: how many lines of the input have no valid id; None if that is unknown.
        latest: when the last outcome was recorded, in seconds since 1970.
        kinds: how many kinds of failures there are; `groups` has the most frequent ones.
        idle: seconds of pauses and outages.
    """

    journal: str
    tenant: str
    done_status: str
    source: str
    form: str
    column: str | None
    created: float
    outcomes: dict[str, int] = field(default_factory=dict)
    unrecorded: int = 0
    runs: list[Run] = field(default_factory=list)
    percentiles: dict[int, int] = field(default_factory=dict)
    times: list[tuple[int, int]] = field(default_factory=list)
    attempts: list[tuple[int, int]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    step: float = 1.0
    timeline: list[Point] = field(default_factory=list)
    halts: list[Halt] = field(default_factory=list)
    borders: list[float] = field(default_factory=list)
    done_before_status: str = ""
    state: JournalState = JournalState.FINISHED
    is_fleet: bool = False
    ids: int | None = None
    at_least: int = 0
    about: int | None = None
    bad_lines: int | None = None
    latest: float = 0.0
    kinds: int = 0
    idle: float = 0.0

    @property
    def users(self) -> int:
        """How many users have an outcome."""
        return sum(self.outcomes.values())

    @property
    def seconds(self) -> float:
        """How long all runs lasted together."""
        return sum(run.seconds for run in self.runs)

    @property
    def rate(self) -> float:
        """Users per second, over the time in which the tenant let requests through."""
        seconds = self.seconds - self.idle
        return self.asked / seconds if seconds > 0 else 0.0

    @property
    def asked(self) -> int:
        """How many users were asked for, and have an outcome."""
        return self.users - self.outcomes.get("not_attempted", 0)

    @property
    def done(self) -> int:
        """How many users are done, those included who were so before."""
        return self.outcomes.get(self.done_status, 0) + self.outcomes.get(
            self.done_before_status, 0
        )

    def is_done(self, row: UserRow) -> bool:
        """Return whether this user is done."""
        return row.outcome in {self.done_status, self.done_before_status}

    @property
    def total(self) -> int | None:
        """How many ids the input has, or about how many; None if nobody knows."""
        if self.ids is not None:
            return self.ids
        return (
            None if self.about is None else max(self.about - (self.bad_lines or 0), self.at_least)
        )

    @property
    def left(self) -> int | None:
        """How many users have no outcome yet, or about how many; None if nobody knows."""
        return None if self.total is None else max(0, self.total - self.asked)

    @property
    def percent(self) -> int | None:
        """How much is done; 100 only if nobody is left."""
        if not self.total:
            return None
        return 100 if not self.left else min(99, 100 * self.asked // self.total)

    @property
    def is_finished(self) -> bool:
        """Whether every user of the input was asked for."""
        return self.state is JournalState.FINISHED

    def headline(self) -> str:
        """Return whether the run is finished and who is left, in one line."""
        run = self.runs[-1] if self.runs else None
        match self.state:
            case JournalState.FINISHED:
                failed = self.asked - self.done
                are = "is" if failed == 1 else "are"
                but = f"; {failed:,} of them {are} not {self.done_status}" if failed else ""
                all_were = "the one user was"
                if self.asked != 1:
                    all_were = f"all {_users(self.asked)} were"
                return f"Finished: {all_were} asked for{but}"
            case JournalState.AT_WORK:
                start = f"At work ({run.process})" if run and not run.has_ended else "At work"
                flight = f", {self.unrecorded:,} in flight" if self.unrecorded else ""
                return f"{start}: {self._progress()}{flight}"
            case JournalState.KILLED:
                start = "Not finished, cut off (killed)"
            case JournalState.UNKNOWN:
                start = f"Not finished: killed, or at work as {run.process if run else 'unknown'}"
            case _:
                how = run.how.removeprefix("finished, ") if run else "ended early"
                start = f"Not finished ({how})"
        lost = f", {self.unrecorded:,} were in flight" if self.unrecorded else ""
        return f"{start}: {self._progress()}{lost}"

    def _progress(self) -> str:
        if self.total is None or self.left is None:
            return f"{_users(self.asked)} asked for; the input was not read to its end"
        about = "" if self.ids is not None else "about "
        return (
            f"{about}{self.percent} %, {about}{self.left:,} of {about}{self.total:,}"
            f" {'user' if self.total == 1 else 'users'} not yet"
        )


def ended(figures: Figures, run: Run) -> str:
    """Return how this run ended, or that it is at work."""
    if run.has_ended:
        return run.how
    if run is not figures.runs[-1] or figures.state in {JournalState.KILLED, JournalState.FINISHED}:
        return f"killed: {run.process}"
    return f"{figures.state}: {run.process}"


def _users(count: int) -> str:
    return f"{count:,} user" if count == 1 else f"{count:,} users"


def read(path: Path) -> Figures:
    """Return the figures of this journal, also while a run is using it.

    Raises:
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    lock = lock_state(lock_path(resolved(path)))
    with reading(path) as (sql, form):
        tenant, created, source, form_of_input, column = sql.execute(
            "SELECT tenant, created / 1000.0, input, form, input_column FROM header"
        ).fetchone()
        operation = operation_of(sql)
        names = visible(tenant), operation.done, visible(source)
        figures = Figures(visible(str(path)), *names, form_of_input, column, created)
        figures.done_before_status = operation.done_before
        figures.is_fleet = is_fleet(sql)
        figures.outcomes = dict(
            sql.execute("SELECT outcome, count(*) FROM users GROUP BY 1 ORDER BY 2 DESC")
        )
        reached, latest = sql.execute(
            "SELECT ifnull(max(position) + 1, 0), ifnull(max(at), 0) FROM users"
        ).fetchone()
        figures.latest = latest / 1000
        # In a fleet's journal, ids between two chunks were never begun.
        figures.unrecorded = 0 if figures.is_fleet else reached - figures.users
        figures.runs = list(_runs(sql, form))
        _read_input(figures, sql, form, reached)
        figures.state = _state(figures, lock)
        _read_groups(figures, sql)
        figures.attempts = sql.execute(
            "SELECT min(attempts, 6), count(*) FROM users WHERE outcome = ? GROUP BY 1",
            (figures.done_status,),
        ).fetchall()
        _read_times(figures, sql)
        _read_timeline(figures, sql, form)
    return figures


class InputFile(NamedTuple):
    """How the input of a run was read.

    Attributes:
        paths: the files that may be it, and are there.
        by: what it names users by: "id" or "email".
        looked: whether a run looked at users before it sent requests for them.
        command: the command of the last run, without secrets; empty if it is unknown.
        folder: the folder in which it ran, or an empty string.
    """

    name: str
    paths: list[Path]
    form: str
    column: str | None
    sheet: str | None
    by: str
    looked: bool
    command: str
    folder: str


def input_file(path: Path) -> InputFile:
    """Return the input of the run; raises as `read` does."""
    with reading(path, checked={"header"}) as (sql, form):
        name, form_of_input, column = map(
            _str_or_none, sql.execute("SELECT input, form, input_column FROM header").fetchone()
        )
        whole, sheet, by, looked, command = (None, None, None, 0, None)
        if form > 1:
            command = sql.execute(
                "SELECT command, folder FROM commands ORDER BY sitting DESC LIMIT 1"
            ).fetchone()
            whole, sheet, by, looked = sql.execute(
                "SELECT path, sheet, named_by, EXISTS (SELECT 1 FROM before) FROM input"
            ).fetchone()
    # An old journal has the name as it was given, relative to a folder that it does not have.
    journal = resolved(path)
    places = [Path(str(whole or name or "")), journal.parent / Path(name or "").name]
    # By default, the journal of FILE is FILE.journal. A name that is not UTF-8 is recorded escaped.
    if clean(journal.stem) == Path(name or "").name:
        places.append(journal.with_name(journal.stem))
    # Not `Path.is_file`, which raises for a name that is too long, such as a signed URL, and for a
    # folder where this user may not look, such as another user's home.
    paths = [place for place in dict.fromkeys(places) if os.path.isfile(place)]  # noqa: PTH113
    form_of_input, by = form_of_input or "", _str_or_none(by) or "id"
    command, folder = (str(text or "") for text in command or ("", ""))
    return InputFile(
        name or "", paths, form_of_input, column, _str_or_none(sheet), by, bool(looked),
        command, folder,
    )  # fmt: skip


def _str_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _runs(sql: sqlite3.Connection, form: int) -> Iterator[Run]:
    commands = {}
    if form > 1:
        commands = {
            number: tuple(visible(text or "") for text in told)
            for number, *told in sql.execute(
                "SELECT sitting, login, command, note, signal FROM commands"
            )
        }
    samples = {number: values for number, *values in sql.execute(_SAMPLES)}
    latest = [at for (at,) in sql.execute(_LAST_TIMES)]
    # In a fleet's journal, each result has its sample, and users may be recorded by a later
    # coordinator than the one under which they were done.
    recorded = {} if is_fleet(sql) else _recorded_requests(sql, form)
    for number, began, ended, how, process, host in sql.execute(_SITTINGS):
        end, requests, retries, throttled, paused = samples.get(number, (0, 0, 0, 0, 0))
        end = max(began, end)
        # A killed run lasted to its last sample (there is one a second), or to the last user soon
        # after that sample. Later users belong to the next run.
        if place := bisect_right(latest, end + _SOON):
            end = max(end, latest[place - 1])
        if ended is None:  # its last second has no sample
            requests = max(requests, recorded.get(number, 0))
        login, command, note, signal = commands.get(number, ("", "", "", ""))
        seconds = max(0, (end if ended is None else ended) - began) / 1000
        yield Run(
            began / 1000,
            None if ended is None else ended / 1000,
            f"{visible(how)} by {signal}" if how == "interrupted" and signal else visible(how),
            f"process {process} on {visible(host)}",
            seconds,
            requests,
            retries,
            throttled,
            # In a fleet's journal, a chunk that was out when the run began may have earlier pauses.
            min(paused / 1000, seconds),
            pid=process,
            host=host,
            login=login,
            command=command,
            note=note,
        )


def _recorded_requests(sql: sqlite3.Connection, form: int) -> dict[int, int]:
    """Return how many requests the users have who were recorded by each run without an end."""
    began = sorted((at, number, ended) for number, at, ended, *_ in sql.execute(_SITTINGS))
    found: dict[int, int] = {}
    if all(ended is not None for _, _, ended in began):
        return found
    starts = [at for at, *_ in began]
    for at, attempts in sql.execute(_ATTEMPTS[min(form, 2)]):
        # The first users of a run have a time just before its start, which is its first commit.
        _, number, ended = began[max(0, bisect_right(starts, at + _COMMIT) - 1)]
        if ended is None:
            found[number] = found.get(number, 0) + round(attempts)
    return found


def _read_input(figures: Figures, sql: sqlite3.Connection, form: int, reached: int) -> None:
    """Read what there was to do."""
    if form > 1:
        figures.ids, figures.at_least, figures.about, figures.bad_lines = sql.execute(
            "SELECT ids, at_least, about, bad_lines FROM input"
        ).fetchone()
    figures.at_least = max(figures.at_least, reached)
    last = figures.runs[-1] if figures.runs else None
    if figures.is_fleet:
        (figures.bad_lines,) = sql.execute(
            "SELECT ifnull(sum(bad_lines), 0) FROM chunks"
        ).fetchone()
    if figures.ids is None and last is not None and last.how == "finished":
        figures.ids = reached  # before format 2, and by a fleet
    if figures.ids is not None and figures.ids < reached:
        figures.ids = None  # it has grown


def _state(figures: Figures, lock: LockState) -> JournalState:
    last = figures.runs[-1] if figures.runs else None
    is_complete = figures.ids is not None and figures.asked >= figures.ids
    has_ended = is_complete and last is not None and last.ended is not None
    if lock is LockState.HELD and not has_ended:
        return JournalState.AT_WORK
    if is_complete:
        return JournalState.FINISHED
    if last is None or last.has_ended:
        return JournalState.ENDED
    if last.host != socket.gethostname():
        return JournalState.UNKNOWN  # this may be a copy
    # A kill leaves the lock file behind. Its process number may be another process's by now.
    if lock is LockState.FREE or not _is_alive(last.pid):
        return JournalState.KILLED
    # Without a lock file, this may be a copy of the journal of a run at work.
    return JournalState.UNKNOWN if lock is LockState.MISSING else JournalState.AT_WORK


def _is_alive(process: int) -> bool:
    """Return whether there is another process of this number."""
    if not hasattr(os, "kill") or not 0 < process < 1 << 31 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # another user's
    except OSError:
        return False
    return True


def _read_groups(figures: Figures, sql: sqlite3.Connection) -> None:
    """Read the failures by kind, with some ids of each."""
    found = sql.execute(_GROUPS, (_KINDS,)).fetchall()
    (figures.kinds,) = sql.execute(_COUNT_OF_KINDS).fetchone()
    examples: dict[tuple[object, ...], list[str]] = {tuple(kind): [] for *kind, _ in found}
    missing = sum(min(count, _EXAMPLES) for *_, count in found)
    for user_id, *kind in sql.execute(_FAILED) if missing else ():
        shown = examples.get(tuple(kind))
        if shown is not None and len(shown) < _EXAMPLES:
            shown.append(visible(user_id))
            missing -= 1
            if not missing:
                break
    figures.groups = [
        Group(*kind_and_message(error, status, title), count, examples[error, status, title])
        for error, status, title, count in found
    ]


_ASKED: Final = "SELECT at, outcome FROM users WHERE outcome <> 'not_attempted'"
_EARLIER: Final = "SELECT at, outcome FROM earlier"
_BY_TIME: Final = "SELECT at / 100 / 10.0, outcome IN (?, ?), count(*) FROM ({asked}) GROUP BY 1, 2"
# A journal may have any number of killed runs: one query for all of them, not one for each.
_SITTINGS: Final = """
SELECT sitting, began, ended, ifnull(how, ''), process, host FROM sittings ORDER BY sitting
"""
# The requests of users, by the end of the tenth of a second in which they were recorded. A user who
# was tried again has the requests of all runs in `users`, and those of earlier ones in `earlier`.
_ATTEMPTS: Final = {
    1: "SELECT at / 100 * 100 + 100, total(attempts) FROM users GROUP BY 1",
    2: """
SELECT at / 100 * 100 + 100, total(attempts) FROM (
    SELECT at, attempts FROM users WHERE position NOT IN (SELECT position FROM earlier)
    UNION ALL
    SELECT at, attempts - lag(attempts, 1, 0) OVER (PARTITION BY position ORDER BY at) FROM (
        SELECT position, at, attempts FROM earlier
        UNION ALL
        SELECT position, at, attempts FROM users
        WHERE position IN (SELECT position FROM earlier)
    )
) GROUP BY 1
""",
}
_SAMPLES: Final = """
SELECT sitting, max(at), max(requests), max(retries), max(throttled), max(paused)
FROM samples GROUP BY sitting
"""
# Each run begins without a pause, and its first sample may be late: a fleet's comes with a chunk.
_PAUSES: Final = """
SELECT sitting, began / 1000.0, 0, 0 FROM sittings
UNION ALL SELECT sitting, at / 1000.0, paused, down FROM samples ORDER BY 1, 2
"""
# Times of users in the second of each killed run's last sample, or start, and the two after it.
_LAST_TIMES: Final = """
SELECT DISTINCT at FROM users WHERE at / 1000 IN (
    SELECT ends.at / 1000 + seconds.column1 FROM (
        SELECT began AS at FROM sittings WHERE ended IS NULL
        UNION ALL
        SELECT max(at) FROM samples
        WHERE sitting IN (SELECT sitting FROM sittings WHERE ended IS NULL) GROUP BY sitting
    ) AS ends, (VALUES (0), (1), (2)) AS seconds
) ORDER BY at
"""
_GROUPS: Final = """
SELECT error, status, title, count(*) FROM users WHERE outcome IN ('failed', 'unknown')
GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT ?
"""
_COUNT_OF_KINDS: Final = """
SELECT count(*) FROM (
    SELECT DISTINCT error, status, title FROM users WHERE outcome IN ('failed', 'unknown'))
"""
_FAILED: Final = """
SELECT user_id, error, status, title FROM users WHERE outcome IN ('failed', 'unknown')
ORDER BY position
"""


def _read_times(figures: Figures, sql: sqlite3.Connection) -> None:
    counts: list[tuple[int, int]] = sql.execute(
        "SELECT ms, count(*) FROM users WHERE outcome = ? GROUP BY ms ORDER BY ms",
        (figures.done_status,),
    ).fetchall()
    total = sum(count for _, count in counts)
    wanted = [50, 90, 99, 100]
    bins = [0] * (len(_BINS) + 1)
    seen = 0
    for ms, count in counts:
        bins[min(bisect_right(_BINS, max(0, ms - 1)), len(_BINS))] += count
        seen += count
        while wanted and seen * 100 >= total * wanted[0]:
            figures.percentiles[wanted.pop(0)] = max(1, ms)  # 0 was less than half of one
    used = [place for place, count in enumerate(bins) if count]
    if used:
        edges = (*_BINS, _BINS[-1] * 10)
        figures.times = [(edges[i], bins[i]) for i in range(used[0], used[-1] + 1)]


def _read_timeline(figures: Figures, sql: sqlite3.Connection, form: int) -> None:
    """Read the timeline, with the runs one after another and no gaps between them."""
    total = figures.seconds
    step = next((step for step in _STEPS if total / step <= _POINTS), total / _POINTS)
    figures.step = step
    offsets = [0.0]
    for run in figures.runs:
        offsets.append(offsets[-1] + run.seconds)
    figures.borders = offsets[1:-1]
    points = [Point(number * step) for number in range(int(total / step) + 1)]
    run_at = _by_clock(figures.runs)

    def place(at: float, number: int | None = None) -> float:
        number = run_at(at) if number is None else number
        # The clock may have been set back: keep every time within its run.
        start = offsets[number]
        return max(start, min(start + at - figures.runs[number].began, offsets[number + 1]))

    for at, is_done, count in sql.execute(
        # A failure is counted when it happened, also if the user was asked for again.
        _BY_TIME.format(asked=_ASKED if form == 1 else f"{_ASKED} UNION ALL {_EARLIER}"),
        (figures.done_status, figures.done_before_status),
    ):
        point = points[min(int(place(at) / step), len(points) - 1)]
        if is_done:
            point.done += count / step
        else:
            point.other += count / step
    figures.timeline = points
    figures.halts = list(_halts(sql, place))
    figures.idle = sum(halt.seconds for halt in figures.halts)


def _by_clock(runs: list[Run]) -> Callable[[float], int]:
    """Return a function that tells which run was at work at a time.

    The clock may have been set back between two runs. Then the later one may have begun before the
    earlier one by it, or during that one: of two runs, it is the one that began last.
    """
    began: list[float] = []
    numbers: list[int] = []
    at_work: list[tuple[float, int]] = []  # ends and numbers of runs, the first to end last

    def end_until(now: float) -> None:
        while at_work and at_work[-1][0] <= now:
            end, _ = at_work.pop()
            if at_work:  # one that began before goes on
                began.append(end)
                numbers.append(at_work[-1][1])

    for number in sorted(range(len(runs)), key=lambda number: runs[number].began):
        run = runs[number]
        end_until(run.began)
        began.append(run.began)
        numbers.append(number)
        end = run.began + run.seconds
        while at_work and at_work[-1][0] <= end:
            at_work.pop()
        at_work.append((end, number))
    end_until(math.inf)
    return lambda at: numbers[max(0, bisect_right(began, at) - 1)]


def _halts(sql: sqlite3.Connection, place: Callable[[float, int | None], float]) -> Iterator[Halt]:
    rows = sql.execute(_PAUSES)
    numbers = {sitting: number for number, (sitting, *_) in enumerate(sql.execute(_SITTINGS))}
    parts: list[Halt] = []
    for (run, at, paused, was_down), (its, then, later, is_down) in pairwise(rows):
        what = "outage" if was_down or is_down else "paused" if later > paused else ""
        if parts and (what != parts[0].what or its != run):
            yield _joined(parts)
            parts = []
        if what and its == run:
            start, end = place(at, numbers.get(run)), place(then, numbers.get(run))
            seconds = end - start
            if what == "paused":
                seconds = min(seconds, (later - paused) / 1000)
            parts.append(Halt(start, end, what, seconds))
    if parts:
        yield _joined(parts)


def _joined(parts: list[Halt]) -> Halt:
    """Return one interval for those that follow one another."""
    first, last = parts[0], parts[-1]
    seconds = sum(part.seconds for part in parts)
    if len(parts) == 1:
        return first
    return Halt(first.end - first.seconds, last.start + last.seconds, first.what, seconds)
