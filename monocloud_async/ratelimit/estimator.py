"""The rate that a tenant grants, learnt from what it granted until it refused.

Whatever counts requests, a token bucket or a window, can grant no more than a burst plus its rate
times the time. So each interval of requests that ended in a refusal says how high the rate must be
at least, and the part of it that says most is right: at its end, the bucket was empty.

That holds for a session that is alone. Refusals that contradict what was measured are others' on
the same limit; from then on, `fair_share` has the law. A session that sends less than it may, such
as one of single calls, measures nothing by a refusal, and keeps its rate.
docs/pace.md has the law in words, and where each constant comes from.
"""

import math
from collections import deque
from typing import Final, Protocol

from msgspec import Struct

from monocloud_async.ratelimit.fair_share import FairShare

# The search, from the first refusal to the second
_SEARCH_START: Final = 3.0  # it starts at so many times what the first interval granted a second
_SEARCH: Final = 0.2  # seconds in which it multiplies its rate by e
_SEARCH_CALLS: Final = 5.0  # and in so many times as long where single calls wait
_SEARCH_STEP: Final = 1.25  # the most by which one request raises its rate

# Holding the rate
_LEAST: Final = 1.0  # requests a second; who grants less may say so each time
_MARGIN: Final = 0.002  # below the learnt rate while it is quiet
_HOLD_UNSURE: Final = 4.0  # seconds of quiet after a guess
_HOLD_SURE: Final = 15.0  # seconds of quiet after a measurement
_MAX_HOLD: Final = 90.0  # seconds; longer, and a limit that rises is found too late
_HOLD_FACTOR: Final = 1.4  # how the quiet time grows from one probe that was refused to the next
_COST: Final = 150.0  # the quiet time is worth so many requests for each one refused

# Probing, when the quiet time is over
_GROWTH: Final = 0.002  # a second, at first
_DOUBLINGS: Final = 16  # of that growth, in a time as long as the quiet time was
_MAX_GROWTH: Final = 0.15  # a second; the most that it grows by
_STEP: Final = 0.01  # the most that one request raises the rate by: at 5/s each one is news
_FAR_STEP: Final = 0.05  # the same once the rate is a new one, by `_MOVED`
_FAR: Final = 2.0  # times the learnt rate; beyond, a window could lose its whole quota in a moment

# Measuring
_ENOUGH: Final = 20  # requests that make a part of an interval worth measuring
_PLENTY: Final = 50  # requests that make a measurement sure
_RESOLUTION: Final = 0.005  # seconds
_MARKS: Final = 1024
_ROUNDS: Final = 5
_MOVED: Final = 0.15  # a change of the learnt rate by more than this is a new limit
_CHEAP: Final = 0.01  # share of refused requests up to which it pays to reach higher
_HIGH, _LOW = 1.25, 1.03  # how far to reach, as shares of what was granted

# Noticing that others share the limit: refusals that a session alone would not meet
_PROOF: Final = 4  # refusals while the rate was held; then the measurements are not the tenant's
_MANY_FALLS: Final = 2  # measurements in a row that are far below the one before, or below 1/s
_SETTLED: Final = 1.0  # seconds of sending; who was measured too high is refused before
_AT_ONCE: Final = 0.5  # seconds; one so soon is proof enough: the bucket had filled up
_TOO_FEW: Final = 25  # requests; a search that was refused so soon measured nothing
_SLOW: Final = 10.0  # requests a second; below, a tenant of a few a second refuses as soon
_LITTLE: Final = 4  # requests, or requests a second; held by mistake, they climb for long
_NEWCOMER: Final = 5.0  # requests a second of who was granted nothing at first
_AGAIN: Final = 0.3  # the heat of a session that shared before

# Single calls, of which fewer come than may be sent
_USED: Final = 2.0  # times the rate at which they come is what a session keeps for them
_UNHELD: Final = 0.5  # share of the last requests that waited for nothing


class Ticket(Struct, frozen=True, gc=False):
    """A request on its way: what has to be known of it when the answer comes."""

    interval: int
    index: int
    sent_at: float
    rate: float
    before: float = 0.0  # requests before it, each with its weight


class MeasurementInterval:
    """The requests between two pauses, and which of them were refused.

    Attributes:
        weight: how many requests one counts for, in a session that has only a part of those that
            are measured.
        others: whether hints show that others share the limit.
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
        self.answered_at: float | None = None  # for the first time
        self.latency = math.inf  # seconds of the quickest answer
        self.weight: float = 1
        self.requests = 0  # without their weight
        self.others = False
        self.sent: float = 0
        self.refused: float = 0
        self.unheld = 0.0  # share of the last requests that waited for no rate
        self.first_refused_at = 0.0
        self.last_refused_at = 0.0
        self.marks: deque[tuple[float, float]] = deque(maxlen=_MARKS)  # when, and how many before
        self.end: float = 0  # requests sent no later than the last refused one

    def send(self, now: float, rate: float) -> Ticket:
        """A ticket for one more request."""
        ticket = Ticket(self.number, self.requests, now, rate, self.sent)
        if not self.sent:
            self.began = now
        if not self.marks or now - self.marks[-1][0] > _RESOLUTION:
            self.marks.append((now, self.sent))
        self.requests += 1
        self.sent += self.weight
        return ticket

    def grant(self, ticket: Ticket, now: float) -> None:
        """The request of this ticket was granted, as an answer says that comes now."""
        if ticket.interval != self.number:
            return
        latency = now - ticket.sent_at
        if latency < self.latency:  # noqa: PLR1730  `min` costs twice as much
            self.latency = latency
        if self.answered_at is None:
            self.answered_at = now

    def refuse(self, ticket: Ticket) -> None:
        """The request of this ticket was answered 429."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        self.refused += self.weight
        if ticket.before >= self.end:
            self.end, self.last_refused_at = self._sent_with(ticket), ticket.sent_at

    def exhaust(self, ticket: Ticket) -> None:
        """The request of this ticket was granted, and one more would have been refused."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        if ticket.before >= self.end:
            self.end, self.last_refused_at = ticket.before + self.weight, ticket.sent_at

    def _sent_with(self, ticket: Ticket) -> float:
        """Requests sent before this one or with it: who sees them first, nobody knows."""
        end = self.sent
        for at, before in reversed(self.marks):
            if at <= ticket.sent_at:
                break
            end = before
        return end

    @property
    def granted(self) -> float:
        """Requests sent no later than the last refused one that were not refused themselves."""
        return self.end - self.refused

    def rate(self, burst: float) -> float:
        """Requests a second of who grants `burst` at once: the most that any part of it says."""
        granted, end = self.granted, self.last_refused_at
        most = 0.0
        for index, (at, before) in enumerate(self.marks):
            if at > self.first_refused_at or (index and granted - before < _ENOUGH * self.weight):
                break
            if end > at:
                # One more would have been refused, so that much was not quite there.
                most = max(most, (granted - before + 1 - burst) / (end - at))
        return most

    def burst(self, rate: float) -> float:
        """Requests at once of who grants `rate` a second: the most that any part of it says."""
        granted, end = self.granted, self.last_refused_at
        # The first requests have to connect: they were there when a quick answer says so.
        first = self.began if self.answered_at is None else self.answered_at - self.latency
        return max(
            granted - before - rate * max(0.0, end - max(at, first)) for at, before in self.marks
        )


class Estimator(Protocol):
    """What a limiter asks for the rate, and tells what the tenant granted: see `RateEstimator`."""

    @property
    def rate(self) -> float:
        """Requests a second to send now."""
        ...

    @property
    def burst(self) -> float:
        """Requests that the tenant grants at once after a rest."""
        ...

    @property
    def known(self) -> bool:
        """Whether the rate is measured, and not still searched for."""
        ...

    def preview(self, interval: MeasurementInterval, /) -> float:
        """The rate at most, by what is known before the tenant grants again."""
        ...

    def advance(self, gap: float, /) -> None:
        """One request went out so long after the one before, because the rate said so."""

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        coming: float = 0.0,
        /,
    ) -> None:
        """Take in an interval that ended in a refusal, once the tenant grants again."""


class RateEstimator:
    """The learnt rate: it searches once, then holds, probes a little, and learns again.

    Attributes:
        rate: requests a second to send now.
        burst: requests that the tenant grants at once after a rest; 0.0 while that is not sure.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.burst = 0.0
        self._learnt = 0.0  # what was learnt
        self._age = 0.0  # seconds of sending at the rate, idle time left out
        self._hold = _HOLD_UNSURE
        self._search_time = 0.0  # seconds; while it searches, how fast the rate grows
        self._first = MeasurementInterval(0)  # in which nothing held requests back
        self._began = 0.0
        self._share: FairShare | None = None  # while others share the limit
        self._shared_before = False
        self._doubts = 0  # refusals in a row while the rate was held
        self._falls = 0  # measurements in a row that were far below what was learnt before
        self._refused_at = 0.0  # when the last request before the last pause was sent in vain

    def __repr__(self) -> str:
        return f"<RateEstimator {self.rate:.4g}/s>"

    @property
    def known(self) -> bool:
        """Whether the rate is measured, and not still searched for."""
        return self._learnt > 0 and not self._search_time

    @property
    def is_shared(self) -> bool:
        """Whether other clients are thought to share the limit."""
        return self._share is not None

    def preview(self, interval: MeasurementInterval) -> float:
        """The rate at most, by what is known before the tenant grants again."""
        # What was granted since the last refusal came in since then: the bucket was empty.
        least = interval.granted / (interval.last_refused_at - self._refused_at)
        return max(_LEAST, self._rates(interval, least)[1])

    def advance(self, gap: float) -> None:
        """One request went out `gap` seconds after the one before, because the rate said so."""
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
        if self.rate > _FAR * self._learnt:  # whatever was measured, it was not this limit
            self._share, self._age, self.burst = FairShare(1.0), 0.0, 0.0
            self._shared_before = True

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        coming: float = 0.0,
    ) -> None:
        """Take in an interval that ended in a refusal, once the tenant grants again.

        Args:
            interval: what was sent.
            refused_rate: the rate at which the first refused request was sent.
            paused_at: when sending stopped.
            now: when the request was sent that was the first to be granted again.
            coming: single calls a second that came in the pause.
        """
        pause = now - paused_at
        if not self._learnt:
            self._search(interval, coming, pause, now)
        elif self.burst and self._age < _AT_ONCE and interval.unheld > _UNHELD:
            self.burst = 0.0  # refused within the burst after the pause: it was not there
        elif coming and interval.unheld > _UNHELD:
            self._keep(interval, refused_rate, coming, now)
        elif interval.granted:  # else it was refused at once, after an outage: that says no rate
            self._measure(interval, refused_rate, coming, pause, now)
        self._began = now
        self._refused_at = interval.last_refused_at
        self._age = 0.0

    def _search(
        self, interval: MeasurementInterval, coming: float, pause: float, now: float
    ) -> None:
        self._first = interval
        # Calls that came in the pause need little more than the rate at which they come.
        self._search_time = _SEARCH * max(pause, _SEARCH_CALLS if coming else 1.0)
        start = max(1.0, _SEARCH_START / max(1.0, pause))
        granted = interval.granted / (now - interval.began)
        least = _LEAST if granted else _NEWCOMER  # nobody's burst is 0: others had it
        self._learnt = self.rate = max(least, start * granted, coming)
        if not granted and interval.refused > 1:
            self._start_sharing(self.rate, coming)

    def _keep(
        self, interval: MeasurementInterval, refused_rate: float, coming: float, now: float
    ) -> None:
        """Learn nothing from a refusal while less was sent than the rate allows."""
        self._search_time = 0.0
        used = max(coming, interval.granted / (now - interval.began))
        self._learnt = max(_LEAST, min(refused_rate, max(self._learnt, _USED * used)))
        self.rate = self._learnt

    def _measure(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        coming: float,
        pause: float,
        now: float,
    ) -> None:
        cycle = now - self._began
        cycle_rate = interval.granted / cycle  # right where a burst outlasts a pause
        measured = math.sqrt(math.prod(self._rates(interval, cycle_rate)))
        if self._share is not None:
            if self._share.is_alone(measured, interval.granted) and not interval.others:
                self._share, self._doubts, self._falls = None, 1, 0
                self._hold = _HOLD_UNSURE
                self._hold_at(measured)
            else:
                self._share.refused(self._age, cycle)
                self._hold_share(self._share, refused_rate, coming)
        elif interval.others or self._is_contradicted(interval, refused_rate, measured):
            # The burst of a first interval with others is a part of the tenant's.
            granted = max(interval.rate(1.0), measured)
            self._start_sharing(max(min(refused_rate, granted), _USED * coming), coming)
        else:
            self._learn_alone(interval, measured, refused_rate, pause, cycle_rate)

    def _is_contradicted(
        self, interval: MeasurementInterval, refused_rate: float, measured: float
    ) -> bool:
        """Return whether this refusal shows that others share the limit."""
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

    def _start_sharing(self, rate: float, coming: float) -> None:
        self._share = FairShare(_AGAIN if self._shared_before else 1.0)
        self._shared_before = True
        self._search_time = self.burst = 0.0
        self._hold_share(self._share, rate, coming)

    def _hold_share(self, share: FairShare, rate: float, coming: float) -> None:
        self._learnt = self.rate = max(_LEAST, share.kept(rate, _USED * coming))

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
        # Where the whole cycle says as much, it is a window, and a rest saves up nothing.
        self.burst = burst if measured > 1.005 * cycle_rate else 0.0
        top = measured
        if not self._search_time:
            cover = burst / (measured * pause)
            top = self._reach(interval, measured, refused_rate, cover)
        if self._search_time or abs(top / self._learnt - 1) > _MOVED:
            sure = measured > 1.1 * cycle_rate and interval.granted >= _PLENTY
            self._hold = _HOLD_SURE if sure else _HOLD_UNSURE
        elif self._age >= self._hold:  # refused above the learnt rate: it is where it was thought
            longer = self._hold * (2 if self._hold < _HOLD_SURE else _HOLD_FACTOR)
            worth = min(_COST * interval.refused / top, 2 * self._hold)
            self._hold = min(max(longer, worth), _MAX_HOLD)
        self._search_time = 0.0
        self._hold_at(top)

    def _rates(self, interval: MeasurementInterval, cycle_rate: float) -> tuple[float, float]:
        """The lowest and the highest rate that fit: rate and burst depend on each other.

        Nearly always they are one. Where a calm or another limit came before the first 429, a low
        rate with a large burst may fit as well as a high one with a small burst.
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
        """Half-way from what was measured to what was refused, where trying costs little.

        It does where the burst makes the pause good, as a window's does; `cover` says how much of
        it. A window's limit is higher than what an interval below it shows.
        """
        cheap = interval.refused < _CHEAP * interval.granted
        highest = min(refused_rate, (_HIGH if cheap else _LOW) * measured)
        share = max(0.0, min(1.0, 2 * cover - 1))
        return max(measured, measured + share * (highest - measured) / 2)
