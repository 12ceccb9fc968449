"""The telemetry of a run: a log line, and a span and metrics for OpenTelemetry.

Metrics are computed when they are collected, so they add no cost to a call. Until the application
loads OpenTelemetry, there is only the log line. docs/observability.md shows everything.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from monocloud_async.endpoint import BulkOperation
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.telemetry import instruments

logger = logging.getLogger("monocloud_async")


@contextmanager
def observe(operation: BulkOperation, report: BulkReport, limiter: RateLimiter) -> Iterator[None]:
    """Observe the run while the context is open."""
    exporting = instruments.loaded()
    try:
        with (
            nullcontext()
            if exporting is None
            else exporting.run(operation.name, report, limiter.tenant)
        ):
            yield
    finally:
        counts = instruments.counts(report)
        shown = [f"{counts[name]} {name}" for name in instruments.STATUSES if counts[name]]
        extra = {"tenant": limiter.tenant, "seconds": round(report.seconds, 3), **counts}
        summary = ", ".join(shown) or "nobody"
        logger.info("a run ended after %.1f s: %s", report.seconds, summary, extra=extra)
