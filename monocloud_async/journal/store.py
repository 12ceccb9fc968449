"""The SQL that writes and reads a journal's rows.

Everything here is synchronous and runs in one thread, which `journal.file` owns.
"""

import math
import os
import socket
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from monocloud_async.config import tenant_name
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import (
    ConfigurationError,
    InvalidResponseError,
    InvalidUserIdError,
    StatusError,
)
from monocloud_async.journal.paths import close_to_others, owner
from monocloud_async.journal.schema import FORMAT, create, upgrade
from monocloud_async.journal.snapshot import DamageError, EmptyJournalError, reading
from monocloud_async.outcome import DONE, Outcome
from monocloud_async.sanitize import clean
from monocloud_async.version import __version__

PAGE: Final = 8192  # positions read by one query
_LONGEST_PAGE: Final = 1 << 26  # bytes: its ids as JSON, where a byte can take six
_MAX_TEXT: Final = 1000
LONGEST_COMMAND: Final = 4000  # characters; readers take a longer text for damage

# `sqlite3` releases the GIL at each step of a statement. Beside a busy event loop, it then waits up
# to 5 ms to get the GIL back. So one step writes many rows. Rows of users who are done have the
# same value in half of their columns. These are literals, because binding a value costs as much as
# storing it.
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


# Whether a killed run may have sent a request of which there is no record, since it was last known
# that no request for this user was carried out. The number of the current run is bound.
_MAY_BE_DONE: Final = """EXISTS (
    SELECT 1 FROM sittings WHERE ended IS NULL AND sitting <> ? AND sitting > ifnull((
        SELECT failed_in.sitting FROM failed_in WHERE failed_in.position = {}), 0))"""
# What was before the first request that may have been carried out. Until there was one, because
# each was refused or never sent, a later run may find a user whom others have enabled.
_BEFORE: Final = f"""
INSERT INTO before VALUES (?, ?, ?) ON CONFLICT (position) DO UPDATE SET
    user_id = excluded.user_id, disabled = excluded.disabled
WHERE user_id <> excluded.user_id OR EXISTS (
    SELECT 1 FROM users WHERE users.position = excluded.position AND (
        outcome = 'not_attempted' OR outcome = 'failed' AND (
            status IS NULL OR status BETWEEN 400 AND 499 AND status <> 408))
    AND NOT EXISTS (
        SELECT 1 FROM earlier WHERE earlier.position = excluded.position AND (
            outcome = 'unknown' OR status NOT BETWEEN 400 AND 499 OR status = 408))
    AND NOT {_MAY_BE_DONE.format("excluded.position")})
"""  # noqa: S608  constants
# A refusal alone tells nothing of the requests before it: the key may have been refused.
_FAILED_IN: Final = f"""
INSERT INTO failed_in SELECT value, ? FROM json_each(?) WHERE value IN (
    SELECT position FROM before)
AND (value IN (SELECT value FROM json_each(?))
    OR NOT {_MAY_BE_DONE.format("json_each.value")})
ON CONFLICT (position) DO UPDATE SET sitting = excluded.sitting
"""  # noqa: S608  constants
StateBefore = tuple[int, str, bool | None]  # position, user id, and whether it was disabled


@cache
def _upserts(row: str) -> list[tuple[int, str]]:
    """Return (number of values, statement) pairs: few sizes, so each is prepared only once."""
    sizes = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
    return [(n * row.count("?"), _UPSERT.format(rows=", ".join([row] * n))) for n in sizes]


# The whole page in one row, for the same reason.
_PAGE_OF_USERS: Final = """
SELECT count(*), json_group_array(user_id), group_concat(ifnull(outcome IN (?, ?), 0), '')
FROM users WHERE position >= ? AND position < ?
"""
_POSITIONS: Final = """
SELECT json_group_array(position) FROM users WHERE position >= ? AND position < ?
"""

# A user who failed in an earlier run, and was asked for again: when that was, and why.
_KEEP_EARLIER: Final = """
INSERT INTO earlier SELECT * FROM users
WHERE position IN (SELECT value FROM json_each(?)) AND outcome <> 'not_attempted'
"""

_json = msgspec.json.Encoder()
_numbers = msgspec.json.Decoder(list[int])
_ids = msgspec.json.Decoder(list[str])


class Page(NamedTuple):
    """The records of consecutive positions.

    Attributes:
        start, end: the first position, and the first one after the page.
        ids: the recorded ids; None where a kill prevented the record.
        done: one character for each position: "1" if the operation is done, else "0".
    """

    start: int
    end: int
    ids: Sequence[str | None]
    done: str


class InputInfo(NamedTuple):
    """Where the ids come from, so that a report can write failures in the format of the input.

    Attributes:
        name: the path of the file, as it was given.
        form: the format: "txt", "csv" or "jsonl".
        column: the column that has the ids.
        reread: the ids, read again from the start, or None if that is not possible.
        path: the whole path of the file, or an empty string.
        about: about how many ids there are, or None.
        sheet: the sheet of a workbook, or None for the only one.
        by: what the input names users by: "id" or "email".
        if_changed: what people can do if the ids are not those of the journal.
    """

    name: str = ""
    form: str = "txt"
    column: str | None = None
    reread: Iterable[str] | None = None
    path: str = ""
    about: int | None = None
    sheet: str | None = None
    by: str = "id"
    if_changed: str = "restore the input (ids may only be added at its end), or start a new journal"


class Caller(NamedTuple):
    """What the user ran: the command, without secrets, and a note such as a ticket."""

    command: str = ""
    note: str = ""


class InputState(NamedTuple):
    """What a run knows about its input so far.

    Attributes:
        ids: how many ids the input has, or None until it was read to its end.
        at_least: how many ids were read.
        bad_lines: how many lines without a valid id were read.
        numbered: those that are new, with their number and their problem.
    """

    ids: int | None
    at_least: int
    bad_lines: int
    numbered: Sequence[tuple[int, str]] = ()


class Sample(NamedTuple):
    """The counts of a run at one moment."""

    requests: int
    retries: int
    throttled: int
    paused: int
    down: bool


def quoted(user_id: object) -> str:
    """Return a printable form of an invalid id, which may not even be a string."""
    return ascii(user_id)[:_MAX_TEXT]


class Rows(NamedTuple):
    """The rows of some outcomes: the values of all rows in one flat list for each kind.

    The outcomes themselves are not kept: each user is about thirty objects, and keeping hundreds of
    them alive costs more CPU time than writing the rows.

    Attributes:
        done: position, id, attempts, milliseconds and time of each user who is done.
        others: the values of each other user, in the order of `USER_COLUMNS`.
    """

    done: list[object]
    others: list[object]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], now: int) -> "Rows":
        """Return the rows of these outcomes."""
        rows = cls([], [])
        for outcome in outcomes:
            rows.add(outcome, now)
        return rows

    def add(self, outcome: Outcome, now: int) -> None:
        """Add the row of an outcome; `now` is in milliseconds since 1970."""
        ms = math.ceil(outcome.seconds * 1000)
        if outcome.status in DONE:
            self.done.extend((outcome.position, outcome.user_id, outcome.attempts, ms, now))
        else:
            self.others.extend(_row(outcome, ms, now))

    def add_done(self, values: list[Any], now: int) -> None:
        """Add rows of `done` that have seconds, and nothing in the place of the time yet."""
        durations = values[3::_DONE_VALUES]
        values[3::_DONE_VALUES] = [math.ceil(1000 * seconds) for seconds in durations]
        values[4::_DONE_VALUES] = [now] * len(durations)
        self.done.extend(values)

    def positions(self) -> set[object]:
        """Return the positions of these users."""
        return {*self.done[::_DONE_VALUES], *self.others[::_OTHER_VALUES]}

    def tried_again(self, reached: int) -> list[object]:
        """Return the positions before this one of users who were asked for."""
        found = [position for position in self.done[::_DONE_VALUES] if _before(position, reached)]
        for position, outcome in zip(
            self.others[::_OTHER_VALUES], self.others[2::_OTHER_VALUES], strict=True
        ):
            if _before(position, reached) and outcome != "not_attempted":
                found.append(position)
        return found

    def failed(self) -> list[object]:
        """Return the positions of users who failed."""
        return [row[0] for row in self.others_each() if row[2] == "failed"]

    @property
    def users_done(self) -> int:
        """How many users are done."""
        return len(self.done) // _DONE_VALUES

    def count(self, outcome: str) -> int:
        """Return how many of the others have this outcome."""
        return self.others[2::_OTHER_VALUES].count(outcome)

    def others_each(self) -> Iterator[Sequence[object]]:
        """Yield the values of each user who is not done, in the order of `USER_COLUMNS`."""
        for start in range(0, len(self.others), _OTHER_VALUES):
            yield self.others[start : start + _OTHER_VALUES]

    def moved(self, start: int, user_ids: Sequence[str]) -> "Rows":
        """Return a copy with positions that begin at `start` instead of 0, and with these ids."""
        rows = Rows(self.done.copy(), self.others.copy())
        for values, size in ((rows.done, _DONE_VALUES), (rows.others, _OTHER_VALUES)):
            places = [int(str(place)) for place in values[::size]]
            values[::size] = [start + place for place in places]
            values[1::size] = [user_ids[place] for place in places]
        return rows

    def without(self, positions: Collection[object]) -> "Rows":
        """Return a copy without the users at these positions."""
        rows = Rows([], [])
        for source, target, size in (
            (self.done, rows.done, _DONE_VALUES),
            (self.others, rows.others, _OTHER_VALUES),
        ):
            for start in range(0, len(source), size):
                if source[start] not in positions:
                    target.extend(source[start : start + size])
        return rows


def _before(position: object, reached: int) -> bool:
    return isinstance(position, int) and position < reached


class JournalStore:
    """The database of a journal during one run.

    Args:
        path: created with mode 0600 if it does not exist.
        tenant: the tenant of the users.
        operation: the operation of the run.
        input_info: where the ids come from.
        caller: what the user ran.

    Attributes:
        reached: the first position after the last record.
        users_done: how many recorded users are done.
        latest: when the last outcome was recorded, in milliseconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        tenant: str,
        operation: BulkOperation,
        input_info: InputInfo,
        caller: Caller = Caller(),  # noqa: B008  immutable
    ) -> None:
        self.reached = 0
        self.users_done = 0
        self.latest = 0
        self._form: int | None = None  # None until there are tables
        self._path = path
        self._tenant = tenant
        self._operation = operation
        self._input_info = input_info
        self._caller = caller
        self._sql: sqlite3.Connection | None = None
        self._run_id: int | None = None  # None until there is something to write
        self._found_disabled = set[object]()  # positions of users in flight whom this run looked up
        self._ids_before: int | None = None  # how many the input had for the last run

    def open(self) -> None:
        """Open the file and check that it belongs to this run; writes nothing.

        Raises:
            ConfigurationError: the file belongs to another tenant or endpoint, or is no journal.
            OSError, sqlite3.Error: the file cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self._path, flags, 0o600)
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        if size:
            self._check()
        close_to_others(self._path)
        if self._form is not None:
            self._sql = _connect(self._path)

    def _check(self) -> None:
        try:
            with reading(self._path, checked=()) as (sql, form):
                tenant, endpoint = sql.execute("SELECT tenant, endpoint FROM header").fetchone()
                self.reached, self.users_done, self.latest = sql.execute(
                    "SELECT ifnull(max(position) + 1, 0),"
                    " count(*) FILTER (WHERE outcome IN (?, ?)), ifnull(max(at), 0) FROM users",
                    (self._operation.done, self._operation.done_before),
                ).fetchone()
                if not isinstance(self.latest, int):
                    raise DamageError("it has a time in `users` that no run writes")
        except EmptyJournalError:
            return  # a kill came before the first transaction
        self._form = form
        if tenant_name(str(tenant)) != tenant_name(self._tenant):
            raise ConfigurationError(
                f"the journal {self._path} belongs to the tenant {clean(str(tenant))}, and this run"
                f" is for {self._tenant}; name another journal, or use that tenant"
            )
        if endpoint != self._operation.endpoint:
            raise ConfigurationError(
                f"the journal {self._path} is of {clean(str(endpoint))}, and this run is of"
                f" {self._operation.endpoint}; name another journal"
            )

    def page(self, start: int) -> Page:
        """Return the records of the positions from this one on."""
        assert self._sql is not None  # noqa: S101  called only for positions before `reached`
        end = min(start + PAGE, self.reached)
        span = (start, end)
        done_statuses = self._operation.done, self._operation.done_before
        count, ids, done = self._sql.execute(_PAGE_OF_USERS, (*done_statuses, *span)).fetchone()
        found: Sequence[str | None] = _ids.decode(ids)
        if count < end - start:
            (positions,) = self._sql.execute(_POSITIONS, span).fetchone()
            rows = zip(_numbers.decode(positions), found, done or "", strict=True)
            known = {position: (user_id, flag) for position, user_id, flag in rows}
            spread = [known.get(position, (None, "0")) for position in range(start, end)]
            found, done = [row[0] for row in spread], "".join(row[1] for row in spread)
        return Page(start, end, found, done)

    @property
    def opened(self) -> sqlite3.Connection | None:
        """The connection, without adding this run to the file; None for a new file."""
        return self._sql

    def has_begun(self) -> bool:
        """Return whether this run is in the file."""
        return self._run_id is not None

    def connection(self, now: int) -> sqlite3.Connection:
        """Return the connection, after adding this run to the file."""
        if self._sql is None:
            input_info = self._input_info
            column = None if input_info.column is None else _text(input_info.column)
            name, endpoint = _text(input_info.name), self._operation.endpoint
            header = (self._tenant, endpoint, now, name, input_info.form, column)
            self._sql = create(self._path, header)
            self._form = FORMAT
        if self._run_id is None:
            self._sql.execute("PRAGMA synchronous = FULL")
            upgrade(self._sql, self._form or FORMAT)
            with _transaction(self._sql):
                self._run_id = self._begin(self._sql, now)
        return self._sql

    def _begin(self, sql: sqlite3.Connection, now: int) -> int | None:
        """Add this run, and return its number."""
        added = sql.execute(
            "INSERT INTO sittings (began, process, host, version) VALUES (?, ?, ?, ?)",
            (now, os.getpid(), socket.gethostname(), __version__),
        )
        told = (_login(), _folder(), self._caller.command, self._caller.note)
        sql.execute(
            "INSERT INTO commands VALUES (?, ?, ?, ?, ?, NULL)",
            (added.lastrowid, *(_text(text, LONGEST_COMMAND) for text in told)),
        )
        (self._ids_before,) = sql.execute("SELECT ids FROM input").fetchone()
        path = self._input_info.path.encode(errors="replace").decode()
        sheet, about, by = self._input_info.sheet, self._input_info.about, self._input_info.by
        # An input of another length, or of an unknown one, may have grown: until it is read to its
        # end, nobody knows its ids.
        sql.execute(
            "UPDATE input SET path = ?, sheet = ?, named_by = ?, about = ?,"
            " ids = iif(about = ?, ids, NULL)",
            (path, None if sheet is None else _text(sheet), by, about, about),
        )
        return added.lastrowid

    def write(
        self,
        rows: Rows,
        now: int,
        *first: tuple[str, Sequence[object]],
        before: Sequence[StateBefore] = (),
        state: InputState | None = None,
        sample: Sample | None = None,
    ) -> None:
        """Run the statements of `first`, and write the rest, in one transaction.

        `before` has users, and whether they were disabled, as far as is known.
        """
        sql = self.connection(now)
        with _transaction(sql):
            for text, bound in first:
                sql.execute(text, bound)
            sql.executemany(_BEFORE, [(*state, self._run_id) for state in before])
            if self.reached and (again := rows.tried_again(self.reached)):
                sql.execute(_KEEP_EARLIER, (_json.encode(again),))
            self._found_disabled.update(position for position, _, disabled in before if disabled)
            if failed := rows.failed():
                looked = [position for position in failed if position in self._found_disabled]
                told = _json.encode(failed), _json.encode(looked)
                sql.execute(_FAILED_IN, (self._run_id, *told, self._run_id))
            if self._found_disabled:
                self._found_disabled -= rows.positions()
            forms = _DONE.format(done=self._operation.done), _OTHER
            for values, form in zip(rows, forms, strict=True):
                start = 0
                for size, statement in _upserts(form):
                    while len(values) - start >= size:
                        sql.execute(statement, values[start : start + size])
                        start += size
            if state is not None:
                self._save(sql, state)
            if sample is not None:
                self._add(sql, sample, now)

    def add_sample(
        self,
        sample: Sample,
        now: int,
        how: str | None = None,
        state: InputState | None = None,
        signal: str | None = None,
        *,
        knows_all: bool = True,
    ) -> None:
        """Commit the counts of this moment; with `how`, also that the run ended, and how.

        `signal` is the name of the signal that ended it, if any; `knows_all` tells whether each
        request of the run is recorded.
        """
        sql = self.connection(now)
        with _transaction(sql):
            self._add(sql, sample, now)
            if state is not None:
                self._save(sql, state)
            if how is not None:
                sql.execute(
                    "UPDATE sittings SET ended = ?, how = ? WHERE sitting = ?",
                    (now if knows_all else None, _text(how), self._run_id),
                )
                sql.execute(
                    "UPDATE commands SET signal = ? WHERE sitting = ?", (signal, self._run_id)
                )

    def _add(self, sql: sqlite3.Connection, sample: Sample, now: int) -> None:
        sql.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", (self._run_id, now, *sample)
        )

    def _save(self, sql: sqlite3.Connection, state: InputState) -> None:
        ids, at_least, bad_lines, numbered = state
        sql.executemany(
            "INSERT OR REPLACE INTO bad_lines VALUES (?, ?, ?)",
            [(number, self._run_id, _text(problem)) for number, problem in numbered],
        )
        if ids is None:  # an earlier run may have read further, or a shorter input
            sql.execute(
                "UPDATE input SET ids = iif(ids < ?, NULL, ids), at_least = max(at_least, ?),"
                " bad_lines = max(bad_lines, ?)",
                (at_least, at_least, bad_lines),
            )
        else:
            sql.execute(
                "UPDATE input SET ids = ?, at_least = ?, bad_lines = ?", (ids, at_least, bad_lines)
            )

    def restore_length(self, now: int) -> None:
        """Keep what the last run knew of the input, because this one was of another input."""
        self.connection(now).execute("UPDATE input SET ids = ?", (self._ids_before,))

    def forget_mended_lines(self, now: int) -> None:
        """Remove the bad lines of earlier runs, after this one has read the whole input."""
        sql = self.connection(now)
        sql.execute("DELETE FROM bad_lines WHERE sitting <> ?", (self._run_id,))

    def close(self) -> None:
        """Close the file, and remove it if nothing was written."""
        if self._sql is not None:
            self._sql.close()
        elif not self._path.lstat().st_size:
            self._path.unlink()


@contextmanager
def _transaction(sql: sqlite3.Connection) -> Iterator[None]:
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


def _connect(path: Path) -> sqlite3.Connection:
    sql = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    sql.execute("PRAGMA trusted_schema = OFF")
    sql.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_PAGE)
    return sql


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


def _login() -> str:
    """Return the name of the user whose rights this process has, and who became that user."""
    name = owner(os.geteuid()) if hasattr(os, "geteuid") else os.environ.get("USERNAME", "")
    before = os.environ.get("SUDO_USER")
    return f"{name}, by {before}" if before else name


def _folder() -> str:
    with suppress(OSError):  # it was removed
        return str(Path.cwd())
    return ""


def _text(text: str, longest: int = 500) -> str:
    return clean(text, longest).encode(errors="replace").decode()
