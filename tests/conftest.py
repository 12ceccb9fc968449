import gc
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from hypothesis import settings
from plain_client import PlainClient
from recorded import NASTY, outcome, write
from terminal import Cli, Result
from ways import hooked

from monocloud_async import MonoCloudSession, RetryPolicy, config
from monocloud_async import cli as command_line
from monocloud_async.journal.store import InputInfo
from monocloud_async.sandbox import Sandbox

if TYPE_CHECKING:
    from seen import Seen

settings.register_profile("usual", deadline=None)  # a busy machine is no failure
settings.load_profile("usual")
# By hand: pytest tests/hostile --hypothesis-profile=long
settings.register_profile("long", max_examples=20_000, deadline=None)

QUICK = RetryPolicy(wait_initial=0.001, wait_max=0.002)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hooked",
        action="store_true",
        help="hook ClientSession, as tracers do: all calls of this"
        " process go the standard path then",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A script starts in the background what ignores Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("hypothesis_profile") == "long":
        config.option.timeout = 0  # a person can interrupt a long run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("hooked"):
        return
    # What goes each way goes the hooked one among them.
    each_way = [item for item in items if "way" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=each_way)
    items[:] = [item for item in items if item not in each_way]


def pytest_collection_finish() -> None:
    gc.freeze()  # many tests collect garbage, and none of it is in what is here by now


@pytest.fixture(autouse=True, scope="session")
def _hooked(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("hooked"):
        yield
        return
    with hooked():
        yield


@pytest.fixture(scope="session")
def by_hand(request: pytest.FixtureRequest) -> bool:
    """Whether to run everything, also what is too slow for CI: the profile `long`."""
    return bool(request.config.getoption("--hypothesis-profile") == "long")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (config.DOMAIN, config.API_KEY, config.TIMEOUT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests that are marked start processes, so that the others are quick."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a test that starts a process is marked with pytest.mark.process")

    if request.node.get_closest_marker("process") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=20) as sandbox:
        yield sandbox


@pytest.fixture
def users(sandbox: Sandbox, tmp_path: Path) -> Path:
    """A file of the ids of the test's own `sandbox`."""
    path = tmp_path / "users.txt"
    path.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    return path


@pytest.fixture
async def session(sandbox: Sandbox) -> AsyncIterator[MonoCloudSession]:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        yield session


@pytest.fixture
def cli(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """The command line in this process, for the tenant of the test's own `sandbox`."""
    monkeypatch.setenv(config.DOMAIN, sandbox.url)
    monkeypatch.setenv(config.API_KEY, sandbox.api_key)

    def run(*argv: object) -> Result:
        capfd.readouterr()
        code = command_line.main([str(part) for part in argv])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def tenant(http: aiohttp.ClientSession) -> AsyncIterator[PlainClient]:
    async with Sandbox(users=["ada", "bob"]) as sandbox:
        yield PlainClient(sandbox, http)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of two runs, one of which was killed."""
    names = [f"user{n}" for n in range(200)] + NASTY + [f"ghost{n}" for n in range(25)]
    outcomes = [
        outcome(place, name, "" if name.startswith("user") else "Not Found", attempts=place % 3 + 1)
        for place, name in enumerate(names)
    ]
    source = InputInfo("users.csv", "csv", "id")
    return write(tmp_path / "users.csv.journal", outcomes, source)


@pytest.fixture(scope="session")
def _provider() -> "Seen":
    from seen import Seen  # noqa: PLC0415  few tests need OpenTelemetry

    return Seen()


@pytest.fixture
def seen(_provider: "Seen") -> Iterator["Seen"]:
    """What OpenTelemetry records in this test; metrics are of all tests."""
    _provider.spans()
    _provider.exporter.on = True
    yield _provider
    _provider.exporter.on = False


@pytest.fixture
def requests_seen(seen: "Seen") -> Iterator[None]:
    """Also what its instrumentation of aiohttp records."""
    from opentelemetry.instrumentation.aiohttp_client import (  # noqa: PLC0415  the same
        AioHttpClientInstrumentor,
    )

    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=seen.tracing)
    yield
    instrumentor.uninstrument()
