"""Reports a run to monitoring: a log line at its end, and a span and metrics for OpenTelemetry.

The metrics are read only when they are collected, so they add no cost to a call. If OpenTelemetry's
API is not installed, there is only the log line. docs/observability.md describes all of them.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Final, get_args
from urllib.parse import urlsplit

from monocloud_async.endpoint import BulkOperation
from monocloud_async.outcome import BulkReport, Status
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

_STATUSES: Final = get_args(Status)
_COUNTERS: Final = {
    "requests": ("{request}", "Requests that bulk runs sent."),
    "retries": ("{request}", "Requests that were sent again after a passing failure."),
    "throttled": ("{request}", "Requests that the tenant answered with 429."),
    "paused_seconds": ("s", "How long bulk runs stood still, for a 429 or an outage."),
}

logger = logging.getLogger("monocloud_async")


@contextmanager
def observe(operation: BulkOperation, report: BulkReport, limiter: RateLimiter) -> Iterator[None]:
    """Report this run while the context is open, and log a line when it ends."""
    instruments = _instruments()
    try:
        with (
            nullcontext()
            if instruments is None
            else instruments.observe(operation, report, limiter)
        ):
            yield
    finally:
        counts = _counts(report)
        summary = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
        extra = {"tenant": limiter.tenant, "seconds": round(report.seconds, 3), **counts}
        logger.info(
            "a run ended after %.1f s: %s", report.seconds, summary or "nobody", extra=extra
        )


def _counts(report: BulkReport) -> dict[str, float]:
    return {name: round(getattr(report, name), 3) for name in (*_STATUSES, *_COUNTERS)}


@cache
def _instruments() -> "_Instruments | None":
    try:
        return _Instruments()
    except ImportError:
        return None


class _Instruments:
    """The metrics of all runs of this process; ended runs still count, as counters never shrink.

    Names are MonoCloud's, and OpenTelemetry's where it has one
    (https://opentelemetry.io/docs/specs/semconv/registry/attributes/server/).
    """

    def __init__(self) -> None:
        from opentelemetry import metrics, trace  # noqa: PLC0415  they may not be installed

        self._observation = metrics.Observation
        self._span = trace.get_tracer("monocloud_async", __version__).start_as_current_span
        self._runs: list[tuple[BulkReport, RateLimiter]] = []
        self._over: Counter[tuple[str, str]] = (
            Counter()
        )  # the counts of ended runs, by tenant and name
        self._lock = threading.Lock()  # metrics are collected in another thread
        meter = metrics.get_meter("monocloud_async", __version__)
        meter.create_observable_counter(
            "monocloud.users", [self._users], "{user}", "Users of bulk runs, by outcome."
        )
        for name, (unit, what) in _COUNTERS.items():
            meter.create_observable_counter(
                f"monocloud.{name}", [partial(self._counted, name)], unit, what
            )
        meter.create_observable_gauge(
            "monocloud.rate", [self._rates], "{request}/s", "What the tenant grants, if known."
        )
        meter.create_observable_gauge(
            "monocloud.paused", [self._pauses], "1", "1 while nobody is sent, else 0."
        )

    @contextmanager
    def observe(
        self, operation: BulkOperation, report: BulkReport, limiter: RateLimiter
    ) -> Iterator[None]:
        """Open a span for the run, and include the run in the metrics."""
        run = report, limiter
        span_name = f"monocloud.bulk_{operation.name}"
        with self._span(span_name, attributes=_where(limiter.tenant)) as span:
            self._runs.append(run)
            try:
                yield
            finally:
                counts = _counts(report)
                with self._lock:
                    self._runs = [other for other in self._runs if other[0] is not report]
                    self._over.update({(limiter.tenant, name): n for name, n in counts.items()})
                span.set_attributes({f"monocloud.{name}": n for name, n in counts.items()})

    def _sums(self, name: str) -> dict[str, float]:
        """Return this count for each tenant, over all runs."""
        with self._lock:
            sums = Counter(
                {tenant: n for (tenant, known), n in self._over.items() if known == name}
            )
            for report, limiter in self._runs:
                sums[limiter.tenant] += getattr(report, name)
        return dict(sums)

    def _counted(self, name: str, _options: "CallbackOptions") -> "Iterable[Observation]":
        for tenant, n in self._sums(name).items():
            yield self._observation(n, _where(tenant))

    def _users(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        for status in _STATUSES:
            for tenant, n in self._sums(status).items():
                yield self._observation(n, {**_where(tenant), "monocloud.status": status})

    def _rates(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        for _, limiter in self._runs:
            if limiter.rate is not None:
                yield self._observation(limiter.rate, _where(limiter.tenant))

    def _pauses(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        for _, limiter in self._runs:
            yield self._observation(int(limiter.state == "paused"), _where(limiter.tenant))


def _where(tenant: str) -> dict[str, str]:
    return {"server.address": urlsplit(tenant).hostname or tenant}
