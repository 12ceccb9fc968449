"""The differences between operations: method, path, body, and the outcomes of users."""

import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import aiohttp
import msgspec
import pytest
import samples
from aiohttp import web

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector
from monocloud_async.endpoint import (
    BULK_OPERATIONS,
    ENABLE,
    Done,
    DoneBefore,
    DoneBeforeCounts,
    DoneCounts,
    bulk_operation,
)
from monocloud_async.outcome import REPORT_FIELDS, Status
from monocloud_async.report import figures
from monocloud_async.report.rows import failures
from monocloud_async.sandbox import Sandbox

KEY = "sentinel-key-4711"
ONCE = RetryPolicy(attempts=1)


@pytest.fixture(params=["own", "borrowed"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("call", "line", "body"),
    [
        (lambda s: s.enable_user("a/b"), b"POST /api/users/a%2Fb/enable HTTP/1.1", b""),
        (lambda s: s.get_user("a/b"), b"GET /api/users/a%2Fb HTTP/1.1", b""),
        (
            lambda s: s.disable_user("a/b"),
            b"POST /api/users/a%2Fb/disable HTTP/1.1",
            b'{"revoke_sessions":false}',
        ),
        (
            lambda s: s.disable_user("a/b", revoke_sessions=True),
            b"POST /api/users/a%2Fb/disable HTTP/1.1",
            b'{"revoke_sessions":true}',
        ),
    ],
    ids=["enable", "get", "disable", "disable and revoke"],
)
async def test_each_operation_is_its_request_on_both_ways(
    call: Callable[[MonoCloudSession], Awaitable[m.User]], line: bytes, body: bytes, way: str
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        first = f"{request.method} {request.rel_url.raw_path} HTTP/1.1".encode()
        seen.append((first, await request.read()))
        assert request.headers["X-API-KEY"] == KEY
        kind = request.headers.get("Content-Type")
        assert kind == ("application/json" if body else None)
        return web.Response(body=samples.user("a/b"))

    server = web.Server(answer)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = aiohttp.ClientSession(connector=Connector()) if way == "borrowed" else None
    try:
        async with MonoCloudSession(url, KEY, retry=ONCE, client_session=client) as session:
            for _ in range(2):  # over a connection that is new, and over one that is used again
                assert (await call(session)).user_id == "a/b"
    finally:
        if client is not None:
            await client.close()
        await runner.cleanup()
    assert seen == [(line, body)] * 2


async def test_a_user_is_disabled_looked_at_and_enabled(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    user_id = sandbox.user_ids()[0]
    for call, disabled in (
        (session.enable_user, False),
        (session.get_user, False),
        (session.disable_user, True),
        (session.disable_user, True),
        (session.get_user, True),
    ):
        assert (await call(user_id)).disabled is disabled
        assert sandbox.is_disabled(user_id) is disabled


@pytest.mark.parametrize("name", ["get_user", "disable_user"])
async def test_every_call_fails_like_an_enable(
    name: str, sandbox: Sandbox, session: MonoCloudSession
) -> None:
    call = getattr(session, name)
    with pytest.raises(m.NotFoundError, match="user 'nobody': 404"):
        await call("nobody")
    with pytest.raises(m.InvalidUserIdError):
        await call("..")
    assert sandbox.stats().requests == 1


async def test_many_users_are_disabled(sandbox: Sandbox, session: MonoCloudSession) -> None:
    ids = sandbox.user_ids()
    for user_id in ids:
        await session.enable_user(user_id)
    report = await session.bulk_disable([*ids, "nobody"])
    assert (report.total, report.disabled, report.enabled, report.failed) == (21, 20, 0, 1)
    assert report.unconfirmed == 0
    assert all(map(sandbox.is_disabled, ids))


async def test_an_answer_that_says_the_contrary_is_counted() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        user_id = request.rel_url.raw_path.split("/")[3]
        return web.Response(body=samples.user(user_id, disabled=user_id == "yes"))

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with MonoCloudSession(f"http://127.0.0.1:{runner.addresses[0][1]}", KEY) as session:
            report = await session.bulk_disable(["yes", "no", "no"])
            assert (report.disabled, report.unconfirmed) == (3, 2)
            report = await session.bulk_enable(["yes", "no", "no"])
            assert (report.enabled, report.unconfirmed) == (3, 1)
    finally:
        await runner.cleanup()


async def test_a_disable_goes_on_where_its_journal_ends(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    ids, path = sandbox.user_ids(), tmp_path / "users.journal"
    first = await session.bulk_disable([*ids[:5], "nobody"], journal=path)
    assert (first.disabled, first.failed) == (5, 1)
    requests = sandbox.stats().requests
    seen: list[m.Outcome] = []
    again = await session.bulk_disable(
        [*ids[:5], "nobody", *ids[6:8]], journal=path, on_outcome=seen.append
    )
    assert (again.already_disabled, again.disabled, again.failed) == (5, 2, 1)
    assert sandbox.stats().requests - requests == 3
    assert [outcome.status for outcome in seen[:5]] == ["already_disabled"] * 5
    told = figures.read(path)
    assert (told.done_status, told.outcomes) == ("disabled", {"disabled": 7, "failed": 1})
    assert [row.user_id for row in failures(path)] == ["nobody"]


async def test_a_journal_is_of_one_operation(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    ids, path = sandbox.user_ids(), tmp_path / "users.journal"
    await session.bulk_enable(ids, journal=path)
    with closing(sqlite3.connect(path)) as sql:  # as journals have had it from the beginning
        (endpoint,) = sql.execute("SELECT endpoint FROM header").fetchone()
    assert endpoint == ENABLE.endpoint == "POST /api/users/{user_id}/enable"
    requests = sandbox.stats().requests
    with pytest.raises(m.ConfigurationError, match=r"is of POST .*/enable, .* of POST .*/disable"):
        await session.bulk_disable(ids, journal=path)
    assert sandbox.stats().requests == requests


def test_every_operation_has_outcomes_and_counts_of_its_own() -> None:
    done = {operation.done for operation in BULK_OPERATIONS.values()}
    before = {operation.done_before for operation in BULK_OPERATIONS.values()}
    assert done == set(get_args(Done)) == set(fields(DoneCounts))
    assert before == set(get_args(DoneBefore)) == set(fields(DoneBeforeCounts)) - done
    assert done | before < set(get_args(Status)) < set(REPORT_FIELDS)


def fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    return struct.__struct_fields__


@pytest.mark.parametrize("name", ["delete", ["enable"], None])
def test_an_unknown_operation_is_refused_with_the_known_ones(name: Any) -> None:
    known = "one of enable, disable, "
    with pytest.raises(m.ConfigurationError, match=rf"{known}.*, not {re.escape(repr(name))}"):
        bulk_operation(name)


def test_a_forgotten_await_says_which_operation() -> None:
    with pytest.warns(RuntimeWarning, match="bulk_disable was never awaited, and nobody was dis"):
        MonoCloudSession("acme.eu.monocloud.com", KEY).bulk_disable(["u"])
