"""Selects the next user of a run, and hands the user out as soon as a request may be sent."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from monocloud_async.bulk.attempts import CallRunner, RunCall
from monocloud_async.bulk.lookup import Lookup
from monocloud_async.bulk.results import Results
from monocloud_async.bulk.source import YIELD_EVERY, End, Source
from monocloud_async.bulk.stop_rules import StopReason
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError, InvalidUserIdError, MonoCloudError
from monocloud_async.outcome import BulkReport
from monocloud_async.user_id import check_user_id

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.writer import JournalWriter


class Dispatcher:
    """Hands out the users of the input, one at a time.

    Args:
        operation: the operation of the run.
        source: the input.
        runner: makes the calls; during its first call, no other user is handed out.
        results: receives the outcomes; has room for each user who is handed out.
        writer: writes the journal, if there is one; while it is behind, no user is handed out.
        report: the report of the run.
        is_idle: returns whether no call is in progress.
        lookup: looks users up, if given; it may have to read the list first.

    Attributes:
        clock: the clock of the event loop, once there is one.
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
        lookup: Lookup | None = None,
    ) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._operation = operation
        self._source = source
        self._runner = runner
        self._results = results
        self._writer = writer
        self._report = report
        self._is_idle = is_idle
        self._lookup = lookup
        self._reading = False  # a worker waits for the next user

    async def next(self) -> RunCall | None:
        """Return the call for the next user, as soon as a request may be sent.

        Returns None at the end, or if another worker already waits for a user. A worker that gets a
        call starts one more worker, so that a run is soon back at its concurrency after a pause.
        """
        if self._writer is not None and self._writer.is_behind:
            # Every worker waits here: to end it and start another one costs more than a call.
            await self._writer.caught_up()
        if self._reading:
            return None
        self._reading = True
        try:
            if not self._source.opened:
                results = self._results
                await self._source.open(results.record_skipped if results.has_listener else None)
                if self._lookup is not None:
                    await self._prepare(self._lookup)
            return await self._read()
        except BaseException:
            self._runner.draining = True  # no more ids are read
            raise
        finally:
            self._reading = False

    async def _prepare(self, lookup: Lookup) -> None:
        """Read the list of users for the lookup; the run stops if that is not possible."""
        try:
            await lookup.prepare(self._source.expected)
        except ConfigurationError:
            raise
        except MonoCloudError as error:
            self._runner.stop(StopReason(error, ", because the list of users cannot be read"))

    def cut_off(self) -> None:
        """Record the outcome of an id that was read but not handed out when the run ended."""
        if self._source.held is not None:
            self._results.record(self._call(self._source.held).interrupted())

    async def _read(self) -> RunCall | None:
        runner, queue = self._runner, self._runner.queue
        while not (self._report.exhausted or runner.draining):
            if self._results.streamed:
                await self._results.room()
            if self._writer is not None and self._writer.is_behind:
                await self._writer.caught_up()
            if not runner.proved.is_set() and not self._is_idle():
                await runner.proved.wait()  # a lone first request, as the key may be wrong
            user_id = await self._source.next()
            if user_id is End.END:
                break
            if runner.draining:  # the input, or the journal, swallowed the cancellation
                self._source.held = user_id
                break
            try:
                check_user_id(user_id)
            except InvalidUserIdError as error:
                await self._refuse(self._call(user_id), error)
                continue
            if queue.must_wait(self.clock()):  # only now: the end of the input needs no wait
                self._source.held = user_id
                await queue.ready()
                self._source.held = None
            return self._call(user_id)
        return None

    async def _refuse(self, call: RunCall, error: InvalidUserIdError) -> None:
        self._results.record(call.failed(error))
        if call.position % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    def _call(self, user_id: str) -> RunCall:
        call = RunCall(self._operation, user_id, self._report.total, self.clock)
        self._report.total += 1
        return call
