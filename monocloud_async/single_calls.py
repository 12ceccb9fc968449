"""Makes the single calls of a session: each waits in the queue, and is retried as allowed.

The calls of a run are made by `bulk.attempts`.
"""

import asyncio
from functools import partial
from typing import TypeVar

from monocloud_async import config
from monocloud_async.endpoint import Operation
from monocloud_async.errors import (
    ConfigurationError,
    MonoCloudError,
    RateLimitedError,
    RequestTimeoutError,
)
from monocloud_async.lifecycle import Lifecycle, SessionState
from monocloud_async.ratelimit.admission_queue import AdmissionQueue, record_failure
from monocloud_async.retry import (
    RetryBudget,
    RetryPolicy,
    checked_policy,
    note_unanswered,
    retry_call,
)
from monocloud_async.telemetry.calls import Call, CallOfRun, SessionTelemetry
from monocloud_async.transport.http_client import HttpClient
from monocloud_async.user_id import exact_id

T = TypeVar("T")


class SingleCalls:
    """Makes the single calls of a session.

    Args:
        http: sends the requests.
        queue: decides when a request may be sent.
        lifecycle: lets a call begin, and counts it until its end.
        telemetry: observes each call.
        budget: limits the retries of all calls together.
        timeout: seconds for one request, unless a call has its own.
        retry: the limits for retries, unless a call has its own.
    """

    def __init__(
        self,
        http: HttpClient,
        queue: AdmissionQueue,
        lifecycle: Lifecycle,
        telemetry: SessionTelemetry,
        budget: RetryBudget,
        *,
        timeout: float,
        retry: RetryPolicy,
    ) -> None:
        self._http = http
        self._queue = queue
        self._limiter = queue.limiter
        self._lifecycle = lifecycle
        self._timeout = timeout
        self._retry = retry
        self._telemetry = telemetry
        self._budget = budget

    async def call(
        self,
        operation: Operation[T],
        target: str,
        timeout: float | None,
        retry: RetryPolicy | None,
        of_run: CallOfRun | None = None,
    ) -> T:
        """Do one operation, with retries, and return its result.

        `of_run` counts the requests, if the call is made for a run.

        Raises:
            MonoCloudError: it failed; see `MonoCloudSession.enable_user`.
        """
        config.event_loop()  # before anything needs it
        with of_run or self._telemetry.call(operation) as observed:
            limit = self._timeout if timeout is None else config.positive("timeout", timeout)
            policy = self._retry if retry is None else checked_policy(retry)
            target = exact_id(target)
            operation.path(target)  # refuses an id that is not valid
            clock = self._lifecycle.begin().time
            began = clock()
            try:
                deadline = began + policy.total
                self._budget.count_call(began)
                attempt = partial(
                    self._attempt, operation, target, limit, policy, observed=observed
                )
                try:
                    return await attempt(policy.total, again=False)
                except MonoCloudError as error:
                    if self._is_final(error, policy):
                        raise
                    first = error
                # Outside the `except`, or later errors would carry this one as `__context__`.
                return await retry_call(
                    policy,
                    first,
                    attempt,
                    deadline=deadline,
                    may_retry=partial(self._may_retry, policy),
                    clock=clock,
                    sleep=observed.sleeps(self._queue.sleep),
                )
            except RequestTimeoutError as error:
                if error.attempts > 1:  # its text has the time of the last attempt alone
                    in_all = f"; {clock() - began:.3g} s in all"
                    error.args = (f"{error.args[0]}{in_all}",)
                raise
            finally:
                self._lifecycle.end()

    async def _attempt(
        self,
        operation: Operation[T],
        target: str,
        limit: float,
        policy: RetryPolicy,
        time_left: float,
        *,
        observed: Call,
        again: bool = True,
    ) -> T:
        """Return the result of one request, which is repeated after a 429 or in an outage.

        `again` is whether the call has sent a request before. The `attempts` of an error are the
        requests that were sent here, and so is the `sent` of a `TransportError`.
        """
        limiter, clock = self._limiter, asyncio.get_running_loop().time
        deadline = clock() + time_left
        refused, last, sent, unanswered = None, None, 0, False
        while True:
            observed.queues(self._queue)
            try:
                ticket = await self._queue.admit_call(
                    target, policy, deadline, refused, again=again or last is not None
                )
            except ConfigurationError as closed:
                raise last or closed from None
            except MonoCloudError as refusal:
                refusal.attempts = sent
                raise
            observed.sends()
            seconds = min(limit, deadline - clock())
            try:
                result = await self._http.send(operation, target, seconds)
            except BaseException as error:
                usual = min(limit, policy.total)
                record_failure(
                    limiter, ticket, target, error, clock(), seconds=seconds, usual=usual
                )
                observed.failed(error)
                if last is not None and isinstance(error, ConfigurationError):
                    raise last from None
                if isinstance(error, MonoCloudError):
                    sent += not error.refusal
                    error.attempts = sent
                    unanswered = note_unanswered(error, before=unanswered)
                is_throttled = isinstance(error, RateLimitedError)
                queues_again = is_throttled or (policy.wait_if_down and limiter.down)
                if not policy.allows(error) or not queues_again:
                    raise
                refused, last = ticket if is_throttled else None, error.with_traceback(None)
            else:
                limiter.granted(ticket, clock())
                return result

    def _is_final(self, error: MonoCloudError, policy: RetryPolicy) -> bool:
        """Whether the call cannot go again.

        The policy does not allow it, the queue would refuse it, or the session is closed.
        """
        is_down = self._limiter.down and not policy.wait_if_down
        is_closed = self._lifecycle.state is SessionState.CLOSED
        is_throttled = isinstance(error, RateLimitedError)
        return is_closed or is_down or is_throttled or not policy.allows(error)

    def _may_retry(self, policy: RetryPolicy, error: MonoCloudError) -> bool:
        """Whether a single call may be tried again; the error says so where it is over budget."""
        if self._is_final(error, policy):
            return False
        if self._budget.spend(policy.budget, asyncio.get_running_loop().time()):
            return True
        error.args = (f"{error.args[0]}; not tried again: the session's retry budget is spent",)
        return False
