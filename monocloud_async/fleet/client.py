"""Starts, watches and controls a run over a fleet."""

import asyncio
import os
import shlex
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import PurePath
from typing import Final, Self, TypeVar

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import structs
from temporalio.api.enums.v1 import PendingActivityState, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    GetWorkflowExecutionHistoryReverseRequest,
)
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from monocloud_async import config
from monocloud_async.endpoint import bulk_operation
from monocloud_async.fleet.codec import PayloadRefusedError
from monocloud_async.fleet.id_file import inspect_file, without_query
from monocloud_async.fleet.journal import journal_name
from monocloud_async.fleet.lanes import RATE_OVER
from monocloud_async.fleet.messages import (
    ChunkResult,
    Failure,
    FleetReport,
    Plan,
    Progress,
    Sign,
    WorkerProgress,
    add_result,
    new_state,
)
from monocloud_async.fleet.temporal import (
    REFUSALS,
    FleetError,
    RunEndedError,
    check_readable,
    connect,
    coordinator_queue,
    failure_text,
    in_context,
    no_run,
    to_fleet_error,
    translated,
    with_message_codec,
    worker_queue,
    workflow_id,
)
from monocloud_async.fleet.workflow import CHUNK_ACTIVITY, RunWorkflow
from monocloud_async.inputs import Format
from monocloud_async.sanitize import clean

T = TypeVar("T")

_AGAIN: Final = 1.0  # seconds until the next attempt while Temporal is down
_ANSWER: Final = timedelta(seconds=5)  # timeout of a query, which the coordinator answers
_LOOKS: Final = 5  # until what workers say and what the workflow says belong together
_LATE: Final = 4.0  # seconds without a heartbeat, after which a worker probably sends nothing
_NEXT_BEAT: Final = 1.5  # seconds in which a worker that is alive sends another heartbeat
_FAILING: Final = 2  # attempts of a step of the workflow, from which on it is not an accident
_LAST_EVENTS: Final = 10  # of the history, to find the last failure
_WORKFLOWS: Final = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
_ACTIVITIES: Final = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY


class FleetRun:
    """The run of a tenant, identified by the tenant, which has only one run at a time.

    ```python
    run = await FleetRun.start("s3-mount/users.csv", max_rate=300)
    print(await run.progress())
    report = await run.result()
    ```

    Every refusal of Temporal or of the coordinator raises a `FleetError`.
    """

    def __init__(self, client: Client, tenant: str) -> None:
        self.tenant = tenant
        self._client = client
        self._ahead = 0.0  # seconds of this machine's clock before Temporal's, as far as is known
        self._handle: WorkflowHandle[RunWorkflow, FleetReport] = client.get_workflow_handle_for(
            RunWorkflow.run, workflow_id(tenant)
        )

    def __repr__(self) -> str:
        return f"<FleetRun {self.tenant}>"

    @classmethod
    async def start(
        cls,
        source: str | os.PathLike[str],
        *,
        max_rate: float | None = None,
        form: Format | None = None,
        column: str | None = None,
        journal: str | os.PathLike[str] | None = None,
        max_outage: float = 300.0,
        operation: str = "enable",
        domain: str | None = None,
        client: Client | None = None,
    ) -> Self:
        """Start a run over the ids of a file.

        Args:
            source: a path that the coordinator and all workers share, or an https URL that
                supports range requests. The content must not change until the run has ended.
            max_rate: requests per second at most, over the whole fleet. Default: what the tenant
                grants.
            form: the format of the file. Default: from the file name.
            column: the column or member that has the ids. Default: user_id or id.
            journal: the name of the journal, in the coordinator's working directory. Default: the
                name of the source with .journal. With the journal of a cancelled run, the new run
                does the rest.
            max_outage: seconds that a worker waits for a tenant that is down; then the run pauses.
            operation: "enable", "disable" or "disable_and_revoke_sessions".
            domain: the tenant. Default: the environment's `MONOCLOUD_MANAGEMENT_DOMAIN`.
            client: the Temporal client. Default: one that the environment configures.

        Raises:
            ConfigurationError: the source cannot be read in ranges, or an option cannot be used.
            FleetError: Temporal cannot be reached, or the tenant already has a run.
        """
        bulk_operation(operation)
        tenant = config.base_url(domain)
        ids = await inspect_file(os.fspath(source), form, column)
        name = PurePath(ids.where.partition("?")[0]).name
        plan = Plan(
            tenant=tenant,
            source=ids,
            journal=journal_name(f"{name}.journal" if journal is None else os.fspath(journal)),
            max_rate=_ceiling(max_rate),
            max_outage=config.positive("max_outage", max_outage),
            operation=operation,
        )
        client = with_message_codec(client or await connect())
        with translated(tenant):
            try:
                await client.start_workflow(
                    RunWorkflow.run,
                    new_state(plan),
                    id=workflow_id(tenant),
                    task_queue=coordinator_queue(tenant),
                    static_summary=without_query(ids.where)
                    + (f" at {max_rate:g}/s" if max_rate else ""),
                )
            except WorkflowAlreadyStartedError:
                raise FleetError(
                    f"{tenant} already has a run, and a second one would double the rate:"
                    " wait until it has ended, or cancel it"
                ) from None
        return cls(client, tenant)

    @classmethod
    async def attach(cls, domain: str | None = None, *, client: Client | None = None) -> Self:
        """Return the tenant's latest run, without checking that there is one.

        Raises:
            ConfigurationError: the domain is not valid.
            FleetError: Temporal cannot be reached.
        """
        tenant = config.base_url(domain)
        return cls(with_message_codec(client or await connect()), tenant)

    async def over(self) -> bool:
        """Return whether the run has ended, so that `result` returns at once."""
        with translated(self.tenant):
            description = await self._handle.describe()
        return description.status != WorkflowExecutionStatus.RUNNING

    async def progress(self) -> Progress:
        """Return the progress: what is recorded, and what workers have reported since then."""
        with translated(self.tenant):
            return await self._progress()

    async def _progress(self) -> Progress:
        before = await self._query(RunWorkflow.progress)
        description = await self._described()
        progress = await self._query(RunWorkflow.progress)
        for _ in range(_LOOKS):
            if progress.results == before.results:
                break  # else a chunk came back meanwhile, which may be in both of them, or in none
            before, description = progress, await self._handle.describe()
            progress = await self._query(RunWorkflow.progress)
        members = await self._asked_lately()
        signs: dict[str, Sign] = {}
        heartbeats = in_context(self._client, workflow_id(self.tenant))
        for pending in description.raw_description.pending_activities:
            is_chunk = pending.activity_type.name == CHUNK_ACTIVITY
            if pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
                progress.waiting += is_chunk
            elif is_chunk:
                seconds = self._since(pending.last_heartbeat_time)
                name = pending.last_worker_identity
                known = members.get(name) or WorkerProgress(
                    name=name, role="worker", seconds=seconds
                )
                members[name] = structs.replace(
                    known, seconds=min(known.seconds, seconds), chunks=known.chunks + 1
                )
            if pending.HasField("last_failure"):
                failure = pending.last_failure
                lost = failure.HasField("timeout_failure_info")
                why = "the coordinator was lost; the step is retried"
                if not lost:
                    why = await failure_text(self._client, workflow_id(self.tenant), failure)
                progress.trouble += [why] if why not in progress.trouble else []
            for details in await heartbeats.decode(pending.heartbeat_details.payloads):
                result = msgspec.convert(details, ChunkResult)
                _add_heartbeat(progress, result)
                if (sign := result.sign) is not None:
                    is_late = self._since(pending.last_heartbeat_time) > _LATE
                    signs[pending.last_worker_identity] = (
                        structs.replace(sign, rate=0.0) if is_late else sign
                    )
        resting = [sign for sign in progress.signs if sign.worker not in signs]
        now = time.time() - self._ahead
        rested = [_resting(sign, now) for sign in resting] if progress.chunks else []
        progress.add_signs([*signs.values(), *rested])
        progress.signs = []
        progress.members = sorted(members.values(), key=lambda member: (member.role, member.name))
        return progress

    async def _described(self) -> WorkflowExecutionDescription:
        """Return the description of the run, and learn what Temporal's clock shows.

        Workers give a sign of life once a second. If the last one seems to be old, and the next one
        comes soon, then this machine's clock is ahead.
        """
        description = await self._handle.describe()
        heard = _last_heartbeat(description)
        late = time.time() - self._ahead - heard
        if heard and late > _LATE:
            await asyncio.sleep(_NEXT_BEAT)
            description = await self._handle.describe()
            if (later := _last_heartbeat(description)) > heard:
                self._ahead = time.time() - later
        self._ahead += min(0.0, late)
        return description

    def _since(self, moment: Timestamp) -> float:
        """Return the seconds since this time of Temporal's clock."""
        return max(0.0, time.time() - self._ahead - _seconds(moment))

    async def members(self) -> list[WorkerProgress]:
        """Return the workers and coordinators that asked Temporal for work lately."""
        with translated(self.tenant):
            return list((await self._asked_lately()).values())

    async def _asked_lately(self) -> dict[str, WorkerProgress]:
        """Return the workers and coordinators that asked Temporal for work lately, by name."""
        found: dict[str, WorkerProgress] = {}
        for role, queue, kind in (
            ("coordinator", coordinator_queue(self.tenant), _WORKFLOWS),
            ("worker", worker_queue(self.tenant), _ACTIVITIES),
        ):
            request = DescribeTaskQueueRequest(
                namespace=self._client.namespace,
                task_queue=TaskQueue(name=queue),
                task_queue_type=kind,
            )
            answer = await self._client.workflow_service.describe_task_queue(request)
            for poller in answer.pollers:
                found[poller.identity] = WorkerProgress(
                    name=poller.identity,
                    role="worker" if role == "worker" else "coordinator",
                    seconds=self._since(poller.last_access_time),
                )
        return found

    async def _query(self, query: Callable[[RunWorkflow], T]) -> T:
        """Return the answer of the workflow; raises as `_check` if there is none."""
        try:
            return await self._handle.query(query, rpc_timeout=_ANSWER)
        except (RPCError, WorkflowQueryFailedError):
            await self._check()
            raise

    async def _check(self) -> None:
        """Raise `FleetError` with the cause if the workflow of the run itself fails."""
        description = (await self._handle.describe()).raw_description
        if description.pending_workflow_task.attempt < _FAILING:
            return
        answer = await self._client.workflow_service.get_workflow_execution_history_reverse(
            GetWorkflowExecutionHistoryReverseRequest(
                namespace=self._client.namespace,
                execution=description.workflow_execution_info.execution,
                maximum_page_size=_LAST_EVENTS,
            )
        )
        for event in answer.history.events:
            if event.HasField("workflow_task_failed_event_attributes"):
                failed = event.workflow_task_failed_event_attributes
                why = await failure_text(self._client, workflow_id(self.tenant), failed.failure)
                which = ["--namespace", self._client.namespace]
                which += ["--workflow-id", workflow_id(self.tenant)]
                # A `cancel` would be one more step that fails.
                raise FleetError(
                    f"the run cannot go on, because a step of it fails in the coordinator"
                    f" {failed.identity}: {clean(why)}; if a coordinator of"
                    " another version began the run, start that version again, or end the run with:"
                    f" temporal workflow terminate {shlex.join(which)}"
                )

    async def failures(self) -> list[Failure]:
        """Return the first thousand users who failed or are unknown; the journal has all."""
        with translated(self.tenant):
            return await self._query(RunWorkflow.failures)

    async def pause(self, why: str = "paused by hand") -> None:
        """Pause the run until `resume`: the calls in flight finish, and no more are made."""
        await self._signal(RunWorkflow.pause, clean(why))

    async def resume(self) -> None:
        """Resume a paused run; no user is sent twice."""
        await self._signal(RunWorkflow.resume)

    async def set_rate(self, max_rate: float | None) -> None:
        """Change the highest rate to this many requests per second, within one or two seconds.

        With None, the tenant alone decides.

        Raises:
            ConfigurationError: the rate is not valid.
        """
        await self._signal(RunWorkflow.set_rate, _ceiling(max_rate))

    async def _signal(self, signal: Callable[..., None], *arguments: object) -> None:
        """Send a signal; raises `FleetError` if the run could not read it, or cannot go on."""
        with translated(self.tenant):
            await check_readable(self._client, self.tenant)
            await self._handle.signal(signal, args=arguments)
            await self._check()

    async def cancel(self) -> None:
        """Cancel the run: the calls in flight finish and are recorded; `result` has the report."""
        if await self.over():  # Temporal accepts it, which looks like success
            raise no_run(self.tenant, has_ended=True)
        with translated(self.tenant):
            await self._handle.cancel()
            await self._check()

    async def result(self) -> FleetReport:
        """Wait for the end of the run, even while Temporal is down, and return the report.

        Raises:
            FleetError: the run was refused, for example because the journal is of another run.
        """
        while True:
            try:
                return await self._handle.result()
            except WorkflowFailureError as error:
                raise RunEndedError(f"the run ended: {_root(error)}") from None
            except PayloadRefusedError as error:
                raise FleetError(str(error)) from None
            except RPCError as error:
                if error.status in REFUSALS:
                    raise to_fleet_error(error, self.tenant) from None
            await asyncio.sleep(_AGAIN)


def _ceiling(max_rate: float | None) -> float | None:
    return None if max_rate is None else config.positive("max_rate", max_rate)


def _seconds(moment: Timestamp) -> float:
    return float(moment.ToMilliseconds()) / 1000


def _last_heartbeat(description: WorkflowExecutionDescription) -> float:
    """Return when the last worker gave a sign of life, in seconds since 1970, or 0.0."""
    pending = description.raw_description.pending_activities
    return max((_seconds(each.last_heartbeat_time) for each in pending), default=0.0)


def _resting(sign: Sign, now: float) -> Sign:
    """Return what a worker that has had no chunk since then has sent in the last seconds."""
    rested = min(RATE_OVER, max(0.0, now - sign.moment))
    sent = sign.rate * min(sign.seconds, RATE_OVER - rested)
    seconds = min(sign.seconds + rested, RATE_OVER)
    rate = sent / seconds if seconds else 0.0
    return Sign(users=0, rate=rate, seconds=seconds, worker=sign.worker)


def _add_heartbeat(progress: Progress, result: ChunkResult) -> None:
    add_result(progress, result)
    if (sign := result.sign) is not None:
        progress.under_way += max(0, sign.users - len(result.rows.positions()))


def _root(error: BaseException) -> BaseException:
    """Return the first cause: Temporal wraps the failure of an activity in the workflow's."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
