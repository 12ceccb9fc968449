import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import monocloud_async as m
from monocloud_async.endpoint import ENABLE
from monocloud_async.user_id import check_user_id

DOTS = [
    *(".", "..", "x/../../clients/portal", "../a", "a/..", "a/./b", "..\\a", "a\\..\\b", "a/..\\b"),
    *("%2e", "%2E%2e", ".%2e", "%252e%252e", "%25252E.", "x/%2e./y", "%2e%2e\\x", "a/%2e"),
    *("..;", "..;x", "a/..;v=1/b", "%2e%2e%3bx", "..?x", "..#x", "a/ ../b", "a/..%20/b"),
    *("%u002e%u002E", "%" + "25" * 400 + "2e"),
]
SLASHES = [
    *("a%2fb", "a%2Fb", "a%5cb", "a%5Cb", "a%252fb", "a%25255cb", "a%u002fb"),
    *("a%2f..%2fb", "a%5c..%5cb", "/a", "a/", "a//b", "/", "\\", "a\\", "a/;/b", "a/%20/b"),
]
BAD_IDS = [
    *DOTS,
    *SLASHES,
    *("%c0%ae%c0%ae", "%c0%af", "%c1%9c", "%e0%80%ae", "%f0%80%80%af", "%25c0%25ae"),
    *("..%00", "a%0d%0ab", "a%2500b"),
    "",
    "a\nb",
    "a\tb",
    "\x00",
    "a\x7f",
    "a\x85",
    "a\ud800b",
    " a",
    "a ",
    "a" * 1025,
    *(";", ";x", "?", "?x", "#", "#x", "%3Bx", "/;x"),  # nothing is left of it without parameters
    *("%f8%80%80%80%ae", "%fc%80%80%80%80%af"),
]
GOOD_IDS = [
    *("a/b", "a\\b", "a?b", "a#b", "a;b", "a b", "é", "e\u0301", "…", "{x}", "a+b", "a@b"),
    *("...", "a.b", "x..y", ".x", "x.", "..x", "a/.x/b", "a/...", "a/x../b"),
    *("50%", "%", "%%", "%41", "%2541", "a%2eb", "%2e%2e%2e", "%zz", "%ff", "%u00e9", "100%25"),
]


@pytest.mark.parametrize("user_id", BAD_IDS)
def test_an_id_that_cannot_be_one_segment_is_refused(user_id: str) -> None:
    with pytest.raises(m.InvalidUserIdError, match="nothing was sent") as caught:
        ENABLE.path(user_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("user_id", [None, 5, b"a"])
def test_an_id_that_is_no_string_is_refused(user_id: str) -> None:
    with pytest.raises(m.InvalidUserIdError):
        check_user_id(user_id)


@pytest.mark.parametrize("user_id", GOOD_IDS)
def test_every_other_id_is_exactly_one_segment(user_id: str) -> None:
    segments = ENABLE.path(user_id).split("/")
    assert len(segments) == 5
    assert unquote(segments[3]) == user_id
    assert not set(segments[3]) & set("?# ")


@given(st.text())
def test_an_id_goes_out_as_itself_or_not_at_all(user_id: str) -> None:
    try:
        path = ENABLE.path(user_id)
    except m.InvalidUserIdError:
        return
    assert unquote(path.removeprefix("/api/users/").removesuffix("/enable")) == user_id
    assert path.count("/") == 4
    assert path.isascii()


@given(
    st.lists(
        st.sampled_from(["%", "25", "2e", "2F", "5c", "2", "5", "e", "E", ".", "/", "\\", "a", ";"])
    ).map("".join)
)
def test_however_often_a_gateway_decodes_an_id_addresses_no_other_path(user_id: str) -> None:
    try:
        sent = ENABLE.path(user_id).split("/")[3]
    except m.InvalidUserIdError:
        return
    slashes = re.findall(r"[/\\]", user_id)
    while (decoded := unquote(sent)) != sent:
        sent = decoded
        parts = re.split(r"[/\\]", sent)
        assert not {".", ".."} & {part.split(";")[0] for part in parts}
        assert len(parts) == 1 or all(parts)
        assert re.findall(r"[/\\]", sent) in ([], slashes)
