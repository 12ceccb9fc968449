"""Where outcomes go: to whoever iterates, and to `on_outcome`; nobody who is slow loses one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import cast

import msgspec
import pytest
from runs import adds_up, bulk, enable
from virtual_time import run

from monocloud_async import ConfigurationError, Outcome, User
from monocloud_async.bulk import OnOutcome


async def test_outcomes_come_as_they_finish() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0.03 if user_id == "slow" else 0)
        return User(user_id=user_id, disabled=user_id == "b")

    seen: list[Outcome] = []
    async with bulk(["a", "slow", "b", "c"], send, on_outcome=seen.append) as running:
        order = [outcome async for outcome in running]
    assert [o.user_id for o in order] == ["a", "b", "c", "slow"]
    assert [o.position for o in order] == [0, 2, 3, 1]
    assert seen == order
    assert order[-1].seconds >= 0.03
    assert running.report.unconfirmed == 1
    assert order[0].user == User(user_id="a", disabled=False)


async def _save(outcome: Outcome) -> None:
    raise AssertionError(outcome)


async def _saved(outcome: Outcome) -> AsyncIterator[Outcome]:
    yield outcome


class Saver:
    async def __call__(self, outcome: Outcome) -> None:
        await _save(outcome)


@pytest.mark.parametrize(
    "callback",
    [_save, Saver(), partial(_save), partial(Saver()), lambda o: _save(outcome=o), _saved],
    ids=["function", "object", "partial function", "partial object", "lambda", "generator"],
)
async def test_an_on_outcome_that_nobody_awaits_ends_the_run_at_once(
    callback: OnOutcome,
) -> None:
    sent: list[str] = []

    async def send(user_id: str, _seconds: float) -> User:
        sent.append(user_id)
        return await enable(user_id, 0)

    with pytest.raises(ConfigurationError, match="on_outcome must be a plain function"):
        await bulk(["a", "b", "c"], send, on_outcome=callback)
    assert len(sent) <= 2  # the second one may be in flight


async def test_an_on_outcome_may_start_a_task() -> None:
    saved: list[str] = []

    async def save(outcome: Outcome) -> None:
        saved.append(outcome.user_id)

    async with asyncio.TaskGroup() as tasks:

        def begin_to_save(outcome: Outcome) -> None:
            tasks.create_task(save(outcome))

        await bulk(["a", "b"], enable, on_outcome=begin_to_save)
    assert saved == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "most"),
    [({"note": "x" * 190_000}, 100), ({"note": "\U0001f600" * 47_000}, 100), ([[]] * 60_000, 10)],
)
def test_what_waits_for_a_slow_consumer_is_bounded_in_bytes(data: object, most: int) -> None:
    body = msgspec.json.encode({"user_id": "u", "private_data": {"x": data}})

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return msgspec.json.decode(body, type=User)

    async def main() -> None:
        ids = (f"u{number}" for number in range(2000))
        async with bulk(ids, send, concurrency=1000) as running:
            for told in range(1, 31):
                await anext(running)
                if told < 5:
                    await asyncio.sleep(0.05)  # until the run has nothing to do but wait
                    assert 0 < running.report.enabled - told < most

    run(main(), sockets=False)


def test_one_large_user_does_not_hold_up_who_comes_after() -> None:
    large = User(user_id="u0", private_data={"x": [[]] * 600_000})
    in_flight: list[int] = []

    async def send(user_id: str, _seconds: float) -> User:
        in_flight.append(running.in_flight)
        await asyncio.sleep(0.01)
        return large if user_id == "u0" else User(user_id=user_id)

    running = bulk((f"u{number}" for number in range(500)), send, concurrency=100)

    async def main() -> None:
        async with running:
            assert len([outcome async for outcome in running]) == 500

    run(main(), sockets=False)
    assert max(in_flight) == 100


async def test_a_consumer_that_stalls_stalls_admission() -> None:
    read = 0

    def ids() -> Iterator[str]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield f"u{number}"

    async def quick(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return User(user_id=user_id)

    async with bulk(ids(), quick, concurrency=5) as running:
        await anext(running)
        await asyncio.sleep(0.05)
        assert read <= 6
        count = 1 + len([outcome async for outcome in running])
    assert count == read == 1000


async def test_an_error_of_on_outcome_ends_the_run_and_comes_out() -> None:
    def explode(_outcome: Outcome) -> None:
        raise ZeroDivisionError

    before = asyncio.all_tasks()
    running = bulk([f"u{i}" for i in range(99)], enable, on_outcome=explode)
    with pytest.raises(ZeroDivisionError):
        await running
    assert asyncio.all_tasks() == before
    assert adds_up(running.report)


async def test_the_end_of_a_stream_stays_the_end() -> None:
    async with bulk(["a"], enable) as running:
        assert [o.user_id async for o in running] == ["a"]
        assert [o.user_id async for o in running] == []


async def test_an_error_of_on_outcome_cancels_the_run_whoever_it_is_about() -> None:
    def told(outcome: Outcome) -> None:
        if outcome.status == "failed":
            raise LookupError("of the caller")

    async def never(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0 if user_id == "first" else 3600)
        return User(user_id=user_id)

    running = bulk(["first", *map(str, range(5)), "", "more"], never, on_outcome=told)
    async with asyncio.timeout(5):
        with pytest.raises(LookupError):
            await running
    assert (running.report.enabled, running.report.failed, running.report.unknown) == (1, 1, 5)


def test_an_error_of_on_outcome_comes_out_also_for_who_was_cut_off() -> None:
    def told(outcome: Outcome) -> None:
        if outcome.status == "unknown":
            raise LookupError("of the caller")

    async def main() -> None:
        running = bulk([f"u{number}" for number in range(100)], enable, on_outcome=told)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(0.03)
        running.cancel()
        with pytest.raises(LookupError):
            await task
        assert running.report.unknown == 10
        assert adds_up(running.report)

    run(main(), sockets=False)


async def test_the_first_error_of_on_outcome_comes_out() -> None:
    raised: list[Exception] = []

    def told(outcome: Outcome) -> None:
        raised.append(LookupError(outcome.user_id))
        raise raised[-1]

    with pytest.raises(LookupError) as caught:
        await bulk([f"u{number}" for number in range(20)], enable, on_outcome=told)
    assert caught.value is raised[0]


async def test_a_user_whose_data_is_nested_deeply_is_an_outcome_as_any_other() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return User(user_id=user_id, private_data={"x": deep} if user_id == "u3" else {})

    async with bulk([f"u{number}" for number in range(10)], send) as running:
        assert len([outcome.user_id async for outcome in running]) == 10
    assert running.report.enabled == 10
    while deep:  # or its end would need as many frames
        deep = cast("list[object]", deep.pop())
