"""Runs one operation for many users: gives outcomes as they finish, and a report.

Each worker takes an id, makes the whole call for that user, and takes the next id. It holds a place
of a `BoundedSemaphore(concurrency)` while it works. This limits the requests in flight and the
memory, and no user needs its own task or semaphore. Only one idle worker at a time waits until a
request may be sent.
An async input is read by one task, which takes a place for each user and starts a task for it: an
async generator may hold what belongs to a task, such as a timeout, a task group or a cursor.
If the caller iterates over the run, an id is taken only when there is room for its outcome.
"""

import asyncio
import inspect
import logging
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Final, Self

from monocloud_async import config
from monocloud_async.bulk import MAX_OUTAGE, OnOutcome, OnSkippedMany, UserIds
from monocloud_async.bulk.attempts import CallRunner, RunCall, Send
from monocloud_async.bulk.dispatcher import Dispatcher
from monocloud_async.bulk.lookup import Lookup
from monocloud_async.bulk.results import Results, nobody_awaits
from monocloud_async.bulk.source import Source
from monocloud_async.bulk.stop_rules import StopReason, StopRules
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.journal import Journal
from monocloud_async.outcome import BulkReport, Outcome
from monocloud_async.ratelimit.admission_queue import AdmissionQueue
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.retry import RetryPolicy
from monocloud_async.telemetry.runs import observe
from monocloud_async.user_list import UserList

InProgress = Callable[["BulkRun"], AbstractContextManager[None]]

_GRACE: Final = 5.0  # seconds for the caller's code to end after a cancellation

logger = logging.getLogger("monocloud_async")


class BulkRun:
    """A run over many users: `await` it for the report, or iterate over it for the outcomes.

    ```python
    report = await session.bulk_enable(user_ids)

    async with session.bulk_enable(user_ids) as run:
        async for outcome in run:
            ...
    ```

    Leaving the `async with` early cancels the calls in flight. A slow consumer slows the run down:
    at most `concurrency` outcomes wait for it. `report` is up to date during the run, and also
    after an error or a cancellation.
    """

    _started = True  # until the constructor has succeeded

    def __init__(
        self,
        operation: BulkOperation,
        user_ids: UserIds,
        send: Send,
        *,
        policy: RetryPolicy,
        queue: AdmissionQueue,
        in_progress: InProgress = lambda _run: nullcontext(),
        concurrency: int,
        max_rate: float | None = None,
        max_outage: float = MAX_OUTAGE,
        max_same_failures: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: Journal | None = None,
        lookup: Lookup | None = None,
        limit: int | None = None,
        count: int | None = None,
        on_skipped_many: OnSkippedMany | None = None,
        report: BulkReport | None = None,
    ) -> None:
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"concurrency must be 1 or more, not {concurrency!r}")
        if on_outcome is not None and not callable(on_outcome):
            raise ConfigurationError(f"on_outcome must be a function, not {on_outcome!r}")
        if inspect.iscoroutinefunction(on_outcome) or (
            inspect.iscoroutinefunction(type(on_outcome).__call__)
        ):
            raise nobody_awaits()
        if journal is not None and not isinstance(journal, Journal):
            raise ConfigurationError(f"journal must be a path or a Journal, not {journal!r}")
        for name, value in (("limit", limit), ("max_same_failures", max_same_failures)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name} must be 1 or more, or None, not {value!r}")
        me = weakref.ref(self)

        def drain() -> None:  # not a method, because a reference cycle would delay `__del__`
            if (run := me()) is not None:
                run.drain()

        self.report = BulkReport() if report is None else report
        self.operation = operation
        limiter = queue.limiter
        self._queue = queue.for_run(max_rate)
        self._writer = None
        if journal is not None:
            from monocloud_async.journal.writer import JournalWriter  # noqa: PLC0415  SQLite

            self._writer = JournalWriter(journal, self.report, limiter, drain)
        self._lookup = lookup
        self._runner = CallRunner(
            send,
            self._queue,
            policy=policy,
            stop_rules=StopRules(limiter, max_outage, max_same_failures),
            report=self.report,
            on_stop=drain,
            lookup=lookup,
            writer=self._writer,
        )
        self._source = Source(
            operation,
            user_ids,
            self.report,
            self._writer,
            limit=limit,
            count=count,
            on_skipped_many=on_skipped_many,
        )
        self._places = asyncio.BoundedSemaphore(concurrency)
        self._workers = workers = dict[asyncio.Task[None], RunCall | None]()  # and their calls
        self._reader: asyncio.Task[None] | None = None  # the reader of an async input
        self._results = Results(operation, self.report, self._writer, on_outcome, slots=concurrency)
        self._dispatcher = Dispatcher(
            operation,
            self._source,
            self._runner,
            self._results,
            writer=self._writer,
            report=self.report,
            is_idle=lambda: not any(workers.values()),
            lookup=lookup,
        )
        self._run_task: asyncio.Task[BulkReport] | None = None
        self._started = False
        self._input_error: BaseException | None = None  # raised by the input
        self._in_progress = in_progress
        self._session_closed = False
        self._interrupted = False  # a call ended before its last attempt
        self._loop: asyncio.AbstractEventLoop | None = None  # while the run is in progress
        self._cancel_timer: asyncio.TimerHandle | None = None  # once the run was cancelled

    @property
    def in_flight(self) -> int:
        """How many calls are in progress."""
        return sum(call is not None for call in self._workers.values())

    @property
    def list_read(self) -> UserList | None:
        """The list of users while the run reads it, to look users up."""
        return None if self._lookup is None else self._lookup.reading

    @property
    def is_ready(self) -> bool:
        """Whether the journal, if there is one, is open, so that ids are read."""
        return self._source.is_ready

    @property
    def skipped(self) -> int:
        """How many users were done before by the journal, and were not looked up."""
        return self._source.skipped

    @property
    def is_at_limit(self) -> bool:
        """Whether the run read no further because of its `limit`."""
        return self._source.is_at_limit

    @property
    def pace(self) -> RateLimiter:
        """The rate limiter of the session; tells the tenant's rate, and whether it is down."""
        return self._queue.limiter

    def __del__(self) -> None:
        if not self._started:
            # As for coroutines in Python: without `await`, nothing happens.
            operation = self.operation
            what = f"bulk_{operation.name} was never awaited, and nobody was {operation.done}"
            warnings.warn(what, RuntimeWarning, stacklevel=1, source=self)

    def prove(self) -> None:
        """Assume the key is valid: skip the lone first request; a first 403 stops nothing."""
        self._runner.proved.set()

    def set_max_rate(self, max_rate: float) -> None:
        """Change the `max_rate`, if the run has one, also for requests that wait already."""
        self._queue.set_max_rate(config.positive("max_rate", max_rate))

    def drain(self) -> None:
        """Start no more calls: those in flight finish, and those that wait for a retry end at once.

        The run then ends normally, with `exhausted` False in its report. It waits for all that is
        in progress, also for code of the caller's that hangs; `cancel` limits that time.
        """
        self._runner.draining = True
        if self._reader is not None:
            self._reader.cancel()
        for task, call in self._workers.items():
            if call is None or call.waiting:
                task.cancel()

    def session_closed(self) -> None:
        """Drain the run; unless all is done nevertheless, it then raises `RunStoppedError`."""
        self._session_closed = True
        self.drain()

    def cancel(self) -> None:
        """Start no more calls, and cancel those in flight, whose outcome is "unknown".

        Code of the caller that has not ended after 5 seconds is cancelled again, with a warning in
        the log: the clean-up of `user_ids`, and a write of a journal of the caller's own class.
        A write of a journal's file is never cut; if its disk hangs, the log tells.
        """
        self._cancel_calls()
        self._limit_end()

    def _cancel_calls(self) -> None:
        self.drain()
        for task in self._workers:
            task.cancel()

    def __await__(self) -> Generator[object, None, BulkReport]:
        self._check_not_started()
        return self._run().__await__()

    async def __aenter__(self) -> Self:
        self._check_not_started()
        self._started = True
        config.event_loop()
        self._results.stream()
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
        if self._run_task is None:
            raise ConfigurationError("iterate over a run inside `async with ... as run`")
        outcome = await self._results.next()
        if outcome is None:
            await self._run_task  # raises the error that ended the run, if any
            raise StopAsyncIteration
        return outcome

    def _check_not_started(self) -> None:
        if self._started or self._run_task is not None:
            again = f"call bulk_{self.operation.name} again"
            raise ConfigurationError(f"this run was started before; {again}")

    async def _run(self) -> BulkReport:
        self._started = True
        try:
            with self._in_progress(self), observe(self.operation, self.report, self.pace):
                return await self._observed()
        except StopAsyncIteration as error:  # it would look like the end of the outcomes
            raise RuntimeError("user_ids or on_outcome raised StopAsyncIteration") from error
        finally:
            self._results.end()  # also of a run that could not begin

    async def _observed(self) -> BulkReport:
        self._loop = loop = asyncio.get_running_loop()
        self._dispatcher.clock = clock = loop.time
        began, limiter = clock(), self.pace
        before = limiter.paused_seconds(began)
        self.report.stopwatch.running = lambda: (
            (now := clock()) - began,
            limiter.paused_seconds(now) - before,
        )
        if self._source.needs_own_task:
            self._reader = self._task(self._read())
        else:
            await self._add_worker()
        try:
            while tasks := self._tasks():
                await asyncio.wait(tasks)
        finally:
            await self._finish()
        if self._results.error is not None:
            raise self._results.error
        if self._writer is not None and self._writer.error is not None:
            raise self._writer.stopped()
        if (reason := self._runner.stop_reason) is not None:
            raise reason.to_error(self.report) from reason.error
        if self._input_error is not None:
            raise self._input_error
        return self.report

    async def _finish(self) -> None:
        """Close the run even if cancelled meanwhile; then raise the cancellation."""
        closing = asyncio.ensure_future(self._close())
        cancelled = False
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
                self._limit_end()
        self._loop = None
        if self._cancel_timer is not None:
            self._cancel_timer.cancel()
        closing.result()
        if cancelled:
            raise asyncio.CancelledError

    def _limit_end(self) -> None:
        """Limit the time until the run ends: the caller's code may hang when it is cancelled."""
        if self._loop is not None and self._cancel_timer is None:
            self._cancel_timer = self._loop.call_later(_GRACE, self._cancel_again, self._loop)

    def _cancel_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what did not end after the last cancellation; repeated until the run ends."""
        tasks, in_flight, hanging = self._tasks(), self.in_flight, []
        if len(tasks) > in_flight:
            hanging.append("to read or close user_ids")
        if in_flight:
            hanging.append(f"calls ({in_flight:,})")
        for task in tasks:
            task.cancel()
        writer = self._writer
        if writer is not None and writer.cancel_write():
            hanging.append(f"a write of the journal ({writer.unwritten:,} outcomes are not in it)")
        if hanging:
            logger.warning(
                "a cancelled run has not ended after %.0f s; what hangs is cancelled again: %s",
                _GRACE,
                ", ".join(hanging),
            )
        if writer is not None and writer.path is not None and (writer.unwritten or not tasks):
            logger.warning(
                "a cancelled run has not ended after %.0f s: it waits for the disk of the journal"
                " %s, and %s outcomes are not known to be in it. If the disk does not answer, kill"
                " the process: the same run then does the rest",
                _GRACE,
                writer.path,
                f"{writer.unwritten:,}",
            )
        self._cancel_timer = loop.call_later(_GRACE, self._cancel_again, loop)

    async def _close(self) -> None:
        """End all tasks, complete the counts and write the journal, in any case."""
        try:
            await self._end()
        finally:
            self.report.stopwatch.stop()
            if self._writer is not None:
                await self._writer.close(self._how())

    async def _end(self) -> None:
        self._runner.draining = True
        if tasks := self._tasks():  # the run's own task was cancelled
            self.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._dispatcher.cut_off()
        done = self.report.exhausted or self.is_at_limit
        cut_short = self._interrupted or self._source.held is not None or not done
        if self._session_closed and cut_short and self._runner.stop_reason is None:
            error = ConfigurationError("the session was closed; a new one can go on")
            self._runner.stop_reason = StopReason(error)

    def _how(self) -> str:
        """Return how the run ended, for the journal."""
        if (reason := self._runner.stop_reason) is not None:
            return f"stopped{reason.why}: {reason.error.args[0]}"
        if (error := self._results.error or self._input_error) is not None:
            return f"stopped: {type(error).__name__}"  # its text is the caller's
        if self.is_at_limit and not self.report.not_attempted:
            return "finished, at its limit"
        whole = self.report.exhausted and not self.report.not_attempted
        return "finished" if whole else "interrupted"

    def _tasks(self) -> list[asyncio.Task[None]]:
        reader = self._reader
        return [*self._workers, *([] if reader is None or reader.done() else [reader])]

    async def _add_worker(self) -> None:
        """Start another worker, in a free place."""
        await self._places.acquire()
        self._start(self._work(), None)

    def _start(self, work: Coroutine[object, object, None], call: RunCall | None) -> None:
        """Start a task for this work, whose place is already taken."""
        self._workers[self._task(work)] = call

    def _task(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        # Not with `create_task`: with an eager task factory (`asyncio.eager_task_factory`), each
        # worker would start inside the one that adds it.
        task = asyncio.Task(work, loop=asyncio.get_running_loop())
        task.add_done_callback(self._ended)
        return task

    async def _work(self) -> None:
        """Make the calls of one user after the other, until there are no more."""
        me = asyncio.current_task()
        assert me is not None  # noqa: S101  for the type checkers
        while (call := await self._dispatcher.next()) is not None:
            self._workers[me] = call
            if not self._places.locked():
                await self._add_worker()
            await self._make(call)
            self._workers[me] = None
        del self._workers[me]
        self._places.release()  # at once, not only when this task has ended

    async def _read(self) -> None:
        """Read an async input, and start a task for each user as soon as a place is free."""
        try:
            while True:
                await self._places.acquire()
                call = None
                try:
                    call = await self._dispatcher.next()
                finally:
                    if call is None:
                        self._places.release()
                if call is None:
                    return
                self._start(self._make(call), call)
                if not self._queue.is_open:
                    await asyncio.sleep(0)  # let the call queue before the next id is read
        finally:
            await self._source.close()

    async def _make(self, call: RunCall) -> None:
        outcome = await self._runner.run(call)
        call.ended = True
        self._results.record(outcome)

    def _ended(self, task: asyncio.Task[None]) -> None:
        has_place, call = task in self._workers, self._workers.pop(task, None)
        if call is not None and not call.ended:
            self._interrupt(call)
        error = _error(task)
        if error is not None and self._results.error is not None:
            self._cancel_calls()  # `on_outcome` raised it; it may be a cancellation
        elif task.cancelled() and has_place and not self._runner.draining and self._reader is None:
            self._start(self._work(), None)  # only this call was cancelled, not the run
            return
        if has_place:
            self._places.release()
        if error is None or self._results.error is not None:
            return
        if call is None:
            self._input_error = error
            self.drain()
        elif not task.cancelled():
            self._results.error = error
            self._cancel_calls()

    def _interrupt(self, call: RunCall) -> None:
        """Record the outcome of a call whose task ended first, perhaps before its first step."""
        self._interrupted = True
        try:
            self._results.record(call.interrupted())
        except BaseException:  # noqa: BLE001  of `on_outcome`; the run raises it at its end
            self._cancel_calls()


def _error(task: asyncio.Task[None]) -> BaseException | None:
    """Return the error that ended the task, if any; to be cancelled is none.

    A `CancelledError` that nobody asked this task for came out of what it awaited, or called.
    """
    try:
        return task.exception()
    except asyncio.CancelledError as error:
        return None if task.cancelling() else error
