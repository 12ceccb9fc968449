"""A scripted server that sends raw bytes, not HTTP."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self


class Peer:
    """The server's side of one connection."""

    def __init__(
        self, server: "RawServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """Read and count the next request."""
        request = await self._reader.readuntil(b"\r\n\r\n")
        self._server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, *, every: float) -> None:
        """Send these bytes one by one, with a pause after each."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(every)

    async def endlessly(self, data: bytes) -> None:
        """Send the same bytes until the client leaves."""
        while True:
            await self.send(data)
            await asyncio.sleep(0.25)  # lets a jumping clock advance

    async def silence(self) -> None:
        """Send nothing until the client leaves."""
        await self._reader.read()

    async def hello(self) -> bytes:
        """Read the first bytes of a TLS handshake."""
        return await self._reader.read(4096)

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward bytes in both directions until one side leaves."""
        await asyncio.wait(
            [
                asyncio.ensure_future(_pass_on(self._reader, writer)),
                asyncio.ensure_future(_pass_on(reader, self._writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )

    def finish(self) -> None:
        """Send a FIN; the client may continue to send."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Abort the connection with an RST instead of a FIN."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()

    def drop(self) -> None:
        """End the connection with a FIN, without a TLS close_notify."""
        self._writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


Act = Callable[[Peer], Awaitable[None]]


def answering(reply: bytes | Callable[[bytes], bytes | None]) -> Act:
    """Answer every request with these bytes; None means silence; without a length, close."""

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
    """Return a response with these header lines and its length."""
    lines = [b"HTTP/1.1 %d X" % status, *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class RawServer:
    """Listens on loopback; runs `act` for each connection, and then closes the connection."""

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
            # Clients disconnect, and at the end the server does.
            with suppress(
                asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError
            ):
                await self._act(Peer(self, reader, writer))
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()

    def refuse(self) -> None:
        """Accept no more connections; the open ones stay."""
        assert self._listener is not None
        self._listener.close()

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
        self.refuse()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
