"""The standard path, through `ClientSession`, and what both paths have of it."""

import asyncio
import errno
import re
import socket
from collections.abc import Callable
from typing import Any, cast

import aiohappyeyeballs
import aiohttp
import pytest
import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult
from aioresponses import aioresponses
from raw_server import Act, Peer, RawServer, answering, http
from virtual_time import run
from ways import Way, session_by

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector
from monocloud_async.endpoint import UserOperation
from monocloud_async.sandbox import Sandbox
from monocloud_async.transport.standard import read_body

KEY = "sentinel-key-4711"
ONCE = RetryPolicy(attempts=1)
ADA = http(b'{"user_id":"ada"}')
every_way = pytest.mark.parametrize("way", ["fast", "hooked", "lent", "theirs"])


@every_way
def test_connecting_may_take_nine_tenths_of_the_time_and_then_nothing_was_sent(way: Way) -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with RawServer(Peer.silence) as server:  # which never answers the TLS handshake
            url = server.url.replace("http:", "https:")
            async with session_by(way, url, KEY, timeout=7, retry=ONCE) as session:
                began = clock()
                with pytest.raises(m.RequestTimeoutError, match="no connection in time") as caught:
                    await session.enable_user("ada")
                assert clock() - began == pytest.approx(6.3, abs=0.05)  # not rounded to a second
        assert not caught.value.sent
        assert caught.value.transient

    run(main())


@every_way
def test_an_answer_may_take_all_of_the_time(way: Way) -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(9.7)
        await peer.send(ADA)

    async def main() -> None:
        async with (
            RawServer(act) as server,
            session_by(way, server.url, KEY, timeout=10, retry=ONCE) as session,
        ):
            assert (await session.enable_user("ada")).user_id == "ada"

    run(main())


@every_way
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_an_operation_is_sent_with_its_own_method(way: Way, method: str) -> None:
    operation = UserOperation(name="any", method=method)

    async def main() -> bytes:
        async with (
            RawServer(answering(ADA)) as server,
            session_by(way, server.url, KEY, retry=ONCE) as session,
        ):
            await session._http.send(operation, "ada", 10.0)
            return server.requests[0]

    assert run(main()).startswith(f"{method} /api/users/ada HTTP/1.1\r\n".encode())


CONNECTORS = pytest.mark.parametrize("kind", [Connector, aiohttp.TCPConnector])


@CONNECTORS
def test_behind_a_limit_a_connection_that_dies_as_it_is_reused_costs_nothing(
    kind: type[aiohttp.TCPConnector],
) -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(ADA)
        await peer.request()
        peer.reset()

    async def main() -> None:
        async with (
            RawServer(act) as server,
            aiohttp.ClientSession(connector=kind(limit=2)) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as session,
        ):
            users = await asyncio.gather(*(session.enable_user("ada") for _ in range(20)))
            assert [user.user_id for user in users] == ["ada"] * 20

    run(main())


@CONNECTORS
def test_behind_a_limit_an_answer_too_many_is_told_to_nobody(
    kind: type[aiohttp.TCPConnector],
) -> None:
    async def act(peer: Peer) -> None:
        while True:
            user_id = (await peer.request()).split(b"/")[3]
            answer = http(b'{"user_id":"%s"}' % user_id)
            await peer.send(answer[:-5])
            await asyncio.sleep(0.05)
            await peer.send(answer[-5:] + http(b"", status=404))

    async def main() -> None:
        async with (
            RawServer(act) as server,
            aiohttp.ClientSession(connector=kind(limit=1)) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as session,
        ):
            ids = [f"u{number}" for number in range(6)]
            users = await asyncio.gather(*map(session.enable_user, ids))
            assert [user.user_id for user in users] == ids

    run(main())


def slowly(seconds: float) -> Act:
    async def act(peer: Peer) -> None:
        while True:
            user_id = (await peer.request()).split(b"/")[3]
            await asyncio.sleep(seconds)
            await peer.send(http(b'{"user_id":"%s"}' % user_id))

    return act


@CONNECTORS
@pytest.mark.parametrize("seconds", [0.28, 0.4])
def test_that_all_connections_are_in_use_is_no_news_of_the_tenant(
    kind: type[aiohttp.TCPConnector], seconds: float
) -> None:
    """Nor is it, if a request got a connection when there was little time left for a response."""

    async def main() -> None:
        async with (
            RawServer(slowly(seconds)) as server,
            aiohttp.ClientSession(connector=kind(limit=6)) as client,
            MonoCloudSession(server.url, KEY, timeout=1, retry=ONCE, client_session=client) as ours,
        ):
            calls = (ours.enable_user(f"u{number}") for number in range(30))
            ended = await asyncio.gather(*calls, return_exceptions=True)
            errors = [error for error in ended if isinstance(error, m.RequestTimeoutError)]
            assert errors
            for error in errors:
                assert "the client_session had no free connection" in str(error)
                assert "Raise the limit of its connector" in str(error)
                assert error.local
            assert any(not error.sent for error in errors)
            assert not ours.pace.down
            assert (await ours.enable_user("later")).user_id == "later"

    run(main())


@CONNECTORS
@pytest.mark.parametrize("options", [{"limit": 2}, {"limit": 0, "limit_per_host": 2}])
def test_that_others_use_all_connections_is_no_news_of_the_tenant_either(
    kind: type[aiohttp.TCPConnector], options: dict[str, Any]
) -> None:
    async def main() -> None:
        async with (
            RawServer(slowly(5)) as server,
            aiohttp.ClientSession(connector=kind(**options)) as client,
            MonoCloudSession(server.url, KEY, timeout=1, retry=ONCE, client_session=client) as ours,
        ):
            others = [asyncio.ensure_future(client.get(f"{server.url}/a/b/c")) for _ in range(2)]
            await asyncio.sleep(0.1)
            for number in range(3):
                users = [f"u{number}", f"v{number}"]
                for error in await asyncio.gather(
                    *map(ours.enable_user, users), return_exceptions=True
                ):
                    assert isinstance(error, m.RequestTimeoutError)
                    assert (error.local, error.sent) == (True, False)
            assert not ours.pace.down
            for response in await asyncio.gather(*others):
                response.close()

    run(main())


def test_that_connections_are_limited_is_no_excuse_for_a_tenant_that_hangs() -> None:
    async def main() -> None:
        async with (
            RawServer(Peer.silence) as server,
            aiohttp.ClientSession(connector=Connector(limit=5)) as client,
            MonoCloudSession(server.url, KEY, timeout=1, retry=ONCE, client_session=client) as ours,
        ):
            calls = (ours.enable_user(f"u{number}") for number in range(5))
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, m.RequestTimeoutError)
                assert not error.local
            assert ours.pace.down

    run(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_that_a_middleware_gives_up_is_no_news_of_the_tenant(when: str) -> None:
    async def impatient(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        async with asyncio.timeout(2):
            if when == "after":
                await handler(request)
            await asyncio.sleep(60)  # for a token, for example
        raise AssertionError

    async def main() -> None:
        async with (
            RawServer(answering(ADA)) as server,
            aiohttp.ClientSession(middlewares=[impatient]) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as ours,
        ):
            calls = (ours.enable_user("ada") for _ in range(10))
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, m.RequestTimeoutError)
                assert "the client_session gave up by itself, before 10 s were over" in str(error)
                assert "time limits in its middlewares" in str(error)
                assert (error.local, error.sent) == (True, True)
            assert not ours.pace.down

    run(main())


async def renaming(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except asyncio.CancelledError:
        raise TimeoutError from None


def test_that_the_tenant_hangs_is_news_of_it_also_under_a_middleware() -> None:
    async def main() -> None:
        async with (
            RawServer(Peer.silence) as server,
            aiohttp.ClientSession(middlewares=[renaming]) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as ours,
        ):
            with pytest.raises(m.RequestTimeoutError, match="no complete answer") as caught:
                await ours.enable_user("ada")
            assert not caught.value.local

    run(main())


def test_that_the_tenant_hangs_is_news_of_it_also_where_timers_are_rounded() -> None:
    async def main() -> None:
        async with (
            RawServer(Peer.silence) as server,
            aiohttp.ClientSession(middlewares=[renaming]) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as ours,
        ):
            calls = (ours.enable_user("ada", timeout=0.1 + 0.0137 * n) for n in range(20))
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, m.RequestTimeoutError)
                assert not error.local

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_timeout_of_a_mock_is_the_tenant_s() -> None:
    with aioresponses() as mocked:
        mocked.post(re.compile(".*"), exception=TimeoutError(), repeat=True)
        async with MonoCloudSession("http://127.0.0.1:9", KEY, retry=ONCE) as session:
            for number in range(5):
                with pytest.raises(m.RequestTimeoutError, match="no complete answer") as caught:
                    await session.enable_user(f"user-{number}")
                assert not caught.value.local
            assert session.pace.down


class Body:
    """The content of a response, in chunks that each are in memory only once they are asked for."""

    def __init__(self, *chunks: bytes) -> None:
        self.left = list(chunks)

    async def readany(self) -> bytes:
        return self.left.pop(0) if self.left else b""


async def test_of_a_body_that_is_too_long_no_more_is_read_than_tells_it() -> None:
    content = Body(*[b"1234"] * 9)
    told = await read_body(cast("aiohttp.StreamReader", content), 200, 8)
    assert told == (b"1234" * 3, False)
    assert len(content.left) == 6


@pytest.mark.parametrize("more", [0, 1])
async def test_whether_a_body_is_whole_is_known_to_the_byte(more: int) -> None:
    content = Body(*filter(None, (b"12345678", b"9" * more)))
    told = await read_body(cast("aiohttp.StreamReader", content), 200, 8)
    assert told == (b"12345678" + b"9" * more, not more)


def allow_connections(
    number: int, monkeypatch: pytest.MonkeyPatch, refused: asyncio.Event | None = None
) -> None:
    """Let this machine have no file descriptor for more connections than these."""
    connect, made = aiohappyeyeballs.start_connection, 0

    async def limited(*args: Any, **options: Any) -> socket.socket:
        nonlocal made
        if made == number:
            if refused is not None:
                refused.set()
            raise OSError(errno.EMFILE, "Too many open files")
        made += 1
        return await connect(*args, **options)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", limited)


@every_way
async def test_where_this_machine_allows_no_more_connections_requests_share_those_there_are(
    way: Way, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_connections(3, monkeypatch)
    ids = sandbox.user_ids()
    async with session_by(way, sandbox.url, sandbox.api_key, retry=ONCE) as session:
        users = await asyncio.gather(*map(session.enable_user, ids))
        report = await session.bulk_enable(ids)
    assert [user.user_id for user in users] == ids
    assert (report.enabled, report.requests, report.retries) == (len(ids), len(ids), 0)
    assert sandbox.stats().connections == 3


@every_way
async def test_that_this_machine_allows_no_connections_is_no_news_of_the_tenant(
    way: Way, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_connections(0, monkeypatch)
    ids = sandbox.user_ids()
    async with session_by(way, sandbox.url, sandbox.api_key, retry=ONCE) as session:
        calls = map(session.enable_user, ids)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        report = await session.bulk_enable(ids)
        assert not session.pace.down
    for error in (*errors, *(outcome.error for outcome in report.failures)):
        assert isinstance(error, m.TransportError)
        assert (error.local, error.sent, error.transient) == (True, False, True)
        assert "could make no more connections: Too many open files. Raise" in str(error)
    assert report.failed == len(ids)


@every_way
def test_who_waits_in_vain_for_another_ones_connection_has_sent_nothing(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.silence()

    async def main() -> None:
        allow_connections(1, monkeypatch)
        async with (
            RawServer(act) as server,
            session_by(way, server.url, KEY, timeout=10, retry=ONCE) as session,
        ):
            calls = session.enable_user("ada"), session.enable_user("bob")
            hung, waited = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(hung, m.RequestTimeoutError)
        assert (hung.local, hung.sent) == (False, True)
        assert isinstance(waited, m.TransportError)
        assert (waited.local, waited.sent) == (True, False)

    run(main())


@every_way
async def test_who_waits_for_another_ones_connection_when_the_session_is_closed_has_sent_nothing(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.silence()

    refused = asyncio.Event()
    allow_connections(1, monkeypatch, refused)
    async with RawServer(act) as server, session_by(way, server.url, KEY, retry=ONCE) as session:
        calls = [asyncio.ensure_future(session.enable_user(each)) for each in ("ada", "bob")]
        await refused.wait()
        while not server.requests:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.001)
        await session.close()
        sent, unsent = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(sent, m.TransportError)
    assert sent.sent
    assert isinstance(unsent, m.ConfigurationError)
    assert (unsent.refusal, unsent.attempts) == ("closed", 0)


@pytest.mark.parametrize("kind", [Connector, aiohttp.TCPConnector])
async def test_who_gets_a_connection_of_the_lent_client_in_the_moment_of_the_close_has_sent_nothing(
    sandbox: Sandbox, kind: type[aiohttp.TCPConnector]
) -> None:
    async with (
        aiohttp.ClientSession(connector=kind(limit=1)) as client,
        MonoCloudSession(
            sandbox.url, sandbox.api_key, retry=ONCE, client_session=client
        ) as session,
    ):

        async def call_and_close() -> None:
            await session.get_user(sandbox.user_ids()[0])
            await session.close()

        calls = call_and_close(), session.get_user(sandbox.user_ids()[1])
        _, unsent = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(unsent, m.ConfigurationError)
    assert (unsent.refusal, unsent.attempts) == ("closed", 0)
    assert sandbox.stats().requests == 1


async def of_a_middleware(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    await response.read()
    return response


async def of_a_trace(
    _client: object, _context: object, params: aiohttp.TraceRequestEndParams
) -> None:
    await params.response.text()


def reading(reader: Callable[..., Any]) -> aiohttp.ClientSession:
    """Return a client that reads every body before the caller can."""
    if reader is of_a_middleware:
        return aiohttp.ClientSession(connector=Connector(), middlewares=[of_a_middleware])
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(of_a_trace)
    return aiohttp.ClientSession(connector=Connector(), trace_configs=[trace])


@pytest.mark.parametrize("reader", [of_a_middleware, of_a_trace])
async def test_a_body_that_the_lent_client_has_read_is_read_all_the_same(
    reader: Callable[..., Any], sandbox: Sandbox
) -> None:
    async with reading(reader) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client)
        ids = sandbox.user_ids()
        assert (await session.enable_user(ids[0])).user_id == ids[0]
        assert (await session.bulk_enable(ids)).enabled == len(ids)
        with pytest.raises(m.NotFoundError, match="The user was not found") as caught:
            await session.enable_user("nobody")
        assert caught.value.trace_id is not None


@pytest.mark.parametrize("reader", [of_a_middleware, of_a_trace])
async def test_a_body_that_the_lent_client_has_read_may_be_too_long(
    reader: Callable[..., Any],
) -> None:
    long = http(b'{"user_id":"ada","picture":"%s"}' % (b"x" * (6 << 20)))
    async with RawServer(answering(long)) as server, reading(reader) as client:
        session = MonoCloudSession(server.url, KEY, client_session=client, retry=ONCE)
        with pytest.raises(m.InvalidResponseError, match="longer than 262144 bytes"):
            await session.enable_user("ada")


class Hanging(AbstractResolver):
    """Name servers that do not answer."""

    async def resolve(self, *_: object, **_options: object) -> list[ResolveResult]:
        answer: asyncio.Future[list[ResolveResult]] = asyncio.get_running_loop().create_future()
        return await answer

    async def close(self) -> None:
        pass


@CONNECTORS
def test_who_waited_for_a_free_connection_and_then_got_none_has_sent_nothing(
    kind: type[aiohttp.TCPConnector],
) -> None:
    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=kind(limit=1, resolver=Hanging())) as client,
            MonoCloudSession("a.invalid", KEY, retry=ONCE, client_session=client) as session,
        ):
            ended = await asyncio.gather(
                session.enable_user("ada", timeout=2),
                session.enable_user("bob", timeout=5),
                return_exceptions=True,
            )
        for error in ended:
            assert isinstance(error, m.RequestTimeoutError)
            assert not error.sent

    run(main(), sockets=False)
