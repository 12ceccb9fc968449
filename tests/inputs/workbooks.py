"""Writes small workbooks, as spreadsheets do, without one."""

import io
import struct
import zipfile
from collections.abc import Mapping
from xml.sax.saxutils import escape

Sheets = dict[str, list[list[str | float]]]


def xlsx(sheets: Sheets, hidden: str = "", raw: dict[str, str] | None = None) -> bytes:
    """Return a workbook (ECMA-376) with these sheets; `raw` has the XML of some of its cells."""
    states = ("visible", "hidden")
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
        'content-types"><Default Extension="xml" ContentType="application/xml"/><Default Extension='
        '"rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>',
        "_rels/.rels": _links({"rId1": ("officeDocument", "xl/workbook.xml")}),
        "xl/_rels/workbook.xml.rels": _links(
            {f"r{n}": ("worksheet", f"worksheets/s{n}.xml") for n in range(len(sheets))}
        ),
        "xl/workbook.xml": '<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/'
        'main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">'
        "<sheets>"
        + "".join(
            f'<sheet name="{escape(name)}" sheetId="{n + 1}" r:id="r{n}"'
            f' state="{states[name == hidden]}"/>'
            for n, name in enumerate(sheets)
        )
        + "</sheets></workbook>",
        # Cells of style 1 are durations: [h]:mm:ss.
        "xl/styles.xml": '<styleSheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/'
        'main"><cellXfs><xf/><xf numFmtId="46"/></cellXfs></styleSheet>',
    }
    for n, rows in enumerate(sheets.values()):
        cells = "".join(
            "<row>" + "".join((raw or {}).get(str(one)) or _cell(one) for one in row) + "</row>"
            for row in rows
        )
        parts[f"xl/worksheets/s{n}.xml"] = (
            '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
            f"<sheetData>{cells}</sheetData></worksheet>"
        )
    return _zipped(parts)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"


def _links(links: dict[str, tuple[str, str]]) -> str:
    base = "http://schemas.openxmlformats.org"
    return (
        f'<Relationships xmlns="{base}/package/2006/relationships">'
        + "".join(
            f'<Relationship Id="{key}" Target="{target}"'
            f' Type="{base}/officeDocument/2006/relationships/{kind}"/>'
            for key, (kind, target) in links.items()
        )
        + "</Relationships>"
    )


def ods(rows: list[list[str]]) -> bytes:
    """Return a workbook (OpenDocument) with one sheet."""
    table = "".join(
        "<table:table-row>"
        + "".join(
            '<table:table-cell office:value-type="string">'
            f"<text:p>{escape(value)}</text:p></table:table-cell>"
            for value in row
        )
        + "</table:table-row>"
        for row in rows
    )
    names = "".join(
        f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text")
    )
    return _zipped(
        {
            "mimetype": "application/vnd.oasis.opendocument.spreadsheet",
            "META-INF/manifest.xml": '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:'
            'opendocument:xmlns:manifest:1.0"/>',
            "content.xml": f"<office:document-content{names}><office:body><office:spreadsheet>"
            f'<table:table table:name="Sheet1">{table}</table:table>'
            "</office:spreadsheet></office:body></office:document-content>",
        }
    )


def xlsb(cells: dict[tuple[int, int], str]) -> bytes:
    """Return a binary workbook (MS-XLSB) with one sheet of these cells, by row and column."""
    last = [max(place) for place in zip(*cells, strict=True)]
    rows: dict[int, bytes] = {}
    for (row, column), value in sorted(cells.items()):
        rows[row] = rows.get(row, b"") + _record(6, struct.pack("<II", column, 0) + _wide(value))
    sheet = _record(129) + _record(148, struct.pack("<4I", 0, last[0], 0, last[1])) + _record(145)
    for row, content in rows.items():
        sheet += _record(0, struct.pack("<I", row) + bytes(13)) + content
    sheets = _record(156, struct.pack("<II", 0, 1) + _wide("r0") + _wide("Sheet1"))
    return _zipped(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": _links({"rId1": ("officeDocument", "xl/workbook.bin")}),
            "xl/_rels/workbook.bin.rels": _links({"r0": ("worksheet", "worksheets/s0.bin")}),
            "xl/workbook.bin": _record(131) + _record(143) + sheets + _record(144) + _record(132),
            "xl/worksheets/s0.bin": sheet + _record(146) + _record(130),
        }
    )


def _record(number: int, data: bytes = b"") -> bytes:
    """Return a record, which begins with its number and its size, in 7 bits of each byte."""
    start = b""
    for value in (number, len(data)):
        rest = value
        while rest > 0x7F:
            start += bytes([rest & 0x7F | 0x80])
            rest >>= 7
        start += bytes([rest])
    return start + data


def _wide(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode("utf-16-le")


def _zipped(parts: Mapping[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return file.getvalue()
