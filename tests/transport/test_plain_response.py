"""A plain response is read as any parser reads it, and whatever is less plain is left to one."""

import gzip
import zlib

import pytest

from monocloud_async.response import MAX_USER
from monocloud_async.transport.plain_response import NoBody, plain_body

ADA = b'{"user_id":"ada"}'
START = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HEAD = START + b"Content-Length: 17\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
PACKED = gzip.compress(ADA, mtime=0)  # or two processes would collect different tests
GZIP = START + b"Content-Encoding: gzip\r\n"


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


PLAIN = [
    HEAD + b"\r\n" + ADA,
    HEAD + b"Connection: keep-alive\r\nX-Empty:\r\n\r\n" + ADA,
    HEAD.replace(b"Content-Length", b"content-length") + b"\r\n" + ADA,
    HEAD.replace(b"200 OK", b"200 ") + b"\r\n" + ADA,
    CHUNKED + chunks(ADA),
    CHUNKED + chunks(ADA[:3], ADA[3:7], ADA[7:]),
    CHUNKED + b"a\r\n" + ADA[:10] + b"\r\nA\r\n" + (ADA + b"   ")[10:] + b"\r\n0\r\n\r\n",
    CHUNKED.replace(b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked") + chunks(ADA),
    GZIP + b"Content-Length: %d\r\n\r\n" % len(PACKED) + PACKED,
    GZIP + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(PACKED[:9], PACKED[9:]),
]


@pytest.mark.parametrize("response", PLAIN)
def test_a_response_is_plain_as_soon_as_it_is_whole(response: bytes) -> None:
    body = plain_body(response)
    assert isinstance(body, bytes)
    assert body.rstrip() == ADA
    head = response.index(b"\r\n\r\n") + 4
    for end in range(len(response)):
        expected = NoBody.INCOMPLETE if end >= head else NoBody.NOT_PLAIN
        assert plain_body(response[:end]) is expected


@pytest.mark.parametrize("response", PLAIN)
@pytest.mark.parametrize("more", [b"H", b"\r\n", b"0\r\n\r\n", HEAD + b"\r\n" + ADA])
def test_a_response_with_something_behind_it_is_not_plain(response: bytes, more: bytes) -> None:
    assert plain_body(response + more) is NoBody.NOT_PLAIN


@pytest.mark.parametrize(
    "response",
    [
        b"",
        HEAD,
        HEAD + b"\r\n" + ADA + b"H",
        HEAD + b"\r\n" + ADA + HEAD + b"\r\n" + ADA,
        HEAD.replace(b"200", b"201") + b"\r\n" + ADA,
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + ADA,
        HEAD.replace(b"\r\n", b"\n") + b"\n" + ADA,
        HEAD.replace(b"17", b"+17") + b"\r\n" + ADA,
        HEAD.replace(b"17", b"17, 17") + b"\r\n" + ADA,
        HEAD.replace(b"17", b"0017000") + b"\r\n" + ADA,
        HEAD.replace(b"Content-Length:", b"Content-Length :") + b"\r\n" + ADA,
        HEAD.replace(b"Content-Length: 17", b"X: y") + b"\r\n" + ADA,
        HEAD + b"Content-Length: 17\r\n\r\n" + ADA,
        HEAD + b"content-length: 5\r\n\r\n" + ADA,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + ADA,
        HEAD + b"transfer-encoding: identity\r\n\r\n" + ADA,
        HEAD + b"Content-Encoding: gzip\r\n\r\n" + ADA,
        HEAD + b"Content-Encoding: br\r\n\r\n" + ADA,
        HEAD + b"Connection: close\r\n\r\n" + ADA,
        HEAD + b"Connection: keep-alive, close\r\n\r\n" + ADA,
        HEAD + b"Connection: keep-alive\r\nConnection: close\r\n\r\n" + ADA,
        HEAD + b"Upgrade: h2c\r\n\r\n" + ADA,
        HEAD + b"Trailer: X\r\n\r\n" + ADA,
        HEAD + b"Proxy-Connection: close\r\n\r\n" + ADA,
        HEAD + b"Sec-WebSocket-Key1: x\r\n\r\n" + ADA,
        HEAD.replace(b"OK", b"O" * 9000) + b"\r\n" + ADA,
        HEAD + b"X: y\r\n folded\r\n\r\n" + ADA,
        HEAD + b"X: \x00\r\n\r\n" + ADA,
        HEAD + b"X: \xff\r\n\r\n" + ADA,
        HEAD + b"X\r\n\r\n" + ADA,
        HEAD + b": x\r\n\r\n" + ADA,
        HEAD + b"X: y\rContent-Length: 5\r\n\r\n" + ADA,
        HEAD + b"X: y\r\n" * 100 + b"\r\n" + ADA,
        HEAD + b"X: " + b"y" * 5000 + b"\r\n\r\n" + ADA,
        CHUNKED + b"0" + chunks(ADA),
        CHUNKED + b"0x11\r\n" + ADA + b"\r\n0\r\n\r\n",
        CHUNKED + b"+11\r\n" + ADA + b"\r\n0\r\n\r\n",
        CHUNKED + b"11;x\r\n" + ADA + b"\r\n0\r\n\r\n",
        CHUNKED + b"11 \r\n" + ADA + b"\r\n0\r\n\r\n",
        CHUNKED + b"11\n" + ADA + b"\n0\n\n",
        CHUNKED + b"10\r\n" + ADA + b"\r\n0\r\n\r\n",
        CHUNKED + b"11\r\n" + ADA + b"\r\n00\r\n\r\n",
        CHUNKED + b"11\r\n" + ADA + b"\r\n0\r\nX: y\r\n\r\n",
        CHUNKED + b"fffff1\r\n" + ADA,
        CHUNKED + b"{}",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + chunks(ADA),
        CHUNKED.replace(b"chunked", b"chunked\r\nTransfer-Encoding: chunked") + chunks(ADA),
        GZIP + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED,
        GZIP + b"Content-Length: %d\r\n\r\n" % (len(PACKED) - 1) + PACKED[:-1],
        GZIP + b"Content-Length: %d\r\n\r\n" % (2 * len(PACKED)) + 2 * PACKED,
        GZIP + b"Content-Length: 17\r\n\r\n" + zlib.compress(ADA)[:17].ljust(17),
    ],
)
def test_a_response_is_not_plain(response: bytes) -> None:
    assert plain_body(response) is NoBody.NOT_PLAIN


def test_what_unpacks_to_more_than_a_user_is_left_to_aiohttp() -> None:
    packed = gzip.compress(b" " * (MAX_USER + 1))
    response = GZIP + b"Content-Length: %d\r\n\r\n" % len(packed) + packed
    assert plain_body(response) is NoBody.NOT_PLAIN
