"""How a part of the fleet is watched: health checks, signs of life, metrics and logs."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fleets import Fleet, Part, fleet, temporal
from msgspec import structs
from recipes import free_port
from temporalio.exceptions import ApplicationError

from monocloud_async import ConfigurationError, NotFoundError
from monocloud_async.cli.fleet import commands, logs
from monocloud_async.fleet import FleetError, Progress, WorkerProgress, metrics
from monocloud_async.fleet.health import host_and_port, tell_stopping, watched
from monocloud_async.fleet.metrics import runtime

NOBODY: Any = None  # a client that is not asked
FINE = Progress(
    tenant="https://acme", source="ids.txt", size=1, expected=1, done=0, max_rate=None, rate=0.0
)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Fleet]:
    with temporal(tmp_path) as server:
        async with fleet(tmp_path, server, 40, latency=0.02) as parts:
            yield parts


async def nothing(*_: object, **__: object) -> None:
    """Stand in for a function whose work is not needed."""


async def get(address: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}") as response:
        return response.status, await response.text()


async def shows(address: str, line: str) -> bool:
    """Return whether the metrics there have this line; False while nobody answers."""
    try:
        _, shown = await get(f"{address}/metrics")
    except aiohttp.ClientConnectionError:
        return False
    return line in shown.splitlines()


def watch(parts: Fleet, name: str) -> tuple[Part, str, str]:
    """Start a part, and return it with its addresses for health checks and metrics."""
    health, scraped = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    options = ["--health", health, "--metrics", scraped, "--json-logs"]
    return parts.part(name, options=options), health, scraped


@pytest.mark.process
async def test_a_fleet_shows_its_health_and_metrics_and_logs_as_json(parts: Fleet) -> None:
    run = await parts.start(20)
    coordinator, health, scraped = watch(parts, "coordinator")
    worker, workers_health, workers_scraped = watch(parts, "worker")
    labels = f'service_name="temporal-core-sdk",tenant="{run.tenant}"'
    async with asyncio.timeout(60):
        while not await shows(scraped, f"monocloud_fleet_running{{{labels}}} 1"):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
    assert (await run.result()).enabled == 40
    for address in (health, workers_health):
        assert await get(f"{address}/livez") == (200, "alive\n")
        assert await get(f"{address}/readyz") == (200, "ready\n")
    _, shown = await get(f"{workers_scraped}/metrics")
    assert "temporal_request_total" in shown

    parts.server.kill()
    assert await get(f"{health}/livez") == (200, "alive\n")
    assert (await get(f"{health}/readyz"))[0] == 503
    for part in (coordinator, worker):
        part.send(signal.SIGTERM)
        assert part.ended() == 0
        lines = [json.loads(line) for line in part.said().splitlines()]
        assert {"time", "level", "logger", "message"} <= lines[0].keys()
        assert lines[0]["message"].startswith(("Hosting the runs of", "Working for"))
        assert parts.sandbox.api_key not in part.said()


@pytest.mark.process
def test_a_key_file_that_others_can_read_is_told_as_json_too(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sentinel")
    key.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "monocloud_async", "fleet", "worker", "--json-logs",
         "--api-key-file", key, "--domain", "acme.eu.monocloud.com"],
        env=os.environ | {"TEMPORAL_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip
    first = json.loads(done.stderr.splitlines()[0])
    assert first["level"] == "warning"
    assert f"can read the key: chmod 600 {key}" in first["message"]


async def test_systemd_is_told_of_the_start_of_life_and_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        async with watched(NOBODY):
            assert systemd.recv(100) == b"READY=1"
            await asyncio.sleep(0)
            assert systemd.recv(100) == b"WATCHDOG=1"
            tell_stopping()
            assert systemd.recv(100) == b"STOPPING=1"


async def test_systemd_that_does_not_listen_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    async with watched(NOBODY):
        await asyncio.sleep(0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            async with asyncio.timeout(60):
                assert await asyncio.to_thread(systemd.recv, 100) == b"WATCHDOG=1"


async def test_a_watchdog_of_no_time_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "0")
        async with watched(NOBODY):
            await asyncio.sleep(0)
            tell_stopping()
        systemd.settimeout(30)
        assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize(("where", "asks"), [(None, False), ("127.0.0.1:9464", True)])
def test_a_coordinator_asks_for_gauges_only_if_it_shows_them(
    monkeypatch: pytest.MonkeyPatch, where: str | None, *, asks: bool
) -> None:
    seen = list[str]()

    @asynccontextmanager
    async def run_metrics(_: object, tenant: str) -> AsyncIterator[None]:
        seen.append(tenant)
        yield

    monkeypatch.setattr(commands, "run_metrics", run_metrics)
    monkeypatch.setattr(commands, "runtime", lambda *_: None)
    monkeypatch.setattr(commands, "connect", nothing)
    monkeypatch.setattr(commands, "run_coordinator", nothing)
    service = commands.Service(metrics=where)
    assert commands.coordinator("acme.eu.monocloud.com", [], service) == 0
    assert bool(seen) == asks


def test_systemd_is_told_of_the_end_before_the_calls_in_flight_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[bytes]()

    async def run_coordinator(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            seen.extend([systemd.recv(100), systemd.recv(100)])

    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.setattr(commands, "connect", nothing)
    monkeypatch.setattr(commands, "run_coordinator", run_coordinator)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(str(tmp_path / "notify"))
        assert commands.coordinator("acme.eu.monocloud.com", [], commands.Service()) == 0
    assert seen == [b"READY=1", b"STOPPING=1"]


async def test_without_systemd_and_an_address_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with watched(NOBODY):
        pass


@pytest.mark.parametrize("address", ["", "8080", ":8080", "host:", "host:x", "host:65536"])
def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="is not HOST:PORT"):
        host_and_port(address)


def test_an_address_of_ipv6_is_understood() -> None:
    assert host_and_port("[::1]:80") == ("::1", 80)


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="cannot answer health checks at"):
            async with watched(NOBODY, address):
                pass
        with pytest.raises(ConfigurationError, match="cannot serve metrics at"):
            runtime(address)


def error_of(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except type(error):
        return logging.LogRecord("a", logging.ERROR, "", 0, "it failed", (), sys.exc_info())


def test_our_own_errors_are_one_line_and_others_have_a_traceback() -> None:
    ours, other = error_of(NotFoundError("404", status=404)), error_of(ValueError("v"))
    assert logs._Text("%(message)s").format(ours).startswith("it failed: 404. Check the id")
    assert "Traceback" in logs._Text().format(other)
    line = json.loads(logs._Json().format(ours))
    assert (line["level"], line["logger"], line["message"]) == ("error", "a", "it failed")
    assert line["error"].startswith("NotFoundError: 404. Check the id")
    assert "traceback" not in line
    assert "Traceback" in json.loads(logs._Json().format(other))["traceback"]


def test_what_a_part_of_the_fleet_refuses_is_one_line_in_its_log() -> None:
    refused = error_of(ApplicationError("it is no journal", type="refused"))
    assert logs._Text("%(message)s").format(refused) == "it failed: refused: it is no journal"
    assert "traceback" not in json.loads(logs._Json().format(refused))


class Meter:
    """Stands in for Temporal's meter; has the last value of each gauge and its attributes."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def create_gauge_float(self, name: str, _: str) -> "Gauge":
        return Gauge(self, name)


class Gauge:
    def __init__(self, meter: Meter, name: str) -> None:
        self.meter, self.name = meter, name.removeprefix("monocloud_fleet_")

    def set(self, value: float, attributes: dict[str, str]) -> None:
        self.meter.values[" ".join([self.name, *attributes.values()])] = value


def test_the_gauges_say_what_status_says() -> None:
    meter: Any = Meter()
    gauges = metrics._Gauges(meter)
    gauges.show(None)
    state = dict.fromkeys(("running", *metrics._STATE), 0.0)
    assert meter.values == state
    member = WorkerProgress(name="7@host 0.1.0", role="worker", seconds=1.0)
    gauges.show(
        Progress(
            tenant="https://acme", source="ids.txt", size=1000, expected=50, done=250,
            max_rate=300.0, rate=150.0, enabled=10, failed=2, unknown=1, bad_lines=3,
            requests=14, retries=1, throttled=2, chunks=4, waiting=1, under_way=5,
            paused="by hand", learnt=290.0, pause_left=7.0, outage=8.0,
            members=[member], away={"8@host 0.1.0": "401"}, trouble=["disk"],
        )
    )  # fmt: skip
    assert meter.values == {
        "running": 1.0, "paused": 1.0, "users enabled": 10.0, "users disabled": 0.0,
        "users failed": 2.0,
        "users unknown": 1.0, "users bad_line": 3.0, "users_expected": 50.0,
        "users_under_way": 5.0, "processed_ratio": 0.32, "requests all": 14.0,
        "requests retry": 1.0, "requests throttled": 2.0, "rate": 150.0, "rate_limit": 300.0,
        "rate_learnt": 290.0, "pause_left_seconds": 7.0, "outage_seconds": 8.0,
        "chunks handed_out": 4.0, "chunks waiting": 1.0, "members worker": 1.0,
        "members coordinator": 0.0, "members away": 1.0, "trouble": 1.0,
    }  # fmt: skip
    counted = meter.values.copy()
    gauges.show(None)
    assert meter.values == counted | state


def test_a_run_that_disables_does_not_show_the_enabled_of_an_earlier_one() -> None:
    meter: Any = Meter()
    gauges = metrics._Gauges(meter)
    run = structs.replace(FINE, enabled=9)
    gauges.show(run)
    gauges.show(structs.replace(run, operation="disable", enabled=0, disabled=4))
    assert (meter.values["users enabled"], meter.values["users disabled"]) == (0.0, 4.0)


class Run:
    """Stands in for a run that is in progress; each answer is a progress or an error."""

    tenant = "https://acme"

    def __init__(
        self, *answers: Progress | Exception, over: Sequence[bool | Exception] = ()
    ) -> None:
        self.answers = list(answers)
        self.ends = list(over)
        self.seen = list[tuple[float, float]]()
        self.meter = Meter()

    def with_additional_attributes(self, _: dict[str, str]) -> Meter:
        return self.meter

    async def over(self) -> bool:
        """Remember what the gauges show by now, and end when there are no more answers."""
        self.seen.append((self.meter.values["running"], self.meter.values["trouble"]))
        if self.ends:
            end = self.ends.pop(0)
            if isinstance(end, Exception):
                raise end
            return end
        if not self.answers:
            raise asyncio.CancelledError
        return False

    async def progress(self) -> Progress:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_run_that_cannot_tell_its_progress_has_trouble_until_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_EVERY", 0)
    run: Any = Run(
        FleetError("a step fails"), FINE, msgspec.ValidationError("of another version"), FINE,
        ConfigurationError("an unknown operation"),
    )  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        await metrics._measure(run, run)
    assert run.seen == [(0, 0), (1, 1), (1, 0), (1, 1), (1, 0), (1, 1)]


async def test_a_run_that_ends_shows_its_last_progress_and_temporal_that_is_down_is_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_EVERY", 0)
    last = structs.replace(FINE, enabled=12_000, failed=2, rate=0.0)
    down = FleetError("Temporal is down")
    run: Any = Run(FINE, last, over=[down, False, down, True, True])
    with pytest.raises(asyncio.CancelledError):
        await metrics._measure(run, run)
    assert run.seen == [(0, 0), (0, 0), (1, 0), (1, 1), (0, 0), (0, 0)]
    assert (run.meter.values["users enabled"], run.meter.values["users failed"]) == (12_000, 2)


async def test_metrics_are_served_at_a_name_and_no_error_shows_a_password() -> None:
    port = free_port()
    kept = runtime(f"localhost:{port}")
    assert (await get(f"127.0.0.1:{port}/metrics"))[0] == 200
    del kept
    with pytest.raises(ConfigurationError, match="no such host"):
        runtime("a..b:1")
    for url in ("http://eve:hunter2@/x", "https://eve:hunter2@[x"):
        with pytest.raises(ConfigurationError, match="cannot send metrics to this URL") as caught:
            runtime(url)
        assert "hunter2" not in str(caught.value)
