"""User ids from txt, csv or jsonl: line by line, so that ten million of them need no memory.

Nothing is guessed: a line without exactly one usable id becomes a `Line` that says why, and the
lines after it go on. Lines end with a line feed and nothing else (an id may hold U+2028), are
strict UTF-8, and a byte order mark counts at the very start only.
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
from monocloud_async.inputs import Format
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
    """The lines of one input.

    Attributes:
        name: for people.
        form: how the ids are written down.
        column: where they are, if somebody said so.
        path: where the input can be opened once more, or None.
        size: bytes in all, or None for a pipe, which may block whoever reads it.
        header: the csv header as it stands in the input, once it is read.
    """

    def __init__(
        self,
        stream: BinaryIO,
        form: Format,
        *,
        column: str | None = None,
        name: str = "input",
        path: Path | None = None,
    ) -> None:
        mode = os.fstat(stream.fileno())
        self.name = name
        self.form = form
        self.column = column
        self.path = path if stat.S_ISREG(mode.st_mode) else None
        self.size = mode.st_size if stat.S_ISREG(mode.st_mode) else None
        self.header = b""
        self._stream = stream
        self._number = 0
        self._mark = b""

    def expected(self) -> int | None:
        """About how many ids there are: the file's line ends, counted; None for a pipe."""
        if self.size is None:
            return None
        with open(self._stream.fileno(), "rb", closefd=False) as file:
            ends = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
            file.seek(0)
        return max(0, ends - (self.form is Format.CSV))

    def reread(self) -> Iterator[str] | None:
        """The usable ids once more, from the start, or None for a pipe."""
        if self.path is None:
            return None
        return _ids(self.path, self.form, self.column)

    def __iter__(self) -> Iterator[Line]:
        if self.form is Format.CSV:
            return self._csv()
        parse = line_parser(self.form, self.column, self.name, b"")
        return (parse(self._number, raw) for raw in self._physical_lines() if raw.strip())

    def _physical_lines(self) -> Iterator[bytes]:
        while raw := self._stream.readline(MAX_LINE):
            self._number += 1
            end = raw  # of a line that is too long, only the start is kept
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
        taken: list[bytes] = []  # the lines of the row at hand: a quoted cell may span several

        def texts() -> Iterator[str]:
            for raw in self._physical_lines():
                taken.append(raw)
                # `read_line` refuses what is not UTF-8; here it only has to get through the reader.
                yield raw.decode(errors="surrogateescape")

        def rows(delimiter: str) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
            for row in csv_rows(lines, delimiter):
                raw = b"".join(taken)
                taken.clear()
                if raw.strip():
                    yield raw, row

        lines = texts()
        raw, head = next(rows(","), (b"", []))
        if isinstance(head, csv.Error):
            raise ConfigurationError(
                f"the header of {self.name} is malformed csv: {clean(str(head))}"
            )
        if not raw:
            return
        self.header = self._mark + raw
        delimiter, columns, place = read_header(self.name, raw, self.column)
        for raw, row in rows(delimiter):
            number = self._number - raw.count(b"\n", 0, -1)
            yield read_line(number, raw, partial(cell, row, columns, place))


def named_format(path: Path, form: Format | None, column: str | None) -> Format:
    """The format that somebody named, or the one that the file's name ends in.

    Raises:
        ConfigurationError: neither says it, or there are no columns in it.
    """
    if form is None:
        form = Format.TXT if path == STDIN else _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ConfigurationError(f"say which format {path} has: --format txt, csv or jsonl")
    if column is not None and form is Format.TXT:
        raise ConfigurationError("a txt file has no columns; leave --column out")
    return form


@contextmanager
def open_ids(path: Path, form: Format | None, column: str | None) -> Iterator[IdReader]:
    """The ids in this file, or on stdin for `-`.

    Raises:
        ConfigurationError: it cannot be opened, or nothing says which format it has.
    """
    form = named_format(path, form, column)
    name = "stdin" if path == STDIN else clean(str(path))
    try:
        # Not `sys.stdin`: at exit Python would wait for a thread that still reads from it.
        stream = Path(path).open("rb") if path != STDIN else open(0, "rb", closefd=False)  # noqa: SIM115
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
    reader = IdReader(stream, form, column=column, name=name, path=None if path == STDIN else path)
    try:
        yield reader
    finally:
        # A thread may wait in a pipe's `read`, and `close` would wait for it: the exit ends both.
        if reader.size is not None:
            stream.close()


def _ids(path: Path, form: Format, column: str | None) -> Iterator[str]:
    with open_ids(path, form, column) as reader:
        yield from (line.user_id for line in reader if line.user_id is not None)
