"""What answers say of the limit before it is met: rate limit headers, and how far to believe them.

A hint says how many requests are left, and in how many seconds there are more. With it, a session
pauses before the 429 and not after it. A hint can only pause: it never raises a rate.

It may be wrong: it may count something else, such as the requests of a day, or of one endpoint; and
a token bucket that says "none left, reset in 1 s" has the next token in a moment. So it has a say
only while its counter falls with our requests; a pause by a hint that was not tested is short, the
request after it is the test, and `Forecast` keeps the score.

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
_UNREAD: Final = 16  # answers in a row that are not looked at, after one without hints
# RFC 9651: an item of a list with its parameters, whose values may be quoted strings.
_ITEM: Final = re.compile(
    r'\s*("[^"\\]*"|[\w*][\w:/*.%-]*)\s*((?:;[^;,"]*(?:"[^"\\]*"\s*)?)*)(?:,|$)'
)
_PARAMETER: Final = re.compile(r";\s*(\w+)=(\"[^\"]*\"|[^;,\s]*)")
_MEMBER: Final = re.compile(r"(?:^|,)\s*(\w+)=([0-9.]+)")
_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_EPOCH: Final = 1e9  # so many seconds are 31 years, so it is a moment
_MILLISECONDS: Final = 1e12
_ABSURD: Final = 3600.0  # seconds; what is reset later, if ever, is not what a run could wait for

# Believing
_FEW: Final = 3  # requests of ours that a counter must have counted, and so many
_MANY: Final = 20  # where the rate is known, at which a bucket's counter hardly falls
_COUNTED: Final = 0.5  # of our requests, at least; a bucket that fills up meanwhile counts less
_ALONE: Final = 0.9  # of what a counter counts is ours, at least, if nobody else takes part
_EARLY: Final = 0.45  # of the time told, after which hints are tested that were not right yet,
_EARLIEST: Final = 0.5  # seconds; but not before, as after a 429
_SHORT: Final = 0.8  # seconds; less is no pause then, as its end would be too late for a test
_TRUST: Final = 1.5  # so many times longer may a pause be for each time that they were right
_PROVED: Final = 10  # times that they were right, and more make no difference
_LONGEST_PAUSE: Final = 60.0  # seconds; a longer one is for a 429 to ask for
_SURE: Final = 0.75  # of the time told; a request that is granted before proves them wrong
_RISE, _SOON = 5, 0.1  # a counter that rises by so many in so many seconds proves them wrong, too
_LOST: Final = 3.0  # times that they were wrong; then they have lost their say for good
_PARDON: Final = 0.1  # so much of that is forgotten each time that they were right


class Hint(Struct, frozen=True, gc=False):
    """What an answer says of the limit.

    Attributes:
        remaining: requests that are left.
        reset: seconds until there are more.
    """

    remaining: int
    reset: float


# Parsing


class HintReader:
    """Finds the hints in answers; where there are none, it looks at few of the answers."""

    def __init__(self) -> None:
        self._unread = 0

    def read(self, response: Response) -> Hint | None:
        """Return the hint in the headers of an answer, if there is one."""
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
    """Return the hint in these headers: of several, the one that leaves least.

    Whatever is not as the drafts and the known servers send it is no hint.

    Args:
        head: the headers, or the bytes of a response that begins with them.
        now: seconds since 1970, for an answer without a date.
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
    """Return the headers that matter, by names without `x-` and with `ratelimit` as one word."""
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
            # Several lines of one name are one list (RFC 9110, section 5.3).
            fields[key] = f"{fields[key]}, {value}" if key in fields else value.strip()
    return {name: value for name, value in fields.items() if len(value) <= _LONGEST_VALUE}


def _pairs(fields: dict[str, str]) -> list[tuple[str, str]]:
    """Return what remains and the reset of each policy, as texts."""
    limit, policy = fields.get("ratelimit", ""), fields.get("ratelimit-policy", "")
    if ";" in limit:
        policies = dict(_items(policy))
        pairs = []
        for name, state in _items(limit):
            fixed = policies.get(name, {})
            if fixed.get("qu", '"requests"') == '"requests"':  # else it counts bytes, for example
                pairs.append((state.get("r", ""), state.get("t") or fixed.get("w", "")))
        return pairs
    members = dict(_MEMBER.findall(limit)) or {
        name: fields.get(f"ratelimit-{name}", "").partition(", ")[0]
        for name in ("remaining", "reset")
    }
    return [(members.get("remaining", ""), members.get("reset", ""))]


def _items(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the items of a list and their parameters; none if any of it is malformed."""
    items, at = [], 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None:
            return []
        items.append((found[1], dict(_PARAMETER.findall(found[2]))))
        at = found.end()
    return items


def _seconds(text: str, date: str, now: float) -> float | None:
    """Return the seconds until a reset, from a number of seconds or from a moment."""
    if _NUMBER.fullmatch(text):
        value = float(text)
        if value < _EPOCH:
            return value
        moment: float | None = value / 1000 if value >= _MILLISECONDS else value
    else:
        moment = _moment(text)
    if moment is None:
        return None
    sent = _moment(date)  # where the answer has a date, a wrong clock here does not matter
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


# Believing


class Forecast:
    """Says when the tenant will refuse, as far as its hints have been right until now.

    Attributes:
        room: requests in flight at most, or infinity.
    """

    def __init__(self) -> None:
        self.room = math.inf
        self._right = 0  # times, since the hints were wrong for the last time
        self._wrong = 0.0  # times, less those that are forgotten
        self._first: Ticket | None = None  # of the requests that the counter has counted
        self._most = 0  # that remained after it
        self._last: Ticket | None = None
        self._remaining = 1
        self._until = -math.inf  # when there are more
        self._latency = 0.0
        self._empty_since = math.inf  # when it was known that none remains

    @property
    def lost(self) -> bool:
        """Whether the hints have lost their say for good."""
        return self._wrong >= _LOST

    def take_in(
        self, ticket: Ticket, hint: Hint | None, now: float, latency: float, *, is_known: bool
    ) -> None:
        """Take in what the answer to this request says.

        Args:
            ticket: of the request.
            hint: what the answer says, if it does.
            now: when the answer came.
            latency: seconds from a request to its answer.
            is_known: whether the rate is measured.
        """
        last = self._last
        if hint is None:
            self.room, self._last, self._empty_since = math.inf, None, math.inf
            return
        if last is None or ticket.interval > last.interval:
            is_new = True
        elif (ticket.interval, ticket.index) < (last.interval, last.index):
            return  # it is older than what is known
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
        # Most servers round up, so the earliest is right.
        self._until = min(self._until, now + hint.reset)
        if hint.remaining:
            self._empty_since = math.inf
        elif self._empty_since == math.inf:
            self._empty_since = now
        share = self._share(ticket.index, _FEW if self._right or not is_known else _MANY)
        # What is sent now may arrive when there are more.
        is_over = self._until - now <= latency
        self.room = math.inf if is_over or not share else max(1.0, share * hint.remaining)
        self._latency = latency

    def _share(self, index: float, least: int) -> float:
        """Return our part of what was counted; 0.0 for a counter that does not count us."""
        assert self._first is not None  # noqa: S101  for the type checkers
        sent, fell = index - self._first.index, self._most - self._remaining
        if self.lost or sent < least or fell < _COUNTED * sent:
            return 0.0
        return min(1.0, sent / fell)

    @property
    def shows_others(self) -> bool:
        """Whether the counter falls by more than our requests, so that others take part."""
        if self._first is None or self._last is None or not self._right:
            return False
        sent, fell = self._last.index - self._first.index, self._most - self._remaining
        return fell - sent > _MANY and sent < _ALONE * fell

    def pause(self, now: float) -> float:
        """Return the seconds for which a request would be refused; 0.0 where that is not known."""
        return 0.0 if self.room == math.inf else self.time_left(now) or 0.0

    def time_left(self, now: float) -> float | None:
        """Return the seconds until there are more requests, as far as that is to be believed."""
        if self._last is None or self._remaining or self.lost:
            return None
        left = max(0.0, self._until - now - self._latency / 2)
        longest = min(math.pow(_TRUST, self._right - self._wrong), _LONGEST_PAUSE)
        if self._right:
            return min(left, longest)
        return 0.0 if left < _SHORT else min(max(_EARLY * left, _EARLIEST), longest)

    def granted(self, ticket: Ticket, now: float) -> None:
        """Judge the hints by a request that was granted."""
        since = self._empty_since
        seen_at = (ticket.sent_at + now) / 2  # by the tenant, at a guess
        if since <= ticket.sent_at and seen_at - since < _SURE * (self._until - since):
            self._was_wrong()

    def refused(self, ticket: Ticket, hint: Hint | None) -> None:
        """Judge the hints by the first request that was refused, or by a probe that was."""
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
