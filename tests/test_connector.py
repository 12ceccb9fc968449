"""A `Connector` of one's own, under a borrowed `ClientSession`."""

import aiohttp
import pytest
from conftest import QUICK
from raw_server import Peer, RawServer, http

from monocloud_async import MonoCloudSession
from monocloud_async.connector import MAX_HEADERS, Connector, is_informational
from monocloud_async.sandbox import Sandbox

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
