"""What may be retried, how long to wait, and when to give up.

An enable sets a state: doing it twice leaves the user enabled. So every failure that may pass is
safe to retry, also one after which nobody knows whether the tenant saw the request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from monocloud_async.errors import (
    ConfigurationError,
    MonoCloudError,
    RateLimitedError,
    StatusError,
)

T = TypeVar("T")
Attempt = Callable[[float], Awaitable[T]]

_TOKENS, _TRANSIENT, _THROTTLED = 500, 14, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How hard to try, as one value: `RetryPolicy(attempts=1)` never retries.

    Waits are full jitter: a random time up to a bound that starts at `wait_initial` and doubles
    to `wait_max`. A `Retry-After` is a floor for the wait.

    Attributes:
        attempts: requests at most, the first one included.
        wait_initial: seconds; the bound of the first wait.
        wait_max: seconds; no wait is longer, unless the tenant asked for more.
        total: seconds for a call with all its attempts and waits.
        max_retry_after: seconds; the longest `Retry-After` to obey. A longer one fails at once,
            with `retry_after` set on the error.

    Raises:
        ConfigurationError: a value that makes no sense.
    """

    attempts: int = 4
    wait_initial: float = 0.5
    wait_max: float = 8.0
    total: float = 60.0
    max_retry_after: float = 60.0

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigurationError(f"attempts must be 1 or more, not {self.attempts!r}")
        for name in ("wait_initial", "wait_max", "max_retry_after"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} must be seconds, 0 or more")
        if not 0 < self.total < float("inf"):
            raise ConfigurationError("total must be seconds above 0")

    def allows(self, error: BaseException) -> bool:
        """Whether this failure may be retried at all, under this policy."""
        if not isinstance(error, MonoCloudError):
            return False
        asked = retry_after(error)
        if asked is not None and asked > self.max_retry_after:
            return False  # retrying before the time that the tenant named is never right
        return error.transient


def checked_policy(policy: RetryPolicy) -> RetryPolicy:
    """The policy, if it is one; else raises `ConfigurationError`."""
    if not isinstance(policy, RetryPolicy):
        raise ConfigurationError(
            f"retry must be a RetryPolicy, such as RetryPolicy(attempts=3), not {policy!r}"
        )
    return policy


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the tenant asked to wait, where this error says so."""
    return error.retry_after if isinstance(error, StatusError) else None


class RetryBudget:
    """Retries that a session may spend on single calls, so that a broken tenant is not hit harder.

    500 tokens, as in AWS's standard mode of retries: a retry costs 14, after a 429 it costs 5, and
    every call that succeeds gives one back.
    """

    def __init__(self) -> None:
        self.tokens = _TOKENS

    def spend(self, error: BaseException | None) -> bool:
        """Whether there is a retry left for this failure; it is spent."""
        cost = _THROTTLED if isinstance(error, RateLimitedError) else _TRANSIENT
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def succeeded(self) -> None:
        """A call went well."""
        self.tokens = min(_TOKENS, self.tokens + 1)


async def retry_call(
    policy: RetryPolicy,
    first: MonoCloudError,
    attempt: Attempt[T],
    *,
    deadline: float,
    budget: RetryBudget | None = None,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """What `attempt(seconds left)` returns when it is tried again, as often as the policy allows.

    The first attempt is the caller's own, and ended with the error `first`: nearly every call
    succeeds at once, and this machinery costs more than all the rest of the client.
    The error of the last attempt comes out as it is, with `attempts` set.
    `clock` is monotonic seconds; without a `budget`, retries are not counted.
    """
    first.attempts = 1
    if policy.attempts == 1 or not policy.allows(first):
        raise first
    shown: MonoCloudError | None = first
    tries = 0

    async def attempt_again() -> T:
        nonlocal shown, tries
        tries += 1
        if shown is not None:  # tenacity counts the first attempt too, so it is shown to it
            error, shown = shown, None
            raise error
        try:
            return await attempt(deadline - clock())
        except MonoCloudError as error:
            error.attempts = tries
            raise

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(retry_after(error) or 0.0, backoff(state))

    def stop(state: tenacity.RetryCallState) -> bool:
        # tenacity's own limits of time read its own clock; and a wait past the deadline is in vain.
        if state.attempt_number >= policy.attempts or clock() + state.upcoming_sleep >= deadline:
            return True
        error = state.outcome.exception() if state.outcome else None
        return budget is not None and not budget.spend(error)

    backoff = tenacity.wait_random_exponential(multiplier=policy.wait_initial, max=policy.wait_max)
    # Fresh for every call that retries: concurrent calls that share one mix up their counts.
    retrying = tenacity.AsyncRetrying(
        sleep=sleep,
        stop=stop,
        wait=wait,
        retry=tenacity.retry_if_exception(policy.allows),
        reraise=True,
    )
    return await retrying(attempt_again)
