"""A journal's rows: the SQL that writes them and looks up what is there.

Synchronous and for one thread, which `file` gives it.
"""

import math
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import (
    ConfigurationError,
    InvalidResponseError,
    InvalidUserIdError,
    StatusError,
)
from monocloud_async.journal.schema import connect, create
from monocloud_async.outcome import DONE, Outcome
from monocloud_async.sanitize import clean
from monocloud_async.version import __version__

PAGE: Final = 8192  # positions that are looked up at once
_MAX_TEXT: Final = 1000

# `sqlite3` lets go of the interpreter at each step of a statement, and has to wait for it again,
# beside a busy event loop, for up to 5 ms. So many rows go into one step, not one row each.
# What is done says the same in half of its columns, and to bind a value costs as much as to store
# it.
_DONE: Final = "(?, ?, '{done}', 200, ?, ?, ?, NULL, NULL, NULL)"
_OTHER: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DONE_VALUES: Final = _DONE.count("?")
_OTHER_VALUES: Final = _OTHER.count("?")
_UPSERT: Final = """
INSERT INTO users VALUES {rows} ON CONFLICT (position) DO UPDATE SET
    outcome = excluded.outcome, status = excluded.status, attempts = attempts + excluded.attempts,
    ms = excluded.ms, at = excluded.at, error = excluded.error, title = excluded.title,
    trace_id = excluded.trace_id
WHERE excluded.outcome <> 'not_attempted'
"""


@cache
def _upserts(row: str) -> list[tuple[int, str]]:
    """By the number of their values. Few sizes, so that every statement is prepared once."""
    sizes = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
    return [(n * row.count("?"), _UPSERT.format(rows=", ".join([row] * n))) for n in sizes]


# One row for a page, for the same reason.
_PAGE_OF_USERS: Final = """
SELECT count(*), json_group_array(user_id), group_concat(ifnull(outcome = ?, 0), '')
FROM users WHERE position >= ? AND position < ?
"""
_PLACES: Final = """
SELECT json_group_array(position) FROM users WHERE position >= ? AND position < ?
"""

_numbers = msgspec.json.Decoder(list[int])
_ids = msgspec.json.Decoder(list[str])


class Page(NamedTuple):
    """What is known of some positions that follow each other.

    Attributes:
        start, end: the first of them, and the first that is beyond.
        ids: the ids there; None where nothing was recorded, as of a call that a kill cut off.
        done: "1" where it is done for that user, else "0".
    """

    start: int
    end: int
    ids: Sequence[str | None]
    done: str


class InputInfo(NamedTuple):
    """What an input is, so that a report can write failures in the same form.

    Attributes:
        name: the file's path.
        form: "txt", "csv" or "jsonl".
        column: where the ids are in it.
        reread: the ids, to be read from the start once more, or None where that cannot be.
    """

    name: str = ""
    form: str = "txt"
    column: str | None = None
    reread: Iterable[str] | None = None


class Sample(NamedTuple):
    """A run's counts at a moment."""

    requests: int
    retries: int
    throttled: int
    paused: int
    down: bool


def quoted(user_id: object) -> str:
    """The text that stands for an id that cannot be one, which may not even be text."""
    return ascii(user_id)[:_MAX_TEXT]


class Rows(NamedTuple):
    """What a journal keeps of outcomes: the values of one row behind those of the other.

    Not the outcomes as they are: to hold on to hundreds of users, which are thirty objects each,
    costs more CPU time than to write them down.
    """

    done: list[object]
    others: list[object]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], now: int) -> "Rows":
        """The rows of these outcomes."""
        rows = cls([], [])
        for outcome in outcomes:
            rows.add(outcome, now)
        return rows

    def add(self, outcome: Outcome, now: int) -> None:
        """Take one more, `now` being milliseconds since 1970."""
        ms = math.ceil(outcome.seconds * 1000)
        if outcome.status in DONE:
            self.done.extend((outcome.position, outcome.user_id, outcome.attempts, ms, now))
        else:
            self.others.extend(_row(outcome, ms, now))

    def positions(self) -> set[object]:
        """Whose rows these are."""
        return {*self.done[::_DONE_VALUES], *self.others[::_OTHER_VALUES]}

    @property
    def users_done(self) -> int:
        """For how many users it was done."""
        return len(self.done) // _DONE_VALUES

    def count(self, outcome: str) -> int:
        """How many of the others came to this."""
        return self.others[2::_OTHER_VALUES].count(outcome)

    def others_each(self) -> Iterator[Sequence[object]]:
        """The values of every user for whom it was not done, as in `USER_COLUMNS`."""
        for start in range(0, len(self.others), _OTHER_VALUES):
            yield self.others[start : start + _OTHER_VALUES]

    def moved(self, start: int, user_ids: Sequence[str]) -> "Rows":
        """The same of these users, the first of whom stands at `start`, where it was 0."""
        rows = Rows(self.done.copy(), self.others.copy())
        for values, size in ((rows.done, _DONE_VALUES), (rows.others, _OTHER_VALUES)):
            places = [int(str(place)) for place in values[::size]]
            values[::size] = [start + place for place in places]
            values[1::size] = [user_ids[place] for place in places]
        return rows


class JournalStore:
    """The file during one run.

    Args:
        path: made with mode 0600 if it is not there.
        tenant: whose users they are.
        operation: what the run does for them.
        input_info: what the ids come from.

    Attributes:
        reached: one more than the last position that is there.
        done: for how many users before it the operation is done.
    """

    def __init__(
        self, path: Path, tenant: str, operation: BulkOperation, input_info: InputInfo
    ) -> None:
        self.reached = 0
        self.done = 0
        self._path = path
        self._tenant = tenant
        self._operation = operation
        self._input_info = input_info
        self._sql: sqlite3.Connection | None = None
        self._run_id: int | None = None  # None until there is something to write

    def open(self) -> None:
        """Look whose file it is; writes nothing.

        Raises:
            ConfigurationError: it is not this run's.
            OSError, sqlite3.Error: it cannot be opened.
        """
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._sql = connect(self._path)
        if self._sql is None:
            return
        header = self._sql.execute("SELECT tenant, endpoint FROM header").fetchone()
        tenant, endpoint = header or ("", "")
        if tenant != self._tenant:
            raise ConfigurationError(
                f"the journal {self._path} belongs to the tenant {clean(tenant)}, and this run is"
                f" for {self._tenant}; name another journal, or that tenant"
            )
        if endpoint != self._operation.endpoint:
            raise ConfigurationError(
                f"the journal {self._path} is of {clean(endpoint)}, and this run is of"
                f" {self._operation.endpoint}; name another journal"
            )
        self.reached, self.done = self._sql.execute(
            "SELECT ifnull(max(position) + 1, 0), count(*) FILTER (WHERE outcome = ?) FROM users",
            (self._operation.done,),
        ).fetchone()

    def page(self, start: int) -> Page:
        """What is known of the positions from this one on."""
        assert self._sql is not None  # noqa: S101  only asked for what was reached before
        end = min(start + PAGE, self.reached)
        span = (start, end)
        count, ids, done = self._sql.execute(
            _PAGE_OF_USERS, (self._operation.done, *span)
        ).fetchone()
        found: Sequence[str | None] = _ids.decode(ids)
        if count < end - start:
            (places,) = self._sql.execute(_PLACES, span).fetchone()
            rows = zip(_numbers.decode(places), found, done or "", strict=True)
            known = {position: (user_id, flag) for position, user_id, flag in rows}
            spread = [known.get(position, (None, "0")) for position in range(start, end)]
            found, done = [row[0] for row in spread], "".join(row[1] for row in spread)
        return Page(start, end, found, done)

    def connection(self, now: int) -> sqlite3.Connection:
        """The connection, once the file knows of this run."""
        if self._sql is None:
            input_info = self._input_info
            column = None if input_info.column is None else _text(input_info.column)
            name, endpoint = _text(input_info.name), self._operation.endpoint
            header = (self._tenant, endpoint, now, name, input_info.form, column)
            self._sql = create(self._path, header)
        if self._run_id is None:
            self._sql.execute("PRAGMA synchronous = FULL")
            added = self._sql.execute(
                "INSERT INTO sittings (began, process, host, version) VALUES (?, ?, ?, ?)",
                (now, os.getpid(), socket.gethostname(), __version__),
            )
            self._run_id = added.lastrowid
        return self._sql

    def write(self, rows: Rows, now: int, *first: tuple[str, Sequence[object]]) -> None:
        """Commit these statements, then these rows; all of it, or none and `sqlite3.Error`."""
        sql = self.connection(now)
        sql.execute("BEGIN IMMEDIATE")
        try:
            for text, bound in first:
                sql.execute(text, bound)
            forms = _DONE.format(done=self._operation.done), _OTHER
            for values, form in zip(rows, forms, strict=True):
                start = 0
                for size, statement in _upserts(form):
                    while len(values) - start >= size:
                        sql.execute(statement, values[start : start + size])
                        start += size
            sql.execute("COMMIT")
        except BaseException:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            raise

    def add_sample(self, sample: Sample, now: int, how: str | None = None) -> None:
        """Commit the counts of this moment, and with `how` that the run ended so."""
        sql = self.connection(now)
        sql.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", (self._run_id, now, *sample)
        )
        if how is not None:
            sql.execute(
                "UPDATE sittings SET ended = ?, how = ? WHERE sitting = ?",
                (now, _text(how), self._run_id),
            )

    def close(self) -> None:
        """Let go of the file; one that nothing was written to is not left behind."""
        if self._sql is not None:
            self._sql.close()
        elif not self._path.stat().st_size:
            self._path.unlink()


def _row(outcome: Outcome, ms: int, now: int) -> tuple[object, ...]:
    error, user_id = outcome.error, outcome.user_id
    kind = title = trace_id = status = None
    if error is not None:
        kind, title = type(error).__name__, str(error.args[0])
        if isinstance(error, StatusError):
            status, title, trace_id = error.status, error.problem.title or "", error.trace_id
        elif isinstance(error, InvalidResponseError):
            status = error.status
        elif isinstance(error, InvalidUserIdError):
            user_id = quoted(user_id)
        title, trace_id = _text(title), trace_id and _text(trace_id)
    return (
        outcome.position, user_id, outcome.status, status, outcome.attempts, ms, now,
        kind, title, trace_id,
    )  # fmt: skip


def _text(text: str) -> str:
    return clean(text).encode(errors="replace").decode()
