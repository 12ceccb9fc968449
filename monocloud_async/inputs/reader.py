"""Reads user ids from txt, csv or jsonl, line by line, so memory does not grow with the input.

Nothing is guessed: a line without exactly one valid id becomes a `Line` with the problem, and
reading continues. Only a line feed ends a line (an id may contain U+2028). Lines must be UTF-8. A
byte order mark is recognized only at the very start.
"""

import codecs
import csv
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.lines import (
    MAX_LINE,
    Line,
    cell,
    csv_rows,
    line_parser,
    read_header,
    read_line,
)
from monocloud_async.sanitize import clean

STDIN = Path("-")

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SUFFIXES = {
    ".txt": Format.TXT,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
}


class IdReader:
    """Iterates over the lines of one input.

    Attributes:
        name: the name of the input, for messages.
        form: the format of the input.
        column: the column or member that has the ids, or None to find it.
        by: what the lines name users by; an "id" may be an e-mail address, then.
        path: where the input can be opened again, or None.
        size: the size in bytes, or None for a pipe, whose reader may block.
        header: the bytes of the csv header, once it is read.
    """

    def __init__(
        self,
        stream: BinaryIO,
        form: Format,
        *,
        column: str | None = None,
        name: str = "input",
        path: Path | None = None,
        by: By = By.ID,
    ) -> None:
        mode = os.fstat(stream.fileno())
        self.name = name
        self.form = form
        self.column = column
        self.by = by
        self.path = path if stat.S_ISREG(mode.st_mode) else None
        self.size = mode.st_size if stat.S_ISREG(mode.st_mode) else None
        self.header = b""
        self._stream = stream
        self._number = 0
        self._mark = b""

    def expected(self) -> int | None:
        """Return about how many ids there are, by counting line ends; None for a pipe."""
        if self.size is None:
            return None
        with open(self._stream.fileno(), "rb", closefd=False) as file:
            ends = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
            file.seek(0)
        return max(0, ends - (self.form is Format.CSV))

    def reread(self) -> Iterator[str] | None:
        """Return the valid ids, read again from the start, or None for a pipe."""
        if self.path is None:
            return None
        return _ids(self.path, self.form, self.column, self.by)

    def __iter__(self) -> Iterator[Line]:
        if self.form is Format.CSV:
            return self._csv()
        parse = line_parser(self.form, self.column, self.name, b"", self.by)
        return (parse(self._number, raw) for raw in self._physical_lines() if raw.strip())

    def _physical_lines(self) -> Iterator[bytes]:
        while raw := self._stream.readline(MAX_LINE):
            self._number += 1
            end = raw  # only the start of an overlong line is kept
            while len(end) == MAX_LINE and not end.endswith(b"\n"):
                end = self._stream.readline(MAX_LINE)
            yield self._without_mark(raw) if self._number == 1 else raw

    def _without_mark(self, raw: bytes) -> bytes:
        if raw.startswith(_UTF16):
            raise ConfigurationError(
                f"{self.name} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8"
            )
        if raw.startswith(codecs.BOM_UTF8):
            self._mark = codecs.BOM_UTF8
        return raw.removeprefix(codecs.BOM_UTF8)

    def _csv(self) -> Iterator[Line]:
        taken: list[bytes] = []  # the lines of the current row: a quoted cell may span several

        def decoded() -> Iterator[str]:
            for raw in self._physical_lines():
                taken.append(raw)
                # `read_line` refuses invalid UTF-8; here it only has to pass the csv reader.
                yield raw.decode(errors="surrogateescape")

        def rows(delimiter: str) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
            for row in csv_rows(lines, delimiter):
                raw = b"".join(taken)
                taken.clear()
                if raw.strip():
                    yield raw, row

        lines = decoded()
        raw, _ = next(rows(","), (b"", []))
        if not raw:
            return
        self.header = self._mark + raw
        delimiter, columns, place = read_header(self.name, raw, self.column, self.by)
        for raw, row in rows(delimiter):
            number = self._number - raw.count(b"\n", 0, -1)
            yield read_line(number, raw, partial(cell, row, columns, place))


def named_format(path: Path, form: Format | None, column: str | None) -> Format:
    """Return the given format, or the one that the file name ends in.

    Raises:
        ConfigurationError: the format is unknown, or has no columns although one is named.
    """
    if form is None:
        form = Format.TXT if path == STDIN else _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ConfigurationError(f"the format of {path} is unknown: add --format txt, csv or jsonl")
    if column is not None and form is Format.TXT:
        raise ConfigurationError("a txt file has no columns; leave --column out")
    return form


@contextmanager
def open_ids(
    path: Path, form: Format | None, column: str | None, by: By = By.ID
) -> Iterator[IdReader]:
    """Open this file, or stdin for `-`, and yield its reader.

    Raises:
        ConfigurationError: the file cannot be opened, or its format is unknown.
    """
    form = named_format(path, form, column)
    name = "stdin" if path == STDIN else clean(str(path))
    try:
        # Not `sys.stdin`: at exit, Python would wait for a thread that still reads from it.
        stream = Path(path).open("rb") if path != STDIN else open(0, "rb", closefd=False)  # noqa: SIM115
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
    place = None if path == STDIN else path
    reader = IdReader(stream, form, column=column, name=name, path=place, by=by)
    try:
        yield reader
    finally:
        # A thread may block in a pipe's `read`, and `close` would wait for it. The exit ends both.
        if reader.size is not None:
            stream.close()


def _ids(path: Path, form: Format, column: str | None, by: By) -> Iterator[str]:
    with open_ids(path, form, column, by) as reader:
        yield from (line.user_id for line in reader if line.user_id is not None)
