"""Several sessions on one tenant, in virtual time: runs, single calls, and who obeys nothing."""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from limiters import Limiter
from tenants import Bucket, SlidingWindow, Tenant, Window, hear, hint_of

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
        if who.client.rate == math.inf and who.client.idle[1] < math.inf:
            push(who.client.idle[1], _ARRIVAL, who)
    while events:
        now, _, kind, who, what = heapq.heappop(events)
        if now >= seconds:
            break
        if kind == _AT_TENANT:
            answer = tenant.take(now)
            (who.share.granted if answer is None else who.share.refused)[int(now)] += 1
            push(
                now + latency * (0.45 + 0.1 * uniform()),
                _ANSWER,
                who,
                (*what, answer, hint_of(tenant, now)),
            )
            continue
        if kind == _ANSWER:
            arrived, attempts, ticket, answer, said = what
            who.in_flight -= 1
            limiter = who.limiter
            if limiter is not None:
                hear(limiter, said)
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
            if now != who.poll_at:
                continue  # there was an earlier one
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


# The families


@dataclass(frozen=True)
class Family:
    """Sessions on one tenant.

    Attributes:
        tenant: the tenant's name.
        count: how many sessions.
        tells: whether the tenant sends `Retry-After`.
        way: how they come and go, one of `WAYS`.
    """

    tenant: str
    count: int
    tells: bool
    way: str


TENANTS: dict[str, tuple[Callable[[bool], Tenant], float]] = {
    "bucket 200/s burst 20": (lambda tells: Bucket(200, 20, tells=tells), 200),
    "bucket 200/s burst 50": (lambda tells: Bucket(200, 50, tells=tells), 200),
    "bucket 50/s burst 50": (lambda tells: Bucket(50, 50, tells=tells), 50),
    "window 300 per 2 s": (lambda tells: Window(300, 2, tells=tells), 150),
    # Not looked at while the constants were chosen:
    "bucket 200/s burst 200 *": (lambda tells: Bucket(200, 200, tells=tells), 200),
    "bucket 1000/s burst 100 *": (lambda tells: Bucket(1000, 100, tells=tells), 1000),
    "window 1000 per 10 s *": (lambda tells: Window(1000, 10, tells=tells), 100),
    "sliding 300 per 5 s *": (lambda tells: SlidingWindow(300, 5, tells=tells), 60),
}
COUNTS = (2, 3, 4, 8, 16)
WAYS = (
    "runs at once",
    "runs over 3 s",
    "calls *",
    "calls and a run",
    "a joiner *",
    "a leaver *",
    "all but one leave *",
    "an idler *",
    "beside a rude one *",
)
SECONDS, EVENT = 200, 100  # of a simulation, and when somebody joins or leaves
_LATENCY = 0.05
_NEEDED = 0.6  # of a fair share, that sessions of calls ask for


def clients(  # noqa: PLR0911  one return for each way
    family: Family, limiter: Callable[[int], Limiter]
) -> list[Client]:
    """The sessions of this family."""
    count, rate = family.count, TENANTS[family.tenant][1]
    runs = [Client(limiter) for _ in range(count)]
    calls = [Client(limiter, rate=_NEEDED * rate / count) for _ in range(count)]
    match family.way.removesuffix(" *"):
        case "runs over 3 s":
            return [Client(limiter, begin=3 * number / (count - 1)) for number in range(count)]
        case "calls":
            return calls
        case "calls and a run":
            return [*calls[1:], Client(limiter, begin=5.0)]
        case "a joiner":
            return [Client(limiter, begin=EVENT), *runs[1:]]
        case "a leaver":
            return [Client(limiter, end=EVENT), *runs[1:]]
        case "all but one leave":
            return [runs[0], *(Client(limiter, end=EVENT) for _ in runs[1:])]
        case "an idler":
            return [Client(limiter, idle=(EVENT - 60, EVENT)), *runs[1:]]
        case "beside a rude one":
            return [*runs[1:], Client(None, rate=rate / 2)]
        case _:
            return runs


def figures(family: Family, limiter: Callable[[int], Limiter], seed: int) -> dict[str, float]:
    """What came of it; each figure is a share, and 1 is best but for the waste."""
    make, rate = TENANTS[family.tenant]
    who = clients(family, limiter)
    found = share(make(family.tells), who, seconds=SECONDS, latency=_LATENCY, seed=seed)
    sessions = [each for each, client in zip(found, who, strict=True) if client.limiter]
    granted = sum(sum(each.granted) for each in sessions)
    refused = sum(sum(each.refused) for each in sessions)

    def shares(begin: int, end: int) -> list[float]:
        return [float(sum(each.granted[begin:end])) for each in sessions]

    late, early = shares(SECONDS // 2, SECONDS), shares(10, 20)
    common = {"waste": refused / (granted + refused)}
    match family.way.removesuffix(" *"):
        case "calls" | "calls and a run":
            waits = sorted(wait for each in sessions for wait in each.waits) or [math.inf]
            return common | {
                "p99 wait, s": waits[int(0.99 * len(waits))],
                "goodput": sum(late) / (SECONDS / 2)
                / (rate if family.way == "calls and a run" else _NEEDED * rate),
            }  # fmt: skip
        case "a joiner":
            after = shares(EVENT + 15, EVENT + 25)
            return common | {"joiner's share": after[0] / (sum(after) / len(after))}
        case "an idler":  # starves or floods: its share and the waste, when it comes back
            after, soon = shares(EVENT + 5, EVENT + 15), range(EVENT, EVENT + 10)
            refused = sum(each.refused[second] for each in sessions for second in soon)
            return common | {
                "share 5 s after": after[0] / (sum(after) / len(after)),
                "goodput then": sum(after) / (10 * rate),
                "429s then, of a second's requests": refused / rate,
            }
        case "a leaver" | "all but one leave":
            return common | {"used after 10 s": sum(shares(EVENT + 10, EVENT + 20)) / (10 * rate)}
        case "beside a rude one":
            return common | {"of what is left": sum(late) / (rate / 2 * SECONDS / 2)}
        case _:
            return common | {
                "goodput": sum(late) / (rate * SECONDS / 2),
                "Jain": jain(late),
                "poorest": min(late) * len(late) / (sum(late) or 1),
                "Jain 10-20 s": jain(early),
            }
