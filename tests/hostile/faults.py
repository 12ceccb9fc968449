"""The fault table: everything that a network does to a client, with the expected result."""

import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import import_module
from typing import Any, Literal

import trustme
from raw_server import Act, Peer, http

import monocloud_async as m

USER = b'{"user_id":"ada"}'
MIB = 1 << 20
LINES = b"\r\n\r\n"

Outcome = type[m.MonoCloudError] | None
Tls = Literal["", "trusted", "untrusted", "wrong host", "expired"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the server does, and the expected result.

    Attributes:
        kind, name: for people, and for `pytest -k`.
        act: what becomes of each connection.
        error: what the caller gets; None is the user.
        says: a part of the error's message.
        retried: whether all attempts are used up, or only one.
        reaches: whether requests arrive at all.
        sent: whether the client has to think so; None where it knows.
        seconds: what an attempt may take at most, by the clock of the event loop.
        tls: which certificate the server has; "" is plain HTTP.
        raw: whether the act speaks the server's part of TLS itself.
    """

    kind: str
    name: str
    act: Act
    error: Outcome = m.TransportError
    says: str = ""
    retried: bool = True
    reaches: bool = True
    sent: bool | None = None
    seconds: float = 0.5
    tls: Tls = ""
    raw: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def chunked(*chunks: bytes, status: int = 200, headers: tuple[bytes, ...] = ()) -> bytes:
    """Return a chunked response, including the last chunk."""
    head = http(b"", b"Transfer-Encoding: chunked", *headers, status=status, length=False)
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def says(*answers: bytes, stay: bool = False) -> Act:
    """Read a request, send the responses, and close the connection or keep it open."""

    async def act(peer: Peer) -> None:
        await peer.request()
        for answer in answers:
            await peer.send(answer)
        if stay:
            await peer.silence()

    return act


def resets_after(answer: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        peer.reset()

    return act


def never_ends(start: bytes, block: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        await peer.endlessly(block)

    return act


async def silence(peer: Peer) -> None:
    await peer.request()
    await peer.silence()


async def half_close_at_once(peer: Peer) -> None:
    """Send a FIN first; read the request, and send no response."""
    peer.finish()
    await peer.silence()


async def reset_at_once(peer: Peer) -> None:
    peer.reset()


def _connections() -> Iterator[Fault]:
    def fault(name: str, act: Act, what: str = "", seconds: float = 0.5) -> Fault:
        return Fault(kind="connection", name=name, act=act, says=what, seconds=seconds)

    unread = replace(fault("", silence), reaches=False, sent=True)
    yield replace(
        unread,
        name="closed before the request",
        act=half_close_at_once,
        says="closed before",
        seconds=0.5,
    )
    yield replace(
        unread,
        name="reset before the request",
        act=reset_at_once,
        says="broke|closed before",
        seconds=0.5,
    )
    yield fault("closed after the request", says(), "closed before an answer")
    yield fault("reset after the request", resets_after(b""), "connection broke")
    yield fault("never an answer", silence, "no complete answer", 3)
    for where, start in (
        ("status line", b"HTTP/1.1 20"),
        ("headers", b"HTTP/1.1 200 OK\r\nContent-Le"),
        ("body", http(USER)[:-5]),
        ("chunk size", http(b"1", b"Transfer-Encoding: chunked", length=False)),
        ("chunk", chunked(USER)[:-12]),
        ("last chunk", chunked(USER)[:-2]),
    ):
        early = "closed before an answer" if where in {"status line", "headers"} else "cut short"
        yield fault(f"closed inside the {where}", says(start), early)
        yield fault(f"reset inside the {where}", resets_after(start), f"{early}|connection broke")
        yield fault(f"stalled inside the {where}", says(start, stay=True), "no complete", 3)
    yield fault("closed inside a body without a length", says(http(USER[:-3], length=False)), "cut")
    refused = http(b'{"title":"No"}' * 9, status=404)
    for how, act in (("closed", says(refused[:-9])), ("reset", resets_after(refused[:-9]))):
        yield Fault(
            kind="connection",
            name=f"{how} inside a refusal, whose status stands",
            act=act,
            error=m.NotFoundError,
            retried=False,
        )


def _slow() -> Iterator[Fault]:
    for what, answer in (
        ("headers", http(USER)),
        ("body", http(b" " * 400 + USER)),
        ("chunks", chunked(*(b" " for _ in range(100)), USER)),
        ("refusal", http(b" " * 400, status=503)),
    ):
        head = answer.index(LINES) + 4 if what != "headers" else 0

        async def act(peer: Peer, answer: bytes = answer, head: int = head) -> None:
            await peer.request()
            await peer.send(answer[:head])
            await peer.drip(answer[head:], every=0.5)

        yield Fault(
            kind="slow", name=f"{what} byte by byte", act=act, says="no complete", seconds=3
        )


def _lengths() -> Iterator[Fault]:
    def fault(name: str, answer: bytes, what: str = "", *, stay: bool = False) -> Fault:
        return Fault(kind="length", name=name, act=says(answer, stay=stay), says=what)

    def length(value: bytes, body: bytes = USER) -> bytes:
        return http(body, b"Content-Length: " + value, length=False)

    yield fault("longer than the body", length(b"1000"), "cut short")
    yield replace(
        fault("longer than the body, which stalls", length(b"1000"), stay=True),
        says="no complete",
        seconds=3,
    )
    # Where a response ends, its length says, and what is behind it is nobody's.
    yield fault("5, shorter than the body", length(b"5"), "cut short")
    yield replace(
        fault("0, shorter than the body", length(b"0"), "it was empty"),
        error=m.InvalidResponseError,
        retried=False,
    )
    for value in (b"-1", b"+17", b"0x11", b"17.0", b"ten", b"99999999999999999999999", b"17, 17"):
        yield fault(repr(value.decode()), length(value), "not HTTP")
    yield fault("two that differ", length(b"17\r\nContent-Length: 18"), "not HTTP")
    yield fault("beside chunks", length(b"17\r\nTransfer-Encoding: chunked"), "not HTTP")


def _chunks() -> Iterator[Fault]:
    def fault(name: str, body: bytes, coding: bytes = b"chunked") -> Fault:
        answer = http(body, b"Transfer-Encoding: " + coding, length=False)
        return Fault(kind="chunks", name=name, act=says(answer), says="cut short|not HTTP")

    for size in (b"zz", b"-5", b"+5", b"0x11", b"", b"1" * 40, b"11 11", b"7fffffffffffffff"):
        yield fault(f"size {size.decode()!r}", size + b"\r\n" + USER + b"\r\n0\r\n\r\n")
    yield fault("no line end after a chunk", b"11\r\n" + USER + b"0\r\n\r\n")
    yield fault("a chunk longer than its size", b"5\r\n" + USER + b"\r\n0\r\n\r\n")
    yield replace(
        fault("an extension of 1 MiB", b"11;" + b"x" * MIB + b"\r\n" + USER + b"\r\n0\r\n\r\n"),
        error=None,
        retried=False,
    )
    trailers = b"11\r\n" + USER + b"\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"
    yield replace(fault("10,000 trailers", trailers), error=None, retried=False)
    answer = http(USER, b"Transfer-Encoding: chunked", length=False)[: -len(USER)]
    yield replace(
        fault("trailers without end", b""),
        act=never_ends(answer + b"11\r\n" + USER + b"\r\n0\r\n", b"X: y\r\n" * 100_000),
        seconds=2.5,
    )
    for coding in (b"gzip, quux", b"chunked, gzip"):
        # RFC 9112, section 6.3: such a body ends with the connection, so it is not decoded.
        yield replace(
            fault(f"coding {coding.decode()!r}", b"11\r\n" + USER + b"\r\n0\r\n\r\n", coding),
            error=m.InvalidResponseError,
            says="no JSON object",
            retried=False,
        )


def _headers() -> Iterator[Fault]:
    def fault(name: str, answer: bytes) -> Fault:
        return Fault(kind="headers", name=name, act=says(answer), says="not HTTP")

    def long(name: str, answer: bytes) -> Fault:
        return replace(fault(name, answer), says="longer than 64 KiB", retried=False)

    yield replace(
        fault("60,000 bytes, in a line", http(USER, b"X: " + b"y" * 60_000)),
        error=None,
        retried=False,
    )
    yield replace(
        fault("60,000 bytes, in 6,000 lines", http(USER, *[b"X: 6789"] * 6_000)),
        error=None,
        retried=False,
    )
    yield long("10,000 of them", http(USER, *[b"X-%d: y" % number for number in range(10_000)]))
    yield long("a line of 1 MiB", http(USER, b"X: " + b"y" * MIB))
    yield long("a name of 1 MiB", http(USER, b"X" * MIB + b": y"))
    yield long("a status line of 1 MiB", b"HTTP/1.1 200 " + b"y" * MIB + b"\r\n" + LINES)
    yield fault("NUL", http(USER, b"X: a\0b"))
    yield fault("no colon", http(USER, b"just words"))
    yield fault("no name", http(USER, b": y"))
    yield fault("space before the colon", http(USER, b"X : y"))
    yield replace(
        long("never ending, many lines", b""),
        act=never_ends(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 12_000),
    )
    yield replace(
        long("never ending, one line", b""),
        act=never_ends(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65_536),
    )


def _informational() -> Iterator[Fault]:
    def fault(name: str, act: Act, **expected: Any) -> Fault:
        return replace(Fault(kind="1xx", name=name, act=act, error=None, retried=False), **expected)

    yield fault("2,000 times 100", says(b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000 + http(USER)))
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    yield fault("early hints before the answer", says(early + http(USER)))
    yield fault(
        "100 without end",
        never_ends(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        error=m.TransportError,
        says="longer than 64 KiB",
    )
    yield fault(
        "another protocol",
        says(http(USER, b"Upgrade: h2c", b"Connection: upgrade", status=101, length=False)),
        error=m.InvalidResponseError,
        says="status 101",
    )


CODINGS = {
    "gzip": "gzip",
    "deflate": "zlib",
    "br": "brotli",
    "zstd": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
}


def packed(coding: str, data: bytes) -> bytes | None:
    """Return the data in this content coding, or None if this machine does not support it."""
    try:
        compressor = import_module(CODINGS[coding])
    except ImportError:
        return None
    # Brotli's usual quality takes seconds for a bomb, which all processes of the tests make.
    return bytes(compressor.compress(data, **({"quality": 9} if coding == "br" else {})))


def _bombs() -> Iterator[Fault]:
    yield Fault(
        kind="bomb",
        name="gzip: 100,000 empty streams, one after the other",
        act=says(http((packed("gzip", b"") or b"") * 100_000, b"Content-Encoding: gzip")),
        says="cut short|not HTTP",
    )
    for name, item in (("objects", b"{}"), ("lists", b"[]")):
        # JSON can be a bomb, too: an empty list takes 24 times the memory of its two characters.
        many = b",".join([item] * 300_000)
        yield Fault(
            kind="bomb",
            name=f"300,000 empty {name} as faults of a refusal",
            act=says(http(b'{"errors":[' + many + b"]}", status=422)),
            error=m.UnprocessableError,
            retried=False,
        )
        yield Fault(
            kind="bomb",
            name=f"80,000 empty {name} as claims of a user",
            act=says(http(b'{"user_id":"ada","claims":{"a":[' + many[:240_000] + item + b"]}}")),
            error=None,
            retried=False,
        )
    for coding in CODINGS:
        bomb = packed(coding, b"\0" * (64 * MIB))
        if bomb is None:
            continue
        header = b"Content-Encoding: " + coding.encode()
        yield Fault(
            kind="bomb",
            name=f"{coding}: {len(bomb):,} bytes for 64 MiB",
            act=says(http(bomb, header)),
            error=m.InvalidResponseError,
            says="longer than",
            retried=False,
        )
        yield Fault(
            kind="bomb",
            name=f"{coding}: as a refusal",
            act=says(http(bomb, header, status=404)),
            error=m.NotFoundError,
            retried=False,
        )
        whole = packed(coding, USER) or b""
        yield Fault(
            kind="coding",
            name=f"{coding}: cut before it was measured",
            act=says(http(whole[:-12], header)),
            says="cut short|not HTTP",
        )
        yield Fault(
            kind="coding",
            name=f"{coding}: not at all",
            act=says(http(USER, header)),
            says="cut short|not HTTP",
        )


def _bodies() -> Iterator[Fault]:
    endless = b"9000\r\n" + b" " * 0x9000 + b"\r\n"
    for status, error in ((200, m.InvalidResponseError), (404, m.NotFoundError)):
        for name, header, block in (
            ("in chunks", b"Transfer-Encoding: chunked", endless),
            ("without a length", b"X: y", b" " * 65_536),
            ("of a terabyte", b"Content-Length: 1099511627776", b" " * 65_536),
        ):
            yield Fault(
                kind="body",
                name=f"never ends, {name}, status {status}",
                act=never_ends(http(b"", header, status=status, length=False), block * 8),
                error=error,
                says="longer than" if status == 200 else "404",
                retried=False,
                seconds=2,
            )

    def answer(name: str, reply: bytes, what: str) -> Fault:
        return Fault(
            kind="body",
            name=name,
            act=says(reply),
            error=m.InvalidResponseError,
            says=what,
            retried=False,
        )

    for name, body in (
        ("empty", b""),
        ("a page of a guest network", b"<html><h1>Welcome!</h1></html>"),
        ("null", b"null"),
        ("not UTF-8", b'{"user_id":"\xff"}'),
        ("nested 100,000 deep", b"[" * 100_000),
        ("two users", USER + USER),
        ("without an id", b"{}"),
        ("1 MiB of text", b'{"user_id":"ada","x":"' + b"y" * MIB + b'"}'),
    ):
        yield answer(name, http(body), "answer was")
    for name, more in (
        ("half a surrogate pair at the end", rb'"claims":{"name":"Ada \ud83d"}'),
        ("5,000 lists in each other", b'"x":' + b"[" * 5000 + b"]" * 5000),
        ("a number of 5,000 digits", b'"creation_time":' + b"9" * 5000),
        ("a byte that is not UTF-8", b'"claims":{"name":"J\xf6rg"}'),
        ("a member of another type", b'"emails":"none"'),
    ):
        odd = USER.removesuffix(b"}") + b"," + more + b"}"
        yield Fault(kind="body", name=name, act=says(http(odd)), error=None, retried=False)
    marked = says(http(b"\xef\xbb\xbf" + USER))
    yield Fault(kind="body", name="a byte order mark", act=marked, error=None, retried=False)
    for user_id in (b"bob", b"Ada", b"ada ", b"ad", b"adaa", b"a%64a"):
        other = b'{"user_id":"' + user_id + b'"}'
        yield answer(f"another user, {user_id.decode()!r}", http(other), "another user")
    elsewhere = b"Location: http://127.0.0.1:1/t?token=s3cret"
    for status in (201, 202, 206, 301, 302, 303, 307, 308, 600, 999):
        yield answer(f"status {status}", http(USER, elsewhere, status=status), str(status))
    for status in (204, 304):
        reply = http(b"", elsewhere, status=status, length=False)
        yield answer(f"status {status}", reply, str(status))


def _not_http() -> Iterator[Fault]:
    for name, words in (
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("TLS", b"\x15\x03\x01\x00\x02\x02\x46"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/0.9", USER),
        ("HTTP/3.0", b"HTTP/3.0 200 OK\r\nContent-Length: 17\r\n\r\n" + USER),
        ("a request", b"GET / HTTP/1.1\r\nHost: you\r\n\r\n"),
        ("zeros", b"\0" * 10_000),
        ("no status", b"HTTP/1.1 OK\r\nContent-Length: 17\r\n\r\n" + USER),
        ("a status of two digits", b"HTTP/1.1 20\r\nContent-Length: 17\r\n\r\n" + USER),
    ):
        yield Fault(kind="not HTTP", name=name, act=says(words), says="not HTTP|closed before")


async def plain_http(peer: Peer) -> None:
    await peer.hello()
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def handshake(upto: int, end: str, context: ssl.SSLContext) -> Act:
    """A TLS server that sends only the first bytes of its handshake, and then closes."""

    async def act(peer: Peer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        side = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await peer.hello())
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            await peer.send(outgoing.read()[:upto])
        match end:
            case "reset":
                peer.reset()
            case "stall":
                await peer.silence()

    return act


def ends_rudely(answer: bytes) -> Act:
    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        peer.drop()

    return act


def _tls() -> Iterator[Fault]:
    refusals: dict[Tls, str] = {
        "untrusted": "certificate was refused: unable to get local issuer",
        "wrong host": "certificate was refused: .*mismatch",
        "expired": "certificate was refused: certificate has expired",
    }
    for tls, what in refusals.items():
        yield Fault(
            kind="TLS",
            name=f"a certificate that is {tls}",
            act=says(http(USER)),
            says=what,
            retried=False,
            reaches=False,
            tls=tls,
        )
    yield Fault(
        kind="TLS",
        name="plain HTTP on its port",
        act=plain_http,
        says="TLS could not be set up",
        retried=False,
        reaches=False,
        tls="trusted",
        raw=True,
    )
    for upto in (0, 3, 100, 700):
        for end in ("close", "reset", "stall"):
            yield Fault(
                kind="TLS",
                name=f"{end} after {upto} bytes of the handshake",
                act=handshake(upto, end, certificate("trusted")),
                says="no connection in time" if end == "stall" else "could not connect|TLS could",
                reaches=False,
                seconds=3 if end == "stall" else 0.5,
                tls="trusted",
                raw=True,
            )

    def fault(name: str, answer: bytes, *, error: Outcome = m.TransportError) -> Fault:
        return Fault(
            kind="TLS",
            name=f"no close notify, {name}",
            act=ends_rudely(answer),
            error=error,
            says="closed before an answer|connection broke|cut short",
            retried=error is not None,
            tls="trusted",
        )

    yield fault("after the answer", http(USER), error=None)
    yield fault("after a body without a length", http(USER, length=False), error=None)
    yield fault("inside the headers", http(USER)[:20])
    yield fault("inside the body", http(USER)[:-3])
    yield fault("inside a body without a length", http(USER[:-3], length=False))
    yield fault("before an answer", b"")


AUTHORITY = trustme.CA()


def certificate(tls: Tls) -> ssl.SSLContext:
    """Return the context of a server with this certificate."""
    authority = trustme.CA() if tls == "untrusted" else AUTHORITY
    yesterday = datetime.now(UTC) - timedelta(days=1)
    issued = authority.issue_cert(
        "elsewhere.example" if tls == "wrong host" else "127.0.0.1",
        not_after=yesterday if tls == "expired" else None,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


@cache
def faults() -> list[Fault]:
    """Return all faults."""
    return [
        *_connections(),
        *_slow(),
        *_lengths(),
        *_chunks(),
        *_headers(),
        *_informational(),
        *_bombs(),
        *_bodies(),
        *_not_http(),
        *_tls(),
    ]
