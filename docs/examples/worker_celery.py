"""A Celery worker on Redis or Valkey that enables users, on an event loop of its own.

Start it:  celery -A worker_celery worker --pool threads --concurrency 5
"""

import asyncio
import logging
import os
import threading
from typing import Any

from celery import Celery, Task, signals

import monocloud_async as mono

AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))  # seconds until a job is tried again
SHARE = float(os.environ.get("MAX_RATE", "0")) or None  # of the tenant's limit, for this process
log = logging.getLogger("worker_celery")

app = Celery("monocloud", broker=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # after a crash, the broker delivers the job again
    worker_prefetch_multiplier=8,
    broker_transport_options={"visibility_timeout": 15 * AGAIN},  # when that is
    broker_connection_retry_on_startup=True,
)


class Calls:
    """An event loop in a thread, with one session for all tasks of the process."""

    loop: asyncio.AbstractEventLoop
    session: mono.MonoCloudSession

    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.session = self.run(self._session())

    async def _session(self) -> mono.MonoCloudSession:
        return mono.MonoCloudSession(retry=mono.RetryPolicy(total=AGAIN * 2 / 3), max_rate=SHARE)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        self.run(self.session.close())
        self.loop.call_soon_threadsafe(self.loop.stop)


calls = Calls()


@signals.worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def open_session(**_: Any) -> None:
    calls.open()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery has no types
def close_session(**_: Any) -> None:
    calls.close()


@app.task(bind=True, max_retries=None)  # type: ignore[untyped-decorator]  # Celery has no types
def enable_user(task: Task, user_id: str) -> None:
    try:
        calls.run(calls.session.enable_user(user_id))
    except (mono.InvalidUserIdError, mono.NotFoundError, mono.UnprocessableError) as error:
        log.warning("refused: %s", error)  # a retry would be refused, too
    except mono.MonoCloudError as error:
        log.warning("will be retried: %s", error)
        raise task.retry(countdown=AGAIN) from None
