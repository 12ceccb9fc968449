"""Reads a workbook (.xlsx, .xlsb, .xls, .ods) as lines of csv; needs the extra `inputs`."""

import csv
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, time, timedelta
from typing import Any, BinaryIO, Final

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.content import refuse_archive
from monocloud_async.sanitize import clean, no_formula

_SAVE: Final = "save the sheet as CSV UTF-8 and use that file"
# How the parts of a workbook are packed. Others fail with errors of other modules.
_METHODS: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}

# The reader returns the same for an empty cell, for one with an error, and for one with a formula
# whose value was not saved. In the XML of a sheet (ECMA-376, part 1, 18.3.1.4) they are different.
_ERROR: Final = re.compile(rb"""(<(?:\w+:)?c\s(?:[^>]*\s)?t=)(?:"e"|'e')""")
_NO_VALUE: Final = re.compile(
    rb"<((?:\w+:)?)c\b([^>]*)>\s*<\1f\b(?:[^>]*/>|[^>]*>[^<]*</\1f>)\s*"
    rb"(?:<\1v\s*/>|<\1v>\s*</\1v>)?\s*</\1c>"
)
# Cells with something in them. Empty ones, which only have a format, do not count for the reader.
_CELL: Final = re.compile(
    rb"""<(?:\w+:)?c\s[^>]*?\br=["']([A-Z]{1,3})([0-9]{1,7})["'][^>]*(?<!/)>"""
)
_BEYOND_P: Final = re.compile(rb"""r=["'](?:[A-Z]{2}|[Q-Z][0-9])""")
# The record BrtWsDim of an .xlsb (MS-XLSB): the first and the last row, then the columns.
_DIMENSIONS: Final = re.compile(rb"\A\x81\x01.*?\x94\x01\x10(.{16})", re.DOTALL)
_START: Final = 1024  # bytes in which it is
_MOST_CELLS: Final = 1 << 24  # 1 GB in the reader, which keeps all cells up to the last ones


def workbook_lines(name: str, stream: BinaryIO, sheet: str | None) -> Iterator[str]:
    """Yield the rows of one sheet as lines of csv.

    Numbers and dates are written in a form that is no id: a spreadsheet rounds long numbers, drops
    zeros in front, and takes some texts for dates. Rows that a filter hides are read as well. In an
    .xlsx, the cells of errors have their names, such as `#N/A`; in other formats, they are empty.

    Args:
        name: the name of the file, for error messages.
        stream: the file.
        sheet: the name of the sheet; None if the workbook has one visible sheet.

    Raises:
        ConfigurationError: the extra is missing, the file is damaged, or there is no such sheet.
    """
    refuse_archive(name, stream)
    try:
        import python_calamine as calamine  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"{name} is a workbook: {_SAVE}, or pip install 'monocloud-async[inputs]'"
        ) from None
    visible: list[str] = []
    try:
        book = calamine.CalamineWorkbook.from_filelike(_with_errors(name, stream))
        visible = [
            one.name
            for one in book.sheets_metadata
            if one.visible is calamine.SheetVisibleEnum.Visible
            and one.typ is calamine.SheetTypeEnum.WorkSheet
        ]
        if sheet is None and len(visible) != 1:
            raise ConfigurationError(
                f"{name} has {len(visible)} sheets ({clean(', '.join(visible[:20]))}):"
                " name the one with the ids with --sheet"
            )
        rows = book.get_sheet_by_name(visible[0] if sheet is None else sheet).to_python(
            skip_empty_area=False
        )
    except calamine.WorksheetNotFound:
        raise ConfigurationError(
            f"{name} has no sheet {clean(sheet or '')!r}; it has: {clean(', '.join(visible[:20]))}"
        ) from None
    except calamine.CalamineError as error:
        raise ConfigurationError(
            f"the workbook {name} cannot be read ({clean(str(error))}): {_SAVE}"
        ) from None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([_text(value) for value in row])
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _with_errors(name: str, stream: BinaryIO) -> BinaryIO:
    """Return the workbook with texts for the cells that have none, or itself if it has no such.

    Raises:
        ConfigurationError: a sheet is too large for the reader, which would end the process.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            known = all(part.compress_type in _METHODS for part in archive.infolist())
            sheets: dict[str, bytes] = {}
            for part in archive.namelist() if known else ():
                if part.startswith("xl/worksheets/") and part.endswith((".xml", ".bin")):
                    sheet = archive.read(part)
                    _check_size(name, sheet)
                    if part.endswith(".xml") and (named := _name_errors(sheet)) != sheet:
                        sheets[part] = named
            if sheets:
                stream = _replaced(archive, sheets)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
        pass  # no .xlsx, or a damaged one, of which the reader tells
    stream.seek(0)
    return stream


def _check_size(name: str, sheet: bytes) -> None:
    """Raise `ConfigurationError` if a sheet is large and mostly empty, by one cell far away."""
    rows, columns = _size(sheet)
    if rows * columns > max(_MOST_CELLS, len(sheet)):  # a cell has some bytes
        raise ConfigurationError(
            f"a sheet of {name} has {rows:,} rows and {columns:,} columns, and nearly all of them"
            f" are empty: delete what is far away from the ids, or {_SAVE}"
        )


def _size(sheet: bytes) -> tuple[int, int]:
    """Return how many rows and columns there are up to the last cells; 0 if they are few."""
    if found := _DIMENSIONS.search(sheet[:_START]):
        _, last_row, _, last_column = struct.unpack("<4I", found[1])
        return last_row + 1, last_column + 1
    if not _BEYOND_P.search(sheet):  # for speed: up to column P, there are never too many cells
        return 0, 0
    last = {cell[1]: int(cell[2]) for cell in _CELL.finditer(sheet)}  # the row of each column
    return max(last.values(), default=0), max(map(_number, last), default=0)


def _number(column: bytes) -> int:
    """Return the number of the column with these letters, from 1."""
    number = 0
    for letter in column:
        number = number * 26 + letter - ord("A") + 1
    return number


def _replaced(archive: zipfile.ZipFile, parts: dict[str, bytes]) -> BinaryIO:
    """Return a copy of the archive with these parts in the place of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as copy:
        for name in archive.namelist():
            copy.writestr(name, parts[name] if name in parts else archive.read(name))
    return file


def _name_errors(sheet: bytes) -> bytes:
    """Return the XML of a sheet with a text for each error, and for each value not saved."""
    return _NO_VALUE.sub(_without_value, _ERROR.sub(rb'\1"str"', sheet))


def _without_value(found: re.Match[bytes]) -> bytes:
    """Return a cell without a value with a text for it, unless its value is the empty text."""
    prefix, attributes = found.groups()
    if re.search(rb"\st=[\"']str", attributes):
        return found[0]
    place = re.search(rb"\sr=[\"'][A-Z0-9]+[\"']", attributes)
    start = prefix + b"c" + (place[0] if place else b"")
    return b'<%b t="str"><%bv>#VALUE!</%bv></%bc>' % (start, prefix, prefix, prefix)


def _text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:E}"
    # No id has white space in it.
    if isinstance(value, date):  # a `datetime`, too
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, time):
        return f"0000-00-00 {value:%H:%M:%S}"
    if isinstance(value, timedelta):
        return f"0000-00-00 {value}"
    text = " ".join(str(value).splitlines())
    # In a workbook, a text is no formula; in the file of failures, which is a csv, it could be one.
    return no_formula(text) if isinstance(value, str) else text
