"""How fast a run is, and how much longer it will take, from what is known of the tenant."""

import math
from collections import deque
from typing import Final

from monocloud_async.ratelimit.limiter import RateLimiter

_WINDOW: Final = 20.0  # seconds at work from which the speed is measured
_LONG: Final = 5.0  # seconds of a pause that says more than the learnt rate
_SHORTEST: Final = 0.5  # seconds at work before there is a speed


class Estimate:
    """The speed of a run and the time that is left.

    The speed is what the limit of the tenant allows, or less where the run is slower than that. It
    is measured over times in which requests were sent: pauses and outages do not count. What is
    left of a pause counts in the time that is left. A tenant that grants many at once and then asks
    for a long pause has the limit that one such round shows, before another one is learnt.

    Args:
        limiter: the rate limiter of the session, or None if it is not in this process.
        max_rate: a limit for this run alone, in requests per second.
    """

    def __init__(self, limiter: RateLimiter | None = None, max_rate: float | None = None) -> None:
        self._limiter = limiter
        self._max_rate = math.inf if max_rate is None else max_rate
        self._samples = deque[tuple[float, float]]()  # seconds at work, and how many were done
        self._per_request = 1.0
        # The end of the last pause, and how many were done before it; and of the one before.
        self._round: tuple[float, float] | None = None
        self._round_before: tuple[float, float] | None = None
        self._pause = 0.0  # how long the last pause was

    def update(self, now: float, done: float, requests: float | None = None) -> None:
        """Note how many are done now, and how many requests this took (default: one each)."""
        limiter = self._limiter
        at_work = now - (0.0 if limiter is None else limiter.paused_seconds(now))
        if done and requests:
            self._per_request = done / requests
        self._note_round(now, done)
        samples = self._samples
        samples.append((at_work, done))
        while samples[-1][0] - samples[0][0] > _WINDOW:
            samples.popleft()

    def _note_round(self, now: float, done: float) -> None:
        if self._round is None:
            self._round = self._round_before = now, done
        pause = 0.0 if self._limiter is None else self._limiter.pause_from(now)
        if pause:
            if now >= self._round[0]:
                self._round_before, self._pause = self._round, pause
            self._round = now + pause, done

    def _limit(self) -> float:
        """Return what the tenant allows, in requests per second, as far as that is known."""
        learnt = None if self._limiter is None else self._limiter.rate
        limit = math.inf if learnt is None else learnt
        if self._round is None or self._round_before is None:
            return limit
        (began, before), (end, done) = self._round_before, self._round
        if done > before and (learnt is None or self._pause > _LONG):
            limit = min(limit, (done - before) / self._per_request / (end - began))
        return limit

    @property
    def rate(self) -> float | None:
        """How many are done per second; None while that is unknown, or the tenant is down."""
        limiter = self._limiter
        if not self._samples or (limiter is not None and limiter.down):
            return None
        (began, before), (at_work, done) = self._samples[0], self._samples[-1]
        rate = min(self._max_rate, self._limit()) * self._per_request
        if at_work - began >= _SHORTEST:
            rate = min(rate, (done - before) / (at_work - began))
        return rate if 0 < rate < math.inf else None

    def left(self, now: float, remaining: float) -> float | None:
        """Return the seconds until so many more are done, or None if that is unknown."""
        rate = self.rate
        if rate is None:
            return None
        pause = 0.0 if self._limiter is None else self._limiter.pause_from(now)
        return pause + remaining / rate
