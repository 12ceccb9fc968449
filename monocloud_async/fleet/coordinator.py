"""The coordinator: hosts the runs of a tenant, and writes their journals on its disk."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from sqlite3 import Error as SqliteError
from typing import TypeVar, TypeVarTuple

from msgspec import convert
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from monocloud_async.config import base_url
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.id_file import IdFile
from monocloud_async.fleet.journal import FleetJournal
from monocloud_async.fleet.messages import (
    ChunkResult,
    Failure,
    FleetReport,
    How,
    Left,
    Plan,
    Span,
    State,
)
from monocloud_async.fleet.temporal import connect, coordinator_queue, with_message_codec, work
from monocloud_async.fleet.workflow import BEAT, EnableUsers
from monocloud_async.journal.lock import JournalInUseError
from monocloud_async.journal.schema import USER_COLUMNS

Args = TypeVarTuple("Args")
T = TypeVar("T")


async def run_coordinator(domain: str | None = None, *, client: Client | None = None) -> None:
    """Host the runs of a tenant until cancelled. It needs no API key.

    Where it dies, its runs wait; the next one, on the same disk, goes on with them.

    Args:
        domain: the tenant. Default: the environment's `MONOCLOUD_MANAGEMENT_DOMAIN`.
        client: Temporal's. Default: what the environment names.

    Raises:
        ConfigurationError: no such domain, or what the environment says of Temporal is unusable.
        FleetError: no Temporal answers, or it refuses.
    """
    tenant = base_url(domain)
    records = _Records()
    worker = Worker(
        with_message_codec(client or await connect()),
        task_queue=coordinator_queue(tenant),
        workflows=[EnableUsers],
        activities=[records.left, records.record_chunk, records.close_journal],
        # The workflow's module keeps nothing outside its class, and a replay in the tests would
        # show a step that is not deterministic.
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_activities=1,
        disable_eager_activity_execution=True,
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        default_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        # Or whoever comes after a coordinator that died waits ten seconds for it.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
    try:
        await work(worker)
    finally:
        await records.end()


class _Records:
    """The activities around a run's journal; one is open at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: FleetJournal | None = None
        self._plan: Plan | None = None  # whose the open journal is

    @activity.defn
    async def left(self, plan: Plan) -> Left:
        """What the journal says is still to be done."""
        async with _beating():
            try:
                journal = await self._open(plan)
            except JournalInUseError:
                raise  # by a coordinator that ends just now, or by somebody who will
            except ConfigurationError as error:
                raise ApplicationError(str(error), type="refused", non_retryable=True) from None
            return await self._run(journal.left, _now())

    @activity.defn
    async def record_chunk(self, plan: Plan, span: Span, result: ChunkResult) -> list[Failure]:
        """Write what became of a chunk; answers who failed in it."""
        async with _beating():
            journal = await self._open(plan)
            until, position = await self._run(journal.before, span, _now())
            position += len(await _user_ids(plan.source, Span(until, span.start)))
            user_ids = await _user_ids(plan.source, span)
            rows = await self._run(journal.write, span, result, position, user_ids, _now())
        return [
            convert(dict(zip(USER_COLUMNS, row, strict=True)), Failure)
            for row in rows.others_each()
        ]

    @activity.defn
    async def close_journal(self, how: How, state: State) -> FleetReport:
        """What the run came to, by the journal itself, which is closed then."""
        async with _beating():
            journal = await self._open(state.plan)
            left = await self._run(journal.left, _now())
            await self._let_go(how)
        progress = state.progress
        return FleetReport(
            how=how,
            gaps=sorted([*left.gaps, *(chunk.span for chunk in left.unfinished)], key=_start),
            failures=state.failures,
            enabled=left.enabled,
            failed=left.failed,
            unknown=left.unknown,
            bad_lines=left.bad_lines,
            requests=progress.requests,
            retries=progress.retries,
            throttled=progress.throttled,
        )

    async def end(self) -> None:
        """Let go of what is open; a run that is under way goes on with another coordinator."""
        await self._let_go(None)
        self._thread.shutdown(wait=False)

    async def _open(self, plan: Plan) -> FleetJournal:
        """The run's journal; another one's, whose run was terminated, is closed."""
        if self._journal is None or self._plan != plan:
            await self._let_go("interrupted")
            journal = FleetJournal(plan.journal, plan.tenant, plan.source)
            try:
                await self._run(journal.open, _now())
            except (OSError, SqliteError) as error:
                raise ConfigurationError(
                    f"cannot write the journal {journal.path} on {socket.gethostname()}: {error};"
                    " name another place for it"
                ) from None
            self._journal, self._plan = journal, plan
        return self._journal

    async def _let_go(self, how: str | None) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            with suppress(SqliteError, OSError):  # what is not on disk was told of before
                await self._run(journal.close, _now(), how)

    async def _run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """What the function returns, which the journal's thread runs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


@asynccontextmanager
async def _beating() -> AsyncIterator[None]:
    """Meanwhile Temporal is told that somebody is at work, or another coordinator gets it."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(BEAT)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


async def _user_ids(source: IdFile, span: Span) -> list[str]:
    if span.start >= span.end:
        return []
    lines = await source.lines(span.start, span.end)
    return [line.user_id for line in lines if line.user_id is not None]


def _start(span: Span) -> int:
    return span.start


def _now() -> int:
    return round(1000 * time.time())
