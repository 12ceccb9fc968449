"""What a session gives to type checkers. Nobody runs this; mypy and pyright read it."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Literal, assert_type

import aiohttp

from monocloud_async import (
    BulkReport,
    BulkRun,
    MonoCloudClient,
    MonoCloudSession,
    Outcome,
    RetryPolicy,
    User,
    UserEmail,
    UserList,
    UserUsername,
)
from monocloud_async.journal import Journal
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.testing import FakeMonoCloud


async def one_call(session: MonoCloudSession) -> None:
    user = assert_type(await session.enable_user("ada"), User)
    await session.enable_user("ada", timeout=3, retry=RetryPolicy(attempts=1))
    assert_type(user.user_id, str)
    assert_type(user.disabled, bool | None)
    assert_type(user.emails, list[UserEmail])
    assert_type(user.username, UserUsername | None)
    assert_type(user.block_until, int | None)


async def a_list(session: MonoCloudSession) -> None:
    users = assert_type(session.list_users(filter="bob", sort="last_updated:-1"), UserList)
    async for user in session.list_users(group="staff", page_size=20):
        assert_type(user, User)
    assert_type(users.total, int | None)
    assert_type(users.returned, int)


async def a_session(client: aiohttp.ClientSession) -> None:
    async with MonoCloudSession() as session:
        assert_type(session, MonoCloudSession)
        assert_type(session.tenant, str)
    MonoCloudSession("acme.eu.monocloud.com", "key", timeout=5, retry=RetryPolicy(), max_rate=50)
    MonoCloudSession(client_session=client)
    await session.close()


async def a_service(client: MonoCloudClient, ids: list[str]) -> None:
    """What takes a session, or a fake of one's own."""
    assert_type(await client.enable_user("ada", timeout=3), User)
    assert_type(await client.bulk_enable(ids, concurrency=10, journal="users.journal"), BulkReport)
    await client.bulk_disable(ids, revoke_sessions=True)
    await client.close(drain=20)


async def who_calls_it(session: MonoCloudSession, ids: list[str]) -> None:
    await a_service(session, ids)
    await a_service(FakeMonoCloud(), ids)


async def the_pace(session: MonoCloudSession) -> None:
    limiter = assert_type(session.pace, RateLimiter)
    assert_type(limiter.state, Literal["open", "paced", "paused"])
    assert_type(limiter.rate, float | None)
    assert_type(limiter.pause_left, float)
    assert_type(limiter.throttled, int)
    assert_type(limiter.down, bool)


async def a_run(session: MonoCloudSession, ids: list[str]) -> None:
    assert_type(await session.bulk_enable(ids), BulkReport)
    assert_type(await asyncio.wait_for(session.bulk_enable(ids), 60), BulkReport)
    assert_type(await session.bulk_enable(ids, check=True, limit=20), BulkReport)
    assert_type(
        await asyncio.gather(session.bulk_enable(ids), session.enable_user("ada")),
        tuple[BulkReport, User],
    )
    async with session.bulk_enable(ids) as run:
        assert_type(run, BulkRun)
        async for outcome in run:
            assert_type(outcome, Outcome)
        assert_type([outcome async for outcome in run], list[Outcome])
        assert_type(run.report, BulkReport)
        assert_type(run.in_flight, int)
        assert_type(run.pace, RateLimiter)
        run.drain()
        run.cancel()


def of_a_file() -> Iterator[str]:
    yield "ada"


async def of_a_table() -> AsyncIterator[str]:
    yield "ada"


class Messages:
    def __aiter__(self) -> AsyncIterator[str]:
        return of_a_table()


async def any_iterable(session: MonoCloudSession, ids: list[str]) -> None:
    await session.bulk_enable(("ada", "bob"))
    await session.bulk_enable({"ada", "bob"})
    await session.bulk_enable({"ada": 1})
    await session.bulk_enable(deque(ids))
    await session.bulk_enable(user_id.strip() for user_id in ids)
    await session.bulk_enable(of_a_file())
    await session.bulk_enable(of_a_table())
    await session.bulk_enable(Messages())


class Store:
    """A journal of one's own, whose parameters have names of its own."""

    async def enabled(self, place: int, who: str) -> bool:
        return False

    async def write(self, rows: Sequence[Outcome]) -> None:
        pass


async def options(session: MonoCloudSession, ids: list[str]) -> None:
    store: Journal = Store()
    seen: list[Outcome] = []
    done: set[str] = set()
    await session.bulk_enable(ids, concurrency=10, timeout=5, retry=RetryPolicy(attempts=2))
    await session.bulk_enable(ids, max_rate=50, max_outage=60, on_outcome=seen.append)
    await session.bulk_enable(ids, on_outcome=lambda outcome: done.add(outcome.user_id))
    await session.bulk_enable(ids, journal="users.journal")
    await session.bulk_enable(ids, journal=Path("users.journal"))
    await session.bulk_enable(ids, journal=store)
    await session.bulk_enable(ids, journal=Store())
