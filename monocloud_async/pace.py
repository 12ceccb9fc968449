"""The tenant's pace: when a request may go out.

One pace per session, shared by everything that goes through it. It has three states:

- **open**: no limit was seen. It costs nothing and holds nobody back.
- **paced**: a limit was seen. Requests go out evenly, at the rate that `ceiling` learns.
- **paused**: until a moment. Nobody is sent; then one request goes ahead, the scout, and the
  others follow when it is granted.

A pause comes from a 429, which pauses everyone once, or from an outage: several users in a row
whose requests failed. The moment then is that of the next probe.

Here are the rules, and nothing that waits: they take `now`, monotonic seconds. `turns` is the
queue in front of them, and docs/pace.md says why they are what they are.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Final, Literal

from monocloud_async.ceiling import Ceiling, Stretch, Ticket
from monocloud_async.outage import Outage
from monocloud_async.spacing import Spacing

_FIRST_PAUSE: Final = 0.5  # seconds, where a 429 does not say how long
_LONGER: Final = 1.3  # how that grows while the scouts are refused: what is waited too long is lost
_LONGEST_GUESS: Final = 30.0  # seconds
_LONGEST_PAUSE: Final = 3600.0  # seconds; a tenant that asks for a year may well be asked again
_JITTER: Final = 0.02  # seconds at most; several clients of one tenant do not come back as one
_GENTLE: Final = 3.0  # seconds from one request at a time to as many as there are
_GENTLE_RATE: Final = 20.0  # requests a second that it begins with

logger = logging.getLogger("monocloud_async")

State = Literal["open", "paced", "paused"]
Listener = Callable[[], None]


class Pace:
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
        self._limit = None if max_rate is None else Spacing(max_rate)
        self._random = random.Random(seed)  # noqa: S311  jitter, no secret
        self._ceiling: Ceiling | None = None
        self._spacing = Spacing()
        self._stretch = Stretch(0)
        self._until = -math.inf  # the end of the pause
        self._paused = False
        self._paused_at = 0.0
        self._paused_seconds = 0.0
        self._scout: Ticket | None = None  # the one request that goes ahead after a pause
        self._scouting = False
        self._guess = _FIRST_PAUSE
        self._refused: tuple[Stretch, float, float] | None = None  # what is to be learnt from
        self._hungry_since: float | None = None  # the first 429 after the last grant
        self._outage = Outage(tenant)
        self._gentle: float | None = None  # seconds of the gentle start that are over

    def __repr__(self) -> str:
        rate = "" if self.rate is None else f" {self.rate:.1f}/s"
        return f"<Pace {self.state}{rate}{' down' if self.down else ''}>"

    # What people see

    @property
    def state(self) -> State:
        """One of "open", "paced" and "paused"."""
        if self._scouting or (self._paused and _now() < self._until):
            return "paused"
        return "open" if self.is_open else "paced"

    @property
    def rate(self) -> float | None:
        """Requests a second that the tenant is thought to grant; None while nothing is known."""
        return self._ceiling.rate if self._ceiling is not None and self._ceiling.known else None

    @property
    def pause_left(self) -> float:
        """Seconds that are left of the pause that the tenant asked for; 0.0 in an outage."""
        return self.pause_of_one(_now())

    @property
    def down(self) -> bool:
        """Whether the tenant is out of order, and only probes go out."""
        return self._outage.since is not None

    # What a run asks

    @property
    def is_open(self) -> bool:
        """Whether nobody is held back."""
        return self._ceiling is None and self._gentle is None and not self._scouting

    def down_for(self, now: float) -> float:
        """Seconds since the outage began; 0.0 when there is none."""
        return 0.0 if self._outage.since is None else now - self._outage.since

    def paused_seconds(self, now: float) -> float:
        """Seconds of all pauses so far, those of outages included."""
        return self._paused_seconds + (now - self._paused_at if self._paused else 0.0)

    def hungry_for(self, now: float) -> float:
        """Seconds, from the first 429 since the tenant granted something to the pause's end."""
        return 0.0 if self._hungry_since is None else max(now, self._until) - self._hungry_since

    # The rules

    def delay(self, now: float) -> float:
        """Seconds until a request may go out; infinity while the scout is on its way."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        if self._paused:
            if now < self._until:
                return max(wait, self._until - now)
            self._reopen(now)
        if self._scouting:
            return wait if self._scout is None else math.inf
        if self._ceiling is None and self._gentle is None:
            return wait
        return max(wait, self._spacing.delay(now))

    def delay_of_one(self, now: float) -> float:
        """Seconds until a single call may go out: it obeys a pause and `max_rate`, no queue."""
        wait = 0.0 if self._limit is None else self._limit.delay(now)
        if self._paused and now >= self._until:
            self._reopen(now)
        return max(wait, self.pause_of_one(now))

    def pause_of_one(self, now: float) -> float:
        """Seconds that a single call has to wait because the tenant asked for it."""
        return max(0.0, self._until - now) if self._paused and not self.down else 0.0

    def send(self, now: float) -> Ticket:
        """A request goes out now; its ticket is wanted when its answer comes."""
        if self._limit is not None:
            self._limit.take(now)
        ceiling = self._ceiling
        ticket = self._stretch.send(now, math.inf if ceiling is None else ceiling.rate)
        if self._scouting and self._scout is None and not self._paused:
            self._scout = ticket
        elif ceiling is not None:
            self._spacing.rate = ceiling.rate
            gap = self._spacing.take(now)
            if gap:
                ceiling.spent(gap)
        elif self._gentle is not None:
            self._start_gently(now)
        return ticket

    def granted(self, ticket: Ticket, now: float) -> None:
        """The tenant considered the request, whatever it said of the user."""
        self._hungry_since = None
        if self._outage.answered():
            self._back(now)
        if ticket is self._scout:
            self._scout, self._scouting = None, False
            self._guess = _FIRST_PAUSE
            if self._refused is not None:
                self._learn(ticket)
            self._changed()

    def refused(self, ticket: Ticket, retry_after: float | None, now: float) -> None:
        """The request was answered 429: everyone pauses, once."""
        self.throttled += 1
        if retry_after is not None:
            retry_after = min(retry_after, _LONGEST_PAUSE)
        self._outage.answered()
        if self._hungry_since is None:
            self._hungry_since = now
        if ticket.stretch != self._stretch.number:
            return  # sent before the last pause ended: that is no news
        self._stretch.refuse(ticket)
        if self._paused:
            if retry_after is not None:
                self._until = max(self._until, now + retry_after)
            return
        if ticket is self._scout:
            self._scout = None
            self._guess = min(self._guess * _LONGER, _LONGEST_GUESS)
        else:
            self._guess = _FIRST_PAUSE
            self._refused = self._stretch, ticket.rate, now
        wait = max(retry_after or 0.0, self._guess)
        self._pause(now, wait + self._random.uniform(0.0, _JITTER))
        told = {"tenant": self.tenant, "seconds": wait}
        logger.info("paused for %.1f s: the tenant answered 429", wait, extra=told)

    def failed(self, ticket: Ticket, user_id: str, now: float, *, again: bool = False) -> None:
        """The request met a passing fault: the user's, or with several users in a row, an outage.

        `down` tells which. With `again` the user failed before, and was to blame for it.
        """
        probe = ticket is self._scout
        if probe:
            self._scout = None
            self._changed()  # where nothing else changes, the next one goes ahead
        wait = self._outage.failed(user_id, now, probe=probe, again=again)
        if wait is not None:
            self._refused = None  # the outage would be in that measurement
            self._pause(now, wait)

    def lost(self, ticket: Ticket) -> None:
        """Nobody waits for this request's answer any more, so it says nothing."""
        if ticket is self._scout:
            self._scout = None
            self._changed()

    def _pause(self, now: float, seconds: float) -> None:
        if not self._paused:
            self._paused, self._paused_at = True, now
        self._until = max(self._until, now + seconds)
        self._scouting = True
        self._changed()

    def _reopen(self, now: float) -> None:
        self._paused = False
        self._paused_seconds += now - self._paused_at
        self._stretch = Stretch(self._stretch.number + 1)

    def _learn(self, ticket: Ticket) -> None:
        assert self._refused is not None  # noqa: S101  for the type checkers
        (stretch, rate, paused_at), self._refused = self._refused, None
        if self._ceiling is None:
            self._ceiling, self._gentle = Ceiling(), None
        self._ceiling.learn(stretch, rate, paused_at, ticket.sent_at)
        self._spacing.hold(ticket.sent_at + 1 / self._ceiling.rate)
        if self._ceiling.known:
            told = {"tenant": self.tenant, "rate": self._ceiling.rate}
            logger.info("paced: at %.1f requests/s at most, for now", told["rate"], extra=told)

    def _back(self, now: float) -> None:
        if self._paused:
            self._reopen(now)
        self._scout, self._scouting = None, False
        if self._ceiling is None:
            self._gentle = 0.0
            self._spacing = Spacing(_GENTLE_RATE)
        self._changed()

    def _start_gently(self, now: float) -> None:
        assert self._gentle is not None  # noqa: S101  for the type checkers
        self._gentle += 1 / self._spacing.rate
        self._spacing.take(now)
        self._spacing.rate = _GENTLE_RATE * 10**self._gentle
        if self._gentle > _GENTLE:
            self._gentle = None

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()


def _now() -> float:
    """Seconds by the running event loop's clock, or by the one that event loops use."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
