"""A SAQ worker on Redis or Valkey that gives users their access back.

Start it:  saq worker_saq.settings
"""

import logging
import os
import time
from typing import Any

from saq.queue.redis import RedisQueue

from monocloud_async import MonoCloudSession, RetryPolicy, errors

AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))  # seconds until a job comes again
log = logging.getLogger("worker_saq")
# A job that fails says why in one line; SAQ would add fifty.
logging.getLogger("saq").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], errors.MonoCloudError))
)


class Queue(RedisQueue):
    held: dict[bytes, float] | None = None  # jobs in the hands of workers, and since when

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Bring back what a dead worker held. SAQ's own sweep may hang, and lose a job."""
        ids = await self.redis.lrange(self.namespace("active"), 0, -1)
        self.held = {i: (self.held or {}).get(i, time.monotonic()) for i in ids}
        for i, since in self.held.items():
            job = await self.job(self.job_key_from_id(i.decode()))
            if job and time.monotonic() - since > AGAIN:
                await self.retry(job, "its worker is gone")
        return []


queue = Queue.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), name="monocloud")


async def open_session(context: dict[str, Any]) -> None:
    # One for all jobs of the process: they share its connections, and its tenant's pace.
    context["session"] = MonoCloudSession(retry=RetryPolicy(total=AGAIN * 2 / 3))


async def close_session(context: dict[str, Any]) -> None:
    await context["session"].close()


async def enable_user(context: dict[str, Any], *, user_id: str) -> None:
    try:
        await context["session"].enable_user(user_id)
    except (errors.InvalidUserIdError, errors.NotFoundError, errors.UnprocessableError) as error:
        log.warning("refused: %s", error)  # the same answer would come again
    except errors.MonoCloudError as error:
        log.warning("comes again: %s", error)
        raise


async def enqueue(user_id: str) -> None:  # what the web application calls
    again: dict[str, Any] = {"timeout": AGAIN, "retries": 10**9, "retry_delay": AGAIN}
    await queue.enqueue("enable_user", user_id=user_id, **again)


settings = {
    "queue": queue,
    "functions": [enable_user],
    "concurrency": 50,
    "startup": open_session,
    "shutdown": close_session,
    "timers": {"sweep": 5},
    "dequeue_timeout": 2,  # an idle worker takes no job late in its grace period
    "shutdown_grace_period_s": AGAIN,
}
