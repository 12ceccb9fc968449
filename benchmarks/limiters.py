"""What decides when a request goes out: our pace, and three ways that others do it."""

import math
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from monocloud_async.ratelimit.limiter import RateLimiter


class Limiter(Protocol):
    @property
    def attempts(self) -> int | None:
        """Requests for one user at most."""

    def delay(self, now: float) -> float: ...
    def send(self, now: float) -> Any: ...
    def granted(self, ticket: Any, now: float) -> None: ...
    def refused(self, ticket: Any, retry_after: float | None, now: float) -> None: ...
    def own_wait(self, attempts: int, retry_after: float | None) -> float:
        """Seconds that the refused user waits by itself before it queues again."""
        ...


class Ours(RateLimiter):
    attempts = None

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed=seed)

    def own_wait(self, attempts: int, retry_after: float | None) -> float:
        return 0.0


class Backoff:
    """What most clients do: each request waits by itself, and gives up after four."""

    attempts: int | None = 4

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)

    def delay(self, now: float) -> float:
        return 0.0

    def send(self, now: float) -> Any:
        return now

    def granted(self, ticket: Any, now: float) -> None: ...

    def refused(self, ticket: Any, retry_after: float | None, now: float) -> None: ...

    def own_wait(self, attempts: int, retry_after: float | None) -> float:
        jitter = self.random.uniform(0, min(8.0, 0.5 * 2**attempts))
        return max(retry_after or 0.0, jitter) + 1e-6


class FixedPause:
    """Everybody waits for `Retry-After`, or a second, and goes on as before."""

    attempts = None

    def __init__(self, _seed: int = 1) -> None:
        self.until = 0.0

    def delay(self, now: float) -> float:
        return max(0.0, self.until - now)

    def send(self, now: float) -> Any:
        return now

    def granted(self, ticket: Any, now: float) -> None: ...

    def refused(self, ticket: Any, retry_after: float | None, now: float) -> None:
        self.until = max(self.until, now + (retry_after or 1.0))

    def own_wait(self, attempts: int, retry_after: float | None) -> float:
        return 0.0


class Adaptive:
    """The rate control of AWS's adaptive mode: CUBIC over a token bucket; it never gives up."""

    attempts = None

    def __init__(self, _seed: int = 1) -> None:
        self.on = False
        self.rate = self.measured = self.fill = 0.5
        self.tokens = 0.0
        self.top, self.cut_at, self.filled_at = 0.0, 0.0, 0.0
        self.bin_began, self.sent = 0.0, 0

    def _refill(self, now: float) -> None:
        self.tokens = min(max(1.0, self.fill), self.tokens + (now - self.filled_at) * self.fill)
        self.filled_at = now

    def delay(self, now: float) -> float:
        if not self.on:
            return 0.0
        self._refill(now)
        return 0.0 if self.tokens >= 1 else (1 - self.tokens) / self.fill

    def send(self, now: float) -> Any:
        if self.on:
            self.tokens -= 1
        return now

    def _measure(self, now: float) -> None:
        self.sent += 1
        if now - self.bin_began >= 0.5:
            measured = self.sent / (now - self.bin_began)
            self.measured = 0.8 * measured + 0.2 * self.measured
            self.bin_began, self.sent = now, 0

    def _update(self, rate: float, now: float) -> None:
        self._refill(now)
        self.fill = max(0.5, min(rate, 2 * self.measured))
        self.tokens = min(self.tokens, max(1.0, self.fill))

    def granted(self, ticket: Any, now: float) -> None:
        self._measure(now)
        if self.on:
            wait = math.cbrt(self.top * 0.3 / 0.4)
            self._update(0.4 * (now - self.cut_at - wait) ** 3 + self.top, now)

    def refused(self, ticket: Any, retry_after: float | None, now: float) -> None:
        self._measure(now)
        self.top = min(self.measured, self.fill) if self.on else self.measured
        self.cut_at, self.on = now, True
        self._update(self.top * 0.7, now)

    def own_wait(self, attempts: int, retry_after: float | None) -> float:
        return (retry_after or 0.0) + 1e-6


LIMITERS: dict[str, Callable[..., Limiter]] = {
    "ours": Ours,
    "backoff": Backoff,
    "fixed pause": FixedPause,
    "adaptive": Adaptive,
}
