"""The tenants of the pace benchmark, and the shortest possible time with each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tenants import Both, Bucket, Shared, SlidingWindow, Tenant, Unlimited, Window

SHORT = 20_000  # users
LONG = 900.0  # seconds
MOST = 200_000  # users, where nothing limits a long run


RateOf = Callable[[float, float], float]


@dataclass(frozen=True)
class Scenario:
    family: str
    case: str
    make: Callable[[float], Tenant]  # from the middle of the run to a tenant
    rate: RateOf  # what it grants at a time, given that middle
    concurrency: int
    latency: float

    @property
    def name(self) -> str:
        return f"{self.family}, {self.case}"

    def users(self, *, long: bool) -> int:
        return min(int(self.granted(LONG, LONG / 2)), MOST) if long else SHORT

    def granted(self, seconds: float, middle: float) -> float:
        steps = 2000
        return sum(self.rate((i + 0.5) * seconds / steps, middle) for i in range(steps)) * (
            seconds / steps
        )

    def middle(self, *, long: bool) -> float:
        """Where a limit changes: half-way by time at its first rate."""
        return LONG / 2 if long else SHORT / 2 / self.rate(0.0, 1.0)

    def ideal(self, *, long: bool) -> float:
        """The shortest possible time in seconds: the tenant's rate, and one round trip."""
        users, middle = self.users(long=long), self.middle(long=long)
        low, high = 0.0, 100_000.0
        while high - low > 1e-3 * high:
            seconds = (low + high) / 2
            low, high = (low, seconds) if self.granted(seconds, middle) > users else (seconds, high)
        return high + self.latency


def scenarios() -> Iterator[Scenario]:
    for concurrency in (50, 300):
        for latency in (0.02, 0.2):
            fits = concurrency / latency
            for tells in (True, False):
                yield from _scenarios(concurrency, latency, fits, tells=tells)


def _scenarios(concurrency: int, latency: float, fits: float, *, tells: bool) -> Iterator[Scenario]:
    case = f"C={concurrency} {latency * 1000:.0f} ms {'RA' if tells else '--'}"

    def one(family: str, make: Callable[[float], Tenant], rate: float | RateOf) -> Scenario:
        granted = rate if callable(rate) else partial(_constant, min(rate, fits))
        return Scenario(family, case, make, granted, concurrency, latency)

    for rate in (5, 50, 200, 1000):
        for share in (0.1, 1.0):
            if rate < fits:
                bucket = partial(_bucket, rate, rate * share, tells)
                yield one(f"bucket {rate}/s burst {share:g} s", bucket, rate)
    for quota, seconds in ((100, 1), (1000, 10), (6000, 60)):
        window = partial(_window, quota, seconds, tells)
        yield one(f"window {quota} per {seconds} s", window, quota / seconds)
    for before, after in ((200, 100), (100, 200)):
        yield one(
            f"bucket {before}/s, then {after}/s",
            partial(_moving, before, after, tells),
            partial(_step, before, after),
        )
    yield one(
        "bucket 200/s, half of it another's",
        lambda _m: Shared(Bucket(200, 200, tells=tells), 100),
        100,
    )
    yield one("no limit", lambda _m: Unlimited(), fits)
    # Not looked at while the constants were chosen:
    yield one("sliding 300 per 5 s *", lambda _m: SlidingWindow(300, 5, tells=tells), 60)
    yield one(
        "bucket 150/s and 1000 per 10 s *",
        lambda _m: Both(Bucket(150, 30, tells=tells), Window(1000, 10, tells=tells)),
        100,
    )
    yield one(
        "bucket 100/s, wandering 40 % *",
        lambda _m: Bucket(_wander, 100, tells=tells),
        lambda now, _m: _wander(now),
    )


def _bucket(rate: float, burst: float, tells: bool, _middle: float) -> Tenant:
    return Bucket(rate, burst, tells=tells)


def _window(quota: int, seconds: float, tells: bool, _middle: float) -> Tenant:
    return Window(quota, seconds, tells=tells)


def _moving(before: float, after: float, tells: bool, middle: float) -> Tenant:
    return Bucket(lambda now: _step(before, after, now, middle), min(before, after), tells=tells)


def _step(before: float, after: float, now: float, middle: float) -> float:
    return before if now < middle else after


def _constant(rate: float, _now: float, _middle: float) -> float:
    return rate


def _wander(now: float) -> float:
    return 100 * (1 + 0.4 * math.sin(2 * math.pi * now / 120))
