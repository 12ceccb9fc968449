"""The activities for workflows of one's own: one call, its errors, and its end."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from fleets import temporal
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.common import RetryPolicy as Retries
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.fleet import UserActivities
from monocloud_async.sandbox import Sandbox


@pytest.fixture
async def activities(sandbox: Sandbox) -> AsyncIterator[UserActivities]:
    once = RetryPolicy(attempts=1)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=once) as session:
        yield UserActivities(session)


async def test_a_user_is_enabled_and_disabled_and_nothing_is_returned(
    sandbox: Sandbox, activities: UserActivities
) -> None:
    first, *_ = sandbox.user_ids()
    result: object = await ActivityEnvironment().run(activities.enable_user, first)
    assert result is None
    assert not sandbox.is_disabled(first)
    await ActivityEnvironment().run(activities.disable_user, first, True)  # noqa: FBT003  as Temporal passes it
    assert sandbox.is_disabled(first)


@pytest.mark.parametrize(
    ("script", "name", "final"),
    [
        ("400", "BadRequestError", True),
        ("401", "UnauthorizedError", False),
        ("404", "NotFoundError", True),
        ("409", "ConflictError", False),
        ("422", "UnprocessableError", True),
        ("503", "ServerError", False),
    ],
)
async def test_an_error_is_retryable_unless_it_would_come_again(
    sandbox: Sandbox, activities: UserActivities, script: str, name: str, *, final: bool
) -> None:
    first, *_ = sandbox.user_ids()
    sandbox.script(first, script)
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(activities.enable_user, first)
    error = caught.value
    assert (error.type, error.non_retryable) == (name, final)
    assert f"user '{first}': {script}" in error.message
    assert error.__cause__ is None
    assert sandbox.api_key not in repr(error)


async def test_an_invalid_id_is_not_retried(activities: UserActivities) -> None:
    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(activities.enable_user, "..")
    assert (caught.value.type, caught.value.non_retryable) == ("InvalidUserIdError", True)


async def test_temporal_waits_as_long_as_the_tenant_asks(sandbox: Sandbox) -> None:
    first, *_ = sandbox.user_ids()
    sandbox.script(first, "429:120")
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        with pytest.raises(ApplicationError) as caught:
            await ActivityEnvironment().run(UserActivities(session).enable_user, first)
    assert caught.value.type == "RateLimitedError"
    delay = caught.value.next_retry_delay
    assert delay is not None
    assert timedelta(seconds=119) < delay <= timedelta(seconds=120)


async def test_a_cancelled_activity_ends_its_call(
    sandbox: Sandbox, activities: UserActivities
) -> None:
    sandbox.latency = 60.0
    environment, beats = ActivityEnvironment(), asyncio.Event()
    environment.on_heartbeat = lambda *_: beats.set()
    running = asyncio.ensure_future(environment.run(activities.enable_user, sandbox.user_ids()[0]))
    await beats.wait()
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not [task for task in asyncio.all_tasks() if "beat" in repr(task.get_coro())]


@workflow.defn
class Welcome:
    @workflow.run
    async def run(self, user_id: str) -> None:
        await workflow.execute_activity_method(
            UserActivities.enable_user,
            user_id,
            start_to_close_timeout=timedelta(minutes=2),
            heartbeat_timeout=timedelta(seconds=10),
            retry_policy=Retries(initial_interval=timedelta(milliseconds=10)),
        )


@pytest.mark.process
async def test_a_workflow_of_one_s_own_enables_users(
    sandbox: Sandbox, activities: UserActivities, tmp_path: Path
) -> None:
    first, *_ = sandbox.user_ids()
    sandbox.script(first, 503)
    with temporal(tmp_path) as server:
        client = await server.client()
        worker = Worker(
            client,
            task_queue="users",
            workflows=[Welcome],
            activities=activities.all(),
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        async with worker:
            await client.execute_workflow(Welcome.run, first, id=str(uuid4()), task_queue="users")
            assert not sandbox.is_disabled(first)
            with pytest.raises(WorkflowFailureError) as caught:
                await client.execute_workflow(
                    Welcome.run, "nobody", id=str(uuid4()), task_queue="users"
                )
    cause = caught.value.cause
    assert isinstance(cause, ActivityError)
    assert isinstance(cause.cause, ApplicationError)
    assert cause.cause.type == "NotFoundError"
    assert sandbox.stats().by_status == {"200": 1, "404": 1, "503": 1}
