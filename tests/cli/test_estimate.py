"""The speed of a run and the time that is left, at tenants whose limit does not change."""

import asyncio
import math

import pytest
from runs import bulk
from tenants import Bucket, Tenant, Window
from virtual_time import run

from monocloud_async import RateLimitedError, User
from monocloud_async.cli.estimate import Estimate
from monocloud_async.ratelimit.limiter import RateLimiter

TELLS = [
    pytest.param(Bucket(50, 50), 4500, id="a bucket"),
    pytest.param(Bucket(200, 200, tells=False), 9000, id="a bucket without Retry-After"),
    pytest.param(Window(50, 1), 3000, id="so many each second"),
    pytest.param(Bucket(math.inf, math.inf), 30_000, id="no limit"),
]


@pytest.mark.parametrize(("tenant", "users"), TELLS)
def test_the_time_left_is_within_15_percent_of_the_truth_after_10_seconds(
    tenant: Tenant, users: int
) -> None:
    told: list[tuple[float, float | None]] = []

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0.05)
        wait = tenant.take(asyncio.get_running_loop().time())
        if wait is not None:
            raise RateLimitedError(status=429, retry_after=wait or None)
        return User(user_id=user_id)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        running = bulk([f"u{number}" for number in range(users)], send, concurrency=50)
        estimate = Estimate(running.pace)
        estimate.update(clock(), 0)
        task = asyncio.ensure_future(running)
        while not task.done():
            await asyncio.wait([task], timeout=0.2)
            report, now = running.report, clock()
            estimate.update(now, report.enabled, report.requests - report.throttled)
            told.append((now, estimate.left(now, users - report.enabled)))

    run(main(), sockets=False)
    began, (end, _) = told[0][0], told[-1]
    known = [(end - now, left) for now, left in told if now - began > 10 and end - now > 5]
    assert len(known) > 20
    for truth, left in known:
        assert left is not None
        assert abs(left - truth) < 0.15 * truth


def test_a_pause_counts_as_it_is_and_not_in_the_speed() -> None:
    limiter = RateLimiter(seed=1)
    estimate = Estimate(limiter)
    estimate.update(100, 0)
    tickets = [limiter.send(100 + second) for second in range(10)]
    for number, ticket in enumerate(tickets, 1):
        limiter.granted(ticket, 100 + number)
        estimate.update(100 + number, number)
    assert estimate.rate == 1
    assert estimate.left(110, 30) == 30
    limiter.refused(limiter.send(110), 52, 110)
    estimate.update(110, 10)
    assert estimate.left(110, 31) == pytest.approx(52 + 31 * 62 / 10, rel=0.01)
    estimate.update(130, 10)
    assert estimate.left(130, 31) == pytest.approx(32 + 31 * 62 / 10, rel=0.01)


def test_of_a_tenant_that_is_down_nobody_knows_the_time_left() -> None:
    limiter = RateLimiter(seed=1)
    estimate = Estimate(limiter)
    estimate.update(0, 0)
    estimate.update(5, 500)
    assert estimate.rate == 100
    for number in range(20):
        limiter.failed(limiter.send(6), f"u{number}", 6)
    assert limiter.down
    estimate.update(7, 500)
    assert estimate.rate is None
    assert estimate.left(7, 500) is None


def test_the_limit_of_the_run_is_the_speed_before_one_was_measured() -> None:
    estimate = Estimate(None, max_rate=50)
    assert estimate.rate is None
    estimate.update(0, 0)
    assert [estimate.rate, estimate.left(0, 100)] == [50, 2]
    for second in range(1, 60):
        estimate.update(second, second * 20)
    assert estimate.rate == 20
