"""A failing proxy, configured by a lent session."""

from collections.abc import Callable

import aiohttp
import pytest
from raw_server import Act, Peer, RawServer, answering, http
from secrets_search import KEY, is_not_in, is_not_told_by

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector

PASSWORD = "hunter2"


async def leave(peer: Peer) -> None:
    await peer.request()


async def reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def plain(peer: Peer) -> None:
    await peer.request()
    await peer.send(http(b"", length=False))
    await peer.hello()
    await peer.send(http(b"", status=400))


TROUBLE: dict[str, tuple[Act, str]] = {
    "asks for a password": (answering(http(b"", status=407)), "refused to connect .status 407"),
    "cannot reach the tenant": (answering(http(b"", status=502)), "refused to connect .status 502"),
    "leaves": (leave, "closed before an answer came"),
    "resets": (reset, "the connection broke"),
    "is no proxy": (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP"),
    "speaks no TLS": (plain, "TLS could not be set up"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_a_proxy_in_trouble_is_an_error_of_ours(trouble: str) -> None:
    act, says = TROUBLE[trouble]
    async with RawServer(act) as proxy:
        error = await through(proxy.url, says)
    assert proxy.requests[0].startswith(b"CONNECT acme.invalid:443 ")
    assert KEY.encode() not in proxy.requests[0]  # the key is only for the tenant
    is_not_told_by(error)


async def test_a_proxy_that_is_not_there_is_an_error_of_ours(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    error = await through(f"http://127.0.0.1:{unused_tcp_port_factory()}", "proxy could not be")
    assert not error.sent
    is_not_told_by(error)


async def through(url: str, says: str) -> m.TransportError:
    proxy = url.replace("http://", f"http://eve:{PASSWORD}@")
    async with (
        aiohttp.ClientSession(connector=Connector(), proxy=proxy) as client,
        MonoCloudSession(
            "acme.invalid", KEY, client_session=client, retry=RetryPolicy(attempts=1)
        ) as session,
    ):
        with pytest.raises(m.TransportError, match=says) as caught:
            await session.enable_user("ada")
    assert PASSWORD not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))
    is_not_in(caught.value)
    return caught.value
