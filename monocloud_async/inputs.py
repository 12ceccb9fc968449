"""User ids from txt, csv or jsonl: line by line, so that ten million of them need no memory.

Nothing is guessed: a line without exactly one usable id becomes a `Line` that says why, and the
lines after it go on. Lines end with a line feed and nothing else (an id may hold U+2028), are
strict UTF-8, and a byte order mark counts at the very start only.
"""

import codecs
import csv
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from monocloud_async.errors import ConfigurationError, InvalidUserIdError
from monocloud_async.formats import Format
from monocloud_async.wire import check_user_id, clean

STDIN = Path("-")
MAX_LINE = 1 << 20  # bytes; a longer line is reported, not kept
DELIMITERS = ",;\t"  # Excel writes the second one in half of Europe

_ID_NAMES = {"userid", "id"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_json = msgspec.json.Decoder()


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

    def again(self) -> Iterator[str] | None:
        """The usable ids once more, from the start, or None for a pipe."""
        if self.path is None:
            return None
        return _ids(self.path, self.form, self.column)

    def __iter__(self) -> Iterator[Line]:
        match self.form:
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

    def _txt(self, raw: bytes) -> Line:
        return _txt_line(self._number, raw)

    def _jsonl(self, raw: bytes) -> Line:
        return _line(self._number, raw, lambda _: _id_in_json(raw, self.column))

    def _csv(self) -> Iterator[Line]:
        taken: list[bytes] = []  # the lines of the row at hand: a quoted cell may span several

        def texts() -> Iterator[str]:
            for raw in self._physical_lines():
                taken.append(raw)
                # `_line` refuses what is not UTF-8; here it only has to get through the reader.
                yield raw.decode(errors="surrogateescape")

        def rows(delimiter: str) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
            for row in _rows(lines, delimiter):
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
        delimiter, columns, place = _header(self.name, raw, self.column)
        for raw, row in rows(delimiter):
            number = self._number - raw.count(b"\n", 0, -1)
            yield _line(number, raw, partial(_cell, row, columns, place))


def line_parser(
    form: Format, column: str | None, name: str, header: bytes
) -> Callable[[int, bytes], Line]:
    """What makes a `Line` of a number and the bytes of one line, wherever in the input it stands.

    For parts of a file that are read apart from each other: a csv row is one line there, and one
    whose quotes are open at its end is a bad line.

    Args:
        form: how the ids are written down.
        column: where they are, if somebody said so.
        name: the input's, for people.
        header: the first line of a csv, without a byte order mark.

    Raises:
        ConfigurationError: the header has no such column.
    """
    match form:
        case Format.TXT:
            return _txt_line
        case Format.JSONL:
            return lambda number, raw: _line(number, raw, lambda _: _id_in_json(raw, column))
        case Format.CSV:
            delimiter, columns, place = _header(name, header, column)
            return partial(_csv_line, delimiter, columns, place)


def _txt_line(number: int, raw: bytes) -> Line:
    return _line(number, raw, str.strip)


def _csv_line(delimiter: str, columns: int, place: int, number: int, raw: bytes) -> Line:
    row = next(_rows([raw.decode(errors="surrogateescape")], delimiter), [])
    return _line(number, raw, partial(_cell, row, columns, place))


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
def open_ids(path: Path, form: Format | None, column: str | None) -> Iterator[IdSource]:
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
    source = IdSource(stream, form, column=column, name=name, path=None if path == STDIN else path)
    try:
        yield source
    finally:
        # A thread may wait in a pipe's `read`, and `close` would wait for it: the exit ends both.
        if source.size is not None:
            stream.close()


def _ids(path: Path, form: Format, column: str | None) -> Iterator[str]:
    with open_ids(path, form, column) as source:
        yield from (line.user_id for line in source if line.user_id is not None)


def _line(number: int, raw: bytes, find: Callable[[str], str]) -> Line:
    problem = None
    try:
        if len(raw) >= MAX_LINE:
            problem = f"is longer than {MAX_LINE} bytes"
        else:
            user_id = find(raw.decode())
            check_user_id(user_id)
            return Line(number, raw, user_id)
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except InvalidUserIdError as error:
        problem = str(error.args[0])
    except _BadLineError as error:
        problem = str(error)
    return Line(number, raw, problem=problem)


class _BadLineError(Exception):
    pass


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | csv.Error]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            yield next(reader)
        except csv.Error as error:
            yield error
        except StopIteration:
            return


def _header(name: str, raw: bytes, column: str | None) -> tuple[str, int, int]:
    """The delimiter, the number of columns, and which of them has the ids."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the header of {name} is not UTF-8; convert it first: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    columns: list[str] = []
    for delimiter in DELIMITERS:
        row = next(_rows([text], delimiter), [])
        if isinstance(row, csv.Error):
            continue
        names = [cell.strip() for cell in row]
        found = [place for place, cell in enumerate(names) if _holds_ids(cell, column)]
        if len(found) == 1:
            return delimiter, len(names), found[0]
        if len(names) > len(columns) or found:
            columns = names
        if found:
            break
    listed = clean(", ".join(columns[:20]))
    if column is not None:
        raise ConfigurationError(f"{name} has no single column {clean(column)!r}; it has: {listed}")
    raise ConfigurationError(
        f"no single column of {name} is called user_id or id: name the right one with --column,"
        f" or say --format txt for a plain list of ids; its first row is: {listed}"
    )


def _holds_ids(name: str, column: str | None) -> bool:
    if column is not None:
        return name == column
    return name.lower().replace("_", "").replace("-", "").replace(" ", "") in _ID_NAMES


def _cell(row: list[str] | csv.Error, columns: int, place: int, _text: str) -> str:
    if isinstance(row, csv.Error):
        raise _BadLineError(f"is malformed csv ({clean(str(row))}); look for a stray quote")
    if len(row) < columns or any(row[columns:]):
        raise _BadLineError(f"has {len(row)} cells where the header has {columns}")
    return row[place].strip()


def _id_in_json(raw: bytes, column: str | None) -> str:
    try:
        value = _json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _BadLineError("is not JSON") from None
    if isinstance(value, dict):
        found = [key for key in value if _holds_ids(key, column)]
        if len(found) != 1:
            wanted = "user_id or id" if column is None else clean(column)
            raise _BadLineError(f"has no single member {wanted}")
        value = value[found[0]]
    if not isinstance(value, str):
        raise _BadLineError("has an id that is no string")
    return value
