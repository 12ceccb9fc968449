"""Closing a session: what is in progress may end, or is ended, and is told the truth."""

import asyncio
import gc
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import QUICK
from runs import adds_up

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector
from monocloud_async.journal.snapshot import reading
from monocloud_async.sandbox import Sandbox

NEVER = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(wait_initial=30, wait_max=30)


async def requested(sandbox: Sandbox, number: int) -> None:
    """Wait until the sandbox has received so many requests."""
    while sandbox.stats().requests < number:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.001)


async def test_calls_in_progress_end_well_with_their_retries(sandbox: Sandbox) -> None:
    ada, bob, eve, *_ = sandbox.user_ids()
    sandbox.latency = 0.1
    sandbox.script(bob, 503, 200)
    session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK)
    calls = [asyncio.ensure_future(session.enable_user(each)) for each in (ada, bob)]
    await requested(sandbox, 2)
    closing = asyncio.ensure_future(session.close(drain=30))
    await asyncio.sleep(0)
    with pytest.raises(m.ConfigurationError, match="this session is closed"):
        await session.enable_user(eve)
    await closing
    assert [call.result().user_id for call in calls] == [ada, bob]
    assert sandbox.is_disabled(eve)


async def test_a_run_finishes_its_calls_and_leaves_the_rest_for_its_journal(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.latency = 0.1
    ids, path = sandbox.user_ids(), tmp_path / "users.journal"
    session = MonoCloudSession(sandbox.url, sandbox.api_key)
    run = session.bulk_enable(ids, concurrency=4, journal=path)
    running = asyncio.ensure_future(_report(run))
    await requested(sandbox, 3)
    await session.close(drain=30)
    with pytest.raises(m.RunStoppedError, match="the session was closed") as caught:
        await running
    report = caught.value.report
    assert adds_up(report)
    assert 3 <= report.enabled == report.total < len(ids)
    with reading(path) as (rows, _size):
        how = "stopped: the session was closed; a new one can go on"
        assert rows.execute("SELECT how FROM sittings").fetchall() == [(how,)]
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        again = await session.bulk_enable(ids, journal=path)
    assert (again.already_enabled, again.enabled) == (report.enabled, len(ids) - report.enabled)
    assert sandbox.stats().by_status == {"200": len(ids)}


async def _report(run: m.BulkRun) -> m.BulkReport:
    return await run


async def test_a_run_whose_last_calls_are_in_flight_ends_as_if_nothing_were(
    sandbox: Sandbox,
) -> None:
    sandbox.latency = 0.2
    session = MonoCloudSession(sandbox.url, sandbox.api_key)
    run = session.bulk_enable(sandbox.user_ids())
    running = asyncio.ensure_future(_report(run))
    await requested(sandbox, 20)
    while not run.report.exhausted:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.001)
    await session.close(drain=30)
    assert (await running).enabled == 20


async def test_what_lasts_longer_is_told_what_became_of_its_last_request(sandbox: Sandbox) -> None:
    hung, failed, throttled, *rest = sandbox.user_ids()
    for user_id, step in ((hung, "hang"), (failed, 503), (throttled, "429:30")):
        sandbox.script(user_id, step)
    session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=PATIENT)
    calls = []
    for number, user_id in enumerate((hung, failed, throttled)):
        calls.append(asyncio.ensure_future(session.enable_user(user_id)))
        await requested(sandbox, number + 1)
    while session.pace.state != "paused":  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.001)
    unsent = asyncio.ensure_future(session.enable_user(rest[0]))
    await asyncio.sleep(0)
    await session.close(drain=0.05)
    ends = await asyncio.gather(*calls, unsent, return_exceptions=True)
    kinds = [m.TransportError, m.ServerError, m.RateLimitedError, m.ConfigurationError]
    assert [type(end) for end in ends] == kinds
    assert "the session was closed before an answer came" in str(ends[0])


async def test_a_call_that_was_still_waiting_for_a_connection_sent_nothing(
    sandbox: Sandbox,
) -> None:
    first, second, *_ = sandbox.user_ids()
    sandbox.latency = 5
    async with aiohttp.ClientSession(connector=Connector(limit=1)) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client, retry=NEVER)
        sent = asyncio.ensure_future(session.enable_user(first))
        await requested(sandbox, 1)
        unsent = asyncio.ensure_future(session.enable_user(second))
        await asyncio.sleep(0)
        await session.close()
        ends = await asyncio.gather(sent, unsent, return_exceptions=True)
    assert [type(end) for end in ends] == [m.TransportError, m.ConfigurationError]


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
async def test_closing_is_no_news_of_the_tenant(
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    borrowed: bool,  # noqa: FBT001  a table
) -> None:
    """Be it the session that is closed, or the client that it borrowed."""
    caplog.set_level(logging.WARNING, "monocloud_async")
    sandbox.latency = 5
    client = aiohttp.ClientSession() if borrowed else None
    session = MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client, retry=NEVER)
    calls = [asyncio.ensure_future(session.enable_user(each)) for each in sandbox.user_ids()]
    await requested(sandbox, 20)
    await (session if client is None else client).close()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, m.TransportError) and not end.transient for end in ends)
    assert (session.pace.down, caplog.messages) == (False, [])
    await session.close()


async def test_when_close_returns_nothing_is_in_progress(sandbox: Sandbox) -> None:
    sandbox.latency = 5
    session = MonoCloudSession(sandbox.url, sandbox.api_key)
    session.pace.granted(session.pace.send(0.0), 0.0)
    running = asyncio.ensure_future(_report(session.bulk_enable(sandbox.user_ids())))
    call = asyncio.ensure_future(session.enable_user("u"))
    await requested(sandbox, 2)
    await session.close()
    await asyncio.sleep(0)
    assert running.done()
    assert call.done()
    with pytest.raises(m.RunStoppedError) as caught:
        await running
    assert caught.value.report.unknown == caught.value.report.requests
    with pytest.raises(m.TransportError):
        await call


async def test_a_second_close_ends_the_wait_of_the_first(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, "hang")
    session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER)
    call = asyncio.ensure_future(session.enable_user(user_id))
    await requested(sandbox, 1)
    first = asyncio.ensure_future(session.close(drain=3000))
    await asyncio.sleep(0.01)
    assert not first.done()
    await session.close()
    await asyncio.wait_for(first, 5)
    with pytest.raises(m.TransportError):
        await call


async def test_a_close_that_is_cancelled_closes_nevertheless(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    sandbox.script(user_id, "hang")
    session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER)
    call = asyncio.ensure_future(session.enable_user(user_id))
    await requested(sandbox, 1)
    closing = asyncio.ensure_future(session.close(drain=3000))
    await asyncio.sleep(0.01)
    closing.cancel()
    await asyncio.wait([call, closing])
    assert closing.cancelled()
    assert isinstance(call.exception(), m.TransportError)


@pytest.mark.parametrize("drain", [-1, float("nan"), float("inf"), "20"])
async def test_drain_is_a_number_of_seconds(drain: float) -> None:
    async with MonoCloudSession("acme.invalid", "any-key") as session:
        with pytest.raises(m.ConfigurationError, match="drain must be a number, 0 or more"):
            await session.close(drain=drain)


async def test_a_closed_session_refuses_a_run_before_its_journal_is_made(tmp_path: Path) -> None:
    session = MonoCloudSession("acme.invalid", "any-key")
    early = session.bulk_enable(["u"], journal=tmp_path / "early.journal")
    await session.close()
    with pytest.raises(m.ConfigurationError, match="this session is closed"):
        session.bulk_enable(["u"])
    with pytest.raises(m.ConfigurationError, match="this session is closed"):
        await early
    assert list(tmp_path.iterdir()) == []


async def _enable_one(session: MonoCloudSession, sandbox: Sandbox) -> None:
    await session.enable_user(sandbox.user_ids()[0])


def test_a_session_of_another_loop_refuses_a_run_before_its_journal_is_made(tmp_path: Path) -> None:
    with Sandbox(users=2) as sandbox:
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
        asyncio.run(_enable_one(session, sandbox))

        async def elsewhere() -> None:
            with pytest.raises(m.ConfigurationError, match="belongs to another event loop"):
                await session.bulk_enable(sandbox.user_ids(), journal=tmp_path / "a.journal")
            await session.close()

        asyncio.run(elsewhere())
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_nobody_closes_is_named_and_its_connections_close_with_the_loop() -> None:
    with Sandbox(users=2) as sandbox, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
        asyncio.run(_enable_one(session, sandbox))
        gc.collect()
        assert told == []
        del session
        gc.collect()
        assert [str(each.message) for each in told] == [
            f"unclosed <MonoCloudSession {sandbox.url}>"
        ]


@pytest.mark.parametrize("how", ["stopped", "closed"])
def test_a_session_can_be_closed_after_its_loop(how: str) -> None:
    with Sandbox(users=2) as sandbox, asyncio.Runner() as runner:
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
        runner.run(_enable_one(session, sandbox))
        if how == "closed":
            runner.close()
        asyncio.run(session.close())
        asyncio.run(session.close())
        assert "closed" in repr(session)


def test_what_waits_on_a_stopped_loop_is_ended_there() -> None:
    async def begin() -> list[asyncio.Future[Any]]:
        run = session.bulk_enable(sandbox.user_ids(), concurrency=2)
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(_report(run)),
            asyncio.ensure_future(session.enable_user("u")),
        ]
        await requested(sandbox, 2)
        return tasks

    async def end(tasks: list[asyncio.Future[Any]]) -> list[Any]:
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Sandbox(users=9, latency=5) as sandbox, asyncio.Runner() as runner:
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
        tasks = runner.run(begin())
        asyncio.run(session.close())
        stopped, ended = runner.run(end(tasks))
    assert isinstance(stopped, m.RunStoppedError)
    assert isinstance(ended, m.TransportError)


def test_a_session_in_use_in_another_thread_is_closed_there() -> None:
    with Sandbox(users=2) as sandbox:
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(_enable_one(session, sandbox), loop).result()
        with pytest.raises(m.ConfigurationError, match="another thread; close it there"):
            asyncio.run(session.close())
        asyncio.run_coroutine_threadsafe(session.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_to_iterate_over_a_run_that_cannot_begin_is_an_error(sandbox: Sandbox) -> None:
    session = MonoCloudSession(sandbox.url, sandbox.api_key)
    run = session.bulk_enable(["ada"])
    await session.close()
    async with asyncio.timeout(10), run:
        with pytest.raises(m.ConfigurationError, match="closed"):
            await anext(run)


async def test_a_run_is_entered_once(sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        run = session.bulk_enable(sandbox.user_ids())
        async with run:
            with pytest.raises(m.ConfigurationError, match="started before"):
                await run.__aenter__()
            assert len([outcome async for outcome in run]) == 20
        with pytest.raises(m.ConfigurationError, match="started before"):
            await run
