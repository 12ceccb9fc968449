"""Reads any byte range of a file of ids, from a path or a URL.

A line belongs to the range that contains its first byte. So consecutive ranges contain every line
exactly once, wherever they are split, and the file needs no index and no first pass.
"""

import asyncio
import codecs
import csv
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct, structs
from yarl import URL

from monocloud_async.config import is_loopback, proxy_of_environment
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.content import encoding_of, is_packed, refuse_document
from monocloud_async.inputs.json_document import may_be_document
from monocloud_async.inputs.lines import Line, is_id_member, line_parser
from monocloud_async.inputs.reader import is_header, named_format, refuse_list
from monocloud_async.inputs.table import MAX_LINE, find_header, read_header, split_lines
from monocloud_async.sanitize import clean

_AHEAD: Final = 1 << 16  # bytes to read at a time to find the end of a line
_SAMPLE: Final = 1 << 16  # bytes of each sample for the average length of a line
_SAMPLES: Final = 8  # how many samples
_BLOCK: Final = 1 << 23  # bytes to read at a time when the whole file is read
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, sock_connect=10)
_PARTIAL: Final = 206  # RFC 9110, section 15.3.7
# Section 14.4; the size is * if the server does not know it.
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SIZE: Final = re.compile(r"bytes \*/(\d+)")  # of a file that has no byte of the range
_REDIRECT: Final = range(300, 400)
_REFUSED: Final = 400
_EMPTY: Final = 416  # no byte of the range is there (section 15.5.17)
_TOO_MANY: Final = 429
_SERVER: Final = 500


class IdFile(Struct, frozen=True, kw_only=True):
    """A file of ids, as it was when the run was planned.

    Attributes:
        where: an absolute path that all workers share, or an http(s) URL with range requests.
        form, column: the format, and the column or member that has the ids.
        size: the size in bytes.
        mark: its modification time, or the server's ETag, when the run was planned.
        begin: the offset of the first line of ids, after a byte order mark and a csv header.
        header: the csv header.
        line: the average bytes of a line, in the sample with the shortest lines.
        encoding: UTF-8, or ASCII for an older encoding, of which other bytes are not read.
        digest: the digest of the whole file; plans of earlier versions have none, and rely on the
            mark.
    """

    where: str
    form: Format
    column: str | None
    size: int
    mark: str
    begin: int
    header: str
    line: float
    digest: str | None = None
    encoding: str = "utf-8"

    async def lines(self, start: int, end: int) -> list[Line]:
        """Return the lines that begin in this byte range, without blank ones, numbered from 0.

        Raises:
            ConfigurationError: the size of the file has changed since the run was planned.
            OSError, aiohttp.ClientError: the file cannot be read now.
        """
        content, _ = await self.whole_lines(start, end)
        return self.parse(content)

    def parse(self, content: bytes) -> list[Line]:
        """Return the lines of this content, without blank ones, numbered from 0."""
        parse = line_parser(self.form, self.column, shown(self.where), self.header)
        texts = filter(
            str.strip, split_lines(content.decode(self.encoding, errors="surrogateescape"))
        )
        return [parse(number, text) for number, text in enumerate(texts)]

    async def whole_lines(self, start: int, end: int) -> tuple[bytes, str]:
        """Return the bytes of all lines that begin in the range, and the version of the file."""
        first = start <= self.begin
        part = await self._read(start if first else start - 1, end)
        content, version = part.content, part.version
        if not first:  # the range begins with the end of a line of the range before
            _, found, content = content.partition(b"\n")
            if not found:
                return b"", version
        while content and not content.endswith(b"\n") and end < self.size:
            last = content.rpartition(b"\n")[2]
            if len(last) >= MAX_LINE:
                if _has_returns(last):  # of a plan of an earlier version
                    raise _too_long(self.where)
                break  # an overlong line is reported as bad
            more = await self._read(end, min(end + _AHEAD, self.size))
            if more.version != version:
                raise OSError("the file was changed while it was read")
            rest, found, _ = more.content.partition(b"\n")
            content += rest + found
            end += len(more.content)
            if found:
                break
        return content, version

    async def verify(self, version: str) -> None:
        """Read the whole file, and raise `ConfigurationError` if its content has changed.

        Args:
            version: the version of the file as it was read; raises `OSError` if it is another now.
        """
        hashed = hashlib.sha256()
        async for part in self.blocks():
            if part.version != version:
                raise OSError("the file was changed while it was read")
            if self.digest is None and part.mark != self.mark:
                raise self.changed(f"{clean(self.mark)} before, {clean(part.mark)} now")
            hashed.update(part.content)
            if self.digest is None:
                return
        if self.digest != _shortened(hashed):
            raise self.changed("it has the same size, but different content")

    async def blocks(self) -> AsyncIterator["_Part"]:
        """Yield the whole file, in parts."""
        for start in range(0, self.size, _BLOCK):
            yield await self._read(start, min(start + _BLOCK, self.size))

    def changed(self, how: str) -> ConfigurationError:
        """Return the error that says that the file has changed, and what to do."""
        return ConfigurationError(
            f"{shown(self.where)} changed since the run was planned: {how}; restore the file and"
            " resume the run, or cancel the run and start a new one"
        )

    async def _read(self, start: int, end: int) -> "_Part":
        part = await _read(self.where, start, end)
        if part.size != self.size:
            raise self.changed(f"it had {self.size:,} bytes, now it has {part.size:,}")
        return part


def digest_of(content: bytes) -> str:
    """Return the digest of this content."""
    return _shortened(hashlib.sha256(content))


def _shortened(hashed: "hashlib._Hash") -> str:
    """Return half of the digest: it is in many payloads, and 128 bits are enough."""
    return hashed.hexdigest()[:32]


async def inspect_file(where: str, form: Format | None = None, column: str | None = None) -> IdFile:
    """Inspect a path or a URL, and return the file for the plan of a run.

    Raises:
        ConfigurationError: the file cannot be read in ranges, or its format or column is unknown.
    """
    where, name = _checked(where)
    form = named_format(Path(name), form, column)
    with _translated(where):
        part = await _read(where, 0, _SAMPLE)
    mark = len(codecs.BOM_UTF8) if part.content.startswith(codecs.BOM_UTF8) else 0
    encoding = _encoding(shown(where), part.content)
    text = part.content[mark:].decode(encoding, errors="surrogateescape")
    header = _header(shown(where), form, column, text).encode(errors="surrogateescape")
    content = part.content[mark + len(header) :]
    source = IdFile(
        where=where,
        form=form,
        column=column,
        size=part.size,
        mark=part.mark,
        begin=mark + len(header),
        header=header.decode(errors="replace") if form is Format.CSV else "",
        line=_line_length(content) or 1.0,
        encoding=encoding,
    )
    with _translated(where):
        digest = await _read_whole(source)
        for start in range(_SAMPLE, part.size - _SAMPLE, max(_SAMPLE, part.size // _SAMPLES)):
            content, _ = await source.whole_lines(start, start + _SAMPLE)
            line = min(source.line, _line_length(content) or source.line)
            source = structs.replace(source, line=line)
    return structs.replace(source, digest=digest)


def _line_length(content: bytes) -> float:
    """Return the average bytes of a line, or 0.0 without lines."""
    ends = content.count(b"\n")
    whole = content.rfind(b"\n") + 1 or len(content)
    return whole / (ends or 1)


def _encoding(name: str, start: bytes) -> str:
    """Return the encoding of a file that starts with these bytes.

    Raises:
        ConfigurationError: it cannot be read in ranges, though `bulk` reads it.
    """
    found = encoding_of(start)
    refuse_document(name, start, found)
    encoding = found.name
    if is_packed(start) or encoding not in {"ascii", "utf-8"}:
        what = "packed" if is_packed(start) else encoding.upper()
        raise ConfigurationError(
            f"{name} is {what}, and a fleet reads ranges of a file: write the ids to a txt file in"
            " UTF-8 first"
        )
    if b"\r" in start and b"\n" not in start:
        raise ConfigurationError(f"{name} has no line feeds; convert its line ends first: mac2unix")
    return encoding


def _header(name: str, form: Format, column: str | None, text: str) -> str:
    """Return the text above the first line of ids, and raise as `inspect_file` does."""
    lines = split_lines(text)
    if form is Format.CSV:
        table, _ = find_header(name, enumerate(lines), column, By.ID)
        if table is None:
            return text
        if table.notes and table.column == column:
            raise ConfigurationError(f"{name} has no header, and a fleet needs one")
        return "".join(lines[: table.lines])
    first = next(filter(str.strip, lines), "")
    if form is Format.JSONL:
        if may_be_document(first, partial(is_id_member, column=column, by=By.ID)):
            raise ConfigurationError(
                f"{name} is one JSON document, and a fleet reads line by line; use: jq -c '.[]'"
            )
        refuse_list(name, first)
        return ""
    return text[: text.index(first) + len(first)] if is_header(name, first) else ""


async def _read_whole(source: IdFile) -> str:
    """Return the digest of the file; raises `ConfigurationError` if it changes meanwhile."""
    hashed, place, is_empty = hashlib.sha256(), 0, True
    lines = _LineCheck(source)
    rows = _RowCheck(source) if source.form is Format.CSV else None
    async for part in source.blocks():
        if part.mark != source.mark:
            why = ", or each answer has another ETag: serve it from one server" * is_url(
                source.where
            )
            raise ConfigurationError(
                f"{shown(source.where)} is being written to; try again later{why}"
            )
        hashed.update(part.content)
        is_empty = is_empty and not part.content[max(0, source.begin - place) :].strip()
        place += len(part.content)
        lines.feed(part.content)
        if rows is not None:
            rows.feed(part.content)
    if is_empty:
        raise ConfigurationError(f"there are no ids in {shown(source.where)}")
    if rows is not None:
        rows.feed(b"\n")
    return _shortened(hashed)


class _LineCheck:
    """Raises `ConfigurationError` if lines that end with a carriage return cannot be read whole.

    Ranges are cut at line feeds. If there is none for long, an id would be cut.
    """

    def __init__(self, source: IdFile) -> None:
        self._where = source.where
        self._rest = b""  # the begin of a line; of one that is too long, its last byte
        self._is_long = False

    def feed(self, content: bytes) -> None:
        """Check the next part of the file."""
        content, place = self._rest + content, 0
        while self._is_long or len(content) - place > MAX_LINE:
            end = -1 if self._is_long else content.rfind(b"\n", place, place + MAX_LINE)
            if end < 0:
                end = content.find(b"\n", place)
                if _has_returns(content[place : end if end >= 0 else None]):
                    raise _too_long(self._where)
                self._is_long = end < 0
                if self._is_long:
                    place = len(content) - 1
                    break
            place = end + 1
        self._rest = content[place:]


def _has_returns(line: bytes) -> bool:
    return b"\r" in line[:-1]  # the last one may belong to the line feed


def _too_long(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"{shown(where)} has lines that end with a carriage return, and no line feed for more than"
        f" {MAX_LINE:,} bytes; convert its line ends first: mac2unix"
    )


class _RowCheck:
    """Raises `ConfigurationError` if a row of a csv is not one line.

    Each range is read independently, so text in such a line could be mistaken for an id. An
    attacker could write a note of several lines to have another user enabled.
    """

    def __init__(self, source: IdFile) -> None:
        self._name = shown(source.where)
        self._table = read_header(self._name, split_lines(source.header), source.column, By.ID)
        self._number = 0
        self._header = source.header.count("\n")
        self._rest = b""

    def feed(self, content: bytes) -> None:
        """Check the next part of the file."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._number += 1
            if b'"' not in line or self._number <= self._header:
                continue
            for text in split_lines(line.decode(errors="surrogateescape")):
                row = self._table.split(text)
                if isinstance(row, csv.Error) or any(row[self._table.columns :]):
                    raise ConfigurationError(
                        f"line {self._number} of {self._name} is not one whole row: its cells"
                        " may continue in the next line, but a fleet reads line by line; write the"
                        " ids to a txt file first"
                    )


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn errors of reading into a `ConfigurationError`."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"cannot read {shown(where)}: {error.strerror or error}") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConfigurationError(
            f"cannot read {shown(where)}: {type(error).__name__}; try: curl -r 0-99"
        ) from None


def _checked(where: str) -> tuple[str, str]:
    """Return the absolute path or the URL, and the name that shows the format."""
    if is_url(where):
        return check_url(where), urlsplit(where).path
    if "\0" in where:
        raise ConfigurationError(f"{clean(where)!r} is not a path: it contains a NUL character")
    path = str(Path(where).absolute())
    if path != path.encode(errors="replace").decode():
        raise ConfigurationError(
            f"{clean(path)} is not a path that Temporal can pass on: it has bytes that are not"
            " UTF-8; rename the file"
        )
    return path, path


def is_url(where: str) -> bool:
    """Return whether this is a URL, and not a path."""
    return "://" in where


def without_query(where: str) -> str:
    """Return the path, or the URL without its query: who knows its signature can read the ids."""
    address, query, _ = where.partition("?")
    return f"{address}?..." if query and is_url(where) else where


def shown(where: str) -> str:
    """Return the path, or the URL without its query, as one line."""
    return clean(without_query(where))


def check_url(where: str) -> str:
    """Return this URL; raises `ConfigurationError` if a fleet does not read it."""
    try:
        parts, _ = urlsplit(where), URL(where, encoded=True).port
    except ValueError as error:
        raise ConfigurationError(f"{shown(where)} is not a URL: {error}") from None
    if parts.scheme not in {"http", "https"}:
        raise ConfigurationError(f"a URL of ids begins with https://, not {parts.scheme}://")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            "a URL of ids begins with https://: over http://, anybody on the way could change the"
            " ids"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "the URL of the ids has credentials in it, which every payload would contain;"
            " grant access by the workers' network or a proxy instead"
        )
    return where


class _Part(NamedTuple):
    content: bytes
    size: int  # of the whole file
    mark: str
    version: str  # as the mark, but only of this machine: also tells apart replaced files


async def _read(where: str, start: int, end: int) -> _Part:
    if is_url(where):
        return await _read_url(where, start, end)
    return await asyncio.to_thread(_read_path, Path(where), start, end)


def _read_path(path: Path, start: int, end: int) -> _Part:
    # Without a wait for somebody to write to it, if it is a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    # Not `os.fdopen`, which leaves a folder open when it refuses it.
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(
                f"{clean(str(path))} is not a regular file, and a fleet reads ranges of a file"
            )
        file.seek(start)
        content = file.read(end - start)
        status = os.fstat(file.fileno())
    version = f"{status.st_dev} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    return _Part(content, status.st_size, f"changed at {status.st_mtime_ns} ns", version)


async def _read_url(url: str, start: int, end: int) -> _Part:
    try:
        return await _ask_for_range(url, start, end)
    # The text of each of these has the URL, and so its signature.
    except aiohttp.ClientHttpProxyError as error:
        raise OSError(f"the proxy refused: {error.status} {clean(error.message)}") from None
    except aiohttp.ClientResponseError as error:
        raise OSError(
            f"the server's answer is malformed: {clean(error.message)}; try: curl -r 0-99"
        ) from None
    except TimeoutError:  # also aiohttp's own
        raise OSError("the server did not answer in time; try: curl -r 0-99") from None


async def _ask_for_range(url: str, start: int, end: int) -> _Part:
    """Read a range over a new connection, because servers close idle ones soon."""
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    async with (
        # Without `trust_env`, which would also send the passwords of a .netrc.
        aiohttp.ClientSession(timeout=_TIMEOUT, proxy=proxy_of_environment(url)) as http,
        # Encoded: exactly as given, because a signature may cover every character.
        http.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response,
    ):
        if response.status in _REDIRECT:
            raise ConfigurationError(
                f"{shown(url)} redirects to another address (it answered {response.status}), and"
                " redirects are not followed; name the address of the file itself"
            )
        if response.status == _TOO_MANY or response.status >= _SERVER:
            raise OSError(f"the server answered {response.status}")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        content_range = response.headers.get("Content-Range", "")
        if response.status == _EMPTY:
            found = _SIZE.fullmatch(content_range)
            size = start if found is None else int(found[1])
            # Without its size, it is known only of an empty file that it ends before the range.
            if size <= start and (found or not start):
                return _Part(b"", size, tag or "", tag or "")
        if response.status >= _REFUSED:
            raise ConfigurationError(
                f"{shown(url)} is refused (the server answered {response.status}): the file may be"
                " gone, or a signature of the URL may have expired; a run that has begun has to be"
                " cancelled, and started with a new URL and the same --journal"
            )
        found = _CONTENT_RANGE.fullmatch(content_range)
        if response.status != _PARTIAL or found is None:
            raise ConfigurationError(
                f"{shown(url)} does not serve ranges (it answered {response.status});"
                " serve the file with support for range requests, or use a path that all share"
            )
        if tag is None:
            raise ConfigurationError(
                f"{shown(url)} has neither ETag nor Last-Modified, so a change would not be"
                " noticed; serve it from a server that sends one of them"
            )
        content = await response.read()
        first, last, size = map(int, found.groups())
        # A server may send less than requested (RFC 9110, section 15.3.7), but should not.
        if (first, last, len(content)) != (start, min(end, size) - 1, last - first + 1):
            raise OSError(f"the server sent bytes {first}-{last}, not {start}-{end - 1} as asked")
        return _Part(content, size, tag, tag)
