"""Retries of a call: what is retried, how long to wait, and when to give up.

All operations are idempotent: enabling an enabled user changes nothing. So every transient failure
is safe to retry, even if nobody knows whether the tenant received the request.

tenacity drives every retry except after a 429. A 429 is about the tenant's rate, and not a failure
of the call: the call goes back into the admission queue and waits as if it had not been sent. It
uses no attempt and no retry time.
"""

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct, structs

from monocloud_async import config
from monocloud_async.errors import ConfigurationError, MonoCloudError, StatusError, TransportError

T = TypeVar("T")
Attempt = Callable[[float], Awaitable[T]]

_RECENT = 10.0  # seconds after which a request counts for about a third
_FEW_RETRIES = 10  # retries that are always allowed in that time


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """The limits for retries; `RetryPolicy(attempts=1)` never retries.

    Waits have full jitter: a random time up to a bound that starts at `wait_initial` and doubles up
    to `wait_max`. No wait is shorter than a `Retry-After`.

    Attributes:
        attempts: maximum number of requests, including the first one.
        wait_initial: seconds; the bound of the first wait.
        wait_max: seconds; the maximum of a wait, unless the tenant asked for more.
        total: seconds for a call with all its attempts and waits.
        max_retry_after: seconds; the longest `Retry-After` to obey. A longer one is an error at
            once, which has the `retry_after`.
        budget: the maximum share of retries in the recent calls of a session, for single calls. Ten
            retries in ten seconds are always allowed. A run has no budget.
        wait_if_down: whether a single call waits for a tenant that is down, as long as `total`
            allows. Otherwise it fails at once, with `retry_after` set. A run always waits.

    Raises:
        ConfigurationError: a value is not valid.
    """

    attempts: int = 4
    wait_initial: float = 0.5
    wait_max: float = 8.0
    total: float = 60.0
    max_retry_after: float = 60.0
    budget: float = 0.2
    wait_if_down: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigurationError(f"attempts must be 1 or more, not {self.attempts!r}")
        for name in ("wait_initial", "wait_max", "max_retry_after", "budget"):
            config.not_negative(name, getattr(self, name))
        config.positive("total", self.total)
        if not isinstance(self.wait_if_down, bool):
            raise ConfigurationError(f"wait_if_down must be a bool, not {self.wait_if_down!r}")

    def patient(self, seconds: float) -> "RetryPolicy":
        """Return a policy for a call of a long job: it retries for so many seconds, if at all."""
        return structs.replace(
            self,
            attempts=1 if self.attempts == 1 else sys.maxsize,
            total=max(self.total, seconds),
            max_retry_after=max(self.max_retry_after, seconds),
            wait_if_down=True,
        )

    def allows(self, error: BaseException) -> bool:
        """Return whether this policy allows a retry after this error."""
        if self.attempts == 1 or not isinstance(error, MonoCloudError):
            return False
        asked = retry_after(error)
        if asked is not None and asked > self.max_retry_after:
            return False  # never retry before the time that the tenant asked for
        return error.transient


def checked_policy(policy: RetryPolicy) -> RetryPolicy:
    """Return the policy; raises `ConfigurationError` if it is of another type."""
    if not isinstance(policy, RetryPolicy):
        raise ConfigurationError(
            f"retry must be a RetryPolicy, such as RetryPolicy(attempts=3), not {policy!r}"
        )
    return policy


def retry_after(error: BaseException | None) -> float | None:
    """Return the seconds that the tenant asked to wait, if the error has them."""
    return error.retry_after if isinstance(error, StatusError) else None


class RetryBudget:
    """Limits the retries of a session's single calls, so that they do not overload a broken tenant.

    Retries are limited to a share of recent calls, as in Finagle and gRPC. Recent means about the
    last ten seconds: the counts decay by a tenth each second.
    """

    def __init__(self) -> None:
        self._calls = 0.0
        self._retries = 0.0
        self._counted_at = -math.inf

    def count_call(self, now: float) -> None:
        """Count a call that begins."""
        self._forget(now)
        self._calls += 1

    def spend(self, share: float, now: float) -> bool:
        """Spend a retry, and return True; return False if this share is used up."""
        self._forget(now)
        if self._retries + 1 > max(share * self._calls, _FEW_RETRIES):
            return False
        self._retries += 1
        return True

    def left(self, share: float, now: float) -> float:
        """Return how many retries this share allows now."""
        rest = math.exp((self._counted_at - now) / _RECENT)
        # A call with a larger share of its own may have spent more.
        return max(0.0, max(share * self._calls * rest, _FEW_RETRIES) - self._retries * rest)

    def _forget(self, now: float) -> None:
        rest = math.exp((self._counted_at - now) / _RECENT)
        self._calls *= rest
        self._retries *= rest
        self._counted_at = now


def note_unanswered(error: MonoCloudError, *, before: bool = False) -> bool:
    """Return whether a request of the call got no response, and make a `TransportError` say so."""
    if not isinstance(error, TransportError):
        return before
    error.sent |= before
    return error.sent


async def retry_call(
    policy: RetryPolicy,
    first: MonoCloudError,
    attempt: Attempt[T],
    *,
    deadline: float,
    may_retry: Callable[[MonoCloudError], bool] = lambda _error: True,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Retry a call as the policy allows, and return the result of `attempt(seconds left)`.

    The caller made the first attempt itself, which raised `first`: nearly every call succeeds at
    once, and tenacity costs more than the rest of the client.
    The error of the last attempt is raised unchanged, but its `attempts`, which are the requests of
    that attempt, become those of the whole call, and so does its `sent`. If the session is closed
    meanwhile, so that nothing can be sent any more, it is the error of the last request.
    `clock` is in monotonic seconds. `may_retry` is called once for each retry, and can refuse it.
    """
    if not policy.allows(first):
        raise first
    import tenacity  # noqa: PLC0415  slow; the session loads it

    shown: MonoCloudError | None = first
    last = first
    unanswered = note_unanswered(first)

    async def attempt_again() -> T:
        nonlocal shown, last, unanswered
        if shown is not None:  # tenacity must count the first attempt, so raise its error here
            error, shown = shown, None
            raise error
        try:
            return await attempt(deadline - clock())
        except ConfigurationError:
            raise
        except MonoCloudError as error:
            error.attempts += last.attempts
            unanswered = note_unanswered(error, before=unanswered)
            last = error
            raise

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(retry_after(error) or 0.0, backoff(state))

    def stop(state: tenacity.RetryCallState) -> bool:
        # Not tenacity's time limits, which use another clock; and never wait past the deadline.
        if state.attempt_number >= policy.attempts or clock() + state.upcoming_sleep >= deadline:
            return True
        error = state.outcome.exception() if state.outcome else None
        return isinstance(error, MonoCloudError) and not may_retry(error)

    backoff = tenacity.wait_random_exponential(multiplier=policy.wait_initial, max=policy.wait_max)
    # A new one for each call: concurrent calls that share one would mix up their counts.
    retrying = tenacity.AsyncRetrying(
        sleep=sleep,
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception(policy.allows),
        reraise=True,
    )
    try:
        return await retrying(attempt_again)
    except ConfigurationError:
        raise last from None
