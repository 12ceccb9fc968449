"""A fast server for measurements, which answers as gateways do, plain and over TLS.

It answers every enable with the documented user, under the id that was asked for, with the headers
of a CDN, and in the shape of its port: with a length, in chunks, in gzip where the request allows
it. It runs in a process of its own, on uvloop if that is installed.
"""

import asyncio
import gzip
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import trustme

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "user-documented.json"
ID = "USER-ID"

# What a CDN in front of ASP.NET adds to an answer; the words are nobody's.
HEADERS = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 09:00:00 GMT\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nConnection: keep-alive\r\n"
    b"Cache-Control: no-store,no-cache\r\nPragma: no-cache\r\nServer: edge\r\n"
    b"Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n"
    b"Referrer-Policy: strict-origin-when-cross-origin\r\nVary: Accept-Encoding\r\n"
    b'X-Request-Id: 0HN7Q2K4L5M6P:00000002\r\nAlt-Svc: h3=":443"; ma=86400\r\n'
    b"Edge-Ray: 8f1c2d3e4b5a6978-FRA\r\n"
)
SHAPES = ("length", "chunked", "chunked in two", "gzip", "gzip chunked")


def body(user_id: str, size: int = 0) -> str:
    """Return the documented user with this id.

    With a `size`, its `private_data` has about so many bytes: small objects, as applications have.
    """
    user = json.loads(SAMPLE.read_text(encoding="utf-8")) | {"user_id": ID}
    if size:
        items = [{"at": number, "item": f"order-{number}"} for number in range(size // 32)]
        user["private_data"] = {"orders": items}
    text = json.dumps(user, separators=(",", ":"))
    assert text.count(ID) == 1
    return text.replace(ID, user_id)


@contextmanager
def serving(folder: Path, size: int = 0) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the addresses by "TLS/chunked" and the like, and the server's name.

    `folder` gets the authority, ca.pem. `size` is that of `body`.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    names = [f"{security}/{shape}" for security in ("plain", "TLS") for shape in SHAPES]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [sys.executable, __file__, str(folder), json.dumps(ports), str(size)]
    said_by_it = folder / "server.txt"
    with said_by_it.open("wb") as output, subprocess.Popen(command, stderr=output) as server:
        try:
            for port in ports.values():
                if not _answers(port, server):
                    sys.exit(f"the server did not start:\n{said_by_it.read_text()}")
            yield (
                {
                    name: f"{'https' if name.startswith('TLS') else 'http'}://127.0.0.1:{port}"
                    for name, port in ports.items()
                },
                f"a server on {_new_loop().__module__.partition('.')[0]}",
            )
            assert server.poll() is None, "the server ended before the measurement"
        finally:
            server.terminate()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _answers(port: int, server: "subprocess.Popen[bytes]") -> bool:
    for _ in range(100):
        if server.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


Pieces = tuple[bytes, ...]


def with_length(user: bytes, coding: bytes = b"") -> Pieces:
    return (b"%b%bContent-Length: %d\r\n\r\n%b" % (HEADERS, coding, len(user), user),)


def in_chunks(user: bytes, coding: bytes = b"") -> Pieces:
    head = b"%b%bTransfer-Encoding: chunked\r\n\r\n" % (HEADERS, coding)
    return (b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(user), user),)


def in_two(user: bytes) -> Pieces:
    """The last chunk in a segment of its own, as Kestrel sends it."""
    (whole,) = in_chunks(user)
    return whole[:-5], whole[-5:]


def packed(shape: Callable[[bytes, bytes], Pieces], user: bytes, *, allowed: bool) -> Pieces:
    if not allowed:
        return shape(user, b"")
    return shape(gzip.compress(user, 1), b"Content-Encoding: gzip\r\n")


class _Answers(asyncio.Protocol):
    """Answers requests without a body, one after the other on one connection."""

    transport: asyncio.Transport
    asked = re.compile(rb"POST /api/users/([^/ ]+)/enable HTTP/1\.1\r\n")
    allowed = re.compile(rb"\naccept-encoding:[^\r]*gzip", re.IGNORECASE)
    before, after = b"", b""
    left = b""

    def __init__(self, shape: str) -> None:
        self.shape = shape

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *heads, self.left = (self.left + data).split(b"\r\n\r\n")
        for head in heads:
            request = self.asked.match(head)
            if request is None:
                self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            user = b"".join((self.before, request[1], self.after))
            first, *rest = self.pieces(user, allowed=bool(self.allowed.search(head)))
            self.transport.write(first)
            for piece in rest:  # later, so that it is a segment of its own
                asyncio.get_running_loop().call_soon(self.transport.write, piece)

    def pieces(self, user: bytes, *, allowed: bool) -> Pieces:
        match self.shape:
            case "length":
                return with_length(user)
            case "chunked":
                return in_chunks(user)
            case "chunked in two":
                return in_two(user)
            case "gzip":
                return packed(with_length, user, allowed=allowed)
            case _:
                return packed(in_chunks, user, allowed=allowed)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(folder: str, ports: str, size: str) -> None:
    _Answers.before, _Answers.after = body(ID, int(size)).encode().split(ID.encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/server.pem")
    loop = asyncio.get_running_loop()
    for name, port in json.loads(ports).items():
        security, _, shape = name.partition("/")
        tls = context if security == "TLS" else None
        await loop.create_server(partial(_Answers, shape), "127.0.0.1", port, ssl=tls)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(*sys.argv[1:]))
