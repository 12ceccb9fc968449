import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monocloud_async.lenient_json import read

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)
MARKS = b'{}[],:"\\ x1\n'


@given(VALUES, st.sampled_from([{}, {"ensure_ascii": False}, {"indent": 1}]))
def test_json_is_read_as_the_standard_module_reads_it(
    value: object, options: dict[str, Any]
) -> None:
    text = json.dumps(value, **options)
    assert read(text.encode())[:2] == (json.loads(text), "whole")


@given(st.dictionaries(TEXTS, VALUES), st.data())
def test_every_beginning_of_an_object_ends_early(value: object, data: st.DataObject) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    part = body[: data.draw(st.integers(1, len(body) - 1))]
    assert read(part) == (None, "early", True)


@given(st.dictionaries(TEXTS, VALUES), st.data())
def test_a_changed_byte_is_no_news_of_what_is_whole(value: object, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from(MARKS))
    reading = read(bytes(body))
    try:
        json.loads(body.decode(errors="replace"), strict=False)
    except ValueError:
        return
    assert reading.end == "whole"


@given(st.binary() | st.text().map(str.encode))
def test_anything_at_all_is_read(body: bytes) -> None:
    value, end, _ = read(body)
    assert end == "whole" or value is None


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"a":' + b"[" * 100_000, b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
        *(b'{"a":"' + b"\\" * 200_000, b'"' * 200_000, b'{"' + b'\\"' * 100_000),
        *(b'{"a":' + b"1" * 250_000 + b"}", b'{"a":' + b"1." * 100_000 + b"}"),
    ],
    ids=range(7),
)
def test_what_is_hostile_is_read_in_one_pass(body: bytes) -> None:
    assert read(body).value in ({"a": None}, None) or b"]" in body
