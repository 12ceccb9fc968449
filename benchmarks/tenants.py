"""Simulated tenants, and a simulated run over them: virtual time, no sockets, seeded."""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from limiters import Limiter

from monocloud_async.ratelimit.hints import Hint
from monocloud_async.ratelimit.limiter import RateLimiter

Rate = Callable[[float], float]


class Tenant(Protocol):
    """Grants a request, or says how long to wait; 0.0 is a refusal without `Retry-After`."""

    def take(self, now: float) -> float | None: ...


class Counter(Tenant, Protocol):
    """A tenant that can say how many requests remain, after it took one, and for how long."""

    def remaining(self, now: float) -> tuple[int, float]: ...


class Bucket:
    """A token bucket, the commonest limiter; its rate may change."""

    def __init__(self, rate: float | Rate, burst: float, *, tells: bool = True) -> None:
        self.rate: Rate = rate if callable(rate) else lambda _now: rate
        self.burst = max(1.0, burst)
        self.tells = tells
        self.tokens = self.burst
        self.filled_at = 0.0

    def take(self, now: float) -> float | None:
        rate = self.rate(now)
        if now > self.filled_at:
            self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * rate)
            self.filled_at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return None
        return float(math.ceil((1 - self.tokens) / rate)) if self.tells else 0.0

    def remaining(self, now: float) -> tuple[int, float]:
        """Return the tokens, and the seconds until it is full, as GCRA's limiters say them."""
        return int(self.tokens), (self.burst - self.tokens) / self.rate(now)


class Window:
    """So many requests in each fixed window."""

    def __init__(self, quota: int, seconds: float, *, tells: bool = True) -> None:
        self.quota, self.seconds, self.tells = quota, seconds, tells
        self.number, self.used = -1, 0

    def take(self, now: float) -> float | None:
        number = int(now // self.seconds)
        if number != self.number:
            self.number, self.used = number, 0
        if self.used < self.quota:
            self.used += 1
            return None
        return float(math.ceil((number + 1) * self.seconds - now)) if self.tells else 0.0

    def remaining(self, now: float) -> tuple[int, float]:
        return self.quota - self.used, (self.number + 1) * self.seconds - now


class SlidingWindow:
    """Grants at most `quota` requests in any interval of `seconds`."""

    def __init__(self, quota: int, seconds: float, *, tells: bool = True) -> None:
        self.quota, self.seconds, self.tells = quota, seconds, tells
        self.granted: deque[float] = deque()

    def take(self, now: float) -> float | None:
        while self.granted and self.granted[0] <= now - self.seconds:
            self.granted.popleft()
        if len(self.granted) < self.quota:
            self.granted.append(now)
            return None
        return float(math.ceil(self.granted[0] + self.seconds - now)) if self.tells else 0.0

    def remaining(self, now: float) -> tuple[int, float]:
        first = self.granted[0] if self.granted else now
        return self.quota - len(self.granted), first + self.seconds - now


class Both:
    """Two limiters one after the other, as gateways have them."""

    def __init__(self, first: Tenant, second: Tenant) -> None:
        self.first, self.second = first, second

    def take(self, now: float) -> float | None:
        wait = self.first.take(now)
        return self.second.take(now) if wait is None else wait


class Shared:
    """A tenant of which another client takes `rate` requests a second."""

    def __init__(self, tenant: Tenant, rate: float, since: float = 5.0) -> None:
        self.tenant, self.gap, self.next = tenant, 1 / rate, since

    def take(self, now: float) -> float | None:
        while self.next <= now:
            self.tenant.take(self.next)
            self.next += self.gap
        return self.tenant.take(now)


class Unlimited:
    def take(self, now: float) -> float | None:
        return None


class Hinting:
    """A tenant whose answers say how many requests remain.

    Args:
        tenant: the limit.
        say: what its answers say: by default the truth, in whole seconds, rounded up.
    """

    def __init__(self, tenant: Counter, say: Callable[[int, float], Hint] | None = None) -> None:
        self.tenant, self.say = tenant, say or _truth

    def take(self, now: float) -> float | None:
        return self.tenant.take(now)

    def hint(self, now: float) -> Hint:
        return self.say(*self.tenant.remaining(now))


def _truth(remaining: int, reset: float) -> Hint:
    return Hint(remaining, float(math.ceil(reset)))


def hint_of(tenant: Tenant, now: float) -> Hint | None:
    """What an answer says that leaves the tenant now."""
    return tenant.hint(now) if isinstance(tenant, Hinting) else None


def hear(limiter: Limiter, hint: Hint | None) -> None:
    """Tell the limiter what the next answer says; only ours listens."""
    if isinstance(limiter, RateLimiter):
        limiter.hint = hint


@dataclass
class Result:
    seconds: float = 0.0
    requests: int = 0
    refused: int = 0
    lost: int = 0
    worst: int = 0
    grants: list[int] = field(default_factory=list)  # by the second


def simulate(  # noqa: C901, PLR0912, PLR0915  one event loop, read from top to bottom
    limiter: Limiter,
    tenant: Tenant,
    *,
    users: int,
    concurrency: int,
    latency: float,
    seed: int = 1,
) -> Result:
    """A run over so many users: at most `concurrency` at a time, `latency` seconds a request."""
    random = Random(seed).random
    result = Result()
    now, unread, free, done = 0.0, users, concurrency, 0
    waiting: deque[int] = deque()  # attempts so far of each user in the queue
    # A user comes back, or an answer.
    events: list[tuple[float, int, Any, float | None, int, Hint | None]] = []
    reader_waits = False
    number = 0
    while done < users:
        while True:
            if not reader_waits and free and unread:
                free, unread, reader_waits = free - 1, unread - 1, True
                waiting.append(0)
            if not waiting or limiter.delay(now) > 0:
                break
            attempts = waiting.popleft() + 1
            if attempts == 1:
                reader_waits = False
            ticket = limiter.send(now)
            result.requests += 1
            result.worst = max(result.worst, attempts)
            there = now + latency * (0.475 + 0.05 * random())
            answer = tenant.take(there)
            if answer is None:
                second = int(there)
                while len(result.grants) <= second:
                    result.grants.append(0)
                result.grants[second] += 1
            number += 1
            back = there + latency * (0.475 + 0.05 * random())
            said = hint_of(tenant, there)
            heapq.heappush(events, (back, number, ticket, answer, attempts, said))
        wait = limiter.delay(now) if waiting else math.inf
        if now + wait < (events[0][0] if events else math.inf):
            now += wait + 1e-9
            continue
        now, _, ticket, answer, attempts, said = heapq.heappop(events)
        hear(limiter, said)
        if ticket is None:  # a user's own wait is over
            waiting.append(attempts)
        elif answer is None:
            limiter.granted(ticket, now)
            done, free = done + 1, free + 1
        else:
            result.refused += 1
            limiter.refused(ticket, answer or None, now)
            if limiter.attempts is not None and attempts >= limiter.attempts:
                result.lost += 1
                done, free = done + 1, free + 1
            elif own := limiter.own_wait(attempts, answer or None):
                number += 1
                heapq.heappush(events, (now + own, number, None, None, attempts, None))
            else:
                waiting.append(attempts)
    result.seconds = now
    return result
