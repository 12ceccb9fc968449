"""The instruments of this process for OpenTelemetry, which all its sessions share.

All but the durations of calls are computed when they are collected. OpenTelemetry allows only one
instrument of a name, and its counters only grow, so they include sessions and runs that ended.
Names are MonoCloud's, or OpenTelemetry's if it has one
(https://opentelemetry.io/docs/specs/semconv/http/).
"""

import logging
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Final, get_args
from urllib.parse import urlsplit

from monocloud_async.outcome import BulkReport, Status
from monocloud_async.ratelimit.limiter import RateLimiter, current_time
from monocloud_async.retry import RetryBudget
from monocloud_async.version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

STATUSES: Final = get_args(Status)
# Of runs and of single calls. Those of a run are attributes of its report.
_REQUESTS: Final = {
    "requests": ("{request}", "Requests that were sent."),
    "retries": ("{request}", "Requests that were sent again after a transient failure."),
    "throttled": ("{request}", "Requests that the tenant answered with 429."),
}
_PAUSED: Final = "paused_seconds"
# Seconds: those of OpenTelemetry's durations of HTTP requests, and up to the longest call.
_BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60)
_API: Final = "opentelemetry.metrics"

Counts = dict[str, int]

_loading: Final = threading.Lock()  # sessions may begin in several threads at once

logger = logging.getLogger("monocloud_async")


class Gauges:
    """What the gauges show of one session: its limiter, and its budget for retries.

    Args:
        limiter: the rate limiter of the session.
        budget: the retries of its single calls.
        share: the share of retries in its calls that its policy allows.
    """

    def __init__(self, limiter: RateLimiter, budget: RetryBudget, share: float) -> None:
        self.limiter = limiter
        self._budget = budget
        self._share = share

    def rate(self) -> float | None:
        """The rate that the tenant allows, if known."""
        return self.limiter.rate

    def waiting(self) -> int:
        """How many requests wait in the queue."""
        return self.limiter.waiting

    def paused(self) -> int:
        """1 while no requests are sent, else 0."""
        return int(self.limiter.holds_back)

    def down(self) -> int:
        """1 while no requests are sent because the tenant is down, else 0."""
        return int(self.limiter.down and self.limiter.holds_back)

    def retry_budget(self) -> float:
        """How many retries single calls may make now."""
        return self._budget.left(self._share, current_time())


class _Gauge:
    """How a gauge is shown: `choose` selects its value if a tenant has several sessions."""

    def __init__(
        self,
        unit: str,
        what: str,
        read: Callable[[Gauges], float | None],
        choose: Callable[[float, float], float] = max,
    ) -> None:
        self.unit = unit
        self.what = what
        self.read = read
        self.choose = choose


_GAUGES: Final = {
    "rate": _Gauge("{request}/s", "Rate that the tenant allows, if known.", Gauges.rate),
    "waiting": _Gauge("{request}", "Requests that wait in the queue.", Gauges.waiting),
    "paused": _Gauge("{tenant}", "1 while no requests are sent, else 0.", Gauges.paused),
    "down": _Gauge("{tenant}", "1 while the tenant is down, else 0.", Gauges.down),
    "retry_budget": _Gauge(
        "{request}", "Retries that single calls may make now.", Gauges.retry_budget, min
    ),
}


def counts(report: BulkReport) -> dict[str, float]:
    """Return all counts of a run, by name."""
    return {name: round(getattr(report, name), 3) for name in (*STATUSES, *_REQUESTS, _PAUSED)}


def address(tenant: str) -> str:
    """Return the host of a tenant, as OpenTelemetry's `server.address`."""
    return urlsplit(tenant).hostname or tenant


@cache
def _load() -> "Instruments | None":
    """Return the instruments, or None without a usable API of OpenTelemetry."""
    try:
        return Instruments()
    except ImportError:
        return None
    except TypeError as error:
        logger.warning("no spans and metrics: opentelemetry-api 1.30 is needed (%s)", error)
        return None


def loaded() -> "Instruments | None":
    """Return the instruments if the application has loaded OpenTelemetry, which takes 0.1 s."""
    if _API not in sys.modules:
        return None
    with _loading:
        return _load()


class Instruments:
    """The instruments of this process."""

    def __init__(self) -> None:
        from opentelemetry import context, metrics, trace  # noqa: PLC0415  optional dependencies

        self.trace = trace
        self.context = context
        self.tracer = trace.get_tracer("monocloud_async", __version__)
        self._observation = metrics.Observation
        self._runs: list[tuple[BulkReport, str]] = []  # and the address
        self._ended: Counter[tuple[str, str]] = Counter()  # of runs, by address and name
        self._calls: dict[str, Counts] = {}  # of single calls, by address
        self._refusals: Counter[tuple[str, str]] = Counter()  # by address and reason
        self._sessions = weakref.WeakSet[Gauges]()  # open ones
        self._lock = threading.Lock()  # metrics are collected in another thread
        meter = metrics.get_meter("monocloud_async", __version__)
        self.duration = meter.create_histogram(
            "monocloud.call.duration",
            "s",
            "Time of single calls, with their waits and retries.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        meter.create_observable_counter(
            "monocloud.refusals",
            [self._observe_refusals],
            "{call}",
            "Single calls that failed before anything was sent.",
        )
        meter.create_observable_counter(
            "monocloud.users", [self._observe_users], "{user}", "Users of bulk runs, by outcome."
        )
        meter.create_observable_counter(
            f"monocloud.{_PAUSED}",
            [self._observe_pauses],
            "s",
            "How long bulk runs were paused by a 429 or an outage.",
        )
        for name, (unit, what) in _REQUESTS.items():
            meter.create_observable_counter(
                f"monocloud.{name}", [partial(self._observe_requests, name)], unit, what
            )
        for name, gauge in _GAUGES.items():
            meter.create_observable_gauge(
                f"monocloud.{name}", [partial(self._observe_gauge, gauge)], gauge.unit, gauge.what
            )

    def watch(self, session: Gauges) -> None:
        """Show the gauges of this session, for as long as it exists."""
        with self._lock:
            self._sessions.add(session)

    def unwatch(self, session: Gauges) -> None:
        """Show them no longer: the session is closed."""
        with self._lock:
            self._sessions.discard(session)

    def counts_of_calls(self, address: str) -> Counts:
        """Return the counts of single calls to this address."""
        with self._lock:
            return self._calls.setdefault(address, dict.fromkeys(_REQUESTS, 0))

    def count_call(self, counts: Counts, requests: int, retries: int, throttled: int) -> None:
        """Count the requests of a single call."""
        with self._lock:
            counts["requests"] += requests
            if retries or throttled:
                counts["retries"] += retries
                counts["throttled"] += throttled

    def count_refusal(self, address: str, reason: str) -> None:
        """Count a single call that failed before anything was sent."""
        with self._lock:
            self._refusals[address, reason] += 1

    @contextmanager
    def run(self, name: str, report: BulkReport, tenant: str) -> Iterator[None]:
        """Open a span for the run, and add its metrics to those of all runs."""
        where = address(tenant)
        attributes = {"server.address": where}
        with self.tracer.start_as_current_span(
            f"monocloud.bulk_{name}",
            attributes=attributes,
            record_exception=False,  # its traceback has the id of a user
            set_status_on_exception=False,
        ) as span:
            with self._lock:
                self._runs.append((report, where))
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error.__cause__ or error).__name__)
                failed = self.trace.Status(self.trace.StatusCode.ERROR, type(error).__name__)
                span.set_status(failed)
                raise
            finally:
                figures = counts(report)
                with self._lock:
                    self._runs = [other for other in self._runs if other[0] is not report]
                    self._ended.update({(where, name): n for name, n in figures.items()})
                span.set_attributes({f"monocloud.{name}": n for name, n in figures.items()})

    def _sums_of_runs(self, name: str) -> dict[str, float]:
        """Return the sums of this count by address."""
        with self._lock:
            sums = Counter({where: n for (where, known), n in self._ended.items() if known == name})
            for report, where in self._runs:
                sums[where] += getattr(report, name)
        return dict(sums)

    def _observe(self, value: float, where: str, **attributes: str) -> "Observation":
        named = {f"monocloud.{name}": text for name, text in attributes.items()}
        return self._observation(value, {"server.address": where, **named})

    def _observe_users(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        for status in STATUSES:
            for where, n in self._sums_of_runs(status).items():
                yield self._observe(n, where, status=status)

    def _observe_pauses(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        for where, n in self._sums_of_runs(_PAUSED).items():
            yield self._observe(n, where)

    def _observe_requests(self, name: str, _options: "CallbackOptions") -> "Iterable[Observation]":
        for where, n in self._sums_of_runs(name).items():
            yield self._observe(n, where, kind="run")
        with self._lock:
            sums = [(where, counts[name]) for where, counts in self._calls.items()]
        for where, n in sums:
            yield self._observe(n, where, kind="call")

    def _observe_refusals(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        with self._lock:
            refusals = list(self._refusals.items())
        for (where, reason), n in refusals:
            yield self._observe(n, where, reason=reason)

    def _observe_gauge(self, gauge: _Gauge, _options: "CallbackOptions") -> "Iterable[Observation]":
        with self._lock:
            sessions = list(self._sessions)
        values: dict[str, float] = {}
        for session in sessions:
            if (value := gauge.read(session)) is not None:
                where = address(session.limiter.tenant)
                values[where] = gauge.choose(value, values.get(where, value))
        for where, value in values.items():
            yield self._observe(value, where)
