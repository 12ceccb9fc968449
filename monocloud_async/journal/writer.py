"""Writes the outcomes of a run to its journal, in groups and one write at a time."""

import asyncio
import math
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from monocloud_async.journal import Journal
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.snapshot import is_locked
from monocloud_async.outcome import BulkReport, Outcome, RunStoppedError
from monocloud_async.ratelimit.limiter import RateLimiter

_GROUP: Final = 0.025  # seconds that the first outcome of a group waits for more
# While an outcome has waited longer than this many seconds, no new call begins. So kill -9 loses
# only the calls in flight and this much work, however slow the disk is. The disk has the time from
# _GROUP to _LATE for a write: more than most need, because to hold calls back costs CPU time.
_LATE: Final = 0.05


class JournalWriter:
    """Gives the journal every outcome of a run, and answers from it which users are done.

    Args:
        journal: a `JournalFile`, which this class opens and closes, or any other journal.
        report, limiter: those of the run; a file stores their counts.
        on_failure: called once, when the journal could not be written.

    Attributes:
        error: why the journal could not be written, or None.
        is_done: tells whether the user at a position is done, see `Journal.enabled`.
        reached: the journal has no record from this position on.
        is_behind: whether an outcome has waited too long for the disk; see `caught_up`.
    """

    def __init__(
        self,
        journal: Journal,
        report: BulkReport,
        limiter: RateLimiter,
        on_failure: Callable[[], None],
    ) -> None:
        self.error: BaseException | None = None
        self.is_done = journal.enabled
        self.reached = math.inf
        self._journal = journal
        self._file = journal if isinstance(journal, JournalFile) else None
        self._report = report
        self._limiter = limiter
        self._on_failure = on_failure
        self._waiting = 0  # outcomes of the next group
        self._in_write = 0  # outcomes of the group that is written, or could not be written
        # When the first one of the next group came, by the loop's clock.
        self._waiting_since: float | None = None
        self._outcomes: list[Outcome] = []  # to be written; a file has its own lists
        self._add = self._outcomes.append if self._file is None else self._file.add
        self._writing: asyncio.Task[None] | None = None
        self._next_commit: asyncio.Future[None] | None = None  # if a call waits for it
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self.is_behind = False  # an attribute, because it is asked for each user

    @property
    def unwritten(self) -> int:
        """How many outcomes are not known to be in the journal."""
        return self._waiting + self._in_write

    @property
    def path(self) -> Path | None:
        """The path of the file; None for a journal of the caller's own class."""
        return None if self._file is None else self._file.path

    async def open(self, user_ids: Iterable[str] | AsyncIterable[str]) -> None:
        """Open the journal; raises `ConfigurationError` if it does not belong to this run."""
        if self._file is not None:
            self.reached = await self._file.open(self._report, self._limiter, user_ids)

    def done_from(self, position: int) -> Sequence[str | None]:
        """Return the ids of consecutive done users from this position on that are in memory."""
        return () if self._file is None else self._file.done_from(position)

    @property
    def users_done(self) -> int:
        """How many users are done according to the journal; 0 if only asking for each tells."""
        return 0 if self._file is None else self._file.users_done

    def input_ended(self, length: int) -> None:
        """Check the length of the whole input; raises `ConfigurationError` if ids are missing."""
        if self._file is not None:
            self._file.check_length(length)

    def add(self, outcome: Outcome) -> None:
        """Add an outcome, to be written soon."""
        self._waiting += 1
        self._add(outcome)
        if self._waiting_since is None:
            self._begin_group()

    async def add_before(self, position: int, user_id: str, disabled: bool | None) -> None:  # noqa: FBT001  a state
        """Write whether the user was disabled before the run, and return when it is on disk.

        So a killed run knows it also of users who were in flight. Other journals do not keep it.
        """
        if self._file is None:
            return
        self._file.add_before(position, user_id, disabled)
        if self._next_commit is None:
            self._next_commit = asyncio.get_running_loop().create_future()
        committed = self._next_commit
        if self._waiting_since is None:
            self._begin_group()
        await asyncio.shield(committed)

    async def caught_up(self) -> None:
        """Wait until the disk has caught up, so that another call may begin."""
        await self._caught_up.wait()

    async def close(self, how: str) -> None:
        """Wait until every outcome is written or the journal has failed; then close the file."""
        try:
            while self._writing is not None:
                await asyncio.wait([self._writing])
        finally:
            if self._file is not None:
                if self.error is not None:  # maybe only just now
                    how = f"stopped: its journal could not be written: {self.error}"
                await self._file.close(self._report, self._limiter, how)

    def cancel_write(self) -> bool:
        """Cancel a write of the caller's own journal; return whether one is in progress.

        Never that of a `JournalFile`, which goes on in its thread.
        """
        if self._file is not None or self._writing is None or not self._is_group_out:
            return False
        self._writing.cancel()
        return True

    def stopped(self) -> RunStoppedError:
        """Return the error that ends a run whose journal could not be written."""
        cause = "fix the cause (for example a full disk)"
        if self.error is not None and is_locked(self.error):
            cause = "close the program that has locked it"
        stopped = RunStoppedError(
            f"the run was stopped, because its journal could not be written ({self.error});"
            f" {self.unwritten:,} of {self._report.total:,} outcomes are not in it."
            f" {cause.capitalize()} and start the same run again: only these are repeated",
            report=self._report,
        )
        stopped.__cause__ = self.error
        return stopped

    def _begin_group(self) -> None:
        self._waiting_since = asyncio.get_running_loop().time()
        if self._writing is None and self.error is None:
            self._start()

    def _start(self) -> None:
        self._writing = asyncio.create_task(self._write())
        self._writing.add_done_callback(self._ended)

    @property
    def _is_group_out(self) -> bool:
        """Whether a group is being written, or its write was cancelled."""
        return self._in_write > 0

    async def _write(self) -> None:
        """Write groups until no outcome is left."""
        loop = asyncio.get_running_loop()
        while self._waiting_since is not None:
            timer = loop.call_at(self._waiting_since + _LATE, self._hold_back)
            try:
                await asyncio.sleep(self._waiting_since + _GROUP - loop.time())
                self._in_write, self._waiting, self._waiting_since = self._waiting, 0, None
                committed, self._next_commit = self._next_commit, None
                if self._file is None:
                    outcomes = self._outcomes.copy()
                    self._outcomes.clear()
                    await self._journal.write(outcomes)
                else:
                    await self._file.commit()
            finally:
                timer.cancel()
            self._in_write = 0
            if committed is not None:
                committed.set_result(None)
            if self._waiting_since is None or loop.time() < self._waiting_since + _LATE:
                self._let_go_on()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if (error := self._failure(task)) is not None:
            self.error = error
            self._on_failure()  # before calls may begin again
        elif self._waiting_since is not None:  # outcomes came after the loop had ended
            self._start()
            return
        self._let_go_on()

    def _failure(self, task: asyncio.Task[None]) -> BaseException | None:
        """Return why the task failed; a cancellation is a failure only if it cut a write."""
        if not task.cancelled():
            return task.exception()
        # A file writes on in its thread. If nobody cancelled the task, then what it awaited was.
        if (self._file is None and self._is_group_out) or not task.cancelling():
            return RuntimeError("the write was cancelled before it ended")
        return None

    def _hold_back(self) -> None:
        self.is_behind = True
        self._caught_up.clear()

    def _let_go_on(self) -> None:
        self.is_behind = False
        self._caught_up.set()
