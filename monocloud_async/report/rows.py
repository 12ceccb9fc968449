"""The users of a journal one by one: who is done, who is not, and who was never asked for."""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from monocloud_async.endpoint import BULK_OPERATIONS, BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.schema import COORDINATOR_ENDED
from monocloud_async.journal.snapshot import DAMAGED_USER, DamageError, reading
from monocloud_async.journal.store import quoted
from monocloud_async.sanitize import visible

_COLUMNS: Final = "position, user_id, outcome, error, status, title, attempts, trace_id, ms, at"

_HEADER: Final = ("header",)  # the values of users are checked one by one
_IN_FLIGHT: Final = "was in flight, and has no outcome"
_NOT_YET: Final = "the run has not come to this user"
_OR_IN_FLIGHT: Final = ", or was cut off when it had just come to it"
# Workers of a fleet may have users when their coordinator ends.
_CUT_OFF: Final = """
SELECT 1 FROM sittings
WHERE ended IS NULL OR how = ? AND sitting = (SELECT max(sitting) FROM sittings)
"""


class UserRow(Struct, frozen=True):
    """The outcome of one user.

    Attributes:
        position: from 0, in the input.
        outcome: as `Outcome.status`.
        kind, message: the class of the error, and what the tenant said; empty without an error.
        status: the HTTP status, or None.
        milliseconds: from the start of the call to its end.
        at: when it was recorded, in seconds since 1970; 0 if it was not.
    """

    position: int
    user_id: str
    outcome: str
    kind: str = ""
    message: str = ""
    attempts: int = 0
    trace_id: str = ""
    status: int | None = None
    milliseconds: int = 0
    at: float = 0.0


class Found(NamedTuple):
    """What a journal has of one id: its latest outcomes, and failures that were tried again."""

    latest: list[UserRow]
    earlier: list[UserRow]


class InputChangedError(ConfigurationError):
    """The input is not the one of the journal."""


class NobodyRecordedError(ConfigurationError):
    """The journal has no user by which an input can be recognized."""


def failures(path: Path) -> Iterator[UserRow]:
    """Yield every user who is not done, in the order of the input.

    Raises:
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    with reading(path, checked=_HEADER) as (sql, _):
        where = "outcome NOT IN (?, ?) ORDER BY position"
        operation = operation_of(sql)
        yield from _rows(sql, "users", where, operation.done, operation.done_before)


def users(path: Path) -> Iterator[UserRow]:
    """Yield every user who has an outcome, in the order of the input; raises as `failures` does."""
    with reading(path, checked=_HEADER) as (sql, _):
        yield from _rows(sql, "users", "1 ORDER BY position")


def find(path: Path, user_id: str) -> Found:
    """Return what became of the users with this id; raises as `failures` does."""
    names = recorded_as(user_id)
    with reading(path, checked=_HEADER) as (sql, form):
        latest = list(_rows(sql, "users", "user_id IN (?, ?) ORDER BY position", *names))
        if form == 1:
            return Found(latest, [])
        earlier = _rows(sql, "earlier", "user_id IN (?, ?) ORDER BY at", *names)
        return Found(latest, list(earlier))


def bad_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and problem of the lines without a valid id; raises as `failures` does."""
    with reading(path, checked={*_HEADER, "bad_lines"}) as (sql, form):
        if form > 1:
            yield from sql.execute("SELECT line, problem FROM bad_lines ORDER BY line")


def everybody(path: Path, user_ids: Iterable[str]) -> Iterator[UserRow]:
    """Yield every user of the input, also those who have no outcome in the journal.

    Args:
        path: the journal.
        user_ids: the ids of the input, read again.

    Raises:
        InputChangedError: the input is not the one of the journal.
        NobodyRecordedError: nobody can tell whether it is.
        ConfigurationError: as `failures`.
    """
    with reading(path, checked=_HEADER) as (sql, _):
        (reached,) = sql.execute("SELECT ifnull(max(position) + 1, 0) FROM users").fetchone()
        # A fleet does not go through the input in its order.
        begun = 0 if is_fleet(sql) else reached
        cut_off = sql.execute(_CUT_OFF, (COORDINATOR_ENDED,)).fetchone()
        why = _NOT_YET + (_OR_IN_FLIGHT if cut_off else "")
        rows = _rows(sql, "users", "1 ORDER BY position")
        row = next(rows, None)
        if row is None:
            raise NobodyRecordedError("the journal has no user by which to recognize it")
        for position, user_id in enumerate(user_ids):
            if row is None or row.position != position:
                yield (
                    UserRow(position, user_id, "unknown", message=_IN_FLIGHT)
                    if position < begun
                    else UserRow(position, user_id, "not_attempted", message=why)
                )
            elif row.user_id not in recorded_as(user_id):
                # The journal may name any file: its content is not for the eyes of others.
                raise InputChangedError(
                    f"id number {position + 1:,} was {quoted(row.user_id)}, and is another one now"
                )
            else:
                yield row
                row = next(rows, None)
        if row is not None:
            raise InputChangedError(f"it ends before id number {row.position + 1:,}")


def operation_of(sql: sqlite3.Connection) -> BulkOperation:
    """Return the operation of the journal.

    Raises:
        ConfigurationError: this version does not know it.
    """
    (endpoint,) = sql.execute("SELECT endpoint FROM header").fetchone()
    for operation in BULK_OPERATIONS.values():
        if operation.endpoint == endpoint:
            return operation
    raise ConfigurationError(f"the journal is of {visible(endpoint)}, which is not known here")


def recorded_as(user_id: str) -> tuple[str, str]:
    """Return how a journal has this id: as it is, and in the form of an invalid one."""
    invalid = quoted(user_id)
    try:
        user_id.encode()
    except UnicodeEncodeError:  # nobody has this id, and SQLite does not take it
        return invalid, invalid
    return user_id, invalid


def is_fleet(sql: sqlite3.Connection) -> bool:
    """Return whether it is the journal of a fleet."""
    found = sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks' AND type = 'table'")
    return found.fetchone() is not None


def kind_and_message(error: str | None, status: int | None, title: str | None) -> tuple[str, str]:
    """Return the class and the message of a failure."""
    if error is None:
        return "cancelled", "the run ended before the response arrived"
    return visible(error), visible(f"{status or ''} {title or ''}".strip())


def _rows(sql: sqlite3.Connection, table: str, where: str, *bound: object) -> Iterator[UserRow]:
    query = f"SELECT {_COLUMNS}, {DAMAGED_USER} FROM {table} WHERE {where}"  # noqa: S608  constants
    for row in sql.execute(query, bound):
        position, user_id, outcome, error, status, title, attempts, trace, ms, at, is_damaged = row
        if is_damaged:
            raise DamageError("it has values in `users` that no run writes")
        has_error = error is not None or outcome == "unknown"
        kind, message = kind_and_message(error, status, title) if has_error else ("", "")
        if outcome == "not_attempted" and not message:
            message = _NOT_YET
        yield UserRow(
            position, user_id, outcome, kind, message, attempts, visible(trace or ""), status, ms,
            at / 1000,
        )  # fmt: skip
