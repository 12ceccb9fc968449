"""The tables of a journal file, and how a journal is recognized."""

import sqlite3
from pathlib import Path
from typing import Final

from monocloud_async.errors import ConfigurationError

FORMAT: Final = 2
SMALLEST: Final = 512  # bytes of a page
APPLICATION: Final = 0x4D4F4E43  # "MONC": marks the file as a journal, also for SQLite's tools
MAGIC: Final = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html, section 1.3

# `how` the sitting of a coordinator ended whose run another one can go on with.
COORDINATOR_ENDED: Final = "coordinator ended"

USER_COLUMNS: Final = (
    "position", "user_id", "outcome", "status", "attempts",
    "ms", "at", "error", "title", "trace_id",
)  # fmt: skip

# Durations are milliseconds; times are milliseconds since 1970. A sitting is one run of the
# command; its `ended` is NULL while it runs, and stays NULL if it was killed, or if the journal
# could not be written: requests may have been sent that it does not know. Of a fleet, it is one
# coordinator. A sample has the counts of its sitting so far, once a second.
_FIRST: Final = {
    "header": """CREATE TABLE header (
    tenant TEXT, endpoint TEXT, created INTEGER, input TEXT, form TEXT, input_column TEXT)""",
    "users": """CREATE TABLE users (
    position INTEGER PRIMARY KEY, user_id TEXT, outcome TEXT, status INTEGER, attempts INTEGER,
    ms INTEGER, at INTEGER, error TEXT, title TEXT, trace_id TEXT)""",
    "sittings": """CREATE TABLE sittings (
    sitting INTEGER PRIMARY KEY, began INTEGER, ended INTEGER, how TEXT, process INTEGER,
    host TEXT, version TEXT)""",
    "samples": """CREATE TABLE samples (
    sitting INTEGER, at INTEGER, requests INTEGER, retries INTEGER, throttled INTEGER,
    paused INTEGER, down INTEGER)""",
}
# Since format 2. `input` has one row: `ids` is NULL until the input was read to its end; the input
# has `at_least` so many, and about `about`; `named_by` is "id" or "email". `commands` tells who ran
# each sitting, and which signal ended it. `bad_lines` has the lines without a valid id, and
# `earlier` the failures that a later sitting tried again. `before` has whether users were disabled
# before the first request that may have been carried out, as far as a run looked, and is written
# before that request.
_SECOND: Final = {
    "input": """CREATE TABLE input (
    path TEXT, sheet TEXT, named_by TEXT, ids INTEGER, at_least INTEGER, about INTEGER,
    bad_lines INTEGER)""",
    "commands": """CREATE TABLE commands (
    sitting INTEGER PRIMARY KEY, login TEXT, folder TEXT, command TEXT, note TEXT,
    signal TEXT)""",
    "bad_lines": """CREATE TABLE bad_lines (
    line INTEGER PRIMARY KEY, sitting INTEGER, problem TEXT)""",
    "earlier": """CREATE TABLE earlier (
    position INTEGER, user_id TEXT, outcome TEXT, status INTEGER, attempts INTEGER,
    ms INTEGER, at INTEGER, error TEXT, title TEXT, trace_id TEXT)""",
    "before": """CREATE TABLE before (
    position INTEGER PRIMARY KEY, user_id TEXT, disabled INTEGER)""",
}
# The last sitting that is known to have left a user of `before` as it was: the user failed in it,
# and it had looked the user up, or no sitting was killed since the one here. Unlike the order of
# times, that of the sittings does not depend on a clock. Earlier versions of this format do not
# write it. While the sitting is unknown, each killed one may have come after it.
_FAILED_IN: Final = "CREATE TABLE failed_in (position INTEGER PRIMARY KEY, sitting INTEGER)"
_TABLES: Final = {1: _FIRST, 2: _FIRST | _SECOND}


def check(sql: sqlite3.Connection, path: Path) -> int | None:
    """Return the format of the journal, or None if a kill came before its first transaction.

    The file may come from anybody, so nothing in it is queried before this check: in the place of a
    table there could be a view without end, or a trigger.

    Raises:
        ConfigurationError: the file is not a journal, or has a newer format.
    """
    sql.execute("PRAGMA trusted_schema = OFF")
    (application,) = sql.execute("PRAGMA application_id").fetchone()
    (form,) = sql.execute("PRAGMA user_version").fetchone()
    (entries,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not application and not entries:
        return None
    if application != APPLICATION:
        raise no_journal(path)
    if form > FORMAT:
        raise ConfigurationError(
            f"the journal {path} was made by a newer version (format {form}, this one reads"
            f" {FORMAT}); upgrade monocloud-async, or start a new journal"
        )
    found: dict[str, str] = {}
    for kind, name, text in sql.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind not in {"table", "index"} or str(text).upper().startswith("CREATE VIRTUAL"):
            raise no_journal(path)
        found[name] = text
    if any(found.get(name) != text for name, text in _TABLES.get(form, {"": ""}).items()):
        raise no_journal(path)
    if found.get("failed_in", _FAILED_IN) != _FAILED_IN:
        raise no_journal(path)
    return int(form)


def no_journal(path: Path) -> ConfigurationError:
    """Return the error for a file that is something else."""
    return ConfigurationError(f"{path} is not a journal of this program; name another file")


def create(path: Path, header: tuple[object, ...]) -> sqlite3.Connection:
    """Create a journal with this header in one transaction, and return a connection to it."""
    sql = sqlite3.connect(path, isolation_level=None)
    try:
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("BEGIN IMMEDIATE")
        sql.execute(f"PRAGMA application_id = {APPLICATION}")
        _add_tables(sql, 0)
        sql.execute("INSERT INTO header VALUES (?, ?, ?, ?, ?, ?)", header)
        sql.execute("COMMIT")
    except BaseException:
        sql.close()
        raise
    return sql


def upgrade(sql: sqlite3.Connection, form: int) -> None:
    """Give a journal of this format the tables of the current one."""
    if form < FORMAT:
        sql.execute("BEGIN IMMEDIATE")
        _add_tables(sql, form)
        sql.execute("COMMIT")
    sql.execute(_FAILED_IN.replace("TABLE", "TABLE IF NOT EXISTS"))


def _add_tables(sql: sqlite3.Connection, form: int) -> None:
    for name, text in _TABLES[FORMAT].items():
        if name not in _TABLES.get(form, {}):
            sql.execute(text)
    sql.execute("INSERT INTO input (at_least, bad_lines) VALUES (0, 0)")
    sql.execute(f"PRAGMA user_version = {FORMAT}")
