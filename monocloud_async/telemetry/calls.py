"""The telemetry of single calls: a span for each, and metrics, for OpenTelemetry.

A span is that of OpenTelemetry's conventions for HTTP clients, one for the whole call with its
retries and waits (https://opentelemetry.io/docs/specs/semconv/http/http-spans/). The user id is
personal data, so it is in no name and no attribute. Nothing is observed until the application loads
OpenTelemetry.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from monocloud_async.endpoint import Operation
from monocloud_async.errors import (
    InvalidResponseError,
    MonoCloudError,
    RateLimitedError,
    StatusError,
    TransportError,
)
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.admission_queue import AdmissionQueue
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.retry import RetryBudget
from monocloud_async.telemetry import instruments
from monocloud_async.telemetry.instruments import Counts, Gauges, Instruments

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    Attributes = dict[str, str | int | float]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_OK: Final = 200
_OF_DURATIONS: Final = ("monocloud.outcome", "error.type")

Sleep = Callable[[float], Awaitable[None]]


class Call:
    """The observer of a call, which does nothing without OpenTelemetry."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record the end of the call."""

    def queues(self, queue: AdmissionQueue) -> None:
        """Record that a request is about to enter the queue, where it may have to wait."""

    def sends(self) -> None:
        """Record that a request is sent now."""

    def failed(self, error: BaseException) -> None:
        """Record that the last request failed."""

    def sleeps(self, sleep: Sleep) -> Sleep:
        """Return a function that sleeps before a retry."""
        return sleep


_NOT_OBSERVED: Final = Call()


class CallOfRun(Call):
    """A call that a run makes for all its users: its requests count as the run's.

    Args:
        report: the report of the run.
    """

    def __init__(self, report: BulkReport) -> None:
        self._report = report
        self._error: BaseException | None = None  # of the last request
        self._is_retry = False

    def sends(self) -> None:
        """Count a request."""
        self._is_retry = self._error is not None and not isinstance(self._error, RateLimitedError)
        self._report.requests += 1
        self._report.retries += self._is_retry

    def failed(self, error: BaseException) -> None:
        """Count a 429, or take back what was not sent."""
        if isinstance(error, MonoCloudError) and error.refusal:  # after all, it was not sent
            self._report.requests -= 1
            self._report.retries -= self._is_retry
            return
        self._error = error
        self._report.throttled += isinstance(error, RateLimitedError)


class SessionTelemetry:
    """The telemetry of a session and its single calls.

    Args:
        limiter: the rate limiter of the session.
        budget: the retries of its single calls.
        share: the share of retries in its calls that its policy allows.
    """

    def __init__(self, limiter: RateLimiter, budget: RetryBudget, share: float) -> None:
        self.limiter = limiter
        self.address = instruments.address(limiter.tenant)
        self._gauges = Gauges(limiter, budget, share)
        self._instruments: Instruments | None = None
        self.counts: Counts = {}
        self._open = True
        self._known: dict[Operation[Any], _Known] = {}
        self._watch()

    def call(self, operation: Operation[Any]) -> Call:
        """Return the observer of a call, which is a context manager."""
        exporting = self._instruments or self._watch()
        if exporting is None:
            return _NOT_OBSERVED
        known = self._known.get(operation)
        if known is None:
            known = self._known[operation] = _Known(operation, self.limiter.tenant)
        return _ObservedCall(exporting, self, known)

    def run_begins(self) -> None:
        """Show the gauges, if OpenTelemetry was loaded after the session was made."""
        if self._instruments is None:
            self._watch()

    def end(self) -> None:
        """Show the gauges no longer: the session is closed."""
        self._open = False
        if self._instruments is not None:
            self._instruments.unwatch(self._gauges)

    def _watch(self) -> Instruments | None:
        """Show the gauges, and return the instruments, if OpenTelemetry is loaded."""
        exporting = self._instruments = instruments.loaded()
        if exporting is not None:
            self.counts = exporting.counts_of_calls(self.address)
            if self._open:
                exporting.watch(self._gauges)
        return exporting


class _Known:
    """What all calls of an operation have in common: the name and the attributes of their spans."""

    def __init__(self, operation: Operation[Any], tenant: str) -> None:
        url = urlsplit(tenant)
        where = instruments.address(tenant)
        self.name = f"{operation.method} {operation.template}"
        self.span: Attributes = {
            "http.request.method": operation.method,
            "server.address": where,
            "server.port": url.port or _DEFAULT_PORTS.get(url.scheme, 0),
            "url.full": tenant + re.sub(r"{\w+}", "REDACTED", operation.template),
            "url.template": operation.template,
        }
        self.call: Attributes = {"server.address": where, "monocloud.operation": operation.name}
        self.succeeded: Attributes = {**self.call, "monocloud.outcome": "ok"}


class _ObservedCall(Call):
    """A single call with its span, if the trace is sampled, and its figures."""

    # On the class, because most calls change none of these.
    _requests = _retries = _throttled = 0
    _is_retry = False  # the last request
    _error: BaseException | None = None  # of the last request
    _may_have_succeeded = False  # a request got no response
    _span: "Span | None" = None  # if it is recorded
    _token: Any = None
    _waits = False  # in the queue
    _waits_since = 0.0
    _paused_before = 0.0

    def __init__(
        self, exporting: Instruments, session: "SessionTelemetry", known: "_Known"
    ) -> None:
        self._exporting = exporting
        self._session = session
        self._known = known

    def __enter__(self) -> Self:
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        trace = self._exporting.trace
        parent = trace.get_current_span()
        if parent is not trace.INVALID_SPAN and _is_left_out(parent):
            return self  # to ask the sampler again would cost more than all of this
        span = self._exporting.tracer.start_span(
            self._known.name, kind=trace.SpanKind.CLIENT, attributes=self._known.span
        )
        if span is trace.INVALID_SPAN:  # without a provider
            return self
        context_api = self._exporting.context
        self._token = context_api.attach(trace.set_span_in_context(span))
        if span.is_recording():
            self._span = span
        return self

    def queues(self, queue: AdmissionQueue) -> None:
        if self._span is not None:
            now = self._waits_since = self._clock()
            self._waits = queue.must_wait(now)
            self._paused_before = queue.limiter.paused_seconds(now)

    def sends(self) -> None:
        if self._requests:
            self._is_retry = not isinstance(self._error, RateLimitedError)
            self._retries += self._is_retry
        self._requests += 1
        if self._span is not None:
            if self._waits:
                self._note_wait(self._span)
            if self._error is not None:
                self._span.add_event("monocloud.resend", _fault(self._error))
            self._waits = False

    def failed(self, error: BaseException) -> None:
        is_refusal = isinstance(error, MonoCloudError) and error.refusal != ""
        if is_refusal or (isinstance(error, TransportError) and not error.sent):
            self._requests -= 1  # after all, it was not sent
            self._retries -= self._is_retry
            self._is_retry = False
        if is_refusal:
            return
        self._error = error
        self._throttled += isinstance(error, RateLimitedError)
        self._may_have_succeeded |= isinstance(error, TransportError) and error.sent

    def sleeps(self, sleep: Sleep) -> Sleep:
        if self._span is None:
            return sleep
        span = self._span

        async def observed(seconds: float) -> None:
            began = self._clock()
            try:
                await sleep(seconds)
            finally:
                slept = {"monocloud.seconds": self._clock() - began}
                span.add_event("monocloud.backoff", slept)

        return observed

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        exporting, session = self._exporting, self._session
        if self._token is not None and kind is not GeneratorExit:  # which comes in another context
            exporting.context.detach(self._token)
        attributes = self._known.succeeded
        if error is not None:
            result = self._result(error)
            attributes = self._known.call | {name: result[name] for name in _OF_DURATIONS}
            if self._error is None and not self._requests and isinstance(error, MonoCloudError):
                exporting.count_refusal(session.address, str(result["error.type"]))
        exporting.count_call(session.counts, self._requests, self._retries, self._throttled)
        exporting.duration.record(self._clock() - self._began, attributes)
        if self._span is not None:
            self._end(self._span, error)
        self._error = None  # or its traceback would keep it until a garbage collection

    def _result(self, error: BaseException) -> "Attributes":
        """Return how the call ended: by its last request, if any was sent."""
        if not isinstance(error, MonoCloudError):
            is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            outcome = "cancelled" if is_cancelled else "failed"
            return {"monocloud.outcome": outcome, "error.type": type(error).__name__}
        if self._error is None and not self._requests:
            reason = error.refusal or type(error).__name__
            return {"monocloud.outcome": "refused", "error.type": reason}
        decisive = self._error or error
        # As in a run, only a final refusal settles an earlier request that got no response.
        is_final = isinstance(decisive, StatusError) and not decisive.transient
        is_unknown = self._may_have_succeeded and not is_final
        return {"monocloud.outcome": "unknown" if is_unknown else "failed", **_fault(decisive)}

    def _note_wait(self, span: "Span") -> None:
        now = self._clock()
        paused = self._session.limiter.paused_seconds(now) - self._paused_before
        seconds = {"monocloud.seconds": now - self._waits_since, "monocloud.paused_seconds": paused}
        span.add_event("monocloud.wait", seconds)

    def _end(self, span: "Span", error: BaseException | None) -> None:
        trace = self._exporting.trace
        if self._requests > 1:
            span.set_attribute("http.request.resend_count", self._requests - 1)
        if error is None:
            span.set_attribute("http.response.status_code", _OK)
        else:
            if self._waits:
                self._note_wait(span)
            span.set_attributes(self._result(error))
            # Only a text without a user id.
            what = error.args[0] if isinstance(error, TransportError) else None
            span.set_status(trace.Status(trace.StatusCode.ERROR, what))
        span.end()


def _is_left_out(parent: "Span") -> bool:
    """Return whether the trace of this span, which is of this process, is not sampled."""
    context = parent.get_span_context()
    return (
        not context.is_remote
        and context.is_valid
        and not parent.is_recording()
        and not context.trace_flags.sampled  # a sampled span that has ended does not record either
    )


def _fault(error: BaseException) -> "Attributes":
    """Return the attributes of an error that OpenTelemetry's conventions name."""
    if isinstance(error, StatusError) and not error.refusal:
        fault: Attributes = {
            "error.type": str(error.status),
            "http.response.status_code": error.status,
        }
        if error.trace_id is not None:
            fault["monocloud.trace_id"] = error.trace_id
        return fault
    if isinstance(error, InvalidResponseError) and error.status is not None:
        return {"error.type": type(error).__name__, "http.response.status_code": error.status}
    return {"error.type": type(error).__name__}
