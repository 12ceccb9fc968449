"""Which user a run calls for next, and when: as soon as a request may go out, and not before."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from monocloud_async.bulk.attempts import Call, CallRunner
from monocloud_async.bulk.results import Results
from monocloud_async.bulk.source import YIELD_EVERY, End, Source
from monocloud_async.endpoint import BulkOperation, check_user_id
from monocloud_async.errors import InvalidUserIdError
from monocloud_async.outcome import BulkReport

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.writer import JournalWriter


class Dispatcher:
    """Hands out the users of the input, one at a time.

    Args:
        operation: what is done for each.
        source: the input.
        runner: makes the calls; while its first one is out, nobody else is admitted.
        results: where outcomes go; has a place for each user who is on the way.
        writer: the journal's, if there is one; where its disk is slow, nobody is admitted.
        report: the run's.
        is_idle: whether nobody is on the way.

    Attributes:
        clock: the event loop's, once there is one.
    """

    def __init__(
        self,
        operation: BulkOperation,
        source: Source,
        runner: CallRunner,
        results: Results,
        *,
        writer: "JournalWriter | None",
        report: BulkReport,
        is_idle: Callable[[], bool],
    ) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._operation = operation
        self._source = source
        self._runner = runner
        self._results = results
        self._writer = writer
        self._report = report
        self._is_idle = is_idle
        self._reading = False  # somebody waits for the next one

    async def next(self) -> Call | None:
        """The next user to call for, as soon as a request may go out.

        None when that was all, or when another worker is waiting for the next one. Whoever gets it
        brings in one more worker, so that a run that was held up is soon back at its concurrency.
        """
        if self._reading:
            return None
        self._reading = True
        try:
            if not self._source.opened:
                results = self._results
                await self._source.open(results.record_skipped if results.has_listener else None)
            return await self._read()
        except BaseException:
            self._runner.draining = True  # nobody reads on
            raise
        finally:
            self._reading = False

    def cut_off(self) -> None:
        """The run is over; who was read and not handed out is told of."""
        if self._source.held is not None:
            self._results.record(self._call(self._source.held).interrupted())

    async def _read(self) -> Call | None:
        runner, queue = self._runner, self._runner.queue
        while not (self._report.exhausted or runner.draining):
            if self._results.streamed:
                await self._results.room()
            if self._writer is not None and self._writer.is_behind:
                await self._writer.caught_up()
            if not runner.proved.is_set() and not self._is_idle():
                await runner.proved.wait()  # the first request goes alone: a wrong key costs one
            if queue.must_wait(self.clock()):
                await queue.ready()
            user_id = await self._source.next()
            if user_id is End.END:
                break
            call = self._call(user_id)
            try:
                check_user_id(user_id)
            except InvalidUserIdError as error:
                self._results.record(call.failed(error))
                if call.position % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            else:
                return call
        return None

    def _call(self, user_id: str) -> Call:
        call = Call(self._operation, user_id, self._report.total, self.clock)
        self._report.total += 1
        return call
