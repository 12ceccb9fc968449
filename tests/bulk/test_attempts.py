"""One user on the way through a run: attempts, retries, and the outcome that they come to."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from runs import bulk, enable, throttling
from tenant_in_memory import now
from virtual_time import run

import monocloud_async as m
from monocloud_async import Outcome, RetryPolicy, User


def test_waiting_in_the_queue_is_no_retry_time() -> None:
    async def main() -> None:
        answers = {"a": [503, 503], "b": [429]}

        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.02)
            match answers.get(user_id):
                case [503, *rest]:
                    answers[user_id] = rest
                    raise m.ServerError(status=503)
                case [429]:
                    del answers[user_id]
                    raise m.RateLimitedError(status=429, retry_after=100)
            return User(user_id=user_id)

        report = await bulk(["x", "a", "b"], send, policy=RetryPolicy(total=10))
        assert (report.enabled, report.retries) == (3, 2)
        assert now() > 100

    run(main(), sockets=False)


RESET, REFUSED = m.TransportError("reset"), m.TransportError("refused", sent=False)


@pytest.mark.parametrize(
    ("first", "then", "status"),
    [
        (RESET, m.ServerError(status=503), "unknown"),
        (RESET, m.InvalidResponseError("HTML", status=200, foreign=True), "unknown"),
        (RESET, m.TransportError("refused", sent=False), "unknown"),
        (RESET, m.NotFoundError(status=404), "failed"),
        (RESET, m.UnprocessableError(status=422), "failed"),
        (REFUSED, m.ServerError(status=503), "failed"),
        (REFUSED, m.TransportError("refused", sent=False), "failed"),
        (m.ServerError(status=503), m.TransportError("refused", sent=False), "failed"),
    ],
)
async def test_who_was_not_answered_is_unknown_until_the_tenant_says_no(
    first: m.MonoCloudError, then: m.MonoCloudError, status: str
) -> None:
    errors = [first, then]

    async def send(user_id: str, seconds: float) -> User:
        if user_id == "x" and errors:
            raise errors.pop(0)
        return await enable(user_id, seconds)

    seen: dict[str, Outcome] = {}
    policy = RetryPolicy(attempts=2, wait_initial=0.001)
    await bulk(
        ["a", "x"],
        send,
        policy=policy,
        on_outcome=lambda outcome: seen.update({outcome.user_id: outcome}),
    )
    assert (seen["x"].status, seen["x"].error) == (status, then)


def test_a_429_pauses_everybody_and_spends_no_attempt_of_that_user() -> None:
    async def main() -> None:
        send, sent = throttling({"u5": [30.0] * 8})
        report = await bulk([f"u{i}" for i in range(40)], send, policy=RetryPolicy(attempts=1))
        assert (report.enabled, report.failed) == (40, 0)
        assert (report.throttled, report.retries, report.requests) == (8, 0, 48)
        times = [at for at, _ in sent]
        pauses = [b - a for a, b in pairwise(times) if b - a > 2]
        assert len(pauses) == 8
        assert min(pauses) >= 29.9

    run(main(), sockets=False)


def test_a_429_without_retry_after_pauses_for_a_growing_time() -> None:
    async def main() -> None:
        send, sent = throttling({"u0": [None] * 5})
        report = await bulk(["u0"], send)
        assert report.enabled == 1
        gaps = [b - a for (a, _), (b, _) in pairwise(sent)]
        guesses = [0.5 * 1.3**place for place in range(5)]
        assert gaps == pytest.approx([guess + 0.03 for guess in guesses], abs=0.0101)  # the jitter

    run(main(), sockets=False)


def test_time_spent_paused_is_no_retry_time() -> None:
    async def main() -> None:
        send, _sent = throttling({"a": [100.0] * 5})
        report = await bulk(["a"], send, policy=RetryPolicy(total=10.0))
        assert report.enabled == 1

    run(main(), sockets=False)


def test_draining_does_not_sit_out_a_pause() -> None:
    async def main() -> None:
        send, _sent = throttling({"u1": [600.0], "u2": [600.0]})
        running = bulk([f"u{i}" for i in range(9)], send, concurrency=2)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(10)
        assert 580 < running.pace.pause_left < 600
        running.drain()
        report = await task
        assert asyncio.get_running_loop().time() < 11
        assert (report.total, report.enabled, report.not_attempted) == (3, 1, 2)

    run(main(), sockets=False)


def test_draining_ends_a_call_that_waits_to_retry_with_its_error() -> None:
    async def main() -> None:
        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.01)
            raise m.ServerError(status=503, retry_after=40)

        running = bulk(["a", "b"], send)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(5)
        running.drain()
        report = await task
        assert Counter(type(o.error) for o in report.failures) == {m.ServerError: 2}
        assert report.failed == 2

    run(main(), sockets=False)


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_call_that_is_cancelled_by_itself_does_not_end_the_run(concurrency: int) -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        if user_id == "u7":
            raise asyncio.CancelledError
        return User(user_id=user_id)

    report = await bulk([f"u{number}" for number in range(100)], send, concurrency=concurrency)
    assert (report.total, report.enabled, report.unknown) == (100, 99, 1)
    assert report.exhausted


def test_a_429_is_neither_an_attempt_nor_a_retry_nor_retry_time() -> None:
    answers = [
        *[m.RateLimitedError(status=429, retry_after=0.0)] * 3,
        m.ServerError(status=503),
        m.RateLimitedError(status=429, retry_after=0.0),
    ]

    async def main() -> None:
        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(6)
            if answers:
                raise answers.pop(0)
            return User(user_id=user_id)

        seen: list[Outcome] = []
        report = await bulk(["a"], send, policy=RetryPolicy(total=10), on_outcome=seen.append)
        assert [(outcome.status, outcome.attempts) for outcome in seen] == [("enabled", 2)]
        assert (report.requests, report.retries, report.throttled) == (6, 1, 4)

    run(main(), sockets=False)


def test_who_fails_in_a_run_that_drains_is_not_tried_again() -> None:
    async def main() -> None:
        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(5)
            raise m.ServerError(status=503, user_id=user_id)

        running = bulk(["a"], send)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(1)
        running.drain()
        report = await task
        assert now() < 5.1
        assert (report.failed, report.requests) == (1, 1)
        assert report.failures[0].attempts == 1

    run(main(), sockets=False)


def test_a_429_from_before_the_last_pause_is_not_tried_again_in_a_run_that_drains() -> None:
    """Such a 429 pauses nobody, so the request could be sent again at once."""

    async def main() -> None:
        refused = {"slow", "quick"}

        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(5 if user_id == "slow" else 0.02)
            if user_id in refused:
                refused.discard(user_id)
                raise m.RateLimitedError(status=429, user_id=user_id, retry_after=1)
            return User(user_id=user_id)

        running = bulk(["first", "slow", "quick"], send)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(4)
        assert running.pace.state == "paced"
        running.drain()
        report = await task
        assert (report.enabled, report.not_attempted, report.requests) == (2, 1, 4)

    run(main(), sockets=False)
