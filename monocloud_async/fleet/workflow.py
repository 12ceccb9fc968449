"""The workflow of a run: hands out chunks on a number of lanes, and has their results recorded.

Lanes keep the highest rate of the whole fleet: each lane has one chunk at a time and an equal share
of it. Below it, the sessions of the workers find the rate that the tenant grants, and chunks are as
large as the rate that they measure asks for. If the tenant asks to wait for long, all lanes wait;
then one user is tried before all lanes go on.

The ids of a chunk are in the journal before a worker gets it, and its results before the lane
goes on, complete or not. So the workflow keeps only which chunks are unfinished.

A worker that cannot go on leaves the run, and the others do its work. The run pauses when nobody
takes its chunks.

This code must be deterministic: Temporal runs it again from the recorded history when a coordinator
restarts (https://docs.temporal.io/workflows#deterministic-constraints). Runs that an earlier
version began take the steps of that version until they continue in a new history: see
`_RECORDS_AT_ONCE` and `_MEASURES_RATE`.
"""

import asyncio
import math
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import msgspec
from msgspec import structs
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutType
from temporalio.exceptions import TimeoutError as TimedOutError
from temporalio.workflow import ActivityHandle

from monocloud_async.fleet.codec import PayloadRefusedError
from monocloud_async.fleet.lanes import MeasuredRate, lanes, most_lanes, next_chunk
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    Failure,
    FleetReport,
    Granted,
    How,
    Pace,
    Plan,
    Progress,
    Remaining,
    RunState,
    Span,
    Throttled,
    add_result,
    kinds,
)
from monocloud_async.fleet.pace import FleetPace
from monocloud_async.fleet.temporal import worker_queue

# Histories without this marker are of a version that kept unfinished results in the workflow
# (https://docs.temporal.io/patching).
_RECORDS_AT_ONCE: Final = "records-at-once"
# And those without this one have chunks as large as the highest rate asks for.
_MEASURES_RATE: Final = "measures-rate"
CHUNK_ACTIVITY: Final = "enable_chunk"  # the name in the histories of runs, for every operation
# Requests per second that the size of a chunk is for, until some are measured, and of the first.
_GUESS: Final = 50.0
_FIRST_RATE: Final = 20.0
BEAT: Final = 1.0  # seconds from one heartbeat to the next
HEARTBEAT: Final = 10.0  # seconds without one, after which a worker or coordinator counts as lost

# Seconds until the attempt after a lost one. The lost worker's client notices the loss 5 s later
# than Temporal. Until then its lane stays empty, so that no share of the rate is used twice.
_FENCE: Final = 6.0
_LOST: Final = 20  # workers lost with one chunk, before the run pauses
_TAKEN: Final = 10.0  # seconds in which somebody must take a chunk after a worker has left
# The type of the failure of a worker without the key.
_REFUSED: Final = PayloadRefusedError.__name__
_FAILED: Final = 5  # attempts that failed with an error, such as a file that cannot be read
# Temporal ends a workflow at 51,200 events or 50 MB of history
# (https://docs.temporal.io/workflow-execution/limits).
_MAX_EVENTS: Final = 10_000
_MAX_HISTORY: Final = 20 << 20


def _journal(name: str, *args: object, kind: Any, attempts: int = 0) -> ActivityHandle[Any]:
    """Start an activity of the coordinator; 0 attempts means that it is retried without limit."""
    return workflow.start_activity(
        name,
        args=args,
        result_type=kind,
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=timedelta(seconds=HEARTBEAT),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=_FENCE),
            backoff_coefficient=1.0,
            maximum_attempts=attempts,
        ),
    )


@workflow.defn(name="enable_users")  # the name in the histories of runs, for every operation
class RunWorkflow:
    """One run over a fleet, until the journal shows that no chunk is missing."""

    @workflow.init
    def __init__(self, state: RunState) -> None:
        self._plan, self._state = state.plan, state
        self._lanes: set[asyncio.Task[None]] = set()
        self._draining = False  # no chunk is handed out until every lane is empty
        self._cancelled = False  # nothing new begins
        self._trouble: dict[int, str] = {}  # why a chunk is retried, by its start
        self._in_hand: dict[int, ChunkResult] = {}  # results on their way to the journal
        self._records_at_once = self._measures_rate = True
        self._rate = MeasuredRate()
        self._pace = FleetPace(state.pace)
        self._out = 0  # chunks that workers have, or wait for one
        self._has_all = False  # the only one of them has all of the highest rate
        self._joined_at = -math.inf  # when others joined that one

    @workflow.run
    async def run(self, _state: RunState) -> FleetReport:
        """Do the run, and return its report."""
        self._records_at_once = workflow.patched(_RECORDS_AT_ONCE)
        self._measures_rate = workflow.patched(_MEASURES_RATE)
        for sign in self._state.progress.signs:  # of the history before
            self._rate.add(sign, workflow.time())
        # In a separate task: a cancellation reaches only this one, and interrupts no step.
        working = asyncio.create_task(self._work())
        try:
            await workflow.wait_condition(working.done)
        except asyncio.CancelledError:
            self._cancelled = self._draining = True
            self._state.progress.paused = None  # nobody can resume it
            await workflow.wait_condition(working.done)
        if not working.result() and not self._cancelled:
            self._state.pace = self._pace.pace
            self._state.progress.signs = self._rate.lately(workflow.time())
            workflow.continue_as_new(self._state)
        ending = asyncio.create_task(self._end())
        while not ending.done():
            with suppress(asyncio.CancelledError):
                await workflow.wait_condition(ending.done)
        return ending.result()

    @workflow.query
    def progress(self) -> Progress:
        """Return the progress of the run."""
        progress = structs.replace(
            self._state.progress,
            chunks=len(self._lanes),
            trouble=sorted(set(self._trouble.values())),
            kinds=dict(self._state.progress.kinds),
            learnt=self._pace.learnt,
            signs=self._rate.lately(workflow.time()),
        )
        kept = {chunk.span.start: chunk.so_far for chunk in self._state.unfinished}
        for result in (kept | self._in_hand).values():
            add_result(progress, result)
        return progress

    @workflow.query
    def failures(self) -> list[Failure]:
        """Return the first thousand users who failed or are unknown."""
        return self._state.failures

    @workflow.query
    def pace(self, run: str, epoch: int) -> Pace:
        """Return what the sessions of all workers keep to; the rates only to who knows another."""
        return self._pace.answer(
            run,
            epoch,
            me=workflow.info().first_execution_run_id,
            lanes=self._out,
            max_rate=self._state.progress.max_rate,
            joined_at=self._joined_at,
            now=workflow.time(),
        )

    @workflow.signal
    def throttled(self, signal: Throttled) -> None:
        """Pause the sessions of all workers: one of them was refused."""
        self._pace.throttled(signal)

    @workflow.signal
    def granted(self, signal: Granted) -> None:
        """Learn the rate, and let the sessions of all workers go on."""
        self._pace.granted(signal, workflow.time())

    @workflow.signal
    def pause(self, why: str) -> None:
        """Hand out no more chunks, and take back those that are out, with partial results."""
        self._pause(why)

    @workflow.signal
    def resume(self) -> None:
        """Resume the run, and take in the workers that have left it."""
        self._state.progress.paused = None
        self._state.progress.away.clear()

    @workflow.signal
    def set_rate(self, max_rate: float | None) -> None:
        """Change the highest rate, as soon as the chunks that are out have come back."""
        if max_rate != self._state.progress.max_rate:
            self._state.progress.max_rate = max_rate
            self._draining = bool(self._lanes)

    async def _some_left(self) -> bool:
        """Return whether work is left; asks the journal if needed."""
        state = self._state
        if state.gaps is None:
            call = _journal("left", self._plan_now, kind=Remaining)
            if not await self._known(call):
                return False
            left: Remaining = call.result()
            state.go_on(left)
            self._plan = state.plan = structs.replace(self._plan, journal_id=left.journal_id)
        return bool(state.gaps or state.unfinished)

    async def _work(self) -> bool:
        """Have all chunks done; returns False if the run must continue in a new history."""
        state = self._state
        while not self._cancelled and await self._some_left():
            while self._lanes or (not self._cancelled and (state.gaps or state.unfinished)):
                if self._history_is_full():
                    self._draining = True
                    await workflow.wait_condition(lambda: all(lane.done() for lane in self._lanes))
                    self._take_back()
                    if not self._cancelled:
                        return False
                while self._has_room():
                    lane = self._lane if self._records_at_once else self._lane_before
                    self._lanes.add(asyncio.create_task(lane(self._next_chunk())))
                await workflow.wait_condition(self._changed)
                self._take_back()
                self._draining = self._cancelled or (self._draining and bool(self._lanes))
            if not self._cancelled:
                state.gaps = None  # ask the journal again what is left
        return True

    async def _end(self) -> FleetReport:
        state, lost = self._state, Counter[str]()

        async def keep(place: int, chunk: Chunk) -> None:
            if done := len(chunk.so_far.rows.positions()):
                try:
                    if self._records_at_once:  # the coordinator knows whether it has begun
                        await _journal(
                            "begin_chunk", self._plan, chunk.span, kind=Chunk, attempts=3
                        )
                    await self._record(chunk, chunk.so_far, attempts=3)
                except ActivityError as error:  # the file may have changed
                    self._in_hand.pop(chunk.span.start, None)
                    lost[_reason(error)] += done
            state.unfinished[place] = Chunk(span=chunk.span)

        # After a cancellation: record the users who were already done.
        await asyncio.gather(*(keep(*each) for each in enumerate(state.unfinished)))
        trouble = [f"{n:,} users are in no journal: {why}" for why, n in lost.items()]
        how: How = "cancelled" if self._cancelled else "finished"
        attempts = 3 if self._cancelled else 0
        try:
            report: FleetReport = await _journal(
                "close_journal", how, state, kind=FleetReport, attempts=attempts
            )
        except ActivityError as error:
            trouble.append(f"the journal could not be closed: {_reason(error)}")
            report = state.report(how)
        return structs.replace(report, trouble=trouble)

    @property
    def _plan_now(self) -> Plan:
        """The plan, for the coordinator."""
        return structs.replace(self._plan, recorded=self._state.progress.done)

    def _next_chunk(self) -> Chunk:
        rate = self._measured() or self._state.progress.max_rate or _GUESS
        if self._is_one_lane():  # the others take what is left, as soon as the rate is known
            rate = _FIRST_RATE
        return next_chunk(self._state, rate, self._number())

    def _measured(self) -> float | None:
        return self._rate.value(workflow.time()) if self._measures_rate else None

    def _number(self) -> int:
        """Return how many lanes may be in use."""
        if self._is_one_lane():
            return 1
        return lanes(self._state.progress.max_rate, self._measured())

    def _is_one_lane(self) -> bool:
        """Return whether one lane has all of the rate, until something is known of it."""
        known = bool(self._pace.pace.rates or self._state.progress.requests)
        return self._measures_rate and (not known or self._pace.alone(workflow.time()) != "")

    def _take_back(self) -> None:
        """Remove the lanes that are done, and raise the error of one that failed."""
        for lane in [lane for lane in self._lanes if lane.done()]:
            self._lanes.discard(lane)
            lane.result()

    def _changed(self) -> bool:
        over = self._cancelled and not self._lanes
        return over or self._has_room() or any(lane.done() for lane in self._lanes)

    def _has_room(self) -> bool:
        state = self._state
        return (
            bool(state.gaps or state.unfinished)
            and state.progress.paused is None
            and not self._draining
            and len(self._lanes) < self._number()
        )

    async def _lane(self, chunk: Chunk) -> None:
        """Have workers do the chunk, and its results recorded, until it is done or handed back."""
        span, errors = chunk.span, Counter[type[BaseException]]()
        while not self._draining:
            begun = await self._begin(chunk)
            if begun is None:
                break
            chunk = Chunk(span=span)
            result, error = await self._attempt(begun)
            if result.sign is not None:
                self._rate.add(result.sign, workflow.time())
            if not await self._record(chunk, result):
                chunk = Chunk(span=span, so_far=result)
                break
            if result.done:
                return
            if result.worker:
                self._state.progress.away[result.worker] = result.why or ""
            elif result.why is not None:  # of a worker that does not leave
                self._pause(result.why)
            if error is not None:
                await self._after(error, span, errors)
        self._state.unfinished.append(chunk)

    async def _begin(self, chunk: Chunk) -> Chunk | None:
        """Return the chunk with what the journal knows; None if the run cannot go on with it."""
        while True:
            call = _journal("begin_chunk", self._plan_now, chunk.span, kind=Chunk)
            if not await self._known(call):
                return None
            try:
                begun: Chunk = await call
            except ActivityError as error:  # the file may have changed
                self._pause(_reason(error))
                return None
            # Runs of an earlier version kept results here, which must be recorded first.
            if not chunk.so_far.rows.positions():
                return begun
            if not await self._record(chunk, chunk.so_far):
                return None
            chunk = Chunk(span=chunk.span)

    async def _after(
        self, error: BaseException, span: Span, errors: Counter[type[BaseException]]
    ) -> None:
        """Wait after the error of an attempt, and pause the run if there were too many."""
        if isinstance(error, TimedOutError) and error.type == TimeoutType.SCHEDULE_TO_START:
            away = "; ".join(f"{who}: {why}" for who, why in self._state.progress.away.items())
            self._pause(f"no worker can go on: {away}" if away else "no worker takes chunks")
            return
        why = self._note(span, error)
        errors[type(error)] += 1
        if errors[type(error)] == (_FAILED if isinstance(error, ApplicationError) else _LOST):
            self._pause(f"a chunk failed repeatedly: {why}")
        await asyncio.sleep(_FENCE)
        del self._trouble[span.start]

    async def _attempt(self, chunk: Chunk) -> tuple[ChunkResult, BaseException | None]:
        """Have a worker do the chunk; return the result, and the error of a lost attempt."""
        if self._draining:
            return ChunkResult(), None
        proved = self._state.progress.users_done > 0
        call = self._call_worker(structs.replace(chunk, proved=proved))
        self._out += 1
        await workflow.wait_condition(lambda: call.done() or self._draining)
        if not call.done():
            call.cancel()
        try:
            result = await call
        except ActivityError as error:
            cause = error.cause or error
            who = error.identity
        else:  # bad lines are counted once
            return structs.replace(result, bad_lines=result.bad_lines * result.done), None
        finally:
            self._out -= 1
            self._has_all = self._has_all and self._out > 0
        if isinstance(cause, CancelledError):
            return ChunkResult(), None  # no worker had it
        result = structs.replace(_last_word(cause) or ChunkResult(), bad_lines=0, sign=None)
        if isinstance(cause, ApplicationError):
            why, refused = cause.message, cause.cause
            if isinstance(refused, ApplicationError) and refused.type == _REFUSED:
                # It cannot say so itself, because nobody could read what it writes. One of an
                # earlier version goes on to take chunks, so these count as errors, too.
                why = self._state.progress.away[who] = refused.message
            cause = ApplicationError(f"{why} (worker {who})")
        return result, cause

    def _call_worker(self, chunk: Chunk) -> ActivityHandle[ChunkResult]:
        """Start the activity of a worker."""
        progress = self._state.progress
        if self._has_all:
            self._joined_at = workflow.time()
        self._has_all = self._is_one_lane() and len(self._lanes) == 1
        number = 1 if self._has_all else most_lanes(progress.max_rate)
        # With a limit only if somebody has left: with few machines, none may be there for a while.
        taken = timedelta(seconds=_TAKEN) if progress.away else None
        return workflow.start_activity(
            CHUNK_ACTIVITY,
            args=[self._plan, chunk, progress.max_rate and progress.max_rate / number],
            result_type=ChunkResult,
            task_queue=worker_queue(self._plan.tenant),
            schedule_to_start_timeout=taken,
            start_to_close_timeout=timedelta(days=1),
            heartbeat_timeout=timedelta(seconds=HEARTBEAT),
            retry_policy=RetryPolicy(maximum_attempts=1),  # the next attempt begins further on
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )

    def _note(self, span: Span, error: BaseException) -> str:
        """Note why a chunk is retried, and return it."""
        lost = not isinstance(error, ApplicationError)
        why = "its worker was lost" if lost else str(error)
        self._trouble[span.start] = f"a chunk is retried: {why}"
        return why

    async def _lane_before(self, chunk: Chunk) -> None:
        """Do the same as `_lane` in the steps of the version that kept unfinished results here."""
        result = await self._call(chunk)
        if result.why is not None:
            self._pause(result.why)
            result.why = None
        if not result.done or not await self._record(chunk, result):
            self._state.unfinished.append(Chunk(span=chunk.span, so_far=result))

    async def _call(self, chunk: Chunk) -> ChunkResult:
        """Have a worker do the chunk; return the result, or a lost worker's last progress."""
        progress, so_far, lost, failed, why = self._state.progress, chunk.so_far, 0, 0, ""
        while lost < _LOST and failed < _FAILED:
            if self._draining:
                return so_far
            proved = progress.users_done + so_far.rows.users_done > 0
            call = self._call_worker(Chunk(span=chunk.span, so_far=so_far, proved=proved))
            # A condition is checked when nothing else can run, so a result that is there is kept.
            await workflow.wait_condition(lambda: call.done() or self._draining)  # noqa: B023  awaited here
            if not call.done():
                call.cancel()
            try:
                return await call
            except ActivityError as error:
                cause = error.cause or error
            if isinstance(cause, CancelledError):
                return so_far  # no worker had it
            so_far = _last_word(cause) or so_far
            why = self._note(chunk.span, cause)
            if isinstance(cause, ApplicationError):
                failed += 1
            else:
                lost += 1
            await asyncio.sleep(_FENCE)
            del self._trouble[chunk.span.start]
        self._pause(f"a chunk failed repeatedly: {why}")
        return so_far

    async def _record(self, chunk: Chunk, result: ChunkResult, attempts: int = 0) -> bool:
        """Record the result; return False if a cancelled run did not wait for the journal."""
        state, start = self._state, chunk.span.start
        state.progress.results += 1
        name = "record_result" if self._records_at_once else "record_chunk"
        if self._records_at_once and not (
            result.done or result.requests or result.rows.positions()
        ):
            return True  # nothing to record
        # At the end, an older copy of the journal has to do.
        plan = self._plan if attempts else self._plan_now
        call = _journal(name, plan, chunk.span, result, kind=list[Failure], attempts=attempts)
        self._in_hand[start] = result
        if not attempts and not await self._known(call):
            return False  # it is recorded at the end
        try:
            failures: list[Failure] = await call
        finally:
            del self._in_hand[start]
        add_result(state.progress, result)
        for name, count in kinds(result.rows).items():
            state.progress.kinds[name] = state.progress.kinds.get(name, 0) + count
        state.progress.done += chunk.span.end - chunk.span.start if result.done else 0
        state.add_failures(failures)
        return True

    async def _known(self, call: ActivityHandle[Any]) -> bool:
        """Return whether the coordinator has answered; a cancelled run does not wait for it."""
        await workflow.wait_condition(lambda: call.done() or self._cancelled)
        if call.done():
            return True
        call.cancel()
        with suppress(ActivityError):
            await call
        return False

    def _pause(self, why: str) -> None:
        if self._cancelled:  # nobody could resume it
            return
        self._state.progress.paused = self._state.progress.paused or why
        self._draining = self._draining or bool(self._lanes)

    def _history_is_full(self) -> bool:
        info = workflow.info()
        return (
            info.get_current_history_length() > _MAX_EVENTS
            or info.get_current_history_size() > _MAX_HISTORY
        )


def _reason(error: ActivityError) -> str:
    return error.cause.message if isinstance(error.cause, ApplicationError) else str(error.cause)


def _last_word(error: BaseException) -> ChunkResult | None:
    """Return the progress in the last heartbeat of a worker that lost its chunk."""
    match error:
        case TimedOutError(last_heartbeat_details=[result]) | ApplicationError(details=[result]):
            return msgspec.convert(result, ChunkResult)
        case _:
            return None
