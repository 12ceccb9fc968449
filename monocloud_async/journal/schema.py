"""The tables of a journal file, and how a journal is recognized."""

import sqlite3
from pathlib import Path
from typing import Final

from monocloud_async.errors import ConfigurationError

FORMAT: Final = 1
_APPLICATION: Final = 0x4D4F4E43  # "MONC": marks the file as a journal, also for SQLite's tools
_MAGIC: Final = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html, section 1.3
_SMALLEST: Final = 512  # bytes of a page

USER_COLUMNS: Final = (
    "position", "user_id", "outcome", "status", "attempts",
    "ms", "at", "error", "title", "trace_id",
)  # fmt: skip

# Durations are milliseconds; times are milliseconds since 1970. A sitting is one run of the
# command; its `ended` is NULL while it runs, and stays NULL if it was killed. A sample has the
# counts of its sitting so far, once a second.
_TABLES: Final = """
CREATE TABLE header (
    tenant TEXT, endpoint TEXT, created INTEGER, input TEXT, form TEXT, input_column TEXT);
CREATE TABLE users (
    position INTEGER PRIMARY KEY, user_id TEXT, outcome TEXT, status INTEGER, attempts INTEGER,
    ms INTEGER, at INTEGER, error TEXT, title TEXT, trace_id TEXT);
CREATE TABLE sittings (
    sitting INTEGER PRIMARY KEY, began INTEGER, ended INTEGER, how TEXT, process INTEGER,
    host TEXT, version TEXT);
CREATE TABLE samples (
    sitting INTEGER, at INTEGER, requests INTEGER, retries INTEGER, throttled INTEGER,
    paused INTEGER, down INTEGER);
"""


def connect(path: Path) -> sqlite3.Connection | None:
    """Return a connection to a journal, or None if the file is still empty.

    Raises:
        ConfigurationError: the file is not a journal, or has a newer format.
        OSError, sqlite3.Error: the file cannot be read.
    """
    if not path.is_file() and path.exists():  # reading from a pipe could block
        raise _no_journal(path)
    with path.open("rb") as file:
        start = file.read(_SMALLEST)
    # SQLite treats a file of a few bytes, such as a list of two ids, as an empty database.
    if start and not (start.startswith(_MAGIC) and len(start) == _SMALLEST):
        raise _no_journal(path)
    sql = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        if _is_journal(sql, path):
            return sql
    except BaseException:
        sql.close()
        raise
    sql.close()
    return None


def _is_journal(sql: sqlite3.Connection, path: Path) -> bool:
    """Return whether it is a journal; False if a kill came before the first transaction."""
    (application,) = sql.execute("PRAGMA application_id").fetchone()
    (form,) = sql.execute("PRAGMA user_version").fetchone()
    (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not application and not tables:
        return False
    if application != _APPLICATION:
        raise _no_journal(path)
    if form > FORMAT:
        raise ConfigurationError(
            f"the journal {path} was made by a newer version (format {form}, this one reads"
            f" {FORMAT}); upgrade monocloud-async, or start a new journal"
        )
    return True


def _no_journal(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path} is not a journal of this program; name another file")


def create(path: Path, header: tuple[object, ...]) -> sqlite3.Connection:
    """Create a journal with this header in one transaction, and return a connection to it."""
    sql = sqlite3.connect(path, isolation_level=None)
    try:
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("BEGIN IMMEDIATE")
        sql.execute(f"PRAGMA application_id = {_APPLICATION}")
        sql.execute(f"PRAGMA user_version = {FORMAT}")
        for table in _TABLES.strip().split(";\n"):
            sql.execute(table)
        sql.execute("INSERT INTO header VALUES (?, ?, ?, ?, ?, ?)", header)
        sql.execute("COMMIT")
    except BaseException:
        sql.close()
        raise
    return sql
