"""A bulk run with spans and metrics through OpenTelemetry, and logs as JSON through structlog.

Here, spans and metrics go to stdout. With the package opentelemetry-exporter-otlp, use its
OTLPSpanExporter and OTLPMetricExporter instead of the two for the console.
"""

import asyncio
import logging
import sys

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from monocloud_async import MonoCloudSession


def observe() -> None:
    """Set up telemetry; call this once, before the first session is opened."""
    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(tracing)
    figures = PeriodicExportingMetricReader(ConsoleMetricExporter())
    metrics.set_meter_provider(MeterProvider([figures]))

    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[lines])


async def main() -> None:
    """Enable the ids of the command line; domain and key come from the environment."""
    async with MonoCloudSession() as session:
        report = await session.bulk_enable(sys.argv[1:])
        print(report.enabled, "enabled")


if __name__ == "__main__":
    observe()
    asyncio.run(main())
