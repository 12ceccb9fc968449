import asyncio
import gzip
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import aiohttp
import pytest
import samples
from raw_server import RawServer, answering, http
from sessions import KEY, NEVER, session_for
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def test_a_disabled_user_is_enabled(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    assert sandbox.is_disabled(user_id)
    user = await session.enable_user(user_id)
    assert (user.user_id, user.disabled) == (user_id, False)
    assert not sandbox.is_disabled(user_id)


async def test_enabling_twice_is_fine(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    first, second = [await session.enable_user(user_id) for _ in range(2)]
    assert first.user_id == second.user_id == user_id
    assert first.disabled is second.disabled is False
    assert sandbox.stats().by_status == {"200": 2}


async def test_a_user_that_does_not_exist_is_not_found(session: MonoCloudSession) -> None:
    with pytest.raises(m.NotFoundError, match="user 'nobody': 404") as caught:
        await session.enable_user("nobody")
    assert (caught.value.user_id, caught.value.attempts) == ("nobody", 1)


async def test_a_wrong_key_is_unauthorized_and_not_shown(sandbox: Sandbox) -> None:
    async with session_for(sandbox.url) as session:
        with pytest.raises(m.UnauthorizedError) as caught:
            await session.enable_user(sandbox.user_ids()[0])
    assert KEY not in str(caught.value)


def test_no_request_of_a_run_outlives_the_time_of_its_user() -> None:
    async def main() -> None:
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(total=4.5)) as session,
        ):
            report = await session.bulk_enable(["u", "v"], timeout=60)
            assert report.seconds < 9.1
            assert report.unknown == 2

    run(main())


async def test_the_request_is_the_documented_one() -> None:
    answer = http(samples.user("u"))
    async with RawServer(answering(answer)) as server, session_for(server.url) as session:
        await session.enable_user("u")
    head, *lines = server.requests[0].decode().rstrip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert head == "POST /api/users/u/enable HTTP/1.1"
    assert headers["x-api-key"] == KEY
    assert headers["accept"] == "application/json, application/problem+json"
    assert headers["user-agent"] == f"monocloud-async/{m.__version__}"
    assert headers["content-length"] == "0"
    assert "content-type" not in headers
    assert "cookie" not in headers


async def test_ids_reach_the_server_as_themselves() -> None:
    ids = ["a/b", "a\\b", "a?b", "a#b", "a b", "é", "e\u0301", "a+b", "50%", "%41", "{x}", "..."]
    seen: list[str] = []

    def reply(request: bytes) -> bytes:
        path = request.split(b" ")[1].decode().split("/")
        assert len(path) == 5
        seen.append(unquote(path[3]))
        return http(samples.user(seen[-1]))

    async with RawServer(answering(reply)) as server, session_for(server.url) as session:
        for user_id in ids:
            assert (await session.enable_user(user_id)).user_id == user_id
    assert seen == ids


class InEnum(str, Enum):  # noqa: UP042  unlike this, a StrEnum prints as its value
    ADA = "ada"


class PrintsAsBob(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "bob"


class FormatsAsBob(str):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return "bob"


class EqualToItsKindAlone(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EqualToItsKindAlone) and str.__eq__(self, other)

    __hash__ = str.__hash__


async def test_a_resume_knows_ids_that_are_equal_to_their_kind_alone(tmp_path: Path) -> None:
    async with (
        Sandbox(users=6) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        ids = [EqualToItsKindAlone(user_id) for user_id in sandbox.user_ids()]
        half = await session.bulk_enable(ids, journal=tmp_path / "j", limit=3)
        assert half.enabled == 3
        whole = await session.bulk_enable(ids, journal=tmp_path / "j")
        assert (whole.already_enabled, whole.enabled, whole.total) == (3, 3, 6)


@pytest.mark.parametrize("user_id", [InEnum.ADA, PrintsAsBob("ada"), FormatsAsBob("ada")])
async def test_an_id_is_the_text_that_a_string_has_whatever_its_class_prints(
    user_id: str, tmp_path: Path
) -> None:
    async with (
        Sandbox(users=["ada", "bob"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        assert (await session.enable_user(user_id)).user_id == "ada"
        await session.disable_user(user_id)
        with pytest.raises(m.NotFoundError, match="user 'carl'"):
            await session.get_user(FormatsAsBob("carl"))
        for done in (["enabled", "enabled"], ["already_enabled", "already_enabled"]):
            seen: list[m.Outcome] = []
            await session.bulk_enable(
                [user_id, user_id], check=True, on_outcome=seen.append, journal=tmp_path / "journal"
            )
            assert [outcome.status for outcome in seen] == done
            assert [type(outcome.user_id) for outcome in seen] == [str, str]
        assert sandbox.is_disabled("bob")


async def test_an_invalid_id_sends_nothing(sandbox: Sandbox, session: MonoCloudSession) -> None:
    with pytest.raises(m.InvalidUserIdError):
        await session.enable_user("..")
    assert sandbox.stats().requests == 0


async def test_a_borrowed_client_session_that_leaves_bodies_packed_unpacks_the_session_s() -> None:
    packed = http(gzip.compress(b'{"user_id":"ada"}'), b"Content-Encoding: gzip")
    async with (
        RawServer(answering(packed)) as server,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        session = MonoCloudSession(server.url, KEY, retry=NEVER, client_session=client)
        assert (await session.enable_user("ada")).user_id == "ada"
        assert (await session.bulk_enable(["ada"])).enabled == 1


async def test_a_session_that_is_closed_ends_its_run(sandbox: Sandbox) -> None:
    session = MonoCloudSession(sandbox.url, sandbox.api_key)
    ids = sandbox.user_ids()
    sandbox.script(ids[3], "hang")
    seen: list[m.Outcome] = []
    running = asyncio.ensure_future(session.bulk_enable(ids, concurrency=1, on_outcome=seen.append))
    while len(seen) < 3:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    await session.close()
    with pytest.raises(m.RunStoppedError, match="the session was closed") as caught:
        await running
    assert [outcome.status for outcome in seen] == ["enabled"] * 3 + ["unknown"]
    assert caught.value.report.total == 4


async def test_numbers_that_no_float_can_hold_are_refused() -> None:
    for huge in (10**400, 10**5000):
        with pytest.raises(m.ConfigurationError, match="burst"):
            MonoCloudSession("acme.eu.monocloud.com", KEY, burst=huge)
        with pytest.raises(m.ConfigurationError, match="timeout"):
            MonoCloudSession("acme.eu.monocloud.com", KEY, timeout=huge)
        with pytest.raises(m.ConfigurationError, match=r"drain must be .* not one that large"):
            await MonoCloudSession("acme.eu.monocloud.com", KEY).close(drain=huge)


def test_what_is_no_option_is_told_before_anything_is_sent() -> None:
    with pytest.raises(m.ConfigurationError, match=r"retry must be a RetryPolicy.*not 3"):
        MonoCloudSession("acme.eu.monocloud.com", KEY, retry=3)  # type: ignore[arg-type]
    with pytest.raises(m.ConfigurationError, match=r"client_session must be an aiohttp"):
        MonoCloudSession("acme.eu.monocloud.com", KEY, client_session="x")  # type: ignore[arg-type]
    with pytest.raises(m.ConfigurationError, match="not a tenant's host name") as caught:
        MonoCloudSession(KEY, "acme.eu.monocloud.com")  # the wrong way round
    assert KEY not in str(caught.value)
    session = MonoCloudSession("acme.eu.monocloud.com", KEY)
    with pytest.raises(m.ConfigurationError, match="retry must be"):
        session.bulk_enable(["ada"], retry=3)  # type: ignore[arg-type]
    with pytest.raises(m.ConfigurationError, match="journal must be a path or a Journal, not 3"):
        session.bulk_enable(["ada"], journal=3)  # type: ignore[arg-type]
    with pytest.raises(m.ConfigurationError, match="on_outcome must be a function"):
        session.bulk_enable(["ada"], on_outcome=3)  # type: ignore[arg-type]

    async def awaited(_: m.Outcome) -> None:
        raise AssertionError

    with pytest.raises(m.ConfigurationError, match="nobody awaits it"):
        session.bulk_enable(["ada"], on_outcome=awaited)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rate", [0, -1, float("nan"), float("inf"), "fast", pytest.param(10**400, id="huge")]
)
async def test_a_max_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(m.ConfigurationError, match="max_rate"):
        MonoCloudSession("acme.eu.monocloud.com", "k", max_rate=rate)
    async with MonoCloudSession("acme.eu.monocloud.com", "k") as session:
        with pytest.raises(m.ConfigurationError, match="max_rate"):
            session.bulk_enable(["u"], max_rate=rate)


def test_closing_ends_also_a_wait_that_would_begin_at_that_moment() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        later = http(b"", b"Retry-After: 20", status=429)
        async with RawServer(answering(later)) as server:
            for turns in range(100):  # the answer comes after some of them
                session = session_for(server.url, RetryPolicy())
                call = asyncio.ensure_future(session.enable_user("ada"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                began = loop.time()
                await session.close()
                await asyncio.wait([call])
                assert isinstance(call.exception(), m.MonoCloudError)
                assert loop.time() - began < 1

    run(main())


def test_closing_ends_every_wait_at_once() -> None:
    """In a pause of the tenant, and before another attempt; of a call, and of a run."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for answer in (
            http(b"", b"Retry-After: 20", status=429),
            http(b"", b"Retry-After: 20", status=503),
        ):
            for many in (False, True):
                async with RawServer(answering(answer)) as server:
                    session = session_for(server.url, RetryPolicy())
                    work: Awaitable[object] = (
                        session.bulk_enable(["ada", "bob"], concurrency=1)
                        if many
                        else session.enable_user("ada")
                    )
                    task = asyncio.ensure_future(work)
                    await asyncio.sleep(0.5)
                    assert not task.done()
                    began = loop.time()
                    await session.close()
                    await session.close()
                    await asyncio.wait([task])
                    assert loop.time() - began < 0.1
                    error = task.exception()
                    assert error is None or isinstance(error, m.MonoCloudError)

    run(main())
