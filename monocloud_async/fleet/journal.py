"""A fleet's journal: the same file as a single machine's, with the chunks that it has whole.

Synchronous and for one thread. Each chunk is one transaction: its users, and the fact that it is
there. So a result that comes twice is written once, and what no chunk covers is not done.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import json, structs

from monocloud_async.endpoint import ENABLE
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.id_file import IdFile
from monocloud_async.fleet.messages import Chunk, ChunkResult, Counts, Left, Span
from monocloud_async.journal import store
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.store import JournalStore, Rows
from monocloud_async.sanitize import clean

# `position` is the first id's in the input; `size` and `mark` tell which file it was.
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS fleet (size INTEGER, mark TEXT)",
    """CREATE TABLE IF NOT EXISTS chunks (
        start INTEGER PRIMARY KEY, until INTEGER, position INTEGER, ids INTEGER, bad_lines INTEGER
    )""",
    "CREATE TABLE IF NOT EXISTS begun (start INTEGER PRIMARY KEY, until INTEGER, result BLOB)",
)


class FleetJournal:
    """The file, while a coordinator has it.

    Args:
        path: made with mode 0600 if it is not there; it needs a local disk.
        tenant: whose users they are.
        source: the ids.
    """

    def __init__(self, path: str, tenant: str, source: IdFile) -> None:
        self.path = Path(path).absolute()
        self._source = source
        self._lock = Lock(self.path.with_name(f"{self.path.name}-lock"), f"the journal {path}")
        input_info = store.InputInfo(source.where, source.form, source.column)
        self._store = JournalStore(self.path, tenant, ENABLE, input_info)
        self._counts = Counts()  # of this run
        self._paused = 0.0

    def open(self, now: int) -> None:
        """Begin a run: until `close`, the file is nobody else's.

        Raises:
            ConfigurationError: somebody is at it, or it is of another tenant or another file.
            OSError, sqlite3.Error: it cannot be written.
        """
        self._lock.take()
        try:
            self._store.open()
            self._begin(now)
        except BaseException:
            self._store.close()
            self._lock.release()
            raise

    def _begin(self, now: int) -> None:
        sql, source = self._store.connection(now), self._source
        for table in _TABLES:
            sql.execute(table)
        here = (source.size, source.mark)
        there = sql.execute("SELECT size, mark FROM fleet").fetchone()
        if there is None:
            if self._store.reached:
                raise ConfigurationError(
                    f"the journal {self.path} is of a run on one machine: go on with"
                    " `monocloud-async bulk`, or name another journal"
                )
            sql.execute("INSERT INTO fleet VALUES (?, ?)", here)
        elif there != here:
            raise ConfigurationError(
                f"the journal {self.path} was begun with another file: it had {there[0]:,} bytes"
                f" ({clean(there[1])}), {clean(source.where)} has {here[0]:,} ({clean(here[1])});"
                " restore that one, or name another journal"
            )

    def left(self, now: int) -> Left:
        """What no chunk covers, what was begun, and what became of the users who are there."""
        sql, gaps, reached = self._store.connection(now), list[Span](), self._source.begin
        for start, until in sql.execute(
            "SELECT start, until FROM chunks UNION SELECT start, until FROM begun ORDER BY start"
        ):
            if start > reached:
                gaps.append(Span(reached, start))
            reached = max(reached, until)
        if reached < self._source.size:
            gaps.append(Span(reached, self._source.size))
        enabled, failed, unknown = sql.execute(
            "SELECT count(*) FILTER (WHERE outcome = 'enabled'),"
            " count(*) FILTER (WHERE outcome = 'failed'),"
            " count(*) FILTER (WHERE outcome = 'unknown') FROM users"
        ).fetchone()
        (bad_lines,) = sql.execute("SELECT ifnull(sum(bad_lines), 0) FROM chunks").fetchone()
        unfinished = [
            Chunk(span=Span(start, until), so_far=json.decode(result, type=ChunkResult))
            for start, until, result in sql.execute("SELECT start, until, result FROM begun")
        ]
        return Left(
            gaps=gaps,
            unfinished=unfinished,
            enabled=enabled,
            failed=failed,
            unknown=unknown,
            bad_lines=bad_lines,
        )

    def before(self, span: Span, now: int) -> tuple[int, int]:
        """Where the last chunk before this span ends, and how many ids there are up to there."""
        found = self._store.connection(now).execute(
            "SELECT until, position + ids FROM chunks WHERE until <= ? ORDER BY start DESC LIMIT 1",
            (span.start,),
        )
        until, position = found.fetchone() or (self._source.begin, 0)
        return until, position

    def write(
        self, span: Span, result: ChunkResult, position: int, user_ids: Sequence[str], now: int
    ) -> Rows:
        """Commit a chunk with its users, once; a partial one is known as begun until it is whole.

        Args:
            span: the chunk.
            result: what became of it.
            position: the first of its ids, in the input.
            user_ids: all of them.
            now: milliseconds since 1970.

        Returns:
            What was committed, now or earlier.
        """
        rows = result.rows.moved(position, user_ids)
        sql = self._store.connection(now)
        if sql.execute("SELECT 1 FROM chunks WHERE start = ?", (span.start,)).fetchone():
            return rows
        chunk = (span.start, span.end, position, len(user_ids), result.bad_lines)
        # The requests of the next run are its own.
        kept = structs.replace(result, requests=0, retries=0, throttled=0, paused=0.0)
        unfinished = (span.start, span.end, json.encode(kept))
        self._store.write(
            rows,
            now,
            # The result has those of them who were done when the chunk was handed back.
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
        """Let go of the file; with `how` the run is over."""
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
