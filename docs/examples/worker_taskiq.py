"""A taskiq worker on NATS that enables users.

Start it:  taskiq worker worker_taskiq:broker --workers 1 --max-async-tasks 5
"""

import logging
import os
from typing import Annotated

from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_nats import PullBasedJetStreamBroker

import monocloud_async as mono

# Seconds after which JetStream delivers an unacknowledged job again.
AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))
SHARE = float(os.environ.get("MAX_RATE", "0")) or None  # of the tenant's limit, for this process

broker = PullBasedJetStreamBroker(
    os.environ.get("NATS_URL", "nats://127.0.0.1:4222"),
    durable="enable_user",
    consumer_config=ConsumerConfig(durable_name="enable_user", ack_wait=AGAIN),
    # Acknowledged jobs leave the stream.
    stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
)
log = logging.getLogger("worker_taskiq")


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_session(state: TaskiqState) -> None:
    # One session for all tasks of the process, which share its connections and rate limiter.
    # A call ends with all its attempts before its job is delivered again.
    retry = mono.RetryPolicy(total=AGAIN * 2 / 3)
    state.session = mono.MonoCloudSession(retry=retry, max_rate=SHARE)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    await state.session.close()


@broker.task(ack_type="manual")
async def enable_user(user_id: str, context: Annotated[Context, TaskiqDepends()]) -> None:
    session: mono.MonoCloudSession = context.state.session
    try:
        await session.enable_user(user_id)
    except (mono.InvalidUserIdError, mono.NotFoundError, mono.UnprocessableError) as error:
        log.warning("refused: %s", error)  # a retry would be refused, too
    except mono.MonoCloudError as error:
        log.warning("will be retried: %s", error)
        return  # not acknowledged
    await context.ack()
