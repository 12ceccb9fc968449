"""The rate of a session that shares the tenant's limit with other sessions: equal shares.

Who shares a limit cannot measure it: what a session was granted among others is what it sent. But
sessions that each add the same to their rates while nothing is refused, and each give up the same
part of them when something is, come to equal rates, without talking to each other: additive
increase and multiplicative decrease, as in TCP.

Both are brisk at first and calm later; that is the heat, from 1 to 0. docs/pace.md tells where
each constant comes from.
"""

import math
from collections import deque
from typing import Final

_DECREASE: Final = 0.07  # part of the rate that is given up after a refusal
_HOT_DECREASE: Final = 0.35  # and so much more at a heat of 1
_INCREASE: Final = 0.0027  # requests a second, each second; times the root of the rate,
_DOUBLING: Final = 2.0  # and doubling in so many seconds without a refusal
_HOT_INCREASE: Final = 2.0  # so much more at a heat of 1; with the root of the rate added,
_HOT_GAIN: Final = 3.0  # and so much for each second without a refusal
_FASTEST: Final = 0.6, 0.4  # growth a second at most, as a share of the rate; more at a heat of 1
_STEP: Final = 0.05, 0.25  # the most by which one request raises the rate; more at a heat of 1

_COOLING: Final = 40.0  # seconds from a heat of 1 to 0
_WARMING: Final = 0.2  # heat, for a refusal that came too soon: somebody joined
_SOON: Final = 0.15  # too soon, as a share of the usual time between two refusals
_RARE: Final = 6.0, 3.0  # seconds; who is usually refused that seldom is refused too soon below 3
_SMOOTHING: Final = 0.3  # weight of the last time in the usual one

_ALIKE: Final = 3  # measurements that agree: the session is alone
_ENOUGH: Final = 12  # requests that make an interval worth comparing
_AGREEMENT: Final = 0.01  # how closely they agree, besides one request


class FairShare:
    """Says by how much to raise and to lower the rate, among others on the same limit.

    Args:
        heat: how briskly to begin, from 0 to 1.
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
        """Return the rate after a refusal; who needs no more than that is not lowered by the heat.

        Args:
            rate: the one that was refused.
            needed: requests a second that the session's single calls need.
        """
        calm = (1 - _DECREASE) * rate
        return max(calm - _HOT_DECREASE * self.heat * rate, min(calm, needed))

    def refused(self, age: float, cycle: float) -> None:
        """Record a refusal.

        Args:
            age: seconds of sending before it.
            cycle: seconds since the session learnt for the last time.
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
        """Return whether the last measurements agree, as those of a session alone do.

        Among others a session measures its own rate, which goes up and down.
        """
        if granted < _ENOUGH:
            self._measured.clear()
            return False
        self._measured.append(measured)
        agreed = max(self._measured) <= min(self._measured) * (1 + _AGREEMENT + 1 / granted)
        return agreed and len(self._measured) == _ALIKE
