"""A `Connector` of one's own, under a borrowed `ClientSession`."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import QUICK
from raw_server import Peer, RawServer, answering, http
from virtual_time import run
from ways import Way, session_by

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import MAX_HEADERS, Connector, is_informational
from monocloud_async.sandbox import Sandbox

ONCE = RetryPolicy(attempts=1)
ADA = http(b'{"user_id":"ada"}')


async def test_it_has_as_many_connections_as_there_are_calls_unless_it_is_told() -> None:
    assert Connector().limit == 0
    assert Connector(limit=7).limit == 7


async def test_its_connections_are_used_again(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession(connector=Connector()) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client)
        for user_id in sandbox.user_ids():
            await session.enable_user(user_id)
    assert sandbox.stats().connections == 1


async def test_it_serves_other_requests_as_any_other_connector() -> None:
    async def act(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.send(http(b"x" * 100_000, b"X-Big: " + b"y" * 5000))

    async with (
        RawServer(act) as server,
        aiohttp.ClientSession(connector=Connector()) as client,
    ):
        for _ in range(2):
            async with client.get(server.url) as response:
                assert len(await response.read()) == 100_000
        assert server.connections == 1


async def test_what_else_the_application_downloads_may_have_any_size() -> None:
    body = b"x" * (6 << 20)
    async with (
        RawServer(answering(http(body))) as server,
        aiohttp.ClientSession(connector=Connector()) as client,
        client.get(server.url) as response,
    ):
        assert await response.read() == body


async def test_a_websocket_of_the_application_may_receive_any_amount() -> None:
    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for _ in range(6):
            await socket.send_bytes(b"x" * (1 << 20))
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession(connector=Connector()) as client,
        client.ws_connect(server.make_url("/")) as socket,
    ):
        sizes = [len(message.data) async for message in socket]
    assert (sum(sizes), socket.close_code) == (6 << 20, 1000)


async def test_what_a_server_says_unasked_is_nobodys_answer() -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(ADA + http(b"{}", status=404))
        await peer.request()
        await peer.send(http(b"{}", status=500))

    async with (
        RawServer(act) as server,
        aiohttp.ClientSession(connector=Connector()) as client,
    ):
        session = MonoCloudSession(server.url, "k", client_session=client, retry=QUICK)
        for _ in range(3):
            assert (await session.enable_user("ada")).user_id == "ada"
        assert server.connections == 3


@pytest.mark.parametrize(
    "hook", ["on_request_start", "on_connection_reuseconn", "on_request_headers_sent"]
)
@pytest.mark.parametrize("ends", [False, True])
async def test_what_comes_while_a_trace_waits_is_nobodys_answer(
    hook: str,
    ends: bool,  # noqa: FBT001  a table
) -> None:
    """The connection may be taken for a request by then, but nothing of it was written."""
    asked, spoken = asyncio.Event(), asyncio.Event()

    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(ADA)
        if server.connections == 1:
            await asked.wait()
            if ends:
                peer.drop()
            else:
                await peer.send(http(b"{}", status=404))
            spoken.set()
            await peer.silence()

    async def wait(*_what: object) -> None:
        if server.requests:
            asked.set()
            await spoken.wait()

    trace = aiohttp.TraceConfig()
    getattr(trace, hook).append(wait)
    server = RawServer(act)
    async with (
        server,
        aiohttp.ClientSession(connector=Connector(), trace_configs=[trace]) as client,
    ):
        session = MonoCloudSession(server.url, "k", client_session=client, retry=ONCE)
        for _ in range(2):
            assert (await session.enable_user("ada")).user_id == "ada"
        assert (server.connections, len(server.requests)) == (2, 2)


REFUSED = http(b'{"title":"for ada"}', status=404)
BEHIND = {
    "a comment": b"<!-- gateway 7 -->\n",
    "a zero": b"\0",
    "half a response": ADA[:20],
    "a response": REFUSED,
    "long headers": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
}
BODY = b'{"user_id":"ada"}'
ENDS = {
    "by its length": ADA,
    "and closes": http(BODY, b"Connection: close"),
    "in HTTP/1.0": ADA.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "in chunks": http(b"11\r\n%s\r\n0\r\n\r\n" % BODY, b"Transfer-Encoding: chunked", length=False),
    "after hints": http(b"", status=103, length=False) + ADA,
}


@pytest.mark.parametrize("way", ["fast", "hooked", "lent"])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("answer", ENDS)
async def test_what_is_behind_an_answer_in_one_segment_ends_the_connection_and_no_more(
    way: Way, answer: str, behind: str
) -> None:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDS[answer] + BEHIND[behind])
        await peer.silence()

    async with (
        RawServer(act) as server,
        session_by(way, server.url, "k", retry=ONCE) as session,
    ):
        for _ in range(3):
            assert (await session.enable_user("ada")).user_id == "ada"
        assert (server.connections, len(server.requests)) == (3, 3)


@pytest.mark.parametrize("way", ["fast", "hooked", "lent"])
async def test_a_refusal_with_something_behind_it_is_a_refusal(way: Way) -> None:
    async with (
        RawServer(answering(REFUSED + b"\0")) as server,
        session_by(way, server.url, "k", retry=ONCE) as session,
    ):
        for _ in range(2):
            with pytest.raises(m.NotFoundError, match="for ada"):
                await session.enable_user("ada")
        assert server.connections == 2


@pytest.mark.parametrize("way", ["fast", "hooked", "lent"])
def test_a_body_that_cannot_be_read_to_its_end_is_told_at_once(way: Way) -> None:
    bad = http(b"5\r\n12345\r\nzz\r\n", b"Transfer-Encoding: chunked", length=False)

    async def main() -> None:
        async with (
            RawServer(answering(bad + b"Content-Length")) as server,
            session_by(way, server.url, "k", retry=ONCE) as session,
        ):
            with pytest.raises(m.TransportError, match="cut short"):
                await session.enable_user("ada")
            assert asyncio.get_running_loop().time() < 1

    run(main())


@pytest.mark.parametrize(
    ("status", "more_follows"), [(100, True), (103, True), (101, False), (200, False), (404, False)]
)
def test_after_an_informational_answer_another_one_follows(
    status: int,
    more_follows: bool,  # noqa: FBT001  a table
) -> None:
    assert is_informational(status) is more_follows


def test_64_kib_of_headers_are_read() -> None:
    assert MAX_HEADERS == 65536


async def test_names_are_looked_up_by_the_system_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiohttp.connector.DefaultResolver", None)  # aiodns would replace it
    connector = Connector()
    assert isinstance(connector._resolver, aiohttp.ThreadedResolver)
    await connector.close()
