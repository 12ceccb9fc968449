"""Reads the id from one line of an input.

Nothing is guessed: for a line without exactly one valid id, the `Line` has the problem.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from monocloud_async.inputs import Format
from monocloud_async.inputs.ids import NotAnIdError, find_id, is_column_name
from monocloud_async.inputs.table import MAX_LINE, read_header, split_lines
from monocloud_async.sanitize import clean

T = TypeVar("T")


class Line(NamedTuple):
    """One line, or one row of a table, with its id or the problem with it.

    Attributes:
        number: the number of the (first) line in the file, from 1; of a JSON array, of the item.
        text: the line with its end, so that a file of failures can be used as input again. Bytes
            that are not UTF-8 are in it as lone surrogates (`errors="surrogateescape"`).
        user_id: the id, or None.
        problem: what is wrong, to follow "line 3 ", or None.
    """

    number: int
    text: str
    user_id: str | None = None
    problem: str | None = None


def read_line(number: int, text: str, find: Callable[[T], str], source: T) -> Line:
    """Return the `Line` of this text; `find(source)` is its cell, or raises `NotAnIdError`."""
    if len(text) >= MAX_LINE:
        return Line(number, text, problem=f"is longer than {MAX_LINE} characters")
    try:
        return Line(number, text, find_id(find(source)))
    except NotAnIdError as error:
        return Line(number, text, problem=clean(str(error)))


def line_parser(
    form: Format, column: str | None, name: str, header: str
) -> Callable[[int, str], Line]:
    """Return a function that parses one line, given its number and its text.

    It can parse the parts of a file independently: here each csv row is one line, and a row whose
    quotes are still open at its end is a bad line.

    Args:
        form: the format of the input.
        column: the column or member that has the ids, or None to find it.
        name: the name of the input, for error messages.
        header: the header of a csv, without a byte order mark.

    Raises:
        ConfigurationError: the header has no such column, or the format has no lines.
    """
    match form:
        case Format.TXT:
            return txt_line
        case Format.JSONL:
            return json_lines(column)
        case _:
            table = read_header(name, split_lines(header), column)
            return lambda number, text: read_line(number, text, table.cell, table.split(text))


def txt_line(number: int, text: str) -> Line:
    """Return the `Line` of a txt file."""
    return read_line(number, text, str, text)


def json_lines(column: str | None) -> Callable[[int, str], Line]:
    """Return a function that parses one line of JSON."""
    find = partial(_id_in_json, column=column)
    return lambda number, text: read_line(number, text, find, text)


def _id_in_json(text: str, column: str | None) -> str:
    value = _decoded(text)
    if isinstance(value, dict):
        repeated = "\\" in text or text.lower().count(f'{(column or "id").lower()}"') > 1
        members = _members(text) if repeated else list(value.items())
        found = [member for name, member in members if _holds_ids(name, column)]
        if len(found) != 1:
            wanted = "user_id or id" if column is None else clean(column)
            how = "no" if not found else "more than one"
            raise NotAnIdError(f"has {how} member {wanted}: no single id")
        value = found[0]
    if not isinstance(value, str):
        raise NotAnIdError("has an id that is not a string")
    return value


def _holds_ids(name: str, column: str | None) -> bool:
    return is_column_name(name) if column is None else name == column


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except UnicodeEncodeError:
        raise NotAnIdError("is not UTF-8") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotAnIdError("is not JSON") from None


def _members(text: str) -> list[tuple[str, Any]]:
    """Return the members of an object, those with the same name included."""
    members: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return members
