"""One line of an input, and the id in it.

Nothing is guessed: a line without exactly one usable id is a `Line` that says why.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import msgspec

from monocloud_async.endpoint import check_user_id
from monocloud_async.errors import ConfigurationError, InvalidUserIdError
from monocloud_async.inputs import Format
from monocloud_async.sanitize import clean

MAX_LINE: Final = 1 << 20  # bytes; a longer line is reported, not kept
DELIMITERS: Final = ",;\t"  # Excel writes the second one in half of Europe

_ID_NAMES: Final = {"userid", "id"}
_json = msgspec.json.Decoder()


class Line(NamedTuple):
    """One line, or one csv row: either its id, or the problem with it."""

    number: int
    raw: bytes  # with its line end: what a file of failures needs to be fed back
    user_id: str | None = None
    problem: str | None = None


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
            return lambda number, raw: read_line(number, raw, lambda _: _id_in_json(raw, column))
        case Format.CSV:
            delimiter, columns, place = read_header(name, header, column)
            return partial(_csv_line, delimiter, columns, place)


def _txt_line(number: int, raw: bytes) -> Line:
    return read_line(number, raw, str.strip)


def _csv_line(delimiter: str, columns: int, place: int, number: int, raw: bytes) -> Line:
    row = next(csv_rows([raw.decode(errors="surrogateescape")], delimiter), [])
    return read_line(number, raw, partial(cell, row, columns, place))


def read_line(number: int, raw: bytes, find: Callable[[str], str]) -> Line:
    """The line whose id `find` finds in its text."""
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
    """The rows of these lines, and what is wrong where there is none; the next one goes on."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            yield next(reader)
        except csv.Error as error:
            yield error
        except StopIteration:
            return


def read_header(name: str, raw: bytes, column: str | None) -> tuple[str, int, int]:
    """The delimiter, the number of columns, and which of them has the ids."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the header of {name} is not UTF-8; convert it first: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    columns: list[str] = []
    for delimiter in DELIMITERS:
        row = next(csv_rows([text], delimiter), [])
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


def cell(row: list[str] | csv.Error, columns: int, place: int, _text: str) -> str:
    """The cell at `place` of a row that has as many as the header."""
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
