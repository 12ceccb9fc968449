"""Limits the work of runs in each iteration of the event loop, so that others never wait for long.

With hundreds of requests in flight, hundreds of responses may arrive in one iteration of the event
loop. To read them all, and to send as many requests, takes tens of milliseconds, and a web request
on the same loop would have to wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

SLICE: Final = 0.003  # seconds of work in one iteration of the event loop
_FIRST_SHARE: Final = 30  # responses; a task takes 50 microseconds for one
_GROWTH: Final = 1.1  # at most, from one iteration to the next: some responses cost less than most


class TimeSlice:
    """Hands responses to the tasks of runs, a few milliseconds of work in each iteration.

    A few responses are handed over at once: as many as the tasks could process in a slice before.
    More than that wait, first come, first served; each iteration then hands over so many.

    Args:
        clock: returns the seconds that this thread has worked. By the wall clock, a machine that is
            busy with other things would make the slices smaller, which helps nobody.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._waiting = deque[tuple[asyncio.Future[Any], object]]()
        self._share: float = _FIRST_SHARE  # responses in a slice
        self._left = 0  # of the current slice
        self._delivered = 0  # in the current slice, or in the last one
        self._until = 0.0  # its end, on the event loop's clock
        self._began = 0.0  # of a slice, on the clock of this thread

    def deliver(self, waiter: asyncio.Future[T], result: T) -> None:
        """Set the result of the waiter, in this iteration of the event loop or in a later one."""
        loop = waiter.get_loop()
        if self._waiting:
            self._waiting.append((waiter, result))
            return
        if (now := loop.time()) >= self._until:
            self._learn()
            self._until, self._left = now + 2 * SLICE, int(self._share)
        if self._left:
            self._left -= 1
            self._delivered += 1
            waiter.set_result(result)
        else:
            self._waiting.append((waiter, result))
            loop.call_soon(self._first, loop)

    async def turn(self) -> None:
        """Return when the caller may process its response."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deliver(waiter, None)
        await waiter

    def _first(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the tasks that have their responses process them, before others get theirs."""
        self._began = self._clock()
        loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver a share of the waiting responses; called in each iteration while any wait."""
        self._learn()
        share = int(self._share)
        while share and self._waiting:
            waiter, result = self._waiting.popleft()
            if not waiter.done():  # else, the call was cancelled
                waiter.set_result(result)
                self._delivered += 1
                share -= 1
        if self._waiting:
            loop.call_soon(self._next, loop)  # after the tasks of these

    def _learn(self) -> None:
        """Learn from the last slice how many responses fit into the next one."""
        now = self._clock()
        if self._delivered:
            fits = self._delivered * SLICE / max(now - self._began, 1e-6)
            self._share = max(1.0, min(fits, self._share * _GROWTH))
        self._began, self._delivered = now, 0
