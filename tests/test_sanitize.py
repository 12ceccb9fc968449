"""Texts from outside are harmless in a terminal, a log or a page."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monocloud_async.sanitize import (
    clean,
    format_rate,
    format_time,
    no_formula,
    redirect_origin,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\x1b[31m\r\n\tb", "a [31m b"),
        ("a\u202eb\u2066c\u061cd\u200be", "a b c d e"),
        ("a\u2028b\u2029c", "a b c"),
        ("\ufeffa\x7fb\x9bc", " a b c"),
        ("a\udcffb\ud800c", "a\\xffb c"),
        ("é\U0001f600", "é\U0001f600"),
        ("", ""),
    ],
)
def test_a_text_is_on_one_line_and_moves_no_cursor(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_text_has_500_characters_at_most() -> None:
    assert clean("x" * 10_000) == "x" * 500
    assert clean("\n" * 10_000) == " "


@given(st.text())
def test_whatever_is_cleaned_can_be_printed_and_is_clean(text: str) -> None:
    shown = clean(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert clean(shown) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01 00:00:00"),
        (4102444800, "2100-01-01 00:00:00"),
        (1763000000000, "1,763,000,000,000 s after 1970"),
        (2**63 - 1, "1,000,000,000,000,000,000 s after 1970"),
        (-(2**80), "-1,000,000,000,000,000,000 s after 1970"),
        (sys.float_info.max, "1,000,000,000,000,000,000 s after 1970"),
    ],
)
def test_a_time_is_a_date_as_far_as_calendars_go(seconds: float, shown: str) -> None:
    assert format_time(seconds) == shown


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("", ""),
        ("ada; -", "ada; -"),
        ("=1+1", " =1+1"),
        ("x;=cmd|'/C calc'!A0;y", "x; =cmd|'/C calc'!A0;y"),
        ("x;-1;@SUM(A1);\uff1d1", "x; -1; @SUM(A1); \uff1d1"),
        ("x\t+1\n=1", "x\t +1\n =1"),
        ('x;"=1+1;"', 'x; "=1+1;"'),
        ('x;""@A1', 'x; ""@A1'),
    ],
)
def test_no_cell_is_a_formula_whatever_a_spreadsheet_takes_for_the_end_of_one(
    text: str, harmless: str
) -> None:
    assert no_formula(text) == harmless


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (0, "0"),
        (0.00004, "less than 0.001"),
        (0.0417, "0.042"),
        (0.4, "0.4"),
        (1.38, "1.4"),
        (2.0, "2"),
        (9.949, "9.9"),
        (9.96, "10"),
        (12.5, "12"),
        (1234.5, "1,234"),
    ],
)
def test_a_slow_rate_is_told_in_two_digits(rate: float, shown: str) -> None:
    assert format_rate(rate) == shown


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (None, "another path"),
        ("", "another path"),
        ("/login?token=secret", "another path"),
        ("https://eve:secret@b.com/login?token=secret#secret", "https://b.com"),
        ("https://b.com:8443/secret", "https://b.com:8443"),
        ("https://b.com:99999/", "an unreadable address"),
        ("https://[b.com/", "an unreadable address"),
        ("//b.com/secret", "://b.com"),
    ],
)
def test_a_redirect_is_told_without_its_path(location: str | None, shown: str) -> None:
    assert redirect_origin(location) == shown
