"""Which user a run calls for next, and when."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
from journals import Store
from runs import bulk, enable
from tenant_in_memory import Tenant
from virtual_time import run

import monocloud_async as m
from monocloud_async import Outcome, RunStoppedError, User
from monocloud_async.bulk import UserIds


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


async def _one_by_one(*ids: str) -> AsyncIterator[str]:
    for user_id in ids:
        yield user_id


INPUTS = pytest.mark.parametrize("kind", [list, iter, lambda ids: _one_by_one(*ids)])


@INPUTS
def test_a_run_ends_with_its_last_user_and_not_one_place_of_the_rate_later(
    kind: Callable[[list[str]], UserIds],
) -> None:
    async def main() -> None:
        report = await bulk(kind(["ada", "", "bob", "a/../b"]), enable, max_rate=0.1)
        assert (report.enabled, report.failed, report.exhausted) == (2, 2, True)
        assert report.seconds == pytest.approx(10.02)

    run(main(), sockets=False)


@INPUTS
def test_a_run_ends_at_its_limit_and_not_one_place_of_the_rate_later(
    kind: Callable[[list[str]], UserIds],
) -> None:
    async def main() -> None:
        async with Tenant().session() as session:
            report = await session.bulk_enable(kind(["ada", "bob", "cy"]), max_rate=0.1, limit=2)
        assert report.enabled == 2
        assert report.seconds == pytest.approx(10.02)

    run(main(), sockets=False)


def test_a_run_does_not_wait_for_the_end_of_a_pause_after_its_last_user() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session() as session:
            tenant.faults = iter([m.RateLimitedError(status=429, retry_after=600)])
            other = asyncio.ensure_future(session.enable_user("other"))
            tenant.latency = 0.01
            await asyncio.sleep(0.005)
            report = await session.bulk_enable(["ada"])
            with pytest.raises(m.RateLimitedError):
                await other
        assert (report.enabled, report.exhausted) == (1, True)
        assert report.seconds < 1

    run(main(), sockets=False)


@pytest.mark.parametrize("how", ["drain", "cancel"])
@INPUTS
def test_an_id_that_waited_for_the_rate_when_the_run_ended_has_an_outcome(
    kind: Callable[[list[str]], UserIds], how: str
) -> None:
    async def main() -> None:
        outcomes: list[Outcome] = []
        ids = kind(["ada", "bob", "cy"])
        running = bulk(ids, enable, max_rate=0.1, on_outcome=outcomes.append)
        asyncio.get_running_loop().call_later(5, getattr(running, how))
        report = await running
        assert [(o.user_id, o.status) for o in outcomes] == [
            ("ada", "enabled"),
            ("bob", "not_attempted"),
        ]
        assert (report.total, report.requests, report.exhausted) == (2, 1, False)
        if isinstance(ids, Iterator):
            assert list(ids) == ["cy"]

    run(main(), sockets=False)


def test_a_run_that_is_closed_before_its_last_user_is_no_run_that_has_reached_its_limit() -> None:
    async def main() -> None:
        session = Tenant().session()
        ids = ["ada", "bob", "cy"]
        running = asyncio.ensure_future(session.bulk_enable(ids, max_rate=0.1, limit=2))
        await asyncio.sleep(5)
        await session.close()
        with pytest.raises(RunStoppedError, match="the session was closed") as stopped:
            await running
        report = stopped.value.report
        assert (report.enabled, report.not_attempted) == (1, 1)

    run(main(), sockets=False)
