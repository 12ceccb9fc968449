"""The fast path behaves like the standard path, and hooks of `ClientSession` disable it."""

import ast
import asyncio
import inspect
import logging
from functools import wraps
from inspect import getsource
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from raw_server import Peer, RawServer, answering, http
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy, connector, endpoint
from monocloud_async.endpoint import Operation
from monocloud_async.sandbox import Sandbox
from monocloud_async.transport import fast
from monocloud_async.transport.fast import (
    HOOKS,
    REQUIRED,
    FastConnector,
    FastProtocol,
    FastTransport,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ADA = b'{"user_id":"ada"}'
KEY = "sentinel-key-4711"
ONCE = RetryPolicy(attempts=1)


@pytest.fixture(autouse=True)
def _unhooked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("hooked"):
        pytest.skip("the whole suite has hooked ClientSession")


def hook(patch: pytest.MonkeyPatch, kind: type, name: str) -> list[str]:
    """Hook `ClientSession` as tracers do; the list grows with every use."""
    used: list[str] = []
    hooked: Callable[..., Any] = getattr(kind, name)

    @wraps(hooked)
    def wrapper(*args: object, **options: object) -> object:
        used.append(name)
        return hooked(*args, **options)

    patch.setattr(kind, name, wrapper)
    return used


# Same behaviour as the standard path


@pytest.mark.parametrize("user_id", ["ada", "a b/c?d#%41", "Zoë", "x" * 1024])
async def test_both_paths_send_the_same_bytes(
    user_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RawServer(answering(http(b"", status=404))) as server:
        for path in ("fast", "standard"):
            if path == "standard":
                hook(monkeypatch, aiohttp.ClientSession, "_request")
            async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
                with pytest.raises(m.NotFoundError):
                    await session.enable_user(user_id)
    first, second = server.requests
    assert first == second


async def test_a_plain_answer_costs_no_parser_and_any_other_one_does(
    sandbox: Sandbox, session: MonoCloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by_aiohttp = hook(monkeypatch, FastProtocol, "leave_to_aiohttp")
    report = await session.bulk_enable(sandbox.user_ids())
    assert (report.enabled, read_by_aiohttp) == (20, [])
    with pytest.raises(m.NotFoundError):
        await session.enable_user("nobody")
    assert len(read_by_aiohttp) == 1


def test_each_call_ends_at_its_own_time() -> None:
    """One timer serves all calls."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time

        async def call(timeout: float) -> float:
            began = clock()
            with pytest.raises(m.RequestTimeoutError, match=f"within {timeout:.3g} s"):
                await session.enable_user("ada", timeout=timeout)
            return clock() - began

        timeouts = [3.0, 1.0, 2.0, 0.5, 2.5]
        async with (
            RawServer(Peer.silence) as server,
            MonoCloudSession(server.url, KEY, retry=ONCE) as session,
        ):
            assert await asyncio.gather(*map(call, timeouts)) == pytest.approx(timeouts, abs=0.05)

    run(main())


def test_connections_that_nobody_uses_are_closed_within_15_seconds() -> None:
    left: list[float] = []

    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(http(ADA))
        await peer.request()
        await peer.send(http(ADA))
        await peer.silence()
        left.append(asyncio.get_running_loop().time())

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with RawServer(act) as server, MonoCloudSession(server.url, KEY) as session:
            for _ in range(2):
                await asyncio.gather(*(session.enable_user("ada") for _ in range(3)))
            assert server.connections == 3
            began = clock()
            await asyncio.sleep(40)
            assert len(left) == 3
            assert all(7 < at - began < 15.1 for at in left)

    run(main())


def test_a_connection_that_is_used_is_kept() -> None:
    async def main() -> None:
        async with RawServer(answering(http(ADA))) as server:
            async with MonoCloudSession(server.url, KEY) as session:
                for _ in range(8):
                    await session.enable_user("ada")
                    await asyncio.sleep(5)
            assert server.connections == 1

    run(main())


async def test_what_a_server_says_before_it_is_asked_is_nobodys_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a TLS handshake, the data can arrive before the first request."""
    connect = aiohttp.TCPConnector.connect

    async def spoken_to(*args: Any) -> Any:
        connection = await connect(*args)
        assert connection.protocol is not None
        connection.protocol.data_received(http(b'{"user_id":"bob"}'))
        return connection

    async with (
        RawServer(answering(http(ADA))) as server,
        MonoCloudSession(server.url, KEY, retry=ONCE) as session,
    ):
        with monkeypatch.context() as early:
            early.setattr(aiohttp.TCPConnector, "connect", spoken_to)
            with pytest.raises(m.TransportError, match="not HTTP") as caught:
                await session.enable_user("ada")
        assert not caught.value.sent
        assert (await session.enable_user("ada")).user_id == "ada"
        assert len(server.requests) == 1


async def test_what_comes_right_behind_a_plain_answer_is_nobodys_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The data arrives before the caller has resumed."""
    receive = FastProtocol.data_received

    def more(protocol: FastProtocol, data: bytes) -> None:
        receive(protocol, data)
        if protocol.idle:
            receive(protocol, http(b"", status=404))

    async with (
        RawServer(answering(http(ADA))) as server,
        MonoCloudSession(server.url, KEY, retry=ONCE) as session,
    ):
        monkeypatch.setattr(FastProtocol, "data_received", more)
        for _ in range(2):
            assert (await session.enable_user("ada")).user_id == "ada"
        assert server.connections == 2


async def test_a_session_that_is_closed_as_an_answer_comes_keeps_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive = FastProtocol.data_received
    closing: list[asyncio.Task[None]] = []

    async with RawServer(answering(http(ADA))) as server:
        session = MonoCloudSession(server.url, KEY, retry=ONCE)

        def close(protocol: FastProtocol, data: bytes) -> None:
            closing.append(asyncio.create_task(session.close()))
            receive(protocol, data)

        monkeypatch.setattr(FastProtocol, "data_received", close)
        assert (await session.enable_user("ada")).user_id == "ada"
        await asyncio.gather(*closing)
        assert session._http._fast is not None
        assert session._http._fast._idle == []
        assert session._http._fast._cleanup is None


@pytest.mark.parametrize("coding", ["plain", "chunked"])
async def test_a_connection_that_answered_with_somebody_else_is_not_used_again(coding: str) -> None:
    """The responses of such a connection may belong to the request before."""
    bob = b'{"user_id":"bob"}'
    answer = http(bob)
    if coding == "chunked":
        chunks = b"11\r\n" + bob + b"\r\n0\r\n\r\n"
        answer = http(chunks, b"Transfer-Encoding: chunked", length=False)

    async def act(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    async with RawServer(act) as server:
        async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
            for _ in range(2):
                with pytest.raises(m.InvalidResponseError, match="another user"):
                    await session.enable_user("ada")
                assert (await session.enable_user("bob")).user_id == "bob"
        assert (server.connections, len(server.requests)) == (3, 4)


# What selects the standard path


@pytest.mark.parametrize(("kind", "name"), HOOKS)
@pytest.mark.parametrize("first", [False, True], ids=["a session that is open", "a new session"])
async def test_who_hooks_aiohttp_gets_the_standard_path(
    kind: type,
    name: str,
    first: bool,  # noqa: FBT001  a table
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        if not first:
            await session.enable_user(sandbox.user_ids()[0])
        asked = hook(monkeypatch, FastProtocol, "send_request")
        with monkeypatch.context() as hooking:
            used = hook(hooking, kind, name)
            if name == "get":
                for user_id in sandbox.user_ids():
                    await session.get_user(user_id)
            else:
                await session.bulk_enable(sandbox.user_ids())
            assert asked == []
            assert len(used) == (20 if name != "__init__" else int(first))
        await session.enable_user(sandbox.user_ids()[0])
        # And the fast path when they are gone, unless they made the client itself.
        assert asked == ([] if name == "__init__" and first else ["send_request"])


def test_the_method_of_each_operation_is_among_the_hooks() -> None:
    methods = {
        each.method.lower() for each in vars(endpoint).values() if isinstance(each, Operation)
    }
    assert {(aiohttp.ClientSession, method) for method in methods} <= set(HOOKS)


async def test_who_replaces_a_method_gets_the_standard_path(
    sandbox: Sandbox, session: MonoCloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(*_args: object, **_options: object) -> object:
        raise aiohttp.ClientOSError("from the test")

    monkeypatch.setattr(aiohttp.ClientSession, "post", post)
    with pytest.raises(m.TransportError):
        await session.enable_user(sandbox.user_ids()[0])
    assert sandbox.stats().requests == 0


async def test_trace_configs_that_a_tracer_puts_into_every_session_see_the_calls(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's instrumentation does this, and ends before the session does."""
    seen: list[str] = []
    tracing = aiohttp.TraceConfig()

    async def begin(
        _session: object, _context: object, started: aiohttp.TraceRequestStartParams
    ) -> None:
        seen.append(started.url.path)

    tracing.on_request_start.append(begin)
    original = aiohttp.ClientSession.__init__

    def init(self: aiohttp.ClientSession, **options: Any) -> None:
        original(self, trace_configs=[tracing], **options)

    user_id = sandbox.user_ids()[0]
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        with monkeypatch.context() as instrumented:
            instrumented.setattr(aiohttp.ClientSession, "__init__", init)
            await session.enable_user(user_id)
        await session.enable_user(user_id)
    assert seen == [f"/api/users/{user_id}/enable"] * 2


async def test_a_borrowed_session_is_used_as_it_is(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hook(monkeypatch, FastProtocol, "send_request")
    async with (
        aiohttp.ClientSession(connector=FastConnector()) as client,
        MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client) as session,
    ):
        await session.enable_user(sandbox.user_ids()[0])
    assert asked == []


async def test_an_aiohttp_without_what_it_leans_on_means_the_standard_path_and_one_warning(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = hook(monkeypatch, FastProtocol, "send_request")
    monkeypatch.setattr(fast, "REQUIRED", (*REQUIRED, (aiohttp.ClientRequest, "gone")))
    fast._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
                await session.enable_user(sandbox.user_ids()[0])
    assert asked == []
    (record,) = caplog.records
    assert record.getMessage() == (
        f"aiohttp {aiohttp.__version__} has no ClientRequest.gone, so calls take more CPU time than"
        " they could"
    )


async def test_a_call_that_is_still_connecting_when_the_session_is_closed_sent_nothing() -> None:
    async with RawServer(Peer.silence) as server:  # so the TLS handshake never ends
        session = MonoCloudSession(server.url.replace("http", "https"), KEY, retry=ONCE)
        call = asyncio.ensure_future(session.enable_user("ada"))
        while not server.connections:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.001)
        await session.close()
        (end,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(end, m.ConfigurationError)
    assert (end.refusal, end.attempts) == ("closed", 0)


def test_a_session_that_is_closed_at_any_moment_sends_nothing_more() -> None:
    async def close_after(turns: int) -> bool:
        """Return whether a request was sent before."""
        async with RawServer(silent) as server:
            session = MonoCloudSession(server.url, KEY, retry=ONCE)
            call = asyncio.ensure_future(session.enable_user("ada"))
            closing = asyncio.ensure_future(close(session, turns))
            (end,) = await asyncio.gather(call, return_exceptions=True)
            await closing
            assert not isinstance(end, m.RequestTimeoutError)
            return isinstance(end, m.TransportError)

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.silence()

    async def close(session: MonoCloudSession, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await session.close()

    async def main() -> None:
        turns = 0
        while not await close_after(turns):
            turns += 1
        assert turns > 2

    run(main())


# The internals of aiohttp that it needs


def calls_of(name: str) -> list[ast.Call]:
    """The calls of a method of this name, as `fast` and the connector that it uses make them."""
    nodes = (node for file in (fast, connector) for node in ast.walk(ast.parse(getsource(file))))
    return [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
    ]


@pytest.mark.parametrize(("kind", "name"), REQUIRED)
def test_aiohttp_takes_the_calls_that_are_made(kind: type, name: str) -> None:
    """That they still do what they did is shown by the whole suite."""
    what = inspect.getattr_static(kind, name)
    if isinstance(what, property):
        return
    calls = calls_of(name)
    assert calls, f"nothing calls {name}: REQUIRED can do without"
    for call in calls:
        assert not any(isinstance(argument, ast.Starred) for argument in call.args)
        options = {str(option.arg): None for option in call.keywords}
        inspect.signature(what).bind(None, *call.args, **options)


async def test_the_fast_path_is_there() -> None:
    async with MonoCloudSession("acme.eu.monocloud.com", KEY) as session:
        assert isinstance(session._http.transport(), FastTransport)
