"""A run over a fleet, from the outside: start it, look at it, steer it, wait for its end."""

import asyncio
import os
from datetime import timedelta
from pathlib import PurePath
from typing import Final, Self

import msgspec
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from monocloud_async import config
from monocloud_async.fleet.id_file import inspect_file
from monocloud_async.fleet.messages import (
    ChunkResult,
    Failure,
    FleetReport,
    Plan,
    Progress,
    add_result,
    new_state,
)
from monocloud_async.fleet.temporal import (
    FleetError,
    connect,
    coordinator_queue,
    to_fleet_error,
    translated,
    with_message_codec,
    workflow_id,
)
from monocloud_async.fleet.workflow import EnableUsers
from monocloud_async.inputs import Format

_AGAIN: Final = 1.0  # seconds until a Temporal that is down is asked again
_DOWN: Final = {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED}
_ANSWER: Final = timedelta(seconds=5)  # for a query, which the coordinator answers


class FleetRun:
    """The run of a tenant: there is one at a time, so its tenant is all that names it.

    ```python
    run = await FleetRun.start("s3-mount/users.csv", max_rate=300)
    print(await run.progress())
    report = await run.result()
    ```

    Whatever Temporal or the coordinator refuses comes as a `FleetError`.
    """

    def __init__(self, client: Client, tenant: str) -> None:
        self.tenant = tenant
        self._client = client
        self._handle: WorkflowHandle[EnableUsers, FleetReport] = client.get_workflow_handle_for(
            EnableUsers.run, workflow_id(tenant)
        )

    def __repr__(self) -> str:
        return f"<FleetRun {self.tenant}>"

    @classmethod
    async def start(
        cls,
        source: str | os.PathLike[str],
        *,
        max_rate: float,
        form: Format | None = None,
        column: str | None = None,
        journal: str | os.PathLike[str] | None = None,
        max_outage: float = 300.0,
        domain: str | None = None,
        client: Client | None = None,
    ) -> Self:
        """A new run over the ids of this file.

        Args:
            source: a path that the coordinator and every worker have too, or an http(s) URL that
                serves ranges. It must not change until the run is over.
            max_rate: requests a second, over the whole fleet.
            form: how the ids are written down. Default: what the name ends in.
            column: where they are in it. Default: user_id or id.
            journal: where the coordinator keeps its record, on its own disk. Default: the
                source's name with .journal, in the folder that the coordinator was started in.
                A run with the journal of one that was cancelled does what that one left.
            max_outage: seconds that a worker waits for a tenant that is down; then the run pauses.
            domain: the tenant. Default: the environment's `MONOCLOUD_MANAGEMENT_DOMAIN`.
            client: Temporal's. Default: what the environment names.

        Raises:
            ConfigurationError: the source cannot be read in ranges, or an option cannot be used.
            FleetError: no Temporal answers, or the tenant has a run already.
        """
        tenant = config.base_url(domain)
        ids = await inspect_file(os.fspath(source), form, column)
        name = PurePath(ids.where.partition("?")[0]).name
        plan = Plan(
            tenant=tenant,
            source=ids,
            journal=f"{name}.journal" if journal is None else os.fspath(journal),
            max_rate=config.positive("max_rate", max_rate),
            max_outage=config.positive("max_outage", max_outage),
        )
        client = with_message_codec(client or await connect())
        with translated(tenant):
            try:
                await client.start_workflow(
                    EnableUsers.run,
                    new_state(plan),
                    id=workflow_id(tenant),
                    task_queue=coordinator_queue(tenant),
                    static_summary=f"{ids.where} at {max_rate:g}/s",
                )
            except WorkflowAlreadyStartedError:
                raise FleetError(
                    f"{tenant} has a run already, and another one would double the rate:"
                    " wait for its end, or cancel it"
                ) from None
        return cls(client, tenant)

    @classmethod
    async def attach(cls, domain: str | None = None, *, client: Client | None = None) -> Self:
        """The tenant's latest run, under way or not long over. Nothing is asked of it yet.

        Raises:
            ConfigurationError: no such domain.
            FleetError: no Temporal answers.
        """
        tenant = config.base_url(domain)
        return cls(with_message_codec(client or await connect()), tenant)

    async def over(self) -> bool:
        """Whether the run has ended, so that `result` answers at once."""
        with translated(self.tenant):
            description = await self._handle.describe()
        return description.status != WorkflowExecutionStatus.RUNNING

    async def progress(self) -> Progress:
        """How the run stands, to the second: what is recorded, and what workers told since."""
        with translated(self.tenant):
            progress = await self._handle.query(EnableUsers.progress, rpc_timeout=_ANSWER)
            description = await self._handle.describe()
        for pending in description.raw_description.pending_activities:
            if pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
                progress.waiting += pending.activity_type.name == "enable_chunk"
            if pending.HasField("last_failure"):
                failure = pending.last_failure
                lost = failure.HasField("timeout_failure_info")
                why = "a coordinator was lost; another try is made" if lost else failure.message
                progress.trouble += [why] if why not in progress.trouble else []
            for details in await self._client.data_converter.decode(
                pending.heartbeat_details.payloads
            ):
                add_result(progress, msgspec.convert(details, ChunkResult))
        return progress

    async def failures(self) -> list[Failure]:
        """The first thousand users who are not enabled; the journal has them all."""
        with translated(self.tenant):
            return await self._handle.query(EnableUsers.failures, rpc_timeout=_ANSWER)

    async def pause(self, why: str = "paused by hand") -> None:
        """Have the calls in flight finish, and no more made, until `resume`."""
        with translated(self.tenant):
            await self._handle.signal(EnableUsers.pause, why)

    async def resume(self) -> None:
        """Go on with a run that is paused; nobody is asked for twice."""
        with translated(self.tenant):
            await self._handle.signal(EnableUsers.resume)

    async def set_rate(self, max_rate: float) -> None:
        """Go on at so many requests a second; the change takes a second or two.

        Raises:
            ConfigurationError: not a rate.
        """
        with translated(self.tenant):
            await self._handle.signal(EnableUsers.set_rate, config.positive("max_rate", max_rate))

    async def cancel(self) -> None:
        """End the run: calls in flight finish and are recorded; `result` tells what was done."""
        with translated(self.tenant):
            await self._handle.cancel()

    async def result(self) -> FleetReport:
        """What the run came to; waits for its end, also while Temporal is down for a while.

        Raises:
            FleetError: the run was refused, such as for a journal that is another run's.
        """
        while True:
            try:
                return await self._handle.result()
            except WorkflowFailureError as error:
                raise FleetError(f"the run ended: {_root(error)}") from None
            except RPCError as error:
                if error.status not in _DOWN:
                    raise to_fleet_error(error, self.tenant) from None
            await asyncio.sleep(_AGAIN)


def _root(error: BaseException) -> BaseException:
    """What began it: Temporal wraps the failure of an activity into that of its workflow."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
