"""The express path's connections: a plain answer is taken as it came, any other is aiohttp's."""

import asyncio
import re
from functools import partial
from typing import Final

import aiohttp

from monocloud_async.connector import MAX_HEADERS, Attentive, Connector

# RFC 9112, sections 4 and 5, in their plainest form: no folded line, no bare LF, printable ASCII.
_HEAD: Final = re.compile(
    rb"HTTP/1\.1 200 [ -~]{0,100}\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]{0,4000}\r\n){1,60}\r\n"
)
# Section 6: whatever has a say in where the answer ends, or in what comes after it.
_FRAMING: Final = re.compile(
    rb"\n(?:content-length: ([0-9]{1,6})\r|"
    rb"(?:content-(?:length|encoding)|transfer-encoding|upgrade|trailer|"
    rb"proxy-connection|sec-websocket-[a-z0-9-]+):|"
    rb"connection:(?! keep-alive\r))",
    re.IGNORECASE,
)


def plain_body(answer: bytes) -> int:
    """Where the body of a plain and whole answer of 200 begins; 0 where aiohttp has to look at it.

    Plain is an answer about whose end no two readers can differ: HTTP/1.1, one Content-Length that
    is met to the byte, no coding, and nothing behind it.
    """
    head = _HEAD.match(answer)
    if head is None:
        return 0
    start = head.end()
    framing = _FRAMING.findall(answer, 0, start)
    plain = len(framing) == 1 and framing[0] and len(answer) == start + int(framing[0])
    return start if plain and start <= MAX_HEADERS else 0


class Line(Attentive):
    """A connection that takes a plain answer as it came, and leaves any other one to aiohttp."""

    _asker: asyncio.Future[tuple[bytes, int]] | None = None

    def ask(self, path: str, rest: str) -> asyncio.Future[tuple[bytes, int]]:
        """A plain answer and where its body begins, or 0 where `read` has it.

        Raises:
            ServerDisconnectedError, ClientOSError: the connection ended before any of it came.
        """
        if self.transport is None:
            raise aiohttp.ServerDisconnectedError
        self._asker = waiter = self._loop.create_future()
        # In one expression: it has the key, and no local variable should.
        self.transport.write(f"POST {path} HTTP/1.1\r\n{rest}".encode())
        return waiter

    def data_received(self, data: bytes) -> None:
        """Whoever asks gets a plain answer by itself."""
        waiter, self._asker = self._asker, None
        if waiter is None:
            super().data_received(data)
            return
        start = plain_body(data)
        if start:
            self.idle = True  # what comes now is nobody's answer
        else:
            self.leave_to_aiohttp(data)
        if not waiter.done():
            waiter.set_result((data, start))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Whoever asks is told."""
        super().connection_lost(exc)
        self.give_up(
            aiohttp.ClientOSError(*exc.args)
            if isinstance(exc, OSError)
            else aiohttp.ServerDisconnectedError()
        )

    def leave_to_aiohttp(self, answer: bytes) -> None:
        """Let aiohttp read this, and all that follows it."""
        self.expect()
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=True,
            max_line_size=MAX_HEADERS,
            max_field_size=MAX_HEADERS,
            max_headers=MAX_HEADERS,
        )
        super().data_received(answer)

    def give_up(self, error: Exception) -> None:
        """Whoever asks waits no longer, and gets this error."""
        waiter, self._asker = self._asker, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class PlainLine(Line, asyncio.BufferedProtocol):
    """One without TLS, which reads into a buffer that is there.

    asyncio makes one of 256 KiB for every read otherwise, and that costs more than the read. With
    TLS it does not.
    """

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


class Lines(Connector):
    """Connections that the express path can use; the ordinary one can, too."""

    def __init__(self, *, tls: bool = True) -> None:
        buffer = memoryview(bytearray(1 << 16))
        self.protocol = Line if tls else partial(PlainLine, buffer=buffer)
        super().__init__()
