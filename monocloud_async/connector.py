"""Connections of the session's own: none is used again on which the server spoke unasked.

RFC 9112, section 6.3: what a server sends behind an answer, before the next request, is nobody's
answer, and a client must not process it as one. aiohttp keeps such bytes for the next request: one
user's answer would be told to another. So a connection is looked at when its answer is complete,
and again when it is taken for the next request.
"""

import asyncio
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from aiohttp import ClientConnectionError, ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader
from aiohttp.tracing import Trace

MAX_HEADERS: Final = 1 << 16  # bytes of an answer's headers, all lines together
# Bytes of an answer with all that frames it. What is read of a body has a bound of its own, but
# chunks and what follows the last one can be long without one byte of a body.
_MAX_ANSWER: Final = 1 << 22
# An answer that a parser between two answers reads as exactly this, and any other parser does not.
_CANARY: Final = b"HTTP/1.1 204 probe\r\n\r\n"
_CONTINUE, _SWITCHING, _OK = 100, 101, 200
# asyncio tells what the system has read two turns later: one to select, one to call back.
_TURNS_TO_READ: Final = 2


class HeadersTooLongError(ClientConnectionError):
    """The headers of an answer are longer than `MAX_HEADERS`."""


class SpokeFirstError(ClientConnectionError):
    """The server sent something over a new connection before anything was asked."""


class GuardedProtocol(ResponseHandler):
    """Gives its connection up at the first byte that comes while nobody waits for an answer."""

    idle = False
    _in_headers = True
    _left = MAX_HEADERS  # bytes that may still come before its headers, or all of it, are too long
    _body: StreamReader | None = None
    _poll: Callable[[], Sequence[object]] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all of the answer is here, so that nobody has to wait while reading it."""
        return not self._in_headers and self._body is not None and self._body.is_eof()

    def expect(self) -> None:
        """A request goes out: what comes now is its answer."""
        self.idle, self._in_headers, self._left = False, True, MAX_HEADERS

    def mark_idle(self) -> None:
        """The answer is complete."""
        self.idle = True

    def data_received(self, data: bytes) -> None:
        """The next piece of an answer, or of what nobody asked for."""
        if self.idle:
            if data:
                self.abort()
            return
        self._left -= len(data)
        super().data_received(data)
        if self.idle:  # the answer ended in this piece
            # While its body is still to be read, nothing more is: see `connect`.
            if not self._reading_paused and not is_silent(self):
                self.abort()
        elif self._left < 0 and self.transport is not None:
            if self._in_headers:
                self.set_exception(HeadersTooLongError())
            self.transport.abort()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """The headers of an answer are complete; those of a 1xx are not the last ones."""
        message, self._body = data
        self._in_headers = is_informational(message.code)
        self._left = MAX_HEADERS if self._in_headers else _MAX_ANSWER
        super().feed_data(data, size)

    def is_stale(self) -> bool:
        """Whether the server said anything since the last answer, or left."""
        if self.transport is None or self.transport.is_closing():
            return True
        if self._poll is None:
            self._poll = _make_poll(self.transport)
        return bool(self._poll())


def is_informational(status: int) -> bool:
    """Whether another answer follows this one; after a 101 nothing follows that is HTTP."""
    return _CONTINUE <= status < _OK and status != _SWITCHING


def is_silent(protocol: ResponseHandler) -> bool:
    """Whether all that this connection has read was the answers so far, to the byte.

    Its parser is asked, which cannot be used for another answer after that: aiohttp makes a new
    one for every request.
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
    """Whether the system has more of this connection than the event loop has read."""
    return protocol.transport is not None and bool(_make_poll(protocol.transport)())


def _make_poll(transport: asyncio.Transport) -> Callable[[], Sequence[object]]:
    descriptor = transport.get_extra_info("socket").fileno()
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return partial(poll.poll, 0)
    return lambda: select.select([descriptor], [], [], 0)[0]  # Windows


class Connector(TCPConnector):
    """As many connections as there are calls at once, each of them kept for the next call.

    What comes in over a connection that waits for its next use is nobody's answer, and ends it.
    aiohttp keeps it, without any bound, and would take it for the answer to the next request.

    Args:
        options: those of `aiohttp.TCPConnector`. Default: its own, but no limit, because a timeout
            would count the time that is spent in the queue for a connection.
    """

    protocol: Callable[..., GuardedProtocol] = GuardedProtocol

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"limit": 0, **options})
        # aiohttp has no public way to bring a protocol of one's own; the tests see if it takes it.
        self._factory = partial(self.protocol, loop=self._loop)  # type: ignore[assignment]

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        """A connection that is new, or has been silent since its last answer."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if not isinstance(protocol, GuardedProtocol):  # a proxy's, or of somebody's own making
                return connection
            if protocol.idle:
                if protocol.is_stale() or not is_silent(protocol):
                    connection.close()
                    continue
            elif await _speaks_first(connection, protocol):
                connection.close()
                raise SpokeFirstError
            protocol.expect()
            connection.add_callback(protocol.mark_idle)
            return connection


async def _speaks_first(connection: Connection, protocol: GuardedProtocol) -> bool:
    """Whether the server said something over this new connection, as far as this machine knows."""
    try:
        for _ in range(_TURNS_TO_READ):
            await asyncio.sleep(0)
    except BaseException:
        connection.close()
        raise
    # Whoever sends over one that was closed finds out by that.
    return protocol.is_connected() and protocol.should_close
