"""Random responses, ids, configurations and inputs; `fuzz.py` continues with atheris."""

import asyncio
import csv
import io
from collections.abc import Iterator
from urllib.parse import unquote

import invariants
import pytest
import samples
from faults import USER, chunked
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raw_server import Peer, RawServer, http
from secrets_search import KEY

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy, User
from monocloud_async.inputs import Format


class Loopback:
    """A session and its server, which sends the given bytes, then closes."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.answer = b""
        self.targets: list[bytes] = []
        self._runner = runner
        self._server = RawServer(self._act)
        runner.run(self._server.__aenter__())
        self._session = MonoCloudSession(
            self._server.url, KEY, retry=RetryPolicy(attempts=1), timeout=5.0
        )

    async def _act(self, peer: Peer) -> None:
        request = await peer.request()
        self.targets.append(request.split(b" ")[1])
        await peer.send(self.answer)

    def enable(self, user_id: str, answer: bytes) -> User | m.MonoCloudError:
        self.answer = answer
        try:
            return self._runner.run(self._session.enable_user(user_id))
        except m.MonoCloudError as error:
            return error

    def close(self) -> None:
        self._runner.run(self._session.close())
        self._runner.run(self._server.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def fuzzing_loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    with asyncio.Runner() as runner:
        loopback = Loopback(runner)
        yield loopback
        loopback.close()


NUMBER = r"\A[-+]?[0-9_\u0660-\u0669]{0,20}(\.[0-9]*)?(e[-+]?[0-9]{1,3})?\Z"

# Responses, through the parser in use

STATUSES = st.sampled_from([100, 101, 103, 200, 204, 206, 302, 304, 401, 404, 422, 429, 503, 999])
NAMES = st.sampled_from(
    [
        *(b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"Connection", b"Location"),
        *(b"Content-Type", b"Retry-After", b"Date", b"Set-Cookie", b"Upgrade", b"Trailer", b""),
        *(b"Proxy-Connection", b"Sec-WebSocket-Key1", b"Keep-Alive", b"TE"),
    ]
)
VALUES = st.binary(max_size=20) | st.sampled_from(
    [
        *(b"0", b"5", b"17", b"-1", b"chunked", b"gzip", b"deflate", b"br", b"identity", b"close"),
        *(b"keep-alive", b"h2c", b"http://127.0.0.1:1/", b"text/html; charset=x", b"\xff", b"1e9"),
    ]
)
BODIES = st.sampled_from(
    [b"", USER, samples.body("problem-422-keyed.json"), samples.body("user-documented.json")]
)
WHOLE = st.sampled_from([http(USER), chunked(USER), http(b"{}", status=422), http(USER) * 2])


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A response whose parts are valid, but do not fit together."""
    headers = draw(st.lists(st.tuples(NAMES, VALUES).map(b": ".join), max_size=5))
    body = draw(BODIES | st.binary(max_size=100))
    return http(body, *headers, status=draw(STATUSES), length=draw(st.booleans()))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A response in which some bytes are missing, added or changed."""
    answer = bytearray(draw(WHOLE | written()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(answer)))
        upto = at + draw(st.integers(0, 3))
        answer[at:upto] = draw(st.binary(max_size=3))
    return bytes(answer)


def plain_but_for(names: list[bytes]) -> bytes:
    """A plain response with additional headers, which may affect where it ends."""
    return http(USER, *(name + b": close" for name in names))


@settings(deadline=None)
@given(answer=st.binary(max_size=200) | written() | damaged())
def test_every_answer_is_the_user_or_an_error_of_ours(loopback: Loopback, answer: bytes) -> None:
    ended = loopback.enable("ada", answer)
    if isinstance(ended, User):
        assert ended.user_id == "ada"
    else:
        invariants.is_alone(ended)
    # ... and the session still works.
    assert isinstance(loopback.enable("ada", http(USER)), User)


@given(answer=written() | damaged() | st.lists(NAMES, max_size=3).map(plain_but_for))
@example(http(USER, b"Connection: keep-alive"))
@example(http(USER, b"Upgrade:"))
def test_what_is_taken_as_plain_is_what_other_readers_read(
    fuzzing_loop: asyncio.AbstractEventLoop, answer: bytes
) -> None:
    invariants.a_plain_response_is_what_other_readers_read(answer, fuzzing_loop)


@settings(deadline=None)
@given(user_id=st.text(max_size=40))
@example("\ud800")
@example("a\u0301/%2F?#&=+;:@\\ ")
def test_an_id_arrives_as_itself_or_is_not_sent(loopback: Loopback, user_id: str) -> None:
    loopback.targets.clear()
    ended = loopback.enable(user_id, http(b"", status=404))
    if isinstance(ended, m.InvalidUserIdError):
        assert loopback.targets == []
        return
    assert isinstance(ended, m.NotFoundError)
    (target,) = loopback.targets
    parts = target.decode("ascii").split("/")
    assert parts[:3] + parts[4:] == ["", "api", "users", "enable"]
    assert unquote(parts[3], errors="strict") == user_id


# Responses and headers without a network; the examples were found by fuzzing


@given(
    status=STATUSES,
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Date", "Location", "Content-Type"]),
        st.text(max_size=30) | VALUES.map(lambda value: value.decode(errors="surrogateescape")),
    ),
    body=BODIES | st.binary(max_size=200),
)
@example(200, {"Content-Type": "text/\udcf1"}, b"<html>")
@example(302, {"Location": "https://\udcff.example/"}, b"")
def test_every_body_is_the_user_or_an_error_of_ours(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    invariants.an_answer_is_the_user_or_an_error_of_ours(status, headers, body, "ada")


@given(value=st.text(), date=st.text())
def test_every_retry_after_is_a_time_or_nothing(value: str, date: str) -> None:
    invariants.a_wait_is_finite_or_none(value, date)


@given(text=st.text() | st.text("aA1.:/@?#[]\\%\n ", max_size=12))
def test_every_configuration_is_taken_as_itself_or_refused(text: str) -> None:
    invariants.a_domain_is_itself_or_refused(text)
    invariants.a_key_is_sent_or_refused_without_being_shown(text)
    invariants.an_id_is_itself_or_refused(text)


# What an environment variable can hold
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.from_regex(NUMBER))
def test_every_timeout_is_a_time_or_refused(text: str) -> None:
    invariants.a_timeout_is_seconds_or_refused(text.replace("\0", ""))


# Input files

WORDS = st.sampled_from(
    [
        *(b"user_id", b"id", b"ada", b'"', b'""', b",", b";", b"\t", b"\n", b"\r\n", b"\r", b" "),
        *(b"\xef\xbb\xbf", b"\xff", b"\xe2\x80\xa8", b'{"id":"ada"}', b'{"id":1}', b"\0", b".."),
    ]
)


@given(
    data=st.binary(max_size=200) | st.lists(WORDS, max_size=20).map(b"".join),
    form=st.sampled_from(Format),
    column=st.sampled_from([None, None, "user_id", "x"]),
)
@example(b' userid\t\nada\n"a"b\t\n', Format.CSV, None)
def test_every_line_of_an_input_is_an_id_or_a_problem(
    data: bytes, form: Format, column: str | None
) -> None:
    given_column = None if form is Format.TXT else column
    invariants.an_input_is_read_or_its_lines_are_told(data, form, given_column)


IDS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))


@given(ids=IDS, delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n"]))
def test_what_a_spreadsheet_writes_is_read_as_the_same_ids(
    ids: list[str], delimiter: str, end: str
) -> None:
    sheet = io.StringIO(newline="")
    writer = csv.writer(sheet, delimiter=delimiter, lineterminator=end)
    writer.writerows([["name", "user_id"], *(["x", user_id] for user_id in ids)])
    _source, read = invariants.read_input(sheet.getvalue().encode(), Format.CSV)
    assert [line.user_id for line in read] == [invariants.usable(user_id) for user_id in ids]
