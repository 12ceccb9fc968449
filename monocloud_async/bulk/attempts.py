"""The attempts for one user of a run, and the outcome."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from monocloud_async import retry
from monocloud_async.bulk.lookup import Lookup
from monocloud_async.bulk.stop_rules import StopReason, StopRules
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import MonoCloudError, RateLimitedError, StatusError, TransportError
from monocloud_async.models import User
from monocloud_async.outcome import BulkReport, Outcome, Status
from monocloud_async.ratelimit.admission_queue import RunAdmission, record_failure
from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.retry import RetryPolicy

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.writer import JournalWriter

T = TypeVar("T")
Send = Callable[[str, float], Awaitable[User]]


class RunCall:
    """The state of one user's call, and its outcome at the end."""

    attempts = 0  # requests that were not answered 429
    paused = 0.0  # seconds that do not count as retry time
    error: MonoCloudError | None = None
    own_failure = False  # a failure counted as this user's own
    may_have_succeeded = False  # a request got no response
    in_flight = False
    waiting = False
    ended = False  # the outcome was passed on

    def __init__(
        self,
        operation: BulkOperation,
        user_id: str,
        position: int,
        clock: Callable[[], float],
    ) -> None:
        self.operation = operation
        self.user_id = user_id
        self.position = position
        self.clock = clock
        self.began = clock()

    @property
    def was_throttled(self) -> bool:
        """Whether the last response was a 429."""
        return isinstance(self.error, RateLimitedError)

    def add_failure(self, error: MonoCloudError) -> None:
        """Record a failed attempt."""
        self.error = error
        self.in_flight = False
        self.attempts += not isinstance(error, RateLimitedError)
        self.may_have_succeeded |= isinstance(error, TransportError) and error.sent

    def succeeded(self, user: User) -> Outcome:
        """Return the outcome after a success."""
        return self._outcome(self.operation.done, user=user)

    def done_before(self) -> Outcome:
        """Return the outcome if the user was in the wanted state already."""
        return self._outcome(self.operation.done_before)

    def forget_lookup(self) -> None:
        """Forget the failures of the lookup: nothing can have changed by it."""
        self.error = None
        self.own_failure = self.may_have_succeeded = self.in_flight = False

    def failed(self, error: MonoCloudError) -> Outcome:
        """Return the outcome when the last attempt ended with this error."""
        # Only a final refusal settles an earlier attempt that got no response.
        final = isinstance(error, StatusError) and not error.transient
        unsure = self.may_have_succeeded and not final
        if isinstance(error, TransportError):
            error.sent |= unsure
        # Outcomes may live long, so do not keep the frames of the traceback alive.
        return self._outcome("unknown" if unsure else "failed", error=error.with_traceback(None))

    def interrupted(self) -> Outcome:
        """Return the outcome when the run ends before the call."""
        if self.in_flight:
            return self._outcome("unknown")
        is_unseen = self.was_throttled or isinstance(self.error, TransportError)
        if self.error is None or (is_unseen and not self.may_have_succeeded):
            return self._outcome("not_attempted", error=self.error)
        return self.failed(self.error)

    def _outcome(
        self, status: Status, *, user: User | None = None, error: MonoCloudError | None = None
    ) -> Outcome:
        return Outcome(
            user_id=self.user_id,
            position=self.position,
            status=status,
            user=user,
            error=error,
            attempts=self.attempts + self.in_flight,
            seconds=self.clock() - self.began,
        )


class CallRunner:
    """Makes the calls of a run, and stops the run if a response requires it.

    Args:
        send: makes one request for a user id, within a number of seconds.
        queue: decides when a request may be sent.
        policy: the retries of one user.
        stop_rules: decides which responses stop the run.
        report: counts the requests.
        on_stop: called once, when the run has to stop.
        lookup: looks each user up first, if given.
        writer: records what the lookup finds, if there is a journal.
    """

    def __init__(
        self,
        send: Send,
        queue: RunAdmission,
        *,
        policy: RetryPolicy,
        stop_rules: StopRules,
        report: BulkReport,
        on_stop: Callable[[], None],
        lookup: Lookup | None = None,
        writer: "JournalWriter | None" = None,
    ) -> None:
        self.queue = queue
        self.proved = asyncio.Event()  # the first call has ended, in any way
        self.stop_reason: StopReason | None = None
        self.draining = False
        self._send = send
        self._policy = policy
        self._stop_rules = stop_rules
        self._report = report
        self._on_stop = on_stop
        self._lookup = lookup
        self._writer = writer

    async def run(self, call: RunCall) -> Outcome:
        """Make the call, and return its outcome.

        Raises:
            CancelledError: the run ended first; `call.interrupted()` is the outcome.
        """
        try:
            if self._lookup is not None and await self._has_wanted_state(call, self._lookup):
                self.proved.set()  # without a request: the list has shown that the key is valid
                if not self._lookup.reads_list:
                    self._stop_rules.user_done()
                return call.done_before()
            user = await self._call(call, self._send)
        except MonoCloudError as error:
            outcome = call.failed(error)
            self.stop(self._stop_rules.user_failed(error, skipped=self._report.skipped))
            return outcome
        self._stop_rules.user_done()
        return call.succeeded(user)

    async def _has_wanted_state(self, call: RunCall, lookup: Lookup) -> bool:
        """Look the user up; if there is something to do, record first what was before.

        Raises:
            MonoCloudError: the user cannot be looked up.
        """
        if lookup.reads_list:
            user = lookup.user(call.user_id)
        else:
            try:
                user = await self._call(call, lookup.get)
            finally:
                call.forget_lookup()
        disabled = None if user is None else user.disabled
        is_done = (
            user is not None and disabled is not None and not call.operation.contradicted_by(user)
        )
        if self._writer is not None:
            record = partial(self._writer.add_before, call.position, call.user_id, disabled)
            await self._wait(call, record)
        return is_done

    async def _call(self, call: RunCall, send: Send) -> User:
        """Make the attempts with this function, and return the user."""
        try:
            return await self._attempt(call, send, self._policy.total)
        except MonoCloudError as error:
            first = error
        # Outside the `except`, or later errors would carry this one as `__context__`.
        return await self._retry(call, send, first)

    async def _retry(self, call: RunCall, send: Send, error: MonoCloudError) -> User:
        """Retry after the first attempt failed."""
        policy, clock = self._policy, call.clock

        async def sleep(seconds: float) -> None:
            await self._wait(call, partial(self.queue.sleep, seconds))

        return await retry.retry_call(
            policy,
            error,
            partial(self._attempt, call, send),
            deadline=call.began + policy.total,
            clock=lambda: clock() - call.paused,
            sleep=sleep,
        )

    async def _attempt(self, call: RunCall, send: Send, left: float) -> User:
        """Send a request, and repeat it after failures that are not this user's own."""
        queue, report, clock = self.queue, self._report, call.clock
        refused, sent = None, 0
        while True:
            sent_at = clock()
            if queue.must_wait(sent_at):
                ticket = await self._wait_for_admission(call, refused)
                call.paused += clock() - sent_at  # the wait is no retry time
                sent_at = clock()
            else:
                ticket = queue.admit(sent_at)
            report.requests += 1
            report.retries += call.error is not None and not call.was_throttled
            call.in_flight = True
            try:
                user = await send(call.user_id, left)
            except BaseException as error:
                now = clock()
                record_failure(
                    queue.limiter, ticket, call.user_id, error, now, repeated=call.own_failure
                )
                if isinstance(error, MonoCloudError):
                    sent += not error.refusal
                    error.attempts = sent
                if not isinstance(error, MonoCloudError) or self._is_own_failure(call, error, now):
                    raise
                if self.draining:
                    raise asyncio.CancelledError from None
            else:
                call.in_flight = False
                call.attempts += 1
                queue.limiter.granted(ticket, clock())
                return user
            finally:
                self.proved.set()
            refused = ticket if call.was_throttled else None
            call.paused += clock() - sent_at

    def _is_own_failure(self, call: RunCall, error: MonoCloudError, now: float) -> bool:
        """Return whether the failure is the user's own, and not a 429 or an outage."""
        call.add_failure(error)
        self._report.throttled += call.was_throttled
        self.stop(self._stop_rules.check(error, now, first=not self.proved.is_set()))
        if call.was_throttled or (error.transient and self.queue.limiter.down):
            return False
        call.own_failure = True
        return True

    def stop(self, reason: StopReason | None) -> None:
        """Stop the run, if there is a reason; the first one counts."""
        if self.stop_reason is None and reason is not None:
            self.stop_reason = reason
            self._on_stop()

    async def _wait_for_admission(self, call: RunCall, refused: Ticket | None) -> Ticket:
        """Wait until the request may be sent, and return its ticket."""
        failed = call.error is not None and not call.was_throttled
        return await self._wait(call, partial(self.queue.wait, refused=refused, is_retry=failed))

    async def _wait(self, call: RunCall, wait: Callable[[], Awaitable[T]]) -> T:
        """Wait; draining the run ends the wait."""
        if self.draining:
            raise asyncio.CancelledError
        call.waiting = True
        try:
            return await wait()
        finally:
            call.waiting = False
