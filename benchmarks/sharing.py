"""Several sessions on one tenant, in virtual time: runs, single calls, and who obeys nothing."""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from limiters import Limiter
from tenants import Tenant

from monocloud_async.ratelimit.limiter import RateLimiter


@dataclass
class Client:
    """A session: a run without an end, or calls that arrive evenly.

    Attributes:
        limiter: makes its limiter from a seed; None for who obeys nothing.
        begin, end: seconds, from the first request to the last one.
        rate: calls a second; infinite for a run.
        concurrency: requests in flight at most.
        idle: a pause of the calls or of the run, from and to.
    """

    limiter: Callable[[int], Limiter] | None
    begin: float = 0.0
    end: float = math.inf
    rate: float = math.inf
    concurrency: int = 50
    idle: tuple[float, float] = (math.inf, math.inf)


@dataclass
class Share:
    """What one client got.

    Attributes:
        granted, refused: requests by the second.
        waits: seconds from the arrival of a call to its answer.
        lost: requests that were given up.
    """

    granted: list[int]
    refused: list[int]
    waits: list[float] = field(default_factory=list)
    lost: int = 0


class _Running:
    """The state of a client."""

    def __init__(self, client: Client, share: Share, limiter: Limiter | None) -> None:
        self.client, self.share, self.limiter = client, share, limiter
        self.waiting: deque[tuple[float, int]] = deque()  # when it arrived, and attempts so far
        self.in_flight = 0
        self.own_waits = 0
        self.poll_at = math.inf

    def wants(self, now: float) -> bool:
        """Whether a request is due that is not held back."""
        if self.waiting:
            return True
        client = self.client
        return (
            client.rate == math.inf
            and client.begin <= now < client.end
            and not client.idle[0] <= now < client.idle[1]
            and self.in_flight + self.own_waits < client.concurrency
        )


_ARRIVAL, _POLL, _AT_TENANT, _ANSWER, _BACK = range(5)


def share(  # noqa: C901, PLR0912, PLR0915  one event loop, read from top to bottom
    tenant: Tenant, clients: list[Client], *, seconds: float, latency: float, seed: int
) -> list[Share]:
    """What each client got of the tenant."""
    random = Random(seed)
    uniform = random.random
    length = int(seconds) + 2
    running = []
    for number, client in enumerate(clients):
        limiter = None if client.limiter is None else client.limiter(100 * seed + number)
        running.append(_Running(client, Share([0] * length, [0] * length), limiter))
    events: list[tuple[float, int, int, Any, Any]] = []
    count = 0

    def push(at: float, kind: int, who: _Running, what: Any = None) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (at, count, kind, who, what))

    def poll(who: _Running, now: float) -> None:
        limiter = who.limiter
        while who.wants(now):
            wait = 0.0 if limiter is None else limiter.delay(now)
            if wait > 0:
                if wait < math.inf and now + wait < who.poll_at - 1e-9:
                    who.poll_at = now + wait + 1e-9
                    push(who.poll_at, _POLL, who)
                return
            if who.waiting:
                arrived, attempts = who.waiting.popleft()
            else:
                arrived, attempts = now, 0
            ticket = None if limiter is None else limiter.send(now)
            who.in_flight += 1
            there = now + latency * (0.45 + 0.1 * uniform())
            push(there, _AT_TENANT, who, (arrived, attempts + 1, ticket))

    for who in running:
        push(who.client.begin, _ARRIVAL, who)
        if who.client.idle[1] < math.inf:
            push(who.client.idle[1], _POLL, who)
    while events:
        now, _, kind, who, what = heapq.heappop(events)
        if now >= seconds:
            break
        if kind == _AT_TENANT:
            answer = tenant.take(now)
            (who.share.granted if answer is None else who.share.refused)[int(now)] += 1
            push(now + latency * (0.45 + 0.1 * uniform()), _ANSWER, who, (*what, answer))
            continue
        if kind == _ANSWER:
            arrived, attempts, ticket, answer = what
            who.in_flight -= 1
            limiter = who.limiter
            if answer is None:
                if limiter is not None:
                    limiter.granted(ticket, now)
                if who.client.rate < math.inf:
                    who.share.waits.append(now - arrived)
            elif limiter is None:
                who.share.lost += 1
            else:
                limiter.refused(ticket, answer or None, now)
                if limiter.attempts is not None and attempts >= limiter.attempts:
                    who.share.lost += 1
                elif own := limiter.own_wait(attempts, answer or None):
                    who.own_waits += 1
                    push(now + own, _BACK, who, (arrived, attempts))
                else:
                    who.waiting.appendleft((arrived, attempts))
        elif kind == _BACK:
            who.own_waits -= 1
            who.waiting.append(what)
        elif kind == _POLL:
            who.poll_at = math.inf
        elif who.client.rate < math.inf:
            idle = who.client.idle
            if not idle[0] <= now < idle[1]:
                if isinstance(who.limiter, RateLimiter) and who.limiter.delay(now) > 0:
                    who.limiter.calls += 1
                who.waiting.append((now, 0))
            if (after := now + 1 / who.client.rate) < who.client.end:
                push(after, _ARRIVAL, who)
        poll(who, now)
    return [who.share for who in running]


def jain(shares: list[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(each**2 for each in shares) or 1)
