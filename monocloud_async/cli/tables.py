"""Writes a table of users to a file or to stdout: all of it, or nothing."""

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import msgspec

from monocloud_async.cli.files import whole, written
from monocloud_async.cli.options import TableFormat
from monocloud_async.cli.streams import results

# What spreadsheets take for a formula at the start of a cell, in the widths of East Asia as well.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_PIECE: Final = 1 << 16  # characters

Cell = str | bool | None
Row = Callable[[Sequence[Cell]], object]


def no_formula(text: str) -> str:
    """Return the text in a form that spreadsheets do not treat as a formula.

    A leading space is enough, and `bulk` ignores spaces around a cell.
    """
    return f" {text}" if text.startswith(_FORMULA) else text


def table_format(path: Path | None, form: TableFormat | None) -> TableFormat:
    """Return the given format, or the one that the file name ends in; csv for any other."""
    if form is not None:
        return form
    is_jsonl = path is not None and path.suffix.lower() in {".jsonl", ".ndjson"}
    return TableFormat.JSONL if is_jsonl else TableFormat.CSV


@contextmanager
def open_table(path: Path | None, form: TableFormat, columns: Sequence[str]) -> Iterator[Row]:
    """Yield a function that adds a row; the table appears at the end, if nothing was raised.

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
        written("a temporary file"),
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file,
    ):
        yield _writer(file, form, columns)
        file.seek(0)
        output = results()
        while text := file.read(_PIECE):
            output.write(text.encode())  # UTF-8, whatever the terminal knows


def _writer(file: TextIO, form: TableFormat, columns: Sequence[str]) -> Row:
    if form is TableFormat.JSONL:

        def add(row: Sequence[Cell]) -> None:
            members = dict(zip(columns, row, strict=True))
            file.write(msgspec.json.encode(members).decode() + "\n")

        return add
    write_row = csv.writer(file, lineterminator="\n").writerow
    write_row(columns)
    return lambda row: write_row([_cell(value) for value in row])


def _cell(value: Cell) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            return no_formula(value)
