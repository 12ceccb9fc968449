"""What must hold for any input: one function per promise, for hypothesis and for atheris.

Each is given anything at all and raises AssertionError, or whatever escapes, where a promise fails.
"""

import asyncio
import csv
import gzip
import io
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import h11
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import HttpResponseParser, HttpResponseParserPy
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

import monocloud_async as m
from monocloud_async import config
from monocloud_async.endpoint import ENABLE
from monocloud_async.inputs import Format
from monocloud_async.inputs.content import encoding_of
from monocloud_async.inputs.ids import NotAnIdError, find, is_column_name, strip
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import IdReader
from monocloud_async.response import read_response, retry_after
from monocloud_async.sanitize import UNSAFE
from monocloud_async.transport.plain_response import plain_body
from monocloud_async.user_id import check_user_id

LONGEST_MESSAGE = 4_000  # characters; people read it in a terminal
_CALLERS_ID = "u" * 8


def is_harmless(text: str) -> None:
    """Check that the text is printable: one line, no control characters, valid Unicode."""
    assert not re.search(UNSAFE, text), text
    text.encode()
    assert len(text) < LONGEST_MESSAGE


def is_ours(error: m.MonoCloudError) -> None:
    """Check that the error has one harmless line of text, and can be pickled."""
    is_harmless(str(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  our own bytes


def is_alone(error: m.MonoCloudError) -> None:
    """Check that the error is ours and chained to no other, which could hold headers or bodies."""
    is_ours(error)
    assert (error.__cause__, error.__context__) == (None, None)


def a_plain_response_is_what_other_readers_read(
    response: bytes, loop: asyncio.AbstractEventLoop
) -> bool:
    """Check what is read without a parser: all of it, and what h11 and aiohttp's parsers read.

    Returns:
        whether it is read without a parser.
    """
    body = plain_body(response)
    if not isinstance(body, bytes):
        return False
    assert not isinstance(plain_body(response[:-1]), bytes)
    assert not isinstance(plain_body(response + b"\r"), bytes)
    assert _body_by_h11(response) == body
    for kind in (HttpResponseParser, HttpResponseParserPy):
        parser = kind(ResponseHandler(loop), loop, 1 << 16, read_until_eof=True)
        ((message, content),), upgraded, left = parser.feed_data(response)
        assert (message.code, message.should_close, upgraded, left) == (200, False, False, b"")
        assert content.is_eof()
        assert content.read_nowait() == body
    return True


def _body_by_h11(response: bytes) -> bytes:
    there = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    there.send(
        h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Content-Length", "0")])
    )
    there.send(h11.EndOfMessage())
    there.receive_data(response)
    head = there.next_event()
    assert isinstance(head, h11.Response)
    assert head.status_code == 200
    body = bytearray()
    while isinstance(event := there.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (there.our_state, there.their_state) == (h11.DONE, h11.DONE)  # the connection stays
    assert there.trailing_data == (b"", False)
    compressed = (b"content-encoding", b"gzip") in [(n, v.lower()) for n, v in head.headers]
    return gzip.decompress(body) if compressed else bytes(body)


def an_answer_is_the_user_or_an_error_of_ours(
    status: int, headers: dict[str, str], body: bytes, user_id: str = _CALLERS_ID
) -> None:
    received = CIMultiDictProxy(CIMultiDict(headers))  # as aiohttp passes them
    try:
        user = read_response(user_id, status, received, body)
    except m.StatusError as error:
        assert error.status == status >= 400
        is_alone(error)
    except (m.InvalidResponseError, m.TransportError) as error:
        assert status == 200 or not 400 <= status < 600
        is_alone(error)
    else:
        assert (status, user.user_id) == (200, user_id)


def a_wait_is_finite_or_none(value: str, date: str) -> None:
    seconds = retry_after({"Retry-After": value, "Date": date}, 1795428000.0)
    assert seconds is None or 0 <= seconds < float("inf")


def an_id_is_itself_or_refused(user_id: str) -> None:
    try:
        path = ENABLE.path(user_id)
    except m.InvalidUserIdError as error:
        is_ours(error)
        return
    url = URL("https://acme.eu.monocloud.com" + path, encoded=True)
    assert (url.raw_host, url.raw_query_string, url.raw_fragment) == (
        "acme.eu.monocloud.com",
        "",
        "",
    )
    parts = url.raw_path.split("/")
    assert len(parts) == 5
    assert unquote(parts[3], errors="strict") == user_id
    assert path.isascii()
    behind, slashes = parts[3], re.findall(r"[/\\]", user_id)
    while (decoded := unquote(behind)) != behind:  # some gateways decode even twice
        behind = decoded
        segments = re.split(r"[/\\]", behind)
        assert not {".", ".."} & set(segments)
        assert len(segments) == 1 or all(segments)
        assert re.findall(r"[/\\]", behind) in ([], slashes)


def a_domain_is_itself_or_refused(domain: str) -> None:
    try:
        url = config.base_url(domain)
    except m.ConfigurationError as error:
        is_ours(error)
        return
    parts = urlsplit(url)
    assert (parts.path, parts.query, parts.fragment, parts.username) == ("", "", "", None)
    assert parts.scheme == "https" or parts.hostname in {"localhost", "::1"} or _is_127(parts)
    assert (parts.hostname or "").lower() in domain.lower()
    sent = URL(url + "/api/users/u/enable", encoded=True)
    assert sent.raw_host == parts.hostname
    assert sent.raw_path == "/api/users/u/enable"


def _is_127(parts: object) -> bool:
    host = getattr(parts, "hostname", "") or ""
    return host.startswith("127.") and host.replace(".", "").isdigit()


def a_key_is_sent_or_refused_without_being_shown(key: str) -> None:
    with pytest.raises(m.ConfigurationError) as caught:
        config.credentials(config.mask_key(" "))
    refused = caught.value
    if not key:
        return  # no key at all has its own message
    try:
        headers = config.credentials(config.mask_key(key)).headers
    except m.ConfigurationError as error:
        is_ours(error)
        # One message for all of them, so none can contain a part of the key.
        assert (error.args, error.__dict__) == (refused.args, refused.__dict__)
        return
    assert headers["X-API-KEY"] == key
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key


def a_timeout_is_seconds_or_refused(text: str) -> None:
    with patch.dict(os.environ, {config.TIMEOUT: text}):
        try:
            seconds = config.timeout(None)
        except m.ConfigurationError as error:
            is_ours(error)
        else:
            assert 0 < seconds < float("inf")


def read_input(data: bytes, form: Format, column: str | None = None) -> tuple[IdReader, list[Line]]:
    """Return the reader and the lines of a file with these bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        source = IdReader(file, form, column=column)
        source.expected()
        lines = list(source)
    return source, lines


def usable(text: str) -> str | None:
    """Return the id in a cell, or None if there is none."""
    try:
        return find(text)
    except NotAnIdError:
        return None


def an_input_is_read_or_its_lines_are_told(data: bytes, form: Format, column: str | None) -> None:
    """Check that every line becomes an id or a numbered problem, and none is lost."""
    try:
        source, lines = read_input(data, form, column)
    except m.ConfigurationError as error:
        is_ours(error)
        return
    for note in source.notes:
        is_harmless(note)
    numbers = [line.number for line in lines]
    assert numbers == sorted(set(numbers))
    for line in lines:
        if line.user_id is None:
            assert line.problem
            is_harmless(line.problem)
        else:
            check_user_id(line.user_id)
            assert line.problem is None
            _is_in(line.user_id, line.text, form)
    encoding = encoding_of(data)
    whole = source.found != "JSON array" and not data.startswith(b"\x1f\x8b")
    if whole and encoding.name == "utf-8" and len(data) < 1 << 20:
        text = data[encoding.mark :].decode(errors="surrogateescape")
        read = io.StringIO(text, newline="")
        told = source.header + "".join(line.text for line in lines)
        assert _solid(told, form) == _solid("".join(_not_passed_over(read, form)), form)


def _not_passed_over(lines: Iterable[str], form: Format) -> Iterator[str]:
    """Yield the lines, without the comments and the header of a txt."""
    begun = form is not Format.TXT
    for line in lines:
        if form is Format.TXT and line.startswith("#"):
            continue
        if begun or not _is_header(line):
            yield line
        begun = begun or bool(line.strip())


def _is_header(line: str) -> bool:
    """Return whether another reader finds the name of a column alone in this line."""
    try:
        cells = next(csv.reader([line], strict=True), [])
    except csv.Error:
        return False
    return len(cells) == 1 and is_column_name(strip(cells[0]))


def _solid(text: str, form: Format) -> str:
    """Return the text without what blank lines have, in a table also rows of empty cells."""
    solid = "".join(text.split())
    return re.sub(r'[,;|"]', "", solid) if form is Format.CSV else solid


def _is_in(user_id: str, text: str, form: Format) -> None:
    """Check that another reader finds the same id in this line."""
    match form:
        case Format.TXT:
            assert user_id == usable(text)
        case Format.JSONL:
            value = json.loads(text)
            values = [value] if isinstance(value, str) else value.values()
            assert user_id in [usable(value) for value in values if isinstance(value, str)]
        case Format.CSV:
            cells = {
                usable(cell)
                for delimiter in ",;\t|"
                for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
                for cell in row
            }
            assert user_id in cells
