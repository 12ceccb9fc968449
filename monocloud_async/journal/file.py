"""The journal as a SQLite file, which serves one run at a time and belongs to one input.

Each group of outcomes is one transaction, and is on disk (`synchronous=FULL`) before the next one
begins. Nothing is written before the journal is known to belong to this tenant and this input. The
API key and the bodies of responses are never stored.

The journal recognizes its input by the ids: every recorded id must still be at its position. Unlike
a hash of the whole input, this tells which id changed. It also works for an iterator that can be
read only once, and no user is skipped or sent again because of another user's record.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Final, TypeVar, TypeVarTuple

import msgspec

from monocloud_async.endpoint import ENABLE, BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import check_files, lock_path, real_path
from monocloud_async.journal.snapshot import is_locked
from monocloud_async.journal.store import (
    Caller,
    InputInfo,
    InputState,
    JournalStore,
    Page,
    Rows,
    Sample,
    StateBefore,
    quoted,
)
from monocloud_async.outcome import DONE, BulkReport, Outcome
from monocloud_async.ratelimit.limiter import RateLimiter

Args = TypeVarTuple("Args")
T = TypeVar("T")

_SAMPLE_EVERY: Final = 1.0  # seconds between two samples of the counts
_MOST_BAD_LINES: Final = 100_000  # whose numbers and problems are recorded
_NO_PAGE: Final = Page(0, 0, (), "")


class JournalFile:
    """The journal that a run uses when it is given `journal=path`.

    Args:
        path: created with mode 0600 if it does not exist. SQLite's WAL needs a local disk.
        tenant: the address of the tenant; a journal belongs to one tenant.
        operation: the operation of the run; a journal belongs to one operation.
        input_info: where the ids come from, for the report; None if unknown.
        caller: what the user ran, for the report; None if unknown.
        now: returns the current time in seconds since 1970.

    Attributes:
        path: where it is.
        ending: how the run ended, if the caller ends it early, such as "stopped: a full disk".
        signal: the name of the signal that interrupted the run, if any.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tenant: str,
        *,
        operation: BulkOperation = ENABLE,
        input_info: InputInfo | None = None,
        caller: Caller | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = real_path(path)  # one lock per file, whatever leads to its folder
        self._input_info = input_info or InputInfo()
        self._now = now
        self._lock = Lock(lock_path(self.path), f"the journal {path}")
        self._store = JournalStore(
            self.path, tenant, operation, self._input_info, caller or Caller()
        )
        self.ending = ""
        self.signal: str | None = None
        self._report = BulkReport()  # until `open`
        self._ids: int | None = None  # how many the input has
        self._bad_lines = 0
        self._numbered: list[tuple[int, str]] = []  # bad lines to write in the next commit
        self._is_refused = False
        self._knows_all = True  # until a commit fails
        self._thread: ThreadPoolExecutor | None = None
        # What the next commit writes. Of users who are done, only a few values are kept, because
        # most users are, and an outcome takes memory and time; see `Rows.add_done`.
        self._done: list[object] = []
        self._others: list[Outcome] = []
        self._before: list[StateBefore] = []
        self._sampling: asyncio.Task[None] | None = None
        self._paused_before = 0.0  # seconds, in earlier runs of the same session
        self._page = _NO_PAGE
        self._next_page: asyncio.Future[Page] | None = None

    def __repr__(self) -> str:
        return f"<JournalFile {self.path}>"

    async def open(
        self, report: BulkReport, limiter: RateLimiter, user_ids: Iterable[str] | AsyncIterable[str]
    ) -> int:
        """Begin a run on this journal and lock it until `close`.

        Returns:
            The first position that has no record.

        Raises:
            ConfigurationError: another process uses the journal, it belongs to another tenant or
                input, or the file is not a journal. Nothing was written.
        """
        if self._thread is not None:
            raise ConfigurationError("a JournalFile serves one run; make another, or pass its path")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        with self._readable():
            await self._run(check_files, self.path)
            await self._run(self._lock.take)
            await self._run(self._store.open)
            await self._check(self._reread(user_ids))
        self._report = report
        self._ids = len(user_ids) if isinstance(user_ids, Collection) else None
        self._paused_before = limiter.paused_seconds(_clock())
        self._sampling = asyncio.create_task(self._sample_regularly(report, limiter))
        return self._store.reached

    async def close(self, report: BulkReport, limiter: RateLimiter, how: str) -> None:
        """End the run, also after `open` failed; `how` tells people how the run ended."""
        if self._thread is None:
            return
        try:
            if self._sampling is not None:
                self._sampling.cancel()
                await asyncio.gather(self._sampling, return_exceptions=True)
                # A run that is in the file gets its end, also before it has read an id. Its first
                # sample may be on the way there, so the journal's thread is asked.
                has_read = report.total or self._bad_lines
                if await self._run(self._store.has_begun) or (has_read and not self._is_refused):
                    if how == "interrupted" and self.ending:
                        how = self.ending
                    await self._add_sample(report, limiter, how)
        finally:
            await self._run(self._let_go)
            self._thread.shutdown(wait=False)

    async def enabled(self, position: int, user_id: str, /) -> bool:
        """Return whether the journal records the operation as done for this user.

        Raises:
            ConfigurationError: the journal has another id at this position.
        """
        page = self._page
        if position >= page.end:
            if position >= self._store.reached:
                return False
            with self._readable():
                page = self._page = await (self._next_page or self._look_up(page.end))
            more = page.end < self._store.reached
            self._next_page = self._look_up(page.end) if more else None
        place = position - page.start
        if page.ids[place] != user_id:
            self._compare(position, page.ids[place], user_id)
        return page.done[place] == "1"

    def done_from(self, position: int) -> Sequence[str | None]:
        """Return the ids of consecutive users from this position on for whom it is done.

        Only those in memory: a caller that has them need not call `enabled` for each.
        """
        page = self._page
        start = position - page.start
        if position >= page.end:
            return ()
        end = page.done.find("0", start)
        return page.ids[start:] if end < 0 else page.ids[start:end]

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        """Commit these outcomes; raises `sqlite3.Error` if that fails."""
        for outcome in outcomes:
            self.add(outcome)
        await self.commit()

    def add(self, outcome: Outcome, /) -> None:
        """Add an outcome to the next commit."""
        if outcome.status in DONE:
            position, user_id = outcome.position, outcome.user_id
            self._done.extend((position, user_id, outcome.attempts, outcome.seconds, None))
        else:
            self._others.append(outcome)

    def add_before(self, position: int, user_id: str, disabled: bool | None) -> None:  # noqa: FBT001  a state
        """Add to the next commit whether the user was disabled before the run; None: unknown."""
        self._before.append((position, user_id, disabled))

    async def commit(self) -> None:
        """Write what was added; raises `sqlite3.Error` if that fails."""
        now = self._milliseconds()
        rows = Rows.of(self._others, now)
        rows.add_done(self._done, now)
        self._done, self._others = [], []
        before, self._before = self._before, []
        has_news = (self._numbered or self._report.exhausted) and not self._is_refused
        state = self._state() if has_news else None
        write = partial(self._store.write, before=before, state=state)
        try:
            await self._run(write, rows, now)
        except sqlite3.Error:
            self._knows_all = False
            raise

    def add_bad_line(self, number: int, problem: str) -> None:
        """Add a line of the input that has no valid id, for the report."""
        self._bad_lines += 1
        if self._bad_lines <= _MOST_BAD_LINES:
            self._numbered.append((number, problem))

    @property
    def users_done(self) -> int:
        """How many users are done, according to the journal."""
        return self._store.users_done

    @property
    def latest(self) -> float:
        """When the last outcome of an earlier run was recorded, in seconds since 1970."""
        return self._store.latest / 1000

    def _state(self) -> InputState:
        numbered, self._numbered = self._numbered, []
        total = self._report.total
        if self._report.exhausted:
            self._ids = total
        return InputState(self._ids, total, self._bad_lines, numbered)

    def check_length(self, length: int) -> None:
        """Raise `ConfigurationError` if an input of this length has fewer ids than the journal."""
        if length < self._store.reached:
            raise self._changed(
                f"it ends after {length:,} ids, but the journal has {self._store.reached:,}"
            )

    def _let_go(self) -> None:
        if not self._lock.held:
            return
        with suppress(sqlite3.Error, OSError):  # failed writes were already reported
            self._store.close()
        self._lock.release()

    async def _sample_regularly(self, report: BulkReport, limiter: RateLimiter) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY)
            if report.requests or (self._numbered and report.total >= self._store.reached):
                await self._add_sample(report, limiter)

    async def _add_sample(
        self, report: BulkReport, limiter: RateLimiter, how: str | None = None
    ) -> None:
        sample = Sample(
            report.requests,
            report.retries,
            report.throttled,
            round(1000 * (limiter.paused_seconds(_clock()) - self._paused_before)),
            limiter.down,
        )
        now = self._milliseconds()
        # What was read of a refused input is no news of the journal's.
        state = None if self._is_refused else self._state()
        with suppress(sqlite3.Error):  # a report works without this sample
            add_sample = partial(self._store.add_sample, knows_all=self._knows_all)
            await self._run(add_sample, sample, now, how, state, self.signal)
            if how is not None and self._is_refused:
                await self._run(self._store.restore_length, now)
            elif how is not None and report.exhausted:
                await self._run(self._store.forget_mended_lines, now)

    def _reread(self, user_ids: Iterable[str] | AsyncIterable[str]) -> Iterable[str] | None:
        """Return the ids for a check before the run, or None if they can be read only once."""
        return user_ids if isinstance(user_ids, Collection) else self._input_info.reread

    async def _check(self, user_ids: Iterable[str] | None) -> None:
        """Refuse a changed input before any request is sent.

        In an input that can be read only once, `enabled` compares each id before it is sent.
        """
        if user_ids is None or self._store.users_done == self._store.reached:
            return
        ids = iter(user_ids)
        position = 0
        while position < self._store.reached:
            page = await self._look_up(position)
            here = list(islice(ids, page.end - position))
            if here != page.ids:
                for there, user_id in zip(page.ids, here, strict=False):
                    if there != user_id:
                        self._compare(position, there, user_id)
                    position += 1
                if position < page.end:
                    self.check_length(position)
            position = page.end

    def _look_up(self, start: int) -> asyncio.Future[Page]:
        return self._submit(self._store.page, start)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn errors of the file system and of SQLite into a `ConfigurationError` with advice."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the journal {error.filename or self.path}: {error.strerror};"
                " name another path, or run without a journal"
            ) from None
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            advice = "restore it from a backup, or start a new journal"
            if isinstance(error, sqlite3.Error) and is_locked(error):
                advice = "another program has locked it: close that program"
            raise ConfigurationError(
                f"cannot read the journal {self.path}: {error}; {advice}"
            ) from None

    def _compare(self, position: int, there: str | None, user_id: str) -> None:
        if there is not None and there != quoted(user_id):
            raise self._changed(
                f"id number {position + 1:,} is {quoted(user_id)}, but was {quoted(there)}"
            )

    def _changed(self, how: str) -> ConfigurationError:
        self._is_refused = True
        return ConfigurationError(
            f"the input is not the one that the journal {self.path} was started with: {how};"
            f" {self._input_info.if_changed}"
        )

    def _milliseconds(self) -> int:
        return round(1000 * self._now())

    async def _run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Run the function in the journal's thread and return its result.

        If the caller is cancelled, the function runs all the same, also if it has not begun yet.
        """
        return await asyncio.shield(self._submit(work, *args))

    def _submit(self, work: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        work_done = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        # If the run ends before anybody gets the result, a failure concerns nobody.
        work_done.add_done_callback(lambda done: done.cancelled() or done.exception())
        return work_done


def _clock() -> float:
    return asyncio.get_running_loop().time()
