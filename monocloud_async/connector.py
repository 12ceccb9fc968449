"""Connections that are never reused after the server sent something that nobody asked for.

RFC 9112, section 6.3: data that arrives behind a response, before the next request was sent, must
not be processed as a response. aiohttp keeps such bytes and reads them as the response to the next
request, so one user would get another user's answer. Here a connection is checked when a response
is complete, and again when the connection is taken for the next request.
"""

import asyncio
import math
import select
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, cast

from aiohttp import (
    ClientConnectionError,
    ClientOSError,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    TCPConnector,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader
from aiohttp.tracing import Trace

from monocloud_async.resolver import Resolver

MAX_HEADERS: Final = 1 << 16  # bytes of a response's headers, all lines together
MAX_LINES: Final = MAX_HEADERS // len("a:\r\n")  # trailers count as well
# Bytes of a body with its framing. `read_body` has a limit for the body, but chunk extensions and
# trailers can be endless without a single byte of a body.
_MAX_BODY: Final = 5 << 20  # more than a page of users may have
# A parser that stands exactly between two responses reads this as one response with no headers;
# in any other state it reads something else.
_CANARY: Final = b"HTTP/1.1 204 probe\r\n\r\n"
_BLANK_LINE: Final = b"\r\n\r\n"
_CONTINUE, _SWITCHING, _OK = 100, 101, 200
# The event loop delivers received bytes two iterations later: one to select, one to call back.
_TURNS_TO_READ: Final = 2


class HeadersTooLongError(ClientConnectionError):
    """The headers of a response are longer than `MAX_HEADERS`."""


class SpokeFirstError(ClientConnectionError):
    """The server sent data over a new connection before any request was sent."""


class GuardedProtocol(ResponseHandler):
    """Closes its connection at the first byte that arrives while no request is waiting."""

    idle = False
    reused = False  # it has had a response before
    _in_headers = True
    _left: float = MAX_HEADERS  # bytes until the headers, or the body, are too long
    _body: StreamReader | None = None
    _poll: Callable[[], Sequence[object]] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole response has arrived, so that reading it never waits."""
        return not self._in_headers and self._body is not None and self._body.is_eof()

    def expect_after_write(self) -> None:
        """Expect a response from the next write on: until then, no request was sent.

        A trace may wait between the moment in which aiohttp takes a connection and its first write.
        """
        if self.transport is not None:
            self.idle = True
            self.transport = cast("asyncio.Transport", _BeforeRequest(self, self.transport))

    def expect(self) -> None:
        """Prepare for a request: what arrives from now on is its response."""
        self.idle, self._in_headers, self._left = False, True, MAX_HEADERS

    def mark_idle(self) -> None:
        """Record that the response is complete."""
        self.idle = self.reused = True

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes of a response, or close the connection where none is expected."""
        if self.idle:
            if data:
                self.abort()
            return
        self._left -= len(data)
        self._parse(data)
        body = None if self._in_headers else self._body
        if self.exception() is not None and body is not None and not body.is_eof():
            # The parser cannot read on, and wakes nobody who waits for the rest of the body.
            body.set_exception(ClientPayloadError())
        if self.idle:  # the response ended within these bytes
            # While reading is paused, bytes may wait unparsed; `connect` looks at them.
            if not self._reading_paused and not is_silent(self):
                self.abort()
        elif self._left < 0 and self.transport is not None:
            if self._in_headers:
                self.set_exception(HeadersTooLongError())
            self.transport.abort()

    def _parse(self, data: bytes) -> None:
        """Parse the headers alone, and then the rest.

        Of bytes in one piece, the parser tells nothing if it cannot read the last of them, although
        a whole response is before these.
        """
        start = 0
        while self._in_headers and (end := data.find(_BLANK_LINE, start)) >= 0:
            end += len(_BLANK_LINE)
            super().data_received(data[start:end])
            if self.exception() is not None:
                return
            start = end
        if not start or start < len(data):
            super().data_received(data[start:])

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a response whose headers are complete; another one follows a 1xx."""
        message, self._body = data
        self._in_headers = is_informational(message.code)
        if not self._in_headers:
            self._left = math.inf  # what else uses the `Connector` may download anything
        super().feed_data(data, size)

    def limit_body(self) -> None:
        """Abort the connection if the rest of this response is longer than any of MonoCloud's."""
        self._left = _MAX_BODY

    def is_stale(self) -> bool:
        """Whether the server sent anything since the last response, or closed the connection."""
        if self.transport is None or self.transport.is_closing():
            return True
        if self._poll is None:
            self._poll = _make_poll(self.transport)
        return bool(self._poll())


class _BeforeRequest:
    """The transport of a connection over which a request will be sent; its first write sends it."""

    def __init__(self, protocol: GuardedProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send the request, or its first bytes."""
        self._begin()
        self._transport.write(data)

    def writelines(self, data: Iterable[bytes]) -> None:
        """Send the request, or its first bytes."""
        self._begin()
        self._transport.writelines(data)

    def _begin(self) -> None:
        """Expect the response, unless the server spoke already or closed the connection."""
        protocol = self._protocol
        protocol.transport = self._transport
        if protocol.reused and protocol.is_stale():
            protocol.abort()
            raise ClientOSError
        protocol.expect()


def is_informational(status: int) -> bool:
    """Whether another response follows this one; what follows a 101 is not HTTP."""
    return _CONTINUE <= status < _OK and status != _SWITCHING


def is_silent(protocol: ResponseHandler) -> bool:
    """Whether this connection has read exactly the responses so far, and not one byte more.

    The check feeds the parser, which can then not be used for another response: aiohttp makes a
    new parser for every request.
    """
    if protocol.should_close or not protocol.is_connected() or protocol._reading_paused:  # noqa: SLF001  aiohttp has no public way to ask for it
        return False
    parser = protocol._parser  # noqa: SLF001  nor for this
    if parser is None:
        return True
    try:
        messages, _upgraded, _rest = parser.feed_data(_CANARY)
    except (HttpProcessingError, RuntimeError, ValueError):
        return False
    if len(messages) != 1:
        return False
    message, _body = messages[0]
    return (message.reason, message.raw_headers) == ("probe", ())


def has_unread_bytes(protocol: ResponseHandler) -> bool:
    """Whether the operating system has received bytes that the event loop has not read yet."""
    return protocol.transport is not None and bool(_make_poll(protocol.transport)())


def _make_poll(transport: asyncio.Transport) -> Callable[[], Sequence[object]]:
    descriptor = transport.get_extra_info("socket").fileno()
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return partial(poll.poll, 0)
    return lambda: select.select([descriptor], [], [], 0)[0]  # Windows


class Connector(TCPConnector):
    """An `aiohttp.TCPConnector` that closes idle connections over which a server sends anything.

    aiohttp keeps such bytes, without any limit, and reads them as the response to the next request.

    Args:
        options: the options of `aiohttp.TCPConnector`, with its defaults, but for `limit`: it is 0
            (no limit), because a timeout would count the time spent waiting for a connection. And
            names are looked up by the system, also where aiodns is installed: it does not know the
            names of a VPN, of `.local` and of `/etc/nsswitch.conf`.
    """

    protocol: Callable[..., GuardedProtocol] = GuardedProtocol

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"limit": 0, "resolver": Resolver(), **options})
        # aiohttp has no public way to set the protocol class; the tests check that it uses this.
        self._factory = partial(self.protocol, loop=self._loop)  # type: ignore[assignment] # not public

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        """Return a connection that is new, or has received nothing since its last response."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if not isinstance(protocol, GuardedProtocol):  # a proxy's, or another factory's
                return connection
            if protocol.idle:
                if protocol.is_stale() or not is_silent(protocol):
                    connection.close()
                    continue
            elif await _speaks_first(connection, protocol):
                connection.close()
                raise SpokeFirstError
            protocol.expect_after_write()
            connection.add_callback(protocol.mark_idle)
            return connection


async def _speaks_first(connection: Connection, protocol: GuardedProtocol) -> bool:
    """Whether the server sent something over this new connection already."""
    try:
        for _ in range(_TURNS_TO_READ):
            await asyncio.sleep(0)
    except BaseException:
        connection.close()
        raise
    # Sending over a connection that was closed meanwhile fails, which tells that.
    return protocol.is_connected() and protocol.should_close
