"""Everything fails with a known key, and then all output is searched for it."""

import asyncio
import contextlib
import copy
import logging
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from clients import against, run
from faults import Fault, faults
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from raw_server import Peer, RawServer, answering, http
from secrets_search import KEY, PLANTED, is_not_in, is_not_told_by
from terminal import PROGRAM, started, wait_for

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.cli.access import Access, read_key
from monocloud_async.sandbox import Sandbox

ONCE = RetryPolicy(attempts=1)
FAULTS = faults()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture all logs at DEBUG."""
    with caplog.at_level(logging.DEBUG):
        for name in ("aiohttp", "asyncio", "monocloud_async", "concurrent"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield caplog
        is_not_in(caplog.text, *(vars(record) for record in caplog.records))
        for record in caplog.records:
            if record.exc_info and record.exc_info[1] is not None:
                is_not_told_by(record.exc_info[1])
    for name in ("aiohttp", "asyncio", "monocloud_async", "concurrent"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("fault", FAULTS, ids=map(str, FAULTS))
def test_no_fault_tells_the_key(fault: Fault, logs: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        async with against(fault, ONCE) as (_server, session):
            is_not_in(session, vars(session))
            try:
                await session.enable_user("ada")
            except m.MonoCloudError as error:
                is_not_told_by(error)
            seen: list[m.Outcome] = []
            try:
                await session.bulk_enable(["ada", "bob"], on_outcome=seen.append, max_outage=1)
            except m.RunStoppedError as stopped:
                is_not_told_by(stopped)
                is_not_in(stopped.report)
            is_not_in(*seen)

    run(main())


def test_a_call_that_is_cancelled_tells_nothing(logs: pytest.LogCaptureFixture) -> None:
    """A cancelled call raises an error that has passed through the HTTP library's frames."""

    async def silence(peer: Peer) -> None:
        await peer.silence()

    async def main() -> None:
        async with RawServer(silence) as server, MonoCloudSession(server.url, KEY) as session:
            for turns in (0, 1, 2, 3, 5, 8, 13, 21):
                task = asyncio.create_task(session.enable_user("ada"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                is_not_in(task, task.get_coro())
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError as error:
                    if turns:  # before that, it has no traceback
                        is_not_told_by(error)
            try:
                async with asyncio.timeout(0.5):
                    await session.enable_user("ada")
            except TimeoutError as error:
                is_not_told_by(error)

    run(main())


SLIPS: dict[str, str | bytes] = {
    "line end": f"{KEY}\n",
    "space": f" {KEY}",
    "not ASCII": f"{KEY}\N{LATIN SMALL LETTER E WITH ACUTE}",
    "long": KEY * 50,
    "bytes": KEY.encode(),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_key_that_is_refused_is_not_told(slip: str) -> None:
    is_not_told_by(Slip("acme.com", SLIPS[slip]).error)


@pytest.mark.parametrize("slip", [slip for slip, key in SLIPS.items() if isinstance(key, str)])
def test_a_key_of_the_environment_that_is_refused_is_not_told(
    slip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOCLOUD_MANAGEMENT_API_KEY", str(SLIPS[slip]))
    is_not_told_by(Slip("acme.com").error)


class Slip:
    """Return the error of a failed constructor, from a frame that does not hold the key."""

    def __init__(self, *arguments: object) -> None:
        try:
            MonoCloudSession(*arguments)  # type: ignore[arg-type]
        except m.ConfigurationError as error:
            # The caller's own frames are not our concern.
            theirs = error.__traceback__
            assert theirs is not None
            self.error = error.with_traceback(theirs.tb_next)


def test_a_domain_that_is_refused_does_not_tell_the_key() -> None:
    is_not_told_by(Slip("https://acme.com/path", KEY).error)
    is_not_told_by(Slip("https://user:hunter2@acme.com", KEY).error)


def test_a_session_is_not_copied_and_not_pickled() -> None:
    session = MonoCloudSession("acme.com", KEY)
    is_not_in(session, vars(session), session._credentials, session._credentials.headers)
    for take in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            take(session)


@contextlib.contextmanager
def spans() -> Iterator[InMemorySpanExporter]:
    """Return what OpenTelemetry's instrumentation of aiohttp records."""
    exporter, provider, instrumentor = (
        InMemorySpanExporter(),
        TracerProvider(),
        AioHttpClientInstrumentor(),
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield exporter
    finally:
        instrumentor.uninstrument()


async def test_tracing_has_no_key(logs: pytest.LogCaptureFixture) -> None:
    async with Sandbox(users=["ada"], api_key=KEY) as sandbox:
        with spans() as exporter:
            async with MonoCloudSession(sandbox.url, KEY, retry=ONCE) as session:
                sandbox.script("ada", 503, "reset", "redirect", 200)
                for _ in range(4):
                    with contextlib.suppress(m.MonoCloudError):
                        await session.enable_user("ada")
            async with (
                aiohttp.ClientSession() as client,
                MonoCloudSession(sandbox.url, KEY, client_session=client) as session,
            ):
                await session.enable_user("ada")
    recorded = exporter.get_finished_spans()
    assert len(recorded) == 6  # after the reset of a reused connection, repeated over a new one
    is_not_in(*(span.to_json() for span in recorded))


async def test_tracing_that_takes_every_header_can_be_kept_from_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Configure the instrumentation as docs/security.md says."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST", ".*")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "x-api-key")
    async with Sandbox(users=["ada"], api_key=KEY) as sandbox:
        with spans() as exporter:
            async with MonoCloudSession(sandbox.url, KEY) as session:
                await session.enable_user("ada")
        (span,) = exporter.get_finished_spans()
    is_not_in(span.to_json())


async def test_what_traces_requests_sees_a_masked_key() -> None:
    """Aiohttp passes the headers to every tracer; most tracers print them."""
    shown: list[str] = []

    async def on_start(
        _client: aiohttp.ClientSession,
        _context: object,
        params: aiohttp.TraceRequestStartParams | aiohttp.TraceRequestHeadersSentParams,
    ) -> None:
        shown.append(repr(params))

    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(on_start)
    tracing.on_request_headers_sent.append(on_start)
    async with RawServer(answering(http(b'{"user_id":"ada"}'))) as server:
        async with aiohttp.ClientSession(trace_configs=[tracing]) as client:
            session = MonoCloudSession(server.url, KEY, client_session=client)
            await session.enable_user("ada")
        assert KEY.encode() in server.requests[0]
    assert len(shown) == 2
    is_not_in(*shown)


async def test_netrc_proxies_and_cookies_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login eve password hunter2\n", encoding="ascii")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    answer = http(b'{"user_id":"ada"}', b"Set-Cookie: a=b; Path=/")
    async with RawServer(answering(answer)) as server:
        url = server.url.replace("127.0.0.1", "localhost")  # an address has no cookies anyway
        async with MonoCloudSession(url, KEY, retry=ONCE) as session:
            for _ in range(2):
                await session.enable_user("ada")
        assert len(server.requests) == 2
        for request in server.requests:
            assert b"authorization" not in request.lower()
            assert b"cookie" not in request.lower()


COMMANDS = {
    "a run": ["bulk", "ids.txt", "--failures", "failed.txt"],
    "a run for programs": ["bulk", "ids.txt", "--json"],
    "a call": ["enable", "ada"],
    "a look": ["bulk", "ids.txt", "--dry-run"],
}


@pytest.mark.process
@pytest.mark.parametrize("right", [KEY, "another"], ids=["right key", "wrong key"])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_tells_nothing(
    command: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    people = ["ada", *(f"u{number}" for number in range(50))]
    Path("ids.txt").write_text("\n".join(people), encoding="ascii")
    with Sandbox(users=people, api_key=right) as sandbox:
        for user_id, step in zip(people, ["reset", "cut", "html", "404", "429:1"], strict=False):
            sandbox.script(user_id, step)
        sandbox.latency = 0.1
        monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
        sandbox.api_key = KEY  # which the environment of the process will have
        with started(sandbox, *COMMANDS[command]) as process:
            sandbox.api_key = right
            if command != "a look":
                wait_for(lambda: sandbox.stats().requests > 0)
                is_not_in(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            is_not_in(*process.communicate(timeout=90))
    if Path("ids.txt.journal").exists():
        report = subprocess.run(
            [*PROGRAM, "report", "ids.txt.journal", "-o", "run.html"],
            capture_output=True,
            text=True,
            check=False,
        )
        is_not_in(report.stdout, report.stderr)
    for file in tmp_path.iterdir():
        assert PLANTED.encode() not in file.read_bytes(), file


def test_a_key_file_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return what a crash of the command line would print, with local variables."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="ascii")
    warnings: list[str] = []
    key = read_key(file, warnings.append)
    assert key == KEY
    assert "chmod 600" in warnings[0]
    access = Access(domain="acme.com/path", api_key=key)
    is_not_in(access, [key], *warnings)
    try:
        access.check()
    except m.ConfigurationError as error:
        is_not_told_by(error)


def test_a_key_file_with_more_than_a_key_is_told_without_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY} \n")
    with pytest.raises(m.ConfigurationError, match="stray space") as caught:
        read_key(path, print)
    is_not_told_by(caught.value)
