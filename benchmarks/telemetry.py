"""What OpenTelemetry costs a single call, in CPU time.

    python benchmarks/telemetry.py [--calls N] [--rounds N]

The calls are the real ones, but for the network: a transport in memory answers at once. Each setup
has a process of its own, because a process has one provider, and they take turns. A figure is the
minimum of the rounds, because whatever else the machine does only adds to it.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext

from web_server import ID, body

from monocloud_async import MonoCloudSession
from monocloud_async.endpoint import Operation
from monocloud_async.response import Response
from monocloud_async.transport.time_slice import TimeSlice

BODY = body(ID).encode()


class Instant:
    """A transport without a network."""

    async def send(
        self,
        operation: Operation[object],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> Response:
        return Response(200, {}, BODY, bool)

    def close(self) -> None: ...


class Session(MonoCloudSession):
    def _transport_in_place(self) -> Instant:
        return Instant()


async def measure(calls: int, within: AbstractContextManager[object]) -> float:
    async with Session("acme.eu.monocloud.com", "k") as session:
        for _ in range(1000):
            await session.enable_user(ID)
        with within:
            began = time.thread_time()
            for _ in range(calls):
                await session.enable_user(ID)
            return 1e6 * (time.thread_time() - began) / calls


def nothing() -> AbstractContextManager[object]:
    return nullcontext()


def api() -> AbstractContextManager[object]:
    import opentelemetry.metrics
    import opentelemetry.trace  # noqa: F401  to load it is all

    return nullcontext()


def tracer(share: float, *, request: bool) -> AbstractContextManager[object]:
    """A tracer that samples this share of traces; with `request`, inside a span."""
    from opentelemetry import metrics, trace  # noqa: F401  as an application does
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share))
    if share:
        provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    if not request:
        return nullcontext()
    return trace.get_tracer("app").start_as_current_span("GET /unlock")


def meter() -> AbstractContextManager[object]:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    return nullcontext()


def both() -> AbstractContextManager[object]:
    meter()
    return tracer(0, request=True)


SETUPS = {
    "without OpenTelemetry": nothing,
    "its API alone": api,
    "a tracer that samples nothing, in a request": lambda: tracer(0, request=True),
    "a tracer that samples nothing, no request": lambda: tracer(0, request=False),
    "a tracer that samples everything, in a request": lambda: tracer(1, request=True),
    "metrics": meter,
    "metrics, and a tracer that samples nothing": both,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(asyncio.run(measure(options.calls, SETUPS[options.one]())))
        return
    rounds: dict[str, list[float]] = {name: [] for name in SETUPS}
    for _ in range(options.rounds):
        for name, figures in rounds.items():
            command = [sys.executable, __file__, "--calls", str(options.calls), "--one", name]
            figures.append(float(subprocess.check_output(command, text=True)))
    base = min(rounds["without OpenTelemetry"])
    print("| | CPU per call, us | more |\n|---|---:|---:|")
    for name, figures in rounds.items():
        least = min(figures)
        print(f"| {name} | {least:.1f} | {least - base:.1f} |")


if __name__ == "__main__":
    main()
