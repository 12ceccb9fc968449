"""The queue in front of the pace: a run's requests take turns, a single call passes them by."""

import asyncio
import math
import random
from typing import Final

from monocloud_async.ceiling import Ticket
from monocloud_async.errors import (
    MonoCloudError,
    RateLimitedError,
    RequestTimeoutError,
    StatusError,
)
from monocloud_async.pace import Pace
from monocloud_async.spacing import Spacing

_SCATTER: Final = 0.1  # of a pause, at most; so much later single calls come back, each by itself
_LONGEST_SCATTER: Final = 1.0  # seconds


class Turns:
    """When a run's next request may go out: first come, first served.

    Args:
        pace: the session's.
        max_rate: requests a second that this run keeps to, whatever the session does.
    """

    def __init__(self, pace: Pace, max_rate: float | None = None) -> None:
        self.pace = pace
        self._limit = None if max_rate is None else Spacing(max_rate)
        self._line = asyncio.Lock()
        self._behind = asyncio.Lock()  # a line behind the line
        self._sleeper: asyncio.Future[None] | None = None  # of the head of the queue

    @property
    def free(self) -> bool:
        """Whether nobody is held back."""
        return self._limit is None and self.pace.is_open

    def busy(self, now: float) -> bool:
        """Whether a request has to wait in the queue."""
        return self._line.locked() or self._delay(now) > 0

    async def ready(self, *, again: bool = False) -> None:
        """Returns when a request may go out.

        Those who failed and come `again` stand in line one at a time. Else, in an outage, a row of
        users who fail for reasons of their own would keep the probes to themselves for minutes.
        """
        if again:
            async with self._behind:
                await self.ready()
            return
        loop = asyncio.get_running_loop()
        if not self.busy(loop.time()):
            return
        async with self._line:
            while (left := self._delay(loop.time())) > 0:
                await self._sleep(left, loop)

    def take(self, now: float) -> Ticket:
        """The ticket of a request that goes out now."""
        if self._limit is not None:
            self._limit.take(now)
        return self.pace.send(now)

    def _delay(self, now: float) -> float:
        wait = self.pace.delay(now)
        return wait if self._limit is None else max(wait, self._limit.delay(now))

    async def _sleep(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Until then, or until the pace changes: one timer, for the head of the queue."""
        self._sleeper = sleeper = loop.create_future()
        timer = None if seconds == math.inf else loop.call_later(seconds, self._wake)
        self.pace.listeners.add(self._wake)
        try:
            await sleeper
        finally:
            self.pace.listeners.discard(self._wake)
            self._sleeper = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


async def pass_by(pace: Pace, user_id: str, *, longest: float, left: float) -> Ticket:
    """The ticket of a single call: it obeys a pause and `max_rate`, and does not queue.

    Raises:
        RateLimitedError: the pause is longer than `longest` seconds, or than the call has `left`.
        RequestTimeoutError: others use up `max_rate` for as long as that. Nothing was sent.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + left
    while wait := pace.delay_of_one(clock()):
        pause = pace.pause_of_one(clock())
        if pause > min(longest, deadline - clock()):
            raise RateLimitedError(
                f"the tenant asked everybody to wait, {pause:.0f} s more; nothing was sent",
                status=429,
                user_id=user_id,
                retry_after=pause,
            )
        if clock() + wait > deadline:
            raise RequestTimeoutError(
                f"max_rate had no place for it within {left:.0f} s; nothing was sent",
                user_id=user_id,
                sent=False,
                transient=False,
            )
        scatter = min(_SCATTER * pause, _LONGEST_SCATTER)
        await asyncio.sleep(wait + random.uniform(0.0, scatter))  # noqa: S311  jitter, no secret
    return pace.send(clock())


def tell(
    pace: Pace,
    ticket: Ticket,
    user_id: str,
    error: BaseException,
    now: float,
    *,
    again: bool = False,
) -> None:
    """Let the pace know how a request ended that enabled nobody."""
    if isinstance(error, RateLimitedError):
        pace.refused(ticket, error.retry_after, now)
    elif isinstance(error, MonoCloudError) and error.transient:
        pace.failed(ticket, user_id, now, again=again)
    elif isinstance(error, StatusError):
        pace.granted(ticket, now)
    else:
        pace.lost(ticket)
