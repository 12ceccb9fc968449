"""The run itself: which chunk goes out when, on how many lanes, and what becomes of the results.

Lanes hold the tenant's rate over the whole fleet: at most so many chunks are out at once, each
with its share of the rate. A lane is free again when its result is in the journal, so no more
than one result a lane is ever under way.

Deterministic, as Temporal wants it: whatever runs here runs again, from the recorded history, when
the coordinator comes back (https://docs.temporal.io/workflows#deterministic-constraints).
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

import msgspec
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from monocloud_async.fleet.messages import (
    MAX_FAILURES,
    Chunk,
    ChunkResult,
    Failure,
    FleetReport,
    How,
    Left,
    Progress,
    Span,
    State,
    count,
)
from monocloud_async.fleet.temporal import worker_queue

MAX_LANES: Final = 16
LANE_RATE: Final = 50.0  # requests a second that are worth a lane of their own
HEARTBEAT: Final = 10.0  # seconds without a sign of life, then a worker is given up

# Until the attempt after a lost one. The lost worker's own client tells it so 5 s after the others
# know; until then its lane is nobody's, so that no rate is given out twice.
_FENCE: Final = 6.0
_LONGEST: Final = 30.0  # seconds of work that a chunk is
_SHORTEST: Final = 2.0
_ATTEMPTS: Final = 20  # workers that may be lost over one chunk, before the run pauses for it
_MAX_USERS: Final = 20_000  # that are out at once: what became of them has to fit one payload
# Temporal ends a workflow at 51,200 events or 50 MB of history
# (https://docs.temporal.io/workflow-execution/limits).
_MAX_EVENTS: Final = 10_000
_MAX_HISTORY: Final = 20 << 20


def _retry(attempts: int = 0) -> RetryPolicy:
    """So many attempts, 0 for any number."""
    pause = timedelta(seconds=_FENCE)
    return RetryPolicy(initial_interval=pause, backoff_coefficient=1.0, maximum_attempts=attempts)


def lanes(max_rate: float) -> int:
    """On how many lanes a rate is spread: few enough for each to keep its pace well."""
    return min(MAX_LANES, max(1, int(max_rate // LANE_RATE)))


@workflow.defn(name="enable_users")
class EnableUsers:
    """One run over a fleet, from the first chunk to the proof that none is missing."""

    @workflow.init
    def __init__(self, state: State) -> None:
        self._plan, self._state = state.plan, state
        self._lanes: set[asyncio.Task[None]] = set()
        self._calls: dict[int, workflow.ActivityHandle[ChunkResult]] = {}  # by the chunk's start
        self._laying_down = False  # until every lane is empty

    @workflow.run
    async def run(self, _state: State) -> FleetReport:
        """What the run came to."""
        how: How = "finished"
        try:
            while await self._some_left():
                await self._enable()
        except asyncio.CancelledError:
            how = "cancelled"
            await self._lay_down()
            await self._record_rests()
        report: FleetReport = await workflow.execute_activity(
            "close_journal",
            args=[how, self._state],
            result_type=FleetReport,
            start_to_close_timeout=timedelta(minutes=10),
            retry_policy=_retry(),
        )
        return report

    @workflow.query
    def progress(self) -> Progress:
        """How the run stands."""
        return msgspec.structs.replace(self._state.progress, chunks=len(self._lanes))

    @workflow.query
    def failures(self) -> list[Failure]:
        """The first thousand users who are not enabled."""
        return self._state.failures

    @workflow.signal
    def pause(self, why: str) -> None:
        """Hand out no more chunks; those that are out come back as far as they are."""
        self._pause(why)

    @workflow.signal
    def resume(self) -> None:
        """Go on."""
        self._state.progress.paused = None

    @workflow.signal
    def set_rate(self, max_rate: float) -> None:
        """Go on at another rate, once the chunks that are out have come back."""
        if max_rate != self._state.progress.max_rate:
            self._state.progress.max_rate = max_rate
            self._call_back()

    async def _some_left(self) -> bool:
        """Whether there is something to do, by the journal itself."""
        state = self._state
        if state.gaps is None:
            left = await workflow.execute_activity(
                "left",
                args=[self._plan],
                result_type=Left,
                start_to_close_timeout=timedelta(minutes=10),
                retry_policy=_retry(),
            )
            state.gaps, state.rests = left.gaps, left.rests
            progress = state.progress
            progress.enabled, progress.failed = left.enabled, left.failed
            progress.unknown, progress.bad_lines = left.unknown, left.bad_lines
            for rest in left.rests:  # counted when it is whole
                progress.enabled -= rest.so_far.rows.count("enabled")
                progress.failed -= rest.so_far.rows.count("failed")
                progress.unknown -= rest.so_far.rows.count("unknown")
            spans = [*left.gaps, *(rest.span for rest in left.rests)]
            progress.done = progress.size - sum(span.end - span.start for span in spans)
        return bool(state.gaps or state.rests)

    async def _enable(self) -> None:
        """Hand out all there is, and see it come back."""
        state = self._state
        while self._lanes or state.gaps or state.rests:
            if self._history_is_full():
                await self._lay_down()
                workflow.continue_as_new(state)
            while self._has_room():
                self._lanes.add(asyncio.create_task(self._lane(self._next())))
            await workflow.wait_condition(self._changed)
            for lane in [lane for lane in self._lanes if lane.done()]:
                self._lanes.discard(lane)
                lane.result()
            self._laying_down = self._laying_down and bool(self._lanes)
        state.gaps = None  # what is left now, the journal knows

    def _changed(self) -> bool:
        return self._has_room() or any(lane.done() for lane in self._lanes)

    def _has_room(self) -> bool:
        state = self._state
        return (
            bool(state.gaps or state.rests)
            and state.progress.paused is None
            and not self._laying_down
            and len(self._lanes) < lanes(state.progress.max_rate)
        )

    def _next(self) -> Chunk:
        """What was begun first; else a piece of the source, smaller towards the end.

        So the lanes end at about the same time.
        """
        state, source = self._state, self._plan.source
        if state.rests:
            return state.rests.pop(0)
        assert state.gaps  # noqa: S101  looked at by `_has_room`
        gap, rate = state.gaps[0], state.progress.max_rate
        share = sum(gap.end - gap.start for gap in state.gaps) / (2 * lanes(rate))
        longest = min(_LONGEST * rate, _MAX_USERS) / lanes(rate) * source.line
        shortest = min(_SHORTEST * rate, _MAX_USERS) / lanes(rate) * source.line
        end = min(gap.end, gap.start + int(min(longest, max(shortest, share))) + 1)
        state.gaps[:1] = [Span(end, gap.end)] if end < gap.end else []
        return Chunk(span=Span(gap.start, end))

    async def _lane(self, chunk: Chunk) -> None:
        result = await self._call(chunk)
        if result.why is not None:
            self._pause(result.why)
        if result.done:
            await self._record(chunk, result)
        else:
            result.why = None
            self._state.rests.append(Chunk(span=chunk.span, so_far=result))

    async def _call(self, chunk: Chunk) -> ChunkResult:
        """What became of the chunk, on whichever worker takes it."""
        progress = self._state.progress
        call: workflow.ActivityHandle[ChunkResult] = workflow.start_activity(
            "enable_chunk",
            args=[self._plan, chunk, progress.max_rate / lanes(progress.max_rate)],
            result_type=ChunkResult,
            task_queue=worker_queue(self._plan.tenant),
            start_to_close_timeout=timedelta(days=1),
            heartbeat_timeout=timedelta(seconds=HEARTBEAT),
            retry_policy=_retry(_ATTEMPTS),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        self._calls[chunk.span.start] = call
        try:
            return await call
        except ActivityError as error:
            if not self._laying_down:  # else no worker had it, and nothing happened
                self._pause(f"a chunk failed again and again: {error.cause or error}")
            return chunk.so_far
        finally:
            del self._calls[chunk.span.start]

    async def _record_rests(self) -> None:
        """No user who was enabled is forgotten, also where the run ends here."""
        for rest in self._state.rests:
            if rest.so_far.rows.positions():
                with suppress(ActivityError):  # the file may be gone, and the run with it
                    await self._record(rest, rest.so_far, attempts=3)

    async def _record(self, chunk: Chunk, result: ChunkResult, attempts: int = 0) -> None:
        state = self._state
        failures = await workflow.execute_activity(
            "record_chunk",
            args=[self._plan, chunk.span, result],
            result_type=list[Failure],
            start_to_close_timeout=timedelta(minutes=10),
            retry_policy=_retry(attempts),
        )
        count(state.progress, result)
        state.progress.done += chunk.span.end - chunk.span.start if result.done else 0
        state.failures += failures[: MAX_FAILURES - len(state.failures)]

    def _pause(self, why: str) -> None:
        self._state.progress.paused = self._state.progress.paused or why
        self._call_back()

    def _call_back(self) -> None:
        """Ask the workers for what they have: they finish the calls in flight, and no more."""
        self._laying_down = bool(self._lanes)
        for call in self._calls.values():
            call.cancel()

    async def _lay_down(self) -> None:
        """Have every lane empty."""
        self._call_back()
        # Not `await lane`: a cancel of the run that comes now would take the lane along.
        await workflow.wait_condition(lambda: all(lane.done() for lane in self._lanes))
        for lane in self._lanes:
            lane.result()
        self._lanes.clear()

    def _history_is_full(self) -> bool:
        info = workflow.info()
        return (
            info.get_current_history_length() > _MAX_EVENTS
            or info.get_current_history_size() > _MAX_HISTORY
        )
