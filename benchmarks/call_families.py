"""Families of single calls, simulated: the session as it is, over a tenant in virtual time."""

import asyncio
import selectors
import statistics
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from single_calls import Run
from tenants import Bucket

from monocloud_async import MonoCloudSession, RateLimitedError, RetryPolicy, StatusError, User
from monocloud_async.endpoint import Operation

LATENCY, PATIENCE = 0.02, 10.0  # seconds
BULK = "bulk-"


class Clock(selectors.DefaultSelector):
    """Time passes only when nothing else is left to do."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def virtually(main: Coroutine[Any, Any, str]) -> str:
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]  # the one thing that differs
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


class Session(MonoCloudSession):
    """A session whose requests go to this tenant, which asks for a pause of its own choice."""

    def __init__(self, tenant: Bucket, retry_after: float | None) -> None:
        super().__init__("acme.eu.monocloud.com", "k")
        self.tenant_limit, self.retry_after = tenant, retry_after
        self.granted_to_run = self.granted_to_calls = self.refused = 0
        self._http.send = self._send  # type: ignore[method-assign]  # no HTTP

    async def _send(
        self, operation: Operation[Any], target: str, timeout: float, time_slice: object = None
    ) -> Any:
        await asyncio.sleep(LATENCY)
        if self.tenant_limit.take(asyncio.get_running_loop().time()) is not None:
            self.refused += 1
            raise RateLimitedError(status=429, user_id=target, retry_after=self.retry_after)
        if target.startswith(BULK):
            self.granted_to_run += 1
        else:
            self.granted_to_calls += 1
        return User(user_id=target)


@dataclass(frozen=True)
class Family:
    name: str
    limit: tuple[float, float]  # of the tenant: a second, at once
    rate: float  # calls a second, for `seconds`
    seconds: float = 60.0
    extra: int = 0  # more calls, at once, after 5 seconds
    run: bool = False  # beside a run

    def possible(self, calls: int) -> float:
        """Calls that could succeed: what the tenant grants until the last one gives up."""
        return min(calls, self.limit[1] + self.limit[0] * (self.seconds + PATIENCE))


FAMILIES = [
    Family("a burst: 300 at once on 50/s burst 50", (50, 50), 1, seconds=1, extra=300),
    Family("overload: 80/s on 50/s burst 50", (50, 50), 80),
    Family("overload: 200/s on 50/s burst 5", (50, 5), 200),
    Family("a burst that passes: 25/s, 100 once, on 50/s burst 20", (50, 20), 25, extra=100),
    Family("a burst that passes: 30/s, 40 once, on 100/s burst 10", (100, 10), 30, extra=40),
    Family("beside a run: 30/s on 50/s burst 50", (50, 50), 30, run=True),
    Family("beside a run: 80/s on 50/s burst 50", (50, 50), 80, run=True),
]


async def row(family: Family, retry_after: float | None) -> str:
    async with Session(Bucket(*family.limit), retry_after) as session:
        policy = RetryPolicy(total=PATIENCE)
        running = None
        if family.run:
            bulk = session.bulk_enable(f"{BULK}{number}" for number in range(10**6))
            running = asyncio.ensure_future(bulk)
            await asyncio.sleep(10 + 3 * (retry_after or 1.0))  # it has learnt the rate
        before = session.granted_to_run
        run = Run(lambda user_id: session.enable_user(user_id, retry=policy), "")
        await run.arrivals(family.rate, family.seconds, family.extra, min(5.0, family.seconds / 2))
        for_run = session.granted_to_run - before
        if running is not None:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        ended = run.ended
        good = [each for each in ended if each.error is None]
        told = [each for each in ended if each.error is not None]
        late = [each for each in told if each.seconds > 1.5]
        last = [each for each in ended if each.began >= family.seconds * 0.75]
        assert all(isinstance(each.error, StatusError) for each in told)
        share = f"{for_run / (for_run + session.granted_to_calls):6.1%}" if family.run else "      "
        return (
            f"{len(good):6,}{len(good) / family.possible(len(ended)):8.1%}"
            f"{sum(each.error is None for each in last) / max(1, len(last)):8.1%}"
            f"{statistics.median(each.seconds for each in good):8.2f}"
            f"{statistics.median(each.seconds for each in told) if told else 0.0:8.2f}"
            f"{len(late):6}{session.refused:6} {share}"
        )


def rows() -> Iterator[tuple[str, Callable[[], str]]]:
    for family in FAMILIES:
        for retry_after in (None, 1.0, 5.0, 60.0):
            asked = "none" if retry_after is None else f"{retry_after:.0f} s"
            name = f"{family.name:56}{asked:>5}"
            yield name, lambda f=family, r=retry_after: virtually(row(f, r))  # type: ignore[misc]


def table() -> None:
    print(f"virtual time; each call has {PATIENCE:g} s; good: of those that could succeed;")
    print("at the end: of those of the last quarter; late: told after more than 1.5 s\n")
    heads = ("calls", "good", "at end", "p50 s", "told s", "late", "429s", "run's")
    print(f"{'Retry-After':>61}" + "{:>6}{:>8}{:>8}{:>8}{:>8}{:>6}{:>6}{:>7}".format(*heads))
    for name, result in rows():
        print(name + result(), flush=True)


if __name__ == "__main__":
    table()
