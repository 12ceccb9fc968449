"""Reads from a journal who was in which state before the run, and what its outcome was."""

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from monocloud_async.endpoint import BULK_OPERATIONS, BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.schema import MAGIC
from monocloud_async.journal.snapshot import reading
from monocloud_async.sanitize import clean

# Whoever was disabled before, and is enabled now or may be: a request may have been sent before a
# kill, without a record. Such a user may be found to be enabled by the next run.
_UNDOABLE: Final = """
FROM before LEFT JOIN users USING (position) WHERE before.disabled = 1
AND ifnull(users.outcome, 'unknown') IN ('enabled', 'already_enabled', 'unknown')
"""


class Record(NamedTuple):
    """The id of a user and the recorded outcome."""

    user_id: str
    outcome: str


class JournalHead(NamedTuple):
    """Which run a journal is of."""

    tenant: str
    operation: BulkOperation


def is_journal(path: Path) -> bool:
    """Return whether the file is a database, and so no list of ids."""
    try:
        if not path.is_file():
            return False  # what is read from a pipe is gone
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_head(path: Path) -> JournalHead:
    """Return which run the journal is of; raises `ConfigurationError` if it is no journal."""
    with reading(path) as (sql, _):
        tenant, endpoint = sql.execute("SELECT tenant, endpoint FROM header").fetchone()
    for operation in BULK_OPERATIONS.values():
        if operation.endpoint == endpoint:
            return JournalHead(tenant, operation)
    raise ConfigurationError(f"the journal {path} is of {clean(endpoint)}, which is unknown")


@contextmanager
def recorded(path: Path) -> Iterator[tuple[int, Iterator[Record]]]:
    """Yield how many users the journal has, and these, in the order of the input.

    This is the journal as it is now: what a run writes meanwhile is not in it.
    """
    # A copy of them, because a run that begins meanwhile would change the file under a reader.
    with closing(sqlite3.connect("", isolation_level=None)) as copy:  # on disk, without a name
        copy.execute("CREATE TABLE users (user_id TEXT, outcome TEXT)")
        with reading(path, checked={"users"}) as (sql, _):
            rows = sql.execute("SELECT user_id, outcome FROM users ORDER BY position")
            copy.execute("BEGIN")
            copy.executemany("INSERT INTO users VALUES (?, ?)", rows)
            copy.execute("COMMIT")
        (count,) = copy.execute("SELECT count(*) FROM users").fetchone()
        found = copy.execute("SELECT user_id, outcome FROM users ORDER BY rowid")
        yield count, (Record(*row) for row in found)


def left(path: Path, user_ids: Iterable[str], operation: BulkOperation) -> Generator[str]:
    """Yield those of the ids of the input for whom the operation is not done by the journal."""
    with reading(path, checked=()) as (sql, _):
        text = "SELECT position FROM users WHERE outcome IN (?, ?) ORDER BY position"
        rows = sql.execute(text, (operation.done, operation.done_before))
        done = next(rows, None)
        for position, user_id in enumerate(user_ids):
            if done == (position,):
                done = next(rows, None)
            else:
                yield user_id


def count_undoable(path: Path) -> tuple[int, int]:
    """Return how many users an undo disables, and of how many nobody knows what was before."""
    with reading(path, checked={"header"}) as (sql, form):
        if form == 1:  # which had no table `before`
            (unknown,) = sql.execute(
                "SELECT count(*) FROM users WHERE outcome = 'enabled'"
            ).fetchone()
            return 0, unknown
        (count,) = sql.execute(f"SELECT count(*) {_UNDOABLE}").fetchone()
        (unknown,) = sql.execute(
            "SELECT count(*) FROM users WHERE outcome = 'enabled' AND position NOT IN"
            " (SELECT position FROM before WHERE disabled IS NOT NULL)"
        ).fetchone()
        return count, unknown


def undoable(path: Path) -> Iterator[str]:
    """Yield the users who were disabled before the run, and whom it enabled or may have enabled.

    Whom a later run has enabled comes after all whom an undo before it has disabled.
    """
    with reading(path, checked={"before"}) as (sql, _):
        text = f"SELECT before.user_id {_UNDOABLE} ORDER BY users.at, before.position"
        for (user_id,) in sql.execute(text):
            yield user_id
