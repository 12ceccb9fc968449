"""The telemetry of runs and sessions: log lines, and spans and metrics for OpenTelemetry.

Metrics are computed when they are collected, so they add no cost to a call. Without OpenTelemetry's
API, there is only the log line. docs/observability.md shows everything.
"""

import logging
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    "retries": ("{request}", "Requests that were sent again after a transient failure."),
    "throttled": ("{request}", "Requests that the tenant answered with 429."),
    "paused_seconds": ("s", "How long bulk runs were paused by a 429 or an outage."),
}
_GAUGES: Final[dict[str, tuple[str, str, Callable[[RateLimiter], float | None]]]] = {
    "rate": ("{request}/s", "Rate that the tenant allows, if known.", lambda own: own.rate),
    "waiting": ("{request}", "Requests that wait in the queue.", lambda own: own.waiting),
    "paused": (
        "1",
        "1 while no requests are sent, else 0.",
        lambda own: int(own.state == "paused"),
    ),
    "down": ("1", "1 while the tenant is down, else 0.", lambda own: int(own.down)),
}

logger = logging.getLogger("monocloud_async")


@contextmanager
def observe(operation: BulkOperation, report: BulkReport, limiter: RateLimiter) -> Iterator[None]:
    """Observe the run while the context is open."""
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


def watch(limiter: RateLimiter) -> None:
    """Show the gauges of a session from now on, for as long as its limiter exists.

    Only where the application has loaded OpenTelemetry: to import it takes a tenth of a second.
    """
    if "opentelemetry.metrics" in sys.modules and (instruments := _instruments()) is not None:
        instruments.watch(limiter)


def unwatch(limiter: RateLimiter) -> None:
    """Show the gauges of this session no longer: it is closed."""
    if "opentelemetry.metrics" in sys.modules and (instruments := _instruments()) is not None:
        instruments.unwatch(limiter)


def _counts(report: BulkReport) -> dict[str, float]:
    return {name: round(getattr(report, name), 3) for name in (*_STATUSES, *_COUNTERS)}


@cache
def _instruments() -> "_Instruments | None":
    try:
        return _Instruments()
    except ImportError:
        return None


class _Instruments:
    """The runs of this process, including ended ones, because OpenTelemetry's counters only grow.

    Names are MonoCloud's, or OpenTelemetry's if it has one
    (https://opentelemetry.io/docs/specs/semconv/registry/attributes/server/).
    """

    def __init__(self) -> None:
        from opentelemetry import metrics, trace  # noqa: PLC0415  optional dependencies

        self._observation = metrics.Observation
        self._span = trace.get_tracer("monocloud_async", __version__).start_as_current_span
        self._runs: list[tuple[BulkReport, RateLimiter]] = []
        self._limiters = weakref.WeakSet[RateLimiter]()  # of open sessions
        self._over: Counter[tuple[str, str]] = Counter()  # by tenant and name
        self._lock = threading.Lock()  # metrics are collected in another thread
        meter = metrics.get_meter("monocloud_async", __version__)
        meter.create_observable_counter(
            "monocloud.users", [self._users], "{user}", "Users of bulk runs, by outcome."
        )
        for name, (unit, what) in _COUNTERS.items():
            meter.create_observable_counter(
                f"monocloud.{name}", [partial(self._counted, name)], unit, what
            )
        for name, (unit, what, read) in _GAUGES.items():
            meter.create_observable_gauge(
                f"monocloud.{name}", [partial(self._gauge, read)], unit, what
            )

    def watch(self, limiter: RateLimiter) -> None:
        """Show the gauges of this limiter."""
        with self._lock:
            self._limiters.add(limiter)

    def unwatch(self, limiter: RateLimiter) -> None:
        """Show them no longer."""
        with self._lock:
            self._limiters.discard(limiter)

    @contextmanager
    def observe(
        self, operation: BulkOperation, report: BulkReport, limiter: RateLimiter
    ) -> Iterator[None]:
        """Open a span for the run, and add its metrics to those of all runs."""
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
        """Return the sums of this count by tenant."""
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

    def _gauge(
        self, read: Callable[[RateLimiter], float | None], _options: "CallbackOptions"
    ) -> "Iterable[Observation]":
        with self._lock:
            limiters = {*self._limiters, *(limiter for _, limiter in self._runs)}
        most: dict[str, float] = {}  # of the sessions of a tenant
        for limiter in limiters:
            if (value := read(limiter)) is not None:
                most[limiter.tenant] = max(value, most.get(limiter.tenant, value))
        for tenant, value in most.items():
            yield self._observation(value, _where(tenant))


def _where(tenant: str) -> dict[str, str]:
    return {"server.address": urlsplit(tenant).hostname or tenant}
