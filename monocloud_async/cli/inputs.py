"""User ids from txt, csv or jsonl: line by line, so that ten million of them need no memory.

Nothing is guessed: a line without exactly one usable id becomes a `Line` that says why, and the
lines after it go on. Lines end with a line feed and nothing else (an id may hold U+2028), are
strict UTF-8, and a byte order mark counts at the very start only.
"""

import codecs
import csv
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from monocloud_async.errors import ConfigurationError, InvalidUserIdError
from monocloud_async.wire import check_user_id, clean

STDIN = Path("-")
MAX_LINE = 1 << 20  # bytes; a longer line is reported, not kept
DELIMITERS = ",;\t"  # Excel writes the second one in half of Europe

_ID_NAMES = {"userid", "id"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_json = msgspec.json.Decoder()


class Format(StrEnum):
    """How ids are written down."""

    TXT = "txt"
    CSV = "csv"
    JSONL = "jsonl"


_SUFFIXES = {
    ".txt": Format.TXT,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
}


class Line(NamedTuple):
    """One line, or one csv row: either its id, or the problem with it."""

    number: int
    raw: bytes  # with its line end: what a file of failures needs to be fed back
    user_id: str | None = None
    problem: str | None = None


class IdSource:
    """The lines of one input.

    Attributes:
        name: for people.
        size: bytes in all, or None for a pipe, which may block whoever reads it.
        bytes_read: how much of it is read so far.
        header: the csv header as it stands in the input, once it is read.
    """

    def __init__(
        self, stream: BinaryIO, form: Format, *, column: str | None = None, name: str = "input"
    ) -> None:
        if column is not None and form is Format.TXT:
            raise ConfigurationError("a txt file has no columns; leave --column out")
        mode = os.fstat(stream.fileno())
        self.name = name
        self.size = mode.st_size if stat.S_ISREG(mode.st_mode) else None
        self.bytes_read = 0
        self.header = b""
        self._stream = stream
        self._form = form
        self._column = column
        self._number = 0
        self._mark = b""

    def __iter__(self) -> Iterator[Line]:
        match self._form:
            case Format.TXT:
                return map(self._txt, self._lines())
            case Format.CSV:
                return self._csv()
            case Format.JSONL:
                return map(self._jsonl, self._lines())

    def _lines(self) -> Iterator[bytes]:
        return (raw for raw in self._physical_lines() if raw.strip())

    def _physical_lines(self) -> Iterator[bytes]:
        while raw := self._stream.readline(MAX_LINE):
            self._number += 1
            self.bytes_read += len(raw)
            end = raw
            while len(end) == MAX_LINE and not end.endswith(b"\n"):
                end = self._stream.readline(MAX_LINE)
                self.bytes_read += len(end)
            yield self._without_mark(raw) if self._number == 1 else raw

    def _without_mark(self, raw: bytes) -> bytes:
        if raw.startswith(_UTF16):
            raise ConfigurationError(
                f"{self.name} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8"
            )
        if raw.startswith(codecs.BOM_UTF8):
            self._mark = codecs.BOM_UTF8
        return raw.removeprefix(codecs.BOM_UTF8)

    def _txt(self, raw: bytes) -> Line:
        return _line(self._number, raw, lambda text: text.strip())

    def _jsonl(self, raw: bytes) -> Line:
        return _line(self._number, raw, lambda _: _id_in_json(raw, self._column))

    def _csv(self) -> Iterator[Line]:
        taken: list[bytes] = []  # the lines of the row at hand: a quoted cell may span several

        def texts() -> Iterator[str]:
            for raw in self._physical_lines():
                taken.append(raw)
                # `_line` refuses what is not UTF-8; here it only has to get through the reader.
                yield raw.decode(errors="surrogateescape")

        lines = texts()
        for cells in _rows(lines, ","):
            raw = b"".join(taken)
            if raw.strip():
                self.header = self._mark + raw
                break
            taken.clear()
        else:
            return
        if isinstance(cells, csv.Error):
            raise ConfigurationError(f"the header of {self.name} is malformed csv: {cells}")
        delimiter, names, index = _header(self.header, self._column)
        taken.clear()
        for row in _rows(lines, delimiter):
            raw = b"".join(taken)
            number = self._number - len(taken) + 1
            taken.clear()
            if raw.strip():
                yield _line(number, raw, lambda _, row=row: _cell(row, names, index))


@contextmanager
def open_ids(path: Path, form: Format | None, column: str | None) -> Iterator[IdSource]:
    """The ids in this file, or on stdin for `-`.

    Raises:
        ConfigurationError: it cannot be opened, or nothing says which format it has.
    """
    if form is None:
        form = Format.TXT if path == STDIN else _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ConfigurationError(f"say which format {path} has: --format txt, csv or jsonl")
    name = "stdin" if path == STDIN else clean(str(path))
    try:
        # Not `sys.stdin`: at exit Python would wait for a thread that still reads from it.
        stream = Path(path).open("rb") if path != STDIN else open(0, "rb", closefd=False)  # noqa: PTH123, SIM115
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
    with stream:
        yield IdSource(stream, form, column=column, name=name)
