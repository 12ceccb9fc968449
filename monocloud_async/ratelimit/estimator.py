"""Learns the rate that a tenant allows, from the requests that it allowed before a 429.

Any rate limit, a token bucket or a window, allows at most a burst plus its rate times the time. So
each interval of requests that ended in a 429 gives lower bounds for the rate, and the highest of
them is right, because the bucket was empty at the end.
docs/pace.md explains the method and the constants.
"""

import math
from collections import deque
from typing import Final

from msgspec import Struct

# The search, from the first refusal to the second
_SEARCH_START: Final = 3.0  # start, as a multiple of the rate that the first interval allowed
_SEARCH: Final = 0.2  # seconds in which the rate grows by a factor of e
_SEARCH_STEP: Final = 1.25  # maximum factor per request

# Holding the rate
_LEAST: Final = 1.0  # requests per second; a lower limit answers with a 429 each time
_MARGIN: Final = 0.002  # below the learnt rate, in a quiet time without probing
_HOLD_UNSURE: Final = 4.0  # seconds of quiet after a guess
_HOLD_SURE: Final = 15.0  # seconds of quiet after a measurement
_MAX_HOLD: Final = 90.0  # seconds; more would notice a raised limit too late
_HOLD_FACTOR: Final = 1.4  # growth of the quiet time with each refused probe
_COST: Final = 150.0  # minimum requests of a quiet time for each refused one

# Probing, when the quiet time is over
_GROWTH: Final = 0.002  # per second, at first
_DOUBLINGS: Final = 16  # of this growth, in a time as long as the quiet time
_BRISK: Final = 40.0  # seconds; a longer quiet time does not slow probing down further
_MAX_GROWTH: Final = 0.15  # per second; maximum growth
_STEP: Final = 0.01  # maximum growth per request: at 5/s each one gives information
_FAR: Final = 2.0  # times the learnt rate; above, the quota of a window could be used up at once
_FAR_GROWTH: Final = 0.03  # per second; maximum growth above `_FAR`

# Measuring
_ENOUGH: Final = 20  # requests; a shorter part of an interval is not measured
_PLENTY: Final = 50  # requests for a reliable measurement
_RESOLUTION: Final = 0.005  # seconds
_MARKS: Final = 1024
_MOVED: Final = 0.15  # a larger change of the learnt rate means a new limit
_LONG_PAUSE: Final = 0.1  # share of a cycle; a longer pause ends with a window or later
_MEMORY: Final = 0.7  # weight of the cycles before such a pause
_CHEAP: Final = 0.01  # share of refused requests up to which reaching higher pays off
_HIGH, _LOW = 1.25, 1.03  # how far to reach, relative to the measured rate


class Ticket(Struct, frozen=True, gc=False):
    """A request in flight, as the limiter needs to know it when the response arrives."""

    interval: int
    index: int
    sent_at: float
    rate: float


class MeasurementInterval:
    """The requests between two pauses, with those that were refused."""

    __slots__ = (
        "_end",
        "answered_at",
        "began",
        "first_refused_at",
        "last_refused_at",
        "latency",
        "marks",
        "number",
        "refused",
        "sent",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = 0.0
        self.answered_at = math.inf  # time of the first response
        self.latency = math.inf  # seconds; the shortest response time
        self.sent = 0
        self.refused = 0
        self.first_refused_at = 0.0
        self.last_refused_at = 0.0
        self.marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)  # time, requests before
        self._end = 0

    def send(self, now: float, rate: float) -> Ticket:
        """Add a request, and return its ticket."""
        ticket = Ticket(self.number, self.sent, now, rate)
        if not self.sent:
            self.began = now
        if not self.marks or now - self.marks[-1][0] > _RESOLUTION:
            self.marks.append((now, self.sent))
        self.sent += 1
        return ticket

    def grant(self, ticket: Ticket, now: float) -> None:
        """Record that the request of this ticket was granted; its response arrives now."""
        self.answered_at = min(self.answered_at, now)
        self.latency = min(self.latency, now - ticket.sent_at)

    def refuse(self, ticket: Ticket) -> None:
        """Record that the request of this ticket was answered 429."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        self.refused += 1
        if ticket.index >= self._end:
            self._end, self.last_refused_at = self._sent_with(ticket), ticket.sent_at

    def _sent_with(self, ticket: Ticket) -> int:
        """Return how many requests were sent before or with this one: their order is unknown."""
        end = self.sent
        for at, before in reversed(self.marks):
            if at <= ticket.sent_at:
                break
            end = before
        return end

    @property
    def granted(self) -> int:
        """Requests that were allowed, sent no later than the last refused one."""
        return self._end - self.refused

    def rate(self, burst: float) -> float:
        """Return the highest lower bound for the rate of a limit that allows `burst` at once."""
        granted, end = self.granted, self.last_refused_at
        most = 0.0
        for index, (at, before) in enumerate(self.marks):
            if at > self.first_refused_at or (index and granted - before < _ENOUGH):
                break
            if end > at:
                # One more would have been refused, so round up by one.
                most = max(most, (granted - before + 1 - burst) / (end - at))
        return most

    def burst(self, rate: float) -> float:
        """Return the highest lower bound for the burst of a limit that allows `rate` per second."""
        granted, end = self.granted, self.last_refused_at
        # The first requests have to connect: the shortest latency tells when they arrived.
        first = self.answered_at - self.latency if self.latency < math.inf else self.began
        return max(
            granted - before - rate * max(0.0, end - max(at, first)) for at, before in self.marks
        )


class RateEstimator:
    """The learnt rate: searches once, then repeatedly holds the rate, probes above, and learns.

    Attributes:
        rate: requests per second to send now.
        burst: requests that the tenant grants at once after a rest; 0.0 while that is not sure.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 0.0
        self._learnt = 0.0  # the learnt rate
        self._age = 0.0  # seconds of sending at this rate, without idle time
        self._hold = _HOLD_UNSURE
        self._search_time = 0.0  # seconds; during the search, how fast the rate grows
        self._first: MeasurementInterval | None = None  # the first interval, without any limit
        self._began = 0.0
        self._cycles = (0.0, 0.0)  # requests allowed, and the time, in cycles with a long pause

    def __repr__(self) -> str:
        return f"<RateEstimator {self.rate:.4g}/s>"

    @property
    def known(self) -> bool:
        """Whether the rate is measured and the search is over."""
        return self._learnt > 0 and not self._search_time

    def preview(self, interval: MeasurementInterval) -> float:
        """Return the rate of an interval, before it is known when the tenant grants again."""
        return max(_LEAST, self._rate_and_burst(interval, 0.0)[0])

    def advance(self, gap: float) -> None:
        """Raise the rate after a request that was sent `gap` seconds after the last one."""
        if self._search_time:
            self.rate *= min(_SEARCH_STEP, math.exp(gap / self._search_time))
            return
        self._age += gap
        probing = self._age - self._hold
        if probing < 0:
            return
        doublings = min(_DOUBLINGS * probing / min(self._hold, _BRISK), 10.0)
        growth = min(
            _GROWTH * 2**doublings, _MAX_GROWTH if self.rate < _FAR * self._learnt else _FAR_GROWTH
        )
        self.rate *= math.exp(min(growth * gap, _STEP))

    def learn(
        self, interval: MeasurementInterval, refused_rate: float, paused_at: float, now: float
    ) -> None:
        """Learn from an interval that ended with a 429, once the tenant allows requests again.

        Args:
            interval: the requests of the interval.
            refused_rate: the rate at which the first refused request was sent.
            paused_at: when sending stopped.
            now: when the first request that was allowed again was sent.
        """
        if self._learnt:
            self._measure(interval, refused_rate, now - paused_at, now)
        else:
            self._search(interval, now - paused_at, now)
        self._began = now
        self._age = 0.0

    def _search(self, interval: MeasurementInterval, pause: float, now: float) -> None:
        self._first = interval
        self._search_time = _SEARCH * max(1.0, pause)
        start = max(1.0, _SEARCH_START / max(1.0, pause))
        self._learnt = self.rate = max(_LEAST, start * interval.granted / (now - interval.began))

    def _measure(
        self, interval: MeasurementInterval, refused_rate: float, pause: float, now: float
    ) -> None:
        cycle_rate = self._cycle_rate(interval, pause, now)
        measured, burst = self._rate_and_burst(interval, cycle_rate)
        # If the whole cycle gives the same rate, it is a window, and idle time saves nothing.
        self.burst = burst if measured > 1.005 * cycle_rate else 0.0
        top = min(measured, refused_rate)
        if not self._search_time:
            cover = burst / (measured * pause)
            top = self._reach(interval, measured, cycle_rate, refused_rate, cover)
        if self._search_time or abs(top / self._learnt - 1) > _MOVED:
            sure = measured > 1.1 * cycle_rate and interval.granted >= _PLENTY
            self._hold = _HOLD_SURE if sure else _HOLD_UNSURE
        elif self._age >= self._hold:  # refused above the learnt rate: it is confirmed
            longer = self._hold * (2 if self._hold < _HOLD_SURE else _HOLD_FACTOR)
            worth = min(_COST * interval.refused / top, 2 * self._hold)
            self._hold = min(max(longer, worth), _MAX_HOLD)
        self._search_time = 0.0
        self._learnt = max(_LEAST, top)
        self.rate = self._learnt * (1 - _MARGIN)

    def _cycle_rate(self, interval: MeasurementInterval, pause: float, now: float) -> float:
        """Return the rate over a whole cycle, which is right if a burst is longer than a pause.

        The pause of a window ends some time after the window; over several cycles, it averages out.
        """
        granted, seconds = float(interval.granted), now - self._began
        if pause <= _LONG_PAUSE * seconds:
            self._cycles = 0.0, 0.0
            return granted / seconds
        granted += _MEMORY * self._cycles[0]
        seconds += _MEMORY * self._cycles[1]
        self._cycles = granted, seconds
        return granted / seconds

    def _rate_and_burst(
        self, interval: MeasurementInterval, cycle_rate: float
    ) -> tuple[float, float]:
        """Return the rate and the burst, which depend on each other."""
        assert self._first is not None  # noqa: S101  for the type checkers
        rate, burst = cycle_rate, 1.0
        for _ in range(20):
            rate = max(cycle_rate, interval.rate(burst))
            burst = max(1.0, self._first.burst(rate))
        return rate, burst

    @staticmethod
    def _reach(
        interval: MeasurementInterval,
        measured: float,
        cycle_rate: float,
        refused_rate: float,
        cover: float,
    ) -> float:
        """Return a rate half-way from the measured one to the refused one, if trying costs little.

        It costs little if a burst makes up for a pause (`cover` is the share), and below the limit
        of a window, which is higher than an interval below it shows.
        """
        share = 1.0 if measured <= 1.005 * cycle_rate else max(0.0, min(1.0, 2 * cover - 1))
        cheap = interval.refused < _CHEAP * interval.granted
        highest = min(refused_rate, (_HIGH if cheap else _LOW) * measured)
        return max(measured, measured + share * (highest - measured) / 2)
