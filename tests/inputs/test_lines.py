"""One line of an input, wherever it stands: its id, or what is wrong with it."""

import pytest

from monocloud_async import ConfigurationError
from monocloud_async.inputs import Format
from monocloud_async.inputs.lines import line_parser
from monocloud_async.inputs.table import MAX_LINE


@pytest.mark.parametrize(
    ("form", "header", "text", "user_id"),
    [
        (Format.TXT, "", "  ada \r\n", "ada"),
        (Format.CSV, "name,user_id\n", "x,ada\n", "ada"),
        (Format.CSV, "name;user_id\n", "x,y;ada\n", "ada"),
        (Format.CSV, "name\tid\n", '"x\ty"\t ada \n', "ada"),
        (Format.CSV, "id,name\n", "ada,x,,\n", "ada"),
        (Format.CSV, "id,name,note\n", "ada\n", "ada"),
        (Format.JSONL, "", '"ada"\n', "ada"),
        (Format.JSONL, "", '{"User-ID": "ada", "name": "x"}\n', "ada"),
        (Format.JSONL, "", '{"user_id": "ada", "group": {"id": "x"}}\n', "ada"),
    ],
)
def test_a_line_by_itself_has_its_id(form: Format, header: str, text: str, user_id: str) -> None:
    line = line_parser(form, None, "users", header)(7, text)
    assert (line.number, line.text, line.user_id, line.problem) == (7, text, user_id, None)


@pytest.mark.parametrize(
    ("form", "text", "problem"),
    [
        (Format.TXT, "a" * MAX_LINE, f"is longer than {MAX_LINE} characters"),
        (Format.TXT, "\udcff\n", "is not UTF-8 where the id is"),
        (Format.CSV, 'x,"ada\n', "is malformed csv (unexpected end of data); look for a stray"),
        (Format.CSV, "x\n", "has 1 cells where the header has 2"),
        (Format.CSV, "x,ada,y\n", "has 3 cells where the header has 2"),
        (Format.JSONL, "5\n", "has an id that is not a string"),
        (Format.JSONL, "{}\n", "has no member user_id or id"),
        (Format.JSONL, '{"id": "a", "\\u0069d": "b"}\n', "has more than one member user_id or id"),
        (Format.JSONL, '"\udcff"\n', "is not UTF-8"),
    ],
)
def test_a_line_without_exactly_one_id_says_why(form: Format, text: str, problem: str) -> None:
    line = line_parser(form, None, "users", "name,id\n")(7, text)
    assert line.user_id is None
    assert (line.problem or "").startswith(problem)


def test_a_member_is_the_one_that_was_named() -> None:
    line = line_parser(Format.JSONL, "name", "users", "")(1, '{"id": "x", "name": "ada"}')
    assert line.user_id == "ada"


def test_a_header_that_leaves_a_choice_is_an_error_that_lists_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no single column of users .* is: id, user_id"):
        line_parser(Format.CSV, None, "users", "id,user_id\n")
