"""The queue of a session, in which every request waits for its turn.

Single calls go before runs, and within each of the two, first come, first served. Beside any number
of single calls, every tenth place is a run's. A request that was answered 429 goes to the head.

Nobody waits in vain: a single call whose turn would come too late is told so at once, and again
whenever the limiter learns something that changes when that turn is.
"""

import asyncio
import heapq
import math
from itertools import count
from typing import Final, Generic, TypeVar

from monocloud_async.errors import MonoCloudError, RateLimitedError, ServerError, StatusError
from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.ratelimit.pacer import Pacer
from monocloud_async.retry import RetryPolicy

_CALLS_FOR_A_RUN: Final = 9  # single calls that pass a run that waits; the next place is its own

Order = tuple[float, float]
Admission = asyncio.Future[Ticket | None]


class _Waiter:
    """A request that waits. Its admission becomes its ticket, or the reason why it has none.

    Where it does not `send`, it becomes None: somebody only asks when a request may go out.
    """

    def __init__(self, *, sends: bool = True) -> None:
        self.admission: Admission = asyncio.get_running_loop().create_future()
        self.sends = sends


class _WaitingCall(_Waiter):
    """A single call that waits, until its deadline at most."""

    def __init__(self, user_id: str, policy: RetryPolicy, deadline: float) -> None:
        super().__init__()
        self.user_id = user_id
        self.policy = policy
        self.deadline = deadline


W = TypeVar("W", bound=_Waiter)


class _Line(Generic[W]):
    """Those who wait, in their order.

    Attributes:
        waiting: how many there are.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._heap: list[tuple[Order, W]] = []

    def add(self, order: Order, waiter: W) -> None:
        """Who waits from now on."""
        heapq.heappush(self._heap, (order, waiter))

    def first(self) -> tuple[Order, W] | None:
        """Who is next; those who gave up are dropped."""
        while self._heap and self._heap[0][1].admission.done():
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> W:
        """Who is next, and waits no more."""
        return heapq.heappop(self._heap)[1]

    def everybody(self) -> list[W]:
        """Those who wait, the next one first."""
        self._heap.sort()  # a sorted list is a heap, too
        return [waiter for _, waiter in self._heap if not waiter.admission.done()]


class AdmissionQueue:
    """Who sends the next request, and when; each session has one.

    Args:
        limiter: the session's; it says when the next request may go out.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._calls = _Line[_WaitingCall]()
        self._runs: list[RunAdmission] = []  # those that wait
        self._passed = 0  # single calls that went before a run that waited, since its last place
        self._arrivals = count()
        self._changes = 0  # of the limiter, that those who wait were judged by
        self._timer: asyncio.Handle | None = None  # one, for all who wait
        limiter.listeners.add(self._wake)

    def for_run(self, max_rate: float | None = None) -> "RunAdmission":
        """The way of a run through the queue; it keeps to `max_rate` requests a second."""
        return RunAdmission(self, max_rate)

    def must_wait(self, now: float) -> bool:
        """Whether a request has to wait, for the limiter or behind others."""
        return self.limiter.waiting > 0 or self.limiter.delay(now) > 0

    async def admit_call(
        self, user_id: str, policy: RetryPolicy, deadline: float, refused: Ticket | None = None
    ) -> Ticket:
        """The ticket of a single call, when its turn has come.

        Args:
            user_id: for the error.
            policy: how long it waits for a pause, and whether for a tenant that is down.
            deadline: when the call has to be over.
            refused: its last ticket, where that request was answered 429.

        Raises:
            RateLimitedError: its turn would come too late, or the pause is too long for it.
            ServerError: the tenant is down. Nothing was sent, in both cases.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self.must_wait(now):
            return self.limiter.send(now)
        call = _WaitingCall(user_id, policy, deadline)
        error = self._refusal(call, 0 if refused else self._calls.waiting, now)
        if error is not None:
            raise error
        give_up = loop.call_at(deadline, self._give_up, call)
        try:
            ticket = await self.wait(self._calls, call, refused)
        finally:
            give_up.cancel()
        assert ticket is not None  # noqa: S101  for the type checkers
        return ticket

    async def admit_run(
        self, run: "RunAdmission", refused: Ticket | None, *, sends: bool
    ) -> Ticket | None:
        """What a request of a run gets when its turn has come."""
        if not run.line.waiting:
            self._runs.append(run)
        try:
            return await self.wait(run.line, _Waiter(sends=sends), refused)
        finally:
            if not run.line.waiting:
                self._runs.remove(run)

    async def wait(self, line: _Line[W], waiter: W, refused: Ticket | None) -> Ticket | None:
        """What the waiter's admission becomes."""
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
            # Its turn may have come in the moment in which it was cancelled.
            if not admission.cancelled() and admission.exception() is None:
                ticket = admission.result()
                if ticket is not None:
                    self.limiter.abandoned(ticket, asyncio.get_running_loop().time())
            raise
        finally:
            line.waiting -= 1
            self.limiter.waiting -= 1

    def _wake(self) -> None:
        """Look again soon: when what changes now has changed."""
        if self.limiter.waiting:
            self._set_timer(0.0)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._admit) if seconds < math.inf else None

    def _admit(self) -> None:
        """Let everybody go whose turn has come, and look again when the next one's comes."""
        limiter, now = self.limiter, asyncio.get_running_loop().time()
        if self._changes != limiter.changes:
            self._changes = limiter.changes
            self._refuse_those_in_vain(now)
        while limiter.delay(now) <= 0 and (waiter := self._next(now)) is not None:
            if not waiter.sends:
                waiter.admission.set_result(None)
                self._set_timer(0.0)  # it sends its request before that, or does without
                return
            waiter.admission.set_result(limiter.send(now))
        self._set_timer(self._delay(now))

    def _next(self, now: float) -> _Waiter | None:
        """Take out of its line whose turn it is."""
        call, run = self._calls.first(), self._first_run(now)
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

    def _first_run(self, now: float) -> "RunAdmission | None":
        """The run that has waited longest, of those that may send now."""
        found, earliest = None, (math.inf, math.inf)
        for run in self._runs:
            first = run.line.first()
            if first is not None and first[0] < earliest and run.delay(now) <= 0:
                found, earliest = run, first[0]
        return found

    def _delay(self, now: float) -> float:
        """Seconds until it is somebody's turn, if nothing changes before."""
        delays = [run.delay(now) for run in self._runs if run.line.first()]
        if self._calls.first():
            delays.append(0.0)
        return max(self.limiter.delay(now), min(delays)) if delays else math.inf

    def _give_up(self, call: _WaitingCall) -> None:
        """Its time is over."""
        if not call.admission.done():
            now = asyncio.get_running_loop().time()
            call.admission.set_exception(self._too_late(call, 0, now))

    def _refuse_those_in_vain(self, now: float) -> None:
        """Tell all who wait in vain, by what the limiter knows now."""
        place = 0
        for call in self._calls.everybody():
            if (error := self._refusal(call, place, now)) is not None:
                call.admission.set_exception(error)
            else:
                place += 1

    def _refusal(self, call: _WaitingCall, place: int, now: float) -> MonoCloudError | None:
        """Why this call waits in vain, if it does; `place` others go first."""
        limiter, pause = self.limiter, self.limiter.pause_from(now)
        if limiter.down:
            if call.policy.wait_if_down:
                return None
            return ServerError(
                f"the tenant is down since {limiter.down_for(now):.0f} s; nothing was sent",
                status=503,
                user_id=call.user_id,
                retry_after=limiter.probe_delay(now),
            )
        if pause > call.policy.max_retry_after:
            return self._too_late(call, place, now)
        left = call.deadline - now - limiter.latency
        return self._too_late(call, place, now) if self._expected(place, now) > left else None

    def _expected(self, place: int, now: float) -> float:
        """Seconds until a call's turn, as far as anybody knows."""
        if any(run.line.waiting for run in self._runs):
            place += place // _CALLS_FOR_A_RUN
        return self.limiter.expected_delay(now, place)

    def _too_late(self, call: _WaitingCall, place: int, now: float) -> RateLimitedError:
        limiter, wait = self.limiter, self._expected(place, now)
        pause = limiter.pause_from(now)
        if pause > min(call.policy.max_retry_after, call.deadline - now):
            why = f"the tenant asked everybody to wait, {pause:.0f} s more"
        else:
            limit = "max_rate" if limiter.keeps_to_max_rate else "the tenant's limit"
            why = f"{limit} has no place for it within {call.policy.total:g} s"
        error = RateLimitedError(
            f"{why}; nothing was sent", status=429, user_id=call.user_id, retry_after=wait
        )
        error.advice = "Try again after as many seconds as its retry_after says"
        return error


class RunAdmission:
    """The way of one run through the session's queue.

    Args:
        queue: the session's.
        max_rate: requests a second that this run keeps to, whatever the session does.

    Attributes:
        line: those of the run who wait.
    """

    def __init__(self, queue: AdmissionQueue, max_rate: float | None) -> None:
        self.line = _Line[_Waiter]()
        self._queue = queue
        self._limit = None if max_rate is None else Pacer(max_rate)
        self._retry_queue = asyncio.Lock()  # in front of `_queue`, for users who failed

    @property
    def limiter(self) -> RateLimiter:
        """The session's."""
        return self._queue.limiter

    @property
    def is_open(self) -> bool:
        """Whether no request has to wait."""
        return self._limit is None and self.limiter.is_open

    def delay(self, now: float) -> float:
        """Seconds that `max_rate` of the run asks for."""
        return 0.0 if self._limit is None else self._limit.delay(now)

    def take(self, now: float) -> None:
        """A request goes out now."""
        if self._limit is not None:
            self._limit.take(now)

    def must_wait(self, now: float) -> bool:
        """Whether a request has to wait."""
        return self._queue.must_wait(now) or self.delay(now) > 0

    async def ready(self) -> None:
        """Returns when a request may go out; its place is not taken by that."""
        await self._queue.admit_run(self, None, sends=False)

    def admit(self, now: float) -> Ticket:
        """The ticket of a request that does not have to wait."""
        self.take(now)
        return self.limiter.send(now)

    async def wait(self, *, refused: Ticket | None = None, is_retry: bool = False) -> Ticket:
        """The ticket of a request, when its turn has come.

        Those who failed and come `is_retry` stand in line one at a time. Else, in an outage, a row
        of users who fail for reasons of their own would keep the probes to themselves for minutes.

        Args:
            refused: its last ticket, where that request was answered 429.
            is_retry: whether its last request failed.
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
) -> None:
    """Let the limiter know how a request ended that did not succeed."""
    if isinstance(error, RateLimitedError):
        limiter.refused(ticket, error.retry_after, now)
    elif isinstance(error, MonoCloudError) and error.transient:
        limiter.failed(ticket, user_id, now, repeated=repeated)
    elif isinstance(error, StatusError):
        limiter.granted(ticket, now)
    else:
        limiter.abandoned(ticket, now)
