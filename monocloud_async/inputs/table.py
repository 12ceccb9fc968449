"""Reads a table of delimited text (RFC 4180), as spreadsheets and databases write it.

A quote that stands where nobody meant it opens a cell that swallows the rows after it. The grammar
allows that reading. So where the lines in a cell look like rows, they are bad lines, each of them:
neither read as rows (a note of several lines must not enable somebody) nor lost.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, NoReturn

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.ids import NotAnIdError, find_id, is_column_name, strip
from monocloud_async.sanitize import clean

MAX_LINE: Final = 1 << 20  # characters; a longer line or row is reported as bad

_DELIMITERS: Final = ",;\t|"  # Excel writes semicolons in many European locales
_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The first line by which a file tells Excel its delimiter.
_SEP: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_LONG_ID: Final = 10  # characters; no word of a note is likely to look like such an id

Row = list[str] | csv.Error


class Numbered(NamedTuple):
    """A line of a file, with its end, and its number from 1."""

    number: int
    text: str


class Table(NamedTuple):
    """How the rows of a table are to be read.

    Attributes:
        delimiter: the character between two cells.
        columns: how many columns the header has.
        place: the index of the column of ids.
        column: the name of this column, or its number if the table has no header.
        header: the text above the first row.
        lines: how many lines that is; or those before the first row, if the table has no header.
        notes: what was decided that may surprise.
    """

    delimiter: str
    columns: int
    place: int
    column: str
    header: str
    lines: int
    notes: tuple[str, ...] = ()

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
        taken: list[Numbered] = []
        lengths: set[int] = set()

        def texts() -> Iterator[str]:
            size = 0
            for line in lines:
                size = size + len(line.text) if taken else 0
                taken.append(line)
                if size > MAX_LINE:
                    raise _NeverClosedError
                yield line.text

        reader = csv.reader(texts(), delimiter=self.delimiter, strict=True)
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
                taken += _until_closed(lines, self.delimiter)
                reader = csv.reader(texts(), delimiter=self.delimiter, strict=True)
            row_lines = taken[:]
            taken.clear()
            if len(row_lines) == 1:
                if not isinstance(row, csv.Error) and self.place < len(row):
                    lengths.add(len(row[self.place]))
                yield row_lines, row
            elif problem := self._swallowed(row_lines, row, lengths):
                yield from (([line], problem) for line in row_lines if line.text.strip())
            else:
                yield row_lines, row

    def _swallowed(self, lines: list[Numbered], row: Row, lengths: set[int]) -> csv.Error | None:
        """Return the error of a row that may have swallowed others, or None."""
        where = f"lines {lines[0].number} to {lines[-1].number}"
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
            user_id = find_id(row[self.place])
        except NotAnIdError:
            return False
        if len(user_id) != len(strip(own)) and len(user_id) not in lengths:
            return False
        return len(user_id) >= _LONG_ID or len(row) >= self.columns


class _NeverClosedError(Exception):
    """A cell is longer than `MAX_LINE`."""


def _until_closed(lines: Iterator[Numbered], delimiter: str) -> Iterator[Numbered]:
    """Yield the lines of a quoted cell up to the one in which it ends."""
    for line in lines:
        yield line
        asked = 0

        def texts(text: str = line.text) -> Iterator[str]:
            nonlocal asked
            for part in (f'"{text}', ""):
                asked += 1
                yield part

        next(csv.reader(texts(), delimiter=delimiter), None)
        if asked == 1:
            return


def read_header(name: str, first: Sequence[str], column: str | None) -> Table:
    """Return how to read a table, from its first lines.

    Comment lines (`#`) and blank lines above the header are passed over. A number is taken for a
    column only if no column has it as its name. Then the table may have no header.

    Args:
        name: the name of the input, for error messages.
        first: the first lines; a header that is longer is an error.
        column: the name or the number of the column of ids, or None to find it.

    Raises:
        ConfigurationError: there is not exactly one such column.
    """
    delimiters, above, comments = _DELIMITERS, 0, 0
    if first and (sep := _SEP.fullmatch(first[0])):
        delimiters, above = sep[1], 1
    rows: dict[str, list[str]] = {}
    malformed: csv.Error | None = None
    while above < len(first):
        rows = {}
        for delimiter in delimiters:
            used, row = _first_row(first[above:], delimiter)
            if isinstance(row, csv.Error):
                malformed = malformed or row
                continue
            rows[delimiter] = row
            found = [place for place, cell in enumerate(row) if _holds_ids(cell, column)]
            if len(found) == 1:
                kept = [*first[: above - comments], *first[above : above + used]]
                notes = (f"{comments} comment lines above the header are passed over",) * bool(
                    comments
                )
                return Table(
                    delimiter, len(row), found[0], row[found[0]], "".join(kept), above + used, notes
                )
        if first[above].strip() and not first[above].startswith("#"):
            break
        comments += first[above].startswith("#")
        above += 1
    if column is not None and column.isdecimal() and rows and above < len(first):
        return _by_number(name, first, above, rows, column)
    _refuse(name, rows, malformed, column)


def _first_row(first: Sequence[str], delimiter: str) -> tuple[int, Row]:
    """Return how many lines the first row has, and its cells."""
    reader = csv.reader(iter(first), delimiter=delimiter, strict=True)
    try:
        row = next(reader)
    except csv.Error as error:
        return 1, error
    return reader.line_num, [strip(cell) for cell in row]


def _holds_ids(name: str, column: str | None) -> bool:
    return is_column_name(name) if column is None else name == column


def _by_number(
    name: str, first: Sequence[str], above: int, rows: dict[str, list[str]], column: str
) -> Table:
    delimiter, row = max(rows.items(), key=lambda item: len(item[1]))
    place = int(column) - 1
    if not 0 <= place < len(row):
        raise ConfigurationError(f"{name} has no column {column}; it has {len(row)} columns")
    if is_column_name(row[place]):
        return Table(delimiter, len(row), place, row[place], "".join(first[: above + 1]), above + 1)
    note = f"line {above + 1} is taken for a user: {clean(row[place])!r} is no name for ids"
    header = "".join(line for line in first[:above] if not line.startswith("#"))
    return Table(delimiter, len(row), place, column, header, above, (note,))


def _refuse(
    name: str, rows: dict[str, list[str]], malformed: csv.Error | None, column: str | None
) -> NoReturn:
    names = max(rows.values(), key=len, default=[])
    if malformed is not None and len(names) <= 1:
        raise ConfigurationError(f"the header of {name} is malformed csv: {clean(str(malformed))}")
    listed = clean(", ".join(names[:20]))
    if column is not None:
        raise ConfigurationError(
            f"{name} has no single column {clean(column)!r}; it has: {listed}."
            " --column takes a number, too: 1 is the first"
        )
    comment = "; remove the comment lines" if listed.startswith("#") else ""
    raise ConfigurationError(
        f"no single column of {name} is called user_id or id: name the right one with --column, or"
        " by its number (--column 1), or use --format txt for a plain list of ids; its first row"
        f" is: {listed}{comment}"
    )
