"""Writes a table of users to a file or to stdout: all of it, or nothing."""

import csv
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import msgspec

from monocloud_async.cli.files import whole, written
from monocloud_async.cli.options import TableFormat
from monocloud_async.cli.streams import results
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.ids import NotAnIdError, find
from monocloud_async.sanitize import UNSAFE, no_formula

_JSON_LINES: Final = {".jsonl", ".ndjson"}
# What is in files of these names for other programs; a table is csv or JSON lines.
_NO_TEXT: Final = {".gz", ".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"}
_OTHERS: Final = {".json", *_NO_TEXT}
_PIECE: Final = 1 << 16  # characters

Cell = str | bool | None
Row = Callable[[Sequence[Cell]], bool]


def table_format(path: Path | None, form: TableFormat | None) -> TableFormat:
    """Return the given format, or the one that the file name ends in; csv for most others.

    Raises:
        ConfigurationError: the file name ends in a format that is not written.
    """
    suffix = "" if path is None else path.suffix.lower()
    if form is not None:
        return form
    if suffix in _OTHERS:
        raise ConfigurationError(
            f"cannot write {path}: a table is written as csv or JSON lines; choose a name that ends"
            " in .csv or .jsonl"
        )
    return TableFormat.JSONL if suffix in _JSON_LINES else TableFormat.CSV


def check_is_text(option: str, path: Path | None, ends: str = ".csv or .txt") -> None:
    """Check that a file that gets text is not named as a workbook or as something packed.

    Args:
        option: the option that names the file.
        path: the file, or None without one.
        ends: how its name may end.

    Raises:
        ConfigurationError: it is.
    """
    if path is not None and path.suffix.lower() in _NO_TEXT:
        raise ConfigurationError(
            f"{option}: {path} would get text, which programs do not expect in a file of this name;"
            f" choose a name that ends in {ends}"
        )


@contextmanager
def open_table(path: Path | None, form: TableFormat, columns: Sequence[str]) -> Iterator[Row]:
    """Yield a function that adds a row; the table appears at the end, if nothing was raised.

    The first cell of a row is a user id. The function leaves out a user whose id a reader of the
    file would take for another one, and returns whether it has added the row.

    Args:
        path: the file, which is replaced; None for stdout.
        form: the format.
        columns: the names of the columns.

    Raises:
        ConfigurationError: the file cannot be opened.
        Exit: it cannot be written, as on a full disk; an error of one line was printed.
    """
    if path is not None:
        with whole(path) as file:
            yield _writer(file, form, columns)
        return
    with (
        written("a temporary file (TMPDIR names its folder)"),
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file,
    ):
        yield _writer(file, form, columns)
        file.seek(0)
        output = results()
        while text := file.read(_PIECE):
            output.write(text.encode())  # UTF-8, whatever the terminal knows


def _writer(file: TextIO, form: TableFormat, columns: Sequence[str]) -> Row:
    if form is TableFormat.JSONL:

        def write(row: Sequence[Cell]) -> None:
            text = msgspec.json.encode(dict(zip(columns, row, strict=True))).decode()
            file.write(re.sub(UNSAFE, _escapes, text) + "\n")

    else:
        write_row = csv.writer(file, lineterminator="\n").writerow
        write_row(columns)

        def write(row: Sequence[Cell]) -> None:
            write_row([_cell(value) for value in row])

    def add(row: Sequence[Cell]) -> bool:
        is_said = _is_said(str(row[0]))
        if is_said:
            write(row)
        return is_said

    return add


def _is_said(user_id: str) -> bool:
    """Return whether a reader of the file finds this id, or none, but not another one."""
    try:
        return not re.search(UNSAFE, user_id) and find(user_id) == user_id
    except NotAnIdError:
        return True


def _escapes(found: re.Match[str]) -> str:
    """Return the characters as a string of JSON has them; all are in the first plane."""
    return "".join(f"\\u{ord(character):04x}" for character in found[0])


def _cell(value: Cell) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            # Not every reader, and not every writer, knows that a quoted cell may have lines.
            return no_formula(re.sub(UNSAFE, " ", value))
