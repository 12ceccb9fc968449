"""Reads the plainest responses without a parser, in as many pieces as they arrive.

No two parsers can differ about the end of such a response: an HTTP/1.1 200 with one Content-Length,
or in chunks without extensions and trailers (RFC 9112, sections 6 and 7.1), that ends exactly where
its bytes end. gzip is the only content coding. Every other response is for aiohttp's parser.
"""

import re
import zlib
from enum import Enum
from typing import Final

from monocloud_async.connector import MAX_HEADERS
from monocloud_async.response import MAX_USER

# RFC 9112, sections 4 and 5, in their plainest form: no folded line, no bare LF, printable ASCII.
_HEAD: Final = re.compile(
    rb"HTTP/1\.1 200 [ -~]{0,100}\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]{0,4000}\r\n){1,60}\r\n"
)
# Section 6: whatever has a say in where the response ends, what its body is, or what comes next.
_FRAMING: Final = re.compile(
    rb"\n(?:content-length: ([0-9]{1,6})\r|(transfer-encoding: chunked)\r|"
    rb"(content-encoding: gzip)\r|"
    rb"(?:content-(?:length|encoding)|transfer-encoding|upgrade|trailer|"
    rb"proxy-connection|sec-websocket-[a-z0-9-]+):|"
    rb"connection:(?! keep-alive\r))",
    re.IGNORECASE,
)
_CHUNK: Final = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,4})\r\n")
_CHUNK_BEGUN: Final = re.compile(rb"(?:[1-9a-fA-F][0-9a-fA-F]{0,4}\r?)?")
_END, _CRLF = b"0\r\n\r\n", b"\r\n"
_GZIP: Final = zlib.MAX_WBITS | 16


class NoBody(Enum):
    """Why there is no body yet."""

    INCOMPLETE = "the response is plain so far, and more of it has to come"
    NOT_PLAIN = "aiohttp has to parse the response"


def plain_body(response: bytes) -> bytes | NoBody:
    """Return the body of a plain response that has exactly these bytes, decompressed."""
    head = _HEAD.match(response)
    if head is None:
        return NoBody.NOT_PLAIN
    start = head.end()
    framing = _FRAMING.findall(response, 0, start)
    length, chunked, gzip = framing[0] if len(framing) == 1 else _joined(framing)
    if start > MAX_HEADERS or bool(length) is bool(chunked):  # neither, or both
        return NoBody.NOT_PLAIN
    if chunked:
        body = _chunks(response, start)
    elif missing := start + int(length) - len(response):
        return NoBody.INCOMPLETE if missing > 0 else NoBody.NOT_PLAIN
    else:
        body = response[start:]
    return _decompressed(body) if gzip and isinstance(body, bytes) else body


def _joined(framing: list[tuple[bytes, bytes, bytes]]) -> tuple[bytes, bytes, bytes]:
    """Return what several header lines say together; nothing if one contradicts or repeats."""
    joined = [b"", b"", b""]
    for line in framing:
        place = next((place for place, value in enumerate(line) if value), None)
        if place is None or joined[place]:
            return b"", b"", b""
        joined[place] = line[place]
    length, chunked, gzip = joined
    return length, chunked, gzip


def _chunks(response: bytes, start: int) -> bytes | NoBody:
    """Return the body in these chunks."""
    parts: list[bytes] = []
    while chunk := _CHUNK.match(response, start):
        end = chunk.end() + int(chunk[1], 16)
        following = response[end : end + 2]
        if following != _CRLF:
            return NoBody.INCOMPLETE if _CRLF.startswith(following) else NoBody.NOT_PLAIN
        parts.append(response[chunk.end() : end])
        start = end + 2
    rest = response[start:]
    if rest == _END:
        return parts[0] if len(parts) == 1 else b"".join(parts)
    more = _END.startswith(rest) or _CHUNK_BEGUN.fullmatch(rest)
    return NoBody.INCOMPLETE if more else NoBody.NOT_PLAIN


def _decompressed(body: bytes) -> bytes | NoBody:
    """Return what is in one member of gzip (RFC 1952) that is whole, and of a user's size."""
    reader = zlib.decompressobj(_GZIP)
    try:
        found = reader.decompress(body, MAX_USER)
    except zlib.error:
        return NoBody.NOT_PLAIN
    return found if reader.eof and not reader.unused_data else NoBody.NOT_PLAIN
