"""Learns the rate that a tenant grants, from what it granted until a 429.

A token bucket and a window alike grant at most a burst, plus their rate times the elapsed time. So
every interval of requests that ends with a 429 gives a lower bound for the rate, and so does every
part of the interval that ends with the same 429. The highest of these bounds is the rate itself,
because the bucket was empty at the end.

This is only true for a session that has the limit to itself. If a 429 contradicts what was
measured, other clients share the limit; then `fair_share` sets the rate. A session that sends less
than its rate allows, for example only single calls, learns nothing from a 429 and keeps its rate.

docs/pace.md explains these rules, and where each constant comes from.
"""

import math
from collections import deque
from typing import Final, Protocol

from msgspec import Struct

from monocloud_async.ratelimit.fair_share import FairShare

# Searching, from the first 429 to the second
_SEARCH_START: Final = 3.0  # the first rate, as a multiple of the rate granted until the first 429
_SEARCH: Final = 0.2  # seconds in which the rate grows by the factor e
_SEARCH_CALLS: Final = 5.0  # multiplies that time if single calls wait
_SEARCH_STEP: Final = 1.25  # the largest factor by which one request raises the rate

# Holding the learnt rate
_LEAST: Final = 1.0  # requests per second; the lowest rate, however little the tenant grants
_MARGIN: Final = 0.002  # how far below the learnt rate it is held, as a share
_HOLD_UNSURE: Final = 4.0  # seconds to hold a rate that is not sure
_HOLD_SURE: Final = 15.0  # seconds to hold a rate that is sure
_MAX_HOLD: Final = 90.0  # seconds; after longer times, a higher limit would be found too late
_HOLD_FACTOR: Final = 1.4  # how the time to hold grows after each probe that was refused
_COST: Final = 150.0  # requests to send, at least, for each one that a probe has refused

# Probing for a higher rate, after holding
_GROWTH: Final = 0.002  # per second, at first
_DOUBLINGS: Final = 16  # how often that growth doubles in the time for which the rate was held
_MAX_GROWTH: Final = 0.15  # per second
_STEP: Final = 0.01  # the most by which one request raises the rate; at 5/s, each one counts
_FAR_STEP: Final = 0.05  # the same when the rate is far enough up to be a new limit (`_MOVED`)
_FAR: Final = 2.0  # times the learnt rate: if nothing is refused until there, it was wrong

# Measuring
_ENOUGH: Final = 20  # requests; a shorter part of an interval is not measured
_PLENTY: Final = 50  # requests; the measurement of a shorter interval is not sure
_RESOLUTION: Final = 0.005  # seconds between two marks
_MARKS: Final = 1024
_ROUNDS: Final = 5  # of solving for rate and burst, which depend on each other
_MOVED: Final = 0.15  # if the learnt rate changes by more than this share, the limit has changed
_CHEAP: Final = 0.01  # share of refused requests up to which a higher rate is worth trying
_HIGH, _LOW = 1.25, 1.03  # the highest rate to try then, and else, as multiples of the granted one

# Noticing other clients on the same limit, by 429s that a session alone would not get
_PROOF: Final = 4  # 429s in a row while the rate was held
_MANY_FALLS: Final = 2  # measurements in a row far below the one before, or below 1/s
_SETTLED: Final = 1.0  # seconds of sending after which a fall counts: sooner, it was an error
_AT_ONCE: Final = 0.5  # seconds of sending; a 429 before that is proof: the bucket had filled up
_TOO_FEW: Final = 25  # requests; a search that was refused sooner has measured nothing
_SLOW: Final = 10.0  # requests per second; slower tenants refuse that soon without other clients
_LITTLE: Final = 4  # requests, or requests per second; such a low rate takes long to correct
_NEWCOMER: Final = 5.0  # requests per second, for a session that was granted nothing at first
_AGAIN: Final = 0.3  # the heat of `FairShare` for a session that has shared before

# Single calls, which arrive more slowly than the rate allows
_USED: Final = 2.0  # times their arrival rate is kept free for them
_UNHELD: Final = 0.5  # share of recent requests that did not wait for the rate


class Ticket(Struct, frozen=True, gc=False):
    """A request in flight, with what is needed when its response arrives.

    Attributes:
        interval: the number of its interval.
        index: its number in the interval.
        sent_at: when it was sent.
        rate: the rate at that time.
        before: requests of the interval before it, each with its weight.
    """

    interval: int
    index: int
    sent_at: float
    rate: float
    before: float = 0.0


class MeasurementInterval:
    """The requests between two pauses, and which of them were refused.

    Attributes:
        number: its number in the session.
        began: when the first request was sent.
        answered_at: when the first request was granted, or None.
        latency: seconds from a request to its response, for the quickest one.
        weight: how many requests of all sessions each request stands for, if several sessions learn
            one rate together (`RateLimiter.follow`).
        requests: how many were sent, without their weight.
        sent, refused: how many were sent and how many refused, with their weight.
        others: whether rate limit headers show that other clients share the limit.
        unheld: share of recent requests that did not wait for the rate.
        first_refused_at, last_refused_at: when these requests were sent.
        marks: some moments, and how many requests were sent before each.
        end: requests sent up to and including the last refused one.
    """

    __slots__ = (
        "answered_at",
        "began",
        "end",
        "first_refused_at",
        "last_refused_at",
        "latency",
        "marks",
        "number",
        "others",
        "refused",
        "requests",
        "sent",
        "unheld",
        "weight",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = 0.0
        self.answered_at: float | None = None
        self.latency = math.inf
        self.weight: float = 1
        self.requests = 0
        self.others = False
        self.sent: float = 0
        self.refused: float = 0
        self.unheld = 0.0
        self.first_refused_at = 0.0
        self.last_refused_at = 0.0
        self.marks: deque[tuple[float, float]] = deque(maxlen=_MARKS)
        self.end: float = 0

    def send(self, now: float, rate: float) -> Ticket:
        """Record that a request is sent, and return its ticket."""
        ticket = Ticket(self.number, self.requests, now, rate, self.sent)
        if not self.sent:
            self.began = now
        if not self.marks or now - self.marks[-1][0] > _RESOLUTION:
            self.marks.append((now, self.sent))
        self.requests += 1
        self.sent += self.weight
        return ticket

    def grant(self, ticket: Ticket, now: float) -> None:
        """Record that a request was granted, by a response that arrives now."""
        if ticket.interval != self.number:
            return
        latency = now - ticket.sent_at
        if latency < self.latency:  # noqa: PLR1730  `min` costs twice as much
            self.latency = latency
        if self.answered_at is None:
            self.answered_at = now

    def refuse(self, ticket: Ticket) -> None:
        """Record that a request was answered 429."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        self.refused += self.weight
        if ticket.before >= self.end:
            self.end, self.last_refused_at = self._sent_with(ticket), ticket.sent_at

    def exhaust(self, ticket: Ticket) -> None:
        """Record that a request was granted and another one would have been refused."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        if ticket.before >= self.end:
            self.end, self.last_refused_at = ticket.before + self.weight, ticket.sent_at

    def _sent_with(self, ticket: Ticket) -> float:
        """Return how many requests were sent before this one, or in the same moment.

        The tenant may receive these in any order.
        """
        end = self.sent
        for at, before in reversed(self.marks):
            if at <= ticket.sent_at:
                break
            end = before
        return end

    @property
    def granted(self) -> float:
        """How many requests up to the last refused one were not refused themselves."""
        return self.end - self.refused

    def rate(self, burst: float) -> float:
        """Return the rate of a tenant with this burst: the highest bound of any part."""
        granted, end = self.granted, self.last_refused_at
        most = 0.0
        for index, (at, before) in enumerate(self.marks):
            if at > self.first_refused_at or (index and granted - before < _ENOUGH * self.weight):
                break
            if end > at:
                # The + 1 is the refused request: the bucket had not quite one more.
                most = max(most, (granted - before + 1 - burst) / (end - at))
        return most

    def burst(self, rate: float) -> float:
        """Return the burst of a tenant with this rate: the highest bound of any part."""
        granted, end = self.granted, self.last_refused_at
        # The first requests have to connect first. The first response tells when they arrived.
        first = self.began if self.answered_at is None else self.answered_at - self.latency
        return max(
            granted - before - rate * max(0.0, end - max(at, first)) for at, before in self.marks
        )


class Estimator(Protocol):
    """Gives a limiter its rate, and learns from the intervals of the limiter: `RateEstimator`."""

    @property
    def rate(self) -> float:
        """How many requests to send per second now."""
        ...

    @property
    def burst(self) -> float:
        """How many requests the tenant grants at once after an idle time; 0.0 if not known."""
        ...

    @property
    def known(self) -> bool:
        """Whether the rate was measured; False while it is searched for."""
        ...

    def preview(self, interval: MeasurementInterval, /) -> float:
        """Return the highest rate that `learn` can find for this interval, during the pause."""
        ...

    def advance(self, gap: float, /) -> None:
        """Record that the rate made a request wait until `gap` seconds after the previous one."""

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        arrival_rate: float = 0.0,
        /,
    ) -> None:
        """Learn from an interval that ended with a 429, once the tenant grants again."""


class RateEstimator:
    """Learns the rate: searches for it once, then holds it, probes for more, and learns again.

    Attributes:
        rate: how many requests to send per second now.
        burst: how many requests the tenant grants at once after an idle time; 0.0 if not known.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 0.0
        self._learnt = 0.0
        self._age = 0.0  # seconds of sending since it was learnt, without idle time
        self._hold = _HOLD_UNSURE
        self._search_time = 0.0  # seconds in which the rate grows by e; 0.0 after the search
        self._first = MeasurementInterval(0)  # until the first 429, without any rate
        self._began = 0.0
        self._share: FairShare | None = None  # while others share the limit
        self._shared_before = False
        self._doubts = 0  # 429s in a row while the rate was held
        self._falls = 0  # measurements in a row that were far below the learnt rate
        self._refused_at = 0.0  # when the last refused request before the last pause was sent

    def __repr__(self) -> str:
        return f"<RateEstimator {self.rate:.4g}/s>"

    @property
    def known(self) -> bool:
        """Whether the rate was measured; False while it is searched for."""
        return self._learnt > 0 and not self._search_time

    @property
    def is_shared(self) -> bool:
        """Whether other clients are thought to share the limit."""
        return self._share is not None

    def preview(self, interval: MeasurementInterval) -> float:
        """Return the highest rate that `learn` can find for this interval, during the pause."""
        # At the last 429 the bucket was empty, so it has received since then what it granted.
        least = interval.granted / (interval.last_refused_at - self._refused_at)
        return max(_LEAST, self._rates(interval, least)[1])

    def advance(self, gap: float) -> None:
        """Record that the rate made a request wait until `gap` seconds after the previous one."""
        if self._search_time:
            self.rate *= min(_SEARCH_STEP, math.exp(gap / self._search_time))
            return
        self._age += gap
        if self._share is not None:
            self.rate *= self._share.growth(self.rate, self._age, gap)
            return
        probing = self._age - self._hold
        if probing < 0:
            return
        doublings = min(_DOUBLINGS * probing / self._hold, 10.0)
        growth = min(_GROWTH * 2**doublings, _MAX_GROWTH)
        step = _STEP if self.rate < (1 + _MOVED) * self._learnt else _FAR_STEP
        self.rate *= math.exp(min(growth * gap, step))
        if self.rate > _FAR * self._learnt:  # the measurement was not of this limit
            self._share, self._age, self.burst = FairShare(1.0), 0.0, 0.0
            self._shared_before = True

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        arrival_rate: float = 0.0,
    ) -> None:
        """Learn from an interval that ended with a 429, once the tenant grants again.

        Args:
            interval: what was sent.
            refused_rate: the rate at which the first refused request was sent.
            paused_at: when the pause began.
            now: when the first request that was granted after the pause was sent.
            arrival_rate: single calls per second that arrived during the pause.
        """
        pause = now - paused_at
        if not self._learnt:
            self._search(interval, arrival_rate, pause, now)
        elif self.burst and self._age < _AT_ONCE and interval.unheld > _UNHELD:
            self.burst = 0.0  # the tenant refused the burst that it should have after the pause
        elif arrival_rate and interval.unheld > _UNHELD:
            self._keep(interval, refused_rate, arrival_rate, now)
        elif interval.granted:  # else it was refused at once after an outage, and has no rate
            self._measure(interval, refused_rate, arrival_rate, pause, now)
        self._began = now
        self._refused_at = interval.last_refused_at
        self._age = 0.0

    def _search(
        self, interval: MeasurementInterval, arrival_rate: float, pause: float, now: float
    ) -> None:
        self._first = interval
        # If single calls arrived during the pause, they need little more than their arrival rate.
        self._search_time = _SEARCH * max(pause, _SEARCH_CALLS if arrival_rate else 1.0)
        start = max(1.0, _SEARCH_START / max(1.0, pause))
        granted = interval.granted / (now - interval.began)
        least = _LEAST if granted else _NEWCOMER  # others used the burst
        self._learnt = self.rate = max(least, start * granted, arrival_rate)
        if not granted and interval.refused > 1:
            self._start_sharing(self.rate, arrival_rate)

    def _keep(
        self, interval: MeasurementInterval, refused_rate: float, arrival_rate: float, now: float
    ) -> None:
        """Keep the rate after a 429 while less was sent than the rate allows."""
        self._search_time = 0.0
        used = max(arrival_rate, interval.granted / (now - interval.began))
        self._learnt = max(_LEAST, min(refused_rate, max(self._learnt, _USED * used)))
        self.rate = self._learnt

    def _measure(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        arrival_rate: float,
        pause: float,
        now: float,
    ) -> None:
        cycle = now - self._began
        cycle_rate = interval.granted / cycle  # the exact rate, if the burst outlasts the pause
        measured = math.sqrt(math.prod(self._rates(interval, cycle_rate)))
        if self._share is not None:
            if self._share.is_alone(measured, interval.granted) and not interval.others:
                self._share, self._doubts, self._falls = None, 1, 0
                self._hold = _HOLD_UNSURE
                self._hold_at(measured)
            else:
                self._share.refused(self._age, cycle)
                self._hold_share(self._share, refused_rate, arrival_rate)
        elif interval.others or self._is_contradicted(interval, refused_rate, measured):
            # The burst of a first interval is only a part of the tenant's if others share it.
            granted = max(interval.rate(1.0), measured)
            self._start_sharing(max(min(refused_rate, granted), _USED * arrival_rate), arrival_rate)
        else:
            self._learn_alone(interval, measured, refused_rate, pause, cycle_rate)

    def _is_contradicted(
        self, interval: MeasurementInterval, refused_rate: float, measured: float
    ) -> bool:
        """Return whether this 429 shows that other clients share the limit."""
        if self._search_time:
            is_little = min(interval.end, measured) < _LITTLE
            return interval.granted < _TOO_FEW and (refused_rate > _SLOW or is_little)
        if self._age >= _SETTLED:
            has_fallen = measured < max(_LEAST, (1 - _MOVED) * self._learnt)
            self._falls = self._falls + 1 if has_fallen else 0
        if self._falls >= _MANY_FALLS:
            return True
        if self._age >= min(self._hold, _HOLD_SURE):
            self._doubts = 0
            return False
        self._doubts += 1
        return (self._age < _AT_ONCE and refused_rate > _SLOW) or self._doubts >= _PROOF

    def _start_sharing(self, rate: float, arrival_rate: float) -> None:
        self._share = FairShare(_AGAIN if self._shared_before else 1.0)
        self._shared_before = True
        self._search_time = self.burst = 0.0
        self._hold_share(self._share, rate, arrival_rate)

    def _hold_share(self, share: FairShare, rate: float, arrival_rate: float) -> None:
        self._learnt = self.rate = max(_LEAST, share.kept(rate, _USED * arrival_rate))

    def _hold_at(self, rate: float) -> None:
        self._learnt = max(_LEAST, rate)
        self.rate = self._learnt * (1 - _MARGIN)

    def _learn_alone(
        self,
        interval: MeasurementInterval,
        measured: float,
        refused_rate: float,
        pause: float,
        cycle_rate: float,
    ) -> None:
        burst = max(1.0, self._first.burst(measured))
        # If the rate of the whole cycle is the same, it is a window: idle time saves up nothing.
        self.burst = burst if measured > 1.005 * cycle_rate else 0.0
        top = measured
        if not self._search_time:
            cover = burst / (measured * pause)
            top = self._reach(interval, measured, refused_rate, cover)
        if self._search_time or abs(top / self._learnt - 1) > _MOVED:
            sure = measured > 1.1 * cycle_rate and interval.granted >= _PLENTY
            self._hold = _HOLD_SURE if sure else _HOLD_UNSURE
        elif self._age >= self._hold:  # a probe was refused, so the learnt rate is still right
            longer = self._hold * (2 if self._hold < _HOLD_SURE else _HOLD_FACTOR)
            worth = min(_COST * interval.refused / top, 2 * self._hold)
            self._hold = min(max(longer, worth), _MAX_HOLD)
        self._search_time = 0.0
        self._hold_at(top)

    def _rates(self, interval: MeasurementInterval, cycle_rate: float) -> tuple[float, float]:
        """Return the lowest and the highest rate that fit, each with a burst of its own.

        They are nearly always equal. If the session was idle or had another limit before the first
        429, a low rate with a large burst may fit as well as a high rate with a small burst.
        """
        lowest = self._fit(interval, cycle_rate, float(self._first.granted))
        return lowest, max(lowest, self._fit(interval, cycle_rate, 1.0))

    def _fit(self, interval: MeasurementInterval, cycle_rate: float, burst: float) -> float:
        rate = cycle_rate
        for _ in range(_ROUNDS):
            rate = max(cycle_rate, interval.rate(burst))
            burst = max(1.0, self._first.burst(rate))
        return rate

    @staticmethod
    def _reach(
        interval: MeasurementInterval, measured: float, refused_rate: float, cover: float
    ) -> float:
        """Return a rate half-way from the measured to the refused one, if trying it costs little.

        It costs little if the burst after a pause makes up for the pause, as with a window; `cover`
        is how much of the pause it makes up for. A window's limit is higher than an interval below
        the limit shows.
        """
        cheap = interval.refused < _CHEAP * interval.granted
        highest = min(refused_rate, (_HIGH if cheap else _LOW) * measured)
        share = max(0.0, min(1.0, 2 * cover - 1))
        return max(measured, measured + share * (highest - measured) / 2)
