import codecs
import csv
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monocloud_async import ConfigurationError
from monocloud_async.inputs.ids import NotAnIdError, find
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import open_ids
from monocloud_async.inputs.table import MAX_LINE


def read(content: bytes, name: str = "users.txt", column: str | None = None) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        with open_ids(path, None, column) as source:
            return list(source)


def ids(content: bytes, name: str = "users.txt", column: str | None = None) -> list[str | None]:
    return [line.user_id for line in read(content, name, column)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("users.txt", b"ada\nbob\n"),
        ("users.txt", b"ada\nbob"),
        ("users.txt", b"\n\nada\r\n  \n\tbob  \n\n"),
        ("users.txt", codecs.BOM_UTF8 + b"ada\nbob\n"),
        ("USERS.CSV", b"user_id\nada\nbob\n"),
        ("users.csv", b"User ID\r\nada\r\nbob\r\n"),
        ("users.csv", codecs.BOM_UTF8 + b'"id","name"\n"ada","x"\n\n"bob","y"\n'),
        ("users.csv", b"name,id\nx,ada\ny,bob\n"),
        ("users.csv", b"\nid;name\nada;x,y\nbob;z\n"),
        ("users.csv", b"name\tuserId\nx\tada\ny\tbob\n"),
        ("users.csv", b'"user_id";"name"\n"ada";"x"\n"bob";"y"\n'),
        ("users.csv", b'note,id\n"two\nlines, ""quoted""",ada\nx,bob\n'),
        ("users.csv", b"id,name\nada,x,\nbob,y,,\n"),
        ("users.tsv", b"id\tname\nada\tx\nbob\ty\n"),
        ("users.jsonl", b'"ada"\n"bob"\n'),
        ("users.jsonl", b'{"user_id": "ada", "x": 1}\r\n\n{"id": "bob"}\n'),
        ("users.ndjson", codecs.BOM_UTF8 + b'{"userId": "ada"}\n{"user_id": "bob"}'),
    ],
)
def test_two_ids_are_read_whatever_their_form(name: str, content: bytes) -> None:
    assert ids(content, name) == ["ada", "bob"]


@pytest.mark.parametrize("name", ["users.csv", "users.jsonl"])
def test_a_column_is_taken_by_its_exact_name(name: str) -> None:
    content = b"id,Id\nx,ada\n" if name.endswith("csv") else b'{"id": "x", "Id": "ada"}\n'
    assert ids(content, name, column="Id") == ["ada"]


@pytest.mark.parametrize(
    ("name", "content", "numbers", "problem"),
    [
        ("users.txt", b"ada\n\nb\xff\nbob\n", {3}, "is not UTF-8"),
        ("users.txt", b"..\nada\nb\x00b\n", {1, 3}, "nothing was sent"),
        ("users.txt", b"ada\n" + b"x" * (MAX_LINE * 3) + b"\nbob\n", {2}, "is longer than"),
        ("users.txt", b"ada\n" + b"x" * 1025 + b"\nbob\n", {2}, "is longer than 1024 bytes"),
        ("users.csv", b"id,name\nada,x\nbob\n,y\n", {4}, "is empty"),
        ("users.csv", b"id,name\nada,x,y\n", {2}, "has 3 cells where the header has 2"),
        ("users.csv", b'id,name\n"a\n\nb",x\nbob,y\n', {2, 4}, "lines 2 to 4 are one row"),
        ("users.csv", b'id,name\n"ada"x,y\nbob,y\n', {2}, "malformed csv"),
        ("users.csv", b'id,name\nada,x\nbob,"y\ncarol,z\n', {3, 4}, "malformed csv"),
        ("users.csv", b"id,name\nada,x\n\xe4,x\n", {3}, "is not UTF-8"),
        ("users.jsonl", b'"ada"\n{"user_id": 5}\n', {2}, "an id that is not a string"),
        ("users.jsonl", b'"ada"\nada\n[1]\n', {2, 3}, ""),
        ("users.jsonl", b'{"id": "a", "user_id": "b"}\n{}\n', {1, 2}, "no single id"),
        ("users.jsonl", b'"ada"\n' + b"[" * 5000 + b"\n", {2}, "is not JSON"),
        ("users.jsonl", b'"ada"\n"\xff"\n', {2}, "is not UTF-8"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_the_others_go_on(
    name: str, content: bytes, numbers: set[int], problem: str
) -> None:
    bad = [line for line in read(content, name) if line.problem is not None]
    assert {line.number for line in bad} == numbers
    assert all(line.user_id is None and problem in (line.problem or "") for line in bad)


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("users.csv", b"UOtBaOybB6dTpIJNrnkRw\nabc\n", None, "--format txt"),
        ("users.csv", b"name,email\nx,y\n", None, "its first row is: name, email"),
        ("users.csv", b"id,user_id\nx,y\n", None, "no single column"),
        ("users.csv", b"id,id\nx,y\n", "id", "no single column 'id'; it has: id, id"),
        ("users.csv", b"a,b\nx,y\n", "c", "no single column 'c'; it has: a, b"),
        ("users.csv", b"a,\x1b[31mb\nx,y\n", "c", "it has: a,  \\[31mb\\. "),
        ("users.csv", b'id,"name\nx,y\n', None, "malformed csv"),
        ("users.txt", b"ada\n", "id", "no columns"),
        ("users.dat", b"ada\n", None, "--format txt, csv or jsonl"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(
    name: str, content: bytes, column: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(content, name, column)


def test_a_header_is_kept_as_it_stands(tmp_path: Path) -> None:
    """A file of failures begins with it."""
    header = '"Name";user_id\r\n'
    (tmp_path / "users.csv").write_bytes(codecs.BOM_UTF8 + header.encode() + b"x;ada\r\n")
    with open_ids(tmp_path / "users.csv", None, None) as reader:
        assert [line.user_id for line in reader] == ["ada"]
        assert reader.header == header


def test_an_empty_file_has_no_ids() -> None:
    assert ids(b"") == ids(b"", "users.csv") == ids(b"\n\n", "users.csv") == []


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"no\.txt: No such file"),
        open_ids(tmp_path / "no.txt", None, None),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [("users.txt", b"a\nb\n", 2), ("users.csv", b"id\na\nb\n", 2), ("users.csv", b"", 0)],
)
def test_ids_are_counted_ahead(name: str, content: bytes, expected: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with open_ids(tmp_path / name, None, None) as source:
        assert source.expected() == expected
        assert len(list(source)) == expected


def test_nobody_knows_how_many_ids_a_pipe_has(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    with open_ids(path, None, None) as source:
        assert source.size is source.expected() is None
    source._stream.close()
    os.close(writer)


def is_id(text: str) -> bool:
    """Return whether a file can say this id; from code, more of them are taken."""
    try:
        return find(text) == text
    except NotAnIdError:
        return False


@example(["=1+1", "x", "Ω", "-x", "a.b"])
@given(st.lists(st.text(min_size=1).filter(is_id)))
def test_every_id_comes_back_as_itself_from_every_form(given_ids: list[str]) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["name", "user_id"])
    writer.writerows(("x", user_id) for user_id in given_ids)
    assert ids(table.getvalue().encode(), "users.csv") == given_ids
    text = "".join(f"{user_id}\n" for user_id in given_ids)
    assert ids(text.encode(), "users.txt") == given_ids
    lines = "".join(json.dumps({"id": user_id}) + "\n" for user_id in given_ids)
    assert ids(lines.encode(), "users.jsonl") == given_ids
    assert ids(json.dumps(given_ids).encode(), "users.json") == given_ids
