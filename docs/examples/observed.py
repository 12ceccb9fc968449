"""A bulk run that is seen: spans and figures through OpenTelemetry, logs as JSON through structlog.

Spans and figures go to stdout here. With the package opentelemetry-exporter-otlp, put its
OTLPSpanExporter and OTLPMetricExporter in the place of the two for the console.
"""

import asyncio
import logging
import sys

import structlog
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from monocloud_async import MonoCloudSession


def observe() -> None:
    """Called once, before the first session is opened."""
    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(tracing)
    figures = PeriodicExportingMetricReader(ConsoleMetricExporter())
    metrics.set_meter_provider(MeterProvider([figures]))
    AioHttpClientInstrumentor().instrument()  # a span and a duration for every request

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
    """Domain and key come from the environment, the ids from the command line."""
    async with MonoCloudSession() as session:
        report = await session.bulk_enable(sys.argv[1:])
        print(report.enabled, "enabled")


if __name__ == "__main__":
    observe()
    asyncio.run(main())
