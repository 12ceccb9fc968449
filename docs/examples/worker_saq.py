"""A SAQ worker on Redis or Valkey that enables users.

Start it:  saq worker_saq.settings
"""

import logging
import os
import time
from typing import Any

from saq.queue.redis import RedisQueue

import monocloud_async as mono

AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))  # seconds until a job is delivered again
SHARE = float(os.environ.get("MAX_RATE", "0")) or None  # of the tenant's limit, for this process
log = logging.getLogger("worker_saq")
logging.getLogger("saq").addFilter(  # a failed job logs one line; SAQ would add a traceback
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], mono.MonoCloudError))
)


class Queue(RedisQueue):  # SAQ's own sweep may hang, and may lose a job
    held: dict[bytes, float] | None = None  # jobs that workers have taken, and since when

    async def sweep(self, *_: object, **__: object) -> list[str]:
        active: Any = self.redis.lrange(self.namespace("active"), 0, -1)
        self.held = {i: (self.held or {}).get(i, time.monotonic()) for i in await active}
        for i, since in self.held.items():
            job = await self.job(self.job_key_from_id(i.decode()))
            if job and time.monotonic() - since > AGAIN:  # its worker is dead
                await self.retry(job, "swept")
        return []


queue = Queue.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), name="monocloud")


async def open_session(context: dict[str, Any]) -> None:
    retry = mono.RetryPolicy(total=AGAIN * 2 / 3)
    context["session"] = mono.MonoCloudSession(retry=retry, max_rate=SHARE)


async def close_session(context: dict[str, Any]) -> None:
    await context["session"].close()


async def enable(context: dict[str, Any], *, user_id: str) -> None:
    try:
        await context["session"].enable_user(user_id)
    except (mono.InvalidUserIdError, mono.NotFoundError, mono.UnprocessableError) as error:
        log.warning("refused: %s", error)  # a retry would be refused, too
    except mono.MonoCloudError as error:
        log.warning("will be retried: %s", error)
        raise


async def enqueue(user_id: str) -> None:  # what the web application calls
    await queue.enqueue("enable", user_id=user_id, timeout=AGAIN, retry_delay=AGAIN, retries=10**9)


settings = {
    "queue": queue,
    "functions": [enable],
    "concurrency": 5,
    "startup": open_session,
    "shutdown": close_session,
    "timers": {"sweep": max(1, AGAIN // 4)},
    "dequeue_timeout": 2,  # so that no job starts late in the grace period
    "shutdown_grace_period_s": AGAIN,
}
