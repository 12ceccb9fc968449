"""Decides whether an error stops the whole run, or concerns only one user."""

from typing import Final, NamedTuple

from monocloud_async.errors import (
    ConfigurationError,
    ForbiddenError,
    InvalidResponseError,
    MonoCloudError,
    PaymentRequiredError,
    RateLimitedError,
    StatusError,
    TransportError,
    UnauthorizedError,
)
from monocloud_async.outcome import BulkReport, RunStoppedError
from monocloud_async.ratelimit.limiter import RateLimiter

MAX_PAUSE: Final = 900.0  # seconds that a run waits for a tenant that answers only 429


_MAX_BLOCKED: Final = 100  # responses in a row that are not due to a user


class StopReason(NamedTuple):
    """Why a run stops: the error, an explanation if the error alone does not tell, and advice."""

    error: MonoCloudError
    why: str = ""
    advice: str = ""

    def to_error(self, report: BulkReport) -> RunStoppedError:
        """Return the error that the run raises."""
        read = f"{report.total:,}"
        stopped = RunStoppedError(
            f"the run was stopped{self.why} (ids read: {read}): {self.error}", report=report
        )
        stopped.advice = self.advice
        return stopped


class StopRules:
    """Checks every error of a run, and stops the run for these.

    - 401, 402, and a session that is closed or cannot be used: at any time.
    - 403, a redirect, or a page that is not MonoCloud's: as the first response, or if the last
      hundred responses were all like that.
    - An invalid certificate or host name: in the first call.
    - The first `max_same_failures` users all failed in the same way, if that is a number.
    - The tenant is down for longer than `max_outage`, or answers only 429 for 15 minutes.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        max_outage: float,
        max_same_failures: int | None = None,
    ) -> None:
        self._limiter = limiter
        self._max_outage = max_outage
        self._blocked = 0
        self._max_same = max_same_failures  # None once they differ
        self._same = 0
        self._way: tuple[type[MonoCloudError], int | None] | None = None

    def user_done(self) -> None:
        """Record that the operation was done for a user."""
        self._blocked = 0
        self._max_same = None

    def user_failed(self, error: MonoCloudError, *, skipped: int) -> StopReason | None:
        """Record that a user failed; return why the run has to stop, or None if it may continue.

        `skipped` users were done before, so the key and the ids are right.
        """
        if self._max_same is None:
            return None
        way = type(error), error.status if isinstance(error, StatusError) else None
        if skipped or self._way not in {None, way}:
            self._max_same = None
            return None
        self._way = way
        self._same += 1
        if self._same < self._max_same:
            return None
        return StopReason(
            error,
            f", because the first {self._same:,} users all failed in the same way",
            "If that is to be expected, allow it with max_same_failures",
        )

    def check(self, error: MonoCloudError, now: float, *, first: bool) -> StopReason | None:
        """Return why the run has to stop, or None if it may continue."""
        blocked = isinstance(error, ForbiddenError) or (
            isinstance(error, InvalidResponseError) and error.foreign
        )
        self._blocked = self._blocked + 1 if blocked else 0
        if isinstance(error, UnauthorizedError | PaymentRequiredError | ConfigurationError):
            return StopReason(error)
        # After the first call, only the end of the session itself is lasting and `sent`.
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
