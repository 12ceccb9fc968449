"""The worker: takes chunks of the tenant's runs and makes their calls through one session."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Final

import aiohttp
from msgspec import MsgspecError, json, structs
from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from monocloud_async.bulk.run import BulkRun
from monocloud_async.endpoint import BulkOperation, bulk_operation
from monocloud_async.errors import ConfigurationError, MonoCloudError
from monocloud_async.fleet.checks import answering, key_check, source_check
from monocloud_async.fleet.codec import PayloadRefusedError
from monocloud_async.fleet.follower import Follower
from monocloud_async.fleet.heartbeats import beating
from monocloud_async.fleet.id_file import shown
from monocloud_async.fleet.lanes import MAX_LANES, RATE_OVER
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    FleetReport,
    Granted,
    Plan,
    Sign,
    Throttled,
)
from monocloud_async.fleet.pace import HEARD
from monocloud_async.fleet.sources import Sources
from monocloud_async.fleet.temporal import (
    FleetError,
    check_readable,
    connect,
    member_name,
    telling,
    translated,
    with_message_codec,
    work,
    worker_queue,
    workflow_id,
)
from monocloud_async.fleet.workflow import BEAT, CHUNK_ACTIVITY, HEARTBEAT, RunWorkflow
from monocloud_async.journal.store import Rows
from monocloud_async.outcome import DONE, BulkReport, Outcome
from monocloud_async.session import MonoCloudSession

_GRACE: Final = timedelta(seconds=60)  # for the calls in flight, when a worker is asked to end
_MAX_FAILED: Final = 1 << 19  # bytes of failures in a result, whose payload has at most 2 MB
_QUICK: Final = 0.15  # seconds between two questions during a pause
_OFTEN: Final = 0.5  # seconds between two questions else
_SHORT_PAUSE: Final = 4.0  # seconds; in a longer one, it is enough to ask as often as else
_ASK: Final = 2.0  # seconds between two questions of a worker that has left the run
_ASKED: Final = 10  # questions until the run must know that the worker has left
_ANSWER: Final = timedelta(seconds=5)  # timeout of a query
_LOG: Final = logging.getLogger("monocloud_async.fleet")


async def run_worker(
    session: MonoCloudSession,
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    client: Client | None = None,
) -> None:
    """Work for the runs of the session's tenant until cancelled, then hand back unfinished chunks.

    When cancelled, the worker lets the calls in flight finish and hands back the rest of its
    chunks, so no user is sent twice. The session stays open.

    Args:
        session: an open session; its retries, timeout and connections are used for every call.
        sources: the folders and URLs below which the worker reads ids: whoever reaches Temporal
            could name any file. Default: the working directory.
        client: the Temporal client. Default: one that the environment configures.

    Raises:
        ConfigurationError: the environment's configuration of Temporal, or a source, cannot be
            used.
        FleetError: Temporal cannot be reached, or refuses.
    """
    allowed = Sources(sources)
    client = with_message_codec(client or await connect())
    run = client.get_workflow_handle_for(RunWorkflow.run, workflow_id(session.tenant))
    news = _News(session, run)
    activities = _Activities(session, allowed, news)
    checks = source_check(allowed), key_check(session)
    with translated(session.tenant), suppress(RPCError):  # no run yet, or Temporal is down
        await check_readable(client, session.tenant)
    following = asyncio.create_task(news.exchange())
    following.add_done_callback(_log_error)
    try:
        async with answering(client, session.tenant, *checks):
            while True:
                await _until_left(client, session.tenant, activities)
                _LOG.warning("this worker leaves the run: %s; see `fleet status`", activities.why)
                await _until_away(run, away=True)
                await _until_away(run, away=False)
                activities.take_in()
    finally:
        following.cancel()
        news.follower.close()
        await asyncio.wait({following})


def _log_error(following: asyncio.Task[None]) -> None:
    """Tell at once that the session has no news any more: it goes on at the last rate."""
    if not following.cancelled() and (error := following.exception()) is not None:
        _LOG.error("this worker hears no news of the run's rate any more", exc_info=error)


async def _until_left(client: Client, tenant: str, activities: "_Activities") -> None:
    """Take chunks until this worker leaves the run.

    Raises:
        FleetError: Temporal refuses the worker, or the messages of the run need another key.
    """
    refused = asyncio.Event()
    worker = Worker(
        telling(client, lambda _: refused.set()),
        identity=member_name(),
        task_queue=worker_queue(tenant),
        activities=[activities.run_chunk],
        max_concurrent_activities=MAX_LANES,
        graceful_shutdown_timeout=_GRACE,
        # By default, the worker learns of a stop only after 80 % of the heartbeat timeout.
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        default_heartbeat_throttle_interval=timedelta(seconds=BEAT),
    )
    leaving = asyncio.create_task(activities.left.wait())
    looking = asyncio.create_task(_until_unreadable(client, tenant, refused))
    working = asyncio.create_task(work(worker))
    try:
        await asyncio.wait({leaving, looking, working}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()  # the worker then lets the calls in flight finish
        await asyncio.wait({working})
    except asyncio.CancelledError:
        if not working.cancelling():  # a second cancel would cut the calls
            working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        raise
    finally:
        leaving.cancel()
        looking.cancel()
    with suppress(asyncio.CancelledError):
        working.result()
    if looking.done():
        raise FleetError(str(looking.result()))


async def _until_unreadable(
    client: Client, tenant: str, refused: asyncio.Event
) -> PayloadRefusedError:
    """Return the error if the run needs another key; anybody could write a message to refuse."""
    while True:
        await refused.wait()
        refused.clear()
        try:
            await check_readable(client, tenant)
        except PayloadRefusedError as error:
            return error
        except RPCError:  # Temporal is down, or the run has ended
            pass
        _LOG.warning(
            "a message for this worker is refused, because nobody with the fleet's key has written"
            " it: find out who else reaches Temporal, or whether a part has another key first"
        )


async def _until_away(run: WorkflowHandle[RunWorkflow, FleetReport], *, away: bool) -> None:
    """Wait until the run counts this worker as away, or until it takes it in again.

    It is taken in by a `resume`, and when the run has ended.
    """
    for _ in range(_ASKED) if away else count():
        try:
            progress = await run.query(RunWorkflow.progress, rpc_timeout=_ANSWER)
            if (member_name() in progress.away) == away:
                return
            if (await run.describe()).status != WorkflowExecutionStatus.RUNNING:
                return
        # Temporal or the coordinator may be down, or of another version.
        except (RPCError, WorkflowQueryFailedError) as error:
            if isinstance(error, RPCError) and error.status == RPCStatusCode.NOT_FOUND:
                return
        await asyncio.sleep(_ASK)


class _News:
    """What the session and the workflow tell each other about the tenant's rate.

    Args:
        session: the session of the worker.
        run: the workflow.

    Attributes:
        follower: keeps the session at its part of the rate.
    """

    def __init__(
        self, session: MonoCloudSession, run: WorkflowHandle[RunWorkflow, FleetReport]
    ) -> None:
        self._run = run
        self._outbox: deque[Throttled | Granted] = deque()
        self._something = asyncio.Event()
        self._answered = asyncio.Event()
        self.follower = Follower(
            session.pace, member_name(), self._tell, asyncio.get_running_loop().time
        )

    def _tell(self, news: Throttled | Granted) -> None:
        self._outbox.append(news)
        self._something.set()

    async def first(self) -> None:
        """Wait until a chunk that begins now may use its part of the rate, but not for long."""
        if self.follower.chunks == 1:  # what is known may be old, or of another run
            self._answered.clear()
        self._something.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), BEAT)
        if self.follower.joins:
            await asyncio.sleep(HEARD)

    async def exchange(self) -> None:
        """Send what there is to tell, and ask for news twice a second; more often in a pause."""
        clock, pausing, logged = asyncio.get_running_loop().time, 0.0, ""
        while True:
            self._something.clear()
            self.follower.limit_runs()
            # Temporal or the coordinator may be down, or of another version: then the session
            # has to do without.
            try:
                await self._exchange_once()
            except (RPCError, WorkflowQueryFailedError):
                pass
            except (MonoCloudError, MsgspecError) as error:  # who else writes there cannot be read
                if str(error) != logged:
                    logged = str(error)
                    _LOG.warning("the answer of the run's workflow cannot be read: %s", logged)
            if not self.follower.waits:
                pausing = clock()
            quick = self.follower.waits and clock() - pausing < _SHORT_PAUSE
            with suppress(TimeoutError):
                await asyncio.wait_for(self._something.wait(), _QUICK if quick else _OFTEN)

    async def _exchange_once(self) -> None:
        while self._outbox:
            await self._send(self._outbox.popleft())
        if self.follower.chunks:
            epoch = list(self.follower.epoch)
            self.follower.hear(
                await self._run.query(RunWorkflow.pace, args=epoch, rpc_timeout=_ANSWER)
            )
            self._answered.set()

    async def _send(self, news: Throttled | Granted) -> None:
        if isinstance(news, Throttled):
            await self._run.signal(RunWorkflow.throttled, news, rpc_timeout=_ANSWER)
        else:
            await self._run.signal(RunWorkflow.granted, news, rpc_timeout=_ANSWER)


class _Meter:
    """The rate of a worker, over all of its chunks."""

    def __init__(self) -> None:
        self._runs: list[BulkRun] = []
        self._before = 0  # requests of the runs that have ended
        self._counted: deque[tuple[float, int]] = deque()
        self._of: str | None = None  # the workflow that they are of

    def begin(self, run: BulkRun, now: float, of: str | None) -> None:
        """Count the requests of this chunk of the run `of` as well.

        Those before another run, or before a rest, say nothing of the rate.
        """
        has_rested = bool(self._counted) and self._counted[-1][0] <= now - RATE_OVER
        if not self._runs and (has_rested or of != self._of):
            self._counted.clear()
        self._of = of
        self._runs.append(run)
        self.rate(now)

    def end(self, run: BulkRun) -> None:
        """Count no more requests of this run."""
        self._runs.remove(run)
        self._before += run.report.requests

    def rate(self, now: float) -> tuple[float, float]:
        """Return how many requests there were per second, and in the last how many seconds."""
        counted = self._before + sum(run.report.requests for run in self._runs)
        self._counted.append((now, counted))
        while len(self._counted) > 1 and self._counted[1][0] <= now - RATE_OVER:
            self._counted.popleft()
        began, before = self._counted[0]
        seconds = min(now - began, RATE_OVER + BEAT)  # it may have had no chunk for a while
        return ((counted - before) / seconds if seconds > 0 else 0.0), seconds


class _Activities:
    """The work of a worker.

    Attributes:
        left: set when the worker has left the run.
        why: the reason, or None.
    """

    def __init__(self, session: MonoCloudSession, sources: Sources, news: "_News") -> None:
        self._session = session
        self._news = news
        self._follower = news.follower
        self._sources = sources
        self._meter = _Meter()
        self.left = asyncio.Event()
        self.why: str | None = None

    def take_in(self) -> None:
        """Take chunks again."""
        self.why = None
        self.left.clear()

    @activity.defn(name=CHUNK_ACTIVITY)
    async def run_chunk(self, plan: Plan, chunk: Chunk, max_rate: float | None) -> ChunkResult:
        """Return the result of the chunk, which is partial if the run or the worker stops."""
        result = chunk.so_far
        if chunk.so_far.digest:  # what is known is recorded, and the result has only what is new
            result = ChunkResult(digest=chunk.so_far.digest)
        if self.why is None:
            self._follower.chunks += 1
            try:
                await self._news.first()
                result = await self._run(plan, chunk, result, max_rate)
            finally:
                self._follower.end_chunk()
            self.why = self.why or result.why
        if self.why is not None:
            result.why, result.worker = self.why, member_name()
            self.left.set()
        return result

    async def _run(
        self, plan: Plan, chunk: Chunk, before: ChunkResult, max_rate: float | None
    ) -> ChunkResult:
        span, where = chunk.span, shown(plan.source.where)
        async with beating():  # the source may be slow, and so may be the lane
            try:
                operation = bulk_operation(plan.operation)
                content = await self._sources.read(plan.source, span.start, span.end, before.digest)
            except ConfigurationError as error:
                before.why = str(error)
                return before
            except (OSError, aiohttp.ClientError) as error:
                before.why = f"cannot read {where}: {error}"
                return before
            lines = plan.source.parse(content)
            user_ids = [line.user_id for line in lines if line.user_id is not None]
            before.bad_lines = len(lines) - len(user_ids)
            if max_rate is not None:  # the last owner of this lane may have sent a request just now
                await asyncio.sleep(1 / max_rate)
        work = _ChunkRun(
            self._session,
            operation,
            user_ids,
            before,
            chunk.so_far.rows.positions(),
            meter=self._meter,
            follower=self._follower,
            max_rate=max_rate,
            max_outage=plan.max_outage,
        )
        self._follower.runs[work.run] = max_rate
        try:
            return await work.to_its_end(proved=chunk.proved)
        finally:
            del self._follower.runs[work.run]


class _ChunkRun:
    """The bulk run of one chunk, from the first call to a complete or partial result.

    Attributes:
        run: the bulk run.
    """

    def __init__(
        self,
        session: MonoCloudSession,
        operation: BulkOperation,
        user_ids: Sequence[str],
        before: ChunkResult,
        known: set[object],
        *,
        meter: _Meter,
        follower: Follower,
        max_rate: float | None,
        max_outage: float,
    ) -> None:
        self._positions = [each for each in range(len(user_ids)) if each not in known]
        self._room = _MAX_FAILED  # bytes
        self._meter = meter
        self._follower = follower
        self._before = before
        self._rows = before.rows
        self._others: list[tuple[Outcome, int]] = []  # they may succeed when the run continues
        self._drained = self._lost = False
        self._loop = asyncio.get_running_loop()
        self._last_beat = self._loop.time()  # time of the last heartbeat
        self._next_beat: asyncio.Handle
        self.run: BulkRun = session.bulk(
            operation,
            [user_ids[position] for position in self._positions],
            max_rate=max_rate,
            max_outage=max_outage,
            on_outcome=self._take,
        )

    async def to_its_end(self, *, proved: bool) -> ChunkResult:
        """Return the result; raises if the chunk may already belong to another worker."""
        if proved:
            self.run.prove()
        self._meter.begin(self.run, self._loop.time(), activity.info().workflow_run_id)
        running = asyncio.ensure_future(self.run)
        self._beat()
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is None or details.timed_out or details.not_found:
                self.run.cancel()
                raise
            self._drain()
            await asyncio.wait({running})
        finally:
            self._next_beat.cancel()
            self._meter.end(self.run)
        if self._lost:
            raise ApplicationError("the worker sent no heartbeat for too long", self._so_far())
        return self._ended(running)

    def _beat(self) -> None:
        """Send a heartbeat with the progress every second; drain if the worker shuts down.

        A timer's callback, not a task: after a suspension, it runs before any waiting task does.
        """
        now = self._loop.time()
        if now - self._last_beat > HEARTBEAT:
            # The process was suspended or starved: another worker now has the chunk and its rate.
            self._lost = True
            self.run.cancel()
            return
        self._last_beat = now
        self._next_beat = self._loop.call_later(BEAT, self._beat)
        activity.heartbeat(structs.replace(self._so_far(), sign=self._sign()))
        if activity.is_worker_shutdown():
            self._drain()

    def _drain(self) -> None:
        self._drained = True
        self.run.drain()

    def _take(self, outcome: Outcome) -> None:
        outcome = structs.replace(outcome, position=self._positions[outcome.position], user_id="")
        now = round(1000 * time.time())
        if outcome.status in DONE:
            self._rows.add(outcome, now)
        else:
            self._others.append((outcome, now))
            self._room -= len(json.encode(Rows.of([outcome], now).others))
            if self._room < 0:  # the rest is done after these are recorded
                self._drain()

    def _sign(self) -> Sign:
        pace = self.run.pace
        rate, seconds = self._meter.rate(self._loop.time())
        return Sign(
            users=len(self._positions),
            rate=rate,
            seconds=seconds,
            worker=member_name(),
            learnt=pace.rate,
            pause_left=self._follower.pause_left,
            outage=pace.down_for(self._loop.time()),
            moment=time.time(),
        )

    def _so_far(self) -> ChunkResult:
        before, report = self._before, self.run.report
        return ChunkResult(
            rows=self._rows,
            digest=before.digest,
            bad_lines=before.bad_lines,
            requests=before.requests + report.requests,
            retries=before.retries + report.retries,
            throttled=before.throttled + report.throttled,
            paused=before.paused + report.paused_seconds,
        )

    def _ended(self, running: asyncio.Future[BulkReport]) -> ChunkResult:
        why: str | None = None
        cause: BaseException | None = None
        try:
            running.result()
        except MonoCloudError as error:
            why, cause = str(error), error.__cause__
        for outcome, moment in self._others:
            if not (why or self._drained) or _is_final(outcome, cause):
                self._rows.add(outcome, moment)
        result = self._so_far()
        result.why = why
        result.sign = self._sign()
        result.done = self._rows.positions().issuperset(self._positions)
        return result


def _is_final(outcome: Outcome, cause: BaseException | None) -> bool:
    """Return whether to keep this outcome of a stopped run: not if its error stopped the run."""
    error = outcome.error
    if outcome.status == "not_attempted" or error is None or error.transient:
        return False
    return type(error) is not type(cause)
