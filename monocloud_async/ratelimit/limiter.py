"""The tenant's pace: when a request may go out.

One pace per session, shared by everything that goes through it. It has three states:

- **open**: no limit was seen. It costs nothing and holds nobody back.
- **paced**: a limit was seen. Requests go out evenly, at the rate that `estimator` learns.
- **paused**: until a moment. Nobody is sent; then one request goes ahead, the probe, and the
  others follow when it is granted.

A pause comes from a 429, which pauses everyone once, or from an outage: several users in a row
whose requests failed. The moment then is that of the next probe.

Here are the rules, and nothing that waits: they take `now`, monotonic seconds. `admission_queue` is
the queue in front of them, and docs/pace.md says why they are what they are.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Final, Literal

from monocloud_async.ratelimit.circuit_breaker import CircuitBreaker
from monocloud_async.ratelimit.estimator import MeasurementInterval, RateEstimator, Ticket
from monocloud_async.ratelimit.pacer import Pacer

_FIRST_PAUSE: Final = 0.5  # seconds, where a 429 does not say how long
_BACKOFF_FACTOR: Final = (
    1.3  # how that grows while the probes are refused: what is waited too long is lost
)
_MAX_BACKOFF: Final = 30.0  # seconds
_MAX_PAUSE: Final = 3600.0  # seconds; a tenant that asks for a year may well be asked again
_JITTER: Final = 0.02  # seconds at most; several clients of one tenant do not come back as one
_SLOW_START: Final = 3.0  # seconds from one request at a time to as many as there are
_SLOW_START_RATE: Final = 20.0  # requests a second that it begins with

logger = logging.getLogger("monocloud_async")

State = Literal["open", "paced", "paused"]
Listener = Callable[[], None]


class RateLimiter:
    """When a request may go out; people may look at it as `session.pace`.

    Attributes:
        tenant: whose it is.
        throttled: requests that were answered 429.
        listeners: called when somebody who waits should look again.
    """

    def __init__(
        self, max_rate: float | None = None, *, tenant: str = "", seed: int | None = None
    ) -> None:
        self.tenant = tenant
        self.throttled = 0
        self.listeners: set[Listener] = set()
        self._limit = None if max_rate is None else Pacer(max_rate)
        self._random = random.Random(seed)  # noqa: S311  jitter, no secret
        self._estimator: RateEstimator | None = None
        self._pacer = Pacer()
        self._interval = MeasurementInterval(0)
        self._until = -math.inf  # the end of the pause
        self._paused = False
        self._paused_at = 0.0
        self._paused_seconds = 0.0
        self._probe: Ticket | None = None  # the one request that goes ahead after a pause
        self._probing = False
        self._backoff = _FIRST_PAUSE
        self._to_learn: tuple[MeasurementInterval, float, float] | None = (
            None  # what is to be learnt from
        )
        self._starved_since: float | None = None  # the first 429 after the last grant
        self._breaker = CircuitBreaker(tenant)
        self._slow_start: float | None = None  # seconds of the slow start that are over

    def __repr__(self) -> str:
        rate = "" if self.rate is None else f" {self.rate:.1f}/s"
        return f"<Pace {self.state}{rate}{' down' if self.down else ''}>"

    # What people see

    @property
    def state(self) -> State:
        """One of "open", "paced" and "paused"."""
        if self._probing or (self._paused and _now() < self._until):
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
        """Seconds that are left of the pause that the tenant asked for; 0.0 in an outage."""
        return self.single_call_pause(_now())

    @property
    def down(self) -> bool:
        """Whether the tenant is out of order, and only probes go out."""
        return self._breaker.down_since is not None

    # What a run asks

    @property
    def is_open(self) -> bool:
        """Whether nobody is held back."""
        return self._estimator is None and self._slow_start is None and not self._probing

    def down_for(self, now: float) -> float:
        """Seconds since the outage began; 0.0 when there is none."""
        return 0.0 if self._breaker.down_since is None else now - self._breaker.down_since

    def paused_seconds(self, now: float) -> float:
        """Seconds of all pauses so far, those of outages included."""
        return self._paused_seconds + (now - self._paused_at if self._paused else 0.0)

    def starved_for(self, now: float) -> float:
        """Seconds, from the first 429 since the tenant granted something to the pause's end."""
        return 0.0 if self._starved_since is None else max(now, self._until) - self._starved_since

    # The rules

    def delay(self, now: float) -> float:
        """Seconds until a request may go out; infinity while the probe is on its way."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        if self._paused:
            if now < self._until:
                return max(wait, self._until - now)
            self._reopen(now)
        if self._probing:
            return wait if self._probe is None else math.inf
        if self._estimator is None and self._slow_start is None:
            return wait
        return max(wait, self._pacer.delay(now))

    def single_call_delay(self, now: float) -> float:
        """Seconds until a single call may go out: it obeys a pause and `max_rate`, no queue."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        if self._paused and now >= self._until:
            self._reopen(now)
        return max(wait, self.single_call_pause(now))

    def single_call_pause(self, now: float) -> float:
        """Seconds that a single call has to wait because the tenant asked for it."""
        return max(0.0, self._until - now) if self._paused and not self.down else 0.0

    def send(self, now: float) -> Ticket:
        """A request goes out now; its ticket is wanted when its answer comes."""
        if self._limit is not None:
            self._limit.take(now)
        estimator = self._estimator
        ticket = self._interval.send(now, math.inf if estimator is None else estimator.rate)
        if self._probing and self._probe is None and not self._paused:
            self._probe = ticket
        elif estimator is not None:
            self._pacer.rate = estimator.rate
            gap = self._pacer.take(now)
            if gap:
                estimator.advance(gap)
        elif self._slow_start is not None:
            self._advance_slow_start(now)
        return ticket

    def granted(self, ticket: Ticket, now: float) -> None:
        """The tenant considered the request, whatever it said of the user."""
        self._starved_since = None
        if self._breaker.answered():
            self._recover(now)
        if ticket is self._probe:
            self._probe, self._probing = None, False
            self._backoff = _FIRST_PAUSE
            if self._to_learn is not None:
                self._learn(ticket)
            self._changed()

    def refused(self, ticket: Ticket, retry_after: float | None, now: float) -> None:
        """The request was answered 429: everyone pauses, once."""
        self.throttled += 1
        if retry_after is not None:
            retry_after = min(retry_after, _MAX_PAUSE)
        self._breaker.answered()
        if self._starved_since is None:
            self._starved_since = now
        if ticket.interval != self._interval.number:
            return  # sent before the last pause ended: that is no news
        self._interval.refuse(ticket)
        if self._paused:
            if retry_after is not None:
                self._until = max(self._until, now + retry_after)
            return
        if ticket is self._probe:
            self._probe = None
            self._backoff = min(self._backoff * _BACKOFF_FACTOR, _MAX_BACKOFF)
        else:
            self._backoff = _FIRST_PAUSE
            self._to_learn = self._interval, ticket.rate, now
        wait = max(retry_after or 0.0, self._backoff)
        self._pause(now, wait + self._random.uniform(0.0, _JITTER))
        fields = {"tenant": self.tenant, "seconds": wait}
        logger.info("paused for %.1f s: the tenant answered 429", wait, extra=fields)

    def failed(self, ticket: Ticket, user_id: str, now: float, *, repeated: bool = False) -> None:
        """The request met a passing fault: the user's, or with several users in a row, an outage.

        `down` tells which. With `repeated` the user failed before, and was to blame for it.
        """
        is_probe = ticket is self._probe
        if is_probe:
            self._probe = None
            self._changed()  # where nothing else changes, the next one goes ahead
        wait = self._breaker.failed(user_id, now, probe=is_probe, repeated=repeated)
        if wait is not None:
            self._to_learn = None  # the outage would be in that measurement
            self._pause(now, wait)

    def abandoned(self, ticket: Ticket) -> None:
        """Nobody waits for this request's answer any more, so it says nothing."""
        if ticket is self._probe:
            self._probe = None
            self._changed()

    def _pause(self, now: float, seconds: float) -> None:
        if not self._paused:
            self._paused, self._paused_at = True, now
        self._until = max(self._until, now + seconds)
        self._probing = True
        self._changed()

    def _reopen(self, now: float) -> None:
        self._paused = False
        self._paused_seconds += now - self._paused_at
        self._interval = MeasurementInterval(self._interval.number + 1)

    def _learn(self, ticket: Ticket) -> None:
        assert self._to_learn is not None  # noqa: S101  for the type checkers
        (interval, rate, paused_at), self._to_learn = self._to_learn, None
        if self._estimator is None:
            self._estimator, self._slow_start = RateEstimator(), None
        self._estimator.learn(interval, rate, paused_at, ticket.sent_at)
        self._pacer.hold(ticket.sent_at + 1 / self._estimator.rate)
        if self._estimator.known:
            fields = {"tenant": self.tenant, "rate": self._estimator.rate}
            logger.info("paced: at %.1f requests/s at most, for now", fields["rate"], extra=fields)

    def _recover(self, now: float) -> None:
        if self._paused:
            self._reopen(now)
        self._probe, self._probing = None, False
        if self._estimator is None:
            self._slow_start = 0.0
            self._pacer = Pacer(_SLOW_START_RATE)
        self._changed()

    def _advance_slow_start(self, now: float) -> None:
        assert self._slow_start is not None  # noqa: S101  for the type checkers
        self._slow_start += 1 / self._pacer.rate
        self._pacer.take(now)
        self._pacer.rate = _SLOW_START_RATE * 10**self._slow_start
        if self._slow_start > _SLOW_START:
            self._slow_start = None

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()


def _now() -> float:
    """Seconds by the running event loop's clock, or by the one that event loops use."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
