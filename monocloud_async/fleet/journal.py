"""The journal of a fleet: a single machine's journal, with a table of completed chunks.

Synchronous, and for one thread. One transaction writes the users of a chunk and marks it as
completed. So a result that arrives twice is written once, and all other ids are not done. The ids
of a chunk are kept before a worker gets it, so its results can be recorded whatever becomes of the
file.
"""

import os
import re
import socket
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from sqlite3 import Connection
from typing import Final, NamedTuple
from uuid import uuid4

from msgspec import convert, json, structs

from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.id_file import IdFile, shown, without_query
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    Counts,
    Failure,
    Remaining,
    Span,
    first_failures,
    kind,
)
from monocloud_async.journal import store
from monocloud_async.journal.lock import JournalInUseError, Lock
from monocloud_async.journal.paths import ENDS, check_files, lock_path, real_path
from monocloud_async.journal.schema import USER_COLUMNS
from monocloud_async.journal.store import JournalStore, Rows
from monocloud_async.sanitize import clean

# `position` is that of the chunk's first id in the input; `size` and `mark` identify the file.
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS fleet (size INTEGER, mark TEXT)",
    """CREATE TABLE IF NOT EXISTS chunks (
        start INTEGER PRIMARY KEY, until INTEGER, position INTEGER, ids INTEGER, bad_lines INTEGER
    )""",
    # Earlier versions kept the result of a chunk that was handed back here.
    "CREATE TABLE IF NOT EXISTS begun (start INTEGER PRIMARY KEY, until INTEGER, result BLOB)",
    "CREATE TABLE IF NOT EXISTS identity (id TEXT, digest TEXT)",
    # Chunks that workers may have, with the digest of their bytes, and their ids: compressed JSON.
    """CREATE TABLE IF NOT EXISTS handed_out (
        start INTEGER PRIMARY KEY, until INTEGER, position INTEGER, digest TEXT, bad_lines INTEGER,
        ids BLOB
    )""",
    # The last result of each unfinished chunk, by the name of the call that brought it.
    "CREATE TABLE IF NOT EXISTS last_results (start INTEGER PRIMARY KEY, call TEXT)",
)


_LONGEST_NAME: Final = 200  # bytes; most systems allow 255, and files beside it have longer ones
# Control characters, and surrogates: bytes that are not UTF-8.
_UNREADABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class OtherJournalError(ConfigurationError):
    """The journal at this place is not the run's."""


class HandedOut(NamedTuple):
    """A chunk that a worker may have.

    Attributes:
        position: the position of its first id in the input.
        digest: the digest of its bytes.
        bad_lines: how many of its lines have no id.
        ids: all its ids.
    """

    position: int
    digest: str
    bad_lines: int
    ids: list[str]


class FleetJournal:
    """The journal while a coordinator has it open.

    Args:
        path: created with mode 0600 if it does not exist; must be on a local disk.
        tenant: the tenant of the users.
        operation: the operation of the run.
        source: the file of ids.
        journal_id: the identity that the journal must have. Default: any, also that of a new one.
    """

    def __init__(
        self,
        path: Path,
        tenant: str,
        operation: BulkOperation,
        source: IdFile,
        journal_id: str | None = None,
    ) -> None:
        self.path = real_path(path)
        self._operation = operation
        self._source = source
        self._expected = journal_id
        self.identity = ""  # from `open` on
        self._file = 0, 0  # device and inode, from then on
        self._recorded = 0  # bytes of ids that are known to be in complete chunks, at least
        self._lock = Lock(lock_path(self.path), f"the journal {path}")
        input_info = store.InputInfo(without_query(source.where), source.form, source.column)
        self._store = JournalStore(self.path, tenant, operation, input_info)
        self._counts = Counts()  # of this run alone
        self._paused = 0.0  # seconds of this run
        self._paused_before: dict[int, float] = {}  # the same when a chunk began, by its start

    def open(self, now: int) -> None:
        """Begin a run, and lock the journal until `close`.

        Raises:
            OtherJournalError: the journal that a run has cannot be used here, or is another one.
            ConfigurationError: the journal is in use, or belongs to another tenant or file.
            OSError, sqlite3.Error: the journal cannot be written.
        """
        try:
            self._open(now)
        except (JournalInUseError, OtherJournalError):
            raise
        except ConfigurationError as error:
            if self._expected is None:
                raise
            raise self._other(f"it cannot be used: {error}") from None

    def _open(self, now: int) -> None:
        check_files(self.path)
        if self._expected is not None and not (self.path.exists() and self.path.stat().st_size):
            raise self._other("there is no journal")
        self._lock.take()
        try:
            self._store.open()
            self._check()
            self._begin(now)
        except BaseException:
            self._store.close()
            self._lock.release()
            raise

    def check(self) -> str:
        """Return what the journal has, without a run of it; raises as `open`."""
        check_files(self.path)
        if not (self.path.exists() and self.path.stat().st_size):
            return f"journal {self.path.name}, a new one"
        self._lock.take()
        try:
            self._store.open()
            self._check()
            return f"journal {self.path.name}, with {self._store.reached:,} users"
        finally:
            self._store.close()
            self._lock.release()

    def _other(self, what: str) -> OtherJournalError:
        return OtherJournalError(
            f"the coordinator {os.getpid()}@{socket.gethostname()} does not have the journal of"
            f" this run: at {self.path}, {what}; mend that, end that coordinator, or start it again"
            " in the folder that has the journal, and then resume the run"
        )

    def _check(self) -> None:
        """Check whose journal it is; writes nothing, so a refused one stays as it is."""
        sql, source = self._store.opened, self._source
        identity, digest = _identity(sql)
        if self._expected is not None and identity != self._expected:
            raise self._other("there is the journal of another run")
        if sql is None:
            return
        if not _has(sql, "fleet"):
            if self._store.reached:
                raise ConfigurationError(
                    f"the journal {self.path} is of a run on one machine: resume it with"
                    " `monocloud-async bulk`, or name another journal"
                )
            return  # a kill came in the middle of `_begin`
        there = sql.execute("SELECT size, mark FROM fleet").fetchone()
        if there is None:
            return
        if digest and source.digest:
            same = digest == source.digest
        else:  # one of them is of an earlier version, which relied on the date
            same = there == (source.size, source.mark)
        if not same:
            raise ConfigurationError(
                f"the journal {self.path} was started with another file: it had {there[0]:,} bytes"
                f" ({clean(there[1])}), {shown(source.where)} has {source.size:,}"
                f" ({clean(source.mark)}); restore that file, or name another journal"
            )

    def _begin(self, now: int) -> None:
        sql, source = self._store.connection(now), self._source
        for table in _TABLES:
            sql.execute(table)
        sql.execute(
            "INSERT INTO fleet SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM fleet)",
            (source.size, source.mark),
        )
        sql.execute(
            "INSERT INTO identity SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM identity)",
            (uuid4().hex, source.digest),
        )
        self.identity, _ = _identity(sql)
        status = self.path.stat()
        self._file = status.st_dev, status.st_ino

    def look(self, recorded: int, now: int) -> None:
        """Raise `OtherJournalError` if the file was moved, or is an older copy of the journal.

        Args:
            recorded: bytes of ids that must be recorded.
            now: milliseconds since 1970.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise self._other("the journal was moved or deleted under it") from None
        if (status.st_dev, status.st_ino) != self._file:
            raise self._other("there is another file, under the open journal")
        if self._recorded < recorded:  # not what this process has written
            (self._recorded,) = (
                self._store.connection(now)
                .execute("SELECT ifnull(sum(until - start), 0) FROM chunks")
                .fetchone()
            )
        if self._recorded < recorded:
            raise self._other(
                f"there is an older copy of it, with {self._recorded:,} of {recorded:,} bytes of"
                " ids; if that is all that is left, cancel the run, and start it again"
            )

    def left(self, now: int) -> Remaining:
        """Return the work that is left, and the counts of the recorded users."""
        sql, gaps, reached = self._store.connection(now), list[Span](), self._source.begin
        for start, until in sql.execute(
            "SELECT start, until FROM chunks UNION SELECT start, until FROM begun"
            " UNION SELECT start, until FROM handed_out ORDER BY start"
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
        handed_out = sql.execute("SELECT start, until FROM handed_out ORDER BY start")
        unfinished += [Chunk(span=Span(*span)) for span in handed_out]
        kinds = sql.execute(
            "SELECT outcome, status, error, count(*) FROM users"
            " WHERE outcome IN ('failed', 'unknown') GROUP BY 1, 2, 3"
        )
        return Remaining(
            gaps=gaps,
            unfinished=unfinished,
            users_done=users.get(self._operation.done, 0),
            failed=users.get("failed", 0),
            unknown=users.get("unknown", 0),
            bad_lines=bad_lines,
            kinds={kind(*what): count for *what, count in kinds},
            journal_id=self.identity,
        )

    def chunk(self, span: Span, now: int) -> Chunk | None:
        """Return a chunk that was handed out before, with the users who are recorded, or None."""
        found = self._handed_out(span, now)
        if found is None:
            return None
        self._paused_before[span.start] = self._paused
        rows = Rows([], [])  # a worker needs only the positions
        for position in sorted(self._known(found, now)):
            rows.done.extend((position - found.position, "", 0, 0, 0))
        return Chunk(span=span, so_far=ChunkResult(rows=rows, digest=found.digest))

    def hand_out(self, span: Span, chunk: HandedOut, now: int) -> None:
        """Keep the ids of a chunk, before a worker gets it."""
        position, digest, bad_lines, ids = chunk
        kept = zlib.compress(json.encode(ids), 1)
        self._store.write(
            Rows([], []),
            now,
            ("DELETE FROM begun WHERE start = ?", (span.start,)),
            (
                "INSERT OR IGNORE INTO handed_out VALUES (?, ?, ?, ?, ?, ?)",
                (span.start, span.end, position, digest, bad_lines, kept),
            ),
        )

    def record(self, span: Span, result: ChunkResult, call: str, now: int) -> list[Failure]:
        """Commit the result of a chunk that was handed out, and return its first failures.

        Args:
            span: the span of the chunk.
            result: the result of the chunk.
            call: the name of the call that brings the result: one that comes again is known by it,
                and changes nothing.
            now: milliseconds since 1970.
        """
        found = self._handed_out(span, now)
        if found is None:  # the chunk is complete, and this result arrives again
            found = self._completed(span, now)
            return first_failures(_failures(result.rows.moved(found.position, found.ids)))
        rows = result.rows.moved(found.position, found.ids)
        chunk = (span.start, span.end, found.position, len(found.ids), found.bad_lines)
        ending = (
            ("DELETE FROM handed_out WHERE start = ?", (span.start,)),
            ("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", chunk),
        )
        new = rows.without(self._known(found, now))
        if self._commit(span, result, new, call, now, *(ending if result.done else ())):
            self._recorded += (span.end - span.start) * result.done
        return first_failures(_failures(rows))

    def _completed(self, span: Span, now: int) -> HandedOut:
        sql = self._store.connection(now)
        found = sql.execute(
            "SELECT position, ids, bad_lines FROM chunks WHERE start = ?", (span.start,)
        ).fetchone()
        if found is None:
            raise self._other("there is a copy of it that does not know this chunk")
        position, count, bad_lines = found
        ids = sql.execute(
            "SELECT user_id FROM users WHERE position >= ? AND position < ? ORDER BY position",
            (position, position + count),
        )
        return HandedOut(position, "", bad_lines, [user_id for (user_id,) in ids])

    def _handed_out(self, span: Span, now: int) -> HandedOut | None:
        found = (
            self._store.connection(now)
            .execute(
                "SELECT position, digest, bad_lines, ids FROM handed_out WHERE start = ?",
                (span.start,),
            )
            .fetchone()
        )
        if found is None:
            return None
        position, digest, bad_lines, ids = found
        kept = json.decode(zlib.decompress(ids), type=list[str])
        return HandedOut(position, digest, bad_lines, kept)

    def _known(self, chunk: HandedOut, now: int) -> set[int]:
        """Return the positions of the users of this chunk who are recorded."""
        found = self._store.connection(now).execute(
            "SELECT position FROM users WHERE position >= ? AND position < ?",
            (chunk.position, chunk.position + len(chunk.ids)),
        )
        return {position for (position,) in found}

    def before(self, span: Span, now: int) -> tuple[int, int]:
        """Return where the last chunk before this span ends, and how many ids come before that."""
        sql, ends = self._store.connection(now), [(self._source.begin, 0)]
        ends += sql.execute(
            "SELECT until, position + ids FROM chunks WHERE until <= ? ORDER BY start DESC LIMIT 1",
            (span.start,),
        )
        for start, until in sql.execute(
            "SELECT start, until FROM handed_out WHERE until <= ? ORDER BY start DESC LIMIT 1",
            (span.start,),
        ):
            if (chunk := self._handed_out(Span(start, until), now)) is not None:
                ends.append((until, chunk.position + len(chunk.ids)))
        return max(ends)

    def write(
        self, span: Span, result: ChunkResult, chunk: HandedOut, call: str, now: int
    ) -> list[Failure]:
        """Commit a chunk with its users, once; a partial result is kept as begun.

        Only for runs that an earlier version began; the others use `hand_out` and `record`.

        Args:
            span: the span of the chunk.
            result: the result of the chunk.
            chunk: its ids and the position of the first one; the digest is of no use here.
            call: the name of the call that brings the result, as in `record`.
            now: milliseconds since 1970.

        Returns:
            The first failures that were committed, now or earlier.
        """
        position, _, bad_lines, user_ids = chunk
        rows = result.rows.moved(position, user_ids)
        sql = self._store.connection(now)
        if sql.execute("SELECT 1 FROM chunks WHERE start = ?", (span.start,)).fetchone():
            return first_failures(_failures(rows))
        whole = (span.start, span.end, position, len(user_ids), bad_lines)
        # The next run counts its own requests only.
        kept = structs.replace(result, requests=0, retries=0, throttled=0, paused=0.0)
        unfinished = (span.start, span.end, json.encode(kept))
        self._commit(
            span,
            result,
            rows,
            call,
            now,
            # The result includes the users who were done when the chunk was handed back.
            (
                "DELETE FROM users WHERE position >= ? AND position < ?",
                (position, position + len(user_ids)),
            ),
            ("DELETE FROM begun WHERE start = ?", (span.start,)),
            ("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", whole)
            if result.done
            else ("INSERT INTO begun VALUES (?, ?, ?)", unfinished),
        )
        return first_failures(_failures(rows))

    def close(self, now: int, how: str | None = None) -> None:
        """Close the journal if it is open; with `how`, record that the run has ended, and how."""
        if not self._lock.held:
            return
        try:
            if how is not None:
                self._store.add_sample(_sample(self._counts, self._paused), now, how)
            self._store.close()
        finally:
            self._lock.release()

    def _commit(
        self,
        span: Span,
        result: ChunkResult,
        rows: Rows,
        call: str,
        now: int,
        *first: tuple[str, Sequence[object]],
    ) -> bool:
        """Write the rows of a result, and count its requests, in one transaction.

        Returns False if this was done before.
        """
        found = self._store.connection(now).execute(
            "SELECT 1 FROM last_results WHERE start = ? AND call = ?", (span.start, call)
        )
        if found.fetchone() is not None:
            return False
        counts = Counts(
            requests=self._counts.requests + result.requests,
            retries=self._counts.retries + result.retries,
            throttled=self._counts.throttled + result.throttled,
        )
        # Chunks pause together, so the pauses of one are not added to those of another. A chunk
        # that was out when this coordinator began has no time before it.
        paused = max(self._paused, self._paused_before.get(span.start, 0.0) + result.paused)
        known: tuple[str, Sequence[object]] = (
            ("DELETE FROM last_results WHERE start = ?", (span.start,))
            if result.done
            else ("INSERT OR REPLACE INTO last_results VALUES (?, ?)", (span.start, call))
        )
        self._store.write(rows, now, *first, known, sample=_sample(counts, paused))
        self._counts, self._paused = counts, paused
        self._paused_before.pop(span.start, None)
        return True


def _sample(counts: Counts, paused: float) -> store.Sample:
    milliseconds = round(1000 * paused)
    return store.Sample(counts.requests, counts.retries, counts.throttled, milliseconds, down=False)


def _has(sql: Connection, table: str) -> bool:
    found = sql.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,))
    return found.fetchone() is not None


def _identity(sql: Connection | None) -> tuple[str, str | None]:
    """Return the identity of the journal, or an empty one, and the digest of its file."""
    if sql is None or not _has(sql, "identity"):
        return "", None
    return sql.execute("SELECT id, digest FROM identity").fetchone() or ("", None)


def _failures(rows: Rows) -> Iterator[Failure]:
    for row in rows.others_each():
        yield convert(dict(zip(USER_COLUMNS, row, strict=True)), Failure)


def journal_name(name: str) -> str:
    """Return the name of the journal of a run that begins; raises `ConfigurationError`."""
    if name.endswith(ENDS):
        raise ConfigurationError(
            f"{clean(name)!r} is not the name of a journal: a journal has such a file beside it"
        )
    if len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise ConfigurationError(
            f"{clean(name)!r} is too long for the name of a journal: it may have"
            f" {_LONGEST_NAME} bytes"
        )
    return name_in_folder(name)


def name_in_folder(name: str) -> str:
    """Return the name of a journal; raises `ConfigurationError` for a path or a hidden file."""
    if _UNREADABLE.search(name):
        raise ConfigurationError(
            f"{clean(name)!r} is not the name of a journal: it has control characters, or bytes"
            " that are not UTF-8"
        )
    if not name or PurePath(name).name != name or name.startswith("."):
        raise ConfigurationError(
            f"{clean(name)!r} is not the name of a journal: it must be a name without a folder, and"
            " without a dot in front; the coordinator writes it to the folder that it was started"
            " in"
        )
    return name
