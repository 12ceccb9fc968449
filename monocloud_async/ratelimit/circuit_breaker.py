"""Is it this user, or is the tenant down? And when to look again."""

import logging
from typing import Final

_FAILED_USERS: Final = 5  # whose requests failed in a row, each for the first time
_FIRST_PROBE, _LAST_PROBE = 0.5, 5.0  # seconds between two probes

logger = logging.getLogger("monocloud_async")


class CircuitBreaker:
    """The tenant is down when the requests of several users failed in a row.

    One user can fail for reasons of its own, however often, and a run may meet several of that kind
    again as it retries them; five new ones in a row, without one answer in between, do not occur in
    a tenant that is well.
    """

    def __init__(self, tenant: str) -> None:
        self._log_fields = {"tenant": tenant}
        self.down_since: float | None = None
        self._failing: set[str] = set()
        self._wait = _FIRST_PROBE

    def failed(self, user_id: str, now: float, *, probe: bool, repeated: bool) -> float | None:
        """Seconds that nobody is to be sent after this failure, or None where nothing changes."""
        if not repeated and len(self._failing) < _FAILED_USERS:
            self._failing.add(user_id)
        if self.down_since is not None:
            if not probe:
                return None  # it was on its way when the tenant went down
            self._wait = min(self._wait * 2, _LAST_PROBE)
        elif len(self._failing) < _FAILED_USERS:
            return None
        else:
            self.down_since, self._wait = now, _FIRST_PROBE
            what = "the tenant is down: %d users failed in a row; probing"
            logger.warning(what, _FAILED_USERS, extra=self._log_fields)
        return self._wait

    def answered(self) -> bool:
        """The tenant answered; says whether an outage is over by that."""
        if self._failing:
            self._failing.clear()
        if self.down_since is None:
            return False
        self.down_since = None
        logger.warning("the tenant is back", extra=self._log_fields)
        return True
