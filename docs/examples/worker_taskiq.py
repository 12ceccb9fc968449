"""A taskiq worker on NATS that gives users their access back.

Start it:  taskiq worker worker_taskiq:broker --workers 1
"""

import os
from typing import Annotated

from taskiq import Context, SmartRetryMiddleware, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_nats import PullBasedJetStreamBroker

from monocloud_async import MonoCloudError, MonoCloudSession

broker = PullBasedJetStreamBroker(
    os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), queue="enable_user"
).with_middlewares(SmartRetryMiddleware(default_retry_count=5, default_delay=30, use_jitter=True))


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_session(state: TaskiqState) -> None:
    # One for all tasks of the process: they share its connections, and its tenant's pace.
    state.session = MonoCloudSession()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    await state.session.close()


@broker.task(retry_on_error=True)
async def enable_user(user_id: str, context: Annotated[Context, TaskiqDepends()]) -> str:
    session: MonoCloudSession = context.state.session
    try:
        await session.enable_user(user_id)
    except MonoCloudError as error:
        if error.transient:
            raise  # the session's own attempts were not enough: the task comes again, later
        return str(error)  # the same answer would come again
    return "enabled"
