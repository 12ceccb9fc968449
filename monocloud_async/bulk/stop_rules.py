"""Decides whether an error stops the whole run, or is only about its user."""

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

MAX_PAUSE: Final = (
    900.0  # seconds; the longest wait for a tenant that answers every request with 429
)

_MAX_BLOCKED: Final = 100  # responses in a row that are not about their users


class StopReason(NamedTuple):
    """Why a run was stopped: the error, and an explanation if the error does not say enough."""

    error: MonoCloudError
    why: str = ""

    def to_error(self, report: BulkReport) -> RunStoppedError:
        """Return the error that the run raises; its cause is `error`."""
        read = f"{report.total:,}"
        return RunStoppedError(
            f"the run was stopped{self.why} (ids read: {read}): {self.error}", report=report
        )


class StopRules:
    """The rules that stop a run.

    - A 401, a 402, or a session that is closed or cannot be used: at any time.
    - A 403, a redirect, or a page that is not MonoCloud's: as the first response, or if the last
      hundred responses were all like that.
    - An invalid certificate or host name: in the first call.
    - A tenant that is down for longer than `max_outage`, or answers only 429 for 15 minutes.
    """

    def __init__(self, limiter: RateLimiter, max_outage: float) -> None:
        self._limiter = limiter
        self._max_outage = max_outage
        self._blocked = 0

    def user_done(self) -> None:
        """Record that the operation was done for a user."""
        self._blocked = 0

    def check(self, error: MonoCloudError, now: float, *, first: bool) -> StopReason | None:
        """Return why the run has to stop after this error, or None if it may go on."""
        blocked = isinstance(error, ForbiddenError) or (
            isinstance(error, InvalidResponseError) and error.foreign
        )
        self._blocked = self._blocked + 1 if blocked else 0
        if isinstance(error, UnauthorizedError | PaymentRequiredError | ConfigurationError):
            return StopReason(error)
        # A lasting error after a request was sent is always that the session was closed.
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
