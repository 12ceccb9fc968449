import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

import monocloud_async as m
from monocloud_async import retry
from monocloud_async.retry import RetryPolicy

T = TypeVar("T")


class Clock:
    """A clock that advances only during sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def failing(*errors: Exception) -> tuple[Callable[[float], Awaitable[str]], list[float]]:
    """An attempt that raises these errors in turn, then succeeds, and records its arguments.

    Each sends one request, as the `attempts` of its error say.
    """
    left = list(errors)
    given: list[float] = []

    async def attempt(seconds: float) -> str:
        given.append(seconds)
        await asyncio.sleep(0)
        if left:
            error = left.pop(0)
            if isinstance(error, m.MonoCloudError):
                error.attempts = 1
            raise error
        return "done"

    return attempt, given


async def call(
    policy: RetryPolicy,
    attempt: Callable[[float], Awaitable[T]],
    *,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Make the first attempt itself, as a caller does."""
    deadline = clock() + policy.total
    try:
        return await attempt(policy.total)
    except m.MonoCloudError as error:
        first = error
    return await retry.retry_call(
        policy, first, attempt, deadline=deadline, clock=clock, sleep=sleep
    )


def busy(retry_after: float | None = None) -> m.ServerError:
    return m.ServerError(status=503, retry_after=retry_after)


async def test_a_passing_failure_is_tried_again() -> None:
    clock = Clock()
    attempt, given = failing(busy(), m.TransportError("cut"), m.StatusError(status=408))
    assert await call(RetryPolicy(), attempt, clock=clock, sleep=clock.sleep) == "done"
    assert len(given) == 4
    assert len(clock.slept) == 3


async def test_the_last_error_comes_out_as_itself_with_its_attempts() -> None:
    clock = Clock()
    errors = [busy() for _ in range(9)]
    attempt, given = failing(*errors)
    with pytest.raises(m.ServerError) as caught:
        await call(RetryPolicy(attempts=3), attempt, clock=clock, sleep=clock.sleep)
    assert caught.value is errors[2]
    assert caught.value.attempts == len(given) == 3


@pytest.mark.parametrize(
    "error",
    [
        m.NotFoundError(status=404),
        m.UnauthorizedError(status=401),
        m.StatusError(status=418),
        m.InvalidResponseError("html", status=200),
        m.InvalidUserIdError("empty"),
        m.TransportError("certificate", transient=False),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(error: m.MonoCloudError) -> None:
    clock = Clock()
    attempt, given = failing(error)
    with pytest.raises(type(error)):
        await call(RetryPolicy(), attempt, clock=clock, sleep=clock.sleep)
    assert (len(given), error.attempts) == (1, 1)


async def test_one_attempt_never_retries() -> None:
    attempt, given = failing(busy())
    with pytest.raises(m.ServerError):
        await call(RetryPolicy(attempts=1), attempt, clock=Clock())
    assert len(given) == 1


async def test_waits_are_jittered_between_zero_and_a_doubling_bound() -> None:
    waits: list[list[float]] = []
    for _ in range(200):
        clock = Clock()
        attempt, _given = failing(*[busy() for _ in range(7)])
        policy = RetryPolicy(attempts=8, wait_initial=0.5, wait_max=8.0)
        await call(policy, attempt, clock=clock, sleep=clock.sleep)
        waits.append(clock.slept)
    for column, bound in zip(zip(*waits, strict=True), [0.5, 1, 2, 4, 8, 8, 8], strict=True):
        assert 0 <= min(column) < bound / 4
        assert bound * 3 / 4 < max(column) <= bound


async def test_retry_after_is_a_floor_for_the_wait() -> None:
    clock = Clock()
    attempt, _given = failing(busy(retry_after=20), m.RateLimitedError(status=429, retry_after=9))
    await call(RetryPolicy(), attempt, clock=clock, sleep=clock.sleep)
    assert clock.slept == [20, 9]


async def test_a_retry_after_over_the_maximum_fails_at_once_and_says_so() -> None:
    clock = Clock()
    attempt, given = failing(busy(retry_after=61))
    with pytest.raises(m.ServerError) as caught:
        await call(RetryPolicy(total=300), attempt, clock=clock, sleep=clock.sleep)
    assert (caught.value.retry_after, len(given), clock.slept) == (61, 1, [])


async def test_a_wait_past_the_total_time_is_not_begun() -> None:
    clock = Clock()
    attempt, given = failing(busy(retry_after=31), busy(retry_after=31))
    with pytest.raises(m.ServerError):
        await call(RetryPolicy(total=60), attempt, clock=clock, sleep=clock.sleep)
    assert (given, clock.slept) == ([60, 29], [31])


async def test_cancellation_passes_through_at_once() -> None:
    started = asyncio.Event()

    async def attempt(seconds: float) -> None:
        started.set()
        raise busy(retry_after=30)

    task = asyncio.create_task(call(RetryPolicy(), attempt, clock=Clock()))
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_concurrent_calls_do_not_mix_up_their_attempts() -> None:
    clock = Clock()

    async def one() -> int:
        attempt, given = failing(busy(), busy())
        await call(RetryPolicy(attempts=3), attempt, clock=clock, sleep=clock.sleep)
        return len(given)

    # Their fake sleeps add up, so the total time is out of the way.
    clock.now = -1e9
    assert await asyncio.gather(*[one() for _ in range(20)]) == [3] * 20


async def test_a_call_that_succeeds_does_not_touch_tenacity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("tenacity.AsyncRetrying")
    attempt, _given = failing()
    assert await call(RetryPolicy(), attempt, clock=Clock()) == "done"


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"wait_initial": -1},
        {"wait_max": float("nan")},
        {"total": 0},
        {"total": float("inf")},
        {"max_retry_after": -0.1},
        {"budget": -0.1},
        {"wait_initial": None},
        {"wait_max": 10**5000},
        {"total": None},
        {"total": "5"},
        {"total": 10**400},
        {"max_retry_after": None},
        {"budget": "0.2"},
        {"wait_if_down": "no"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(m.ConfigurationError, match=next(iter(options))):
        RetryPolicy(**options)


def test_the_defaults_are_those_of_the_documentation() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.wait_initial, policy.wait_max) == (4, 0.5, 8.0)
    assert (policy.total, policy.max_retry_after) == (60.0, 60.0)
    with pytest.raises(AttributeError):
        policy.attempts = 5  # type: ignore[misc]  # that it is frozen is the claim


# The budget


def spent(budget: retry.RetryBudget, now: float, share: float = 0.2) -> int:
    """How many retries there are."""
    count = 0
    while budget.spend(share, now):
        count += 1
    return count


def test_retries_are_a_share_of_recent_calls() -> None:
    budget = retry.RetryBudget()
    for _ in range(1000):
        budget.count_call(100.0)
    assert spent(budget, 100.0) == 200
    assert spent(budget, 100.0, share=0.5) == 300


def test_no_share_has_less_than_no_retries_left() -> None:
    budget = retry.RetryBudget()
    for _ in range(1000):
        budget.count_call(100.0)
    assert spent(budget, 100.0, share=0.5) == 500
    assert budget.left(0.2, 100.0) == 0
    assert budget.left(0.6, 100.0) == pytest.approx(100)


def test_where_there_are_few_calls_ten_retries_are_allowed() -> None:
    budget = retry.RetryBudget()
    assert spent(budget, 0.0, share=0) == 10
    assert spent(budget, 1.0) == 0  # 9.05 of them still count
    assert spent(budget, 1.1) == 1


def test_what_was_long_ago_is_forgotten() -> None:
    budget = retry.RetryBudget()
    for _ in range(1000):
        budget.count_call(0.0)
    assert spent(budget, 10.0) == pytest.approx(200 / math.e, abs=1)
    assert spent(budget, 300.0, share=0) in {9, 10}


def test_at_one_failure_in_ten_every_call_gets_its_retry() -> None:
    budget, seeded = retry.RetryBudget(), random.Random(1)
    for number in range(5000):
        budget.count_call(number / 50)
        while seeded.random() < 0.1:
            assert budget.spend(0.2, number / 50)


def test_who_may_not_retry_is_not_kept_waiting() -> None:
    async def main() -> None:
        clock = Clock()
        attempt, given = failing(busy(), busy())
        first = busy()
        first.attempts = 1
        with pytest.raises(m.ServerError) as caught:
            await retry.retry_call(
                RetryPolicy(),
                first,
                attempt,
                deadline=clock() + 60,
                may_retry=lambda error: error is first,
                clock=clock,
                sleep=clock.sleep,
            )
        assert (len(given), len(clock.slept), caught.value.attempts) == (1, 1, 2)

    asyncio.run(main())
