"""The ways that a call can go: over the session's own connections, or through `ClientSession`."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache, wraps
from typing import Any, Literal, get_args

import aiohttp
import pytest
import trustme

from monocloud_async import MonoCloudSession
from monocloud_async.connector import Connector

Way = Literal["fast", "hooked", "borrowed"]
WAYS: tuple[Way, ...] = get_args(Way)


@contextmanager
def hooked() -> Iterator[None]:
    """`ClientSession` is wrapped, as tracers do it: calls go the ordinary way."""
    make = aiohttp.ClientSession._request

    @wraps(make)
    async def hook(*args: Any, **options: Any) -> aiohttp.ClientResponse:
        return await make(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp.ClientSession, "_request", hook)
        yield


@contextmanager
def trusted(trust: ssl.SSLContext) -> Iterator[None]:
    """Connections without a context of their own use this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trust)
        yield


@cache
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """What a client has that trusts this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it checks certificates and host names
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def session_by(way: Way, *arguments: str, **options: Any) -> AsyncIterator[MonoCloudSession]:
    """A session whose calls go this way."""
    match way:
        case "fast":
            async with MonoCloudSession(*arguments, **options) as session:
                yield session
        case "hooked":
            with hooked():
                async with MonoCloudSession(*arguments, **options) as session:
                    yield session
        case "borrowed":
            async with (
                aiohttp.ClientSession(connector=Connector()) as client,
                MonoCloudSession(*arguments, client_session=client, **options) as session,
            ):
                yield session
