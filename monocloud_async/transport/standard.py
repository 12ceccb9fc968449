"""One request and its response through any `aiohttp.ClientSession`."""

import asyncio
import errno
import math
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from monocloud_async.config import Credentials
from monocloud_async.connector import (
    MAX_HEADERS,
    MAX_LINES,
    Connector,
    GuardedProtocol,
    HeadersTooLongError,
    SpokeFirstError,
    has_unread_bytes,
    is_silent,
)
from monocloud_async.endpoint import Operation
from monocloud_async.response import Response
from monocloud_async.transport.time_slice import TimeSlice

CONNECT_SHARE: Final = 0.9  # of a request's timeout
# After a longer wait for a free connection, a share of a request's timeout, it is not the tenant's
# fault that there is no response in time.
_LONG_WAIT: Final = 0.5
# `Connector` counts the bytes of headers. aiohttp's own connectors limit only the length of a line
# and the number of lines, so with them the limit in bytes is the product of the two.
_LINES, _LINES_UNCOUNTED = MAX_LINES, 1024
_BETWEEN: Final = len(": \r\n")
# Others may put idle connections back meanwhile, which may be closed as well.
_REUSED_AT_MOST: Final = 8

# No file descriptors, no memory for a socket, no local port, no thread for a look-up.
_EXHAUSTED: Final = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.EADDRNOTAVAIL,
    errno.EAGAIN,
}


def is_exhausted(error: Exception) -> bool:
    """Whether this machine lacked a resource that a connection or a DNS lookup needs."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return False
    reason = error.os_error  # the numbers of a `gaierror` are others
    return reason.errno in _EXHAUSTED and not isinstance(reason, socket.gaierror)


class NoFreeConnectionError(TimeoutError):
    """All connections that the client session may have were in use for too long.

    Attributes:
        sent: whether the request was sent in the end, with too little time for its response.
    """

    def __init__(self, *, sent: bool = False) -> None:
        super().__init__()
        self.sent = sent


class ClientGaveUpError(TimeoutError):
    """A time limit of a middleware or a trace of the client session has passed."""


class ClosedError(aiohttp.ClientConnectionError):
    """The session was closed while a request was waiting."""


class ClosedBeforeSentError(ClosedError):
    """The session was closed before this request could be sent."""


# The errors of a request of which nothing was sent. The last one says that the session is closed.
NOT_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    SpokeFirstError,
    ClosedBeforeSentError,
    RuntimeError,
)


class Deadlines:
    """Deadlines that end the waiting task itself, whatever happens to its connection.

    To close a connection is not enough: aiohttp does not always wake the task that reads from it.

    Attributes:
        closed: whether the session is closed.
    """

    def __init__(self) -> None:
        self.closed = False
        self._open = set[asyncio.Timeout]()

    @asynccontextmanager
    async def at(
        self, when: float, closed: type[ClosedError] = ClosedError
    ) -> AsyncIterator[asyncio.Timeout]:
        """Raise `TimeoutError` inside the block at this time of the event loop's clock.

        `closed` is the error if the session is closed before, also before the block.
        """
        if self.closed:
            raise closed
        try:
            async with asyncio.timeout_at(when) as deadline:
                self._open.add(deadline)
                try:
                    yield deadline
                finally:
                    self._open.discard(deadline)
        except TimeoutError:
            if self.closed:
                raise closed from None
            raise

    def close(self) -> None:
        """Raise the error for a closed session in all open blocks now."""
        self.closed = True
        for deadline in self._open:
            if not deadline.expired():  # an expiring one cannot be changed any more
                deadline.reschedule(-math.inf)


class Exhaustion:
    """Lets requests wait if this machine lacks the resources for another connection.

    Args:
        deadlines: of the requests.

    Attributes:
        waiting: how many requests wait.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self.waiting = 0
        self._deadlines = deadlines
        self._ended = asyncio.Semaphore(0)

    async def wait(self, error: Exception, until: float) -> Exception | None:
        """Wait until another request has ended, if the error is a lack of resources.

        Return None if the request can then be tried again, or else the error to raise.
        """
        if not is_exhausted(error):
            return error
        self.waiting += 1
        try:
            async with self._deadlines.at(until, ClosedBeforeSentError):
                await self._ended.acquire()
        except TimeoutError:
            return error
        except ClosedBeforeSentError as closed:
            return closed
        finally:
            self.waiting -= 1
        return ClosedBeforeSentError() if self._deadlines.closed else None

    def wake_next(self) -> None:
        """Let one of the waiting requests try again."""
        if self.waiting:
            self._ended.release()


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
        # If the connector has a limit, requests wait here: aiohttp hands a connection to a request
        # that waits in the connector without a chance to check it.
        self._places = _places(client.connector)
        self._deadlines = Deadlines()
        self._exhaustion = Exhaustion(self._deadlines)
        self._in_progress = 0  # requests that have a place

    async def send(
        self,
        operation: Operation[object],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> Response:
        """Return the response to this operation on this target; errors are aiohttp's."""
        clock = asyncio.get_running_loop().time
        began = clock()
        due = began + timeout
        try:
            async with self._deadlines.at(began + CONNECT_SHARE * timeout, ClosedBeforeSentError):
                await self._places.acquire()
        except TimeoutError:
            raise NoFreeConnectionError from None
        waited = clock() - began
        self._in_progress += 1
        try:
            response = await self._send_again_if_stale(operation, target, due, timeout - waited)
        except TimeoutError as error:
            sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
            if waited > _LONG_WAIT * timeout or (not sent and self._is_full()):
                raise NoFreeConnectionError(sent=sent) from None
            raise
        finally:
            self._in_progress -= 1
            self._places.release()
            self._exhaustion.wake_next()
        if time_slice is not None:
            await time_slice.turn()
        return response

    async def _send_again_if_stale(
        self, operation: Operation[object], target: str, due: float, timeout: float
    ) -> Response:
        connector, left = self._client.connector, _REUSED_AT_MOST
        until = due - (1 - CONNECT_SHARE) * timeout
        lost: Exception | None = None
        while True:
            self._close_stale(connector)
            reuses = left > 0 and self._has_idle(connector)
            try:
                return await self._send_by(due, operation, target, timeout)
            except NOT_SENT as error:
                others = self._in_progress - self._exhaustion.waiting > 1
                fault = await self._exhaustion.wait(error, until) if others else error
                if fault is not None:
                    raise lost or fault from None
            except TimeoutError:
                raise
            except (aiohttp.ServerDisconnectedError, OSError) as error:
                if not reuses:
                    raise
                # Servers close idle connections, sometimes just as one is reused. That says
                # nothing about the tenant, and the other idle connections may be closed as well.
                # If no other request can be sent, the caller has to know of this one, which was.
                lost, left = error.with_traceback(None), left - 1
                for idle in self._idle_pools(connector):
                    for protocol, _since in idle:
                        protocol.close()

    async def _send_by(
        self, due: float, operation: Operation[object], target: str, timeout: float
    ) -> Response:
        if self._deadlines.closed:  # just as this request could be sent
            raise ClosedBeforeSentError
        async with self._deadlines.at(due) as deadline:
            try:
                return await self._send(operation, target, timeout)
            except TimeoutError as error:
                if self._is_of_a_hook(error) and not deadline.expired():
                    raise ClientGaveUpError from None
                raise

    def _is_of_a_hook(self, error: TimeoutError) -> bool:
        """Whether a middleware or a trace may have raised this, and not aiohttp or the system.

        If the client session has neither, a mock has raised it.
        """
        if isinstance(error, aiohttp.ServerTimeoutError) or error.errno:
            return False
        return bool(self._client.trace_configs or getattr(self._client, "_middlewares", ()))

    def close(self) -> None:
        """End the requests in flight."""
        self._deadlines.close()

    async def _send(self, operation: Operation[object], target: str, timeout: float) -> Response:
        client = self._client
        request = getattr(client, operation.method.lower())  # tools replace these methods
        counted = isinstance(client.connector, Connector)
        async with request(
            URL(self._base_url + operation.path(target), encoded=True),
            **request_options(operation, self._credentials),
            # aiohttp sends custom headers, the key among them, wherever a redirect points.
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=True,
            timeout=client_timeout(timeout),
            max_line_size=MAX_HEADERS,
            max_field_size=MAX_HEADERS,
            max_headers=_LINES if counted else _LINES_UNCOUNTED,
        ) as response:
            # Kept now, because the response loses it with the end of its body. Mocks have none.
            protocol = getattr(response, "_protocol", None)
            check_length(response.raw_headers)
            connection = response.connection  # None once the body has arrived
            if connection is not None and isinstance(connection.protocol, GuardedProtocol):
                connection.protocol.limit_body()
            limit = operation.body_limit(response.status)
            body, whole = await read_body(response.content, response.status, limit)
            if not body and response.content.at_eof():
                # A middleware or a trace may have read the body; aiohttp keeps it then.
                body = await response.read()
                whole = len(body) <= limit
            if not whole:
                response.close()  # the rest is not worth reading
            end = _nothing if protocol is None else protocol.close
            return Response(response.status, response.headers, body, end)

    def _is_full(self) -> bool:
        """Whether all connections that the client session may have are in use, also by others."""
        connector = self._client.connector
        in_use = len(getattr(connector, "_acquired", ()))
        pools: dict[Any, set[ResponseHandler]] = getattr(connector, "_acquired_per_host", {})
        here = [len(pool) for key, pool in pools.items() if (key.host, key.port) == self._address]
        return connector is not None and (
            0 < connector.limit <= in_use or 0 < connector.limit_per_host <= max(here, default=0)
        )

    def _idle_pools(
        self, connector: aiohttp.BaseConnector | None
    ) -> Iterator[deque[tuple[ResponseHandler, float]]]:
        """Return the idle connections to this tenant, in the order in which aiohttp reuses them."""
        pools: dict[Any, deque[tuple[ResponseHandler, float]]] = getattr(connector, "_conns", {})
        return (kept for key, kept in pools.items() if (key.host, key.port) == self._address)

    def _has_idle(self, connector: aiohttp.BaseConnector | None) -> bool:
        return any(
            protocol.is_connected()
            for idle in self._idle_pools(connector)
            for protocol, _since in idle
        )

    def _close_stale(self, connector: aiohttp.BaseConnector | None) -> None:
        """Close idle connections over which the server sent something.

        `Connector` checks a connection when it takes it. aiohttp's own connectors never do.
        """
        if isinstance(connector, Connector):
            return
        for idle in self._idle_pools(connector):
            for protocol, _since in idle:
                if not is_silent(protocol) or has_unread_bytes(protocol):
                    protocol.close()


def _places(connector: aiohttp.BaseConnector | None) -> asyncio.Semaphore:
    limits = [] if connector is None else [connector.limit, connector.limit_per_host]
    return asyncio.Semaphore(min(filter(None, limits), default=sys.maxsize))


def request_options(operation: Operation[object], credentials: Credentials) -> dict[str, Any]:
    """Return the headers and the body of this operation's request as arguments for aiohttp."""
    if not operation.body:
        # aiohttp would call an empty body an octet-stream.
        return {"headers": credentials.headers, "skip_auto_headers": ("Content-Type",)}
    headers = CIMultiDict(credentials.headers)
    headers["Content-Type"] = "application/json"
    return {"headers": headers, "data": operation.body.encode()}


def client_timeout(timeout: float) -> aiohttp.ClientTimeout:
    """Return the timeouts for aiohttp; `Deadlines` limits the whole request."""
    return aiohttp.ClientTimeout(
        # Without a connection by then there would be no response in time either, and this error
        # tells that nothing was sent.
        connect=CONNECT_SHARE * timeout,
        # aiohttp rounds timeouts from this threshold on up to whole seconds.
        ceil_threshold=math.inf,
    )


def check_length(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise `HeadersTooLongError` if these headers are longer than `MAX_HEADERS`."""
    if sum(len(name) + len(value) + _BETWEEN for name, value in headers) > MAX_HEADERS:
        raise HeadersTooLongError


async def read_body(content: aiohttp.StreamReader, status: int, limit: int) -> tuple[bytes, bool]:
    """Return the decompressed body, up to this limit and one chunk, and whether it is complete.

    `response.read()` has no limit: 1 MiB of gzip made it use 2 GiB.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    except (aiohttp.ClientPayloadError, RuntimeError) as error:
        # After a chunk that it cannot parse, aiohttp closes the connection, and reading says so.
        if status == 200:  # noqa: PLR2004  an incomplete user is no user
            raise aiohttp.ClientPayloadError from error
        return b"", True  # the status says enough
    return b"".join(chunks), size <= limit


def _nothing() -> None:
    """Do nothing: a mock answered, so there is no connection to end."""
