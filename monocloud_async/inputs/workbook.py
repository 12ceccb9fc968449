"""Reads a workbook (.xlsx, .xlsb, .xls, .ods) as lines of csv; needs the extra `inputs`."""

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.content import refuse_archive
from monocloud_async.sanitize import clean

_SAVE = "save the sheet as CSV UTF-8 and use that file"


def workbook_lines(name: str, stream: BinaryIO, sheet: str | None) -> Iterator[str]:
    """Yield the rows of one sheet as lines of csv.

    A number is written in a form that is no id: a spreadsheet rounds long numbers, and drops zeros
    in front. Rows that a filter hides are read as well.

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
        book = calamine.CalamineWorkbook.from_filelike(stream)
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


def _text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:E}"
    return " ".join(str(value).splitlines())
