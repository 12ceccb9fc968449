"""The standard path, through `ClientSession`, and what both paths have of it."""

import asyncio

import pytest
from raw_server import Peer, RawServer, http
from virtual_time import run
from ways import Way, session_by

import monocloud_async as m
from monocloud_async import RetryPolicy

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
