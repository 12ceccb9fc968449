"""One request and its response over the session's own connections, at half the CPU time.

For each request `ClientSession` builds a request, a response, a timer and several copies of the
same headers: more than half of a client's CPU time (docs/performance.md). Here aiohttp still makes
the connections and parses most responses. What is the same for every request is built once, and a
plain response is taken without a parser (`plain_response`).

The standard transport is used instead while somebody hooks `ClientSession` (`HOOKS`), and with an
aiohttp that lacks something that this file needs (`REQUIRED`).

To do without: delete this file and `plain_response`, the lines of `session` that name it, whose
connector is then a `Connector`, and the tests that import them.
"""

import asyncio
import logging
import math
from functools import cache, partial
from operator import attrgetter
from types import FunctionType
from typing import Final

import aiohttp
from aiohttp import ClientRequest, ClientResponse, ClientSession
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from monocloud_async.config import Credentials, MaskedKey
from monocloud_async.connector import (
    MAX_HEADERS,
    MAX_LINES,
    Connector,
    GuardedProtocol,
    is_informational,
    is_silent,
)
from monocloud_async.endpoint import ENABLE, Operation
from monocloud_async.response import Response
from monocloud_async.transport.plain_response import NoBody, plain_body
from monocloud_async.transport.standard import (
    CONNECT_SHARE,
    NOT_SENT,
    ClosedBeforeSentError,
    ClosedError,
    Deadlines,
    Exhaustion,
    check_length,
    client_timeout,
    read_body,
    request_options,
)
from monocloud_async.transport.time_slice import TimeSlice

_PIECES: Final = 4  # of a response that are read here; a slow one may have any number
_PIECE: Final = 1 << 16  # bytes of all but the last one


class FastProtocol(GuardedProtocol):
    """Takes a plain response without a parser, and leaves any other to aiohttp's parser."""

    _pending: asyncio.Future[tuple[bytes, bytes | None]] | None = None
    _pieces: tuple[bytes, ...] = ()  # of a plain response that is not complete

    def send_request(
        self, method: str, path: str, head: str, time_slice: TimeSlice | None
    ) -> asyncio.Future[tuple[bytes, bytes | None]]:
        """Send a request; return the response and its body, or no body if it is not plain.

        Raises:
            ServerDisconnectedError, ClientOSError: the connection ended before any byte came.
            TimeoutError: the deadline passed.
        """
        if self.transport is None:
            raise aiohttp.ServerDisconnectedError
        self._pending = waiter = self._loop.create_future()
        self._time_slice = time_slice
        # In one expression: no local variable should hold the API key.
        self.transport.write(f"{method} {path} HTTP/1.1\r\n{head}".encode())
        return waiter

    def data_received(self, data: bytes) -> None:
        """Hand a plain response to the waiting task; parse anything else."""
        if self._pending is None:
            super().data_received(data)
            return
        pieces = self._pieces
        response = data if not pieces else b"".join((*pieces, data))
        body = plain_body(response)
        if isinstance(body, bytes):
            self.mark_idle()  # no response is expected any more
            waiter, self._pending, self._pieces = self._pending, None, ()
            if waiter.done():
                return
            if self._time_slice is None:
                waiter.set_result((response, body))
            else:
                self._time_slice.deliver(waiter, (response, body))
        elif body is NoBody.INCOMPLETE and len(pieces) < _PIECES and len(response) <= _PIECE:
            self._pieces = (*pieces, data)
        else:
            self.leave_to_aiohttp(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Raise the reason in the waiting task."""
        if self._pieces and self._pending is not None:
            self.leave_to_aiohttp(b"")  # which says that the response was cut short
        super().connection_lost(exc)
        self.fail(
            aiohttp.ClientOSError(*exc.args)
            if isinstance(exc, OSError)
            else aiohttp.ServerDisconnectedError()
        )

    def leave_to_aiohttp(self, data: bytes) -> None:
        """Let aiohttp's parser read what came so far, these bytes, and all that follow."""
        waiter, self._pending = self._pending, None
        pieces, self._pieces = self._pieces, ()
        self.expect()
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=True,
            max_line_size=MAX_HEADERS,
            max_field_size=MAX_HEADERS,
            max_headers=MAX_LINES,
        )
        # Piece by piece: the parser keeps what it has read before the piece in which it fails.
        for piece in (*pieces, data):
            super().data_received(piece)
        if waiter is not None and not waiter.done():
            waiter.set_result((b"", None))

    def fail(self, error: Exception) -> None:
        """Raise this error in the task that waits for the first bytes, if there is one."""
        waiter, self._pending = self._pending, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class BufferedFastProtocol(FastProtocol, asyncio.BufferedProtocol):
    """The same without TLS: it reads into one buffer that all connections share.

    Otherwise asyncio allocates 256 KiB for every read, which costs more than the read. With TLS it
    does not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop)
        self._read_buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the shared buffer; its bytes are taken out before another connection reads."""
        del sizehint
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take this number of bytes out of the buffer."""
        self.data_received(bytes(self._read_buffer[:nbytes]))


class FastConnector(Connector):
    """A `Connector` whose connections both transports can use."""

    def __init__(self, *, tls: bool = True) -> None:
        buffer = memoryview(bytearray(1 << 16))
        self.protocol = FastProtocol if tls else partial(BufferedFastProtocol, buffer=buffer)
        super().__init__()


# Parts of aiohttp that are not public or may change; the tests have a case for each.
REQUIRED: Final[tuple[tuple[type, str], ...]] = (
    (ResponseHandler, "set_response_params"),
    (ResponseHandler, "data_received"),
    (ResponseHandler, "connection_lost"),
    (ResponseHandler, "read"),
    (ResponseHandler, "should_close"),
    (ClientRequest, "connection_key"),
    (aiohttp.TCPConnector, "connect"),
    (Connection, "protocol"),
    (Connection, "release"),
    (Connection, "close"),
)
# What mocks, recorders and tracers replace or wrap.
HOOKS: Final[tuple[tuple[type, str], ...]] = (
    (ClientSession, "__init__"),
    (ClientSession, "_request"),
    (ClientSession, "get"),
    (ClientSession, "post"),
    (ClientRequest, "send"),
    (ClientResponse, "start"),
)
_OK: Final = 200
_KEEP_ALIVE: Final = 15.0  # seconds that a connection may stay idle

_session_hooks = attrgetter(*(name for kind, name in HOOKS if kind is ClientSession))

logger = logging.getLogger("monocloud_async")


class FastTransport:
    """Requests to one tenant over the session's own connections.

    Args:
        client: the session's own client, over a `FastConnector`.
        base_url: the tenant's.
        credentials: the headers of every request.
    """

    def __init__(
        self, client: aiohttp.ClientSession, base_url: str, credentials: Credentials
    ) -> None:
        assert isinstance(client.connector, FastConnector)  # noqa: S101  for the type checkers
        self._loop = asyncio.get_running_loop()
        self._connector = client.connector
        self._base_url = base_url
        self._credentials = credentials
        # Tells the connector where to connect; it is never sent.
        self._template = self._request(ENABLE)
        self._heads: dict[Operation[object], MaskedKey] = {}  # all but the first line of a request
        self._idle: list[tuple[Connection, FastProtocol]] = []  # the last one is reused first
        self._unused = 0  # how many, from the front, were not reused since the last cleanup
        self._cleanup: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines()  # of everything but the wait for the first bytes
        self._exhaustion = Exhaustion(self._deadlines)
        self._connecting = 0  # requests
        self._due_at: dict[FastProtocol, float] = {}
        self._deadline_timer: asyncio.TimerHandle | None = None  # one timer, for the first deadline
        self._timer_at = math.inf  # uvloop's handles do not always have their time
        self._hooks: object = None
        self._unhooked = True

    @classmethod
    def for_client(
        cls, client: ClientSession, base_url: str, credentials: Credentials
    ) -> "FastTransport | None":
        """Return the fast transport for this client, or None if the standard one has to be used."""
        missing = [f"{kind.__name__}.{name}" for kind, name in REQUIRED if not hasattr(kind, name)]
        if missing:
            _warn_once(f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}")
        elif type(client) is ClientSession and _is_original(ClientSession.__init__):
            return cls(client, base_url, credentials)
        return None  # a wrapped constructor may have added traces or middlewares

    def is_usable(self) -> bool:
        """Whether nothing hooks `ClientSession` now; mocks and recorders do so for a while."""
        hooks = _session_hooks(ClientSession), ClientRequest.send, ClientResponse.start
        if hooks != self._hooks:
            self._hooks = hooks
            self._unhooked = all(_is_original(getattr(kind, name)) for kind, name in HOOKS)
        return self._unhooked

    async def send(
        self,
        operation: Operation[object],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> Response:
        """Return the response to this operation on this target; errors are aiohttp's."""
        path, due = operation.path(target), self._loop.time() + timeout
        head = self._heads.get(operation) or self._head(operation)
        taken = self._take_idle()
        lost: aiohttp.ClientError | None = None
        while True:
            try:
                connection, protocol = taken or await self._connect(timeout, due)
            except NOT_SENT as error:
                others = self._connecting or self._due_at
                until = due - (1 - CONNECT_SHARE) * timeout
                fault = await self._exhaustion.wait(error, until) if others else error
                if fault is None:
                    taken = self._take_idle()
                    continue
                self._exhaustion.wake_next()  # it has no connection that could become free
                raise lost or fault from None
            self._set_deadline(protocol, due)
            keep = False
            try:
                try:
                    answer, body = await protocol.send_request(
                        operation.method, path, head, time_slice
                    )
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if not protocol.reused:
                        raise
                    # Servers close idle connections, sometimes just as one is reused. That says
                    # nothing about the tenant; a new connection will. If there is none, the
                    # caller has to know of this request, which was sent.
                    taken, lost = None, error.with_traceback(None)
                    continue
                if body is not None:
                    keep = True
                    return Response(_OK, answer, body, protocol.abort)
                if protocol.is_whole:
                    response, complete = await _read(protocol, operation)
                else:
                    async with self._deadlines.at(due):
                        response, complete = await _read(protocol, operation)
                keep = complete and is_silent(protocol)
                if time_slice is not None:
                    await time_slice.turn()
                return response
            finally:
                self._release(connection, protocol, keep=keep)

    def close(self) -> None:
        """End the requests in flight, and give the connections back to the connector."""
        for timer in (self._deadline_timer, self._cleanup):
            if timer is not None:
                timer.cancel()
        self._deadline_timer = self._cleanup = None
        self._deadlines.close()
        for protocol in self._due_at:
            protocol.fail(ClosedError())
        while self._idle:
            self._idle.pop()[0].release()

    def _request(self, operation: Operation[object]) -> aiohttp.ClientRequest:
        return aiohttp.ClientRequest(
            operation.method,
            URL(self._base_url),
            **request_options(operation, self._credentials),
            loop=self._loop,
        )

    def _head(self, operation: Operation[object]) -> MaskedKey:
        """Return all but the first line of this operation's request, as aiohttp would send it."""
        headers = self._request(operation).headers.items()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = self._heads[operation] = MaskedKey(f"{lines}\r\n{operation.body}")
        return head

    def _take_idle(self) -> tuple[Connection, FastProtocol] | None:
        kept = self._idle
        while kept:
            taken = connection, protocol = kept.pop()
            self._unused = min(self._unused, len(kept))
            if not protocol.is_stale():
                protocol.idle = False
                return taken
            connection.close()
        return None

    async def _connect(self, timeout: float, due: float) -> tuple[Connection, FastProtocol]:
        self._connecting += 1
        try:
            async with self._deadlines.at(due, ClosedBeforeSentError):
                connection = await self._connector.connect(
                    self._template, [], client_timeout(timeout)
                )
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None
        finally:
            self._connecting -= 1
        protocol = connection.protocol
        assert isinstance(protocol, FastProtocol)  # noqa: S101  for the type checkers
        if self._deadlines.closed:  # just as the connection was made
            protocol.abort()
            connection.close()
            raise ClosedBeforeSentError
        return connection, protocol

    def _set_deadline(self, protocol: FastProtocol, due: float) -> None:
        self._due_at[protocol] = due
        if self._deadline_timer is not None and due < self._timer_at:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if self._deadline_timer is None:
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        self._timer_at = due
        self._deadline_timer = self._loop.call_at(due, self._time_out, due)

    def _time_out(self, now: float) -> None:
        """Raise `TimeoutError` in every request whose deadline has passed."""
        self._deadline_timer = None
        for protocol, due in self._due_at.items():
            if due <= now:
                protocol.fail(TimeoutError())
        if left := [due for due in self._due_at.values() if due > now]:
            self._set_timer(min(left))

    def _release(self, connection: Connection, protocol: FastProtocol, *, keep: bool) -> None:
        del self._due_at[protocol]
        self._exhaustion.wake_next()
        if not self._due_at and self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if not keep or self._connector.closed:
            protocol.abort()  # `close` would wait for the server's TLS close notify
            connection.close()
            return
        protocol.mark_idle()
        self._idle.append((connection, protocol))
        if self._cleanup is None:
            self._cleanup = self._loop.call_later(_KEEP_ALIVE / 2, self._close_unused)

    def _close_unused(self) -> None:
        """Close the connections that were not reused since the last cleanup."""
        old, self._idle = self._idle[: self._unused], self._idle[self._unused :]
        self._unused = len(self._idle)
        for connection, _protocol in old:
            connection.close()
        more = self._idle or self._due_at
        self._cleanup = self._loop.call_later(_KEEP_ALIVE / 2, self._close_unused) if more else None


async def _read(protocol: FastProtocol, operation: Operation[object]) -> tuple[Response, bool]:
    """Return the response from aiohttp's parser, and whether its body is complete."""
    while True:
        message, content = await protocol.read()
        check_length(message.raw_headers)
        if not is_informational(message.code):
            break
    protocol.limit_body()
    limit = operation.body_limit(message.code)
    body, complete = await read_body(content, message.code, limit)
    return Response(message.code, message.headers, body, protocol.abort), complete


def _is_original(function: object) -> bool:
    # Wrappers copy `__name__` and `__module__`, but not the globals that they run in.
    return type(function) is FunctionType and str(function.__globals__.get("__name__")).startswith(
        "aiohttp."
    )


@cache
def _warn_once(what: str) -> None:
    logger.warning("%s, so calls take more CPU time than they could", what)
