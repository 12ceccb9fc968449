"""A run's dealings with its journal: outcomes get there in groups, soon, one write at a time."""

import asyncio
import math
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Final

from monocloud_async.journal import Journal
from monocloud_async.journal.file import JournalFile
from monocloud_async.outcome import BulkReport, Outcome, RunStoppedError
from monocloud_async.ratelimit.limiter import RateLimiter

_GROUP: Final = 0.04  # seconds that the first outcome of a group waits for others
# Seconds after which an outcome that is not written holds up the calls that have not begun. So
# kill -9 costs the calls in flight and this much work, however slow the disk is.
_LATE: Final = 0.05


class JournalWriter:
    """Asks the journal about every id, and hands it every outcome.

    Args:
        journal: a file, which is opened and closed here, or any other.
        report, limiter: the run's, for the counts that a file keeps.
        on_failure: called once, when the journal could not be written.

    Attributes:
        error: why the journal could not be written, or None.
        unwritten: outcomes that are not known to be in the journal.
        done: the journal's answer, whether it is done for the user at this position.
        reached: the first position that the journal certainly has nothing of.
        is_behind: whether the disk has not kept up; see `caught_up`.
    """

    def __init__(
        self,
        journal: Journal,
        report: BulkReport,
        limiter: RateLimiter,
        on_failure: Callable[[], None],
    ) -> None:
        self.error: BaseException | None = None
        self.unwritten = 0
        self.done = journal.enabled
        self.reached = math.inf
        self._journal = journal
        self._file = journal if isinstance(journal, JournalFile) else None
        self._report = report
        self._limiter = limiter
        self._on_failure = on_failure
        self._waiting = 0
        self._outcomes: list[Outcome] = []  # those that wait, where they do not wait in the file
        self._writing: asyncio.Task[None] | None = None
        self._caught_up = asyncio.Event()
        self._caught_up.set()

    async def open(self, user_ids: Iterable[str] | AsyncIterable[str]) -> None:
        """Begin; raises `ConfigurationError` where the journal is not for this run."""
        if self._file is not None:
            self.reached = await self._file.open(self._report, self._limiter, user_ids)

    def done_from(self, position: int) -> Sequence[str | None]:
        """The ids from this position on for whom it is done, as far as is at hand."""
        return () if self._file is None else self._file.done_from(position)

    def input_ended(self, length: int) -> None:
        """The input had so many ids; raises `ConfigurationError` where some are gone."""
        if self._file is not None:
            self._file.check_length(length)

    def add(self, outcome: Outcome) -> None:
        """Take one more."""
        self.unwritten += 1
        self._waiting += 1
        if self._file is None:
            self._outcomes.append(outcome)
        else:
            self._file.add(outcome)
        if self._writing is None and self.error is None:
            self._start()

    @property
    def is_behind(self) -> bool:  # noqa: D102  see the class
        return not self._caught_up.is_set()

    async def caught_up(self) -> None:
        """Wait until the disk has kept up, so that another call may begin."""
        await self._caught_up.wait()

    async def close(self, how: str) -> None:
        """Returns when every outcome is in the journal, or has no way to get there."""
        try:
            while self._writing is not None:
                await asyncio.wait([self._writing])
        finally:
            if self._file is not None:
                await self._file.close(self._report, self._limiter, how)

    def stopped(self) -> RunStoppedError:
        """What a run ends with whose journal could not be written."""
        stopped = RunStoppedError(
            f"the run was stopped, because its journal could not be written ({self.error});"
            f" {self.unwritten:,} of {self._report.total:,} outcomes are not in it. Mend that, make"
            " room if the disk is full, and start the same run again: only these are repeated",
            report=self._report,
        )
        stopped.__cause__ = self.error
        return stopped

    def _start(self) -> None:
        self._writing = asyncio.create_task(self._write())
        self._writing.add_done_callback(self._ended)

    async def _write(self) -> None:
        """Write a group, and the next one, until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            timer = loop.call_later(_LATE, self._caught_up.clear)
            try:
                await asyncio.sleep(_GROUP)
                group, self._waiting = self._waiting, 0
                if self._file is None:
                    outcomes, self._outcomes = self._outcomes, []
                    await self._journal.write(outcomes)
                else:
                    await self._file.commit()
                self.unwritten -= group
            finally:
                timer.cancel()
                self._caught_up.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.error = error
            self._on_failure()
        elif self._waiting:  # they came between its last look and its end
            self._start()
