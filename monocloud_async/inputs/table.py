"""Reads a table of delimited text (RFC 4180), as spreadsheets and databases write it.

A quote that stands where nobody meant it opens a cell that swallows the rows after it. The grammar
allows that reading. So where the lines in a cell look like rows, they are bad lines, each of them:
neither read as rows (a note of several lines must not enable somebody) nor lost.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By
from monocloud_async.inputs.ids import LISTED, NotAnIdError, find, is_column_name, strip
from monocloud_async.sanitize import clean

MAX_LINE: Final = 1 << 20  # characters; a longer line or row is reported as bad

_DELIMITERS: Final = ",;\t|"  # Excel writes semicolons in many European locales
_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The first line by which a file tells Excel its delimiter.
_SEP: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_HEADER_LINES: Final = 50
_LONG_ID: Final = 10  # characters; no word of a note is likely to look like such an id

# Python's own limit of 128 KiB would end a long cell as an error, and what is in it behind that
# would be read as rows. Here, a cell is as long as `MAX_LINE` allows.
csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE))

Row = list[str] | csv.Error
Numbered = tuple[int, str]  # a line of a file, with its end, and its number from 1


class Table(NamedTuple):
    """How the rows of a table are to be read.

    Attributes:
        delimiter: the character between two cells.
        columns: how many columns the header has.
        place: the index of the column of ids.
        column: the name of this column, or its number if the table has no header.
        lines: how many lines there are above the first row.
        notes: what was decided that may surprise.
        by: what the rows name users by.
    """

    delimiter: str
    columns: int
    place: int
    column: str
    lines: int
    notes: list[str]
    by: By

    def __str__(self) -> str:
        return f"csv with {_NAMES.get(self.delimiter, repr(self.delimiter))}"

    def split(self, text: str) -> Row:
        """Return the cells of one line."""
        try:
            return next(csv.reader([text], delimiter=self.delimiter, strict=True), [])
        except csv.Error as error:
            return error

    def cell(self, row: Row) -> str:
        """Return the cell with the id.

        Raises:
            NotAnIdError: the row is malformed, ends before this cell, or has too many cells.
        """
        if isinstance(row, csv.Error):
            raise NotAnIdError(f"is malformed csv ({row}); look for a stray quote")
        if len(row) <= self.place or any(map(str.strip, row[self.columns :])):
            raise NotAnIdError(f"has {len(row)} cells where the header has {self.columns}")
        return row[self.place]

    def rows(self, lines: Iterator[Numbered]) -> Iterator[tuple[list[Numbered], Row]]:
        """Yield each row with its lines; several, if a quoted cell has line breaks.

        Where the lines of such a row may be rows of their own, each is yielded alone, as an error.
        """
        lengths: set[int] = set()
        for taken, row in _rows(lines, self.delimiter):
            if len(taken) == 1:
                if not isinstance(row, csv.Error) and self.place < len(row):
                    lengths.add(len(row[self.place]))
                yield taken, row
            elif problem := self._swallowed(taken, row, lengths):
                yield from (([line], problem) for line in taken if line[1].strip())
            else:
                yield taken, row

    def _swallowed(self, lines: list[Numbered], row: Row, lengths: set[int]) -> csv.Error | None:
        """Return the error of a row that may have swallowed others, or None."""
        where = f"lines {lines[0][0]} to {lines[-1][0]}"
        if isinstance(row, csv.Error):
            return csv.Error(f"{where}: {row}")
        own = row[self.place] if self.place < len(row) else ""
        if (
            "\n" in own
            or "\r" in own
            or any(self._is_row(text, own, lengths) for _, text in lines[1:])
        ):
            return csv.Error(f"{where} are one row by their quotes, but look like several")
        return None

    def _is_row(self, text: str, own: str, lengths: set[int]) -> bool:
        row = next(csv.reader([text], delimiter=self.delimiter), [])
        if len(row) <= self.place:
            return False
        try:
            user_id = find(row[self.place], self.by)
        except NotAnIdError:
            return False
        if len(user_id) != len(strip(own)) and len(user_id) not in lengths:
            return False
        return len(user_id) >= _LONG_ID or len(row) >= self.columns


def _rows(lines: Iterator[Numbered], delimiter: str) -> Iterator[tuple[list[Numbered], Row]]:
    """Yield each row with its lines; for a malformed row the error, and continue after it."""
    taken: list[Numbered] = []

    def texts() -> Iterator[str]:
        size = 0
        for line in lines:
            if taken:
                size += len(line[1])
                if size > MAX_LINE:
                    taken.append(line)
                    raise _NeverClosedError
            else:
                size = 0
            taken.append(line)
            yield line[1]

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        row: Row
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        except _NeverClosedError:
            row = csv.Error("a quote is never closed")
            taken += _until_closed(lines, delimiter)
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)
        yield taken, row
        taken.clear()


class _NeverClosedError(Exception):
    """A cell is longer than `MAX_LINE`."""


def _until_closed(lines: Iterator[Numbered], delimiter: str) -> Iterator[Numbered]:
    """Yield the lines of a quoted cell up to the one in which it ends."""
    for line in lines:
        yield line
        asked = 0

        def texts(text: str = line[1]) -> Iterator[str]:
            nonlocal asked
            for part in (f'"{text}', ""):
                asked += 1
                yield part

        next(csv.reader(texts(), delimiter=delimiter), None)
        if asked == 1:
            return


def split_lines(text: str) -> list[str]:
    """Return the lines of this text, with their ends: CR, LF or CR LF."""
    return list(io.StringIO(text, newline=""))


def find_header(
    name: str,
    lines: Iterator[Numbered],
    column: str | None,
    by: By,
    names: Callable[[str], str] = str,
) -> tuple[Table | None, list[Numbered]]:
    """Return how to read a table, and the lines that were read to find out.

    The table is None if there is nothing but blank lines.

    Args:
        name: the name of the input, for error messages.
        lines: the lines of the input.
        column: the name or the number of the column of ids, or None to find it.
        by: what the rows name users by.
        names: returns the text of a header in the encoding that it seems to have.

    Raises:
        ConfigurationError: there is not exactly one column of ids.
    """
    first: list[Numbered] = []
    while True:  # the header may have lines above it, or several lines
        line = next(lines, None)
        if line is not None:
            first.append(line)
        elif not any(text.strip() for _, text in first):
            return None, first
        try:
            return read_header(name, [names(text) for _, text in first], column, by), first
        except ConfigurationError:
            if line is None or len(first) == _HEADER_LINES:
                raise


def read_header(name: str, first: Sequence[str], column: str | None, by: By) -> Table:
    """Return how to read a table, from its first lines.

    Comment lines (`#`) and blank lines above the header are passed over. A number is taken for a
    column only if no column has it as its name. Then the table may have no header.

    Args:
        name: the name of the input, for error messages.
        first: the first lines; the last one may be the header.
        column: the name or the number of the column of ids, or None to find it.
        by: what the rows name users by.

    Raises:
        ConfigurationError: there is not exactly one such column.
    """
    sep = _SEP.fullmatch(first[0]) if first else None
    delimiters = sep[1] if sep else _DELIMITERS
    comments = False
    rows: dict[str, Row] = {}
    for line in range(1 if sep else 0, len(first)):
        rows = {}
        for delimiter in delimiters:
            size, rows[delimiter] = _first_row(first[line:], delimiter)
            row, place = _with_place(rows[delimiter], column, by)
            if place is not None:
                notes = ["comment lines above the header are passed over"] if comments else []
                return Table(delimiter, len(row), place, row[place], line + size, notes, by)
        if first[line].strip() and not first[line].startswith("#"):
            if column is not None and column.isdecimal():
                return _by_number(name, rows, line, int(column), by)
            break
        comments = comments or bool(first[line].strip())
    raise _not_found(name, rows, column, by)


def _with_place(row: Row, column: str | None, by: By) -> tuple[list[str], int | None]:
    """Return the header, and the index of the column of ids if there is exactly one."""
    if isinstance(row, csv.Error):
        return [], None
    found = [
        place
        for place, name in enumerate(row)
        if (is_column_name(name, by) if column is None else name == column)
    ]
    return row, found[0] if len(found) == 1 else None


def _first_row(first: Sequence[str], delimiter: str) -> tuple[int, Row]:
    """Return how many lines the first row has, and its cells."""
    reader = csv.reader(iter(first), delimiter=delimiter, strict=True)
    try:
        row = next(reader)
    except csv.Error as error:
        return 1, error
    return reader.line_num, [strip(cell) for cell in row]


def _by_number(name: str, rows: dict[str, Row], line: int, number: int, by: By) -> Table:
    """Return the table whose first row these may be, with its ids in the column of this number."""
    delimiter, row = max(rows.items(), key=lambda item: _width(item[1]))
    if isinstance(row, csv.Error) or not 1 <= number <= len(row):
        raise ConfigurationError(f"{name} has no column {number}; it has {_width(row)} columns")
    first = row[number - 1]
    if is_column_name(first, by):
        return Table(delimiter, len(row), number - 1, first, line + 1, [], by)
    note = f"line {line + 1} is taken for a user: {clean(first)!r} is no name for such a column"
    return Table(delimiter, len(row), number - 1, str(number), line, [note], by)


def _width(row: Row) -> int:
    return 0 if isinstance(row, csv.Error) else len(row)


def _not_found(name: str, rows: dict[str, Row], column: str | None, by: By) -> ConfigurationError:
    row = max(rows.values(), key=_width, default=[])
    malformed = next((row for row in rows.values() if isinstance(row, csv.Error)), None)
    if malformed is not None and _width(row) <= 1:
        return ConfigurationError(f"the header of {name} is malformed csv: {clean(str(malformed))}")
    listed = "" if isinstance(row, csv.Error) else clean(", ".join(row[:20]))
    if column is not None:
        return ConfigurationError(
            f"{name} has no single column {clean(column)!r}; it has: {listed}."
            " --column takes a number, too: 1 is the first"
        )
    comment = "; remove the comment lines" if listed.startswith("#") else ""
    return ConfigurationError(
        f"no single column of {name} is called {LISTED[by]}: name the right one with --column, or"
        " by its number (--column 1), or use --format txt for a plain list; its first row"
        f" is: {listed}{comment}"
    )
