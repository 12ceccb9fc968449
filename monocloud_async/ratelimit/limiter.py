"""Decides when a request may be sent.

Each session has one limiter, which all its calls and runs share. These are its states:

             429, outage                granted after a 429
      OPEN ───────────────▶ PAUSED     ┌─────────────────▶ PACED ──── 429, outage ───▶ PAUSED
       ▲                      │        │
       │         the pause is │        │
       │         over, one is │        │
       │         sent: the    ▼        │
       │         probe      PROBING ───┤
       │                               ├── 429, or a failure in an outage ──▶ PAUSED, for longer
       │                               └── lost, or one user's own failure ─▶ PAUSED, for 0 s
       └─ granted after an outage, where no limit was seen; else it is PACED

- `OPEN`: no limit was seen. Requests are sent at once.
- `PAUSED`: no request is sent until a certain time. Then a single one is sent, the probe.
- `PROBING`: the probe is in flight, and all other requests wait for its response.
- `PACED`: a limit was seen. Requests are sent evenly, at the rate that `estimator` learns.

A 429 starts a pause, and so does an outage, when the requests of several users in a row failed. In
an outage, the pause ends when the next probe is due.

In `OPEN` and `PACED`, a window limits the requests in flight, as in TCP's slow start. It begins
small, also after an outage, and grows by one with each request that the tenant grants. Caution
alone must not fail a call: while the window is full, a request is sent now and then all the same,
and as often as the waiting calls need it, unless there was a pause shortly before.

These are only the rules; the waiting is in `admission_queue`. Methods take `now`, in seconds of a
monotonic clock. Only events (`send`, `granted`, `refused`, `failed`, `abandoned`) change the state;
questions never do. docs/pace.md explains the reasons for the rules.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Literal, NamedTuple

from monocloud_async.ratelimit.circuit_breaker import CircuitBreaker
from monocloud_async.ratelimit.estimator import (
    Estimator,
    MeasurementInterval,
    RateEstimator,
    Ticket,
)
from monocloud_async.ratelimit.hints import Forecast, Hint, HintReader
from monocloud_async.ratelimit.pacer import SLACK, Pacer
from monocloud_async.response import Response

_FIRST_PAUSE: Final = 0.5  # seconds, after a 429 without Retry-After
_BACKOFF_FACTOR: Final = 1.3  # how that grows with each refused probe; a long pause wastes quota
_MAX_BACKOFF: Final = 30.0  # seconds
_MAX_PAUSE: Final = 3600.0  # seconds, even if the tenant asks for a year
_JITTER: Final = 0.02  # seconds at most, so that several clients do not resume at the same time
_FIRST_WINDOW: Final = 20  # requests in flight, before the tenant has granted one
_WINDOW_GRACE: Final = 0.02  # seconds between requests in a full window; some get no response
_SHORTEST_GAP: Final = 0.0005  # seconds; the least that this is shortened to for waiting calls
_CALM: Final = 10.0  # seconds since the last pause, before which it is not shortened
ANSWERS: Final = 2.0  # times the quickest response; nearly all responses arrive within that time
_DOUBT: Final = 1.1  # times the learnt rate, by which calls are refused: it may be too low
_RECENT: Final = 0.1  # weight of one request in the averages over recent requests
_BURST_SHARE: Final = 0.5  # of the tenant's burst that is used after a pause; others share it

logger = logging.getLogger("monocloud_async")

Listener = Callable[[], None]
Bottleneck = Literal["max_rate", "rate_limit", "probe", "slow_start"]


class LimiterState(Enum):
    """What the limiter does; the module's docstring has the transitions."""

    OPEN = auto()
    PACED = auto()
    PAUSED = auto()
    PROBING = auto()


class _EndedInterval(NamedTuple):
    """An interval that ended in a refusal.

    Attributes:
        interval: what was sent.
        rate: the rate at which the refused request was sent.
        paused_at: when the pause began.
        calls: the limiter's `calls` at that time.
    """

    interval: MeasurementInterval
    rate: float
    paused_at: float
    calls: int


class RateLimiter:
    """Decides when a request may be sent; users see it as `session.pace`.

    Args:
        max_rate: maximum requests per second, or None.
        burst: maximum requests at once under `max_rate`, after an idle time.
        tenant: the address of the tenant, for the log.
        seed: for the jitter, so that simulations can be repeated.

    Attributes:
        tenant: the address of the tenant.
        throttled: how many requests were answered 429.
        waiting: how many requests wait in the session's queue.
        calls: how many single calls have had to wait.
        listeners: called when a request may be allowed earlier than it was expected.
        changes: a counter that changes whenever the expected delays change.
        hint: the hint in the response that is passed to `granted` or `refused` next.
    """

    def __init__(
        self,
        max_rate: float | None = None,
        *,
        burst: float = 1.0,
        tenant: str = "",
        seed: int | None = None,
    ) -> None:
        self.tenant = tenant
        self.throttled = 0
        self.waiting = 0
        self.calls = 0
        self.changes = 0
        self.hint: Hint | None = None
        self.listeners: set[Listener] = set()
        self._limit = None if max_rate is None else Pacer(max_rate, burst)
        # The module's own generator is seeded anew in each process that is forked.
        self._uniform = (random if seed is None else random.Random(seed)).uniform  # noqa: S311  jitter, no secret
        self._estimator: Estimator | None = None
        self._leader: Estimator | None = None  # the argument of `follow`
        self._pacer = Pacer()
        self._interval = MeasurementInterval(0)
        self._state = LimiterState.OPEN
        self._until = -math.inf  # the end of the last pause
        self._paused_at = 0.0
        self._paused_seconds = 0.0  # without the current pause
        self._probe: Ticket | None = None  # in PROBING
        self._backoff = _FIRST_PAUSE
        self._to_learn: _EndedInterval | None = None  # learnt from when the tenant grants again
        self._preview = math.inf  # the highest rate that can be learnt from it
        self._starved_since: float | None = None  # the first 429 since a request was granted
        self._breaker = CircuitBreaker(tenant)
        self._reader = HintReader()
        self._forecast: Forecast | None = None  # since the first hint
        self._room = math.inf  # maximum requests in flight according to the forecast
        self._in_flight = 0
        self._most_in_flight = 0  # since the window was made small
        self._window: float = _FIRST_WINDOW
        self._gap = _WINDOW_GRACE  # seconds between requests while the window is full
        self._sent_at = -math.inf

    def __repr__(self) -> str:
        rate = "" if self.rate is None else f" {self.rate:.1f}/s"
        return f"<RateLimiter {self.state}{rate}{' down' if self.down else ''}>"

    # For users

    @property
    def state(self) -> Literal["open", "paced", "paused"]:
        """The state: "open", "paced" or "paused"."""
        if self._state in {LimiterState.PAUSED, LimiterState.PROBING}:
            return "paused"
        return "open" if self.is_open else "paced"

    @property
    def rate(self) -> float | None:
        """How many requests per second the tenant grants, as learnt; None if not known yet."""
        return (
            self._estimator.rate if self._estimator is not None and self._estimator.known else None
        )

    @property
    def pause_left(self) -> float:
        """Seconds until a request may be sent again, after a 429 or in an outage; else 0.0.

        While the probe of an outage is in flight, it is the time until the next probe, if this one
        fails. In an outage, the first request after the pause is the probe.
        """
        now = current_time()
        if self.down and self._state is LimiterState.PROBING:
            return self.probe_delay(now)
        return self.pause_from(now)

    @property
    def holds_back(self) -> bool:
        """Whether no request is sent now: during a pause, and while the probe is in flight.

        `state` stays "paused" after a pause until a request is sent.
        """
        return self._state is LimiterState.PROBING or self.pause_from(current_time()) > 0

    @property
    def down(self) -> bool:
        """Whether the tenant is down, so that only probes are sent."""
        return self._breaker.down_since is not None

    @property
    def failure(self) -> str:
        """Why the last request failed; empty once the tenant has answered a later one."""
        return self._breaker.failure

    # For the queue and for runs

    @property
    def is_open(self) -> bool:
        """Whether requests may be sent at once."""
        return self._state is LimiterState.OPEN

    def down_for(self, now: float) -> float:
        """Return the seconds since the outage began; 0.0 if the tenant is not down."""
        return 0.0 if self._breaker.down_since is None else now - self._breaker.down_since

    def paused_seconds(self, now: float) -> float:
        """Return the seconds of all pauses so far, including those of outages."""
        if self._state is not LimiterState.PAUSED:
            return self._paused_seconds
        return self._paused_seconds + max(0.0, min(now, self._until) - self._paused_at)

    def starved_for(self, now: float) -> float:
        """Return the seconds from the first 429 without a later grant to the end of the pause."""
        return 0.0 if self._starved_since is None else max(now, self._until) - self._starved_since

    def delay(self, now: float) -> float:
        """Return the seconds until a request may be sent; infinity while the probe is in flight."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        match self._state:
            case LimiterState.OPEN if self._window > self._in_flight < self._room:  # nearly always
                return wait
            case LimiterState.OPEN:
                return max(wait, self._window_delay(now))
            case LimiterState.PAUSED:
                return max(wait, self._until - now)
            case LimiterState.PROBING:
                return math.inf
            case LimiterState.PACED:
                return max(wait, self._pacer.delay(now), self._window_delay(now))

    def pause_from(self, now: float) -> float:
        """Return the seconds until the pause ends; 0.0 if there is none."""
        return max(0.0, self._until - now) if self._state is LimiterState.PAUSED else 0.0

    def expected_delay(self, now: float, place: int) -> float:
        """Return the seconds until a request may be sent, after `place` others.

        It may take longer, for example because of a limit that is not known yet.
        """
        begin = now + self.pause_from(now)
        when = begin if self._limit is None else self._limit.when(begin, place)
        if self._estimator is None:
            return when - now
        if self._estimator.known:
            when = max(when, self._pacer.when(begin, round(place / _DOUBT)))
        else:
            when = max(when, begin + place / self._preview)
        return when - now

    @property
    def latency(self) -> float:
        """Seconds from a request to its response, for the quickest one; 0.0 if not known."""
        return self._interval.latency if self._interval.latency < math.inf else 0.0

    def bottleneck(self, *, is_foreseen: bool) -> Bottleneck:
        """Return what requests wait for, other than a pause.

        `is_foreseen` is whether `expected_delay` includes the wait; it does not know the window.
        """
        limit = self._limit
        match self._state:
            case LimiterState.PROBING:
                return "probe"
            case LimiterState.OPEN if self._in_flight < self._room:
                is_limit = limit and (is_foreseen or limit.rate * self._gap <= 1)
                return "max_rate" if is_limit else "slow_start"
            case LimiterState.PACED if limit and (self.rate is None or limit.rate < self.rate):
                return "max_rate"
            case _:
                return "rate_limit"

    def retry_after(self, now: float, place: int, bottleneck: Bottleneck) -> float:
        """Return the seconds after which a new request will probably be sent, after `place` others.

        This includes estimates that `expected_delay` leaves out, because it decides which calls are
        refused.
        """
        wait = self.expected_delay(now, place)
        match bottleneck:
            case "probe":
                return max(wait, self._backoff)
            case "slow_start":
                return max(wait, self.latency, (place + 1) * self._gap)
            case _:
                return wait

    def probe_delay(self, now: float) -> float:
        """Return the seconds until the next probe of a tenant that is down, as far as known."""
        return self.pause_from(now) or self._breaker.wait

    def _window_delay(self, now: float) -> float:
        if self._window > self._in_flight < self._room:
            return 0.0
        gap = self._gap
        if self._in_flight >= self._room:  # the next response may make room
            gap = max(_WINDOW_GRACE, ANSWERS * self.latency)
        return max(0.0, self._sent_at + gap - now)

    def hurry(self, gap: float, now: float) -> None:
        """Send requests at least this often while the window is full, until `calm_down`.

        A gap that is too small is ignored: that call came too late in any case.
        """
        if self._state not in {LimiterState.OPEN, LimiterState.PACED} or now - self._until < _CALM:
            return
        if _SHORTEST_GAP <= gap < self._gap:
            self._gap = gap

    def calm_down(self) -> None:
        """Go back to the usual gap between requests while the window is full."""
        self._gap = _WINDOW_GRACE

    def send(self, now: float) -> Ticket:
        """Record that a request is sent now, and return its ticket."""
        if self._limit is not None:
            self._limit.take(now)
        is_probe = self._state is LimiterState.PAUSED and now >= self._until
        if is_probe:
            self._end_pause(now)
        estimator = self._estimator
        ticket = self._interval.send(now, math.inf if estimator is None else estimator.rate)
        # Timers fire late, by more than a short gap.
        self._sent_at = (
            now
            if self._gap == _WINDOW_GRACE
            else min(now, max(self._sent_at + self._gap, now - SLACK))
        )
        self._in_flight += 1
        if self._in_flight > self._most_in_flight:  # noqa: PLR1730  `max` costs twice as much
            self._most_in_flight = self._in_flight
        if is_probe:
            self._state, self._probe = LimiterState.PROBING, ticket
        elif estimator is not None:
            self._pacer.rate = estimator.rate
            gap = self._pacer.take(now)
            interval = self._interval
            if gap:
                estimator.advance(gap)
                interval.unheld *= 1 - _RECENT
            else:
                interval.unheld += _RECENT * (1 - interval.unheld)
        return ticket

    def read_hint(self, response: Response) -> None:
        """Read the rate limit headers of a response.

        A call of `granted`, `refused`, `failed` or `abandoned` for its request has to follow.
        """
        if self._forecast is None or not self._forecast.lost:
            self.hint = self._reader.read(response)

    def granted(self, ticket: Ticket, now: float) -> None:
        """Record that the tenant processed the request, whatever the result for the user."""
        self._starved_since = None
        if self._interval.answered_at is None:
            self._changed()  # the latency, which is part of the expected delays
        self._interval.grant(ticket, now)
        self._answered()
        if self._window < 2 * self._most_in_flight:
            self._window += 1
        if self._breaker.answered():
            if self._state is LimiterState.PAUSED:  # the response is not the probe's
                self._end_pause(now)
            self._resume()
        elif ticket is self._probe:
            self._backoff = _FIRST_PAUSE
            if self._to_learn is not None:
                self._learn(self._to_learn, ticket.sent_at)
            self._resume()
        if self.hint is not None or not (self._forecast is None or self._forecast.lost):
            self._pause_if_exhausted(ticket, now)

    def _pause_if_exhausted(self, ticket: Ticket, now: float) -> None:
        """Pause if, according to hints, the tenant would refuse the next request."""
        forecast, interval = self._forecast or Forecast(), self._interval
        forecast.granted(ticket, now)
        self._update_forecast(forecast, ticket, now)
        wait = forecast.pause(now)
        if wait <= 0 or ticket.interval != interval.number or self._state is LimiterState.PAUSED:
            return
        interval.exhaust(ticket)
        self._refuse(ticket, now)
        self._pause(now, wait + self._uniform(0.0, _JITTER))
        fields = {"tenant": self.tenant, "seconds": wait}
        logger.info("paused for %.1f s: the tenant has no request left", wait, extra=fields)

    def _update_forecast(self, forecast: Forecast, ticket: Ticket, now: float) -> None:
        hint, self.hint = self.hint, None
        known = self._estimator is not None and self._estimator.known
        forecast.update(ticket, hint, now, self.latency, is_known=known)
        self._forecast, self._room = forecast, forecast.room

    def refused(self, ticket: Ticket, retry_after: float | None, now: float) -> None:
        """Record that the request was answered 429; the first of several starts the pause."""
        self.throttled += 1
        self._answered()
        if retry_after is not None:
            retry_after = min(retry_after, _MAX_PAUSE)
        self._breaker.answered()
        if self._starved_since is None:
            self._starved_since = now
        paused = self._state is LimiterState.PAUSED
        if ticket.interval != self._interval.number or (paused and now >= self._until):
            return  # it was sent before the last pause ended
        self._interval.refuse(ticket)
        if paused:
            if retry_after is not None:
                self._until = max(self._until, now + retry_after)
            return
        if self.hint is not None or self._forecast is not None:
            forecast = self._forecast or Forecast()
            forecast.refused(ticket, self.hint)
            self._update_forecast(forecast, ticket, now)
            if retry_after is None:
                retry_after = forecast.time_left(now)
        if ticket is self._probe:
            self._backoff = min(self._backoff * _BACKOFF_FACTOR, _MAX_BACKOFF)
        else:
            self._backoff = _FIRST_PAUSE
            self._refuse(ticket, now)
        wait = max(retry_after or 0.0, self._backoff)
        self._pause(now, wait + self._uniform(0.0, _JITTER))
        fields = {"tenant": self.tenant, "seconds": wait}
        logger.info("paused for %.1f s: the tenant answered 429", wait, extra=fields)

    def _refuse(self, ticket: Ticket, now: float) -> None:
        """Keep the interval; the estimator learns from it when the tenant grants again."""
        self._to_learn = _EndedInterval(self._interval, ticket.rate, now, self.calls)
        self._interval.others = self._forecast is not None and self._forecast.shows_others
        if self._estimator is not None:
            self._preview = self._estimator.preview(self._interval)

    def failed(
        self,
        ticket: Ticket,
        user_id: str,
        now: float,
        *,
        repeated: bool = False,
        retry_after: float | None = None,
        cut_short: bool = False,
        why: str = "",
    ) -> None:
        """Record a transient failure: of this user, or an outage, after several users in a row.

        Args:
            ticket: of the request.
            user_id: whose request it was.
            now: the current time.
            repeated: whether an earlier failure of this user was the user's own.
            retry_after: seconds for which a 503 expects the service to be unavailable (RFC 9110,
                section 10.2.3). A single 503 may be of a single machine, so all requests wait that
                long only in an outage.
            cut_short: whether the request had only the rest of its call's time, so that its timeout
                says nothing about the tenant. That of a probe counts nevertheless: the calls that
                wait for it may never have more time.
            why: what failed, for people.
        """
        is_probe = ticket is self._probe
        if cut_short and not is_probe:
            self.abandoned(ticket, now)
            return
        self._answered()
        wait = self._breaker.failed(user_id, now, probe=is_probe, repeated=repeated, why=why)
        if wait is not None:
            wait = max(wait, min(retry_after or 0.0, _MAX_BACKOFF))
            self._to_learn = None  # the outage would be in that measurement
            self._window, self._most_in_flight = 1, 1
            self._pause(now, wait)
        elif is_probe:
            self._pause(now, 0.0)

    def abandoned(self, ticket: Ticket, now: float) -> None:
        """Record that the response of this request will not be seen, so nothing is learnt."""
        self._answered()
        if ticket is self._probe:
            self._pause(now, 0.0)

    # For sessions that share one learnt rate

    def follow(self, leader: Estimator | None, weight: float = 1) -> None:
        """Take the rate from another estimator, or learn it here again.

        Args:
            leader: gives the rate, or infinity as long as no limit was seen; None to learn here.
            weight: how many requests of all sessions each request of this session stands for.
        """
        known = leader if leader is not None and leader.rate < math.inf else None
        if leader is not self._leader:
            self._leader, self._to_learn = leader, None
            self._estimator = known
            self._window, self._most_in_flight = _FIRST_WINDOW, 0
            if self._state in {LimiterState.OPEN, LimiterState.PACED}:
                self._begin_interval()
                self._resume()
        elif known is not None and self._estimator is None:
            self._estimator = known
            if self._state is LimiterState.OPEN:
                self._resume()
        self._interval.weight = weight

    def hold(self, now: float, seconds: float) -> None:
        """Pause for at least so many seconds, because another session was refused."""
        if self._state is LimiterState.PAUSED:
            self._until = max(self._until, now + seconds)
            self._changed()
        elif not self.down and self._state is not LimiterState.PROBING:
            self._pause(now, seconds)

    def release(self, now: float, rested: float) -> None:
        """End the pause, because the tenant has granted a request of another session.

        Args:
            now: the current time.
            rested: seconds for which this session has sent nothing.
        """
        if self.down:
            return
        if self._state is LimiterState.PAUSED:
            self._end_pause(now)
        self._until, self._backoff, self._to_learn = now, _FIRST_PAUSE, None
        if self._leader is not None and self._leader.rate < math.inf:
            self._estimator = self._leader
            self._pace_from(self._estimator, now, rested)
        self._resume()

    def _answered(self) -> None:
        was_full = not self._window > self._in_flight < self._room
        self._in_flight -= 1
        if was_full:
            self._notify()

    def _pause(self, now: float, seconds: float) -> None:
        """Pause for so many seconds; with 0 seconds, the next request is the probe."""
        self._paused_seconds, self._paused_at = self.paused_seconds(now), now
        self._state, self._probe = LimiterState.PAUSED, None
        self._until = max(self._until, now + seconds)
        self.calm_down()
        self._changed()

    def _end_pause(self, now: float) -> None:
        self._paused_seconds = self.paused_seconds(now)
        self._begin_interval()

    def _begin_interval(self) -> None:
        weight = self._interval.weight
        self._interval = MeasurementInterval(self._interval.number + 1)
        self._interval.weight = weight

    def _resume(self) -> None:
        """Leave a pause: the tenant has granted a request."""
        self._probe = None
        self.calm_down()
        self._state = LimiterState.OPEN if self._estimator is None else LimiterState.PACED
        self._changed()

    def _learn(self, ended: _EndedInterval, resumed_at: float) -> None:
        self._to_learn = None
        if self._estimator is None:
            self._estimator = RateEstimator() if self._leader is None else self._leader
        estimator = self._estimator
        paused = resumed_at - ended.paused_at
        arrival_rate = (self.calls - ended.calls) / paused
        estimator.learn(ended.interval, ended.rate, ended.paused_at, resumed_at, arrival_rate)
        self._pace_from(estimator, resumed_at, paused)
        if estimator.known:
            fields = {"tenant": self.tenant, "rate": estimator.rate}
            logger.info("paced: at %.1f requests/s at most, for now", estimator.rate, extra=fields)

    def _pace_from(self, estimator: Estimator, resumed_at: float, rested: float) -> None:
        """Send evenly from now on, with a part of the burst that came back during the pause."""
        self._window = math.inf  # the rate is the limit from now on
        pacer = self._pacer
        pacer.rate = estimator.rate
        pacer.burst = max(1.0, _BURST_SHARE * estimator.burst)
        saved = min(pacer.burst - 1, _BURST_SHARE * pacer.rate * rested)
        pacer.hold(resumed_at + (1 - saved) / pacer.rate)

    def _changed(self) -> None:
        self.changes += 1
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()


def current_time() -> float:
    """Return the time of the running event loop, or else of the clock that event loops use."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
