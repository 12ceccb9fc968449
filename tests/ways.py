"""The paths of a call: over the session's own connections, or through `ClientSession`."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache, wraps
from typing import Any, Literal, get_args

import aiohttp
import pytest
import trustme
from raw_server import Peer, RawServer

from monocloud_async import MonoCloudSession
from monocloud_async.connector import Connector

# "lent" is a borrowed session over our connector, "theirs" one over aiohttp's.
Way = Literal["fast", "hooked", "lent", "theirs", "tunnel"]
WAYS: tuple[Way, ...] = get_args(Way)


@contextmanager
def hooked() -> Iterator[None]:
    """Wrap `ClientSession`, as tracers do, so that calls take the standard path."""
    make = aiohttp.ClientSession._request

    @wraps(make)
    async def hook(*args: Any, **options: Any) -> aiohttp.ClientResponse:
        return await make(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp.ClientSession, "_request", hook)
        yield


@cache
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return the context of a client that trusts this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and host names
    authority.configure_trust(context)
    return context


@contextmanager
def trusted(trust: ssl.SSLContext) -> Iterator[None]:
    """Make connections without their own context use this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trust)
        yield


async def tunnel(peer: Peer) -> None:
    """A working proxy."""
    host, _, port = (await peer.request()).split(b" ")[1].decode().rpartition(":")
    there, writer = await asyncio.open_connection(host, int(port))
    try:
        await peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        await peer.join(there, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def session_by(way: Way, *arguments: str, **options: Any) -> AsyncIterator[MonoCloudSession]:
    """Open a session whose calls take this path."""
    match way:
        case "fast":
            async with MonoCloudSession(*arguments, **options) as session:
                yield session
        case "hooked":
            with hooked():
                async with MonoCloudSession(*arguments, **options) as session:
                    yield session
        case "lent" | "theirs":
            connector = Connector() if way == "lent" else aiohttp.TCPConnector()
            async with (
                aiohttp.ClientSession(connector=connector) as client,
                MonoCloudSession(*arguments, client_session=client, **options) as session,
            ):
                yield session
        case "tunnel":
            async with (
                RawServer(tunnel) as proxy,
                aiohttp.ClientSession(connector=Connector(), proxy=proxy.url) as client,
                MonoCloudSession(*arguments, client_session=client, **options) as session,
            ):
                yield session
