"""A server that speaks bytes, not HTTP: it does with each connection what it is told."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self


class Peer:
    """One connection, seen from the server."""

    def __init__(
        self, server: "RawServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """The next request, which is counted."""
        request = await self._reader.readuntil(b"\r\n\r\n")
        self._server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, *, every: float) -> None:
        """A byte, then a pause, and so on."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(every)

    async def endlessly(self, data: bytes) -> None:
        """The same bytes for as long as there is a client."""
        while True:
            await self.send(data)
            await asyncio.sleep(0.25)  # lets a clock that jumps over waits go on

    async def silence(self) -> None:
        """Nothing, until the client leaves."""
        await self._reader.read()

    async def hello(self) -> bytes:
        """The first bytes of a client that wants to speak TLS."""
        return await self._reader.read(4096)

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What either side says goes to the other one, until one of them leaves."""
        await asyncio.wait(
            [
                asyncio.ensure_future(_pass_on(self._reader, writer)),
                asyncio.ensure_future(_pass_on(reader, self._writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )

    def finish(self) -> None:
        """A FIN: nothing more comes from here, but the client may go on."""
        self._writer.write_eof()

    def reset(self) -> None:
        """The connection dies with an RST in place of a FIN."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()

    def drop(self) -> None:
        """The connection ends with a FIN and nothing before it, no close notify either."""
        self._writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


Act = Callable[[Peer], Awaitable[None]]


def answering(reply: bytes | Callable[[bytes], bytes | None]) -> Act:
    """Every request is answered with these bytes; None is silence; no length closes."""

    async def act(peer: Peer) -> None:
        while True:
            request = await peer.request()
            answer = reply(request) if callable(reply) else reply
            if answer is None:
                await peer.silence()
                return
            await peer.send(answer)
            if b"Content-Length" not in answer:
                return

    return act


def http(body: bytes = b"", *headers: bytes, status: int = 200, length: bool = True) -> bytes:
    """An answer with these header lines, and its length."""
    lines = [b"HTTP/1.1 %d X" % status, *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class RawServer:
    """Listens on loopback; each connection is an `act` of its own, closed when that returns."""

    def __init__(self, act: Act, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self._act = act
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            # Clients leave, and so they should; and at the end the server does.
            with suppress(
                asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError
            ):
                await self._act(Peer(self, reader, writer))
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
