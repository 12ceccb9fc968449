"""Reads the points in time of options: "2 hours ago", or ISO 8601 with a zone."""

import re
from datetime import UTC, datetime
from typing import Final

from monocloud_async.errors import ConfigurationError
from monocloud_async.sanitize import clean

_AGO: Final = re.compile(r"([0-9]{1,6}) *(second|minute|hour|day|week)s? ago", re.IGNORECASE)
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}


def read_time(text: str | None, option: str, now: float) -> float | None:
    """Return the time of this option in seconds since 1970, or None without one.

    Raises:
        ConfigurationError: the text is no time, or a time without a zone.
    """
    if text is None:
        return None
    text = text.strip()
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - int(ago[1]) * _SECONDS[ago[2].lower()]
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} {clean(text)!r} is no time: write it like 2026-01-31T14:00Z, or like"
            " '2 hours ago'"
        ) from None
    raise ConfigurationError(
        f"{option} {clean(text)!r} has no time zone: add Z for UTC, or an offset such as +01:00"
    )


def iso(seconds: float | None) -> str | None:
    """Return the time in ISO 8601 and UTC; None without one, or for one that has no date."""
    if seconds is None:
        return None
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return None
