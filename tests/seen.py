"""What OpenTelemetry recorded, for tests."""

from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult

Figures = dict[tuple[str, ...], float]


class Switch(Sampler):
    """Samples all or nothing: tests that do not look at spans should not keep theirs in memory."""

    def __init__(self) -> None:
        self.on = False

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return (ALWAYS_ON if self.on else ALWAYS_OFF).should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "Switch"


class Seen:
    """What OpenTelemetry recorded; it allows only one provider per process, so this is shared."""

    def __init__(self) -> None:
        self._spans, self._figures = InMemorySpanExporter(), InMemoryMetricReader()
        self.switch = Switch()
        self.tracing = TracerProvider(sampler=self.switch)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        trace.set_tracer_provider(self.tracing)
        metrics.set_meter_provider(MeterProvider([self._figures, PrometheusMetricReader()]))

    def spans(self) -> dict[str, list[ReadableSpan]]:
        """Return the spans that ended since the last call, by name."""
        spans: dict[str, list[ReadableSpan]] = {}
        for span in self._spans.get_finished_spans():
            spans.setdefault(span.name, []).append(span)
        self._spans.clear()
        return spans

    def figures(self) -> Figures:
        """Return all metrics of this package, by name and attribute; of durations, how many."""
        data = self._figures.get_metrics_data()
        return {
            (metric.name, *sorted(map(str, (point.attributes or {}).values()))): (
                point.count if isinstance(point, HistogramDataPoint) else point.value
            )
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            if scope.scope.name == "monocloud_async"
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint | HistogramDataPoint)
        }
