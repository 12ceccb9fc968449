"""The worker: takes chunks of the tenant's runs and makes their calls through one session."""

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import aiohttp
from msgspec import structs
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from monocloud_async.bulk.run import BulkRun
from monocloud_async.endpoint import BulkOperation, bulk_operation
from monocloud_async.errors import ConfigurationError, MonoCloudError
from monocloud_async.fleet.lanes import MAX_LANES
from monocloud_async.fleet.messages import Chunk, ChunkResult, Plan
from monocloud_async.fleet.sources import Sources
from monocloud_async.fleet.temporal import connect, with_message_codec, work, worker_queue
from monocloud_async.fleet.workflow import BEAT, CHUNK_ACTIVITY, HEARTBEAT
from monocloud_async.outcome import DONE, BulkReport, Outcome
from monocloud_async.session import MonoCloudSession

_GRACE: Final = timedelta(seconds=60)  # for the calls in flight, when a worker is asked to end


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
    worker = Worker(
        with_message_codec(client or await connect()),
        task_queue=worker_queue(session.tenant),
        activities=[_Activities(session, Sources(sources)).run_chunk],
        max_concurrent_activities=MAX_LANES,
        graceful_shutdown_timeout=_GRACE,
        # By default, the worker learns of a stop only after 80 % of the heartbeat timeout.
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        default_heartbeat_throttle_interval=timedelta(seconds=BEAT),
    )
    await work(worker)


class _Activities:
    def __init__(self, session: MonoCloudSession, sources: Sources) -> None:
        self._session = session
        self._sources = sources

    @activity.defn(name=CHUNK_ACTIVITY)
    async def run_chunk(self, plan: Plan, chunk: Chunk, max_rate: float) -> ChunkResult:
        """Return the result of the chunk, which is partial if the run or the worker stops."""
        before = chunk.so_far
        try:
            operation = bulk_operation(plan.operation)
            content = await self._sources.read(plan.source, chunk.span.start, chunk.span.end)
        except ConfigurationError as error:
            before.why = str(error)
            return before
        except (OSError, aiohttp.ClientError) as error:
            raise ApplicationError(f"cannot read {plan.source.where}: {error}", before) from None
        lines = plan.source.parse(content)
        user_ids = [line.user_id for line in lines if line.user_id is not None]
        before.bad_lines = len(lines) - len(user_ids)
        # The last owner of this lane may have sent a request just now.
        await asyncio.sleep(1 / max_rate)
        work = _ChunkRun(
            self._session,
            operation,
            user_ids,
            before,
            max_rate=max_rate,
            max_outage=plan.max_outage,
        )
        return await work.to_its_end(proved=chunk.proved)


class _ChunkRun:
    """The bulk run of one chunk, from the first call to a complete or partial result."""

    def __init__(
        self,
        session: MonoCloudSession,
        operation: BulkOperation,
        user_ids: Sequence[str],
        before: ChunkResult,
        *,
        max_rate: float,
        max_outage: float,
    ) -> None:
        known = before.rows.positions()
        self._positions = [each for each in range(len(user_ids)) if each not in known]
        self._size = len(user_ids)
        self._before = before
        self._rows = before.rows
        self._others: list[tuple[Outcome, int]] = []  # they may succeed when the run continues
        self._drained = self._lost = False
        self._loop = asyncio.get_running_loop()
        self._last_beat = self._loop.time()  # time of the last heartbeat
        self._next_beat: asyncio.Handle
        self._run: BulkRun = session.bulk(
            operation,
            [user_ids[position] for position in self._positions],
            max_rate=max_rate,
            max_outage=max_outage,
            on_outcome=self._take,
        )

    async def to_its_end(self, *, proved: bool) -> ChunkResult:
        """Return the result; raises if the chunk may already belong to another worker."""
        if proved:
            self._run.prove()
        running = asyncio.ensure_future(self._run)
        self._beat()
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            details = activity.cancellation_details()
            if details is None or details.timed_out or details.not_found:
                self._run.cancel()
                raise
            self._drain()
            await asyncio.wait({running})
        finally:
            self._next_beat.cancel()
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
            self._run.cancel()
            return
        self._last_beat = now
        self._next_beat = self._loop.call_later(BEAT, self._beat)
        activity.heartbeat(self._so_far())
        if activity.is_worker_shutdown():
            self._drain()

    def _drain(self) -> None:
        self._drained = True
        self._run.drain()

    def _take(self, outcome: Outcome) -> None:
        outcome = structs.replace(outcome, position=self._positions[outcome.position], user_id="")
        now = round(1000 * time.time())
        if outcome.status in DONE:
            self._rows.add(outcome, now)
        else:
            self._others.append((outcome, now))

    def _so_far(self) -> ChunkResult:
        before, report = self._before, self._run.report
        return ChunkResult(
            rows=self._rows,
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
        result.done = len(self._rows.positions()) == self._size
        return result


def _is_final(outcome: Outcome, cause: BaseException | None) -> bool:
    """Return whether to keep this outcome of a stopped run: not if its error stopped the run."""
    error = outcome.error
    if outcome.status == "not_attempted" or error is None or error.transient:
        return False
    return type(error) is not type(cause)
