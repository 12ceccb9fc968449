"""Reads the figures of a journal: counts, rates, times, and failures by kind."""

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from monocloud_async.endpoint import BULK_OPERATIONS
from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.snapshot import reading
from monocloud_async.sanitize import UNSAFE

_EXAMPLES: Final = 3
_POINTS: Final = 200  # at most, in a timeline
_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_BINS: Final = tuple(k * 10**e for e in range(6) for k in (1, 2, 5))  # milliseconds


class Run(Struct, frozen=True):
    """One run of the command; `ended` is None while it runs, or if it was killed.

    Times are seconds since 1970; `seconds` is how long the run lasted, as far as is known.
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
    """An interval, in seconds of work, in which only probes or no requests were sent."""

    start: float
    end: float
    what: str  # "paused" or "outage"


class FailureRow(Struct, frozen=True):
    """One user for whom the operation was not done."""

    position: int
    user_id: str
    outcome: str
    kind: str
    message: str
    attempts: int
    trace_id: str


class Figures(Struct):
    """The figures of all runs of a journal together.

    Attributes:
        done_status: the outcome that the runs were for: "enabled" or "disabled".
        outcomes: users by outcome.
        unrecorded: users who were in flight when a run was killed, so their outcome is unknown.
        percentiles: for 50, 90, 99 and 100 percent of the users who are done, the milliseconds from
            the start of the call to its end, waits included.
        times: a histogram of these times: (upper bound in milliseconds, users).
        attempts: how many of these users took how many requests: (requests, users).
        step: seconds from one point of the timeline to the next.
        borders: where on the timeline one run ended and the next began.
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
        """Users per second over all runs."""
        return self.users / self.seconds if self.seconds else 0.0


def read(path: Path) -> Figures:
    """Return the figures of this journal, also while a run is using it.

    Raises:
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    with reading(path) as (sql, _):
        tenant, endpoint, created, source, form, column = sql.execute(
            "SELECT tenant, endpoint, created / 1000.0, input, form, input_column FROM header"
        ).fetchone()
        told = visible(tenant), _done(endpoint), visible(source)
        figures = Figures(visible(str(path)), *told, form, column, created)
        figures.outcomes = dict(
            sql.execute("SELECT outcome, count(*) FROM users GROUP BY 1 ORDER BY 2 DESC")
        )
        (reached,) = sql.execute("SELECT ifnull(max(position) + 1, 0) FROM users").fetchone()
        # In a fleet's journal, ids between two chunks were never begun.
        of_a_fleet = sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchone()
        figures.unrecorded = 0 if of_a_fleet else reached - figures.users
        figures.runs = [
            Run(began, ended, visible(how), visible(process), *counts)
            for began, ended, how, process, *counts in sql.execute(_RUNS)
        ]
        figures.groups = [
            Group(*_told(error, status, title), count, _examples(sql, error, status, title))
            for error, status, title, count in sql.execute(_GROUPS)
        ]
        figures.attempts = sql.execute(
            "SELECT min(attempts, 6), count(*) FROM users WHERE outcome = ? GROUP BY 1",
            (figures.done_status,),
        ).fetchall()
        _read_times(figures, sql)
        _read_timeline(figures, sql)
    return figures


def inputs(path: Path) -> list[Path]:
    """Return the files that may be the input of the run, which are there; raises as `read` does."""
    with reading(path, values=False) as (sql, form):
        (name,) = sql.execute("SELECT input FROM header").fetchone()
        (whole,) = sql.execute("SELECT path FROM input").fetchone() if form > 1 else (None,)
    if not name:
        return []
    # An old journal has the name as it was given, relative to a folder that it does not have.
    places = {Path(str(whole or name)), path.resolve().parent / Path(str(name)).name}
    return [place for place in places if place.is_file()]


def users_done(path: Path) -> int:
    """Return for how many users the operation is done; raises as `read` does."""
    with reading(path) as (sql, _):
        (endpoint,) = sql.execute("SELECT endpoint FROM header").fetchone()
        (done,) = sql.execute(
            "SELECT count(*) FROM users WHERE outcome = ?", (_done(endpoint),)
        ).fetchone()
        return int(done)


def failures(path: Path) -> Iterator[FailureRow]:
    """Yield every user who is not done, in the order of the input; raises as `read` does."""
    with reading(path) as (sql, _):
        (endpoint,) = sql.execute("SELECT endpoint FROM header").fetchone()
        for position, user_id, outcome, error, status, title, attempts, trace in sql.execute(
            "SELECT position, user_id, outcome, error, status, title, attempts, trace_id"
            " FROM users WHERE outcome <> ? ORDER BY position",
            (_done(endpoint),),
        ):
            told = _told(error, status, title)
            yield FailureRow(position, user_id, outcome, *told, attempts, visible(trace or ""))


def visible(text: str) -> str:
    """Return the text with control characters and direction marks written as escapes."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# A killed run lasted to its last sample (there is one a second), or to the last user within two
# seconds after that sample. Later users belong to the next run.
_RUNS: Final = """
SELECT began / 1000.0, ended / 1000.0,
    coalesce(how, (SELECT 'killed' FROM sittings AS later WHERE later.sitting > sittings.sitting),
        ''), 'process ' || process || ' on ' || host,
    max(0, coalesce(ended, max(began, ifnull(max(at), 0), ifnull((
        SELECT max(at) FROM users WHERE at >= sittings.began
        AND at <= max(sittings.began, ifnull((
            SELECT max(at) FROM samples WHERE samples.sitting = sittings.sitting
        ), 0)) + 2000
    ), 0))) - began) / 1000.0,
    ifnull(max(requests), 0), ifnull(max(retries), 0), ifnull(max(throttled), 0),
    ifnull(max(paused), 0) / 1000.0
FROM sittings LEFT JOIN samples USING (sitting) GROUP BY sitting ORDER BY sitting
"""
_GROUPS: Final = """
SELECT error, status, title, count(*) FROM users WHERE outcome IN ('failed', 'unknown')
GROUP BY 1, 2, 3 ORDER BY 4 DESC
"""


def _done(endpoint: str) -> str:
    """Return the outcome of the users for whom the operation of the journal is done."""
    for operation in BULK_OPERATIONS.values():
        if operation.endpoint == endpoint:
            return operation.done
    raise ConfigurationError(f"the journal is of {visible(endpoint)}, which is not known here")


def _told(error: str | None, status: int | None, title: str | None) -> tuple[str, str]:
    if error is None:
        return "cancelled", "the run ended before the response arrived"
    return error, visible(f"{status or ''} {title or ''}".strip())


def _examples(
    sql: sqlite3.Connection, error: str | None, status: int | None, title: str | None
) -> list[str]:
    found = sql.execute(
        "SELECT user_id FROM users WHERE outcome IN ('failed', 'unknown')"
        " AND error IS ? AND status IS ? AND title IS ? ORDER BY position LIMIT ?",
        (error, status, title, _EXAMPLES),
    )
    return [visible(user_id) for (user_id,) in found]


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
            figures.percentiles[wanted.pop(0)] = ms
    used = [place for place, count in enumerate(bins) if count]
    if used:
        edges = (*_BINS, _BINS[-1] * 10)
        figures.times = [(edges[i], bins[i]) for i in range(used[0], used[-1] + 1)]


def _read_timeline(figures: Figures, sql: sqlite3.Connection) -> None:
    """Read the timeline, with the runs one after another and no gaps between them."""
    total = figures.seconds
    step = next((step for step in _STEPS if total / step <= _POINTS), total / _POINTS)
    figures.step = step
    began = [run.began for run in figures.runs]
    offsets = [0.0]
    for run in figures.runs:
        offsets.append(offsets[-1] + run.seconds)
    figures.borders = offsets[1:-1]
    points = [Point(number * step) for number in range(int(total / step) + 1)]

    def place(at: float) -> float:
        number = max(0, bisect_right(began, at) - 1)
        # The clock may have been set back: keep every time within its run.
        return max(offsets[number], min(offsets[number] + at - began[number], offsets[number + 1]))

    for at, is_done, count in sql.execute(
        "SELECT at / 100 / 10.0, outcome = ?, count(*) FROM users GROUP BY 1, 2",
        (figures.done_status,),
    ):
        point = points[min(int(place(at) / step), len(points) - 1)]
        if is_done:
            point.done += count / step
        else:
            point.other += count / step
    figures.timeline = points
    figures.halts = list(_halts(sql, place))


def _halts(sql: sqlite3.Connection, place: Callable[[float], float]) -> Iterator[Halt]:
    rows = sql.execute("SELECT sitting, at / 1000.0, paused, down FROM samples ORDER BY 1, 2")
    open_halt: Halt | None = None
    for (run, at, paused, was_down), (its, then, later, is_down) in pairwise(rows):
        what = "outage" if was_down or is_down else "paused" if later > paused else ""
        start, end = place(at), place(then)
        if open_halt is not None and (what != open_halt.what or its != run):
            yield open_halt
            open_halt = None
        if what and its == run:
            open_halt = Halt(start if open_halt is None else open_halt.start, end, what)
    if open_halt is not None:
        yield open_halt
