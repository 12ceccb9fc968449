"""Reads the id from one line of an input.

Nothing is guessed: for a line without exactly one valid id, the `Line` has the problem.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import msgspec

from monocloud_async.endpoint import check_user_id
from monocloud_async.errors import ConfigurationError, InvalidUserIdError
from monocloud_async.inputs import By, Format
from monocloud_async.sanitize import clean

MAX_LINE: Final = 1 << 20  # bytes; a longer line is reported as bad
DELIMITERS: Final = ",;\t"  # Excel writes semicolons in many European locales

# Of columns and members, in lower case and without "_", "-" and spaces; and how messages list them.
_NAMES: Final = {By.ID: {"userid", "id"}, By.EMAIL: {"email", "emailaddress", "mail"}}
_LISTED: Final = {By.ID: "user_id or id", By.EMAIL: "email"}
_json = msgspec.json.Decoder()


class Line(NamedTuple):
    """One line, or one csv row, with its id or the problem with it."""

    number: int
    raw: bytes  # with its line end, so that a file of failures can be used as input again
    user_id: str | None = None
    problem: str | None = None


def line_parser(
    form: Format, column: str | None, name: str, header: bytes, by: By = By.ID
) -> Callable[[int, bytes], Line]:
    """Return a function that parses one line, given its number and its bytes.

    It can parse the parts of a file independently: here each csv row is one line, and a row whose
    quotes are still open at its end is a bad line.

    Args:
        form: the format of the input.
        column: the column or member that has the ids, or None to find it.
        name: the name of the input, for error messages.
        header: the first line of a csv, without a byte order mark.
        by: what the lines name users by.

    Raises:
        ConfigurationError: the header has no such column.
    """
    match form:
        case Format.TXT:
            return _txt_line
        case Format.JSONL:
            return lambda number, raw: read_line(
                number, raw, lambda _: _id_in_json(raw, column, by)
            )
        case Format.CSV:
            delimiter, columns, place = read_header(name, header, column, by)
            return partial(_csv_line, delimiter, columns, place)


def _txt_line(number: int, raw: bytes) -> Line:
    return read_line(number, raw, str.strip)


def _csv_line(delimiter: str, columns: int, place: int, number: int, raw: bytes) -> Line:
    row = next(csv_rows([raw.decode(errors="surrogateescape")], delimiter), [])
    return read_line(number, raw, partial(cell, row, columns, place))


def read_line(number: int, raw: bytes, find: Callable[[str], str]) -> Line:
    """Return the `Line` for these bytes; `find` extracts the id from their text."""
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


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | csv.Error]:
    """Yield the rows of these lines; for a malformed row yield the error, and continue."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            yield next(reader)
        except csv.Error as error:
            yield error
        except StopIteration:
            return


def read_header(name: str, raw: bytes, column: str | None, by: By = By.ID) -> tuple[str, int, int]:
    """Return the delimiter, the number of columns, and the index of the column of ids."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the header of {name} is not UTF-8; convert it first: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    columns: list[str] = []
    malformed: csv.Error | None = None
    for delimiter in DELIMITERS:
        row = next(csv_rows([text], delimiter), [])
        if isinstance(row, csv.Error):  # quotes that do not fit this delimiter may fit another
            malformed = malformed or row
            continue
        names = [cell.strip() for cell in row]
        found = [place for place, cell in enumerate(names) if _holds_ids(cell, column, by)]
        if len(found) == 1:
            return delimiter, len(names), found[0]
        if len(names) > len(columns) or found:
            columns = names
        if found:
            break
    if malformed is not None and len(columns) <= 1:
        raise ConfigurationError(f"the header of {name} is malformed csv: {clean(str(malformed))}")
    listed = clean(", ".join(columns[:20]))
    if column is not None:
        raise ConfigurationError(f"{name} has no single column {clean(column)!r}; it has: {listed}")
    raise ConfigurationError(
        f"no single column of {name} is called {_LISTED[by]}: name the right one with --column,"
        f" or use --format txt for a plain list; its first row is: {listed}"
    )


def _holds_ids(name: str, column: str | None, by: By) -> bool:
    if column is not None:
        return name == column
    return name.lower().replace("_", "").replace("-", "").replace(" ", "") in _NAMES[by]


def cell(row: list[str] | csv.Error, columns: int, place: int, _text: str) -> str:
    """Return the cell at `place`, if the row has as many cells as the header."""
    if isinstance(row, csv.Error):
        raise _BadLineError(f"is malformed csv ({clean(str(row))}); look for a stray quote")
    if len(row) < columns or any(row[columns:]):
        raise _BadLineError(f"has {len(row)} cells where the header has {columns}")
    return row[place].strip()


def _id_in_json(raw: bytes, column: str | None, by: By) -> str:
    try:
        value = _json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _BadLineError("is not JSON") from None
    if isinstance(value, dict):
        found = [key for key in value if _holds_ids(key, column, by)]
        if len(found) != 1:
            wanted = _LISTED[by] if column is None else clean(column)
            raise _BadLineError(f"has no single member {wanted}")
        value = value[found[0]]
    if not isinstance(value, str):
        raise _BadLineError("has an id that is not a string")
    return value
