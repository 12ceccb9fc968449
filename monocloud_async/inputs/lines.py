"""Reads the id from one line of an input.

Nothing is guessed: for a line without exactly one valid id, the `Line` has the problem.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from monocloud_async.inputs import By, Format
from monocloud_async.inputs.ids import LISTED, NotAnIdError, columns_of_ids, find, is_column_name
from monocloud_async.inputs.json_document import utf_8
from monocloud_async.inputs.table import MAX_LINE, read_header, split_lines
from monocloud_async.sanitize import clean

T = TypeVar("T")


class Line(NamedTuple):
    """One line, or one row of a table, with its id or the problem with it.

    Attributes:
        number: the number of the (first) line in the file, from 1; of a JSON array, of the item.
        text: the line with its end, so that a file of failures can be used as input again. Bytes
            that are not UTF-8 are in it as lone surrogates (`errors="surrogateescape"`). Empty if
            the line is too long to be kept.
        user_id: the id, or None.
        problem: what is wrong, to follow "line 3 ", or None.
    """

    number: int
    text: str
    user_id: str | None = None
    problem: str | None = None


def read_line(number: int, text: str, cell: Callable[[T], str], source: T, by: By) -> Line:
    """Return the `Line` of this text; `cell(source)` has its id, or raises `NotAnIdError`."""
    if len(text) >= MAX_LINE:
        return Line(number, text, problem=f"is longer than {MAX_LINE} characters")
    try:
        return Line(number, text, find(cell(source), by))
    except NotAnIdError as error:
        return Line(number, text, problem=clean(str(error)))


def line_parser(
    form: Format, column: str | None, name: str, header: str, by: By = By.ID
) -> Callable[[int, str], Line]:
    """Return a function that parses one line, given its number and its text.

    It can parse the parts of a file independently: here each csv row is one line, and a row whose
    quotes are still open at its end is a bad line.

    Args:
        form: the format of the input.
        column: the column or member that has the ids, or None to find it.
        name: the name of the input, for error messages.
        header: the header of a csv, without a byte order mark.
        by: what the lines name users by.

    Raises:
        ConfigurationError: the header has no such column, or the format has no lines.
    """
    match form:
        case Format.TXT:
            return partial(txt_line, by)
        case Format.JSONL:
            return json_lines(column, by)
        case _:
            table = read_header(name, split_lines(header), column, by)
            return lambda number, text: read_line(number, text, table.cell, table.split(text), by)


def txt_line(by: By, number: int, text: str) -> Line:
    """Return the `Line` of a txt file."""
    return read_line(number, text, str, text, by)


def json_lines(column: str | None, by: By) -> Callable[[int, str], Line]:
    """Return a function that parses one line of JSON."""
    cell = partial(_id_in_json, column=column, by=by)
    return lambda number, text: read_line(number, text, cell, text, by)


def _id_in_json(text: str, *, column: str | None, by: By) -> str:
    value = _decoded(text)
    if isinstance(value, dict):
        names = _id_members(value, column, by)
        # The decoder takes the last of several members with one name.
        if len(names) == 1 and ("\\" in text or text.count(f'"{names[0]}"') > 1):
            names = _id_members((name for name, _ in _members(text)), column, by)
        if len(names) != 1:
            wanted = LISTED[by] if column is None else clean(column)
            how = "no" if not names else "more than one"
            raise NotAnIdError(f"has {how} member {wanted}: no single id")
        value = value[names[0]]
    if not isinstance(value, str):
        raise NotAnIdError("has an id that is not a string")
    return value


def _id_members(names: Iterable[str], column: str | None, by: By) -> list[str]:
    if column is None:
        return columns_of_ids(names, by)
    return [name for name in names if name == column]


def is_id_member(name: str, column: str | None, by: By) -> bool:
    """Return whether the member of this name has the id: the one that was named, or a usual one."""
    return is_column_name(name, by) if column is None else name == column


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(utf_8(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotAnIdError("is not JSON") from None


def _members(text: str) -> list[tuple[str, Any]]:
    """Return the members of an object, those with the same name included."""
    members: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return members
