"""Metrics of a process of the fleet: Temporal's own, and what `fleet status` says.

Temporal's client serves both, on one port for Prometheus or to an OpenTelemetry collector.
"""

import asyncio
import ctypes
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, get_args

import msgspec
from temporalio.client import Client
from temporalio.common import MetricGaugeFloat, MetricMeter
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    OpenTelemetryConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from monocloud_async.endpoint import Done, bulk_operation
from monocloud_async.errors import ConfigurationError, MonoCloudError
from monocloud_async.fleet.client import FleetRun
from monocloud_async.fleet.health import host_and_port
from monocloud_async.fleet.messages import Progress

_PREFIX: Final = "monocloud_fleet_"
_EVERY: Final = 5.0  # seconds
# The gauges of what only a run in progress has.
_STATE: Final = (
    "paused",
    "users_under_way",
    "rate",
    "pause_left_seconds",
    "outage_seconds",
    "trouble",
)


def runtime(metrics: str | None = None, log: logging.Logger | None = None) -> Runtime:
    """Return a runtime for `connect` that has these metrics and logs.

    Args:
        metrics: HOST:PORT on which /metrics answers Prometheus, or the http(s) URL of an
            OpenTelemetry collector, for gRPC. Default: none.
        log: the logger for messages of Temporal's client. Default: it writes them to stderr.

    Raises:
        ConfigurationError: the metrics cannot be served there.
    """
    config: PrometheusConfig | OpenTelemetryConfig | None = None
    where = f"serve metrics at {metrics}"
    if metrics is not None and "://" in metrics:
        config = OpenTelemetryConfig(url=metrics, durations_as_seconds=True)
        where = "send metrics to this URL"  # which may have a password
    elif metrics is not None:
        config = PrometheusConfig(
            bind_address=_socket_address(metrics),
            counters_total_suffix=True,
            unit_suffix=True,
            durations_as_seconds=True,
        )
    levels = TelemetryFilter(core_level="WARN", other_level="ERROR")
    logs = LoggingConfig(filter=levels, forwarding=LogForwardingConfig(log) if log else None)
    try:
        made = Runtime(telemetry=TelemetryConfig(metrics=config, logging=logs))
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"cannot {where}: {error}") from None
    if log is not None:
        # It is never freed: at the end of the process, that would wait for its threads, which wait
        # for Python to take their last messages.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made


def _socket_address(address: str) -> str:
    """Return HOST:PORT with an IP address as the host, of IPv4 if it has one."""
    host, port = host_and_port(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigurationError(f"cannot serve metrics at {address}: no such host") from None
    addresses = {family: name[0] for family, _, _, _, name in reversed(found)}
    if socket.AF_INET in addresses:
        return f"{addresses[socket.AF_INET]}:{port}"
    return f"[{addresses[socket.AF_INET6]}]:{port}"


@asynccontextmanager
async def run_metrics(client: Client, tenant: str) -> AsyncIterator[None]:
    """Keep the gauges of the tenant's run up to date meanwhile; the coordinator does so."""
    runtime = client.service_client.config.runtime or Runtime.default()
    run = await FleetRun.attach(tenant, client=client)
    task = asyncio.create_task(_measure(run, runtime.metric_meter))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _measure(run: FleetRun, meter: MetricMeter) -> None:
    gauges = _Gauges(meter.with_additional_attributes({"tenant": run.tenant}))
    gauges.show(None)
    is_running = False
    while True:
        try:
            was_running, is_running = is_running, not await run.over()
            if was_running or is_running:  # once more when it has ended
                await _show_progress(run, gauges)
            if not is_running:
                gauges.show(None)
        except MonoCloudError:  # there was no run yet, or Temporal is down
            if is_running:
                gauges.show_trouble()
        await asyncio.sleep(_EVERY)


async def _show_progress(run: FleetRun, gauges: "_Gauges") -> None:
    try:
        gauges.show(await run.progress())
    except (MonoCloudError, msgspec.DecodeError):  # of another version, or a step of it fails
        gauges.show_trouble()


class _Gauges:
    def __init__(self, meter: MetricMeter) -> None:
        self._all: dict[str, MetricGaugeFloat] = {}

        def gauge(name: str, what: str) -> None:
            self._all[name] = meter.create_gauge_float(f"{_PREFIX}{name}", what)

        gauge("running", "1 while a run is in progress")
        gauge("paused", "1 while the run is paused")
        gauge("users", "Users by outcome, and the lines without one id")
        gauge("users_expected", "About how many users the run has")
        gauge("users_under_way", "Users of the chunks that workers have, who are not done")
        gauge("processed_ratio", "The part of the file that is processed, as `fleet status` says")
        gauge("requests", "Requests of the run, and how many were retries or answered 429")
        gauge("rate", "Requests per second in the last seconds")
        gauge("rate_limit", "Requests per second that the run may make")
        gauge("rate_learnt", "Requests per second that the tenant grants; 0 if not known")
        gauge("pause_left_seconds", "Seconds that the tenant asks to wait")
        gauge("outage_seconds", "Seconds since the tenant is down, or 0")
        gauge("chunks", "Chunks that are handed out, and those that wait for a worker")
        gauge("members", "Workers and coordinators, and the workers that have left the run")
        gauge("trouble", "Steps that fail and are retried")

    def show(self, progress: Progress | None) -> None:
        """Set all gauges; without a run, those of its state to 0, and the counts stay."""
        self._set("running", progress is not None)
        if progress is None:
            for name in _STATE:
                self._set(name, 0)
            return
        self._set("paused", progress.paused is not None)
        done = bulk_operation(progress.operation).done
        for outcome, users in (
            *((other, 0) for other in get_args(Done) if other != done),  # of an earlier run
            (done, progress.users_done),
            ("failed", progress.failed),
            ("unknown", progress.unknown),
            ("bad_line", progress.bad_lines),
        ):
            self._set("users", users, outcome=outcome)
        self._set("users_expected", progress.expected)
        self._set("users_under_way", progress.under_way)
        self._set("processed_ratio", progress.share)
        for kind, count in (
            ("all", progress.requests),
            ("retry", progress.retries),
            ("throttled", progress.throttled),
        ):
            self._set("requests", count, kind=kind)
        self._set("rate", progress.rate)
        self._set("rate_limit", progress.max_rate or 0.0)
        self._set("rate_learnt", progress.learnt or 0.0)
        self._set("pause_left_seconds", progress.pause_left)
        self._set("outage_seconds", progress.outage)
        self._set("chunks", progress.chunks, state="handed_out")
        self._set("chunks", progress.waiting, state="waiting")
        roles = Counter(member.role for member in progress.members)
        self._set("members", roles["worker"], role="worker")
        self._set("members", roles["coordinator"], role="coordinator")
        self._set("members", len(progress.away), role="away")
        self._set("trouble", len(progress.trouble))

    def show_trouble(self) -> None:
        """Set that a run is in progress, and that it cannot tell how it goes."""
        self._set("running", 1)
        self._set("rate", 0)
        self._set("trouble", 1)

    def _set(self, name: str, value: float, **attributes: str) -> None:
        self._all[name].set(float(value), attributes)
