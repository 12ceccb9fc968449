"""Connections of the session's own: none is used again on which the server spoke unasked."""

import select
from typing import Any
from weakref import WeakSet

from aiohttp import ClientRequest, ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace


class Connector(TCPConnector):
    """As many connections as there are calls at once, each of them kept for the next call.

    What comes in over a connection that waits for its next use is nobody's answer. aiohttp keeps
    it, and would take it for the answer to the next request: one user's answer for another's.
    RFC 9112, section 6.3: a client must not process such data as a response.

    Args:
        options: those of `aiohttp.TCPConnector`. Default: its own, but no limit, because a timeout
            would count the time that is spent in the queue for a connection.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"limit": 0, **options})
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        """A connection that is new, or has been silent since its last answer."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or protocol not in self._used:
                break
            if not protocol.should_close and not _is_readable(protocol):
                return connection
            connection.close()
        if protocol is not None:
            self._used.add(protocol)
        return connection


def _is_readable(protocol: ResponseHandler) -> bool:
    """Whether something came in that a busy event loop has not seen yet; its end counts, too."""
    if protocol.transport is None:
        return True
    descriptor = protocol.transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
