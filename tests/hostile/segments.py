"""Responses in two or three segments: where they are cut, and what is sent there."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faults import LINES, chunked
from raw_server import http

import monocloud_async as m


def user(user_id: str, mark: int) -> bytes:
    """Return the body of a user; the mark identifies the request."""
    return json.dumps({"user_id": user_id, "creation_time": mark}).encode()


def refusal(mark: int) -> bytes:
    """Return the body of a refusal, with its mark."""
    return json.dumps({"title": f"mark {mark}"}).encode()


def _halves(body: bytes) -> tuple[bytes, bytes]:
    half = len(body) // 2
    return body[:half], body[half:]


def _gzipped(user_id: str, mark: int) -> bytes:
    return gzip.compress(user(user_id, mark))


Make = Callable[[str, int], bytes]


@dataclass(frozen=True)
class Shape:
    """A form of response: its bytes for a user and a mark, and its status."""

    make: Make
    status: int = 200

    def is_of(self, error: m.MonoCloudError, mark: int) -> bool:
        """Return whether this is the error for such a response, complete."""
        of_status = isinstance(error, m.StatusError) and error.status == self.status
        return of_status and f"mark {mark}" in str(error)


def _refusing(status: int, *, in_chunks: bool) -> Shape:
    def make(_user_id: str, mark: int) -> bytes:
        body = refusal(mark)
        return chunked(body, status=status) if in_chunks else http(body, status=status)

    return Shape(make, status)


SHAPES = {
    "with a length": Shape(lambda *who: http(user(*who))),
    "in one chunk": Shape(lambda *who: chunked(user(*who))),
    "in two chunks": Shape(lambda *who: chunked(*_halves(user(*who)))),
    "gzip with a length": Shape(lambda *who: http(_gzipped(*who), b"Content-Encoding: gzip")),
    "gzip in chunks": Shape(
        lambda *who: chunked(*_halves(_gzipped(*who)), headers=(b"Content-Encoding: gzip",))
    ),
    "404 with a length": _refusing(404, in_chunks=False),
    "404 in chunks": _refusing(404, in_chunks=True),
    "429 with a length": _refusing(429, in_chunks=False),
    "503 in chunks": _refusing(503, in_chunks=True),
    "without a length": Shape(lambda *who: http(user(*who), length=False)),
}
ENDLESS = "without a length"  # the end of the connection ends this response


def borders(answer: bytes) -> Iterator[tuple[str, int]]:
    """Return where a response can be cut in two: a name, and how many bytes come before."""
    head = answer.index(LINES) + 4
    yield "inside the status line", 11
    yield "inside the end of the status line", answer.index(b"\n")
    yield "behind the status line", answer.index(b"\n") + 1
    yield "inside a header", answer.index(b"\n") + 6
    yield "before the empty line", head - 2
    yield "inside the empty line", head - 1
    yield "behind the head", head
    if b"Transfer-Encoding" not in answer[:head]:
        yield "inside the body", head + 5
        yield "before the last byte", len(answer) - 1
        return
    at, number = head, 0
    while True:
        line = answer.index(b"\r\n", at)
        size, number = int(answer[at:line], 16), number + 1
        if not size:
            break
        yield f"inside the size of chunk {number}", at + 1
        yield f"inside the end of the size of chunk {number}", line + 1
        yield f"before chunk {number}", line + 2
        yield f"inside chunk {number}", line + 2 + size // 2
        yield f"behind chunk {number}", line + 2 + size
        yield f"inside the end of chunk {number}", line + 3 + size
        at = line + 4 + size
        yield f"behind the end of chunk {number}", at
    yield "behind the last size", line
    yield "inside the end of the last size", line + 1
    yield "before the last empty line", line + 2
    yield "inside the last empty line", line + 3


# What replaces the rest: bytes, or a word for how the connection ends.
CLOSE, RESET, STALL = "close", "reset", "stall"
BREAKS: dict[str, bytes] = {
    CLOSE: b"",
    RESET: b"",
    STALL: b"",
    "no chunk size": b"zz\r\n",
    "a negative chunk size": b"-1\r\n",
    "control characters": b"\1\0" * 20,
    "garbage": b"<html>\r\n\r\nBad gateway</html>\r\n" * 3,
    "another answer": http(b"bad gateway", status=502) * 3,
}

HARMLESS = b"\r\n"  # a parser may ignore it, and keep the connection
SMUGGLED = 4711  # the mark of a response without a request
# What follows the last bytes of a complete response.
EXTRAS: dict[str, bytes] = {
    "a refusal": http(refusal(SMUGGLED), status=404),
    "a refusal in chunks": chunked(refusal(SMUGGLED), status=404),
    "the next user": http(user("bob", SMUGGLED)),
    "no more for now": http(refusal(SMUGGLED), status=429),
    "half an answer": http(user("bob", SMUGGLED))[:-9],
    "half a head": b"HTTP/1.1 404 Not Found\r\nContent-",
    "half an answer of 5,000 bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{",
    "early hints": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "another protocol, barely": b"HTTP/1.1 101 X\r\n\r\n",
    "a byte": b"x",
    "NUL": b"\0",
    "a line end": HARMLESS,
}
