"""What OpenTelemetry recorded, for tests."""

from collections.abc import Sequence

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Figures = dict[tuple[str, ...], float]


class Spans(InMemorySpanExporter):
    """Keeps spans only while a test looks at them: those of all others would fill the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return super().export(spans) if self.on else SpanExportResult.SUCCESS


class Seen:
    """What OpenTelemetry recorded; it allows only one provider per process, so this is shared."""

    def __init__(self) -> None:
        self.exporter, self._figures = Spans(), InMemoryMetricReader()
        self.tracing = TracerProvider()
        self.tracing.add_span_processor(SimpleSpanProcessor(self.exporter))
        trace.set_tracer_provider(self.tracing)
        metrics.set_meter_provider(MeterProvider([self._figures, PrometheusMetricReader()]))

    def spans(self) -> dict[str, list[ReadableSpan]]:
        """Return the spans that ended since the last call, by name."""
        spans: dict[str, list[ReadableSpan]] = {}
        for span in self.exporter.get_finished_spans():
            spans.setdefault(span.name, []).append(span)
        self.exporter.clear()
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
