"""Files as people have them, each with what it is read as: ids, bad lines, notes, or a refusal."""

import bz2
import codecs
import csv
import errno
import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import stdin_from
from workbooks import ods, xlsb, xlsx

from monocloud_async import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import STDIN, IdReader, open_ids
from monocloud_async.inputs.table import MAX_LINE, Numbered, find_header

IDS = [
    "UOtBaOybB6dTpIJNrnkRw",
    "a8kVx0mRQ2nTt5ZcYb1Lw",
    "Zq3-pW_7hJdKf9sLmN0Xc",
    "k2Jm4Nn6Pp8Qq0Rr1Ss3T",
    "B7v_C6x-D5z4E3y2F1w0G",
]
A, B, C, D, E = IDS
MEMORY = Path("/proc/self/mem")  # nothing is at its start
PLAIN = "".join(f"{user_id}\n" for user_id in IDS)
TABLE = "user_id,name\n" + "".join(f"{user_id},Müller\n" for user_id in IDS)
OBJECTS = [{"user_id": user_id, "email": "a@b.example", "disabled": True} for user_id in IDS]
JSON_LINES = "".join(f"{json.dumps(each)}\n" for each in OBJECTS)
ROWS: list[list[str | float]] = [["name", "user_id"]]
ROWS.extend(["Ada", user_id] for user_id in IDS)


def read(
    folder: Path, name: str, content: str | bytes, column: str | None = None, sheet: str = ""
) -> tuple[IdReader, list[Line]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_ids(path, None, column, sheet=sheet or None) as reader:
        reader.expected()
        return reader, list(reader)


READ = {
    "a plain list": ("a.txt", PLAIN, None),
    "a mark in front": ("a.txt", codecs.BOM_UTF8 + PLAIN.encode(), None),
    "CR LF, without the last": ("a.txt", "\r\n".join(IDS), None),
    "CR alone, txt": ("a.txt", PLAIN.replace("\n", "\r"), None),
    "CR alone, csv": ("a.csv", TABLE.replace("\n", "\r"), None),
    "CR alone, jsonl": ("a.jsonl", "".join(json.dumps(one) + "\r" for one in OBJECTS), None),
    "mixed line ends": ("a.txt", f"{A}\r\n{B}\n{C}\r{D}\n\r\n{E}", None),
    "spaces, blank lines, tabs": ("a.txt", f"\n {A}\n\t{B}\t\n\n{C}  \n{D}\n{E}\n", None),
    "invisible characters": ("a.txt", "".join(f"\u200b{one}\u00a0\n" for one in IDS), None),
    "quoted, one a line": ("a.txt", "".join(f'"{one}"\n' for one in IDS), None),
    "angle brackets": ("a.txt", "".join(f"<{one}>\n" for one in IDS), None),
    "an apostrophe in front": ("a.txt", "".join(f"'{one}\n" for one in IDS), None),
    "commas": ("a.csv", TABLE, None),
    "semicolons": ("a.csv", TABLE.replace(",", ";"), None),
    "tabs, .csv": ("a.csv", TABLE.replace(",", "\t"), None),
    "tabs, .tsv": ("a.tsv", TABLE.replace(",", "\t"), None),
    "bars": ("a.csv", TABLE.replace(",", "|"), None),
    "semicolons, all quoted": (
        "a.csv",
        '"user_id";"name"\r\n' + "".join(f'"{one}";"Müller, J"\r\n' for one in IDS),
        None,
    ),
    "tabs, all quoted": ("a.tsv", '"id"\t"n"\n' + "".join(f'"{one}"\t"x"\n' for one in IDS), None),
    "a comma in a quoted name": (
        "a.csv",
        'user_id;"n, m"\n' + "".join(f"{one};x\n" for one in IDS),
        None,
    ),
    "sep=;": ("a.csv", "sep=;\r\n" + TABLE.replace(",", ";"), None),
    "a mark, then sep=": ("a.csv", "\ufeffsep=\t\r\n" + TABLE.replace(",", "\t"), None),
    "comments above the header": ("a.csv", f"# exported today\n\n# by ada\n{TABLE}", None),
    "a header that begins with #": (
        "a.csv",
        "#,user_id\n" + "".join(f"{n},{one}\n" for n, one in enumerate(IDS)),
        None,
    ),
    "short rows": ("a.csv", f"user_id,n,m\n{A},x,y\n{B},x\n{C}\n{D},\n{E},,\n", None),
    "more separators than the header": ("a.csv", f"id,n\n{A},x,\n{B},x,,\n{C}\n{D}\n{E}\n", None),
    "notes of several lines": (
        "a.csv",
        "user_id,note\n" + "".join(f'{one},"one\ntwo\n3, or so"\n' for one in IDS),
        None,
    ),
    "a header of two lines": (
        "a.csv",
        'user_id,"first\nname"\n' + "".join(f"{one},x\n" for one in IDS),
        None,
    ),
    "a named column with invisible characters": (
        "a.csv",
        "n,Login\u00a0\u200bName\n" + "".join(f"x,{one}\n" for one in IDS),
        "Login Name",
    ),
    "a title above a header that is named": (
        "a.csv",
        f"Lost users\n,\n# today\nExport:,\n{TABLE}",
        "user_id",
    ),
    "a title above a header that is named, in a workbook": (
        "a.xlsx",
        xlsx({"x": [["Lost users", ""], *ROWS]}),
        "user_id",
    ),
    "rows of empty cells": (
        "a.csv",
        ",\n;\n" + TABLE.replace(f"{C},", f",\n,,\n{C},") + ",\n , \n",
        None,
    ),
    "rows of empty cells in a workbook": ("a.xlsx", xlsx({"x": [["", ""], *ROWS, ["", ""]]}), None),
    "a name in Windows-1252": (
        "a.csv",
        ("Identificación,Señal\n" + "".join(f"x,{one}\n" for one in IDS)).encode("cp1252"),
        "Señal",
    ),
    "a name in Mac OS Roman": (
        "a.csv",
        ("Schlüssel;n\n" + "".join(f"{one};Größe\n" for one in IDS)).encode("mac_roman"),
        "Schlüssel",
    ),
    "a page of an API": ("a.json", json.dumps({"Resources": OBJECTS, "total": 5}), None),
    "a page whose list has a name of its own": ("a.json", json.dumps({"lost": OBJECTS}), None),
    "users with lists": (
        "a.jsonl",
        "".join(json.dumps({"id": one, "data": ["x"]}) + "\n" for one in IDS),
        None,
    ),
    "no header, and a quote that means nothing": (
        "a.csv",
        "".join(f'{one};a,"b\n' for one in IDS),
        "1",
    ),
    "a page in JSON, with the members that were named": (
        "a.json",
        json.dumps({"items": [{"uid": one, "id": "x"} for one in IDS]}),
        "uid",
    ),
    '="id"': ("a.csv", "id\n" + "".join(f'="{one}"\n' for one in IDS), None),
    '="id", quoted': ("a.csv", "id\n" + "".join(f'"=""{one}"""\n' for one in IDS), None),
    "a column by name": ("a.csv", "a,b\n" + "".join(f"x,{one}\n" for one in IDS), "b"),
    "a column by number": (
        "a.csv",
        "id,n,id\n" + "".join(f"1,Ada,{one}\n" for one in IDS),
        "3",
    ),
    "no header": ("a.csv", "".join(f"Ada;{one}\n" for one in IDS), "2"),
    "a column whose name is 1": ("a.csv", "0,1\n" + "".join(f"x,{one}\n" for one in IDS), "1"),
    "a mark in the header": ("a.csv", "n,\ufeffuser_id\n" + "".join(f"x,{i}\n" for i in IDS), None),
    "UTF-16 LE": ("a.csv", codecs.BOM_UTF16_LE + TABLE.encode("utf-16-le"), None),
    "UTF-16 BE, tabs": (
        "a.csv",
        codecs.BOM_UTF16_BE + TABLE.replace(",", "\t").encode("utf-16-be"),
        None,
    ),
    "UTF-16 LE without a mark": ("a.txt", PLAIN.encode("utf-16-le"), None),
    "UTF-32": ("a.txt", PLAIN.encode("utf-32"), None),
    "Windows-1252": ("a.csv", TABLE.encode("cp1252"), None),
    "Windows-1252, a column with an umlaut": (
        "a.csv",
        ("Empfänger;Größe\n" + "".join(f"{one};groß\n" for one in IDS)).encode("cp1252"),
        "Empfänger",
    ),
    "Mac Roman": ("a.csv", TABLE.replace("\n", "\r").encode("mac_roman"), None),
    "gzip": ("a.csv.gz", gzip.compress(TABLE.encode()), None),
    "gzip of txt": ("a.txt.gz", gzip.compress(PLAIN.encode()), None),
    "gzip without its name": ("a.txt", gzip.compress(PLAIN.encode()), None),
    "strings, one a line": ("a.jsonl", "".join(f'"{one}"\n' for one in IDS), None),
    "objects, one a line": ("a.jsonl", "".join(json.dumps(one) + "\n" for one in OBJECTS), None),
    "objects, one a line, .json": ("a.json", "\n".join(map(json.dumps, OBJECTS)), None),
    "an array of strings": ("a.json", json.dumps(IDS), None),
    "an array of objects": ("a.json", json.dumps(OBJECTS), None),
    "an array of objects, indented, .jsonl": ("a.jsonl", json.dumps(OBJECTS, indent=1), None),
    "a page": ("a.json", json.dumps({"data": OBJECTS, "next": None}, indent=2), None),
    "a page, one line": ("a.jsonl", json.dumps({"data": OBJECTS}) + "\n", None),
    "a workbook": ("a.xlsx", xlsx({"Sheet1": ROWS}), None),
    "a workbook in gzip": ("a.xlsx.gz", gzip.compress(xlsx({"Sheet1": ROWS})), None),
    "a workbook in gzip named .csv": ("a.csv.gz", gzip.compress(xlsx({"Sheet1": ROWS})), None),
    "a workbook named .csv": ("a.csv", xlsx({"Sheet1": ROWS}), None),
    "a workbook with a hidden sheet": ("a.xlsx", xlsx({"x": [["a"]], "y": ROWS}, "x"), None),
    "an OpenDocument workbook": ("a.ods", ods([["user_id"], *([one] for one in IDS)]), None),
    "a workbook without a header": ("a.xlsx", xlsx({"Sheet1": ROWS[1:]}), "2"),
}


@pytest.mark.parametrize(("name", "content", "column"), READ.values(), ids=READ)
def test_all_five_ids_are_read(
    tmp_path: Path, name: str, content: str | bytes, column: str | None
) -> None:
    _, lines = read(tmp_path, name, content, column)
    assert [(line.user_id, line.problem) for line in lines] == [(one, None) for one in IDS]


@pytest.mark.parametrize(
    ("name", "content", "column", "note"),
    [
        ("a.txt", f"# VIPs\n{PLAIN}", None, "lines that begin with # are comments"),
        ("a.txt", f"User ID\n{PLAIN}", None, "line 1 is a header and passed over: 'User ID'"),
        ("a.csv", f"# x\n{TABLE}", None, "comment lines above the header are passed over"),
        ("a.csv", PLAIN, "1", f"line 1 is taken for a user: {A!r} is no name for such a column"),
        ("a.txt", PLAIN.encode("utf-16"), None, "a.txt is UTF-16-LE"),
        ("a.csv", TABLE.encode("cp1252"), None, "not UTF-8, and looks like Windows-125"),
        (
            "a.json",
            json.dumps({"data": OBJECTS, "page_data": {"total_count": 1203}}),
            None,
            "one page: 5 of 1,203 users",
        ),
    ],
)
def test_what_may_surprise_is_told(
    tmp_path: Path, name: str, content: str | bytes, column: str | None, note: str
) -> None:
    reader, lines = read(tmp_path, name, content, column)
    assert [line.user_id for line in lines] == IDS
    assert len(reader.notes) == 1
    assert note in reader.notes[0]


SWALLOWED = {
    "opened in one row, closed in another": (
        f'user_id,note\n{A},"12 inch\n{B},ok\n{C},ok\n{D},size 13"\n{E},fine\n',
        {2, 3, 4, 5},
    ),
    "never closed": (f'user_id,note\n{A},ok\n{B},"broken\n{C},x\n{D},y\n{E},z\n', {3, 4, 5, 6}),
    "closed in a row of quotes": (
        f'user_id,note\n{A},"12 inch\n{B},"ok, fine"\n{C},ok\n{D},x\n{E},y\n',
        {2, 3},
    ),
    "short rows between": (f'user_id,note\n{A},"12\n{B}\n{C},13"\n{D},x\n{E},y\n', {2, 3, 4}),
    "the id's own column": (f'note,user_id\nx,"{A}\ny,{B}\nz,{C}"\nw,{D}\nv,{E}\n', {2, 3, 4}),
    "ids of many lengths": (
        f'user_id,n\nshort-1,"Ann\nauth0-5f7c8ec7c33c6c004bba,Bob\ngoogle-10354,C"\n{D},\n{E},\n',
        {2, 3, 4},
    ),
    "ids of many lengths, short ones": (
        f'user_id,n\nu1,"Ann\nu22,Bob\nu333,C"\n{D},\n{E},\n',
        {2, 3, 4},
    ),
    "ids of many lengths, after one row": (
        f'user_id,n\nada7,\nbob,"B\ncarla99,C\ndora12,D"\n{E},\n',
        {3, 4, 5},
    ),
    "words as ids": (f'user_id,n,m\nada,,\nbobby,B,"x\ncarlab,C,\ndora,D,y"\n{E},,\n', {3, 4, 5}),
    "of one column": (f'user_id\n"{A}\n{B}\n{C}"\n{D}\n{E}\n', {2, 3, 4}),
}


@pytest.mark.parametrize(("content", "bad"), SWALLOWED.values(), ids=SWALLOWED)
def test_rows_that_a_quote_swallowed_are_bad_lines_each(
    tmp_path: Path, content: str, bad: set[int]
) -> None:
    _, lines = read(tmp_path, "a.csv", content)
    assert {line.number for line in lines if line.problem is not None} == bad
    rows = content.splitlines()[1:]
    assert {line.user_id for line in lines if line.problem is None} == {
        row.split(",")[0] if "note,user_id" not in content else row.split(",")[1]
        for number, row in enumerate(rows, 2)
        if number not in bad
    }
    told = {line.problem for line in lines if line.problem is not None}
    assert len(told) == 1
    assert f"lines {min(bad)} to {max(bad)}" in told.pop()


def test_notes_of_several_lines_are_no_rows_where_ids_have_many_lengths(tmp_path: Path) -> None:
    ids = ["u1-short", A, "auth0-5f7c8ec7c33c6c004bbafe82"]
    rows = "".join(f'{one},"thanks, Bob\nyours, Ada\n2 or 3, maybe"\n' for one in ids)
    _, lines = read(tmp_path, "a.csv", f"user_id,note\n{rows}")
    assert [line.user_id for line in lines] == ids


def test_e_mail_addresses_that_a_quote_swallowed_are_bad_lines_each(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'email,n\na@b.example,A\nada@b.example,"B\nbo@b.example,C\nbobby@b.example,D"\n'
    )
    with open_ids(path, None, None, by=By.EMAIL) as reader:
        lines = list(reader)
    assert [line.number for line in lines if line.problem is None] == [2]
    assert [line.number for line in lines if line.problem is not None] == [3, 4, 5]


def test_a_note_of_words_is_no_rows_where_ids_are_equally_long(tmp_path: Path) -> None:
    ids = [f"user-{number:016}" for number in range(20)]
    rows = "".join(f"{one},\n" for one in ids[:10])
    rows += "".join(f'{one},"hello,you\nthanks,Ada"\n' for one in ids[10:])
    _, lines = read(tmp_path, "a.csv", f"user_id,note\n{rows}")
    assert [line.user_id for line in lines] == ids


def test_the_rest_behind_a_quote_that_is_never_closed_is_read_as_it_comes() -> None:
    """Not gathered first: it may be gigabytes, and a signal must be heard meanwhile."""
    taken = 0

    def lines() -> Iterator[Numbered]:
        nonlocal taken
        for taken in range(2, 10_000):
            yield taken, f"{A},{'x' * 500}\n" if taken > 2 else f'{B},"open\n'

    table, _ = find_header("a", iter([(1, "user_id,n\n")]), None, By.ID)
    assert table is not None
    for number, (rows, problem) in enumerate(table.rows(lines())):
        assert [len(rows), isinstance(problem, csv.Error)] == [1, True]
        assert taken - number < MAX_LINE // 500 + 10
    assert taken == 9_999


def test_a_quote_that_swallows_more_than_a_row_may_have_holds_no_memory(tmp_path: Path) -> None:
    """The rows behind it are bad lines up to where it is closed, however far that is."""
    swallowed = 2000
    row = f"{B},{'x' * 1000}\n"
    content = f'user_id,note\n{A},"open\n{row * swallowed}{C},closed"\n{D},x\n{E},y\n'
    _, lines = read(tmp_path, "a.csv", content)
    assert [line.user_id for line in lines if line.problem is None] == [D, E]
    assert len(lines) == swallowed + 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ada@acme.example", "e-mail address"),
        (f"{A},Ada", "a comma in the id; if the file is a table, use --format csv"),
        (f"{A}  # a VIP", "white space in the id"),
        ("NULL", "stands for no value"),
        ("1.23457E+15", "a spreadsheet has rounded"),
        ("----------------+-----", "a ruled line"),
        ("---", "a ruled line"),
    ],
)
def test_a_line_that_is_no_id_is_a_bad_line(tmp_path: Path, text: str, says: str) -> None:
    _, lines = read(tmp_path, "a.txt", f"{PLAIN}{text}\n")
    assert [line.user_id for line in lines] == [*IDS, None]
    assert says in (lines[-1].problem or "")


def test_an_id_in_a_doubtful_encoding_is_a_bad_line(tmp_path: Path) -> None:
    _, lines = read(tmp_path, "a.csv", f"id,n\n{A},ü\nÄda,x\n".encode("cp1252"))
    assert [line.user_id for line in lines] == [A, None]
    assert "not UTF-8 where the id is" in (lines[1].problem or "")


def test_an_id_whose_bytes_would_be_another_letter_in_utf_8_is_a_bad_line(tmp_path: Path) -> None:
    """What is "Ã¼" in Windows-1252 is "ü" in UTF-8, and may be somebody else."""
    for name, content in (
        ("a.jsonl", '{"id":"Ã¼da","n":"x"}\n{"id":"ada","n":"Größe"}\n'),
        ("a.json", '[{"id":"Ã¼da","n":"x"},\n{"id":"ada","n":"Größe"}]'),
    ):
        _, lines = read(tmp_path, name, content.encode("cp1252"))
        assert [line.user_id for line in lines] == [None, "ada"]
        assert "not UTF-8 where the id is" in (lines[0].problem or "")
    _, lines = read(tmp_path, "a.csv", "id,n\nÃ¼da,x\nada,Größe\n".encode("cp1252"))
    assert [line.user_id for line in lines] == [None, "ada"]


def test_lines_of_several_encodings_are_read_where_their_ids_are_ascii(tmp_path: Path) -> None:
    content = b'{"user_id":"u1","n":"M\xc3\xbcller"}\n{"user_id":"u2","n":"M\xfcller"}\n'
    _, lines = read(tmp_path, "a.jsonl", content)
    assert [line.user_id for line in lines] == ["u1", "u2"]


def test_the_encoding_is_looked_for_in_more_than_the_first_lines(tmp_path: Path) -> None:
    rows = "".join(f"{user_id},plain\n" for user_id in IDS * 1000)
    reader, lines = read(tmp_path, "a.csv", f"id,n\n{rows[:60_000]}\n{A},ü\n".encode("cp1252"))
    assert len(lines) > 2000
    assert "not UTF-8" in "".join(reader.notes)


@pytest.mark.parametrize(
    "cell",
    [
        '<c t="e"><v>#N/A</v></c>',
        "<c s='1' t='e'><f>A2</f><v>#REF!</v></c>",
        "<c><f>A2</f><v /></c>",
        "<c><f>A2</f><v></v></c>",
        '<c><f t="shared" si="0"/></c>',
    ],
)
def test_a_row_of_a_workbook_with_an_error_or_no_saved_value_is_a_bad_line(
    tmp_path: Path, cell: str
) -> None:
    content = xlsx({"x": [["user_id"], [A], ["error"], [B]]}, raw={"error": cell})
    _, lines = read(tmp_path, "a.xlsx", content)
    assert [line.user_id for line in lines] == [A, None, B]
    assert "an error of a spreadsheet" in (lines[1].problem or "")


def test_a_formula_of_a_workbook_that_returns_the_empty_text_is_an_empty_cell(
    tmp_path: Path,
) -> None:
    empty = '<c t="str"><f>IF(A1,A2,"")</f><v></v></c>'
    content = xlsx({"x": [["user_id"], [A], ["empty"], [B]]}, raw={"empty": empty})
    _, lines = read(tmp_path, "a.xlsx", content)
    assert [line.user_id for line in lines] == [A, B]


def test_a_number_of_a_workbook_is_no_id(tmp_path: Path) -> None:
    """A spreadsheet drops zeros in front and rounds long numbers, and nobody can tell."""
    _, lines = read(tmp_path, "a.xlsx", xlsx({"x": [["id"], [A], [12345], [1.2e20]]}))
    assert [line.user_id for line in lines] == [A, None, None]
    assert all("format the column as text" in (line.problem or "") for line in lines[1:])


@pytest.mark.parametrize("value", ["2026-03-01", "2026-03-01T12:00:00", "12:00:00"])
def test_a_date_of_a_workbook_is_no_id(tmp_path: Path, value: str) -> None:
    """A spreadsheet takes MAR1 for a date, and nobody can tell."""
    cell = f'<c t="d"><v>{value}</v></c>'
    content = xlsx({"x": [["id"], [A], ["date"]]}, raw={"date": cell})
    _, lines = read(tmp_path, "a.xlsx", content)
    assert [line.user_id for line in lines] == [A, None]
    assert "has a date, as a spreadsheet makes of some texts" in (lines[1].problem or "")


@pytest.mark.parametrize("days", [0.25, 1.5])
def test_a_duration_of_a_workbook_is_no_id(tmp_path: Path, days: float) -> None:
    cell = f'<c s="1"><v>{days}</v></c>'
    content = xlsx({"x": [["id"], [A], ["duration"]]}, raw={"duration": cell})
    _, lines = read(tmp_path, "a.xlsx", content)
    assert [line.user_id for line in lines] == [A, None]
    assert "has a date, as a spreadsheet makes of some texts" in (lines[1].problem or "")


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_boolean_of_a_workbook_is_no_id(tmp_path: Path, value: str) -> None:
    content = xlsx(
        {"x": [["id"], [A], ["boolean"]]}, raw={"boolean": f'<c t="b"><v>{value}</v></c>'}
    )
    _, lines = read(tmp_path, "a.xlsx", content)
    assert [line.user_id for line in lines] == [A, None]
    assert "which is a boolean, in place of an id" in (lines[1].problem or "")


FAR = {
    "one cell": ['<c r="XFD1048576"><v>1</v></c>'],
    "the first column that may be too far": ['<c r="Q1048576"><v>1</v></c>'],
    "two cells": ["<c r='XFD1' t='str'><v>x</v></c>", '<c r="A1048576"><v>1</v></c>'],
}


@pytest.mark.parametrize("cells", FAR.values(), ids=FAR)
def test_a_workbook_with_a_cell_far_away_is_refused_before_it_fills_the_memory(
    tmp_path: Path, cells: list[str]
) -> None:
    rows: list[list[str | float]] = [["id"], [A]]
    rows.extend([cell] for cell in cells)
    content = xlsx({"x": rows}, raw={cell: cell for cell in cells})
    with pytest.raises(
        ConfigurationError, match=r"1,048,576 rows and (17|16,384) columns, .* save"
    ):
        read(tmp_path, "a.xlsx", content)


def test_so_is_a_binary_workbook(tmp_path: Path) -> None:
    near = xlsb({(0, 0): "id", (1, 0): A})
    assert [line.user_id for line in read(tmp_path, "a.xlsb", near)[1]] == [A]
    far = xlsb({(0, 0): "id", (1, 0): A, (1048575, 16383): "x"})
    with pytest.raises(ConfigurationError, match=r"has 1,048,576 rows and 16,384 columns"):
        read(tmp_path, "a.xlsb", far)


def test_a_cell_far_away_that_only_has_a_format_is_none(tmp_path: Path) -> None:
    cell = '<c r="XFD1048576" s="1"/>'
    content = xlsx({"x": [["id"], [A], ["far"]]}, raw={"far": cell})
    assert [line.user_id for line in read(tmp_path, "a.xlsx", content)[1]] == [A]


def archive(part: str = "users.csv") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr(part, TABLE)
    return file.getvalue()


def test_a_page_with_an_id_of_its_own_is_read_by_the_column_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"id": "r1", "data": [{"uid": user_id} for user_id in IDS]}))
    with open_ids(path, None, "uid") as reader:
        assert [line.user_id for line in reader] == IDS


DATABASE = b"SQLite format 3\0" + bytes(84) + f"\n{PLAIN}".encode()
BOOK = xlsx({"one": ROWS, "two": ROWS})


@pytest.mark.parametrize(
    ("name", "content", "column", "sheet", "says"),
    [
        ("a.csv", PLAIN, None, "", r"by its number \(--column 1\).*its first row is: UOtBaO"),
        ("a.csv", "id,n,id\n1,x,y\n", None, "", "by its number"),
        ("a.csv", TABLE, "3", "", "no column 3; it has 2 columns"),
        ("a.csv", f'"{A},x\n{B},y\n', "1", "", "malformed csv.* look for a stray quote"),
        ("a.csv", f'user_id,"n\n{A},Ada\n{B},"\n', None, "", "lines 1 to 3 .* a stray quote"),
        ("a.csv", f'user_id,"n\n{A},Ada\n{B},"\n', "1", "", "lines 1 to 3 .* a stray quote"),
        ("a.json", f'{{"uid": "{A}", "roles": ["admin"]}}', None, "", "'roles', which may be no"),
        (
            "a.json",
            json.dumps({"id": "r1", "data": OBJECTS}),
            None,
            "",
            "a user or a page of users",
        ),
        ("a.json", json.dumps({"id": "r1", "data": IDS}, indent=1), None, "", "a user or a page"),
        ("a.csv", TABLE, "0", "", "no column 0"),
        ("a.csv", f"id,n\n{A},x\nuser_id,n\n{B},x\n", "user_id", "", "no single column"),
        ("a.csv", f"{A}\nlogin\n{B}\n", "login", "", "no single column 'login'"),
        ("a.csv", "# a comment\nname\nx\n", None, "", "its first row is: name"),
        ("a.txt", TABLE, None, "", "looks like a table: use --format csv"),
        ("a.txt", json.dumps(IDS), None, "", "looks like JSON: use --format jsonl"),
        (
            "a.csv",
            "".join(f"{json.dumps(each)}\n" for each in OBJECTS),
            None,
            "",
            "looks like JSON",
        ),
        ("a.csv", JSON_LINES, "1", "", "looks like JSON"),
        ("a.csv", json.dumps(OBJECTS, indent=1), None, "", "looks like JSON: use --format jsonl"),
        ("a.json", TABLE, None, "", "looks like a table: use --format csv"),
        (
            "a.json",
            "".join(json.dumps(each, indent=2) + "\n" for each in OBJECTS),
            None,
            "",
            "neither one JSON document nor JSON lines; .* write one object a line: jq -c",
        ),
        ("a.json", '"user_id","n"\n"x","y"\n', None, "", "looks like a table: use --format csv"),
        ("a.json", PLAIN, None, "", "looks like a list of ids: use --format txt"),
        ("a.jsonl", f"user_id\n{PLAIN}", None, "", "looks like a list of ids: use --format txt"),
        ("a", PLAIN, None, "", "the format of .*a is unknown: add --format txt, csv or jsonl"),
        ("a.json", '["a",', None, "", "is not JSON"),
        ("a.zip", archive(), None, "", "zip archive; unpack it first: unzip"),
        ("a.csv", archive(), None, "", "zip archive; unpack it first: unzip"),
        ("a.numbers", archive("Index/Document.iwa"), None, "", "Apple Numbers; export it as CSV"),
        ("a.csv", archive()[:80], None, "", "a damaged zip archive or workbook"),
        ("a.txt", bz2.compress(b"x"), None, "", "unpack it first: bzip2 -d"),
        ("a.txt", lzma.compress(b"x"), None, "", "unpack it first: xz -d"),
        ("a.txt", DATABASE, None, "", "is a database, and no list of ids; if it is the journal"),
        ("a.txt.journal", DATABASE, None, "", "is a database, and no list of ids; if it is the"),
        ("a.txt", gzip.compress(PLAIN.encode(), mtime=0)[:40], None, "", "is damaged"),
        ("a.txt", gzip.compress(DATABASE, mtime=0), None, "", "is a database, and no list of ids"),
        ("a.txt", f"%PDF-1.4\nendobj\n{PLAIN}", None, "", "is a PDF, and no list of ids"),
        ("a.csv", f"{{\\rtf1\n{PLAIN}", None, "", "is rich text .* as CSV UTF-8 or as plain text"),
        ("a.txt", "\ufeff\r\n<!DOCTYPE html>\n<head>\n", None, "", "is a web page"),
        ("a.xls", "<html><table>", None, "", "is a web page"),
        ("a.xls", '<?xml version="1.0"?>', None, "", "is XML, and no list of ids"),
        ("a.txt", f"a.txt\0\0\0{PLAIN}", None, "", "is no text: its first line"),
        (
            "a.xls",
            bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
            None,
            "",
            "save the sheet as CSV",
        ),
        ("a.xlsx", BOOK, None, "", r"2 sheets \(one, two\): .* --sheet"),
        ("a.xlsx", BOOK, None, "three", "no sheet 'three'; it has: one, two"),
        ("a.xlsx", PLAIN, None, "", "is no workbook"),
        ("a.csv", TABLE, None, "one", "is no workbook; leave --sheet out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: str | bytes, column: str | None, sheet: str, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(tmp_path, name, content, column, sheet)


@pytest.mark.parametrize("form", [None, Format.TXT, Format.CSV, Format.JSONL])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (DATABASE, "stdin is a database, and no list of ids; if it is the journal of a run"),
        (archive(), "stdin is a zip archive; unpack it first: unzip"),
        (bz2.compress(b"x"), "stdin is compressed; unpack it first: bzip2 -d"),
    ],
    ids=["database", "zip", "bzip2"],
)
def test_what_is_no_text_is_refused_on_stdin_as_well(
    tmp_path: Path, form: Format | None, content: bytes, says: str
) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    with (
        stdin_from(file),
        open_ids(STDIN, form, None) as reader,
        pytest.raises(ConfigurationError, match=says),
    ):
        list(reader)


def test_a_sheet_is_read_by_its_name(tmp_path: Path) -> None:
    book = xlsx({"one": [["user_id"], ["x"]], "two": ROWS})
    assert [line.user_id for line in read(tmp_path, "a.xlsx", book, sheet="two")[1]] == IDS


def test_a_text_of_a_workbook_is_no_formula_in_the_csv_of_its_lines(tmp_path: Path) -> None:
    cells = xlsx({"x": [["user_id", "name"], [A, "=cmd|' /C calc'!A0"], [f"-{B}", "x;=1+1"]]})
    _, lines = read(tmp_path, "a.xlsx", cells)
    assert [line.user_id for line in lines] == [A, f"-{B}"]
    assert [line.text for line in lines] == [f"{A}, =cmd|' /C calc'!A0\n", f" -{B},x; =1+1\n"]


def test_a_journal_holds_against_the_same_file_packed(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    with open_ids(tmp_path / "a.csv.gz", None, None) as reader:
        assert reader.expected() == len(list(reader)) == len(IDS)
        assert list(reader.reread() or ()) == IDS
        assert reader.form is Format.CSV


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("member", "column"), [("user_id", None), ("userId", None), ("User ID", None), ("uid", "uid")]
)
def test_an_object_that_has_an_id_is_a_user_whatever_lists_it_has(
    tmp_path: Path, member: str, column: str | None, indent: int | None
) -> None:
    for more in ({"users": [B]}, {"linked": [{"id": B, "uid": B}]}):
        content = json.dumps({member: A, **more}, indent=indent)
        for name in ("a.json", "a.jsonl"):
            _, lines = read(tmp_path, name, f"{content}\n", column)
            assert [(line.user_id, line.problem) for line in lines] == [(A, None)]


def test_what_is_too_long_for_a_document_is_read_by_lines_none_of_them_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monocloud_async.inputs.reader.MAX_DOCUMENT", 60)
    monkeypatch.setattr("monocloud_async.inputs.json_document.MAX_DOCUMENT", 60)
    users = "".join(json.dumps({"id": one}) + "\n" for one in IDS)
    _, lines = read(tmp_path, "a.jsonl", f'{{"roles":["a"],"sub":"x"}}\n{users}')
    assert [line.user_id for line in lines] == [None, *IDS]
    assert [line.number for line in lines] == [*range(1, 7)]


def test_a_document_may_be_one_long_line(tmp_path: Path) -> None:
    """Most programs write it so; it is much longer than a line of another format may be."""
    ids = [f"user{number:017}" for number in range(60_000)]
    for content in (json.dumps(ids), json.dumps({"data": ids}), json.dumps([*ids, IDS], indent=0)):
        reader, lines = read(tmp_path, "a.json", content)
        assert reader.found == "JSON array"
        assert [line.user_id for line in lines][: len(ids)] == ids


@pytest.mark.parametrize("indent", [None, 2])
def test_the_lines_of_a_document_can_be_read_again(tmp_path: Path, indent: int | None) -> None:
    """As in a file of failures, which has some of them."""
    _, lines = read(tmp_path, "a.json", json.dumps(OBJECTS, indent=indent))
    _, again = read(tmp_path, "b.json", "".join(line.text for line in lines[1:]))
    assert [line.user_id for line in again] == IDS[1:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(OBJECTS)),
        ("a.json", json.dumps(OBJECTS, indent=2)),
        ("a.json", json.dumps({"data": OBJECTS}, indent=2)),
        ("a.jsonl", "\n".join(map(json.dumps, OBJECTS))),
        ("a.txt", "\n".join(IDS)),
        ("a.csv.gz", gzip.compress(TABLE.encode())),
        ("a.xlsx", xlsx({"Sheet1": ROWS})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_expected_is_what_comes(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open_ids(path, None, None) as reader:
        assert reader.expected() == len(IDS)
        assert [line.user_id for line in reader] == IDS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(PLAIN.encode(), mtime=0)[:-8] + bytes(8), "is damaged: CRC"),
        (gzip.compress(PLAIN.encode(), mtime=0) + b"more", "is damaged: Not a gzipped file"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(tmp_path, "a.txt.gz", content)


class BrokenDisk(io.FileIO):
    """A file on a disk that gives an error."""

    def readinto(self, _buffer: object, /) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_that_gets_shorter_while_it_is_read_gives_no_half_an_id(
    tmp_path: Path, left: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(PLAIN * 1000)
    came: list[str | None] = []
    with (
        pytest.raises(ConfigurationError, match=r"a\.txt: it got shorter .* start again"),
        open_ids(path, None, None) as reader,
    ):
        for line in reader:
            if not came:
                os.truncate(path, left)
            came.append(line.user_id)
    assert set(came) <= {*IDS}


def test_a_disk_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLAIN)
    with (
        io.BufferedReader(BrokenDisk(tmp_path / "a.txt")) as file,
        pytest.raises(ConfigurationError, match="cannot read input: Input/output error"),
    ):
        list(IdReader(file, Format.TXT))


@pytest.mark.skipif(not MEMORY.exists(), reason="Linux has such a file")
def test_a_file_whose_first_bytes_cannot_be_read_is_told_in_one_line() -> None:
    with (
        pytest.raises(ConfigurationError, match=f"cannot read {MEMORY}: Input/output error"),
        open_ids(MEMORY, Format.TXT, None),
    ):
        pass


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_workbook_packed_in_another_way_and_damaged_is_told_in_one_line(
    tmp_path: Path, method: int
) -> None:
    file, packed = tmp_path / "ids.xlsx", io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(BOOK)) as book, zipfile.ZipFile(packed, "w", method) as other:
        for name in book.namelist():
            other.writestr(name, book.read(name))
        (sheet, *_) = (one for one in other.infolist() if "worksheets" in one.filename)
        start = sheet.header_offset + 30 + len(sheet.filename) + 20
    content = bytearray(packed.getvalue())
    content[start : start + 20] = bytes(20)
    file.write_bytes(content)
    with (
        open_ids(file, None, None) as reader,
        pytest.raises(ConfigurationError, match=r"cannot be read.*: save the sheet as CSV UTF-8"),
    ):
        list(reader)
