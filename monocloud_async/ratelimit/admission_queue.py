"""The queue of a session, in which every request waits until it may be sent.

Single calls overtake runs; within each kind, it is first come, first served. If both wait, every
tenth request is a run's. A request that was answered 429 goes to the head of its kind.

A single call that would be sent too late fails at once. This is checked again whenever the limiter
learns something that changes the wait.
"""

import asyncio
import heapq
import math
from itertools import count
from typing import Final, Generic, TypeVar

from monocloud_async.errors import (
    MonoCloudError,
    RateLimitedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    TransportError,
    closed_error,
)
from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.ratelimit.limiter import ANSWERS, Bottleneck, RateLimiter
from monocloud_async.ratelimit.pacer import Pacer
from monocloud_async.retry import RetryPolicy, retry_after

_CALLS_FOR_A_RUN: Final = 9  # single calls that may overtake a waiting run in a row
_TIME_TO_WAIT: Final = 1 / 3  # of a call's time, where only the session's caution holds it back
_SHORT: Final = 0.5  # of a request's usual time: a timeout after less says nothing of the tenant
_CUT: Final = 0.9  # the same, where answers may take longer than the request had
_LEFT_IN_LINE: Final = 64  # requests that left early; fewer are not worth a cleanup

_WHY: Final[dict[Bottleneck, str]] = {
    "max_rate": "max_rate has no place for it {within}",
    "rate_limit": "the tenant's limit has no place for it {within}",
    "probe": "after a pause, the response to the first request has not arrived {within}",
    "slow_start": "too many requests wait for their response to send it {within}",
}

Order = tuple[float, float]
Admission = asyncio.Future[Ticket | None]


class _Waiter:
    """A request that waits. The result of its `admission` is a ticket, or an error.

    Without `sends`, the result is None: the caller only waits until a request may be sent.
    """

    def __init__(self, *, sends: bool = True) -> None:
        self.admission: Admission = asyncio.get_running_loop().create_future()
        self.sends = sends


class _WaitingCall(_Waiter):
    """A single call that waits, at most until its deadline."""

    def __init__(self, user_id: str, policy: RetryPolicy, deadline: float, *, again: bool) -> None:
        super().__init__()
        self.user_id = user_id
        self.policy = policy
        self.deadline = deadline
        self.not_sent = "it was not sent again" if again else "nothing was sent"


W = TypeVar("W", bound=_Waiter)


class _WaitList(Generic[W]):
    """The waiting requests of one kind, in order.

    Attributes:
        waiting: how many there are.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._heap: list[tuple[Order, W]] = []

    def add(self, order: Order, waiter: W) -> None:
        """Add a waiting request."""
        heapq.heappush(self._heap, (order, waiter))

    def first(self) -> tuple[Order, W] | None:
        """Return the next request; drop those that no longer wait."""
        while self._heap and self._heap[0][1].admission.done():
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> W:
        """Remove and return the next request."""
        return heapq.heappop(self._heap)[1]

    def leave(self) -> None:
        """Record that a request no longer waits; forget those that left before their turn.

        Behind one that waits for an hour, there may be any number of them.
        """
        self.waiting -= 1
        if len(self._heap) > 2 * self.waiting + _LEFT_IN_LINE:
            self._heap = [entry for entry in self._heap if not entry[1].admission.done()]
            heapq.heapify(self._heap)

    def everybody(self) -> list[W]:
        """Return all requests that wait, in order."""
        self._heap.sort()  # a sorted list is a heap, too
        return [waiter for _, waiter in self._heap if not waiter.admission.done()]


class AdmissionQueue:
    """Decides which request is sent next, and when; each session has one queue.

    Args:
        limiter: the limiter of the session, which decides when a request may be sent.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._calls = _WaitList[_WaitingCall]()
        self._runs: list[RunAdmission] = []  # runs that wait
        self._passed = 0  # single calls that overtook a waiting run, in a row
        self._sleeping = set[Admission]()
        self._arrivals = count()
        self._closed = False
        self._changes = 0  # the `limiter.changes` at the last check
        self._timer: asyncio.Handle | None = None  # one timer for all waiting requests
        limiter.listeners.add(self.wake)

    def for_run(self, max_rate: float | None = None) -> "RunAdmission":
        """Return the admission of a run, which sends at most `max_rate` requests per second."""
        return RunAdmission(self, max_rate)

    def must_wait(self, now: float) -> bool:
        """Return whether a request has to wait, for the limiter or for others."""
        return self.limiter.waiting > 0 or self.limiter.delay(now) > 0

    async def admit_call(
        self,
        user_id: str,
        policy: RetryPolicy,
        deadline: float,
        refused: Ticket | None = None,
        *,
        again: bool = False,
    ) -> Ticket:
        """Wait until a single call may be sent, and return its ticket.

        Args:
            user_id: for the error.
            policy: how long to wait for a pause, and whether to wait in an outage.
            deadline: when the call has to end.
            refused: the last ticket of the call, if it was answered 429.
            again: whether the call has sent a request before.

        Raises:
            RateLimitedError: the call would be sent too late, or the pause is too long.
            ServerError: the tenant is down. In both cases, the request was not sent.
            ConfigurationError: the queue was closed.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self.must_wait(now):
            return self.limiter.send(now)
        if self._closed:
            raise closed_error()
        call = _WaitingCall(user_id, policy, deadline, again=again)
        place = 0 if refused else self._calls.waiting
        error = self._refusal(call, place, now)
        if error is not None:
            raise error
        time_left = deadline - now - self.limiter.latency
        self.limiter.hurry(_TIME_TO_WAIT * time_left / (self._with_runs(place) + 1), now)
        give_up = loop.call_at(deadline, self._give_up, call)
        if refused is None:
            self.limiter.calls += 1
        try:
            ticket = await self.wait(self._calls, call, refused)
        finally:
            give_up.cancel()
            if not self._calls.waiting:
                self.limiter.calm_down()
        assert ticket is not None  # noqa: S101  for the type checkers
        return ticket

    async def admit_run(
        self, run: "RunAdmission", refused: Ticket | None, *, sends: bool
    ) -> Ticket | None:
        """Wait until a request of a run may be sent, and return its ticket."""
        if not run.line.waiting:
            self._runs.append(run)
        try:
            return await self.wait(run.line, _Waiter(sends=sends), refused)
        finally:
            if not run.line.waiting:
                self._runs.remove(run)

    async def wait(self, line: _WaitList[W], waiter: W, refused: Ticket | None) -> Ticket | None:
        """Add the request to this list; return its ticket when it may be sent."""
        if refused is None:
            line.add((math.inf, next(self._arrivals)), waiter)
        else:
            line.add((refused.interval, refused.index), waiter)
        line.waiting += 1
        self.limiter.waiting += 1
        if line.waiting == 1 or self._timer is None:
            self._admit()
        admission = waiter.admission
        try:
            return await admission
        except asyncio.CancelledError:
            # It may have been admitted just when it was cancelled.
            if not admission.cancelled() and admission.exception() is None:
                ticket = admission.result()
                if ticket is not None:
                    self.limiter.abandoned(ticket, asyncio.get_running_loop().time())
            raise
        finally:
            line.leave()
            self.limiter.waiting -= 1

    async def sleep(self, seconds: float) -> None:
        """Return after this time; raise `ConfigurationError` when the queue is closed meanwhile."""
        loop = asyncio.get_running_loop()
        waking: Admission = loop.create_future()
        timer = loop.call_later(seconds, _wake_up, waking)
        self._sleeping.add(waking)
        try:
            await waking
        finally:
            self._sleeping.discard(waking)
            timer.cancel()

    def wake(self) -> None:
        """Check the queue again in the next iteration, after the current change."""
        if self.limiter.waiting:
            self._set_timer(0.0)

    def close(self) -> None:
        """End all waits of single calls, with a `ConfigurationError`; no other one begins."""
        self._closed = True
        calls = [call.admission for call in self._calls.everybody()]
        for admission in (*calls, *self._sleeping):
            if not admission.done():
                admission.set_exception(closed_error())

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._admit) if seconds < math.inf else None

    def _admit(self) -> None:
        """Admit all requests that may be sent now, and set a timer for the next one."""
        limiter, now = self.limiter, asyncio.get_running_loop().time()
        if self._changes != limiter.changes:
            self._changes = limiter.changes
            self._refuse_those_in_vain(now)
        while limiter.delay(now) <= 0 and (waiter := self._next(now)) is not None:
            if not waiter.sends:
                waiter.admission.set_result(None)
                self._set_timer(0.0)  # it sends its request before this timer, or not at all
                return
            waiter.admission.set_result(limiter.send(now))
        self._set_timer(self._delay(now))

    def _next(self, now: float) -> _Waiter | None:
        """Remove and return the request that is next."""
        call, run = self._first_call(now), self._first_run(now)
        if run is not None and (call is None or self._passed >= _CALLS_FOR_A_RUN):
            waiter = run.line.pop()
            if waiter.sends:
                self._passed = 0
                run.take(now)
            return waiter
        if call is None:
            return None
        self._passed += run is not None
        return self._calls.pop()

    def _first_call(self, now: float) -> tuple[Order, _WaitingCall] | None:
        """Return the next single call; refuse those that have no time left for a response."""
        while (first := self._calls.first()) and first[1].deadline - now < self.limiter.latency:
            self._give_up(self._calls.pop())
        return first

    def _first_run(self, now: float) -> "RunAdmission | None":
        """Return the run that has waited longest, of those that may send now."""
        found, earliest = None, (math.inf, math.inf)
        for run in self._runs:
            first = run.line.first()
            if first is not None and first[0] < earliest and run.delay(now) <= 0:
                found, earliest = run, first[0]
        return found

    def _delay(self, now: float) -> float:
        """Return the seconds until the next admission, if nothing changes before."""
        delays = [run.delay(now) for run in self._runs if run.line.first()]
        if self._calls.first():
            delays.append(0.0)
        return max(self.limiter.delay(now), min(delays)) if delays else math.inf

    def _give_up(self, call: _WaitingCall) -> None:
        """Refuse a call that was not admitted in time; a new call would be behind all others."""
        if not call.admission.done():
            now = asyncio.get_running_loop().time()
            call.admission.set_exception(self._too_late(call, self._calls.waiting - 1, now))

    def _refuse_those_in_vain(self, now: float) -> None:
        """Refuse all calls that would be sent too late, by what the limiter knows now."""
        place = 0
        for call in self._calls.everybody():
            if (error := self._refusal(call, place, now)) is not None:
                call.admission.set_exception(error)
            else:
                place += 1

    def _refusal(self, call: _WaitingCall, place: int, now: float) -> MonoCloudError | None:
        """Return the error of a call that would be sent too late behind `place` others, or None."""
        limiter = self.limiter
        if limiter.down:
            return None if call.policy.wait_if_down else self._down(call, now)
        if limiter.pause_from(now) > call.policy.max_retry_after:
            return self._too_late(call, place, now)
        left = call.deadline - now - limiter.latency
        if limiter.expected_delay(now, self._with_runs(place)) <= left:
            return None
        return self._too_late(call, place, now, is_foreseen=True)

    def _with_runs(self, place: int) -> int:
        """Return how many requests go before a call that is behind `place` others."""
        runs_wait = any(run.line.waiting for run in self._runs)
        return place + place // _CALLS_FOR_A_RUN if runs_wait else place

    def _down(self, call: _WaitingCall, now: float) -> ServerError:
        error = ServerError(
            f"the tenant is down, for {self.limiter.down_for(now):.0f} s so far; {call.not_sent}",
            status=503,
            user_id=call.user_id,
            retry_after=self.limiter.probe_delay(now),
        )
        error.refusal = "down"
        return error

    def _too_late(
        self, call: _WaitingCall, place: int, now: float, *, is_foreseen: bool = False
    ) -> MonoCloudError:
        limiter, place = self.limiter, self._with_runs(place)
        if limiter.down:
            return self._down(call, now)
        pause, reason = limiter.pause_from(now), limiter.bottleneck(is_foreseen=is_foreseen)
        is_paused = pause and pause > min(call.policy.max_retry_after, call.deadline - now)
        why = _WHY[reason].format(within=f"within {call.policy.total:g} s")
        if is_paused:
            why = f"the tenant asked everybody to wait, {max(1, round(pause))} s more"
        error = RateLimitedError(
            f"{why}; {call.not_sent}",
            status=429,
            user_id=call.user_id,
            retry_after=limiter.retry_after(now, place, reason),
        )
        error.refusal = "pause" if is_paused else reason
        error.advice = "Try again after as many seconds as its retry_after says"
        return error


def _wake_up(sleeping: Admission) -> None:
    if not sleeping.done():
        sleeping.set_result(None)


class RunAdmission:
    """The admission of one run's requests, through the session's queue.

    Args:
        queue: the queue of the session.
        max_rate: maximum requests per second of this run alone.

    Attributes:
        line: the waiting requests of the run.
    """

    def __init__(self, queue: AdmissionQueue, max_rate: float | None) -> None:
        self.line = _WaitList[_Waiter]()
        self._queue = queue
        self._limit = None if max_rate is None else Pacer(max_rate)
        self._retry_queue = asyncio.Lock()  # in front of the line, for users who failed

    @property
    def limiter(self) -> RateLimiter:
        """The limiter of the session."""
        return self._queue.limiter

    async def sleep(self, seconds: float) -> None:
        """Return after this time; see `AdmissionQueue.sleep`."""
        await self._queue.sleep(seconds)

    @property
    def is_open(self) -> bool:
        """Whether no request has to wait."""
        return self._limit is None and self.limiter.is_open

    def set_max_rate(self, max_rate: float) -> None:
        """Change the `max_rate` of the run, if it has one."""
        if self._limit is not None:
            self._limit.set_rate(max_rate)
            self._queue.wake()

    def delay(self, now: float) -> float:
        """Return the seconds to wait for the `max_rate` of the run."""
        return 0.0 if self._limit is None else self._limit.delay(now)

    def take(self, now: float) -> None:
        """Record a request that is sent now."""
        if self._limit is not None:
            self._limit.take(now)

    def must_wait(self, now: float) -> bool:
        """Return whether a request has to wait."""
        return self._queue.must_wait(now) or self.delay(now) > 0

    async def ready(self) -> None:
        """Wait until a request may be sent, without sending one."""
        await self._queue.admit_run(self, None, sends=False)

    def admit(self, now: float) -> Ticket:
        """Return the ticket of a request that does not have to wait."""
        self.take(now)
        return self.limiter.send(now)

    async def wait(self, *, refused: Ticket | None = None, is_retry: bool = False) -> Ticket:
        """Wait until a request may be sent, and return its ticket.

        Only one request with `is_retry` is in the line at a time. Otherwise, in an outage, users
        who fail for their own reasons could use all probes for minutes.

        Args:
            refused: the last ticket of the call, if it was answered 429.
            is_retry: whether the last request failed.
        """
        if is_retry:
            async with self._retry_queue:
                return await self.wait()
        ticket = await self._queue.admit_run(self, refused, sends=True)
        assert ticket is not None  # noqa: S101  for the type checkers
        return ticket


def record_failure(
    limiter: RateLimiter,
    ticket: Ticket,
    user_id: str,
    error: BaseException,
    now: float,
    *,
    repeated: bool = False,
    seconds: float = math.inf,
    usual: float = math.inf,
) -> None:
    """Tell the limiter how a failed request ended.

    Args:
        limiter: the limiter of the session.
        ticket: of the request.
        user_id: whose request it was.
        error: how it ended.
        now: as everywhere.
        repeated: whether a request failed before, and the user was to blame for it.
        seconds: how long it could take.
        usual: how long it could have taken at the beginning of its call.
    """
    if isinstance(error, RateLimitedError):
        limiter.refused(ticket, error.retry_after, now)
    elif isinstance(error, TransportError) and error.local:
        limiter.abandoned(ticket, now)
    elif isinstance(error, MonoCloudError) and error.transient:
        limiter.failed(
            ticket,
            user_id,
            now,
            repeated=repeated,
            retry_after=retry_after(error),
            cut_short=isinstance(error, RequestTimeoutError)
            and _is_cut_short(seconds, usual, limiter.latency),
            why=error.args[0],
        )
    elif isinstance(error, StatusError):
        limiter.granted(ticket, now)
    else:
        limiter.abandoned(ticket, now)


def _is_cut_short(seconds: float, usual: float, latency: float) -> bool:
    """Return whether a timeout after so many seconds, of those usual, says nothing of a tenant."""
    return seconds < _SHORT * usual or (seconds < _CUT * usual and seconds < ANSWERS * latency)
