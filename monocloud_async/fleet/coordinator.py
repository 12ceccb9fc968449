"""The coordinator: hosts the runs of a tenant and writes their journals to its disk."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from sqlite3 import Error as SqliteError
from typing import Final, TypeVar, TypeVarTuple

import aiohttp
from msgspec import structs
from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from monocloud_async.config import base_url
from monocloud_async.endpoint import bulk_operation
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.checks import Question, answering, folder_check, source_check
from monocloud_async.fleet.heartbeats import beating
from monocloud_async.fleet.id_file import IdFile, digest_of, shown
from monocloud_async.fleet.journal import FleetJournal, HandedOut, OtherJournalError, name_in_folder
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    Failure,
    FleetReport,
    How,
    Plan,
    Remaining,
    RunState,
    Span,
)
from monocloud_async.fleet.sources import Sources
from monocloud_async.fleet.temporal import (
    connect,
    coordinator_queue,
    member_name,
    with_message_codec,
    work,
)
from monocloud_async.fleet.workflow import BEAT, RunWorkflow
from monocloud_async.journal.lock import JournalInUseError
from monocloud_async.journal.paths import real_path
from monocloud_async.journal.schema import COORDINATOR_ENDED

Pause = Callable[[str, str, str], Awaitable[None]]
Args = TypeVarTuple("Args")
T = TypeVar("T")

_ANSWER: Final = timedelta(seconds=5)  # timeout of a query


async def run_coordinator(
    domain: str | None = None,
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    client: Client | None = None,
) -> None:
    """Host the runs of a tenant until cancelled; needs no API key.

    Journals are in the working directory. If the coordinator dies, its runs wait until another one
    starts with the same disk.

    Args:
        domain: the tenant. Default: the environment's `MONOCLOUD_MANAGEMENT_DOMAIN`.
        sources: the folders and URLs below which the coordinator reads ids. Default: the working
            directory.
        client: the Temporal client. Default: one that the environment configures.

    Raises:
        ConfigurationError: the domain, a source or the configuration of Temporal, cannot be used.
        FleetError: Temporal cannot be reached, or refuses.
    """
    tenant = base_url(domain)
    allowed = Sources(sources)
    client = with_message_codec(client or await connect())

    async def pause(id_of_workflow: str, run_id: str, why: str) -> None:
        run = client.get_workflow_handle_for(RunWorkflow.run, id_of_workflow, run_id=run_id)
        with suppress(RPCError, WorkflowQueryFailedError):  # the next attempt tries again
            if (await run.query(RunWorkflow.progress, rpc_timeout=_ANSWER)).paused is None:
                await run.signal(RunWorkflow.pause, why)

    records = _Records(Path.cwd(), allowed, pause)
    worker = Worker(
        client,
        identity=member_name(),
        task_queue=coordinator_queue(tenant),
        workflows=[RunWorkflow],
        activities=[
            records.left,
            records.begin_chunk,
            records.record_result,
            records.record_chunk,
            records.close_journal,
        ],
        # The workflow's module has no global state, and a replay in the tests would reveal a
        # non-deterministic step.
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_activities=1,
        disable_eager_activity_execution=True,
        max_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        default_heartbeat_throttle_interval=timedelta(seconds=BEAT),
        # By default, the successor of a dead coordinator waits ten seconds for it.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
    checks = source_check(allowed), partial(records.check, tenant)
    try:
        async with answering(client, tenant, *checks):
            await work(worker)
    finally:
        await records.end()


class _Records:
    """The activities that use the journal of a run; one journal is open at a time.

    Args:
        folder: the folder of the journals.
        sources: the files of ids that may be read.
        pause: pauses a run, given by workflow id and run id, with a reason.
    """

    def __init__(self, folder: Path, sources: Sources, pause: Pause) -> None:
        self._folder = folder
        self._sources = sources
        self._pause = pause
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: FleetJournal | None = None
        self._plan: Plan | None = None  # the plan of the open journal

    @activity.defn
    async def left(self, plan: Plan) -> Remaining:
        """Return the work that is left, according to the journal."""
        async with self._opened(plan) as journal:
            return await self._run(journal.left, _now())

    @activity.defn
    async def begin_chunk(self, plan: Plan, span: Span) -> Chunk:
        """Keep the ids of a chunk in the journal, and return the chunk for a worker."""
        async with self._opened(plan) as journal:
            known = await self._run(journal.chunk, span, _now())
            if known is not None:
                return known
            try:
                position = await self._position(journal, plan.source, span)
                content = await self._sources.read(plan.source, span.start, span.end)
            except (OSError, aiohttp.ClientError) as error:
                raise ApplicationError(
                    f"the coordinator {member_name()} cannot read {shown(plan.source.where)}:"
                    f" {error}"
                ) from None
            lines = plan.source.parse(content)
            ids = [line.user_id for line in lines if line.user_id is not None]
            kept = HandedOut(position, digest_of(content), len(lines) - len(ids), ids)
            await self._run(journal.hand_out, span, kept, _now())
            return await self._run(journal.chunk, span, _now()) or Chunk(span=span)

    @activity.defn
    async def record_result(self, plan: Plan, span: Span, result: ChunkResult) -> list[Failure]:
        """Write the result of a chunk, complete or not, and return its first failures."""
        async with self._opened(plan) as journal:
            return await self._run(journal.record, span, result, _call(), _now())

    @activity.defn
    async def record_chunk(self, plan: Plan, span: Span, result: ChunkResult) -> list[Failure]:
        """Do the same for a run that an earlier version began, from the file of ids."""
        async with self._opened(plan) as journal:
            position = await self._position(journal, plan.source, span)
            user_ids = await self._user_ids(plan.source, span)
            chunk = HandedOut(position, "", result.bad_lines, user_ids)
            return await self._run(journal.write, span, result, chunk, _call(), _now())

    @activity.defn
    async def close_journal(self, how: How, state: RunState) -> FleetReport:
        """Close the journal, and return the report of the run according to it."""
        async with self._opened(state.plan) as journal:
            left = await self._run(journal.left, _now())
            await self._let_go(how)
        progress = state.progress
        progress.set_users(left)
        return FleetReport(
            how=how,
            gaps=sorted([*left.gaps, *(chunk.span for chunk in left.unfinished)], key=_start),
            failures=state.failures,
            **progress.counts(),
        )

    async def check(self, tenant: str, question: Question) -> str:
        """Return what is fine with the journal; raises `ConfigurationError` if it is not."""
        await self._run(folder_check, self._folder)
        if question.journal is None:
            return "folder of the journals"
        path = self._path(question.journal)
        if self._journal is not None and self._journal.path == real_path(path):
            return f"journal {path.name}, which the run in progress uses"
        if question.source is None:
            return "folder of the journals"
        operation = bulk_operation(question.operation)
        journal = FleetJournal(path, tenant, operation, question.source)
        try:
            return await self._run(journal.check)
        except (OSError, SqliteError) as error:
            raise ConfigurationError(f"cannot use the journal {path}: {error}") from None

    async def end(self) -> None:
        """Close the open journal; another coordinator can continue a running run."""
        await self._let_go(COORDINATOR_ENDED)
        self._thread.shutdown(wait=False)

    @asynccontextmanager
    async def _opened(self, plan: Plan) -> AsyncIterator[FleetJournal]:
        """Yield the journal of the run, and send heartbeats meanwhile.

        If it is not here, the run is paused, and Temporal tries again: another coordinator may have
        it. Everything else that cannot be used is refused for good.
        """
        async with beating():
            try:
                yield await self._open(plan)
            except JournalInUseError:
                raise  # Temporal retries, as the holder will end
            except OtherJournalError as error:
                info = activity.info()
                await self._pause(info.workflow_id or "", info.workflow_run_id or "", str(error))
                raise ApplicationError(str(error), type="other journal") from None
            except SqliteError as error:
                raise _unwritten(self._path(plan.journal), error) from None
            except ConfigurationError as error:
                raise ApplicationError(str(error), type="refused", non_retryable=True) from None

    async def _open(self, plan: Plan) -> FleetJournal:
        """Return the journal of the run; closes that of another run, which was terminated."""
        # The plan has the identity of the journal only after the journal was opened.
        expected, recorded = plan.journal_id, plan.recorded
        plan = structs.replace(plan, journal_id=None, recorded=0)
        if self._journal is not None and expected not in {None, self._journal.identity}:
            await self._let_go(None)
        if self._journal is None or self._plan != plan:
            await self._let_go("interrupted")
            journal = FleetJournal(
                self._path(plan.journal),
                plan.tenant,
                bulk_operation(plan.operation),
                plan.source,
                expected,
            )
            try:
                await self._run(journal.open, _now())
            except (OSError, SqliteError) as error:
                if expected is not None:  # results of the run are on their way to it
                    raise _unwritten(journal.path, error) from None
                raise ConfigurationError(
                    f"cannot write the journal {journal.path} on {socket.gethostname()}: {error};"
                    " name another path"
                ) from None
            except asyncio.CancelledError:  # its thread may open it nevertheless
                self._thread.submit(journal.close, _now())
                raise
            self._journal, self._plan = journal, plan
        try:
            await self._run(self._journal.look, recorded, _now())
        except OtherJournalError:
            await self._let_go(None)
            raise
        return self._journal

    def _path(self, name: str) -> Path:
        """Return the path of this journal, which must be in the coordinator's folder."""
        path = Path(name)
        # Runs that earlier versions began may name the folder.
        if path.is_absolute() and path.parent.resolve() == self._folder.resolve():
            name = path.name
        return self._folder / name_in_folder(name)

    async def _let_go(self, how: str | None) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            with suppress(SqliteError, OSError):  # failed writes were already reported
                # A cancel while the thread is busy must not leave the journal locked.
                await asyncio.shield(self._run(journal.close, _now(), how))

    async def _position(self, journal: FleetJournal, source: IdFile, span: Span) -> int:
        """Return the position of the first id of the span in the input."""
        until, position = await self._run(journal.before, span, _now())
        return position + len(await self._user_ids(source, Span(until, span.start)))

    async def _user_ids(self, source: IdFile, span: Span) -> list[str]:
        if span.start >= span.end:
            return []
        lines = source.parse(await self._sources.read(source, span.start, span.end))
        return [line.user_id for line in lines if line.user_id is not None]

    async def _run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Run the function in the journal's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _unwritten(journal: Path, error: Exception) -> ApplicationError:
    """Return the error of a journal that may be written later, so that Temporal tries again."""
    return ApplicationError(
        f"the coordinator {member_name()} cannot write the journal {journal}: {error};"
        " when that is mended, the run goes on by itself"
    )


def _call() -> str:
    """Return the name of this call of an activity, which each of its attempts has."""
    info = activity.info()
    return f"{info.workflow_run_id} {info.activity_id}"


def _start(span: Span) -> int:
    return span.start


def _now() -> int:
    return round(1000 * time.time())
