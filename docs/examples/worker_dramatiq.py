"""A Dramatiq worker on Redis or Valkey that enables users.

Start it:  dramatiq worker_dramatiq --processes 1 --threads 5
"""

import logging
import os
from typing import Any

import dramatiq
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import AsyncIO, Middleware

import monocloud_async as mono

AGAIN = int(os.environ.get("AGAIN_AFTER", "20"))  # seconds until a job is tried again
SHARE = float(os.environ.get("MAX_RATE", "0")) or None  # of the tenant's limit, for this process
log = logging.getLogger("worker_dramatiq")


class Session(Middleware):
    """One session for all actors of the process, on the event loop of `AsyncIO`."""

    session: mono.MonoCloudSession

    def before_worker_boot(self, broker: Any, worker: Any) -> None:  # noqa: ARG002  as Dramatiq calls it
        self.session = self.run(self.opened())

    async def opened(self) -> mono.MonoCloudSession:
        return mono.MonoCloudSession(retry=mono.RetryPolicy(total=AGAIN * 2 / 3), max_rate=SHARE)

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:  # noqa: ARG002  as Dramatiq calls it
        self.run(self.session.close())

    def run(self, work: Any) -> Any:
        thread = get_event_loop_thread()
        assert thread is not None
        return thread.run_coroutine(work)


calls = Session()
broker = RedisBroker(  # type: ignore[no-untyped-call]  # as it is in Dramatiq
    url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
    heartbeat_timeout=2000 * AGAIN,  # milliseconds until the jobs of a dead worker come back
    maintenance_chance=100_000,  # of a million commands, how many look for dead workers
)
broker.add_middleware(AsyncIO())
broker.add_middleware(calls)  # closed before the event loop ends
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=None)
async def enable_user(user_id: str) -> None:
    try:
        await calls.session.enable_user(user_id)
    except (mono.InvalidUserIdError, mono.NotFoundError, mono.UnprocessableError) as error:
        log.warning("refused: %s", error)  # a retry would be refused, too
    except mono.MonoCloudError as error:
        log.warning("will be retried: %s", error)
        raise Retry(delay=1000 * AGAIN) from None
