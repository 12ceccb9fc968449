"""The queue in front of the pace: a run's requests take turns, a single call passes them by."""

import asyncio
import math
import random
from typing import Final

from monocloud_async.errors import (
    MonoCloudError,
    RateLimitedError,
    RequestTimeoutError,
    StatusError,
)
from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.ratelimit.pacer import Pacer

_SCATTER: Final = 0.1  # of a pause, at most; so much later single calls come back, each by itself
_LONGEST_SCATTER: Final = 1.0  # seconds


class AdmissionQueue:
    """When a run's next request may go out: first come, first served.

    Args:
        limiter: the session's.
        max_rate: requests a second that this run keeps to, whatever the session does.
    """

    def __init__(self, limiter: RateLimiter, max_rate: float | None = None) -> None:
        self.limiter = limiter
        self._limit = None if max_rate is None else Pacer(max_rate)
        self._queue = asyncio.Lock()
        self._retry_queue = asyncio.Lock()  # a line behind the line
        self._sleeper: asyncio.Future[None] | None = None  # of the head of the queue

    @property
    def is_open(self) -> bool:
        """Whether nobody is held back."""
        return self._limit is None and self.limiter.is_open

    def must_wait(self, now: float) -> bool:
        """Whether a request has to wait in the queue."""
        return self._queue.locked() or self._delay(now) > 0

    async def wait(self, *, is_retry: bool = False) -> None:
        """Returns when a request may go out.

        Those who failed and come `is_retry` stand in line one at a time. Else, in an outage, a row
        of users who fail for reasons of their own would keep the probes to themselves for minutes.
        """
        if is_retry:
            async with self._retry_queue:
                await self.wait()
            return
        loop = asyncio.get_running_loop()
        if not self.must_wait(loop.time()):
            return
        async with self._queue:
            while (left := self._delay(loop.time())) > 0:
                await self._sleep(left, loop)

    def admit(self, now: float) -> Ticket:
        """The ticket of a request that goes out now."""
        if self._limit is not None:
            self._limit.take(now)
        return self.limiter.send(now)

    def _delay(self, now: float) -> float:
        wait = self.limiter.delay(now)
        return wait if self._limit is None else max(wait, self._limit.delay(now))

    async def _sleep(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Until then, or until the pace changes: one timer, for the head of the queue."""
        self._sleeper = sleeper = loop.create_future()
        timer = None if seconds == math.inf else loop.call_later(seconds, self._wake)
        self.limiter.listeners.add(self._wake)
        try:
            await sleeper
        finally:
            self.limiter.listeners.discard(self._wake)
            self._sleeper = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


async def admit_single_call(
    limiter: RateLimiter, user_id: str, *, max_pause: float, time_left: float
) -> Ticket:
    """The ticket of a single call: it obeys a pause and `max_rate`, and does not queue.

    Raises:
        RateLimitedError: the pause is longer than `max_pause` seconds, or than the call has
            `time_left`.
        RequestTimeoutError: others use up `max_rate` for as long as that. Nothing was sent.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + time_left
    while wait := limiter.single_call_delay(clock()):
        pause = limiter.single_call_pause(clock())
        if pause > min(max_pause, deadline - clock()):
            raise RateLimitedError(
                f"the tenant asked everybody to wait, {pause:.0f} s more; nothing was sent",
                status=429,
                user_id=user_id,
                retry_after=pause,
            )
        if clock() + wait > deadline:
            raise RequestTimeoutError(
                f"max_rate had no place for it within {time_left:.0f} s; nothing was sent",
                user_id=user_id,
                sent=False,
                transient=False,
            )
        scatter = min(_SCATTER * pause, _LONGEST_SCATTER)
        await asyncio.sleep(wait + random.uniform(0.0, scatter))  # noqa: S311  jitter, no secret
    return limiter.send(clock())


def record_failure(
    limiter: RateLimiter,
    ticket: Ticket,
    user_id: str,
    error: BaseException,
    now: float,
    *,
    repeated: bool = False,
) -> None:
    """Let the pace know how a request ended that enabled nobody."""
    if isinstance(error, RateLimitedError):
        limiter.refused(ticket, error.retry_after, now)
    elif isinstance(error, MonoCloudError) and error.transient:
        limiter.failed(ticket, user_id, now, repeated=repeated)
    elif isinstance(error, StatusError):
        limiter.granted(ticket, now)
    else:
        limiter.abandoned(ticket, now)
