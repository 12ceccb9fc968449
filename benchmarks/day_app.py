"""The service of day.py: the recipes of docs/examples for single calls and a job, with metrics.

Each process writes its metrics into the folder `FIGURES`, twice a second and when it ends.
"""

import asyncio
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
from job import job_of
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from monocloud_async import MonoCloudSession

BOUNDS = [5 + n / 20 for n in range(100)]  # seconds, from the deadline of the callers on
FIGURES = Path(os.environ["FIGURES"], f"{os.getpid()}-{time.time_ns()}.json")


class ToFile(MetricExporter):
    """Adds the metrics of this process to its file, as a line of JSON."""

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
            if isinstance(point, HistogramDataPoint | NumberDataPoint)
        ]
        longer = [
            (bound, n)
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
            for bound, n in zip(point.explicit_bounds, point.bucket_counts[1:], strict=True)
            if n
        ]
        with FIGURES.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"lag": Lag.longest, "longer": longer, "points": points}) + "\n")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None: ...


class Lag:
    """How long the event loop kept a task waiting, at most."""

    longest = 0.0

    @classmethod
    async def watch(cls) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(0.01)
            cls.longest = max(cls.longest, clock() - before - 0.01)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any], None]:
    view = View(
        instrument_name="monocloud.call.duration",
        aggregation=ExplicitBucketHistogramAggregation(BOUNDS),
    )
    provider = MeterProvider([PeriodicExportingMetricReader(ToFile(), 500)], views=[view])
    metrics.set_meter_provider(provider)
    session = MonoCloudSession()
    watching = asyncio.create_task(Lag.watch())
    try:
        async with job_of(session, Path(os.environ["JOBS"])) as job:
            yield {"session": session, "job": job}
    finally:
        watching.cancel()
        provider.shutdown()


app = web_fastapi.app
app.router.lifespan_context = lifespan
app.post("/job", status_code=202)(job_fastapi.start)
app.get("/job")(job_fastapi.progress)
