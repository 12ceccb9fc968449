"""A SAQ worker on Redis or Valkey that gives users their access back.

Start it:  saq worker_saq.settings
"""

import os

from saq import Queue
from saq.types import Context, SettingsDict

from monocloud_async import MonoCloudError, MonoCloudSession


class Work(Context):
    """What SAQ hands to every job of the process."""

    session: MonoCloudSession


queue = Queue.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), name="monocloud")


async def open_session(context: Work) -> None:
    # One for all jobs of the process: they share its connections, and its tenant's pace.
    context["session"] = MonoCloudSession()


async def close_session(context: Work) -> None:
    await context["session"].close()


async def enable_user(context: Work, *, user_id: str) -> str:
    try:
        await context["session"].enable_user(user_id)
    except MonoCloudError as error:
        if error.transient:
            raise  # the session's own attempts were not enough: the job comes again, later
        return str(error)  # the same answer would come again
    return "enabled"


async def enqueue(user_id: str) -> None:
    """What the web application calls."""
    await queue.enqueue(
        "enable_user", user_id=user_id, timeout=120, retries=5, retry_delay=30, retry_backoff=True
    )


settings: SettingsDict[Work] = {
    "queue": queue,
    "functions": [enable_user],
    "concurrency": 50,
    "startup": open_session,
    "shutdown": close_session,
}
