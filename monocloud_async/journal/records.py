"""A journal's rows: the SQL that writes them and looks up what is there.

Synchronous and for one thread, which `file` gives it.
"""

import math
import os
import socket
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from monocloud_async.errors import (
    ConfigurationError,
    InvalidResponseError,
    InvalidUserIdError,
    StatusError,
)
from monocloud_async.journal.layout import ENDPOINT, connect, lay_out
from monocloud_async.outcome import Outcome
from monocloud_async.version import __version__
from monocloud_async.wire import clean

PAGE: Final = 8192  # positions that are looked up at once
_OK: Final = 200
_MAX_TEXT: Final = 1000

# `sqlite3` lets go of the interpreter at each step of a statement, and has to wait for it again,
# beside a busy event loop, for up to 5 ms. So many rows go into one step, not one row each.
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPSERT: Final = """
INSERT INTO users VALUES {rows} ON CONFLICT (position) DO UPDATE SET
    outcome = excluded.outcome, status = excluded.status, attempts = attempts + excluded.attempts,
    ms = excluded.ms, at = excluded.at, error = excluded.error, title = excluded.title,
    trace_id = excluded.trace_id
WHERE excluded.outcome <> 'not_attempted'
"""
# Few sizes, so that every statement is prepared once; SQLite of old takes 999 values at most.
_UPSERTS: Final = [
    (size, _UPSERT.format(rows=", ".join([_ROW] * size))) for size in (64, 32, 16, 8, 4, 2, 1)
]

# One row for a page, for the same reason.
_PAGE_OF_USERS: Final = """
SELECT count(*), json_group_array(user_id), group_concat(ifnull(outcome = 'enabled', 0), '')
FROM users WHERE position >= ? AND position < ?
"""
_PLACES: Final = """
SELECT json_group_array(position) FROM users WHERE position >= ? AND position < ?
"""

_numbers = msgspec.json.Decoder(list[int])
_texts = msgspec.json.Decoder(list[str])


class Page(NamedTuple):
    """What is known of some positions that follow each other.

    Attributes:
        start, end: the first of them, and the first that is beyond.
        ids: the ids there; None where nothing was recorded, as of a call that a kill cut off.
        enabled: "1" where that user is enabled, else "0".
    """

    start: int
    end: int
    ids: Sequence[str | None]
    enabled: str


class Source(NamedTuple):
    """What an input is, so that a report can write failures in the same form.

    Attributes:
        name: the file's path.
        form: "txt", "csv" or "jsonl".
        column: where the ids are in it.
        again: the ids, to be read from the start once more, or None where that cannot be.
    """

    name: str = ""
    form: str = "txt"
    column: str | None = None
    again: Iterable[str] | None = None


class Counts(NamedTuple):
    """A run's counts at a moment."""

    requests: int
    retries: int
    throttled: int
    paused: int
    down: bool


def shown(user_id: object) -> str:
    """The text that stands for an id that cannot be one, which may not even be text."""
    return ascii(user_id)[:_MAX_TEXT]


class Records:
    """The file during one sitting.

    Args:
        path: made with mode 0600 if it is not there.
        tenant: whose users they are.
        source: what the ids come from.

    Attributes:
        reached: one more than the last position that is there.
        enabled: how many users before it are enabled.
    """

    def __init__(self, path: Path, tenant: str, source: Source) -> None:
        self.reached = 0
        self.enabled = 0
        self._path = path
        self._tenant = tenant
        self._source = source
        self._sql: sqlite3.Connection | None = None
        self._sitting: int | None = None  # None until there is something to write

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
        if (tenant, endpoint) != (self._tenant, ENDPOINT):
            whose = f"tenant {tenant}" if endpoint == ENDPOINT else f"endpoint {endpoint}"
            raise ConfigurationError(
                f"the journal {self._path} belongs to the {clean(whose)}, and this run is for"
                f" {self._tenant}; name another journal, or that tenant"
            )
        self.reached, self.enabled = self._sql.execute(
            "SELECT ifnull(max(position) + 1, 0), count(*) FILTER (WHERE outcome = 'enabled')"
            " FROM users"
        ).fetchone()

    def page(self, start: int) -> Page:
        """What is known of the positions from this one on."""
        assert self._sql is not None  # noqa: S101  only asked for what was reached before
        end = min(start + PAGE, self.reached)
        span = (start, end)
        count, ids, enabled = self._sql.execute(_PAGE_OF_USERS, span).fetchone()
        found: Sequence[str | None] = _texts.decode(ids)
        if count < end - start:
            (places,) = self._sql.execute(_PLACES, span).fetchone()
            rows = zip(_numbers.decode(places), found, enabled or "", strict=True)
            known = {position: (user_id, flag) for position, user_id, flag in rows}
            spread = [known.get(position, (None, "0")) for position in range(start, end)]
            found, enabled = [row[0] for row in spread], "".join(row[1] for row in spread)
        return Page(start, end, found, enabled)

    def write(self, outcomes: Sequence[Outcome], now: int) -> None:
        """Commit these outcomes; all of them, or none and `sqlite3.Error`."""
        rows = [_row(outcome, now) for outcome in outcomes]
        sql = self._begun(now)
        sql.execute("BEGIN IMMEDIATE")
        try:
            done = 0
            for size, statement in _UPSERTS:
                while len(rows) - done >= size:
                    part = rows[done : done + size]
                    sql.execute(statement, tuple(chain.from_iterable(part)))
                    done += size
            sql.execute("COMMIT")
        except BaseException:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            raise

    def sample(self, counts: Counts, now: int, how: str | None = None) -> None:
        """Commit the counts of this moment, and with `how` that the sitting ended so."""
        sql = self._begun(now)
        sql.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", (self._sitting, now, *counts)
        )
        if how is not None:
            sql.execute(
                "UPDATE sittings SET ended = ?, how = ? WHERE sitting = ?",
                (now, _text(how), self._sitting),
            )

    def close(self) -> None:
        """Let go of the file; one that nothing was written to is not left behind."""
        if self._sql is not None:
            self._sql.close()
        elif not self._path.stat().st_size:
            self._path.unlink()

    def _begun(self, now: int) -> sqlite3.Connection:
        """The connection, once the file knows of this sitting."""
        if self._sql is None:
            source = self._source
            column = None if source.column is None else _text(source.column)
            header = (self._tenant, ENDPOINT, now, _text(source.name), source.form, column)
            self._sql = lay_out(self._path, header)
        if self._sitting is None:
            self._sql.execute("PRAGMA synchronous = FULL")
            added = self._sql.execute(
                "INSERT INTO sittings (began, process, host, version) VALUES (?, ?, ?, ?)",
                (now, os.getpid(), socket.gethostname(), __version__),
            )
            self._sitting = added.lastrowid
        return self._sql


def _row(outcome: Outcome, now: int) -> tuple[object, ...]:
    error, user_id, ms = outcome.error, outcome.user_id, math.ceil(outcome.seconds * 1000)
    status = None if outcome.user is None else _OK
    kind = title = trace_id = None
    if error is not None:
        kind, title = type(error).__name__, str(error.args[0])
        if isinstance(error, StatusError):
            status, title, trace_id = error.status, error.problem.title or "", error.trace_id
        elif isinstance(error, InvalidResponseError):
            status = error.status
        elif isinstance(error, InvalidUserIdError):
            user_id = shown(user_id)
        title, trace_id = _text(title), trace_id and _text(trace_id)
    return (
        outcome.position, user_id, outcome.status, status, outcome.attempts, ms, now,
        kind, title, trace_id,
    )  # fmt: skip


def _text(text: str) -> str:
    return clean(text).encode(errors="replace").decode()
