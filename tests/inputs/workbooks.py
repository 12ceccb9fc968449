"""Writes small workbooks, as spreadsheets do, without one."""

import io
import zipfile
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


def _zipped(parts: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return file.getvalue()
