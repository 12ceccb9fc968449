"""How fast a run is, and how much longer it will take, from what is known of the tenant."""

import math
from collections import deque
from typing import Final, NamedTuple

from monocloud_async.ratelimit.limiter import RateLimiter

_WINDOW: Final = 15.0  # seconds at work from which the speed is measured
_LONG: Final = 5.0  # seconds of a pause that divides a run into rounds
_SHORTEST: Final = 0.5  # seconds at work before there is a speed
_LEARNING: Final = 60.0  # seconds in which a run becomes faster, after a limit is known
_TRUST: Final = 0.4  # what the speed so far is worth at their beginning


class Estimate:
    """The speed of a run and the time that is left.

    The speed is measured over the last 15 seconds at work. Outages and long pauses do not count
    there; short pauses do, because a run under a limit has them all the time. It is measured anew
    when the tenant refuses for the first time (before that, it granted a burst), and when its limit
    is learnt. In the minute after that, pauses count less: the run will have fewer of them.

    A tenant that grants many and then asks for a long pause is worked through in rounds: as many
    as in the last round, in as much time. A round that grants more ends this.

    Args:
        limiter: the rate limiter of the session, or None if it is not in this process.
        max_rate: a limit for this run alone, in requests per second.
    """

    def __init__(self, limiter: RateLimiter | None = None, max_rate: float | None = None) -> None:
        self._limiter = limiter
        self._max_rate = math.inf if max_rate is None else max_rate
        self._samples = deque[tuple[float, float, float]]()  # at work, paused, done
        self._per_request = 1.0
        self._now = self._done = 0.0
        self._away = 0.0  # seconds of outages and long pauses
        self._was_down = False
        self._known = 0
        self._known_since = math.nan
        self._pause_end = 0.0  # of a long pause, until something is granted again; else 0.0
        self._began = math.nan  # when this round began, at the end of a long pause
        self._done_before = 0.0  # how many were done before this round
        self._at_work = (
            math.inf
        )  # seconds of a round before its pause; the first ones learn, slowly
        self._round: _Round | None = None  # the last one that a long pause ended

    def update(self, now: float, done: float, requests: float | None = None) -> None:
        """Note how many are done now, and how many requests this took (default: one each)."""
        if math.isnan(self._began):
            self._now = self._began = self._known_since = now
            self._done_before = done
        if done and requests:
            self._per_request = done / requests
        if self._limiter is not None:
            self._note_pause(self._limiter, now, done)
        self._now, self._done = now, done
        samples = self._samples
        paused = 0.0 if self._limiter is None else self._limiter.paused_seconds(now) - self._away
        samples.append((now - self._away, paused, done))
        while samples[-1][0] - samples[0][0] > _WINDOW:
            samples.popleft()

    def _note_pause(self, limiter: RateLimiter, now: float, done: float) -> None:
        away_until = now if self._was_down else max(self._now, self._pause_end)
        self._away += min(now, away_until) - self._now
        self._was_down = limiter.down
        pause = 0.0 if limiter.down else limiter.pause_from(now)
        if self._pause_end and now >= self._pause_end and done > self._done:
            self._began, self._done_before = self._pause_end, self._done
            self._pause_end = 0.0
        if pause > _LONG and not self._pause_end and done > self._done_before:
            self._at_work = min(self._at_work, now - self._began)
        if pause > _LONG or self._pause_end:
            self._pause_end = max(self._pause_end, now + pause)
            if done > self._done_before:
                seconds = self._pause_end - self._began
                if math.isinf(self._at_work):  # all of it was in flight when the pause began
                    self._at_work = now - self._began
                self._round = _Round(done - self._done_before, self._at_work, seconds)
        elif self._round is not None and done - self._done_before > 1.1 * self._round.granted:
            self._round, self._at_work = None, math.inf
        known = bool(limiter.paused_seconds(now)) + (limiter.rate is not None)
        if known > self._known:
            self._known, self._known_since = known, now
            if self._round is None:
                self._samples.clear()

    @property
    def rate(self) -> float | None:
        """How many are done per second; None while that is unknown, or the tenant is down."""
        limiter = self._limiter
        if not self._samples or (limiter is not None and limiter.down):
            return None
        (began, paused_before, before), (at_work, paused, done) = (
            self._samples[0],
            self._samples[-1],
        )
        rate = limit = self._limit
        seconds, amount = at_work - began, done - before
        if seconds >= _SHORTEST:
            rate = amount / seconds
            learning = (self._now - self._known_since) / _LEARNING
            if learning < 1:
                trust = _TRUST + (1 - _TRUST) * learning
                sending = max(_SHORTEST, seconds - (paused - paused_before))
                rate = min(limit, trust * rate + (1 - trust) * min(limit, amount / sending))
        if self._round is not None:
            rate = min(rate, self._round.granted / self._round.seconds)
        return rate if 0 < rate < math.inf else None

    @property
    def _limit(self) -> float:
        """How many per second the limits that are known allow."""
        learnt = None if self._limiter is None else self._limiter.rate
        return self._per_request * (
            self._max_rate if learnt is None else min(self._max_rate, learnt)
        )

    def left(self, now: float, remaining: float) -> float | None:
        """Return the seconds until so many more are done, or None if that is unknown."""
        rate = self.rate
        if rate is None:
            return None
        if remaining <= 0:
            return 0.0
        if self._round is None:
            pause = 0.0 if self._limiter is None else self._limiter.pause_from(now)
            return pause + remaining / rate
        granted, at_work, seconds = self._round
        began, in_this_round = self._pause_end, granted
        if not began:
            began, in_this_round = self._began, granted - (self._done - self._done_before)
        wait = max(0.0, began - now)
        if remaining > in_this_round:
            remaining -= max(0.0, in_this_round)
            rounds = math.ceil(remaining / granted) - 1  # whole ones, before the last
            remaining -= rounds * granted
            wait = max(0.0, began + seconds - now) + rounds * seconds
        return wait + remaining * max(at_work / granted, 1 / self._limit)


class _Round(NamedTuple):
    granted: float
    at_work: float  # seconds before the pause
    seconds: float  # with the pause
