"""The service of day.py: the recipes of docs/examples for single calls and a job, with metrics.

Each process writes its metrics into the folder `FIGURES`, twice a second and when it ends.
"""

import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "examples"))

import job_fastapi
import web_fastapi
from fastapi import FastAPI
from job import Job
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from monocloud_async import MonoCloudError, MonoCloudSession

LATE = 5.25  # seconds: the deadline of the callers, and what a busy machine may add
FIGURES = Path(os.environ["FIGURES"], f"{os.getpid()}-{time.time_ns()}.json")


class ToFile(MetricExporter):
    """Adds the gauges and the counters of this process to its file, as a line of JSON."""

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any
    ) -> MetricExportResult:
        points = [
            (
                *(metric.name, *sorted(map(str, (point.attributes or {}).values()))),
                point.count if isinstance(point, HistogramDataPoint) else point.value,
            )
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == "monocloud_async"
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        late = sum(
            point.bucket_counts[-1]
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        )
        with FIGURES.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"late": late, "points": points}) + "\n")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None: ...


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any], None]:
    view = View(
        instrument_name="monocloud.call.duration",
        aggregation=ExplicitBucketHistogramAggregation([LATE]),
    )
    provider = MeterProvider([PeriodicExportingMetricReader(ToFile(), 500)], views=[view])
    metrics.set_meter_provider(provider)
    session = MonoCloudSession()
    job = Job(session, Path(os.environ["JOBS"]))
    job.resume()
    try:
        yield {"session": session, "job": job}
    finally:
        await session.close(drain=job_fastapi.SHUTDOWN)
        await job.ended()
        provider.shutdown()


app = FastAPI(lifespan=lifespan)
for part in (web_fastapi.app, job_fastapi.app):
    app.router.routes += [
        route for route in part.routes if route.path.startswith(("/users/{", "/job"))
    ]
app.add_exception_handler(MonoCloudError, web_fastapi.refused)
