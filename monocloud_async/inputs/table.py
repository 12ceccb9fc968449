"""Reads a table of delimited text (RFC 4180), as spreadsheets and databases write it.

A quote that stands where nobody meant it opens a cell that swallows the rows after it. The grammar
allows that reading. So where the lines in a cell look like rows, they are bad lines, each of them:
neither read as rows (a note of several lines must not enable somebody) nor lost.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By
from monocloud_async.inputs.ids import (
    LISTED,
    NotAnIdError,
    columns_of_ids,
    find,
    is_column_name,
    shown_name,
    strip,
)
from monocloud_async.inputs.json_document import refuse_json
from monocloud_async.sanitize import clean

MAX_LINE: Final = 1 << 20  # characters; a longer line or row is reported as bad

_DELIMITERS: Final = ",;\t|"  # Excel writes semicolons in many European locales
_BLANK: Final = f" \r\n\ufeff{_DELIMITERS}"
_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The first line by which a file tells Excel its delimiter.
_SEP: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_HEADER_LINES: Final = 50
_OPEN: Final = "unexpected end of data"  # what Python's csv says of a quote that is not closed
_LONG_ID: Final = 10  # characters; no word of a note is likely to look like such an id
_MANY: Final = 10  # rows; if their ids are equally long, then so are all others
_NO_WORD: Final = re.compile("[0-9]")
_LONGEST_WORD: Final = 20  # characters

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
        lengths: Counter[int] = Counter()
        for taken, row in _rows(lines, self.delimiter):
            if len(taken) == 1:
                if not isinstance(row, csv.Error) and self.place < len(row):
                    lengths[len(row[self.place])] += 1
                yield taken, row
            elif problem := self._swallowed(taken, row, lengths):
                yield from (([line], problem) for line in taken if line[1].strip())
            else:
                yield taken, row

    def _swallowed(
        self, lines: list[Numbered], row: Row, lengths: Counter[int]
    ) -> csv.Error | None:
        """Return the error of a row that may have swallowed others, or None."""
        where = f"lines {lines[0][0]} to {lines[-1][0]}"
        if isinstance(row, csv.Error):
            return csv.Error(f"{where}: {row}")
        own = row[self.place] if self.place < len(row) else ""
        further = [self._split_loosely(text) for _, text in lines[1:]]
        if (
            "\n" in own
            or "\r" in own
            or any(self._is_row(cells, own, lengths) for cells in further)
            or (not _are_equal(lengths) and all(map(self._is_like_header, further)))
        ):
            return csv.Error(f"{where} are one row by their quotes, but look like several")
        return None

    def looks_like_row(self, text: str) -> bool:
        """Return whether this line, in a header of several lines, may be a row of its own."""
        return self._is_row(self._split_loosely(text), "", Counter())

    def _split_loosely(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self.delimiter), [])

    def _is_row(self, cells: list[str], own: str, lengths: Counter[int]) -> bool:
        """Return whether this line has an id that no word of a note is likely to look like."""
        user_id = self._id(cells)
        if user_id is None:
            return False
        if self.by is By.EMAIL:
            return True
        known = lengths.keys() | {len(strip(own))}
        if len(user_id) in known:
            return len(user_id) >= _LONG_ID or len(cells) >= self.columns
        if _are_equal(lengths) or len(cells) < self.columns:
            return False
        no_word = _NO_WORD.search(user_id) or len(user_id) > _LONGEST_WORD
        return len(user_id) >= min(known) / 2 and bool(no_word)

    def _is_like_header(self, cells: list[str]) -> bool:
        """Return whether this line has a cell for each column, and a word where the id is.

        In the sentences of a note, there is a space after a comma.
        """
        has_cells = len(cells) == self.columns and not any(cell[:1] == " " for cell in cells)
        return has_cells and self._id(cells) is not None

    def _id(self, cells: list[str]) -> str | None:
        if len(cells) <= self.place:
            return None
        try:
            return find(cells[self.place], self.by)
        except NotAnIdError:
            return None


def _are_equal(lengths: Counter[int]) -> bool:
    """Return whether there are many ids so far, and all of them are equally long."""
    return len(lengths) == 1 and lengths.total() >= _MANY


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
            yield taken, row
            taken.clear()
            for line in _until_closed(lines, delimiter):  # which may be the rest of a large file
                yield [line], row
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)
            continue
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


def is_blank(text: str) -> bool:
    """Return whether there is nothing in this row, as in those that a spreadsheet adds."""
    return not text.strip(_BLANK)


def split_lines(text: str) -> list[str]:
    """Return the lines of this text, with their ends: CR, LF or CR LF."""
    return list(io.StringIO(text, newline=""))


def find_header(
    name: str,
    lines: Iterator[Numbered],
    column: str | None,
    by: By,
    readings: Callable[[Sequence[str]], list[list[str]]] = lambda texts: [[*texts]],
) -> tuple[Table | None, list[Numbered]]:
    """Return how to read a table, and the lines that were read to find out.

    The table is None if there is nothing but blank lines.

    Args:
        name: the name of the input, for error messages.
        lines: the lines of the input.
        column: the name or the number of the column of ids, or None to find it.
        by: what the rows name users by.
        readings: returns these lines in each of the encodings that they may have.

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
        problems = []
        for texts in readings([text for _, text in first]):
            try:
                return read_header(name, texts, column, by), first
            except ConfigurationError as error:
                problems.append(error)
        if line is None or len(first) == _HEADER_LINES:
            raise problems[0]


def read_header(name: str, first: Sequence[str], column: str | None, by: By) -> Table:
    """Return how to read a table, from its first lines.

    Comment lines (`#`) and blank lines above the header are passed over; if the column is named, so
    are lines with fewer cells, such as a title. A number is taken for a column only if no column
    has it as its name. Then the table may have no header.

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
    above: list[dict[str, Row]] = []  # lines that are no header, such as a title
    for line in range(1 if sep else 0, len(first)):
        rows = {}
        for delimiter in delimiters:
            size, rows[delimiter] = _first_row(first[line:], delimiter)
            row, place = _with_place(rows[delimiter], column, by)
            if place is not None and all(_is_narrower(one[delimiter], row) for one in above):
                end = line + size
                what = "lines" if above else "comment lines"
                notes = [f"{what} above the header are passed over"] if comments or above else []
                table = Table(delimiter, len(row), place, row[place], end, notes, by)
                return _checked(name, table, first[line + 1 : end], line)
        if is_blank(first[line]):
            continue
        if first[line].startswith("#"):
            comments = True
            continue
        if not above:
            refuse_json(name, first[line])
        above.append(rows)
        if column is None:
            break
        if column.isdecimal():
            return _by_number(name, rows, first[line:], int(column), by, above=line)
    raise _not_found(name, above[0] if above else rows, column, by)


def _checked(name: str, table: Table, further: Sequence[str], line: int) -> Table:
    """Return the table, if these further lines of its header do not look like rows."""
    if any(table.looks_like_row(text) for text in further):
        raise ConfigurationError(
            f"lines {line + 1} to {table.lines} of {name} are one header by their quotes, but look"
            " like several rows; look for a stray quote"
        )
    return table


def _with_place(row: Row, column: str | None, by: By) -> tuple[list[str], int | None]:
    """Return the header, and the index of the column of ids if there is exactly one."""
    if isinstance(row, csv.Error):
        return [], None
    names = columns_of_ids(row, by) if column is None else [shown_name(column)]
    found = [place for place, name in enumerate(row) if name in names]
    return row, found[0] if len(found) == 1 else None


def _is_narrower(row: Row, header: list[str]) -> bool:
    """Return whether fewer cells of this row have something in them, so that it is no user's."""
    return not isinstance(row, csv.Error) and sum(map(bool, row)) < sum(map(bool, header))


def _first_row(first: Sequence[str], delimiter: str) -> tuple[int, Row]:
    """Return how many lines the first row has, and its cells."""
    reader = csv.reader(iter(first), delimiter=delimiter, strict=True)
    try:
        row = next(reader)
    except csv.Error as error:
        return 1, error
    return reader.line_num, [shown_name(cell) for cell in row]


def _by_number(
    name: str, rows: dict[str, Row], first: Sequence[str], number: int, by: By, *, above: int
) -> Table:
    """Return the table of which these are the first lines, with the ids in this column.

    Args:
        name: the name of the input, for error messages.
        rows: the first row, split by each delimiter.
        first: the lines from the first row on.
        number: the number of the column, from 1.
        by: what the rows name users by.
        above: how many lines there are above these.
    """
    delimiter, row = max(rows.items(), key=lambda item: _width(item[1]))
    # One that is open at the end may be closed in a further line, and be the right one.
    is_open = [one for one in rows.values() if isinstance(one, csv.Error) and _OPEN in str(one)]
    if is_open and _width(row) <= 1:
        raise _malformed(name, is_open[0])
    if isinstance(row, csv.Error):
        raise _malformed(name, row)
    if not 1 <= number <= len(row):
        raise ConfigurationError(f"{name} has no column {number}; it has {len(row)} columns")
    text = row[number - 1]
    if is_column_name(text, by):
        size, _ = _first_row(first, delimiter)
        table = Table(delimiter, len(row), number - 1, text, above + size, [], by)
        return _checked(name, table, first[1:size], above)
    note = f"line {above + 1} is taken for a user: {clean(text)!r} is no name for such a column"
    return Table(delimiter, len(row), number - 1, str(number), above, [note], by)


def _width(row: Row) -> int:
    return 0 if isinstance(row, csv.Error) else len(row)


def _malformed(name: str, error: csv.Error) -> ConfigurationError:
    return ConfigurationError(
        f"the header of {name} is malformed csv: {clean(str(error))}; look for a stray quote"
    )


def _not_found(name: str, rows: dict[str, Row], column: str | None, by: By) -> ConfigurationError:
    row = max(rows.values(), key=_width, default=[])
    malformed = next((row for row in rows.values() if isinstance(row, csv.Error)), None)
    if malformed is not None and _width(row) <= 1:
        return _malformed(name, malformed)
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
