"""Reads rate limit headers, and decides how far to trust them.

A hint tells how many requests are left, and after how many seconds there will be more. With it, a
session pauses before a 429 and not after it. A hint can only cause a pause; it never raises a rate.

A hint may be wrong. It may count something else, such as the requests of a day or those to one
endpoint. A token bucket that says "none left, reset in 1 s" may have its next token much sooner. So
a hint is only used while its counter falls with our requests. A pause because of a hint that was
never confirmed is short, and the request after it is the test; `Forecast` keeps the score.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit`, `RateLimit-Policy`); its revision 07
(`limit=, remaining=, reset=`); its revision 06 (`RateLimit-Limit`, `-Remaining` and `-Reset`); and
for `X-RateLimit-Reset`, which has no standard: seconds, or a moment as GitHub (seconds since 1970),
others (milliseconds) and AspNetCoreRateLimit (an ISO 8601 date, in `X-Rate-Limit-Reset`) send it.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from msgspec import Struct

from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.response import Response

Head = Mapping[str, str] | bytes

_OK: Final = 200

# Parsing
# The spaces are possessive, or a long row of them would be tried at each length.
_LINE: Final = re.compile(
    rb"\n((?:x-)?rate-?limit(?:-[a-z]{1,20})?|date):[ \t]*+([ -~]{0,500})\r", re.IGNORECASE
)
_NAME: Final = re.compile(rb"\n(?:x-)?rate-?limit", re.IGNORECASE)
_LONGEST_VALUE: Final = 500  # characters; longer ones are no hints
_UNREAD: Final = 16  # responses in a row whose headers are not read, after one without hints
# RFC 9651: an item of a list with its parameters, whose values may be quoted strings.
_ITEM: Final = re.compile(
    r'\s*("[^"\\]*"|[\w*][\w:/*.%-]*)\s*((?:;[^;,"]*(?:"[^"\\]*"\s*)?)*)(?:,|$)'
)
_PARAMETER: Final = re.compile(r";\s*(\w+)=(\"[^\"]*\"|[^;,\s]*)")
_MEMBER: Final = re.compile(r"(?:^|,)\s*(\w+)=([0-9.]+)")
_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_EPOCH: Final = 1e9  # a larger number is a time since 1970: as a duration, it would be 31 years
_MILLISECONDS: Final = 1e12  # a larger one is in milliseconds
_ABSURD: Final = 3600.0  # seconds; a hint with a later reset is ignored

# Trusting
_FEW: Final = 3  # requests of ours after which a counter is used
_MANY: Final = 20  # the same if the rate is known: a bucket's counter hardly falls at that rate
_COUNTED: Final = 0.5  # share of our requests that the counter must have counted
_ALONE: Final = 0.9  # our share of what it counted, at least, if no other client takes part
_EARLY: Final = 0.45  # share of the time to the reset after which an unconfirmed hint is tested
_EARLIEST: Final = 0.5  # seconds; not tested sooner than this, as after a 429
_SHORT: Final = 0.8  # seconds to the reset; if there are fewer, there is no time for a test
_TRUST: Final = 1.5  # how much longer a pause may be with each confirmation
_PROVED: Final = 10  # confirmations that count at most
_LONGEST_PAUSE: Final = 60.0  # seconds; only a 429 can ask for a longer pause
_SURE: Final = 0.75  # share of the time to the reset; a grant before that proves the hint wrong
_RISE, _SOON = 5, 0.1  # a counter that rises by this many in so many seconds proves it wrong, too
_LOST: Final = 3.0  # errors after which hints are ignored for good
_PARDON: Final = 0.1  # how much of the errors each confirmation makes up for


class Hint(Struct, frozen=True, gc=False):
    """What a response tells about the limit.

    Attributes:
        remaining: how many requests are left.
        reset: seconds until there are more.
    """

    remaining: int
    reset: float


# Parsing


class HintReader:
    """Finds hints in responses; if there are none, it only reads a few of the responses."""

    def __init__(self) -> None:
        self._unread = 0

    def read(self, response: Response) -> Hint | None:
        """Return the hint in the headers of a response, or None."""
        if self._unread and response.status == _OK:
            self._unread -= 1
            return None
        head = response.head
        hint = read_hint(head, time.time()) if _has_hints(head) else None
        self._unread = 0 if hint else _UNREAD
        return hint


def _has_hints(head: Head) -> bool:
    if isinstance(head, bytes):
        return _NAME.search(head, 0, head.find(b"\r\n\r\n")) is not None
    return any("ratelimit" in name.lower().replace("-", "") for name in head)


def read_hint(head: Head, now: float) -> Hint | None:
    """Return the hint in these headers, or None; of several, the one with the fewest requests left.

    Headers in any other form than those of the module's docstring are ignored.

    Args:
        head: the headers, or the bytes of a response that begins with them.
        now: seconds since 1970, for a response without a date.
    """
    fields = _fields(head)
    hints = [
        Hint(int(float(remaining)), max(0.0, reset))
        for remaining, text in _pairs(fields)
        if _NUMBER.fullmatch(remaining)
        and (reset := _seconds(text, fields.get("date", ""), now)) is not None
        and reset < _ABSURD
    ]
    return min(hints, key=lambda hint: (hint.remaining, -hint.reset), default=None)


def _fields(head: Head) -> dict[str, str]:
    """Return the relevant headers, with names without `x-` and with `ratelimit` as one word."""
    lines: Iterable[tuple[str, str]]
    if isinstance(head, bytes):
        found = _LINE.findall(head, 0, head.find(b"\r\n\r\n") + 1)
        lines = ((name.decode(), value.decode()) for name, value in found)
    else:
        lines = head.items()
    fields: dict[str, str] = {}
    for name, value in lines:
        key = name.lower().removeprefix("x-").replace("rate-limit", "ratelimit")
        if key == "date" or key.startswith("ratelimit"):
            # Several lines with one name are one list (RFC 9110, section 5.3).
            fields[key] = f"{fields[key]}, {value}" if key in fields else value.strip()
    return {name: value for name, value in fields.items() if len(value) <= _LONGEST_VALUE}


def _pairs(fields: dict[str, str]) -> list[tuple[str, str]]:
    """Return the texts of remaining and reset for each policy."""
    limit, policy = fields.get("ratelimit", ""), fields.get("ratelimit-policy", "")
    if ";" in limit:
        policies = dict(_items(policy))
        pairs = []
        for name, state in _items(limit):
            fixed = policies.get(name, {})
            if fixed.get("qu", '"requests"') == '"requests"':  # or it counts bytes, for example
                pairs.append((state.get("r", ""), state.get("t") or fixed.get("w", "")))
        return pairs
    members = dict(_MEMBER.findall(limit)) or {
        name: fields.get(f"ratelimit-{name}", "").partition(", ")[0]
        for name in ("remaining", "reset")
    }
    return [(members.get("remaining", ""), members.get("reset", ""))]


def _items(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the items of a list and their parameters; an empty list if any is malformed."""
    items, at = [], 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None:
            return []
        items.append((found[1], dict(_PARAMETER.findall(found[2]))))
        at = found.end()
    return items


def _seconds(text: str, date: str, now: float) -> float | None:
    """Return the seconds until a reset, which is a duration or a time; None if it is neither."""
    if _NUMBER.fullmatch(text):
        value = float(text)
        if value < _EPOCH:
            return value
        moment: float | None = value / 1000 if value >= _MILLISECONDS else value
    else:
        moment = _moment(text)
    if moment is None:
        return None
    sent = _moment(date)  # by the server's date, so that a wrong clock here does not matter
    return moment - (now if sent is None else sent)


def _moment(text: str) -> float | None:
    """Return the seconds since 1970 of an HTTP date or an ISO 8601 date."""
    try:
        moment = datetime.fromisoformat(text) if text[4:5] == "-" else parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


# Trusting


class Forecast:
    """Predicts from hints when the tenant will refuse requests, as far as hints were right so far.

    Attributes:
        room: maximum requests in flight, or infinity.
    """

    def __init__(self) -> None:
        self.room = math.inf
        self._right = 0  # confirmations since the last error
        self._wrong = 0.0  # errors, less what confirmations have made up for
        self._first: Ticket | None = None  # the first request that the counter has counted
        self._most = 0  # how many remained after it
        self._last: Ticket | None = None
        self._remaining = 1
        self._until = -math.inf  # when there are more
        self._latency = 0.0
        self._empty_since = math.inf  # when a hint first told that none remain

    @property
    def lost(self) -> bool:
        """Whether hints are ignored for good, because they were wrong too often."""
        return self._wrong >= _LOST

    def update(
        self, ticket: Ticket, hint: Hint | None, now: float, latency: float, *, is_known: bool
    ) -> None:
        """Use the hint in the response to this request.

        Args:
            ticket: of the request.
            hint: the hint, or None if the response has none.
            now: when the response arrived.
            latency: seconds from a request to its response.
            is_known: whether the rate was measured.
        """
        last = self._last
        if hint is None:
            self.room, self._last, self._empty_since = math.inf, None, math.inf
            return
        if last is None or ticket.interval > last.interval:
            is_new = True
        elif (ticket.interval, ticket.index) < (last.interval, last.index):
            return  # a newer response has arrived before
        else:
            is_new = now >= self._until or hint.remaining >= max(1, self._most)
            risen = hint.remaining - self._remaining
            if (
                risen > _RISE
                and ticket.sent_at - last.sent_at < _SOON
                and self._until - now > hint.reset / 4
            ):
                self._was_wrong()
        if is_new:
            self._first, self._most, self._until = ticket, hint.remaining, math.inf
            self._empty_since = math.inf
        self._last, self._remaining = ticket, hint.remaining
        # Most servers round up, so the earliest time is the right one.
        self._until = min(self._until, now + hint.reset)
        if hint.remaining:
            self._empty_since = math.inf
        elif self._empty_since == math.inf:
            self._empty_since = now
        share = self._share(ticket.index, _FEW if self._right or not is_known else _MANY)
        # A request that is sent now may arrive after the reset.
        is_over = self._until - now <= latency
        self.room = math.inf if is_over or not share else max(1.0, share * hint.remaining)
        self._latency = latency

    def _share(self, index: float, least: int) -> float:
        """Return our share of what was counted; 0.0 if the counter does not count our requests."""
        assert self._first is not None  # noqa: S101  for the type checkers
        sent, fell = index - self._first.index, self._most - self._remaining
        if self.lost or sent < least or fell < _COUNTED * sent:
            return 0.0
        return min(1.0, sent / fell)

    @property
    def shows_others(self) -> bool:
        """Whether the counter falls by more than our requests, so that others share the limit."""
        if self._first is None or self._last is None or not self._right:
            return False
        sent, fell = self._last.index - self._first.index, self._most - self._remaining
        return fell - sent > _MANY and sent < _ALONE * fell

    def pause(self, now: float) -> float:
        """Return the seconds for which a request would be refused; 0.0 if that is not known."""
        return 0.0 if self.room == math.inf else self.time_left(now) or 0.0

    def time_left(self, now: float) -> float | None:
        """Return the seconds until there are more requests, or None if hints do not tell."""
        if self._last is None or self._remaining or self.lost:
            return None
        left = max(0.0, self._until - now - self._latency / 2)
        longest = min(math.pow(_TRUST, self._right - self._wrong), _LONGEST_PAUSE)
        if self._right:
            return min(left, longest)
        return 0.0 if left < _SHORT else min(max(_EARLY * left, _EARLIEST), longest)

    def granted(self, ticket: Ticket, now: float) -> None:
        """Check the hints against a request that was granted."""
        since = self._empty_since
        seen_at = (ticket.sent_at + now) / 2  # by the tenant, approximately
        if since <= ticket.sent_at and seen_at - since < _SURE * (self._until - since):
            self._was_wrong()

    def refused(self, ticket: Ticket, hint: Hint | None) -> None:
        """Check the hints against the first request, or a probe, that was refused."""
        if self.lost:
            return
        if ticket.sent_at >= self._empty_since:
            self._right = min(self._right + 1, _PROVED)
            self._wrong = max(0.0, self._wrong - _PARDON)
        elif hint is not None and hint.remaining:
            self._was_wrong()

    def _was_wrong(self) -> None:
        self._right, self._wrong = 0, self._wrong + 1
        self.room = math.inf
