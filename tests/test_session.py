import asyncio
import gzip
import os
import random
import re
import socket
from collections.abc import Awaitable, Iterator
from enum import Enum
from pathlib import Path
from socket import AF_INET, AF_INET6, AddressFamily
from urllib.parse import unquote

import aiohttp
import pytest
import samples
from aiohttp import web
from conftest import QUICK
from raw_server import RawServer, answering, http
from tenant_in_memory import Tenant, users
from tenants import Bucket
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox

NEVER = RetryPolicy(attempts=1)
KEY = "sentinel-key-4711"


def session_for(
    url: str, retry: RetryPolicy = NEVER, timeout: float | None = None
) -> MonoCloudSession:
    return MonoCloudSession(url, KEY, retry=retry, timeout=timeout)


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


async def test_a_flaky_tenant_is_asked_again(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, 503, "reset", "cut", 200)
    assert (await session.enable_user(user_id)).disabled is False
    assert sandbox.stats().requests == 4


async def test_the_retry_policy_of_a_call_wins(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, 503, 200)
    with pytest.raises(m.ServerError):
        await session.enable_user(user_id, retry=NEVER)
    assert sandbox.stats().requests == 1


def test_a_hanging_tenant_ends_in_a_timeout_after_all_attempts() -> None:
    async def main() -> None:
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(), timeout=3.0) as session,
        ):
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError, match="within 3 s") as caught:
                await session.enable_user("u")
            assert asyncio.get_running_loop().time() - began >= 12
            assert (caught.value.attempts, len(server.requests)) == (4, 4)
            assert caught.value.sent
            await asyncio.sleep(0.3)  # aiohttp would round the deadline up to a whole second
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError, match="within 7 s"):
                await session.enable_user("u", timeout=7.0, retry=NEVER)
            assert asyncio.get_running_loop().time() - began < 7.01

    run(main())


def test_no_attempt_outlives_the_total_time() -> None:
    async def main() -> None:
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(total=25)) as session,
        ):
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError):
                await session.enable_user("u")
            assert asyncio.get_running_loop().time() - began <= 25.1

    run(main())


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


def test_a_pause_that_ends_when_the_time_does_hangs_nobody() -> None:
    """Aiohttp treats an expired timeout as no timeout."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(attempts=1, total=10)) as session,
        ):
            session.pace.refused(session.pace.send(clock()), 9.9, clock())
            async with asyncio.timeout(60):
                calls = [session.enable_user("u") for _ in range(100)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
            assert clock() < 10.1
        assert {type(error) for error in ended} <= {m.RequestTimeoutError, m.RateLimitedError}
        assert len(server.requests) < 5  # after the pause, one goes ahead

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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    async with RawServer(answering(http(samples.user("u")))) as thief:
        answer = http(b"", f"Location: {thief.url}/api/users/u/enable".encode(), status=status)
        async with RawServer(answering(answer)) as server, session_for(server.url) as session:
            with pytest.raises(m.InvalidResponseError, match=f"redirect .{status}.") as caught:
                await session.enable_user("u")
    assert caught.value.foreign
    assert thief.requests == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection_was_never_sent() -> None:
    async with session_for(f"http://127.0.0.1:{free_port()}") as session:
        with pytest.raises(m.TransportError, match="could not connect") as caught:
            await session.enable_user("u")
    assert not caught.value.sent
    assert caught.value.transient


async def test_a_name_that_does_not_exist_was_never_sent() -> None:
    async with session_for("no-such-tenant.invalid") as session:
        with pytest.raises(m.TransportError, match="host name") as caught:
            await session.enable_user("u")
    assert not caught.value.sent


async def test_refusals_are_read_so_that_the_connection_is_kept(sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER) as session:
        for step in (200, 404, 503, 429, "422:keyed"):
            user_id = sandbox.user_ids()[0]
            sandbox.script(user_id, step)
            if step == 200:
                await session.enable_user(user_id)
            else:
                with pytest.raises(m.StatusError):
                    await session.enable_user(user_id)
    assert sandbox.stats().connections == 1


async def test_a_borrowed_client_session_is_used_and_stays_open(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession(headers={"X-Trace": "1"}, raise_for_status=True) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER, client_session=client)
        async with session:
            await session.enable_user(sandbox.user_ids()[0])
            with pytest.raises(m.NotFoundError):  # its raise_for_status would raise aiohttp's own
                await session.enable_user("nobody")
        assert not client.closed


async def test_a_borrowed_client_session_that_leaves_bodies_packed_unpacks_the_session_s() -> None:
    packed = http(gzip.compress(b'{"user_id":"ada"}'), b"Content-Encoding: gzip")
    async with (
        RawServer(answering(packed)) as server,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        session = MonoCloudSession(server.url, KEY, retry=NEVER, client_session=client)
        assert (await session.enable_user("ada")).user_id == "ada"
        assert (await session.bulk_enable(["ada"])).enabled == 1


BAD_PROXIES = [
    *("http://eve:hunter2@a..b:9", "eve:hunter2@127.0.0.1:9", "socks5://eve:hunter2@p:9"),
    *("http://eve:hunter2@[x", "http://eve:hunter2@p:x", "http://eve:hunter2@p:99999"),
    *("http://eve:hun#ter2@p:9", "http://eve:12/hunter2@p:9", "http://eve:hunter2@p q:9"),
    *("http://eve:hunter2@:9", "http://eve:hunter2@p:0", "http://eve:hunter2@1.2.3.4.5:9"),
    *("http://eve%3a:hunter2@p:9", "http://eve:hunter2\u20ac@p:9"),
]
BAD = "(must be|has a user or a password that cannot be sent)"


@pytest.mark.parametrize("proxy", BAD_PROXIES)
async def test_a_borrowed_client_session_with_a_malformed_proxy_says_so(proxy: str) -> None:
    async with aiohttp.ClientSession(proxy=proxy) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(
            m.ConfigurationError, match=f"the proxy of the client_session {BAD}"
        ) as caught:
            await session.enable_user("u")
    assert not {"hunter2", "hun"} & set(re.findall("[a-z0-9]+", str(caught.value)))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("proxy", BAD_PROXIES)
async def test_a_malformed_proxy_of_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, proxy: str, name: str
) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv(name, proxy)
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.ConfigurationError, match=f"{name} {BAD}") as caught:
            await session.enable_user("u")
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        with pytest.raises(m.RunStoppedError, match=f"{name} {BAD}"):
            await session.bulk_enable(["u", "v"])


async def test_a_malformed_proxy_that_aiohttp_reads_along_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WS_PROXY", "http://[x")
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.ConfigurationError, match="WS_PROXY must be"):
            await session.enable_user("u")


@pytest.mark.parametrize("way", ["its own", "HTTP_PROXY", "http_proxy", "HTTP_PROXY, set later"])
async def test_the_key_goes_to_no_proxy_in_clear(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with RawServer(answering(http(b"", status=407))) as proxy:
        own = proxy.url if way == "its own" else None
        async with aiohttp.ClientSession(proxy=own, trust_env=True) as client:
            session = MonoCloudSession(
                sandbox.url, sandbox.api_key, client_session=client, retry=NEVER
            )
            if "later" in way:
                await session.enable_user(sandbox.user_ids()[0])
            if own is None:
                monkeypatch.setenv(way.partition(",")[0], proxy.url)
            with pytest.raises(m.ConfigurationError, match="the API key in clear text"):
                await session.enable_user(sandbox.user_ids()[0])
            with pytest.raises(m.RunStoppedError, match="the API key in clear text"):
                await session.bulk_enable(sandbox.user_ids())
            if own is None:
                monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
                assert await session.enable_user(sandbox.user_ids()[0])
        assert proxy.requests == []


@pytest.mark.parametrize(("host", "family"), [("[::1]", AF_INET), ("127.0.0.1", AF_INET6)])
async def test_a_borrowed_connector_of_another_family_says_so(
    host: str, family: AddressFamily
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(family=family)) as client:
        session = MonoCloudSession(f"http://{host}:9", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.MonoCloudError):
            await session.enable_user("u")
        with pytest.raises(m.RunStoppedError) as caught:
            await session.bulk_enable(["u", "v"], max_outage=0.1)
        assert caught.value.report.enabled == 0


async def test_a_host_that_is_not_found_is_named_be_it_the_proxys() -> None:
    async with aiohttp.ClientSession(proxy="http://proxy.invalid:9") as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.TransportError, match=r"the host name proxy\.invalid could not"):
            await session.enable_user("u")


def test_a_borrowed_client_session_of_another_loop_says_so() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(client: aiohttp.ClientSession) -> None:
        session = MonoCloudSession("http://127.0.0.1:9", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.MonoCloudError) as caught:
            await session.enable_user("u")
        assert caught.value.__context__ is None
        with pytest.raises(m.RunStoppedError):
            await session.bulk_enable(["u", "v"])

    with asyncio.Runner() as first, asyncio.Runner() as second:
        client = first.run(make())
        second.run(use(client))
        first.run(client.close())


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


async def test_a_closed_session_says_so(sandbox: Sandbox) -> None:
    session = session_for(sandbox.url)
    await session.close()
    await session.close()
    assert "closed" in repr(session)
    with pytest.raises(m.ConfigurationError, match="closed"):
        await session.enable_user("u")
    client = aiohttp.ClientSession()
    await client.close()
    borrower = MonoCloudSession(sandbox.url, KEY, client_session=client)
    with pytest.raises(m.ConfigurationError, match="borrowed"):
        await borrower.enable_user("u")


def test_a_session_of_another_event_loop_says_so() -> None:
    session = session_for(f"http://127.0.0.1:{free_port()}")

    async def call() -> None:
        with pytest.raises(m.TransportError):
            await session.enable_user("u")

    async def call_again() -> None:
        with pytest.raises(m.ConfigurationError, match="another event loop"):
            await session.enable_user("u")
        with pytest.raises(m.ConfigurationError, match="another event loop"):
            session.bulk_enable(["u"])
        await session.close()

    asyncio.run(call())
    asyncio.run(call_again())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about threads and forks
def test_a_session_of_another_process_says_so_and_leaves_its_connections_alone() -> None:
    async def use() -> str:
        said = []
        for call in (
            session.enable_user,
            session.get_user,
            lambda user: session.bulk_enable([user]),
        ):
            try:
                await call(user)
            except m.ConfigurationError as error:
                said.append(str(error))
        await session.close()
        return "\n".join(said)

    with Sandbox(users=2) as sandbox, asyncio.Runner() as runner:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER)
        user = sandbox.user_ids()[0]
        runner.run(session.enable_user(user))
        theirs, ours = os.pipe()
        if os.fork() == 0:  # pragma: no cover  another process, with a copy of the event loop
            try:
                os.write(ours, runner.run(use()).encode())
            finally:
                os._exit(0)
        os.close(ours)
        with os.fdopen(theirs) as told:
            lines = told.read().splitlines()
        os.wait()
        assert len(lines) == 3
        assert all("belongs to another process; open one here" in line for line in lines)
        runner.run(session.enable_user(user))
        runner.run(session.close())
        assert sandbox.stats().requests == 2


@pytest.mark.parametrize("what", ["call", "run", "outcomes", "list"])
def test_without_asyncio_a_session_says_what_it_needs(what: str) -> None:
    session = session_for("http://127.0.0.1:1")

    async def use() -> None:
        match what:
            case "call":
                await session.enable_user("u")
            case "run":
                await session.bulk_enable(["u"])
            case "outcomes":
                async with session.bulk_enable(["u"]):
                    pass
            case _:
                await anext(aiter(session.list_users()))

    with pytest.raises(m.ConfigurationError, match="needs a running event loop of asyncio"):
        use().send(None)  # as trio does


async def test_numbers_that_no_float_can_hold_are_refused() -> None:
    for huge in (10**400, 10**5000):
        with pytest.raises(m.ConfigurationError, match="burst"):
            MonoCloudSession("acme.eu.monocloud.com", KEY, burst=huge)
        with pytest.raises(m.ConfigurationError, match="timeout"):
            MonoCloudSession("acme.eu.monocloud.com", KEY, timeout=huge)
        with pytest.raises(m.ConfigurationError, match=r"drain must be .* not one that large"):
            await MonoCloudSession("acme.eu.monocloud.com", KEY).close(drain=huge)


async def test_many_calls_at_once_do_not_queue_for_connections() -> None:
    arrived = 0
    everyone = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal arrived
        arrived += 1
        if arrived == 150:
            everyone.set()
        await everyone.wait()  # no response before all requests have arrived
        return web.Response(body=samples.user(request.match_info["id"]))

    app = web.Application()
    app.router.add_post("/api/users/{id}/enable", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    try:
        async with session_for(f"http://127.0.0.1:{port}") as session:
            users = await asyncio.gather(*[session.enable_user(f"u{i}") for i in range(150)])
        assert len({user.user_id for user in users}) == 150
    finally:
        await runner.cleanup()


def _steps() -> Iterator[int]:
    yield from range(60)


async def test_cancellation_at_any_await_leaves_nothing_behind(sandbox: Sandbox) -> None:
    """Each round lets the call run one more iteration of the event loop, then cancels it."""
    sandbox.latency = 0.01
    finished = 0
    before = asyncio.all_tasks()
    for turns in _steps():
        async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
            sandbox.script(user_id := sandbox.user_ids()[0], 503)
            task = asyncio.create_task(session.enable_user(user_id))
            for _ in range(turns):
                await asyncio.sleep(0.0 if turns < 40 else 0.002)
            task.cancel()
            try:
                await task
                finished += 1
            except asyncio.CancelledError:
                pass
            if session._http._standard is not None:  # no public way to see it
                fast, connector = session._http._fast, session._http._standard._client.connector
                kept = fast._idle if fast is not None else []
                assert connector is not None
                assert connector._acquired == {protocol for _, protocol in kept}
        assert {t for t in asyncio.all_tasks() - before if "session" in repr(t)} == set()
    assert 0 < finished < 60


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


async def test_a_retry_that_is_no_policy_is_told_before_anything_is_sent() -> None:
    async with MonoCloudSession("acme.eu.monocloud.com", KEY) as session:
        with pytest.raises(m.ConfigurationError, match="retry must be"):
            await session.enable_user("ada", retry=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rate", [0, -1, float("nan"), float("inf"), "fast", pytest.param(10**400, id="huge")]
)
async def test_a_max_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(m.ConfigurationError, match="max_rate"):
        MonoCloudSession("acme.eu.monocloud.com", "k", max_rate=rate)
    async with MonoCloudSession("acme.eu.monocloud.com", "k") as session:
        with pytest.raises(m.ConfigurationError, match="max_rate"):
            session.bulk_enable(["u"], max_rate=rate)


def test_a_call_that_was_sent_once_does_not_say_that_nothing_was_sent() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        async with tenant.session() as session:
            results = await asyncio.gather(
                *map(session.enable_user, users(5)), return_exceptions=True
            )
            sent_once = [error for error in results if "not sent again" in str(error)]
            assert sent_once
            for error in sent_once:
                assert isinstance(error, m.MonoCloudError)
                assert (error.attempts, error.refusal) == (1, "down")
            with pytest.raises(m.ServerError, match="nothing was sent") as caught:
                await session.enable_user("ada")
            assert caught.value.attempts == 0

    run(main(), sockets=False)


def test_attempts_are_the_requests_that_were_sent_with_those_answered_429() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(1, 1))
        tenant.retry_after = 5
        async with tenant.session() as session:
            await session.enable_user("ada")
            with pytest.raises(m.RateLimitedError, match="not sent again") as caught:
                await session.enable_user("bob", retry=RetryPolicy(total=2))
            assert (caught.value.attempts, caught.value.refusal) == (1, "pause")
            with pytest.raises(m.RateLimitedError, match="nothing was sent") as caught:
                await session.enable_user("cy", retry=RetryPolicy(total=2))
            assert (caught.value.attempts, caught.value.refusal) == (0, "pause")
        tenant = Tenant(Bucket(0.1, 1))
        tenant.retry_after = 1
        tenant.failing = lambda user_id: len(tenant.sent) == 2  # only bob's first request
        async with tenant.session() as session:
            await session.enable_user("ada")
            with pytest.raises(m.RateLimitedError) as caught:
                await session.enable_user("bob", retry=RetryPolicy(total=6, max_retry_after=9))
            sent = [user_id for _, user_id in tenant.sent].count("bob")
            assert caught.value.attempts == sent > 2

    run(main(), sockets=False)


def test_a_call_that_waits_when_the_session_is_closed_sent_nothing() -> None:
    async def main() -> None:
        session = Tenant().session(0.1)
        await session.enable_user("ada")
        waiting = asyncio.create_task(session.enable_user("bob"))
        await asyncio.sleep(1)
        await session.close()
        with pytest.raises(m.ConfigurationError) as caught:
            await waiting
        assert (caught.value.attempts, caught.value.refusal) == (0, "closed")

    run(main(), sockets=False)


def test_single_calls_do_not_multiply_the_load_of_a_broken_tenant() -> None:
    """While it is down, only probes are sent; a call that is not sent says so."""

    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        unsent = 0
        async with tenant.session() as session:
            for user_id in users(200):
                with pytest.raises(m.MonoCloudError) as caught:
                    await session.enable_user(user_id)
                unsent += "nothing was sent" in str(caught.value)
            assert len(tenant.sent) < 40
            assert unsent > 150
            tenant.down = (0, 0)
            for user_id in users(28):
                await session.enable_user(user_id, retry=RetryPolicy(wait_if_down=True))
            assert not session.pace.down

    run(main(), sockets=False)


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


def test_a_call_whose_first_request_was_lost_was_sent_whatever_became_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits in an outage, and in the end the session is closed."""
    lost, refused = m.TransportError("reset"), m.TransportError("refused", sent=False)
    to_raise = [*[refused] * 5, lost, *[refused] * 9]

    async def send(*_arguments: object) -> None:
        raise to_raise.pop(0)

    async def main() -> None:
        session = session_for("http://127.0.0.1:9")
        monkeypatch.setattr(session._http, "send", send)
        for user_id in users(5):
            with pytest.raises(m.TransportError):
                await session.enable_user(user_id)
        assert session.pace.down
        patient = RetryPolicy(wait_if_down=True)
        call = asyncio.ensure_future(session.enable_user("ada", retry=patient))
        await asyncio.sleep(5)
        assert len(to_raise) < 9  # it was sent more than once
        await session.close()
        with pytest.raises(m.TransportError, match="refused") as caught:
            await call
        assert caught.value.sent

    run(main(), sockets=False)


def test_retries_of_single_calls_are_a_fifth_of_the_requests_and_an_error_says_so() -> None:
    async def main() -> None:
        tenant, seeded = Tenant(), random.Random(1)
        tenant.failing = lambda _user_id: seeded.random() < 0.4
        async with tenant.session() as session:
            calls = []
            for user_id in users(2000):
                calls.append(asyncio.ensure_future(session.enable_user(user_id)))
                await asyncio.sleep(0.01)
            ended = await asyncio.gather(*calls, return_exceptions=True)
        errors = [str(error) for error in ended if isinstance(error, m.ServerError)]
        assert 2300 < len(tenant.sent) < 1.21 * 2000 + 10
        assert any("not tried again: the session's retry budget is spent" in e for e in errors)

    run(main(), sockets=False)


async def test_a_timeout_after_retries_tells_how_long_the_whole_call_took(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, "hang", "hang", "hang")
    retry = RetryPolicy(attempts=3, wait_initial=0.001)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, timeout=0.1, retry=retry) as session:
        with pytest.raises(m.RequestTimeoutError) as caught:
            await session.enable_user(user_id)
        told = re.search(r"within 0\.1 s; ([\d.]+) s in all \(3 attempts\)", str(caught.value))
        assert told is not None
        assert float(told[1]) >= 0.3
        sandbox.script(user_id, "hang")
        with pytest.raises(m.RequestTimeoutError) as caught:
            await session.enable_user(user_id, retry=NEVER)
    assert "in all" not in str(caught.value)
