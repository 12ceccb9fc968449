"""Which user a run calls for next, and when: as soon as a request may go out, and not before."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from monocloud_async.calls import Call, Caller
from monocloud_async.delivery import Delivery
from monocloud_async.errors import InvalidUserIdError
from monocloud_async.intake import BREATH, End, Intake
from monocloud_async.outcome import BulkReport
from monocloud_async.wire import check_user_id

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.recorder import Recorder


class Admission:
    """Hands out the users of the input, one at a time.

    Args:
        intake: the input.
        caller: makes the calls; while its first one is out, nobody else is admitted.
        delivery: where outcomes go; has a place for each user who is on the way.
        recorder: the journal's, if there is one; where its disk is slow, nobody is admitted.
        report: the run's.
        alone: whether nobody is on the way.

    Attributes:
        clock: the event loop's, once there is one.
    """

    def __init__(
        self,
        intake: Intake,
        caller: Caller,
        delivery: Delivery,
        *,
        recorder: "Recorder | None",
        report: BulkReport,
        alone: Callable[[], bool],
    ) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._intake = intake
        self._caller = caller
        self._delivery = delivery
        self._recorder = recorder
        self._report = report
        self._alone = alone
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
            if not self._intake.opened:
                delivery = self._delivery
                await self._intake.open(delivery.tell_of if delivery.tells else None)
            return await self._read()
        except BaseException:
            self._caller.draining = True  # nobody reads on
            raise
        finally:
            self._reading = False

    def cut_off(self) -> None:
        """The run is over; who was read and not handed out is told of."""
        if self._intake.held is not None:
            self._delivery.record(self._call(self._intake.held).cut_off())

    async def _read(self) -> Call | None:
        caller, turns = self._caller, self._caller.turns
        while not (self._report.exhausted or caller.draining):
            if self._delivery.bounded:
                await self._delivery.place()
            if self._recorder is not None and self._recorder.late:
                await self._recorder.in_time()
            if not caller.proved.is_set() and not self._alone():
                await caller.proved.wait()  # the first request goes alone: a wrong key costs one
            if turns.busy(self.clock()):
                await turns.ready()
            user_id = await self._intake.next()
            if user_id is End.END:
                break
            call = self._call(user_id)
            try:
                check_user_id(user_id)
            except InvalidUserIdError as error:
                self._delivery.record(call.failed(error))
                if call.position % BREATH == 0:
                    await asyncio.sleep(0)
            else:
                return call
        return None

    def _call(self, user_id: str) -> Call:
        call = Call(user_id, self._report.total, self.clock)
        self._report.total += 1
        return call
