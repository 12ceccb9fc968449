"""Sets the rate of a session that shares the tenant's limit with other sessions.

Such a session cannot measure the limit: what it was granted is what it sent. But sessions come to
equal rates without communication if each adds the same amount while nothing is refused, and each
gives up the same part after a 429. That is additive increase and multiplicative decrease, as in TCP
(RFC 5681, section 3.1).

Both are large at first and small later. The heat, from 1 down to 0, says how large. docs/pace.md
explains where each constant comes from.
"""

import math
from collections import deque
from typing import Final

_DECREASE: Final = 0.07  # share of the rate that is given up after a 429
_HOT_DECREASE: Final = 0.35  # added to it at a heat of 1
_INCREASE: Final = 0.0027  # requests per second, per second, times the square root of the rate
_DOUBLING: Final = 2.0  # seconds without a 429 in which that doubles
_HOT_INCREASE: Final = 2.0  # added to it at a heat of 1, together with the square root of the rate
_HOT_GAIN: Final = 3.0  # added at a heat of 1 for each second without a 429
_FASTEST: Final = 0.6, 0.4  # maximum growth per second, as a share; the second is times the heat
_STEP: Final = 0.05, 0.25  # maximum growth by one request; the second is times the heat

_COOLING: Final = 40.0  # seconds in which the heat falls from 1 to 0
_WARMING: Final = 0.2  # heat added by a 429 that came too soon, because a session has joined
_SOON: Final = 0.15  # share of the usual time between two 429s; one before that is too soon
_RARE: Final = 6.0, 3.0  # seconds; if that time is longer than 6, a 429 within 3 is too soon
_SMOOTHING: Final = 0.3  # weight of the last time in the usual one

_ALIKE: Final = 3  # measurements in a row that agree if the session is alone
_ENOUGH: Final = 12  # requests; a shorter interval is not compared
_AGREEMENT: Final = 0.01  # how much they may differ, as a share, plus one request


class FairShare:
    """Decides by how much to raise and to lower the rate of one of several sessions.

    Args:
        heat: the heat to begin with, from 0 to 1.
    """

    def __init__(self, heat: float) -> None:
        self.heat = heat
        self._usual = 0.0  # seconds of sending from one refusal to the next
        self._measured: deque[float] = deque(maxlen=_ALIKE)

    def growth(self, rate: float, age: float, gap: float) -> float:
        """Return the factor by which the rate grows in a gap, after `age` seconds of sending."""
        increase = _INCREASE * math.sqrt(rate) * 2 ** min(age / _DOUBLING, 40.0)
        increase += self.heat * (_HOT_INCREASE + math.sqrt(rate) + _HOT_GAIN * age)
        most, step = (base + more * self.heat for base, more in (_FASTEST, _STEP))
        return math.exp(min(min(increase / rate, most) * gap, step))

    def kept(self, rate: float, needed: float = 0.0) -> float:
        """Return the rate after a 429.

        Args:
            rate: the rate at which the request was refused.
            needed: requests per second that the session's single calls need; the heat does not
                lower the rate below that.
        """
        calm = (1 - _DECREASE) * rate
        return max(calm - _HOT_DECREASE * self.heat * rate, min(calm, needed))

    def refused(self, age: float, cycle: float) -> None:
        """Record a 429.

        Args:
            age: seconds of sending since the last one.
            cycle: seconds since the last one, including the pause.
        """
        if self._usual and age < max(_SOON * self._usual, self._rare()):
            self.heat = min(1.0, self.heat + _WARMING)
        else:
            self.heat = max(0.0, self.heat - cycle / _COOLING)
        self._usual += (_SMOOTHING if self._usual else 1.0) * (age - self._usual)

    def _rare(self) -> float:
        usual, soon = _RARE
        return soon if self._usual > usual else 0.0

    def is_alone(self, measured: float, granted: float) -> bool:
        """Return whether the last measurements agree, so that the session has the limit to itself.

        If it shares the limit, it measures its own rate, which goes up and down.
        """
        if granted < _ENOUGH:
            self._measured.clear()
            return False
        self._measured.append(measured)
        agreed = max(self._measured) <= min(self._measured) * (1 + _AGREEMENT + 1 / granted)
        return agreed and len(self._measured) == _ALIKE
