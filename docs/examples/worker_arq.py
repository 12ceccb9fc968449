"""An arq worker on Redis or Valkey that enables users.

Start it:  arq worker_arq.Settings
"""

import logging
import os
from datetime import timedelta
from typing import Any, ClassVar

from arq import ArqRedis, Retry, create_pool
from arq.connections import RedisSettings
from arq.worker import func

import monocloud_async as mono

AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))  # seconds until a job is tried again
SHARE = float(os.environ.get("MAX_RATE", "0")) or None  # of the tenant's limit, for this process
log = logging.getLogger("worker_arq")


async def open_session(ctx: dict[Any, Any]) -> None:
    retry = mono.RetryPolicy(total=AGAIN * 2 / 3)
    ctx["session"] = mono.MonoCloudSession(retry=retry, max_rate=SHARE)


async def close_session(ctx: dict[Any, Any]) -> None:
    await ctx["session"].close()


async def enable(ctx: dict[Any, Any], user_id: str) -> None:
    try:
        await ctx["session"].enable_user(user_id)
    except (mono.InvalidUserIdError, mono.NotFoundError, mono.UnprocessableError) as error:
        log.warning("refused: %s", error)  # a retry would be refused, too
    except mono.MonoCloudError as error:
        log.warning("will be retried: %s", error)
        raise Retry(defer=AGAIN) from None


async def enqueue(redis: ArqRedis, user_id: str) -> None:  # what the web application calls
    # By default, a job that was not done within a day is lost.
    await redis.enqueue_job("enable", user_id, _expires=timedelta(days=30))


async def connect() -> ArqRedis:
    return await create_pool(Settings.redis_settings)


class Settings:
    functions: ClassVar = [func(enable, max_tries=10**9, timeout=AGAIN, keep_result=0)]
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
    on_startup = open_session
    on_shutdown = close_session
    max_jobs = 5
    poll_delay = 0.05  # arq takes at most `max_jobs` new ones each time
    job_completion_wait = AGAIN  # after SIGTERM, for the calls in flight
