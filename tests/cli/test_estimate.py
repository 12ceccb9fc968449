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
    pytest.param(Bucket(50, 250), 3250, id="a bucket that grants five seconds at once"),
    pytest.param(Bucket(20, 20), 1200, id="a small bucket"),
    pytest.param(Bucket(50, 10), 3000, id="a bucket that grants few at once"),
    pytest.param(Window(50, 1), 3000, id="so many each second"),
    pytest.param(Bucket(math.inf, math.inf), 30_000, id="no limit"),
]


@pytest.mark.parametrize(("tenant", "users"), TELLS)
def test_the_time_left_is_near_the_truth_after_10_seconds(tenant: Tenant, users: int) -> None:
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
    wrong = [math.inf if left is None else abs(left / truth - 1) for truth, left in known]
    assert max(wrong) < 0.2
    assert sum(error > 0.15 for error in wrong) <= 0.02 * len(wrong)


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
    # Ten in ten seconds and a pause of 52, three times, and the last one.
    assert estimate.left(110, 31) == pytest.approx(52 + 3 * 62 + 1, rel=0.01)
    estimate.update(130, 10)
    assert estimate.left(130, 31) == pytest.approx(32 + 3 * 62 + 1, rel=0.01)
    estimate.update(165, 13)
    assert estimate.left(165, 28) == pytest.approx(59 + 2 * 62 + 1, rel=0.01)
    assert estimate.left(165, 7) == 7


def test_two_pauses_with_nothing_granted_between_them_are_one_round() -> None:
    limiter = RateLimiter(seed=1)
    estimate = Estimate(limiter)
    estimate.update(0, 0)
    limiter.refused(limiter.send(0), 20, 0)
    estimate.update(0, 0)
    assert estimate.left(0, 30) is None
    limiter.granted(limiter.send(25), 25)
    for second in range(25, 31):
        estimate.update(second, second - 20)
    limiter.refused(limiter.send(30), 30, 30)
    estimate.update(30, 10)
    assert estimate.left(30, 11) == pytest.approx(30 + 40 + 1, rel=0.01)
    estimate.update(61, 10)
    limiter.refused(limiter.send(61), 39, 61)
    estimate.update(61, 10)
    assert estimate.left(61, 11) == pytest.approx(39 + 80 + 1, rel=0.01)


def test_a_round_may_have_nothing_but_what_was_in_flight_at_its_pause() -> None:
    limiter = RateLimiter(seed=1)
    estimate = Estimate(limiter)
    estimate.update(0, 0)
    tickets = [limiter.send(0) for _ in range(11)]
    limiter.refused(tickets.pop(), 60, 0.1)
    estimate.update(0.1, 0)
    for ticket in tickets:
        limiter.granted(ticket, 0.2)
    estimate.update(0.2, 10)
    estimate.update(1, 10)
    assert estimate.left(1, 15) == pytest.approx(59.1 + 60.1, rel=0.02)
    estimate.update(50, 10)
    assert estimate.left(50, 15) == pytest.approx(10.1 + 60.1, rel=0.02)


def ten_a_minute() -> tuple[RateLimiter, Estimate]:
    """A run whose first ten users took ten seconds, and which has to wait for the next minute."""
    limiter = RateLimiter(seed=1)
    estimate = Estimate(limiter)
    estimate.update(0, 0)
    for second in range(1, 11):
        estimate.update(second, second)
    limiter.refused(limiter.send(10), 50, 10)
    estimate.update(10, 10)
    return limiter, estimate


def test_a_round_that_grants_more_than_the_last_one_ends_the_rounds() -> None:
    limiter, estimate = ten_a_minute()
    assert estimate.left(10, 20) == pytest.approx(50 + 60 + 10, rel=0.01)
    for second in range(1, 13):
        limiter.granted(limiter.send(60 + second), 60 + second)
        estimate.update(60 + second, 10 + second)
    assert estimate.left(72, 18) == pytest.approx(18, rel=0.01)


@pytest.mark.parametrize("done", [10, 11])
def test_nothing_is_left_where_all_are_done(done: int) -> None:
    _limiter, estimate = ten_a_minute()
    for second in range(1, done + 1):
        estimate.update(60 + second, 10 + second)
    assert estimate.left(60 + done, 0) == estimate.left(60 + done, -1) == 0


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
