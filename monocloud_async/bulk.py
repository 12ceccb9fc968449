"""Enable many users: outcomes as values, in the order in which they finish, and a report.

How a run is made: one reader takes a slot, takes an id, and starts that user's call; the slot
comes back when the outcome is recorded and, where somebody iterates, taken. So one semaphore
bounds the requests in flight and the outcomes that wait, whatever the number of users.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Self

from monocloud_async.calls import Call, Caller, Send
from monocloud_async.errors import ConfigurationError, InvalidUserIdError, RunStoppedError
from monocloud_async.intake import BREATH, End, Intake, UserIds
from monocloud_async.journal import Journal
from monocloud_async.journal.recorder import Recorder
from monocloud_async.outcome import BulkReport, Outcome
from monocloud_async.pace import Pace
from monocloud_async.retry import RetryPolicy
from monocloud_async.turns import Turns
from monocloud_async.verdict import Judge
from monocloud_async.wire import check_user_id

OnOutcome = Callable[[Outcome], None]


_MAX_FAILURES = 1000


class BulkRun:
    """A run over many users: `await` it for the report, or iterate over it for the outcomes.

    ```python
    report = await session.bulk_enable(user_ids)

    async with session.bulk_enable(user_ids) as run:
        async for outcome in run:
            ...
    ```

    Leaving the `async with` early cancels the calls in flight. A consumer that stalls stalls the
    run: at most `concurrency` outcomes wait for it. `report` is live, and holds what was done
    also after an error or a cancellation.
    """

    def __init__(
        self,
        user_ids: UserIds,
        send: Send,
        *,
        policy: RetryPolicy,
        pace: Pace,
        concurrency: int,
        max_rate: float | None = None,
        max_outage: float = 300.0,
        on_outcome: OnOutcome | None = None,
        journal: Journal | None = None,
    ) -> None:
        if isinstance(user_ids, str | bytes):
            raise ConfigurationError("user_ids must be many ids; pass a single one as [user_id]")
        if not isinstance(user_ids, Iterable | AsyncIterable):
            raise ConfigurationError("user_ids must be an iterable or an async iterable of ids")
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"concurrency must be 1 or more, not {concurrency!r}")
        self.report = BulkReport()
        self._user_ids = user_ids
        self._turns = Turns(pace, max_rate)
        self._caller = Caller(
            send,
            self._turns,
            policy=policy,
            judge=Judge(pace, max_outage),
            report=self.report,
            on_verdict=self.drain,
        )
        self._on_outcome = on_outcome
        self._recorder = (
            None if journal is None else Recorder(journal, self.report, pace, self.drain)
        )
        self._slots = asyncio.BoundedSemaphore(concurrency)
        self._calls: dict[asyncio.Task[None], Call] = {}
        self._outcomes: asyncio.Queue[Outcome | None] | None = None  # only where somebody iterates
        self._run_task: asyncio.Task[BulkReport] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._started = False
        self._bug: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Users whose calls have begun and not ended."""
        return len(self._calls)

    @property
    def pace(self) -> Pace:
        """The session's pace: what the tenant grants, and whether it is there."""
        return self._turns.pace

    def drain(self) -> None:
        """Start no more calls; those in flight finish, those that only wait end as they are.

        The run then ends as usual, its report's `exhausted` False.
        """
        self._caller.draining = True
        if self._reader is not None:
            self._reader.cancel()
        for task, call in self._calls.items():
            if call.waiting:
                task.cancel()

    def cancel(self) -> None:
        """Start no more calls, and cancel those in flight: they are "unknown"."""
        self.drain()
        for task in self._calls:
            task.cancel()

    def __await__(self) -> Generator[object, None, BulkReport]:
        return self._run().__await__()

    async def __aenter__(self) -> Self:
        self._outcomes = asyncio.Queue()  # unbounded in itself: `_slots` bounds it
        self._run_task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run_task is not None:
            self._run_task.cancel()
            await asyncio.gather(self._run_task, return_exceptions=True)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if self._outcomes is None or self._run_task is None:
            raise ConfigurationError("iterate over a run inside `async with ... as run`")
        outcome = await self._outcomes.get()
        if outcome is None:
            self._outcomes.put_nowait(None)  # the end stays the end
            await self._run_task  # raises what ended the run, if that was not the input's end
            raise StopAsyncIteration
        self._slots.release()
        return outcome

    async def _run(self) -> BulkReport:
        if self._started:
            raise ConfigurationError("this run was started before; call bulk_enable again")
        self._started = True
        clock = asyncio.get_running_loop().time
        began, paused = clock(), self.pace.paused_seconds(clock())
        self._reader = asyncio.create_task(self._read())
        try:
            await asyncio.wait([self._reader])
            while self._calls:
                await asyncio.wait(self._calls)
        finally:
            await _to_the_end(self._close(began, paused))
        if self._bug is not None:
            raise self._bug
        if self._recorder is not None and self._recorder.error is not None:
            raise self._recorder.stopped()
        if (verdict := self._caller.verdict) is not None:
            raise RunStoppedError(
                f"the run was stopped{verdict.why} (ids read: {self.report.total:,}):"
                f" {verdict.error}",
                report=self.report,
            ) from verdict.error
        if not self._reader.cancelled():
            self._reader.result()  # raises what the input raised
        return self.report

    async def _close(self, began: float, paused: float) -> None:
        """Whatever happened, the counts are true, and the journal has them."""
        await self._end()
        now = asyncio.get_running_loop().time()
        self.report.seconds = now - began
        self.report.paused_seconds = self.pace.paused_seconds(now) - paused
        try:
            if self._recorder is not None:
                await self._recorder.close(self._how())
        finally:
            if self._outcomes is not None:
                self._outcomes.put_nowait(None)

    async def _end(self) -> None:
        """Leave no task behind and no user uncounted, however the run ended."""
        tasks = [task for task in (self._reader, *self._calls) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _how(self) -> str:
        """How the run ended, for people who read its journal."""
        if (verdict := self._caller.verdict) is not None:
            return f"stopped{verdict.why}: {verdict.error.args[0]}"
        return "finished" if self.report.exhausted else "interrupted"

    async def _read(self) -> None:
        tell = None if self._outcomes is None and self._on_outcome is None else self._tell_of
        intake = Intake(self._user_ids, self.report, self._recorder, tell)
        try:
            await intake.open()
            while not self._caller.draining:
                await self._slots.acquire()
                if self._recorder is not None:
                    await self._recorder.in_time()
                await self._turns.ready()
                user_id = await intake.next()
                if user_id is End.END:
                    return
                await self._start(user_id)
        finally:
            if intake.held is not None:
                call = self._call(intake.held)
                self._record(call, call.cut_off())
            await intake.close()

    async def _tell_of(self, outcome: Outcome) -> None:
        """Hand on the outcome of a user that the journal has as enabled."""
        if self._on_outcome is not None:
            self._on_outcome(outcome)
        if self._outcomes is not None:
            self._outcomes.put_nowait(outcome)
            await self._slots.acquire()  # this one's comes back when somebody takes it

    async def _start(self, user_id: str) -> None:
        call = self._call(user_id)
        try:
            check_user_id(user_id)
        except InvalidUserIdError as error:
            self._record(call, call.failed(error))
            if call.position % BREATH == 0:
                await asyncio.sleep(0)
            return
        task = asyncio.create_task(self._enable(call))
        self._calls[task] = call
        task.add_done_callback(self._ended)
        if not self._caller.proved.is_set():
            await self._caller.proved.wait()  # the first request goes alone: a wrong key costs one
        elif not self._turns.free:
            await asyncio.sleep(0)  # the call takes its turn before the next id is read

    def _call(self, user_id: str) -> Call:
        call = Call(user_id, self.report.total, asyncio.get_running_loop().time)
        self.report.total += 1
        return call

    def _ended(self, task: asyncio.Task[None]) -> None:
        call = self._calls.pop(task)
        if not call.recorded:  # cancelled before its first step
            self._record(call, call.cut_off())
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._bug = bug  # raised by the caller's own `on_outcome`
            self.cancel()

    async def _enable(self, call: Call) -> None:
        try:
            outcome = await self._caller.enable(call)
        except asyncio.CancelledError:
            self._record(call, call.cut_off())
            raise
        self._record(call, outcome)

    def _record(self, call: Call, outcome: Outcome) -> None:
        call.recorded = True
        report, status = self.report, outcome.status
        setattr(report, status, getattr(report, status) + 1)
        if status == "enabled":
            report.unconfirmed += outcome.user is not None and outcome.user.disabled is True
        elif status in {"failed", "unknown"} and len(report.failures) < _MAX_FAILURES:
            report.failures.append(outcome)
        if self._recorder is not None and status != "already_enabled":
            self._recorder.add(outcome)
        if self._outcomes is None:
            self._slots.release()
        else:
            self._outcomes.put_nowait(outcome)
        if self._on_outcome is not None:
            self._on_outcome(outcome)


async def _to_the_end(work: Coroutine[object, object, None]) -> None:
    """Do this work whole; whoever cancels it meanwhile waits for its end."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
