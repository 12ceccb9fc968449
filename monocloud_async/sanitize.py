"""Makes text from outside harmless for a terminal, a log, a page or a spreadsheet."""

import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

LONGEST: Final = 500  # characters
# Control characters, marks that reverse or hide text in a terminal, and surrogates, which cannot be
# printed: they represent the bytes of a header or a file name that are not UTF-8. No compiled
# pattern, because compiling it takes as long as loading a module, and few programs need it.
UNSAFE: Final = (
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+"
)
_BYTE: Final = r"[\udc80-\udcff]"  # a surrogateescape byte (PEP 383)
# Where spreadsheets find a formula: at the start of a cell, by characters that East Asia also has
# in another width. Where semicolons delimit cells, as in much of Europe, a cell of a csv also
# begins behind each of them, also with quotes around it; elsewhere, behind tabs and line breaks.
_FORMULA: Final = '(?:^|(?<=[;\t\r\n]))(?="*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20])'


def clean(text: str, longest: int = LONGEST) -> str:
    """Return the text as one harmless line of at most so many characters."""
    shown = re.sub(_BYTE, _escaped, text[: longest + 1])
    return re.sub(UNSAFE, " ", shown)[:longest]


def visible(text: str) -> str:
    """Return the text with control characters and direction marks written as escapes."""
    shown = re.sub(_BYTE, _escaped, text)
    return re.sub(UNSAFE, lambda found: found[0].encode("unicode_escape").decode(), shown)


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]) - 0xDC00:02x}"


def no_formula(text: str) -> str:
    """Return the text of a cell in a form that spreadsheets do not treat as a formula.

    A space before it is enough, and the readers of this package ignore spaces around a cell.
    """
    return re.sub(_FORMULA, " ", text)


def format_time(seconds: float) -> str:
    """Return the date and time in UTC, or the seconds if `datetime` cannot represent them."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        # Python refuses to print integers of thousands of digits, so limit the number.
        return f"{max(-1e18, min(seconds, 1e18)):,.0f} s after 1970"


def format_rate(per_second: float) -> str:
    """Return how many there are per second, with two digits if these are few."""
    if 0 < per_second < 0.001:  # noqa: PLR2004  from there on, it would be like 1e-05
        return "less than 0.001"
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.2g}"  # noqa: PLR2004  rounded


def redirect_origin(location: str | None) -> str:
    """Return the origin that a redirect leads to: paths and queries may contain tokens."""
    try:
        parts = urlsplit(location or "")
        origin = f"{parts.scheme}://{parts.hostname}" if parts.hostname else "another path"
        return clean(f"{origin}:{parts.port}" if parts.port else origin)
    except ValueError:
        return "an unreadable address"
