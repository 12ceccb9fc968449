"""The tenant's pace: when a request may go out.

One pace per session, shared by everything that goes through it. These are its states:

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

- `OPEN`: no limit was seen. It costs nothing.
- `PAUSED`: nobody is sent until a moment. Then one request goes ahead, the probe.
- `PROBING`: the probe is on its way, and everybody waits for its answer.
- `PACED`: a limit was seen. Requests go out evenly, at the rate that `estimator` learns.

A pause comes from a 429, which pauses everyone once, or from an outage: several users in a row
whose requests failed. The moment then is that of the next probe.

In `OPEN` and `PACED`, a window bounds the requests in flight, as TCP's slow start does. It begins
small, also after an outage, and each request that the tenant grants makes it larger by one. While
it is full, one goes out now and then all the same; and as often as the calls that wait need it,
unless there was a pause shortly before: caution alone must not fail a call.

Here are the rules, and nothing that waits: they take `now`, monotonic seconds. Only what happens
(`send`, `granted`, `refused`, `failed`, `abandoned`) changes the state; a question never does.
`admission_queue` is the queue in front of them, and docs/pace.md says why they are what they are.
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

_FIRST_PAUSE: Final = 0.5  # seconds, where a 429 does not say how long
_BACKOFF_FACTOR: Final = (
    1.3  # how that grows while the probes are refused: what is waited too long is lost
)
_MAX_BACKOFF: Final = 30.0  # seconds
_MAX_PAUSE: Final = 3600.0  # seconds; a tenant that asks for a year may well be asked again
_JITTER: Final = 0.02  # seconds at most; several clients of one tenant do not come back as one
_FIRST_WINDOW: Final = 20  # requests in flight, before the tenant has granted one
_WINDOW_GRACE: Final = 0.02  # seconds; so often one goes out all the same: some answers never come
_SHORTEST_GAP: Final = 0.0005  # seconds, however many calls are in a hurry
_CALM: Final = 10.0  # seconds since the last pause, after which the window fails no call
ANSWERS: Final = 2.0  # times the quickest answer's time, in which nearly every answer comes
_DOUBT: Final = 1.1  # the learnt rate may be so much too low: no call is refused because of that
_RECENT: Final = 0.1  # weight of one request in what is said of the last ones
_BURST_SHARE: Final = 0.5  # of what the tenant can grant at once after a rest; others share it

logger = logging.getLogger("monocloud_async")

Listener = Callable[[], None]
Bottleneck = Literal["max_rate", "rate_limit", "probe", "slow_start"]


class State(Enum):
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
        paused_at: when sending stopped.
        calls: the limiter's `calls` at that time.
    """

    interval: MeasurementInterval
    rate: float
    paused_at: float
    calls: int


class RateLimiter:
    """When a request may go out; people may look at it as `session.pace`.

    Attributes:
        tenant: whose it is.
        throttled: requests that were answered 429.
        waiting: requests that wait in the session's queue.
        calls: single calls that had to wait, so far.
        listeners: called when somebody who waits should look again.
        changes: how often something changed that says how long a request has to wait.
        hint: what the answer says of the limit that `granted` or `refused` is told of next.
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
        self._leader: Estimator | None = None  # what `follow` was told
        self._pacer = Pacer()
        self._interval = MeasurementInterval(0)
        self._state = State.OPEN
        self._until = -math.inf  # the end of the last pause
        self._paused_at = 0.0
        self._paused_seconds = 0.0  # without the pause that is going on
        self._probe: Ticket | None = None  # the one that is on its way in PROBING
        self._backoff = _FIRST_PAUSE
        # The interval that ended in a 429, the rate at its end, when the pause began, and how many
        # calls had come by then.
        self._to_learn: _EndedInterval | None = None
        self._preview = math.inf  # the rate that the next grant will confirm, after two refusals
        self._starved_since: float | None = None  # the first 429 after the last grant
        self._breaker = CircuitBreaker(tenant)
        self._reader = HintReader()
        self._forecast: Forecast | None = None  # once there was a hint
        self._room = math.inf  # requests in flight, by the forecast
        self._in_flight = 0
        self._most_in_flight = 0  # since the window was made small
        self._window: float = _FIRST_WINDOW
        self._gap = _WINDOW_GRACE  # seconds from one request to the next while the window is full
        self._sent_at = -math.inf

    def __repr__(self) -> str:
        rate = "" if self.rate is None else f" {self.rate:.1f}/s"
        return f"<RateLimiter {self.state}{rate}{' down' if self.down else ''}>"

    # What people see

    @property
    def state(self) -> Literal["open", "paced", "paused"]:
        """One of "open", "paced" and "paused"."""
        if self._state in {State.PAUSED, State.PROBING}:
            return "paused"
        return "open" if self.is_open else "paced"

    @property
    def rate(self) -> float | None:
        """Requests a second that the tenant is thought to grant; None while nothing is known."""
        return (
            self._estimator.rate if self._estimator is not None and self._estimator.known else None
        )

    @property
    def pause_left(self) -> float:
        """Seconds until a request may go out again, after a 429 or in an outage; else 0.0.

        While the probe of an outage is on its way, it is the time until the next one, if it fails.
        A pause ends by itself: in an outage, the next request is then the probe.
        """
        now = current_time()
        if self.down and self._state is State.PROBING:
            return self.probe_delay(now)
        return self.pause_from(now)

    @property
    def holds_back(self) -> bool:
        """Whether nobody is sent now: until a pause ends, and while the probe is on its way.

        `state` stays "paused" after that, until somebody sends a request.
        """
        return self._state is State.PROBING or self.pause_from(current_time()) > 0

    @property
    def down(self) -> bool:
        """Whether the tenant is out of order, and only probes go out."""
        return self._breaker.down_since is not None

    @property
    def failure(self) -> str:
        """Why the last request failed, if the tenant has answered none since; else empty."""
        return self._breaker.failure

    # What the queue and runs ask

    @property
    def is_open(self) -> bool:
        """Whether nobody is held back."""
        return self._state is State.OPEN

    def down_for(self, now: float) -> float:
        """Seconds since the outage began; 0.0 when there is none."""
        return 0.0 if self._breaker.down_since is None else now - self._breaker.down_since

    def paused_seconds(self, now: float) -> float:
        """Seconds of all pauses so far, those of outages included."""
        if self._state is not State.PAUSED:
            return self._paused_seconds
        return self._paused_seconds + max(0.0, min(now, self._until) - self._paused_at)

    def starved_for(self, now: float) -> float:
        """Seconds, from the first 429 since the tenant granted something to the pause's end."""
        return 0.0 if self._starved_since is None else max(now, self._until) - self._starved_since

    # The rules

    def delay(self, now: float) -> float:
        """Seconds until a request may go out; infinity while the probe is on its way."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        match self._state:
            case State.OPEN if self._window > self._in_flight < self._room:  # nearly always
                return wait
            case State.OPEN:
                return max(wait, self._window_delay(now))
            case State.PAUSED:
                return max(wait, self._until - now)
            case State.PROBING:
                return math.inf
            case State.PACED:
                return max(wait, self._pacer.delay(now), self._window_delay(now))

    def pause_from(self, now: float) -> float:
        """Seconds that are left of a pause; 0.0 where there is none."""
        return max(0.0, self._until - now) if self._state is State.PAUSED else 0.0

    def expected_delay(self, now: float, place: int) -> float:
        """Seconds until a request may go out that has to let `place` others go first.

        It may be longer, because of what is not known: a limit that nobody met yet.
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
        """Seconds from a request to its answer, where that is quick; 0.0 where nobody knows."""
        return self._interval.latency if self._interval.latency < math.inf else 0.0

    def bottleneck(self, *, is_foreseen: bool) -> Bottleneck:
        """What requests wait for, besides a pause.

        `is_foreseen` is whether `expected_delay` tells of the wait, which knows of no window.
        """
        limit = self._limit
        match self._state:
            case State.PROBING:
                return "probe"
            case State.OPEN if self._in_flight < self._room:
                is_limit = limit and (is_foreseen or limit.rate * self._gap <= 1)
                return "max_rate" if is_limit else "slow_start"
            case State.PACED if limit and (self.rate is None or limit.rate < self.rate):
                return "max_rate"
            case _:
                return "rate_limit"

    def retry_after(self, now: float, place: int, bottleneck: Bottleneck) -> float:
        """Seconds after which a new request probably has a place, behind `place` others.

        What is only guessed counts here, and not in `expected_delay`, by which calls are refused.
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
        """Seconds until a tenant that is down is asked again, as far as that is known."""
        return self.pause_from(now) or self._breaker.wait

    def _window_delay(self, now: float) -> float:
        if self._window > self._in_flight < self._room:
            return 0.0
        gap = self._gap
        if self._in_flight >= self._room:  # an answer says whether there is a place
            gap = max(_WINDOW_GRACE, ANSWERS * self.latency)
        return max(0.0, self._sent_at + gap - now)

    def hurry(self, gap: float, now: float) -> None:
        """Send a request this often at least, although the window is full, until `calm_down`.

        A call that needs too small a gap has come too late: the others need not hurry for it.
        """
        if self._state not in {State.OPEN, State.PACED} or now - self._until < _CALM:
            return
        if _SHORTEST_GAP <= gap < self._gap:
            self._gap = gap

    def calm_down(self) -> None:
        """End the hurry: while the window is full, requests go out as seldom as before."""
        self._gap = _WINDOW_GRACE

    def send(self, now: float) -> Ticket:
        """Record that a request goes out now, and return the ticket for its answer."""
        if self._limit is not None:
            self._limit.take(now)
        is_probe = self._state is State.PAUSED and now >= self._until
        if is_probe:
            self._end_pause(now)
        estimator = self._estimator
        ticket = self._interval.send(now, math.inf if estimator is None else estimator.rate)
        # Timers fire late, and a gap may be shorter than that.
        self._sent_at = (
            now
            if self._gap == _WINDOW_GRACE
            else min(now, max(self._sent_at + self._gap, now - SLACK))
        )
        self._in_flight += 1
        if self._in_flight > self._most_in_flight:  # noqa: PLR1730  `max` costs twice as much
            self._most_in_flight = self._in_flight
        if is_probe:
            self._state, self._probe = State.PROBING, ticket
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
        """Read what an answer says of the limit; the outcome of its request has to follow at once.

        That is a call of `granted`, `refused`, `failed` or `abandoned`.
        """
        if self._forecast is None or not self._forecast.lost:
            self.hint = self._reader.read(response)

    def granted(self, ticket: Ticket, now: float) -> None:
        """Record that the tenant considered the request, whatever it said of the user."""
        self._starved_since = None
        if self._interval.answered_at is None:
            self._changed()  # from now on, the latency counts in what a call has to wait
        self._interval.grant(ticket, now)
        self._answered()
        if self._window < 2 * self._most_in_flight:
            self._window += 1
        if self._breaker.answered():
            if self._state is State.PAUSED:  # the answer is to an older request, not to a probe
                self._end_pause(now)
            self._resume()
        elif ticket is self._probe:
            self._backoff = _FIRST_PAUSE
            if self._to_learn is not None:
                self._learn(self._to_learn, ticket.sent_at)
            self._resume()
        if self.hint is not None or not (self._forecast is None or self._forecast.lost):
            self._foresee(ticket, now)

    def _foresee(self, ticket: Ticket, now: float) -> None:
        """Pause where the answer to a granted request says that the next one would be refused."""
        forecast, interval = self._forecast or Forecast(), self._interval
        forecast.granted(ticket, now)
        self._hear(forecast, ticket, now)
        wait = forecast.pause(now)
        if wait <= 0 or ticket.interval != interval.number or self._state is State.PAUSED:
            return
        interval.exhaust(ticket)
        self._refuse(ticket, now)
        self._pause(now, wait + self._uniform(0.0, _JITTER))
        fields = {"tenant": self.tenant, "seconds": wait}
        logger.info("paused for %.1f s: the tenant has no request left", wait, extra=fields)

    def _hear(self, forecast: Forecast, ticket: Ticket, now: float) -> None:
        hint, self.hint = self.hint, None
        known = self._estimator is not None and self._estimator.known
        forecast.take_in(ticket, hint, now, self.latency, is_known=known)
        self._forecast, self._room = forecast, forecast.room

    def refused(self, ticket: Ticket, retry_after: float | None, now: float) -> None:
        """Record that the request was answered 429: everyone pauses, once."""
        self.throttled += 1
        self._answered()
        if retry_after is not None:
            retry_after = min(retry_after, _MAX_PAUSE)
        self._breaker.answered()
        if self._starved_since is None:
            self._starved_since = now
        paused = self._state is State.PAUSED
        if ticket.interval != self._interval.number or (paused and now >= self._until):
            return  # sent before the last pause ended: that is no news
        self._interval.refuse(ticket)
        if paused:
            if retry_after is not None:
                self._until = max(self._until, now + retry_after)
            return
        if self.hint is not None or self._forecast is not None:
            forecast = self._forecast or Forecast()
            forecast.refused(ticket, self.hint)
            self._hear(forecast, ticket, now)
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
        """End the interval; the estimator learns from it when the tenant grants again."""
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
        """Record a passing fault: the user's, or with several users in a row, an outage.

        `down` tells which. With `repeated` the user failed before, and was to blame for it.
        A 503 says with `retry_after` how long the service is expected to be unavailable (RFC 9110,
        section 10.2.3). One of them may be one machine's, so only in an outage everyone waits.
        With `cut_short` it had only the rest of a call's time, which says nothing of the tenant. A
        probe does nevertheless: those who wait for it may never have more than that.
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
        """Record that nobody waits for this request's answer any more, so it says nothing."""
        self._answered()
        if ticket is self._probe:
            self._pause(now, 0.0)

    # Sessions that keep one rate together

    def follow(self, leader: Estimator | None, weight: float = 1) -> None:
        """Ask this one for the rate, and tell it alone what was granted; None to learn here again.

        Args:
            leader: knows the rate of this session, or that there is no limit yet.
            weight: how many requests of all sessions one of this session stands for.
        """
        known = leader if leader is not None and leader.rate < math.inf else None
        if leader is not self._leader:
            self._leader, self._to_learn = leader, None
            self._estimator = known
            self._window, self._most_in_flight = _FIRST_WINDOW, 0
            if self._state in {State.OPEN, State.PACED}:
                self._begin_interval()
                self._resume()
        elif known is not None and self._estimator is None:
            self._estimator = known
            if self._state is State.OPEN:
                self._resume()
        self._interval.weight = weight

    def hold(self, now: float, seconds: float) -> None:
        """Pause for so long, or longer: another session was refused."""
        if self._state is State.PAUSED:
            self._until = max(self._until, now + seconds)
            self._changed()
        elif not self.down and self._state is not State.PROBING:
            self._pause(now, seconds)

    def release(self, now: float, rested: float) -> None:
        """End the pause, of which another session says that the tenant grants again.

        Args:
            now: as everywhere.
            rested: seconds for which this one has sent nothing.
        """
        if self.down:
            return
        if self._state is State.PAUSED:
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
        """Nobody is sent for so long; with 0 seconds, the next probe is due."""
        self._paused_seconds, self._paused_at = self.paused_seconds(now), now
        self._state, self._probe = State.PAUSED, None
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
        """The tenant grants again."""
        self._probe = None
        self.calm_down()
        self._state = State.OPEN if self._estimator is None else State.PACED
        self._changed()

    def _learn(self, ended: _EndedInterval, resumed_at: float) -> None:
        self._to_learn = None
        if self._estimator is None:
            self._estimator = RateEstimator() if self._leader is None else self._leader
        estimator = self._estimator
        paused = resumed_at - ended.paused_at
        coming = (self.calls - ended.calls) / paused
        estimator.learn(ended.interval, ended.rate, ended.paused_at, resumed_at, coming)
        self._pace_from(estimator, resumed_at, paused)
        if estimator.known:
            fields = {"tenant": self.tenant, "rate": estimator.rate}
            logger.info("paced: at %.1f requests/s at most, for now", estimator.rate, extra=fields)

    def _pace_from(self, estimator: Estimator, resumed_at: float, rested: float) -> None:
        """Send evenly from now on; a bucket filled up meanwhile, and a part of that is used."""
        self._window = math.inf  # from now on, the rate is the bound
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
    """Seconds by the running event loop's clock, or by the one that event loops use."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
