"""One line of an input, wherever it stands: its id, or what is wrong with it."""

import pytest

from monocloud_async import ConfigurationError
from monocloud_async.inputs import Format
from monocloud_async.inputs.lines import MAX_LINE, line_parser, read_header


@pytest.mark.parametrize(
    ("form", "header", "raw", "user_id"),
    [
        (Format.TXT, b"", b"  ada \r\n", "ada"),
        (Format.CSV, b"name,user_id\n", b"x,ada\n", "ada"),
        (Format.CSV, b"name;user_id\n", b"x,y;ada\n", "ada"),
        (Format.CSV, b"name\tid\n", b'"x\ty"\t ada \n', "ada"),
        (Format.CSV, b"id,name\n", b"ada,x,,\n", "ada"),
        (Format.JSONL, b"", b'"ada"\n', "ada"),
        (Format.JSONL, b"", b'{"User-ID": "ada", "name": "x"}\n', "ada"),
    ],
)
def test_a_line_by_itself_has_its_id(form: Format, header: bytes, raw: bytes, user_id: str) -> None:
    line = line_parser(form, None, "users", header)(7, raw)
    assert (line.number, line.raw, line.user_id, line.problem) == (7, raw, user_id, None)


@pytest.mark.parametrize(
    ("form", "raw", "problem"),
    [
        (Format.TXT, b"a" * MAX_LINE, f"is longer than {MAX_LINE} bytes"),
        (Format.TXT, b"\xff\n", "is not UTF-8"),
        (Format.CSV, b'x,"ada\n', "is malformed csv (unexpected end of data); look for a stray"),
        (Format.CSV, b"ada\n", "has 1 cells where the header has 2"),
        (Format.CSV, b"x,ada,y\n", "has 3 cells where the header has 2"),
        (Format.JSONL, b"5\n", "has an id that is not a string"),
        (Format.JSONL, b"{}\n", "has no single member user_id or id"),
    ],
)
def test_a_line_without_exactly_one_id_says_why(form: Format, raw: bytes, problem: str) -> None:
    line = line_parser(form, None, "users", b"name,id\n")(7, raw)
    assert line.user_id is None
    assert (line.problem or "").startswith(problem)


def test_a_column_is_the_one_that_was_named() -> None:
    assert read_header("users", b"id,Id\n", "Id") == (",", 2, 1)
    assert read_header("users", b"a;b;user id\n", None) == (";", 3, 2)
    line = line_parser(Format.JSONL, "name", "users", b"")(1, b'{"id": "x", "name": "ada"}')
    assert line.user_id == "ada"


def test_a_header_that_leaves_a_choice_is_an_error_that_lists_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no single column of users .* is: id, user_id"):
        line_parser(Format.CSV, None, "users", b"id,user_id\n")
