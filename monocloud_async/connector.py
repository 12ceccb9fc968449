"""Connections of the session's own: none is used again on which the server spoke unasked."""

import asyncio
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace


class Attentive(ResponseHandler, asyncio.BufferedProtocol):
    """Gives its connection up at the first byte that comes while nobody waits for an answer.

    Args:
        loop: the event loop.
        buffer: where the event loop reads into. Without one, asyncio makes a buffer of 256 KiB
            for every read, twice with TLS, and that costs more than the read.
    """

    idle = False
    _look: Callable[[], Sequence[object]] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        super().__init__(loop)
        self._read_into = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read into; what is there is taken before anybody else reads."""
        del sizehint
        return self._read_into

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes are there."""
        self.data_received(bytes(self._read_into[:nbytes]))

    def rest(self) -> None:
        """The answer is complete."""
        self.idle = True

    def data_received(self, data: bytes) -> None:
        """The next piece of an answer, or of what nobody asked for."""
        if self.idle and data:
            self.abort()
        else:
            super().data_received(data)

    def heard(self) -> bool:
        """Whether the server said anything since, or left, as far as the system knows of it."""
        if self.transport is None or self.transport.is_closing():
            return True
        # A busy event loop has not read everything yet.
        if self._look is None:
            descriptor = self.transport.get_extra_info("socket").fileno()
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                self._look = partial(poll.poll, 0)
            else:  # Windows
                self._look = lambda: select.select([descriptor], [], [], 0)[0]
        return bool(self._look())


class Connector(TCPConnector):
    """As many connections as there are calls at once, each of them kept for the next call.

    What comes in over a connection that waits for its next use is nobody's answer, and ends it.
    aiohttp keeps it, without any bound, and would take it for the answer to the next request: one
    user's answer for another's. RFC 9112, section 6.3: a client must not process such data as a
    response.

    Args:
        options: those of `aiohttp.TCPConnector`. Default: its own, but no limit, because a timeout
            would count the time that is spent in the queue for a connection.
    """

    protocol = Attentive

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"limit": 0, **options})
        # aiohttp has no public way to bring a protocol of one's own; the tests see if it takes it.
        buffer = memoryview(bytearray(1 << 16))
        self._factory = partial(self.protocol, self._loop, buffer)  # type: ignore[assignment]

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        """A connection that is new, or has been silent since its last answer."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if not isinstance(protocol, Attentive):  # the outer one of a proxy's tunnel
                return connection
            if protocol.idle and protocol.heard():
                connection.close()
                continue
            protocol.idle = False
            connection.add_callback(protocol.rest)
            return connection
