"""Reads a journal that may be anybody's: writes nothing, leaves nothing behind, and trusts nothing.

A reader that opens a database in WAL mode as usual makes `-wal` and `-shm` next to it. If these
belong to another user, the owner of the journal is locked out. So each case is opened in its own
way; https://www.sqlite.org/wal.html#read_only_databases has the rules.
"""

import errno
import os
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.paths import resolved
from monocloud_async.journal.schema import MAGIC, SMALLEST, check, no_journal
from monocloud_async.outcome import DONE, DONE_BEFORE
from monocloud_async.sanitize import clean

_WAL_HEADER: Final = 32  # bytes
_LONGEST: Final = 1 << 16  # bytes of a row
_LONGEST_TEXT: Final = 4096  # characters; a run writes less, but the path of a file
_STEP: Final = 100_000  # of SQLite's virtual machine, between two calls of the handler
_STEPS: Final = 20_000_000  # with those per byte, more than any report needs
_STEPS_PER_BYTE: Final = 100
_LOCKED: Final = "another program has locked it: close that program"
_PATIENCE: Final = 1.0  # seconds in which a process that is closing the journal has closed it

# SQLite's own lock of a reader, https://www.sqlite.org/src/file?name=src/os.h
_SHARED_FIRST: Final = 0x40000002
_SHARED_SIZE: Final = 510

_END_OF_TIME: Final = 253402300799999  # milliseconds; the end of the year 9999
_MOST: Final = 1 << 48


def _no_number(*names: str, most: int = _MOST, least: int = 0, null: bool = False) -> str:
    """Return the condition that one of these is not an integer of this range, or NULL if allowed.

    The type is checked too: in a damaged file, a column has values of other types than its own.
    """
    kinds = "('integer', 'null')" if null else "('integer')"
    return " OR ".join(
        f"typeof({n}) NOT IN {kinds} OR {n} NOT BETWEEN {least} AND {most}" for n in names
    )


def _no_text(*names: str, longest: int = _LONGEST_TEXT, null: bool = True) -> str:
    """Return the condition that one of these is not a short text, or NULL if allowed."""
    kinds = "('text', 'null')" if null else "('text')"
    return " OR ".join(f"typeof({n}) NOT IN {kinds} OR length({n}) > {longest}" for n in names)


_OUTCOMES: Final = str((*DONE, *DONE_BEFORE, "failed", "unknown", "not_attempted"))
_NO_USER: Final = f"{_no_number('position')} OR {_no_text('user_id', longest=1024, null=False)}"
DAMAGED_USER: Final = (
    f"{_NO_USER} OR ifnull(outcome, '') NOT IN {_OUTCOMES}"
    f" OR {_no_number('status', least=100, most=999, null=True)} OR {_no_number('attempts')}"
    f" OR {_no_number('ms', 'at', most=_END_OF_TIME)} OR {_no_text('error', 'title', 'trace_id')}"
)
# What no run writes: it would become endless charts, or a traceback.
_DAMAGE: Final = {
    "header": f"{_no_text('tenant', 'endpoint', 'input', 'form', null=False)}"
    f" OR {_no_text('input_column')} OR {_no_number('created', most=_END_OF_TIME)}",
    "users": DAMAGED_USER,
    "sittings": f"{_no_number('began', most=_END_OF_TIME)}"
    f" OR {_no_number('ended', most=_END_OF_TIME, null=True)} OR {_no_number('process')}"
    f" OR {_no_text('host', null=False)} OR {_no_text('how')}",
    "samples": _no_number(
        *("sitting", "at", "requests", "retries", "throttled", "paused", "down"), most=_END_OF_TIME
    ),
    "input": f"{_no_text('path', 'sheet', 'named_by')} OR {_no_number('ids', 'about', null=True)}"
    f" OR {_no_number('at_least', 'bad_lines')}",
    "commands": _no_text("login", "folder", "command", "note", "signal"),
    "bad_lines": f"{_no_number('line')} OR {_no_text('problem', null=False)}",
    "earlier": DAMAGED_USER,
    "before": f"{_NO_USER} OR {_no_number('disabled', most=1, null=True)}",
    "failed_in": _no_number("position", "sitting"),
    "chunks": _no_number("bad_lines"),  # only a fleet's journal has them
}
# A reader writes nothing but temporary files.
_NO_ROOM: Final = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_GETTEMPPATH,
}  # fmt: skip
_FOLDERS: Final = ("/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108  in SQLite's order, to name one
_TIMED: Final = {"users", "samples", "earlier"}  # what a sitting writes


class DamageError(Exception):
    """The journal has a value that no run writes; `reading` turns it into a message."""


class EmptyJournalError(ConfigurationError):
    """The journal has nothing of a run."""


@contextmanager
def reading(
    path: Path, *, checked: Collection[str] | None = None
) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Yield a consistent snapshot of the journal, also while a run writes to it, and its format.

    Args:
        path: the journal; may be a link.
        checked: the tables whose values are all checked, which takes a second for a million users.
            Default: all.

    Raises:
        EmptyJournalError: it has nothing of a run.
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    try:
        with _opened(resolved(path), path) as sql:
            form = check(sql, path)
            if form is None:
                raise _still_empty(path)
            sql.execute("BEGIN")
            _check_values(sql, _DAMAGE.keys() if checked is None else checked)
            yield sql, form
    except OSError as error:
        raise ConfigurationError(f"cannot read the journal {path}: {error.strerror}") from None
    except (sqlite3.Error, DamageError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    what, code = clean(str(error)), _code(error)
    if getattr(error, "sqlite_errorcode", 0) in _NO_ROOM:
        return ConfigurationError(
            f"the temporary folder {_temporary_folder()} is full or cannot be written to, and the"
            f" journal {path} is too large to be sorted in memory; make room there, or name another"
            " folder by the variable TMPDIR"
        )
    if is_locked(error):
        advice = _LOCKED
    elif code == sqlite3.SQLITE_INTERRUPT:
        what, advice = "it has more rows than its size allows", "restore it from a backup"
    elif code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}:
        advice = "reading it takes the right to read the files next to it as well (-wal, -shm)"
    else:
        advice = "it is damaged, or was changed by hand: restore it from a backup"
    return ConfigurationError(f"cannot read the journal {path}: {what}; {advice}")


def _temporary_folder() -> str:
    """Return the folder in which SQLite has its temporary files."""
    if sys.platform == "win32":
        return tempfile.gettempdir()
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), *_FOLDERS)
    return next((name for name in named if name and os.access(name, os.W_OK | os.X_OK)), ".")


def is_locked(error: BaseException) -> bool:
    """Return whether another program has locked the database."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest has the details


def _still_empty(path: Path) -> EmptyJournalError:
    # After a full disk, and in a copy without its log, it looks the same as before the first run.
    return EmptyJournalError(
        f"the journal {path} is empty: no run has written to it, or what a run wrote is lost: on a"
        f" full disk, or in a copy without {path.name}-wal"
    )


@contextmanager
def _opened(path: Path, name: Path) -> Iterator[sqlite3.Connection]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe could block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise no_journal(name)
        start = os.read(descriptor, SMALLEST)
        if not start:
            raise _still_empty(name)
        # SQLite treats a file of a few bytes, such as a list of two ids, as an empty database.
        if not (start.startswith(MAGIC) and len(start) == SMALLEST):
            raise no_journal(name)
        if not _keep_log(descriptor):
            raise ConfigurationError(f"cannot read the journal {name}: {_LOCKED}")
        with closing(_connected(path)) as sql:
            sql.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            bound = _Bound(status.st_size + _size(_next_to(path, "-wal")))
            sql.set_progress_handler(bound, _STEP)
            try:
                yield sql
            except sqlite3.OperationalError as error:
                if _code(error) == sqlite3.SQLITE_INTERRUPT and not bound.is_reached:
                    raise KeyboardInterrupt from None  # in the handler, where SQLite swallowed it
                raise
    finally:
        os.close(descriptor)


def _connected(path: Path) -> sqlite3.Connection:
    if _size(_next_to(path, "-wal")) <= _WAL_HEADER:
        # No run is writing: everything is in the file itself, and no other file is needed.
        options = "immutable=1"
    elif sys.platform == "win32":
        options = ""
    elif _next_to(path, "-shm").exists():
        options = "readonly_shm=1"  # SQLite has its index in memory, if no run is writing
    else:
        options = "vfs=unix-none"  # copied together with the log: nobody writes to it
    uri = f"{path.as_uri()}?mode=ro&{options}"
    sql = sqlite3.connect(uri, uri=True, isolation_level=None)
    if "none" in options:
        sql.execute("PRAGMA locking_mode = EXCLUSIVE")  # so that it needs no -shm
    return sql


def _keep_log(descriptor: int) -> bool:
    """Keep the process that is writing, if any, from removing `-wal` before SQLite has opened it.

    SQLite would make an empty `-wal` then, which would belong to this user.

    Returns:
        False if a process has the journal for itself.
    """
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415  not on Windows

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            lock = fcntl.LOCK_SH | fcntl.LOCK_NB
            fcntl.lockf(descriptor, lock, _SHARED_SIZE, _SHARED_FIRST)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                return True  # this file system has no locks
            if time.monotonic() > deadline:
                return False
            time.sleep(_PATIENCE / 100)
        else:
            return True


class _Bound:
    """A handler that ends queries with more steps than a file of this size can need.

    In a damaged file, the pages of a table can lead in a circle.
    """

    def __init__(self, size: int) -> None:
        self._left = (_STEPS + _STEPS_PER_BYTE * size) // _STEP

    def __call__(self) -> bool:
        self._left -= 1
        return self.is_reached

    @property
    def is_reached(self) -> bool:
        """Whether the queries have taken that many steps."""
        return self._left < 0


def _check_values(sql: sqlite3.Connection, tables: Collection[str]) -> None:
    # An older format has fewer tables.
    found = {name for (name,) in sql.execute("SELECT name FROM sqlite_master")}
    for table in ("header", "input"):
        if table in found and sql.execute(f"SELECT count(*) FROM {table}").fetchone() != (1,):  # noqa: S608  constants
            raise DamageError(f"it has several rows in `{table}`, or none")
    if not _has_rows(sql, "sittings") and any(_has_rows(sql, table) for table in found & _TIMED):
        raise DamageError("it has no run that wrote its values")
    for table in tables:
        if table in found and _has_rows(sql, table, _DAMAGE[table]):
            raise DamageError(f"it has values in `{table}` that no run writes")


def _has_rows(sql: sqlite3.Connection, table: str, which: str = "1") -> bool:
    query = f"SELECT 1 FROM {table} WHERE {which} LIMIT 1"  # noqa: S608  constants
    return sql.execute(query).fetchone() is not None


def _next_to(path: Path, end: str) -> Path:
    return Path(f"{path}{end}")


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
