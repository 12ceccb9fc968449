"""The rate that a tenant grants, learnt from what it granted until it refused.

Whatever counts requests, a token bucket or a window, can grant no more than a burst plus its rate
times the time. So each stretch of requests that ended in a refusal says how high the rate must be
at least, and the stretch that says most is right: at the end of it the bucket was empty.
docs/pace.md has the law in words, and where each constant comes from.
"""

import math
from collections import deque
from typing import Final

from msgspec import Struct

_RUSH: Final = 3.0  # a search starts at so many times what the first stretch granted a second
_SEARCH: Final = 0.2  # seconds in which a search multiplies its rate by e
_LEAP: Final = 1.25  # the most by which one request raises the rate of a search

_LEAST: Final = 1.0  # requests a second; who grants less may say so each time
_MARGIN: Final = 0.003  # below the ceiling when requests begin again, made good in the quiet time
_GROWTH: Final = 0.002  # a second; what probing starts with when the quiet time is over
_STEEP: Final = 0.15  # a second; the most that probing grows by
_DOUBLINGS: Final = 16  # of the growth, in a time as long as the quiet time was

_DOUBTFUL: Final = 4.0  # seconds of quiet after a guess
_SURE: Final = 15.0  # seconds of quiet after a measurement
_LONGEST: Final = 60.0  # seconds; a limit that rises is found within a minute and a half
_LONGER: Final = 1.12  # how the quiet time grows from one refusal to the next
_COST: Final = 100.0  # the quiet time is worth so many requests for each one refused
_MOVED: Final = 0.15  # a change of the ceiling by more than this is a new limit

_ENOUGH: Final = 20  # requests that make a stretch worth measuring
_RESOLUTION: Final = 0.005  # seconds
_MARKS: Final = 1024
_CHEAP: Final = 0.01  # share of refused requests up to which it pays to reach higher
_HIGH, _LOW = 1.25, 1.03  # how far to reach, as shares of what was granted


class Ticket(Struct, frozen=True, gc=False):
    """A request on its way: what has to be known of it when the answer comes."""

    stretch: int
    place: int
    sent_at: float
    rate: float


class Stretch:
    """The requests between two pauses, and which of them were refused."""

    __slots__ = (
        "_end",
        "began",
        "first_refused_at",
        "last_refused_at",
        "marks",
        "number",
        "refused",
        "sent",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.began = 0.0
        self.sent = 0
        self.refused = 0
        self.first_refused_at = 0.0
        self.last_refused_at = 0.0
        self.marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)  # when, and how many before
        self._end = 0

    def send(self, now: float, rate: float) -> Ticket:
        """A ticket for one more request."""
        ticket = Ticket(self.number, self.sent, now, rate)
        if not self.sent:
            self.began = now
        if not self.marks or now - self.marks[-1][0] > _RESOLUTION:
            self.marks.append((now, self.sent))
        self.sent += 1
        return ticket

    def refuse(self, ticket: Ticket) -> None:
        """The request of this ticket was answered 429."""
        if not self.refused:
            self.first_refused_at = ticket.sent_at
        self.refused += 1
        if ticket.place >= self._end:
            self._end, self.last_refused_at = ticket.place + 1, ticket.sent_at

    @property
    def granted(self) -> int:
        """Requests up to the last refused one that were not refused themselves."""
        return self._end - self.refused

    def least_rate(self, burst: float) -> float:
        """Requests a second that who grants `burst` at once must have granted at least."""
        granted, end = self.granted, self.last_refused_at
        least = 0.0
        for place, (at, before) in enumerate(self.marks):
            if at > self.first_refused_at or (place and granted - before < _ENOUGH):
                break
            if end > at:
                least = max(least, (granted - before - burst) / (end - at))
        return least


class Ceiling:
    """The learnt rate: it searches once, then holds, probes a little, and learns again.

    Attributes:
        rate: requests a second to send now.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self._top = 0.0  # what was learnt
        self._age = 0.0  # seconds of sending at the rate, idle time left out
        self._quiet = _DOUBTFUL
        self._rush = 0.0  # seconds; while it searches, how fast the rate grows
        self._first: tuple[int, float] = (0, 0.0)  # granted in the first stretch, and in what time
        self._began = 0.0

    def __repr__(self) -> str:
        return f"<Ceiling {self.rate:.4g}/s>"

    @property
    def known(self) -> bool:
        """Whether the rate is measured, and not still searched for."""
        return self._top > 0 and not self._rush

    def spent(self, gap: float) -> None:
        """One request went out `gap` seconds after the one before, because the rate said so."""
        if self._rush:
            self.rate *= min(_LEAP, math.exp(gap / self._rush))
            return
        self._age += gap
        self.rate = self._top * self._course(self._age)

    def _course(self, age: float) -> float:
        """Where the rate is after so many seconds, as a share of the ceiling."""
        quiet = self._quiet
        if age < quiet:
            return 1 - _MARGIN * (1 - age / quiet)
        doubling = quiet / _DOUBLINGS
        steep = doubling * math.log2(_STEEP / _GROWTH)  # seconds until growth grows no more
        probing = age - quiet
        growth = _GROWTH * doubling / math.log(2) * (2 ** (min(probing, steep) / doubling) - 1)
        return math.exp(min(growth + _STEEP * max(0.0, probing - steep), 50.0))

    def learn(self, stretch: Stretch, refused_rate: float, paused_at: float, now: float) -> None:
        """Take in a stretch that ended in a refusal, once the tenant grants again.

        Args:
            stretch: what was sent.
            refused_rate: the rate at which the first refused request was sent.
            paused_at: when sending stopped.
            now: when the request was sent that was the first to be granted again.
        """
        if self._top:
            self._measure(stretch, refused_rate, now - paused_at, now)
        else:
            self._search(stretch, now - paused_at, now)
        self._began = now
        self._age = 0.0

    def _search(self, stretch: Stretch, pause: float, now: float) -> None:
        self._first = stretch.granted, stretch.last_refused_at - stretch.began
        self._rush = _SEARCH * max(1.0, pause)
        rush = max(1.0, _RUSH / max(1.0, pause))
        self._top = self.rate = max(_LEAST, rush * stretch.granted / (now - stretch.began))

    def _measure(self, stretch: Stretch, refused_rate: float, pause: float, now: float) -> None:
        # From one beginning to the next, the pause included: right where a burst outlasts a pause.
        whole = stretch.granted / (now - self._began)
        granted_at_once, seconds = self._first
        burst = float(granted_at_once)
        for _ in range(5):  # burst and rate depend on each other; this settles in two or three
            least = max(whole, stretch.least_rate(burst))
            burst = max(1.0, granted_at_once - least * seconds)
        before, top = self._top, min(least, refused_rate)
        if not self._rush:
            top = self._reach(stretch, least, whole, refused_rate, burst / (least * pause))
        if self._rush or abs(top / before - 1) > _MOVED:
            self._quiet = _SURE if least > 1.1 * whole else _DOUBTFUL
        else:
            longer = self._quiet * (2 if self._quiet < _SURE else _LONGER)
            worth = min(_COST * stretch.refused / top, 2 * self._quiet)
            self._quiet = min(max(longer, worth), _LONGEST)
        self._rush = 0.0
        self._top = max(_LEAST, top)
        self.rate = self._top * (1 - _MARGIN)

    @staticmethod
    def _reach(
        stretch: Stretch, least: float, whole: float, refused_rate: float, cover: float
    ) -> float:
        """Half-way from what was surely granted to what was refused, where trying costs little.

        `cover` is the share of a pause that the burst makes good. A window's limit is higher than
        what a stretch below it shows, and it shows that by refusing nothing else.
        """
        share = 1.0 if least <= 1.005 * whole else min(1.0, cover)
        cheap = stretch.refused < _CHEAP * stretch.granted
        highest = min(refused_rate, (_HIGH if cheap else _LOW) * least)
        return max(least, least + share * (highest - least) / 2)
