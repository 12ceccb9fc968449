"""Evenly spaced send times."""

import math
from typing import Final

SLACK: Final = 0.01  # seconds; timers fire late, and up to this much is caught up
_IDLE: Final = 0.1  # seconds; a request that is later than this was not waiting


class Pacer:
    """Gives evenly spaced send times at a rate.

    Args:
        rate: send times per second.
        burst: maximum send times at once after an idle time.
    """

    def __init__(self, rate: float = math.inf, burst: float = 1.0) -> None:
        self.rate = rate
        self.burst = burst
        self._next = -math.inf

    def delay(self, now: float) -> float:
        """Return the seconds until the next send time."""
        return max(0.0, self._next - now)

    def when(self, now: float, place: int) -> float:
        """Return the send time after `place` others, not before `now`."""
        return max(now, max(self._next, now - self._saved()) + place / self.rate)

    def take(self, now: float) -> float:
        """Use the next send time; return the gap to the one after it, or 0.0 after an idle time."""
        gap = 1 / self.rate
        late = now - self._next
        saved = self._saved()
        self._next = max(self._next, now - (saved if late > _IDLE else max(saved, SLACK))) + gap
        return gap if late <= SLACK else 0.0

    def set_rate(self, rate: float) -> None:
        """Change the rate; the next send time becomes what it would be had the rate been this."""
        self._next += 1 / rate - 1 / self.rate
        self.rate = rate

    def hold(self, until: float) -> None:
        """Allow no send time before this one."""
        self._next = until

    def _saved(self) -> float:
        """Return the idle seconds that a burst makes up for."""
        return (self.burst - 1) / self.rate
