"""Tries everything that a run needs, before the first user: `fleet doctor`.

The doctor asks each process of the fleet by a small workflow, which it hosts itself.
"""

import asyncio
import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import PurePath
from typing import Final
from uuid import uuid4

from msgspec import Struct
from temporalio import workflow
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as TimedOutError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from monocloud_async import config
from monocloud_async.endpoint import bulk_operation
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.checks import CHECK_ACTIVITY, Answer, Question, check_queue
from monocloud_async.fleet.client import FleetRun
from monocloud_async.fleet.codec import protection
from monocloud_async.fleet.id_file import inspect_file, shown
from monocloud_async.fleet.journal import journal_name
from monocloud_async.fleet.messages import WorkerProgress
from monocloud_async.fleet.temporal import (
    FleetError,
    connect,
    member_name,
    translated,
    with_message_codec,
    workflow_id,
)
from monocloud_async.inputs import Format
from monocloud_async.sanitize import clean
from monocloud_async.version import __version__

_CONNECT: Final = 15.0  # seconds
_TAKEN: Final = 10.0  # seconds in which a member must take its question
_DONE: Final = 60.0  # seconds for its answer: it reads the whole file
_POLL: Final = 70.0  # seconds without a sign of life, after which a process has ended
_CLOCK: Final = 5.0  # seconds that a clock may be wrong


class Finding(Struct, frozen=True, kw_only=True):
    """What the doctor found about one part of the fleet.

    Attributes:
        what: the part.
        said: what is fine, or the problem and what to do.
        ok: whether it is fine.
    """

    what: str
    said: str
    ok: bool = True


@workflow.defn(name="check_member")
class CheckWorkflow:
    """Asks one process of the fleet."""

    @workflow.run
    async def run(self, queue: str, question: Question) -> Answer:
        """Return its answer."""
        answer: Answer = await workflow.execute_activity(
            CHECK_ACTIVITY,
            question,
            result_type=Answer,
            task_queue=queue,
            schedule_to_start_timeout=timedelta(seconds=_TAKEN),
            start_to_close_timeout=timedelta(seconds=_DONE),
            heartbeat_timeout=timedelta(seconds=_TAKEN),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
        return answer


async def check_fleet(
    source: str | os.PathLike[str] | None = None,
    *,
    form: Format | None = None,
    column: str | None = None,
    journal: str | None = None,
    operation: str = "enable",
    domain: str | None = None,
    client: Client | None = None,
) -> list[Finding]:
    """Try what a run needs, and return what was found; no user is changed.

    Every worker looks up a user who does not exist, and it and the coordinator read the whole file.
    It takes at most about 90 seconds.

    Args:
        source: as for `FleetRun.start`. Default: no file is checked.
        form: as for `FleetRun.start`.
        column: as for `FleetRun.start`.
        journal: as for `FleetRun.start`.
        operation: as for `FleetRun.start`.
        domain: as for `FleetRun.start`.
        client: as for `FleetRun.start`.

    Raises:
        ConfigurationError: the domain, the operation or the name of the journal cannot be used.
    """
    bulk_operation(operation)
    tenant = config.base_url(domain)
    if source is not None:
        name = PurePath(os.fspath(source).partition("?")[0]).name
        journal = journal_name(journal or f"{name}.journal")
    question, findings = Question(journal=journal, operation=operation), list[Finding]()
    if source is not None:
        try:
            ids = await inspect_file(os.fspath(source), form, column)
        except ConfigurationError as error:
            findings.append(Finding(what="File", said=str(error), ok=False))
        else:
            about = f"{shown(ids.where)}: {ids.form}, about {round(ids.size / ids.line):,} ids"
            findings.append(Finding(what="File", said=about))
            question = Question(source=ids, journal=journal, operation=operation)
    try:
        async with asyncio.timeout(_CONNECT):
            client = with_message_codec(client or await connect())
            await _check_namespace(client, tenant)
            run = await FleetRun.attach(tenant, client=client)
            members, note = await _members(run)
    except TimeoutError:
        said = f"did not answer within {_CONNECT:g} seconds: check TEMPORAL_ADDRESS and the network"
        return [Finding(what="Temporal", said=said, ok=False), *findings]
    except (FleetError, ConfigurationError) as error:
        return [Finding(what="Temporal", said=str(error), ok=False), *findings]
    said = (
        f"{client.service_client.config.target_host}, namespace {client.namespace},"
        f" payloads {protection(client.data_converter)}{note}"
    )
    findings.insert(0, Finding(what="Temporal", said=said))
    answers = await _ask_all(client, tenant, members, question)
    members = [member for member, answer in zip(members, answers, strict=True) if answer]
    asked = [finding for answer in answers for finding in answer]
    return [*findings, *asked, *_missing(members, asked), *_versions(members)]


async def _check_namespace(client: Client, tenant: str) -> None:
    with translated(tenant):
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace)
        )


async def _members(run: FleetRun) -> tuple[list[WorkerProgress], str]:
    """Return the processes of the fleet, and a note whether a run is in progress."""
    known = {each.name: each for each in await run.members()}
    note = ""
    with suppress(FleetError):  # there is no run, or nobody who can tell
        if not await run.over():
            note = "; a run of this tenant is in progress"
            if any(each.role == "coordinator" for each in known.values()):
                for name in (await run.progress()).away:  # they ask for no work
                    known.setdefault(name, WorkerProgress(name=name, role="worker", seconds=0.0))
    return sorted(known.values(), key=lambda each: (each.role, each.name)), note


async def _ask_all(
    client: Client, tenant: str, members: list[WorkerProgress], question: Question
) -> list[list[Finding]]:
    """Ask every member at the same time, and return what they say; nothing of who has ended."""
    queue = f"{workflow_id(tenant)} doctor {uuid4()}"
    worker = Worker(
        client,
        identity=member_name(),
        task_queue=queue,
        workflows=[CheckWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with worker:
        return await asyncio.gather(
            *(_ask(client, tenant, queue, member, question) for member in members)
        )


async def _ask(
    client: Client, tenant: str, queue: str, member: WorkerProgress, question: Question
) -> list[Finding]:
    what = f"{member.role.capitalize()} {clean(member.name)}"
    asked = time.time()
    try:
        answer = await client.execute_workflow(
            CheckWorkflow.run,
            args=[check_queue(tenant, member.name), question],
            id=f"{queue} {member.name}",
            task_queue=queue,
            execution_timeout=timedelta(seconds=_TAKEN + _DONE + _TAKEN),
        )
    except WorkflowFailureError as error:
        cause = _cause(error)
        if _is_not_taken(cause) and member.seconds > _POLL:
            return []  # who answers has not ended, whatever this machine's clock shows
        return [Finding(what=what, said=_no_answer(cause, member), ok=False)]
    except RPCError as error:
        said = f"cannot be asked: Temporal says {RPCStatusCode(error.status).name}"
        return [Finding(what=what, said=said, ok=False)]
    problems = [*answer.problems, *_clock(asked, answer.now, time.time())]
    if problems:
        return [Finding(what=what, said=clean(each), ok=False) for each in problems]
    return [Finding(what=what, said=clean(", ".join([*answer.fine, "clock"])))]


def _cause(error: WorkflowFailureError) -> BaseException | None:
    return error.cause.cause if isinstance(error.cause, ActivityError) else error.cause


def _is_not_taken(cause: BaseException | None) -> bool:
    """Return whether the member took no question."""
    return isinstance(cause, TimedOutError) and cause.type == TimeoutType.SCHEDULE_TO_START


def _no_answer(cause: BaseException | None, member: WorkerProgress) -> str:
    if isinstance(cause, ApplicationError):
        first = cause.cause.message if isinstance(cause.cause, ApplicationError) else cause.message
        return (
            f"cannot answer: {clean(first)}; give all parts the same version and the same key file"
        )
    if _is_not_taken(cause):
        return (
            f"does not answer, and was last seen {member.seconds:.0f} s ago: if it has ended, ask"
            " again in a minute; if it is of an earlier version, upgrade it"
        )
    return f"did not answer within {_DONE:g} seconds: look at its log, and at the load of its host"


def _clock(asked: float, now: float, answered: float) -> list[str]:
    off = now - min(max(now, asked), answered)
    if abs(off) <= _CLOCK:
        return []
    way = "ahead of" if off > 0 else "behind"
    said = (
        f"its clock is {abs(off):,.0f} s {way} this machine's: set both with NTP, or times in the"
    )
    return [f"{said} journal are wrong"]


def _missing(members: list[WorkerProgress], asked: list[Finding]) -> list[Finding]:
    """Return which parts the fleet lacks, and whether there are too many coordinators."""
    problems = list[Finding]()
    coordinators = [each for each in members if each.role == "coordinator"]
    if not coordinators:
        said = "there is none: start one with: monocloud-async fleet coordinator"
        problems.append(Finding(what="Coordinator", said=said, ok=False))
    if len(coordinators) > 1 and all(each.ok for each in asked):
        said = f"there are {len(coordinators)}, and a run needs one: end the others"
        problems.append(Finding(what="Coordinator", said=said, ok=False))
    if len(coordinators) == len(members):
        said = "there is none: start one with: monocloud-async fleet worker"
        problems.append(Finding(what="Worker", said=said, ok=False))
    return problems


def _versions(members: list[WorkerProgress]) -> list[Finding]:
    if not members:
        return []
    versions = {__version__, *(each.name.rpartition(" ")[2] for each in members)}
    if len(versions) == 1:
        return [Finding(what="Versions", said=f"{__version__} everywhere")]
    said = f"{', '.join(sorted(map(clean, versions)))}: give all machines the same, with pip"
    return [Finding(what="Versions", said=said, ok=False)]
