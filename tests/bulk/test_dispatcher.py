"""Which user a run calls for next, and when."""

import asyncio
import statistics
from collections.abc import Sequence

from journals import Store
from runs import bulk, enable
from virtual_time import run

import monocloud_async as m
from monocloud_async import Outcome, User


async def test_the_first_call_goes_alone() -> None:
    order: list[str] = []

    async def send(user_id: str, _seconds: float) -> User:
        order.append(f"> {user_id}")
        await asyncio.sleep(0.01)
        order.append(f"< {user_id}")
        return User(user_id=user_id)

    await bulk(["a", "b", "c"], send)
    assert order == ["> a", "< a", "> b", "> c", "< b", "< c"]


async def test_a_first_call_that_must_retry_does_not_hold_the_others_up() -> None:
    answers = iter([m.ServerError(status=503, retry_after=50)])

    async def send(user_id: str, _seconds: float) -> User:
        for error in answers:
            raise error
        return User(user_id=user_id)

    async with bulk(["a", "b", "c"], send) as running:
        assert {(await anext(running)).user_id for _ in range(2)} == {"b", "c"}


async def test_refused_ids_give_others_a_turn() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await bulk([""] * 5000, enable)
    ticking.cancel()
    assert ticks > 10


def test_a_run_that_was_held_up_is_soon_back_at_its_concurrency() -> None:
    """Workers do not take ids one per iteration of the event loop."""
    in_flight, calls, seen = 0, 0, []

    class LateJournal:
        async def enabled(self, _position: int, _user_id: str, /) -> bool:
            return False

        async def write(self, _outcomes: Sequence[Outcome], /) -> None:
            await asyncio.sleep(0.3)

    async def send(user_id: str, seconds: float) -> User:
        nonlocal in_flight, calls
        in_flight, calls = in_flight + 1, calls + 1
        if calls < 500:  # while the journal is late repeatedly
            await enable(user_id, seconds)
        else:
            for _ in range(5):
                await asyncio.sleep(0)
                seen.append(in_flight)
        in_flight -= 1
        return User(user_id=user_id)

    async def main() -> None:
        ids = [f"u{number}" for number in range(3000)]
        assert (await bulk(ids, send, concurrency=20, journal=LateJournal())).enabled == 3000

    run(main(), sockets=False)
    assert max(seen) == 20
    assert statistics.mean(seen[2000:-500]) > 15


async def test_an_id_that_is_looked_up_when_the_run_is_drained_is_counted() -> None:
    asked = asyncio.Event()

    class Slow(Store):
        async def enabled(self, position: int, user_id: str, /) -> bool:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError(position, user_id)

    async def never(user_id: str, _seconds: float) -> User:
        raise AssertionError(user_id)

    source = iter(["ada", "bob"])
    async with bulk(source, never, journal=Slow()) as run:
        await asked.wait()
        run.drain()
        outcomes = [outcome async for outcome in run]
    assert [(o.user_id, o.status) for o in outcomes] == [("ada", "not_attempted")]
    assert run.report.total == 1
    assert list(source) == ["bob"]
