"""Decides whether a failure is the user's own or the tenant is down, and when to probe."""

import logging
import math
from typing import Final

_FAILED_USERS: Final = 5  # different users whose first request failed, in a row, at least
_MOST_FAILED_USERS: Final = 20  # this many in a row are always an outage
_CHANCE: Final = 1e-4  # a row that is more probable than this, given recent failures, is no outage
_RECENT: Final = 50  # requests for the recent share of failures
_FIRST_PROBE, _LAST_PROBE = 0.5, 5.0  # seconds between two probes

logger = logging.getLogger("monocloud_async")


class CircuitBreaker:
    """Considers the tenant down when the requests of several users failed in a row.

    A single user can fail repeatedly for its own reasons, and a run may retry several such users in
    a row. But in a healthy tenant, the first requests of five users do not fail in a row. If
    requests often fail although the tenant is not down, more users have to fail.

    Attributes:
        down_since: when the tenant went down, or None.
        wait: seconds from one probe to the next.
        failure: why the last request failed, if none was answered since; else empty.
    """

    def __init__(self, tenant: str) -> None:
        self._log_fields = {"tenant": tenant}
        self.down_since: float | None = None
        self.wait = _FIRST_PROBE
        self.failure = ""
        self._failing: set[str] = set()
        self._failure_share = 0.0  # of recent requests, those in `_failing` and outages left out

    def failed(
        self, user_id: str, now: float, *, probe: bool, repeated: bool, why: str = ""
    ) -> float | None:
        """Record a failure; return the seconds to pause for, or None if nothing changes."""
        self.failure = why
        if self.down_since is not None:
            if not probe:
                return None  # it was sent before the tenant went down
            self.wait = min(self.wait * 2, _LAST_PROBE)
            return self.wait
        if not repeated:
            self._failing.add(user_id)
        if len(self._failing) < self._needed():
            return None
        self.down_since, self.wait = now, _FIRST_PROBE
        what = "the tenant is down: %d users failed in a row; probing"
        logger.warning(what, len(self._failing), extra=self._log_fields)
        self._failing.clear()
        return self.wait

    def answered(self) -> bool:
        """Record a response of the tenant, and return whether it ended an outage."""
        self.failure = ""
        if self._failing:
            for _ in self._failing:
                self._count(1.0)
            self._failing.clear()
        if self._failure_share:
            self._count(0.0)
        if self.down_since is None:
            return False
        self.down_since = None
        logger.warning("the tenant is back", extra=self._log_fields)
        return True

    def _count(self, failure: float) -> None:
        self._failure_share += (failure - self._failure_share) / _RECENT

    def _needed(self) -> int:
        """Return how many users have to fail in a row; by chance, they do once in 10,000 times."""
        share = self._failure_share
        if share <= _CHANCE:
            return _FAILED_USERS
        if share >= 1:
            return _MOST_FAILED_USERS
        by_chance = math.ceil(math.log(_CHANCE) / math.log(share))
        return min(max(_FAILED_USERS, by_chance), _MOST_FAILED_USERS)
