"""Reads user ids from the files that people have, so that memory does not grow with the input.

Nothing is guessed: a line without exactly one valid id becomes a `Line` with the problem, and
reading continues. A file is what its first bytes say; its name only tells txt, csv and JSON apart.
What was found (an encoding, a header) is in `IdReader.notes`, for people to see.

CR, LF and CR LF end a line. Of JSON documents and workbooks the whole file is in memory.
"""

import csv
import errno
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO, TextIOBase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.content import (
    SAMPLE,
    Encoding,
    encoding_of,
    is_workbook,
    peek,
    refuse_database,
    refuse_document,
    text_of,
    unpacked,
)
from monocloud_async.inputs.ids import plain_id
from monocloud_async.inputs.json_document import (
    MAX_DOCUMENT,
    may_be_document,
    read_document,
    refuse_json,
)
from monocloud_async.inputs.lines import Line, is_id_member, json_lines, read_line, txt_line
from monocloud_async.inputs.table import MAX_LINE, Numbered, find_header, read_header
from monocloud_async.inputs.workbook import workbook_lines
from monocloud_async.sanitize import clean

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = Path("-")

_SUFFIXES: Final = {
    ".txt": Format.TXT,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".json": Format.JSONL,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".xlsx": Format.WORKBOOK,
    ".xlsm": Format.WORKBOOK,
    ".xlsb": Format.WORKBOOK,
    ".xls": Format.WORKBOOK,
    ".ods": Format.WORKBOOK,
}
# Names of what the process has open. To another process, they name something else, or nothing.
_DESCRIPTOR: Final = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|thread-self|\d+)/fd/\d+")
_START: Final = 16  # bytes that tell what a file is


class IdReader:
    """Iterates over the lines of one input.

    Attributes:
        name: the name of the input, for messages.
        form: the format of the input.
        column: the column or member that has the ids, as given, or None to find it.
        by: what the lines name users by; an "id" may be an e-mail address, then.
        sheet: the sheet of a workbook, as given, or None for the only one.
        path: where the input can be opened again, or None.
        size: the size in bytes, or None for a pipe, whose reader may block.
        header: the text above the first row of a table, once it is read.
        found: what the input is, once the first line is read: "csv with tabs, column 'id'".
        notes: what else people should know of it.
        resolve: returns a line with a user id in place of what the line names a user by.
        if_changed: what people can do if a journal has other ids than the input, or None for the
            usual advice.
    """

    if_changed: str | None = None

    def __init__(
        self,
        stream: BinaryIO,
        form: Format,
        *,
        column: str | None = None,
        sheet: str | None = None,
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
        self.header = ""
        self.found = str(form)
        self.notes: list[str] = []
        self.resolve: Callable[[Line], Line] | None = None
        self.sheet = sheet
        self._expected: int | None = None
        self._stream = stream

    def expected(self) -> int | None:
        """Return about how many ids there are, by counting line ends; None if that is unknown."""
        if self.size is not None and self._expected is None:
            self._expected = self._counted()
        return self._expected

    def _counted(self) -> int | None:
        number = self._stream.fileno()
        position = os.lseek(number, 0, os.SEEK_CUR)  # `_stream` may have read ahead
        with open(number, "rb", SAMPLE, closefd=False) as file, self._readable():
            file.seek(0)
            has_lines, count = self._count(file)
        os.lseek(number, position, os.SEEK_SET)
        if has_lines:
            return count
        lines = self.lines_again()  # all of a workbook or a document is in memory anyway
        return None if lines is None else sum(1 for _ in lines)

    def _count(self, file: BinaryIO) -> tuple[bool, int]:
        """Return whether the lines of this file are its items, and how many they are."""
        start = peek(file, _START)
        if self.form is Format.WORKBOOK:
            return False, 0
        content = unpacked(self.name, file, start)
        if is_workbook(peek(content, _START)):
            return False, 0
        if self.form is Format.JSONL:
            sample = peek(content, SAMPLE)
            encoding = encoding_of(sample)
            text = sample[encoding.mark :].decode(encoding.name, errors="replace").lstrip()
            if may_be_document(text.partition("\n")[0], self._is_id):
                return False, 0
        ends = returns = 0
        last = b"\n"
        while block := content.read(1 << 20):
            ends += block.count(b"\n")
            returns += block.count(b"\r")
            last = block[-1:]
        lines = (ends or returns) + (last not in b"\r\n\0")
        return True, max(0, lines - (self.form is Format.CSV))

    def reread(self) -> Iterator[str] | None:
        """Return the valid ids, read again from the start, or None for a pipe."""
        lines = self.lines_again()
        return None if lines is None else (line.user_id for line in lines if line.user_id)

    def lines_again(self) -> Iterator[Line] | None:
        """Return the lines, read again from the start, or None for a pipe."""
        return None if self.path is None else self._again(self.path)

    def _again(self, path: Path) -> Iterator[Line]:
        with open_ids(path, self.form, self.column, sheet=self.sheet, by=self.by) as reader:
            reader.resolve = self.resolve
            for line in reader:
                self.found = reader.found
                yield line

    def __iter__(self) -> Iterator[Line]:
        with self._readable():
            lines = self._lines()
            yield from lines if self.resolve is None else map(self.resolve, lines)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn errors of reading, unpacking and decoding into a `ConfigurationError`."""
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeError) as error:
            raise ConfigurationError(f"{self.name} is damaged: {clean(str(error))}") from None
        except OSError as error:
            raise ConfigurationError(f"cannot read {self.name}: {error.strerror}") from None

    def _lines(self) -> Iterator[Line]:
        stream = unpacked(self.name, self._stream, peek(self._stream, _START))
        sample = peek(stream, SAMPLE)
        if is_workbook(sample):
            yield from self._table(self._sheet_lines(stream), Encoding("utf-8", 0))
            return
        encoding = encoding_of(sample)
        refuse_document(self.name, sample, encoding)
        if self.form is Format.WORKBOOK:
            raise ConfigurationError(f"{self.name} is no workbook; name its format with --format")
        if self.sheet is not None:
            raise ConfigurationError(f"{self.name} is no workbook; leave --sheet out")
        if encoding.note:
            self.notes.append(f"{self.name} is {encoding.note}")
        with _text(stream, encoding) as text:
            match self.form:
                case Format.CSV:
                    yield from self._table(_numbered(text), encoding)
                case Format.JSONL:
                    yield from self._json(text)
                case _:
                    yield from self._txt(_numbered(text))

    def _sheet_lines(self, stream: BinaryIO) -> Iterator[Numbered]:
        if self.size is None:
            raise ConfigurationError(
                f"{self.name} is a workbook or a zip archive, which cannot be read from a pipe;"
                " save it to a file"
            )
        self.form = Format.WORKBOOK
        rows = workbook_lines(self.name, stream, self.sheet)
        return enumerate(rows, 1)

    def _table(self, lines: Iterator[Numbered], encoding: Encoding) -> Iterator[Line]:
        table, first = find_header(self.name, lines, self.column, self.by, encoding.readings)
        if table is None:
            return
        self.header = "".join(text for _, text in first[: table.lines])
        what = "workbook" if self.form is Format.WORKBOOK else str(table)
        self.found = f"{what}, column {clean(table.column)!r}"
        self.notes += table.notes
        for taken, row in table.rows(chain(first[table.lines :], lines)):
            text = taken[0][1] if len(taken) == 1 else "".join(text for _, text in taken)
            if isinstance(row, csv.Error) or any(map(str.strip, row)):  # else it is blank
                line = read_line(taken[0][0], text, table.cell, row, self.by)
                yield line._replace(text="") if any(_is_cut(text) for _, text in taken) else line

    def _is_id(self, member: str) -> bool:
        return is_id_member(member, self.column, self.by)

    def _json(self, text: TextIOBase) -> Iterator[Line]:
        parse = json_lines(self.column, self.by)
        number, first = 0, ""
        while not first.strip():
            number, first = number + 1, text.readline(MAX_DOCUMENT)  # it may be all on one line
            if not first:
                return
        begin = first.strip()
        if may_be_document(first, self._is_id):
            first += text.read(MAX_DOCUMENT) + text.readline(MAX_LINE)  # up to the end of a line
            document = read_document(self.name, first, self._is_id)
            if document is not None:
                self.found = "JSON array"
                self.notes += document.notes
                for number, item in enumerate(document.items, 1):
                    yield parse(number, f"{item}\n")
                return
        if begin == "{":  # no line of JSON lines, and what jq writes
            raise ConfigurationError(
                f"{self.name} is neither one JSON document nor JSON lines; if it is not cut off,"
                " write one object a line: jq -c ."
            )
        refuse_list(self.name, first, self.by)
        lines = chain(StringIO(first, newline=""), (line for _, line in _numbered(text)))
        for further, line in enumerate(lines):
            if line.strip():
                yield _without_a_part(parse(number + further, line))

    def _txt(self, lines: Iterator[Numbered]) -> Iterator[Line]:
        begun = commented = False
        is_id = self.by is By.ID
        for number, text in lines:
            if begun and is_id and (user_id := plain_id(text)):
                yield Line(number, text, user_id)
            elif text.startswith("#"):
                if not commented:
                    commented = True
                    self.notes.append(
                        f"lines that begin with # are comments and passed over, as line {number}"
                    )
            elif text.strip():
                if begun or not is_header(self.name, text, self.by):
                    yield _without_a_part(txt_line(self.by, number, text))
                else:
                    what = clean(text.strip())
                    self.notes.append(f"line {number} is a header and passed over: {what!r}")
                begun = True


def is_header(name: str, text: str, by: By = By.ID) -> bool:
    """Return whether this first line of a list of ids is the name of a column.

    Raises:
        ConfigurationError: the line shows that the file has another format.
    """
    refuse_json(name, text)
    try:
        table = read_header(name, [text], None, by)
    except ConfigurationError:
        return False
    if table.columns > 1:
        raise ConfigurationError(f"{name} looks like a table: use --format csv")
    return True


def refuse_list(name: str, line: str, by: By = By.ID) -> None:
    """Raise `ConfigurationError` if the first line of JSON lines shows a table or a list of ids."""
    if not line.lstrip().startswith(("{", "[")) and (plain_id(line) or is_header(name, line, by)):
        raise ConfigurationError(f"{name} looks like a list of ids: use --format txt")


@contextmanager
def _text(stream: BinaryIO, encoding: Encoding) -> Iterator[TextIOBase]:
    """Yield the text of this stream, without its byte order mark."""
    stream.read(encoding.mark)
    text = text_of(stream, encoding)
    try:
        yield text
    finally:
        with suppress(ValueError):  # it is closed already
            text.detach()  # or it would close the stream


def _numbered(text: TextIOBase) -> Iterator[Numbered]:
    """Yield the lines of a text; of an overlong one, only the start."""
    number = 0
    while line := text.readline(MAX_LINE):
        number += 1
        end = line
        while len(end) == MAX_LINE and end[-1] not in "\r\n":
            end = text.readline(MAX_LINE)
        yield number, line


def _is_cut(text: str) -> bool:
    """Return whether `_numbered` left the end of this line out."""
    return len(text) >= MAX_LINE and text[-1] not in "\r\n"


def _without_a_part(line: Line) -> Line:
    """Return the line, without its text if that is only the start."""
    return line._replace(text="") if _is_cut(line.text) else line


def named_format(path: Path, form: Format | None, column: str | None) -> Format:
    """Return the given format, or the one that the file name ends in.

    Raises:
        ConfigurationError: the format is unknown, or has no columns although one is named.
    """
    if form is None and path == STDIN:
        form = Format.TXT
    if form is None:
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
        form = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if form is None:
        raise ConfigurationError(f"the format of {path} is unknown: add --format txt, csv or jsonl")
    if column is not None and form is Format.TXT:
        raise ConfigurationError("a txt file has no columns; leave --column out")
    return form


class _File(io.FileIO):
    """The file of an input; to read it fails if it gets shorter meanwhile.

    Then its last line would be half an id, or the rest would be missing without a word: an export
    that is written again empties the file first.
    """

    def __init__(self, place: int | Path, *, closefd: bool) -> None:
        super().__init__(place, closefd=closefd)
        mode = os.fstat(self.fileno())
        self._size = mode.st_size if stat.S_ISREG(mode.st_mode) else 0

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        """Read some bytes.

        Raises:
            OSError: the file ends earlier than when it was opened.
        """
        count = super().readinto(buffer)
        if count == 0 and self._size and self.tell() < self._size:
            raise OSError(
                errno.EIO, "it got shorter while it was read; start again with the whole file"
            )
        return count


@contextmanager
def open_ids(
    path: Path,
    form: Format | None,
    column: str | None,
    *,
    sheet: str | None = None,
    by: By = By.ID,
) -> Iterator[IdReader]:
    """Open this file, or stdin for `-`, and yield its reader.

    Raises:
        ConfigurationError: the file cannot be opened, or its format is unknown.
    """
    name = "stdin" if path == STDIN else clean(str(path))
    try:
        # Not `sys.stdin`: at exit, Python would wait for a thread that still reads from it.
        place = 0 if path == STDIN else path
        stream = io.BufferedReader(_File(place, closefd=path != STDIN), SAMPLE)
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
    try:
        try:
            start = peek(stream, _START) if path != STDIN and stream.seekable() else b""
        except OSError as error:  # of the disk, or the file got shorter already
            raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
        refuse_database(name, start)
        if form is None and is_workbook(start):
            form = Format.WORKBOOK
        form = named_format(path, form, column)
        reader = IdReader(
            stream,
            form,
            column=column,
            sheet=sheet,
            name=name,
            path=None if path == STDIN or _DESCRIPTOR.fullmatch(str(path.absolute())) else path,
            by=by,
        )
        yield reader
    finally:
        # A thread may block in a pipe's `read`, and `close` would wait for it. The exit ends both.
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
