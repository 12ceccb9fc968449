"""Does this answer condemn the whole run, or only this user?"""

from typing import Final, NamedTuple

from monocloud_async.errors import (
    ConfigurationError,
    ForbiddenError,
    InvalidResponseError,
    MonoCloudError,
    PaymentRequiredError,
    RateLimitedError,
    RunStoppedError,
    TransportError,
    UnauthorizedError,
)
from monocloud_async.outcome import BulkReport
from monocloud_async.pace import Pace

MAX_PAUSE: Final = 900.0  # seconds; longer than that, nobody waits for a tenant's permission

_BARRED: Final = 100  # answers in a row that no user can be blamed for


class Verdict(NamedTuple):
    """What ends a run: the error that decided it, and why that one does, where it is not plain."""

    error: MonoCloudError
    why: str = ""

    def stopped(self, report: BulkReport) -> RunStoppedError:
        """What the run raises, from the error."""
        read = f"{report.total:,}"
        return RunStoppedError(
            f"the run was stopped{self.why} (ids read: {read}): {self.error}", report=report
        )


class Judge:
    """Looks at every error of a run.

    - 401, 402, and a session that is closed or cannot be used: at any time.
    - 403, a redirect, or a page that is not MonoCloud's: as the first answer, or as each of the
      last hundred.
    - A certificate or a host name that does not fit: in the first call.
    - The tenant down for longer than `max_outage`, or granting nothing for 15 minutes.
    """

    def __init__(self, pace: Pace, max_outage: float) -> None:
        self._pace = pace
        self._max_outage = max_outage
        self._barred = 0

    def acquit(self) -> None:
        """A user was enabled."""
        self._barred = 0

    def judge(self, error: MonoCloudError, now: float, *, first: bool) -> Verdict | None:
        """The verdict on the run, or None where it may go on."""
        barred = isinstance(error, ForbiddenError) or (
            isinstance(error, InvalidResponseError) and error.foreign
        )
        self._barred = self._barred + 1 if barred else 0
        if isinstance(error, UnauthorizedError | PaymentRequiredError | ConfigurationError):
            return Verdict(error)
        # Only the session's own end is lasting and comes after a request was sent.
        lasting = isinstance(error, TransportError) and error.lasting and (first or error.sent)
        if lasting or (first and barred):
            return Verdict(error)
        if self._barred >= _BARRED:
            return Verdict(error, f", because the last {_BARRED} answers were all like this one")
        if isinstance(error, RateLimitedError):
            if self._pace.hungry_for(now) > MAX_PAUSE:
                return Verdict(error, f", because it would have to wait over {MAX_PAUSE:.0f} s")
        elif self._pace.down_for(now) > self._max_outage:
            return Verdict(error, f", because the tenant is down for {self._max_outage:.0f} s")
        return None
