"""Connections of the session's own: none is used again on which the server spoke unasked."""

import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace


class Attentive(ResponseHandler):
    """Gives its connection up at the first byte that comes while nobody waits for an answer."""

    idle = False
    _look: Callable[[], Sequence[object]] | None = None

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

    protocol: Callable[..., Attentive] = Attentive

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
            if not isinstance(protocol, Attentive):  # the outer one of a proxy's tunnel
                return connection
            if protocol.idle and protocol.heard():
                connection.close()
                continue
            protocol.idle = False
            connection.add_callback(protocol.rest)
            return connection
