"""The journal of a fleet: a single machine's journal, with a table of completed chunks.

Synchronous, and for one thread. One transaction writes the users of a chunk and marks it as
completed. So a result that arrives twice is written once, and all other ids are not done.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

from msgspec import json, structs

from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.id_file import IdFile
from monocloud_async.fleet.messages import Chunk, ChunkResult, Counts, Left, Span
from monocloud_async.journal import store
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import check_files, lock_path, real_path
from monocloud_async.journal.store import JournalStore, Rows
from monocloud_async.sanitize import clean

# `position` is that of the chunk's first id in the input; `size` and `mark` identify the file.
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS fleet (size INTEGER, mark TEXT)",
    """CREATE TABLE IF NOT EXISTS chunks (
        start INTEGER PRIMARY KEY, until INTEGER, position INTEGER, ids INTEGER, bad_lines INTEGER
    )""",
    "CREATE TABLE IF NOT EXISTS begun (start INTEGER PRIMARY KEY, until INTEGER, result BLOB)",
)


class FleetJournal:
    """The journal while a coordinator has it open.

    Args:
        path: created with mode 0600 if it does not exist; must be on a local disk.
        tenant: the tenant of the users.
        operation: the operation of the run.
        source: the file of ids.
    """

    def __init__(self, path: Path, tenant: str, operation: BulkOperation, source: IdFile) -> None:
        self.path = real_path(path)
        self._operation = operation
        self._source = source
        self._lock = Lock(lock_path(self.path), f"the journal {path}")
        input_info = store.InputInfo(source.where, source.form, source.column)
        self._store = JournalStore(self.path, tenant, operation, input_info)
        self._counts = Counts()  # of this run alone
        self._paused = 0.0

    def open(self, now: int) -> None:
        """Begin a run, and lock the journal until `close`.

        Raises:
            ConfigurationError: the journal is in use, or belongs to another tenant or file.
            OSError, sqlite3.Error: the journal cannot be written.
        """
        check_files(self.path)
        self._lock.take()
        try:
            self._store.open()
            self._begin(now, is_new=self._check())
        except BaseException:
            self._store.close()
            self._lock.release()
            raise

    def _check(self) -> bool:
        """Return whether the journal is new; writes nothing, so a refused one stays as it is."""
        sql, source = self._store.opened, self._source
        if sql is None:
            return True
        tables = "SELECT 1 FROM sqlite_master WHERE name = 'fleet'"
        if not sql.execute(tables).fetchone():
            if self._store.reached:
                raise ConfigurationError(
                    f"the journal {self.path} is of a run on one machine: resume it with"
                    " `monocloud-async bulk`, or name another journal"
                )
            return True  # a kill came in the middle of `_begin`
        here = (source.size, source.mark)
        there = sql.execute("SELECT size, mark FROM fleet").fetchone()
        if there not in {None, here}:
            raise ConfigurationError(
                f"the journal {self.path} was started with another file: it had {there[0]:,} bytes"
                f" ({clean(there[1])}), {clean(source.where)} has {here[0]:,} ({clean(here[1])});"
                " restore that file, or name another journal"
            )
        return there is None

    def _begin(self, now: int, *, is_new: bool) -> None:
        sql = self._store.connection(now)
        for table in _TABLES:
            sql.execute(table)
        if is_new:
            sql.execute("INSERT INTO fleet VALUES (?, ?)", (self._source.size, self._source.mark))

    def left(self, now: int) -> Left:
        """Return the work that is left, and the counts of the recorded users."""
        sql, gaps, reached = self._store.connection(now), list[Span](), self._source.begin
        for start, until in sql.execute(
            "SELECT start, until FROM chunks UNION SELECT start, until FROM begun ORDER BY start"
        ):
            if start > reached:
                gaps.append(Span(reached, start))
            reached = max(reached, until)
        if reached < self._source.size:
            gaps.append(Span(reached, self._source.size))
        users = dict(sql.execute("SELECT outcome, count(*) FROM users GROUP BY outcome"))
        (bad_lines,) = sql.execute("SELECT ifnull(sum(bad_lines), 0) FROM chunks").fetchone()
        unfinished = [
            Chunk(span=Span(start, until), so_far=json.decode(result, type=ChunkResult))
            for start, until, result in sql.execute("SELECT start, until, result FROM begun")
        ]
        return Left(
            gaps=gaps,
            unfinished=unfinished,
            users_done=users.get(self._operation.done, 0),
            failed=users.get("failed", 0),
            unknown=users.get("unknown", 0),
            bad_lines=bad_lines,
        )

    def before(self, span: Span, now: int) -> tuple[int, int]:
        """Return where the last chunk before this span ends, and how many ids come before that."""
        found = self._store.connection(now).execute(
            "SELECT until, position + ids FROM chunks WHERE until <= ? ORDER BY start DESC LIMIT 1",
            (span.start,),
        )
        until, position = found.fetchone() or (self._source.begin, 0)
        return until, position

    def write(
        self, span: Span, result: ChunkResult, position: int, user_ids: Sequence[str], now: int
    ) -> Rows:
        """Commit a chunk with its users, once; a partial result is kept as begun.

        Args:
            span: the span of the chunk.
            result: the result of the chunk.
            position: the position of its first id in the input.
            user_ids: all ids of the chunk.
            now: milliseconds since 1970.

        Returns:
            The rows that were committed, now or earlier.
        """
        rows = result.rows.moved(position, user_ids)
        sql = self._store.connection(now)
        if sql.execute("SELECT 1 FROM chunks WHERE start = ?", (span.start,)).fetchone():
            return rows
        chunk = (span.start, span.end, position, len(user_ids), result.bad_lines)
        # The next run counts its own requests only.
        kept = structs.replace(result, requests=0, retries=0, throttled=0, paused=0.0)
        unfinished = (span.start, span.end, json.encode(kept))
        self._store.write(
            rows,
            now,
            # The result includes the users who were done when the chunk was handed back.
            (
                "DELETE FROM users WHERE position >= ? AND position < ?",
                (position, position + len(user_ids)),
            ),
            ("DELETE FROM begun WHERE start = ?", (span.start,)),
            ("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", chunk)
            if result.done
            else ("INSERT INTO begun VALUES (?, ?, ?)", unfinished),
        )
        counts = self._counts
        counts.requests += result.requests
        counts.retries += result.retries
        counts.throttled += result.throttled
        self._paused += result.paused
        self._sample(now)
        return rows

    def close(self, now: int, how: str | None = None) -> None:
        """Close the journal; with `how`, record that the run has ended, and how."""
        try:
            if how is not None:
                self._sample(now, how)
            self._store.close()
        finally:
            self._lock.release()

    def _sample(self, now: int, how: str | None = None) -> None:
        counts = self._counts
        paused = round(1000 * self._paused)
        sample = store.Sample(counts.requests, counts.retries, counts.throttled, paused, False)  # noqa: FBT003
        self._store.add_sample(sample, now, how)


def journal_name(name: str) -> str:
    """Return the name of a journal; raises `ConfigurationError` for a path or a hidden file."""
    if not name or PurePath(name).name != name or name.startswith("."):
        raise ConfigurationError(
            f"{clean(name)!r} is not the name of a journal: it must be a name without a folder, and"
            " without a dot in front; the coordinator writes it to the folder that it was started"
            " in"
        )
    return name
