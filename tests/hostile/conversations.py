"""Random responses over reused connections, and their meaning.

A conversation is a number of rounds. In each of them some users are asked for at once, and each
request gets a reply that its seed decides: well formed, or damaged in the ways of proxies, of
broken servers and of attackers. h11 has the last word on where an answer ends.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import h11
from raw_server import http
from segments import refusal, user

USERS = ("ada", "bob", "cyd")
CLOSE, RESET, STALL = "close", "reset", "stall"


@dataclass(frozen=True)
class Reply:
    """The reply to a request, in segments, and what happens to the connection after it."""

    pieces: tuple[bytes, ...]
    end: str = ""

    @property
    def said(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class Draft:
    """A reply under construction, to this user's request.

    Its mark tells that it is to this request; what is an answer to nobody's has the one after it.
    """

    chance: Random
    user_id: str
    mark: int
    answer: bytes = b""
    end: str = ""


def reply(chance: Random, user_id: str, mark: int) -> Reply:
    """Return a reply to this user's request, with an even mark; the next odd mark is unused."""
    draft = Draft(chance, user_id, mark)
    draft.answer = answer = _answer(draft)
    places = [len(answer)]  # where a new segment may begin
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chance.choice(DAMAGES)(draft)
            places.append(len(draft.answer))
    answer = draft.answer
    cuts = {chance.randrange(len(answer) + 1) for _ in range(chance.choice((0, 0, 1, 1, 2, 3)))}
    if chance.random() < 0.3:
        cuts.add(min(chance.choice(places), len(answer)))
    pieces = [answer[start:end] for start, end in pairwise(sorted({0, *cuts, len(answer)}))]
    return Reply(tuple(pieces), draft.end or chance.choice(("",) * 12 + (CLOSE, RESET)))


# Responses that are more or less well formed


def _answer(draft: Draft) -> bytes:
    chance, mark = draft.chance, draft.mark
    status = chance.choice((200,) * 14 + (404, 404, 422, 503, 201, 204, 304, 302, 101))
    if chance.random() < 0.02:
        status = 429
    whose = draft.user_id if chance.random() < 0.95 else chance.choice(USERS)
    body = user(whose, mark) if status in {200, 201} else refusal(mark)
    if chance.random() < 0.1:  # with a response inside
        inside = chance.choice((http(user("bob", mark + 1)), "\N{SNOWMAN}".encode() * 20))
        body = json.dumps({**json.loads(body), "x": inside.decode()}).encode()
    headers = chance.choices(HEADERS, k=chance.choice((0, 0, 0, 0, 1, 2)))
    coding = chance.choice(("",) * 8 + ("gzip", "deflate"))
    if coding:
        body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
        headers.append(b"Content-Encoding: " + coding.encode())
    if status in {204, 304} and chance.random() < 0.8:
        return _informational(chance) + http(b"", *headers, status=status, length=False)
    match chance.choice(("length",) * 5 + ("chunks",) * 5 + ("end",)):
        case "length":
            return _informational(chance) + http(body, *headers, status=status)
        case "chunks":
            headers.append(b"Transfer-Encoding: " + chance.choice((b"chunked", b"Chunked")))
            body = _chunks(chance, body)
    return _informational(chance) + http(body, *headers, status=status, length=False)


def _informational(chance: Random) -> bytes:
    if chance.random() < 0.95:
        return b""
    status = chance.choice((100, 102, 103, 101))
    return http(b"", *chance.choices(HEADERS, k=chance.randrange(2)), status=status, length=False)


def _chunks(chance: Random, body: bytes) -> bytes:
    cuts = sorted(
        {0, len(body), *(chance.randrange(len(body) + 1) for _ in range(chance.randrange(4)))}
    )
    out = b""
    for start, end in pairwise(cuts):
        size = (
            chance.choice((b"%x", b"%X", b"0%x", b"00000%x", b"%x;a=b", b'%x;a="b"', b"%x "))
            if (chance.random() < 0.2)
            else b"%x"
        )
        out += size % (end - start) + b"\r\n" + body[start:end] + b"\r\n"
    out += chance.choice((b"0", b"0", b"0", b"000", b"0;a=b")) + b"\r\n"
    if chance.random() < 0.1:
        out += chance.choice(
            (b"X: y\r\n", b"Content-Length: 5\r\n", b"Trailer\r\n", b"X: a\nb\r\n")
        )
    return out + b"\r\n"


HEADERS = [
    *(b"Connection: keep-alive", b"Connection: close", b"Connection: Close, x", b"Keep-Alive: 1"),
    *(b"Connection: upgrade", b"Upgrade: h2c", b"Proxy-Connection: close", b"Trailer: X"),
    *(b"Content-Type: application/json", b"Content-Type: text/html", b"Retry-After: 1", b"X:"),
    *(b"Content-Length: 5", b"Content-Length: 0", b"content-length: 100", b"Content-Length: 1, 1"),
    *(b"Content-Length: +5", b"Content-Length:", b"Content-Length: 9999999999999999999999"),
    *(b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked", b"TE: chunked"),
    *(b"Content-Encoding: identity", b"Content-Encoding: gzip", b"Content-Encoding: quux"),
    *(
        b"X: y\r\n folded",
        b"X: \xff",
        b"X: \t y \t",
        b"X: a\rb",
        b"X: a\nb",
        b"X : y",
        b": y",
        b"X",
    ),
    *(b"X: " + b"y" * 9_000, b"Set-Cookie: a=b", b"Location: http://127.0.0.1:1/"),
]

# Damages

Damage = Callable[[Draft], None]


def _cut(draft: Draft) -> None:
    draft.answer = draft.answer[: draft.chance.randrange(len(draft.answer) + 1)]
    draft.end = draft.chance.choice((CLOSE, RESET, STALL, ""))


def _followed(draft: Draft) -> None:
    chance, mark = draft.chance, draft.mark + 1
    other = user(chance.choice(USERS), mark)
    more = chance.choice(
        (
            http(other),
            http(refusal(mark), status=404),
            http(b"", status=204, length=False),
            http(b"", status=chance.choice((100, 101, 103)), length=False),
            http(_chunks(chance, other), b"Transfer-Encoding: chunked", length=False),
            chance.randbytes(chance.choice((1, 1, 3, 40))),
            chance.choice(
                (b"\r\n", b"\n", b"\0", b" ", b"H", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n")
            ),
        )
    )
    if chance.random() < 0.3:
        more = more[: chance.randrange(len(more)) + 1]
    draft.answer += more * chance.choice((1, 1, 1, 2))


def _bytes(draft: Draft) -> None:
    chance, answer = draft.chance, draft.answer
    at = chance.randrange(len(answer) + 1)
    upto = at + chance.choice((0, 0, 1, 1, 2, 10))
    new = chance.choice((b"", b"\0", b"\r\n", b"\n", b"\r", b" ", b"0", chance.randbytes(2)))
    draft.answer = answer[:at] + new + answer[upto:]


def _digit(draft: Draft) -> None:
    """Change a digit in a length or a size, or anywhere."""
    answer = draft.answer
    places = [at for at, byte in enumerate(answer) if 48 <= byte < 58]
    if places:
        at = draft.chance.choice(places)
        draft.answer = answer[:at] + b"%d" % draft.chance.randrange(10) + answer[at + 1 :]


def _line(draft: Draft) -> None:
    """Repeat, remove or move a line."""
    chance, lines = draft.chance, draft.answer.split(b"\r\n")
    line = lines.pop(chance.randrange(len(lines)))
    for _ in range(chance.choice((0, 1, 2))):
        lines.insert(chance.randrange(len(lines) + 1), line)
    draft.answer = b"\r\n".join(lines)


def _other_version(draft: Draft) -> None:
    others = b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/0.9"
    draft.answer = draft.answer.replace(b"HTTP/1.1", draft.chance.choice(others), 1)


def _no_carriage_returns(draft: Draft) -> None:
    draft.answer = draft.answer.replace(b"\r\n", b"\n")


DAMAGES: tuple[Damage, ...] = (
    *(_cut, _cut, _followed, _followed, _followed, _followed),
    *(_bytes, _bytes, _digit, _digit, _line, _other_version, _no_carriage_returns),
)


# The meaning


_BARE = re.compile(rb"(?<!\r)\n")


@dataclass(frozen=True)
class Meaning:
    """The response as h11 reads it.

    Attributes:
        status, body: of the answer, as far as it came; 0 where not even its head did.
        whole: whether all of it came.
        left: whether anything came behind it, but for line ends.
        stays: whether another request may go over this connection.
        strange: what h11 found wrong with it.
    """

    status: int = 0
    body: bytes = b""
    whole: bool = False
    left: bool = False
    stays: bool = False
    strange: str = ""


def meaning(reply: Reply) -> Meaning:
    """Return the meaning of this reply for its request."""
    there = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    there.send(
        h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Content-Length", "0")])
    )
    there.send(h11.EndOfMessage())
    status, body, older = 0, b"", False
    try:
        there.receive_data(reply.said)
        ended = reply.end not in {CLOSE, RESET}
        while True:
            match there.next_event():
                case h11.Response() as head:
                    status = head.status_code
                    # h11 knows nothing of the way in which older versions keep a connection.
                    older = (
                        head.http_version < b"1.1"
                        and (b"connection", b"keep-alive") in head.headers
                    )
                case h11.Data(data=data):
                    body += bytes(data)
                case h11.EndOfMessage():
                    break
                case h11.NEED_DATA if not ended:
                    there.receive_data(b"")
                    ended = True
                case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                    # h11 waits for line ends that are whole where aiohttp takes what there is.
                    strange = "a bare line feed" if _BARE.search(reply.said) else ""
                    return Meaning(status, body, strange=strange)
    except h11.RemoteProtocolError as error:
        return Meaning(status, body, strange=str(error))
    rest, _closed = there.trailing_data
    left = bool(rest.strip(b"\r\n"))
    done = {there.our_state, there.their_state} == {h11.DONE}
    stays = (done or older) and not reply.end
    return Meaning(status, body, whole=True, left=left, stays=stays and not left)
