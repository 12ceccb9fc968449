"""Does this answer condemn the whole run, or only this user?"""

from typing import Final, NamedTuple

from monocloud_async.errors import (
    ConfigurationError,
    ForbiddenError,
    InvalidResponseError,
    MonoCloudError,
    PaymentRequiredError,
    RateLimitedError,
    TransportError,
    UnauthorizedError,
)
from monocloud_async.outcome import BulkReport, RunStoppedError
from monocloud_async.ratelimit.limiter import RateLimiter

MAX_PAUSE: Final = 900.0  # seconds; longer than that, nobody waits for a tenant's permission

_MAX_BLOCKED: Final = 100  # answers in a row that no user can be blamed for


class StopReason(NamedTuple):
    """What ends a run: the error that decided it, and why that one does, where it is not plain."""

    error: MonoCloudError
    why: str = ""

    def to_error(self, report: BulkReport) -> RunStoppedError:
        """What the run raises, from the error."""
        read = f"{report.total:,}"
        return RunStoppedError(
            f"the run was stopped{self.why} (ids read: {read}): {self.error}", report=report
        )


class StopRules:
    """Looks at every error of a run.

    - 401, 402, and a session that is closed or cannot be used: at any time.
    - 403, a redirect, or a page that is not MonoCloud's: as the first answer, or as each of the
      last hundred.
    - A certificate or a host name that does not fit: in the first call.
    - The tenant down for longer than `max_outage`, or granting nothing for 15 minutes.
    """

    def __init__(self, limiter: RateLimiter, max_outage: float) -> None:
        self._limiter = limiter
        self._max_outage = max_outage
        self._blocked = 0

    def user_done(self) -> None:
        """The operation was done for a user."""
        self._blocked = 0

    def check(self, error: MonoCloudError, now: float, *, first: bool) -> StopReason | None:
        """Why the run has to stop, or None where it may go on."""
        blocked = isinstance(error, ForbiddenError) or (
            isinstance(error, InvalidResponseError) and error.foreign
        )
        self._blocked = self._blocked + 1 if blocked else 0
        if isinstance(error, UnauthorizedError | PaymentRequiredError | ConfigurationError):
            return StopReason(error)
        # Only the session's own end is lasting and comes after a request was sent.
        lasting = isinstance(error, TransportError) and error.lasting and (first or error.sent)
        if lasting or (first and blocked):
            return StopReason(error)
        if self._blocked >= _MAX_BLOCKED:
            return StopReason(
                error, f", because the last {_MAX_BLOCKED} answers were all like this one"
            )
        if isinstance(error, RateLimitedError):
            if self._limiter.starved_for(now) > MAX_PAUSE:
                return StopReason(error, f", because it would have to wait over {MAX_PAUSE:.0f} s")
        elif self._limiter.down_for(now) > self._max_outage:
            return StopReason(error, f", because the tenant is down for {self._max_outage:.0f} s")
        return None
