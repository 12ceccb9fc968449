"""One request and its answer through `aiohttp.ClientSession`: the standard path of every call."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from monocloud_async.config import Credentials
from monocloud_async.connector import (
    MAX_HEADERS,
    Connector,
    HeadersTooLongError,
    has_unread_bytes,
    is_silent,
)
from monocloud_async.endpoint import Operation, Response, body_limit

CONNECT_SHARE: Final = 0.9  # of the time of a request
# `Connector` counts the bytes of headers. aiohttp's own connectors know only how long a line may
# be and how many there may be, so a bound in bytes is a product of these.
_LINES, _LINES_UNCOUNTED = MAX_HEADERS, 1024
_BETWEEN: Final = len(": \r\n")


class ClosedError(aiohttp.ClientConnectionError):
    """The session was closed while the request was on its way."""


class Deadlines:
    """Ends whoever waits for too long: the waiter itself, whatever became of its connection."""

    def __init__(self) -> None:
        self._open = set[asyncio.Timeout]()
        self._closed = False

    @asynccontextmanager
    async def at(self, when: float) -> AsyncIterator[None]:
        """What is done in here ends at this time of the event loop, with a `TimeoutError`."""
        try:
            async with asyncio.timeout_at(when) as deadline:
                self._open.add(deadline)
                try:
                    yield
                finally:
                    self._open.discard(deadline)
        except TimeoutError:
            if self._closed:
                raise ClosedError from None
            raise

    def close(self) -> None:
        """End them all now, with a `ClosedError`."""
        self._closed = True
        for deadline in self._open:
            deadline.reschedule(-math.inf)


class StandardTransport:
    """Requests to one tenant through any `ClientSession`.

    Args:
        client: the `ClientSession`, which may be the caller's.
        base_url: the tenant's.
        credentials: the headers of every request.
    """

    def __init__(
        self, client: aiohttp.ClientSession, base_url: str, credentials: Credentials
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._credentials = credentials
        self._address = (url := URL(base_url)).raw_host, url.port
        self._deadlines = Deadlines()

    async def send(self, operation: Operation, user_id: str, timeout: float) -> Response:
        """The answer to this operation on this user; errors are aiohttp's."""
        async with self._deadlines.at(asyncio.get_running_loop().time() + timeout):
            connector = self._client.connector
            reused = self._close_stale(connector)
            try:
                return await self._send(operation, user_id, timeout)
            except (TimeoutError, aiohttp.ClientConnectorError):
                raise
            except (aiohttp.ServerDisconnectedError, OSError):
                if not reused:
                    raise
            # A server may end a connection that it holds for idle just as it is used again. That
            # is no news of the tenant, and the other idle ones may have ended with it.
            for kept in self._idle_pools(connector):
                for protocol, _since in kept:
                    protocol.close()
            return await self._send(operation, user_id, timeout)

    def close(self) -> None:
        """End the calls in flight."""
        self._deadlines.close()

    async def _send(self, operation: Operation, user_id: str, timeout: float) -> Response:
        client = self._client
        request = client.get if operation.method == "GET" else client.post
        counted = isinstance(client.connector, Connector)
        async with request(
            URL(self._base_url + operation.path(user_id), encoded=True),
            **request_options(operation, self._credentials),
            # aiohttp sends custom headers, the key among them, wherever a redirect points.
            allow_redirects=False,
            raise_for_status=False,
            timeout=client_timeout(timeout),
            max_line_size=MAX_HEADERS,
            max_field_size=MAX_HEADERS,
            max_headers=_LINES if counted else _LINES_UNCOUNTED,
        ) as response:
            # Only until the body is read. A mocked response, which nothing started, has none.
            protocol: ResponseHandler | None = getattr(response, "_protocol", None)
            check_length(response.raw_headers)
            body, whole = await read_body(response.content, response.status)
            if not whole:
                response.close()  # the rest is not worth its bytes
            end = _nothing if protocol is None else protocol.close
            return Response(response.status, response.headers, body, end)

    def _idle_pools(
        self, connector: aiohttp.BaseConnector | None
    ) -> Iterator[deque[tuple[ResponseHandler, float]]]:
        """The connections to this tenant that wait for their next use, the next one first."""
        pools: dict[Any, deque[tuple[ResponseHandler, float]]] = getattr(connector, "_conns", {})
        return (kept for key, kept in pools.items() if (key.host, key.port) == self._address)

    def _close_stale(self, connector: aiohttp.BaseConnector | None) -> bool:
        """Close those on which the server spoke unasked; is there one left?

        `Connector` looks as well, when it takes one. This is for aiohttp's own connectors, which
        never do.
        """
        left = False
        oldest = monotonic() - getattr(connector, "_keepalive_timeout", 0.0)
        for kept in self._idle_pools(connector):
            while kept:
                protocol, since = kept[0]
                if since >= oldest and is_silent(protocol) and not has_unread_bytes(protocol):
                    left = True
                    break
                kept.popleft()
                protocol.close()
        return left


def request_options(operation: Operation, credentials: Credentials) -> dict[str, Any]:
    """The headers and the body of this operation's request, as aiohttp takes them."""
    if not operation.body:
        # aiohttp would call an empty body an octet-stream.
        return {"headers": credentials.headers, "skip_auto_headers": ("Content-Type",)}
    headers = CIMultiDict(credentials.headers)
    headers["Content-Type"] = "application/json"
    return {"headers": headers, "data": operation.body.encode()}


def client_timeout(timeout: float) -> aiohttp.ClientTimeout:
    """What aiohttp has to know of a timeout in seconds; the whole of it is ours to keep."""
    return aiohttp.ClientTimeout(
        # Whoever has no connection by then would have no answer either, and this one tells that
        # nothing was sent.
        connect=CONNECT_SHARE * timeout,
        # aiohttp rounds timeouts from this threshold on up to whole seconds.
        ceil_threshold=math.inf,
    )


def check_length(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises `HeadersTooLongError` where these lines are longer than is read."""
    if sum(len(name) + len(value) + _BETWEEN for name, value in headers) > MAX_HEADERS:
        raise HeadersTooLongError


async def read_body(content: aiohttp.StreamReader, status: int) -> tuple[bytes, bool]:
    """The body, decompressed, at most one chunk more than is worth reading; is it all of it?

    `response.read()` has no bound: a gzip of 1 MiB made it spend 2 GiB.
    """
    chunks: list[bytes] = []
    size, limit = 0, body_limit(status)
    try:
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    except aiohttp.ClientPayloadError:
        if status == 200:  # noqa: PLR2004  a user that was cut short is no user
            raise
        return b"", True  # the status says enough
    return b"".join(chunks), size <= limit


def _nothing() -> None:
    """There is no connection to end: something else answered in aiohttp's place."""
