"""What a worker or coordinator answers when `fleet doctor` asks it.

Each process takes such questions on a task queue of its own, so that none is left out.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

import aiohttp
from msgspec import Struct
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from monocloud_async.endpoint import bulk_operation
from monocloud_async.errors import (
    BadRequestError,
    ConfigurationError,
    MonoCloudError,
    NotFoundError,
    UnprocessableError,
)
from monocloud_async.fleet.heartbeats import beating
from monocloud_async.fleet.id_file import IdFile, shown
from monocloud_async.fleet.sources import Sources
from monocloud_async.fleet.temporal import member_name, work, workflow_id
from monocloud_async.retry import RetryPolicy
from monocloud_async.session import MonoCloudSession

CHECK_ACTIVITY: Final = "check_member"
_ONCE: Final = RetryPolicy(attempts=1)
_TIMEOUT: Final = 10.0  # seconds for the tenant


class Question(Struct, frozen=True, kw_only=True):
    """What a run would need.

    Attributes:
        source: the file of ids, or None.
        journal: the name of the journal, or None.
        operation: the name of the operation.
    """

    source: IdFile | None = None
    journal: str | None = None
    operation: str = "enable"


class Answer(Struct, frozen=True, kw_only=True):
    """What a member of the fleet found.

    Attributes:
        now: its time, in seconds since 1970.
        fine: what is as it must be.
        problems: what is not, and what to do.
    """

    now: float
    fine: list[str]
    problems: list[str]


Check = Callable[[Question], Awaitable[str]]


def check_queue(tenant: str, member: str) -> str:
    """Return the task queue on which this process is asked."""
    return f"{workflow_id(tenant)} check {member}"


@asynccontextmanager
async def answering(client: Client, tenant: str, *checks: Check) -> AsyncIterator[None]:
    """Answer the questions of `fleet doctor` meanwhile.

    Args:
        client: the Temporal client.
        tenant: the tenant of this process.
        checks: each returns what is fine, or raises `MonoCloudError` with the problem.
    """

    @activity.defn(name=CHECK_ACTIVITY)
    async def check(question: Question) -> Answer:
        fine, problems, now = list[str](), list[str](), time.time()
        async with beating():
            for each in checks:
                try:
                    said = await each(question)
                except MonoCloudError as error:
                    problems.append(str(error))
                else:
                    fine += [said] if said else []
        return Answer(now=now, fine=fine, problems=problems)

    worker = Worker(
        client,
        identity=member_name(),
        task_queue=check_queue(tenant, member_name()),
        activities=[check],
        max_concurrent_activities=1,
        max_concurrent_activity_task_polls=1,
    )
    # If Temporal refuses it, it refuses the process's other worker as well, which tells.
    task = asyncio.create_task(work(worker))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved


def source_check(sources: Sources) -> Check:
    """Return the check that this process can read the file, with the content of the question."""

    async def check(question: Question) -> str:
        bulk_operation(question.operation)
        source = question.source
        if source is None:
            return ""
        try:
            # As for all reads, the whole file must be the planned one.
            await sources.read(source, source.begin, min(source.size, source.begin + 1))
        except (OSError, aiohttp.ClientError) as error:
            raise ConfigurationError(
                f"cannot read {shown(source.where)}: {error}; give this machine the file"
            ) from None
        return "the file"

    return check


def key_check(session: MonoCloudSession) -> Check:
    """Return the check that the tenant accepts the key; it looks up a user who does not exist."""

    async def check(_: Question) -> str:
        # The tenant checks the key before the id, so these mean that the key was accepted.
        with suppress(NotFoundError, BadRequestError, UnprocessableError):
            await session.get_user(f"doctor{token_hex(8)}", timeout=_TIMEOUT, retry=_ONCE)
        return "tenant and key"

    return check


def folder_check(folder: Path) -> None:
    """Raise `ConfigurationError` if a journal could not be written to this folder."""
    probe = folder / f".{token_hex(8)}.doctor"
    try:
        with probe.open("xb") as file:
            file.write(bytes(1 << 12))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(
            f"cannot write a journal to {folder}: {error.strerror}; make room, or give the"
            " coordinator a folder that it may write to"
        ) from None
    finally:
        with suppress(OSError):  # the error of the write tells more
            probe.unlink(missing_ok=True)
