"""Single calls: the queue, the attempts and the retries."""

import asyncio
import gc
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import samples
from aiohttp import web
from conftest import QUICK
from raw_server import RawServer, answering
from sessions import KEY, NEVER, session_for
from tenant_in_memory import Tenant, users
from tenants import Bucket
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox


async def test_a_flaky_tenant_is_asked_again(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, 503, "reset", "cut", 200)
    assert (await session.enable_user(user_id)).disabled is False
    assert sandbox.stats().requests == 4


async def test_the_retry_policy_of_a_call_wins(sandbox: Sandbox, session: MonoCloudSession) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, 503, 200)
    with pytest.raises(m.ServerError):
        await session.enable_user(user_id, retry=NEVER)
    assert sandbox.stats().requests == 1


def test_a_hanging_tenant_ends_in_a_timeout_after_all_attempts() -> None:
    async def main() -> None:
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(), timeout=3.0) as session,
        ):
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError, match="within 3 s") as caught:
                await session.enable_user("u")
            assert asyncio.get_running_loop().time() - began >= 12
            assert (caught.value.attempts, len(server.requests)) == (4, 4)
            assert caught.value.sent
            await asyncio.sleep(0.3)  # aiohttp would round the deadline up to a whole second
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError, match="within 7 s"):
                await session.enable_user("u", timeout=7.0, retry=NEVER)
            assert asyncio.get_running_loop().time() - began < 7.01

    run(main())


def test_no_attempt_outlives_the_total_time() -> None:
    async def main() -> None:
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(total=25)) as session,
        ):
            began = asyncio.get_running_loop().time()
            with pytest.raises(m.RequestTimeoutError):
                await session.enable_user("u")
            assert asyncio.get_running_loop().time() - began <= 25.1

    run(main())


def test_a_pause_that_ends_when_the_time_does_hangs_nobody() -> None:
    """Aiohttp treats an expired timeout as no timeout."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with (
            RawServer(answering(lambda _: None)) as server,
            session_for(server.url, RetryPolicy(attempts=1, total=10)) as session,
        ):
            session.pace.refused(session.pace.send(clock()), 9.9, clock())
            async with asyncio.timeout(60):
                calls = [session.enable_user("u") for _ in range(100)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
            assert clock() < 10.1
        assert {type(error) for error in ended} <= {m.RequestTimeoutError, m.RateLimitedError}
        assert len(server.requests) < 5  # after the pause, one goes ahead

    run(main())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_many_calls_at_once_do_not_queue_for_connections() -> None:
    arrived = 0
    everyone = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal arrived
        arrived += 1
        if arrived == 150:
            everyone.set()
        await everyone.wait()  # no response before all requests have arrived
        return web.Response(body=samples.user(request.match_info["id"]))

    app = web.Application()
    app.router.add_post("/api/users/{id}/enable", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    try:
        async with session_for(f"http://127.0.0.1:{port}") as session:
            users = await asyncio.gather(*[session.enable_user(f"u{i}") for i in range(150)])
        assert len({user.user_id for user in users}) == 150
    finally:
        await runner.cleanup()


def _steps() -> Iterator[int]:
    yield from range(60)


async def test_cancellation_at_any_await_leaves_nothing_behind(sandbox: Sandbox) -> None:
    """Each round lets the call run one more iteration of the event loop, then cancels it."""
    sandbox.latency = 0.01
    finished = 0
    before = asyncio.all_tasks()
    for turns in _steps():
        async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
            sandbox.script(user_id := sandbox.user_ids()[0], 503)
            task = asyncio.create_task(session.enable_user(user_id))
            for _ in range(turns):
                await asyncio.sleep(0.0 if turns < 40 else 0.002)
            task.cancel()
            try:
                await task
                finished += 1
            except asyncio.CancelledError:
                pass
            if session._http._standard is not None:  # no public way to see it
                fast, connector = session._http._fast, session._http._standard._client.connector
                kept = fast._idle if fast is not None else []
                assert connector is not None
                assert connector._acquired == {protocol for _, protocol in kept}
        assert {t for t in asyncio.all_tasks() - before if "session" in repr(t)} == set()
    assert 0 < finished < 60


async def test_a_retry_that_is_no_policy_is_told_before_anything_is_sent() -> None:
    async with MonoCloudSession("acme.eu.monocloud.com", KEY) as session:
        with pytest.raises(m.ConfigurationError, match="retry must be"):
            await session.enable_user("ada", retry=3)  # type: ignore[arg-type]


def test_a_call_that_was_sent_once_does_not_say_that_nothing_was_sent() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        async with tenant.session() as session:
            results = await asyncio.gather(
                *map(session.enable_user, users(5)), return_exceptions=True
            )
            sent_once = [error for error in results if "not sent again" in str(error)]
            assert sent_once
            for error in sent_once:
                assert isinstance(error, m.MonoCloudError)
                assert (error.attempts, error.refusal) == (1, "down")
            with pytest.raises(m.ServerError, match="nothing was sent") as caught:
                await session.enable_user("ada")
            assert caught.value.attempts == 0

    run(main(), sockets=False)


def test_attempts_are_the_requests_that_were_sent_with_those_answered_429() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(1, 1))
        tenant.retry_after = 5
        async with tenant.session() as session:
            await session.enable_user("ada")
            with pytest.raises(m.RateLimitedError, match="not sent again") as caught:
                await session.enable_user("bob", retry=RetryPolicy(total=2))
            assert (caught.value.attempts, caught.value.refusal) == (1, "pause")
            with pytest.raises(m.RateLimitedError, match="nothing was sent") as caught:
                await session.enable_user("cy", retry=RetryPolicy(total=2))
            assert (caught.value.attempts, caught.value.refusal) == (0, "pause")
        tenant = Tenant(Bucket(0.1, 1))
        tenant.retry_after = 1
        tenant.failing = lambda user_id: len(tenant.sent) == 2  # only bob's first request
        async with tenant.session() as session:
            await session.enable_user("ada")
            with pytest.raises(m.RateLimitedError) as caught:
                await session.enable_user("bob", retry=RetryPolicy(total=6, max_retry_after=9))
            sent = [user_id for _, user_id in tenant.sent].count("bob")
            assert caught.value.attempts == sent > 2

    run(main(), sockets=False)


def test_a_call_that_waits_when_the_session_is_closed_sent_nothing() -> None:
    async def main() -> None:
        session = Tenant().session(0.1)
        await session.enable_user("ada")
        waiting = asyncio.create_task(session.enable_user("bob"))
        await asyncio.sleep(1)
        await session.close()
        with pytest.raises(m.ConfigurationError) as caught:
            await waiting
        assert (caught.value.attempts, caught.value.refusal) == (0, "closed")

    run(main(), sockets=False)


def test_single_calls_do_not_multiply_the_load_of_a_broken_tenant() -> None:
    """While it is down, only probes are sent; a call that is not sent says so."""

    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        unsent = 0
        async with tenant.session() as session:
            for user_id in users(200):
                with pytest.raises(m.MonoCloudError) as caught:
                    await session.enable_user(user_id)
                unsent += "nothing was sent" in str(caught.value)
            assert len(tenant.sent) < 40
            assert unsent > 150
            tenant.down = (0, 0)
            for user_id in users(28):
                await session.enable_user(user_id, retry=RetryPolicy(wait_if_down=True))
            assert not session.pace.down

    run(main(), sockets=False)


def test_a_call_whose_first_request_was_lost_was_sent_whatever_became_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits in an outage, and in the end the session is closed."""
    lost, refused = m.TransportError("reset"), m.TransportError("refused", sent=False)
    to_raise = [*[refused] * 5, lost, *[refused] * 9]

    async def send(*_arguments: object) -> None:
        raise to_raise.pop(0)

    async def main() -> None:
        session = session_for("http://127.0.0.1:9")
        monkeypatch.setattr(session._http, "send", send)
        for user_id in users(5):
            with pytest.raises(m.TransportError):
                await session.enable_user(user_id)
        assert session.pace.down
        patient = RetryPolicy(wait_if_down=True)
        call = asyncio.ensure_future(session.enable_user("ada", retry=patient))
        await asyncio.sleep(5)
        assert len(to_raise) < 9  # it was sent more than once
        await session.close()
        with pytest.raises(m.TransportError, match="refused") as caught:
            await call
        assert caught.value.sent

    run(main(), sockets=False)


def test_retries_of_single_calls_are_a_fifth_of_the_requests_and_an_error_says_so() -> None:
    async def main() -> None:
        tenant, seeded = Tenant(), random.Random(1)
        tenant.failing = lambda _user_id: seeded.random() < 0.4
        async with tenant.session() as session:
            calls = []
            for user_id in users(2000):
                calls.append(asyncio.ensure_future(session.enable_user(user_id)))
                await asyncio.sleep(0.01)
            ended = await asyncio.gather(*calls, return_exceptions=True)
        errors = [str(error) for error in ended if isinstance(error, m.ServerError)]
        assert 2300 < len(tenant.sent) < 1.21 * 2000 + 10
        assert any("not tried again: the session's retry budget is spent" in e for e in errors)

    run(main(), sockets=False)


async def test_a_timeout_after_retries_tells_how_long_the_whole_call_took(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, "hang", "hang", "hang")
    retry = RetryPolicy(attempts=3, wait_initial=0.001)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, timeout=0.1, retry=retry) as session:
        with pytest.raises(m.RequestTimeoutError) as caught:
            await session.enable_user(user_id)
        told = re.search(r"within 0\.1 s; ([\d.]+) s in all \(3 attempts\)", str(caught.value))
        assert told is not None
        assert float(told[1]) >= 0.3
        sandbox.script(user_id, "hang")
        with pytest.raises(m.RequestTimeoutError) as caught:
            await session.enable_user(user_id, retry=NEVER)
    assert "in all" not in str(caught.value)


def errors_in_memory() -> list[m.MonoCloudError]:
    return [each for each in gc.get_objects() if isinstance(each, m.MonoCloudError)]


@pytest.mark.parametrize("steps", [(404,), (503,), (401,), ("reset",), ("cut",), ("429:0", 200)])
async def test_an_error_is_gone_with_whoever_caught_it(
    sandbox: Sandbox, steps: tuple[int | str, ...]
) -> None:
    """Its traceback keeps the callers' variables, for as long as no garbage is collected."""
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, *steps)
    policy = RetryPolicy(attempts=2) if len(steps) > 1 else NEVER
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=policy) as session:
        gc.collect()
        gc.disable()
        try:
            before = set(map(id, errors_in_memory()))
            with suppress(m.MonoCloudError):
                await session.enable_user(user_id)
            left = [error for error in errors_in_memory() if id(error) not in before]
        finally:
            gc.enable()
    assert sandbox.stats().requests == len(steps)
    assert left == []
