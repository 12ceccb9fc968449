"""The telemetry of single calls: spans by OpenTelemetry's conventions, and metrics."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from seen import Figures, Seen
from tenant_in_memory import Tenant
from tenants import Bucket
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox
from monocloud_async.testing import FakeMonoCloud

QUICK = RetryPolicy(wait_initial=0.01, wait_max=0.02)
ENABLE = "POST /api/users/{user_id}/enable"
HOST = "acme.eu.monocloud.com"


class Since:
    """Metrics since this was made: other tests have theirs."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._before = seen.figures()

    def __call__(self, name: str, *attributes: str) -> float:
        key = (f"monocloud.{name}", *sorted(attributes))
        return self._seen.figures().get(key, 0) - self._before.get(key, 0)

    def all(self, name: str) -> Figures:
        """Return what was added, by attributes."""
        figures = self._seen.figures()
        added = {key: n - self._before.get(key, 0) for key, n in figures.items()}
        return {key[1:]: n for key, n in added.items() if n and key[0] == f"monocloud.{name}"}


@pytest.fixture
def since(seen: Seen) -> Since:
    return Since(seen)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["ada", "bob"]) as sandbox:
        yield sandbox


def only(seen: Seen) -> ReadableSpan:
    ((span,),) = seen.spans().values()
    return span


def events(span: ReadableSpan) -> list[tuple[str, dict[str, object]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


async def test_a_call_is_a_span_by_the_conventions_of_http_clients(
    seen: Seen, sandbox: Sandbox
) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        with trace.get_tracer("of an application").start_as_current_span("GET /unlock") as above:
            await session.enable_user("ada")
    (span,) = seen.spans()[ENABLE]
    assert span.kind is SpanKind.CLIENT
    assert span.parent == above.get_span_context()
    assert span.attributes == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": int(sandbox.url.rpartition(":")[2]),
        "url.full": f"{sandbox.url}/api/users/REDACTED/enable",
        "url.template": "/api/users/{user_id}/enable",
        "http.response.status_code": 200,
    }
    assert span.status.is_unset
    assert not span.events


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda s: s.get_user("u-1"), "GET /api/users/{user_id}"),
        (lambda s: s.disable_user("u-1"), "POST /api/users/{user_id}/disable"),
        (lambda s: anext(aiter(s.list_users(filter="u-1"))), "GET /api/users"),
        (
            lambda s: anext(aiter(s.list_users(group="u-1"))),
            "GET /api/users/groups/{group_id}/assigned",
        ),
    ],
)
async def test_no_id_and_no_key_is_in_a_span_of_any_operation(
    seen: Seen, call: Callable[[MonoCloudSession], Awaitable[object]], name: str
) -> None:
    sandbox = Sandbox(users=["u-1"])
    sandbox.assign("u-1", ["u-1"])
    async with FakeMonoCloud(sandbox) as session:
        await call(session)
    for span in seen.spans()[name]:
        assert "u-1" not in span.to_json()
        assert sandbox.api_key not in span.to_json()


async def test_a_resent_request_and_its_backoff_are_events(seen: Seen) -> None:
    async with FakeMonoCloud(Sandbox(users=["ada"])) as session:
        session.sandbox.script("ada", 503, "reset", 200)
        await session.enable_user("ada")
    span = only(seen)
    assert span.attributes is not None
    assert span.attributes["http.request.resend_count"] == 2
    assert span.attributes["http.response.status_code"] == 200
    assert "error.type" not in span.attributes
    (first, _), (second, of_503), (third, _), (fourth, of_reset) = events(span)
    assert (first, second, third, fourth) == ("monocloud.backoff", "monocloud.resend") * 2
    assert of_503.pop("monocloud.trace_id")
    assert of_503 == {"error.type": "503", "http.response.status_code": 503}
    assert of_reset == {"error.type": "TransportError"}


def test_the_event_of_a_backoff_has_its_seconds(seen: Seen) -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.faults = iter([m.ServerError(status=503, retry_after=30)])
        async with tenant.session() as session:
            await session.enable_user("ada")

    run(main(), sockets=False)
    (backoff, told), _ = events(only(seen))
    assert backoff == "monocloud.backoff"
    assert told == {"monocloud.seconds": pytest.approx(30)}


def test_a_wait_for_the_limit_and_a_pause_are_events_with_their_seconds(seen: Seen) -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(1, 1))
        async with tenant.session() as session:
            await session.enable_user("ada")
            await session.enable_user("bob")  # it is answered 429 first

    run(main(), sockets=False)
    _, span = seen.spans()[ENABLE]
    (wait, told), (resend, why) = events(span)
    assert (wait, resend) == ("monocloud.wait", "monocloud.resend")
    assert why == {"error.type": "429", "http.response.status_code": 429}
    assert told["monocloud.seconds"] == pytest.approx(1, abs=0.1)
    assert told["monocloud.paused_seconds"] == told["monocloud.seconds"]


def test_a_wait_for_max_rate_is_no_pause(seen: Seen) -> None:
    async def main() -> None:
        async with Tenant().session(0.5) as session:
            await session.enable_user("ada")
            await session.enable_user("bob")

    run(main(), sockets=False)
    _, span = seen.spans()[ENABLE]
    ((name, told),) = events(span)
    assert name == "monocloud.wait"
    assert told["monocloud.seconds"] == pytest.approx(1.98, abs=0.01)
    assert told["monocloud.paused_seconds"] == 0


@pytest.mark.parametrize(
    ("step", "error", "kind", "outcome"),
    [
        (404, m.NotFoundError, "404", "failed"),
        (503, m.ServerError, "503", "failed"),
        ("reset", m.TransportError, "TransportError", "unknown"),
        ("html", m.InvalidResponseError, "InvalidResponseError", "failed"),
    ],
)
async def test_a_failed_call_says_how_in_its_span_and_its_duration(
    seen: Seen,
    since: Since,
    step: int | str,
    error: type[m.MonoCloudError],
    kind: str,
    outcome: str,
) -> None:
    async with FakeMonoCloud(Sandbox(users=["zoe"])) as session:
        session.sandbox.script("zoe", step)
        with pytest.raises(error):
            await session.enable_user("zoe", retry=RetryPolicy(attempts=1))
        host = session.tenant.removeprefix("https://")
    span = only(seen)
    assert not span.status.is_ok
    assert not span.status.is_unset
    assert span.attributes is not None
    assert span.attributes["error.type"] == kind
    assert span.attributes["monocloud.outcome"] == outcome
    assert span.attributes.get("http.response.status_code") == (
        step if isinstance(step, int) else 200 if step == "html" else None
    )
    assert "zoe" not in span.to_json()
    assert since.all("call.duration") == {tuple(sorted((host, "enable", outcome, kind))): 1}


@pytest.mark.parametrize(
    ("later", "outcome", "kind"),
    [
        (m.TransportError("refused", sent=False), "unknown", "TransportError"),
        (m.ServerError(status=503), "unknown", "503"),
        (m.NotFoundError(status=404), "failed", "404"),
    ],
)
def test_only_a_final_refusal_settles_a_request_without_a_response(
    since: Since, later: m.MonoCloudError, outcome: str, kind: str
) -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.faults = iter([m.TransportError("cut"), later])
        async with tenant.session() as session:
            with pytest.raises(type(later)):
                await session.enable_user("zoe", retry=RetryPolicy(attempts=2))

    run(main(), sockets=False)
    assert since("call.duration", HOST, "enable", outcome, kind) == 1


async def test_the_span_of_a_refused_user_has_monoclouds_trace_id(seen: Seen) -> None:
    async with FakeMonoCloud(Sandbox(users=["ada"])) as session:
        with pytest.raises(m.NotFoundError) as caught:
            await session.enable_user("nobody")
    span = only(seen)
    assert span.attributes is not None
    assert caught.value.trace_id
    assert span.attributes["monocloud.trace_id"] == caught.value.trace_id


async def test_a_cancelled_call_is_no_success(seen: Seen, since: Since) -> None:
    async with FakeMonoCloud(Sandbox(users=["ada"])) as session:
        session.sandbox.script("ada", "hang")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.enable_user("ada")
    span = only(seen)
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CancelledError"
    (labels,) = since.all("call.duration")
    assert "cancelled" in labels


@pytest.mark.usefixtures("seen")
def test_a_call_without_asyncio_says_so_although_it_is_observed() -> None:
    with pytest.raises(m.ConfigurationError, match="asyncio"):
        MonoCloudSession(HOST, "k").enable_user("ada").send(None)


def test_a_fault_that_is_not_ours_is_a_failure_and_no_cancellation(since: Since) -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.faults = iter([MemoryError()])
        async with tenant.session() as session:
            with pytest.raises(MemoryError):
                await session.enable_user("ada")

    run(main(), sockets=False)
    assert since("call.duration", HOST, "enable", "failed", "MemoryError") == 1


def test_what_was_refused_before_a_request_is_counted_by_its_reason(since: Since) -> None:
    told = []

    @contextmanager
    def refused(error: type[m.MonoCloudError]) -> Iterator[None]:
        with pytest.raises(error) as caught:
            yield
        told.append((caught.value.refusal, caught.value.attempts))

    async def main() -> None:
        tenant = Tenant()
        closed = tenant.session()
        await closed.close()
        with refused(m.ConfigurationError):
            await closed.enable_user("ada")
        async with tenant.session() as session:
            with refused(m.InvalidUserIdError):
                await session.enable_user("..")
            with refused(m.ConfigurationError):
                await session.enable_user("ada", timeout=-1)
        async with tenant.session(1) as session:
            await session.enable_user("ada")
            with refused(m.RateLimitedError):
                await session.enable_user("ada", retry=RetryPolicy(total=0.5))
        tenant.retry_after, tenant.limit = 30, Bucket(1, 1)
        async with tenant.session() as session:
            await session.enable_user("ada")
            busy = asyncio.create_task(session.enable_user("bob"))
            await asyncio.sleep(0.1)
            with refused(m.RateLimitedError):
                await session.enable_user("ada", retry=RetryPolicy(max_retry_after=1))
            await busy
        tenant.limit, tenant.down = None, (0, 10**6)
        async with tenant.session() as session:
            once = RetryPolicy(attempts=1)
            calls = [session.enable_user(f"u{n}", retry=once) for n in range(5)]
            await asyncio.gather(*calls, return_exceptions=True)
            with refused(m.ServerError):
                await session.enable_user("ada")

    run(main(), sockets=False)
    reasons = ("closed", "invalid_user_id", "configuration", "max_rate", "pause", "down")
    assert told == [(reason, 0) for reason in reasons]
    assert since.all("refusals") == {tuple(sorted((HOST, reason))): 1 for reason in reasons}
    for reason in reasons:
        assert since("call.duration", HOST, "enable", "refused", reason) == 1


def test_a_call_that_the_tenants_limit_has_no_place_for_is_counted(since: Since) -> None:
    async def main() -> None:
        async with Tenant(Bucket(10, 1)).session() as session:
            calls = [session.enable_user(f"u{n}", retry=RetryPolicy(total=5)) for n in range(200)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in results if isinstance(each, m.RateLimitedError)]
        assert {each.refusal for each in refused} == {"rate_limit"}
        never_sent = [each for each in refused if "nothing was sent" in each.args[0]]
        assert never_sent == [each for each in refused if not each.attempts]
        assert since("refusals", HOST, "rate_limit") == len(never_sent) > 0

    run(main(), sockets=False)


def test_requests_retries_and_429s_of_single_calls_are_the_tenants_own_count(
    since: Since,
) -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 5))
        tenant.failing = lambda user_id: user_id == "u7" and len(tenant.sent) < 100
        async with tenant.session() as session:
            calls = (session.enable_user(f"u{n}") for n in range(100))
            await asyncio.gather(*calls)
            assert since("requests", HOST, "call") == len(tenant.sent)
            assert since("throttled", HOST, "call") == session.pace.throttled > 0
        retries = len(tenant.sent) - 100 - since("throttled", HOST, "call")
        assert since("retries", HOST, "call") == retries > 0
        assert since("requests", HOST, "run") == 0
        assert since("call.duration", HOST, "enable", "ok") == 100

    run(main(), sockets=False)


async def test_a_request_without_a_connection_was_not_sent(since: Since) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with MonoCloudSession(f"http://127.0.0.1:{port}", "k") as session:
        with pytest.raises(m.TransportError):
            await session.enable_user("zoe", retry=RetryPolicy(attempts=1))
    assert since("requests", "127.0.0.1", "call") == 0
    assert since("call.duration", "127.0.0.1", "enable", "failed", "TransportError") == 1


async def test_what_was_never_sent_is_not_sent_again(seen: Seen, since: Since) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with MonoCloudSession(f"http://127.0.0.1:{port}", "k", retry=QUICK) as session:
        with pytest.raises(m.TransportError) as caught:
            await session.enable_user("zoe")
    assert caught.value.attempts == 4
    assert since("requests", "127.0.0.1", "call") == since("retries", "127.0.0.1", "call") == 0
    assert since.all("refusals") == {}
    span = only(seen)
    assert "http.request.resend_count" not in (span.attributes or {})
    assert (span.attributes or {})["monocloud.outcome"] == "failed"


def test_only_what_was_sent_after_a_request_is_a_retry(seen: Seen, since: Since) -> None:
    async def main() -> None:
        tenant = Tenant()
        unsent = m.TransportError("no connection", sent=False)
        tenant.faults = iter([unsent, m.ServerError(status=503), unsent])
        async with tenant.session() as session:
            await session.enable_user("ada", retry=QUICK)
        assert since("requests", HOST, "call") == 2
        assert since("retries", HOST, "call") == 1
        assert (only(seen).attributes or {})["http.request.resend_count"] == 1

    run(main(), sockets=False)


async def test_pages_of_a_list_that_a_run_reads_count_once(since: Since) -> None:
    async with (
        Sandbox(users=200) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        await session.bulk_enable(sandbox.user_ids(), check=True)
        sent = sandbox.stats().requests
        assert since("requests", "127.0.0.1", "run") == sent
        assert since("requests", "127.0.0.1", "call") == 0
        assert since.all("call.duration") == {}


@pytest.mark.parametrize("before", [0, 1])
def test_a_request_that_could_not_be_made_was_not_sent(since: Since, before: int) -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.faults = iter([*[m.ServerError(status=503)] * before, m.ConfigurationError("odd")])
        async with tenant.session() as session:
            with pytest.raises(m.MonoCloudError) as caught:
                await session.enable_user("zoe")
        assert caught.value.attempts == before

    run(main(), sockets=False)
    assert since("requests", HOST, "call") == before
    assert since("retries", HOST, "call") == 0
    assert since("refusals", HOST, "configuration") == 1 - before
    outcome = ("failed", "503") if before else ("refused", "configuration")
    assert since("call.duration", HOST, "enable", *outcome) == 1


async def test_a_call_by_a_closed_client_is_refused(since: Since) -> None:
    client = aiohttp.ClientSession()
    await client.close()
    async with MonoCloudSession(HOST, "k", client_session=client) as session:
        with pytest.raises(m.ConfigurationError):
            await session.enable_user("zoe")
    assert since("requests", HOST, "call") == 0
    assert since("refusals", HOST, "configuration") == 1


async def test_the_gauges_of_a_session_are_there_for_as_long_as_it_exists(
    seen: Seen, sandbox: Sandbox
) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        assert seen.figures()["monocloud.paused", "127.0.0.1"] == 0
        assert seen.figures()["monocloud.retry_budget", "127.0.0.1"] == 10
        sandbox.script("ada", 503, 503, 200)
        await session.enable_user("ada")
        assert seen.figures()["monocloud.retry_budget", "127.0.0.1"] == pytest.approx(8, abs=0.5)
        sandbox.script("bob", "429:30")
        with pytest.raises(m.RateLimitedError):
            await session.enable_user("bob", retry=RetryPolicy(max_retry_after=1))
        figures = seen.figures()
        assert figures["monocloud.paused", "127.0.0.1"] == 1
        assert figures["monocloud.waiting", "127.0.0.1"] == 0
        assert figures["monocloud.down", "127.0.0.1"] == 0
    assert ("monocloud.paused", "127.0.0.1") not in seen.figures()


@pytest.mark.parametrize("is_down", [False, True])
def test_an_idle_session_is_not_paused_or_down_for_ever(
    seen: Seen,
    is_down: bool,  # noqa: FBT001  the name of a case
) -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1))
        async with tenant.session() as session:
            if is_down:
                once = RetryPolicy(attempts=1)
                calls = (session.enable_user(f"u{n}", retry=once) for n in range(5))
                await asyncio.gather(*calls, return_exceptions=True)
            else:
                limiter = session.pace
                limiter.refused(limiter.send(0.0), 0.5, 0.0)
            figures = seen.figures()
            assert figures["monocloud.paused", HOST] == 1
            assert figures["monocloud.down", HOST] == is_down
            await asyncio.sleep(1)
            figures = seen.figures()
            assert figures["monocloud.paused", HOST] == 0
            assert figures["monocloud.down", HOST] == 0
            tenant.latency, tenant.down = 5, (0, 10)
            probe = asyncio.ensure_future(session.enable_user("probe"))
            await asyncio.sleep(1)
            figures = seen.figures()
            assert figures["monocloud.paused", HOST] == 1
            assert figures["monocloud.down", HOST] == is_down
            probe.cancel()
            await asyncio.wait([probe])

    run(main(), sockets=False)


async def test_a_session_that_nobody_closed_has_no_gauges_after_its_end(seen: Seen) -> None:
    session = MonoCloudSession(HOST, "k")
    assert ("monocloud.down", HOST) in seen.figures()
    del session
    assert ("monocloud.down", HOST) not in seen.figures()


@pytest.mark.usefixtures("requests_seen")
async def test_every_request_of_a_call_is_a_span_below_the_calls(
    seen: Seen, sandbox: Sandbox
) -> None:
    sandbox.script("ada", 503, 200)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        await session.enable_user("ada")
    spans = seen.spans()
    (whole,) = spans[ENABLE]
    assert whole.context is not None
    assert [span.attributes["http.status_code"] for span in spans["POST"] if span.attributes] == [
        503,
        200,
    ]
    assert {span.parent and span.parent.span_id for span in spans["POST"]} == {
        whole.context.span_id
    }


@pytest.fixture
def unsampled() -> Iterator[None]:
    tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("of an application")
    with tracer.start_as_current_span("GET /unlock"):
        yield


@pytest.mark.usefixtures("unsampled")
async def test_a_call_in_a_trace_that_is_not_sampled_has_no_span(seen: Seen, since: Since) -> None:
    async with FakeMonoCloud(Sandbox(users=["ada"])) as session:
        await session.enable_user("ada")
    assert not seen.spans()
    assert sum(since.all("call.duration").values()) == 1


async def test_a_call_of_a_task_that_outlives_the_sampled_span_above_has_a_span(
    seen: Seen,
) -> None:
    async with FakeMonoCloud(Sandbox(users=["ada"])) as session:
        with trace.get_tracer("of an application").start_as_current_span("GET /unlock") as above:
            task = asyncio.create_task(session.enable_user("ada"))
        await task
    (span,) = seen.spans()[ENABLE]
    assert span.parent == above.get_span_context()


@pytest.mark.parametrize("step", [404, 503, "reset"])
@pytest.mark.usefixtures("seen")
async def test_an_observed_call_keeps_no_error(sandbox: Sandbox, step: int | str) -> None:
    sandbox.script("ada", step)
    once = RetryPolicy(attempts=1)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=once) as session:
        gc.disable()
        try:
            with pytest.raises(m.MonoCloudError) as caught:
                await session.enable_user("ada")
            known = weakref.ref(caught.value)
            del caught
            assert known() is None
        finally:
            gc.enable()
