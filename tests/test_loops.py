"""Calls and runs on the event loops, and in the modes, that applications choose."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox
from monocloud_async.testing import FakeMonoCloud

Runner = asyncio.Runner
Use = Callable[[Sandbox, MonoCloudSession], Awaitable[None]]


def uvloops(*, debug: bool) -> Runner:
    return Runner(loop_factory=pytest.importorskip("uvloop").new_event_loop, debug=debug)


def eager(*, debug: bool) -> Runner:
    """Its tasks begin inside `create_task`."""
    if sys.version_info < (3, 12):
        pytest.skip("asyncio has no eager tasks before Python 3.12")
    runner = Runner(debug=debug)
    runner.get_loop().set_task_factory(asyncio.eager_task_factory)
    return runner


@pytest.fixture(params=[Runner, uvloops, eager], ids=["asyncio", "uvloop", "eager"])
def runner(request: pytest.FixtureRequest, debug: bool) -> Iterator[Runner]:  # noqa: FBT001  a table
    with request.param(debug=debug) as runner:
        yield runner


async def calls(sandbox: Sandbox, session: MonoCloudSession) -> None:
    first, second, *_ = sandbox.user_ids()
    sandbox.script(first, "reset", 503, "cut", 200)
    assert (await session.enable_user(first)).user_id == first
    with pytest.raises(m.NotFoundError):
        await session.enable_user("nobody")
    sandbox.script(second, "hang")
    with pytest.raises(m.RequestTimeoutError):
        await session.enable_user(second, timeout=0.2, retry=RetryPolicy(attempts=1))
    both = asyncio.gather(session.enable_user(first), session.enable_user(second))
    assert [user.user_id for user in await both] == [first, second]
    call = asyncio.create_task(session.enable_user(first))
    await asyncio.sleep(0)
    call.cancel()
    assert isinstance(*await asyncio.gather(call, return_exceptions=True), asyncio.CancelledError)


async def runs(sandbox: Sandbox, session: MonoCloudSession) -> None:
    for users, concurrency in ((0, 100), (40, 100)):
        ids = sandbox.user_ids()[:users]
        report = await session.bulk_enable(ids, concurrency=concurrency)
        assert (report.enabled, report.total, report.exhausted) == (users, users, True)
        async with session.bulk_enable([*ids, "nobody"], concurrency=concurrency) as run:
            statuses = [outcome.status async for outcome in run]
        assert (statuses.count("enabled"), statuses.count("failed")) == (users, 1)
        assert run.in_flight == 0
    run = session.bulk_enable(sandbox.user_ids(), concurrency=5, on_outcome=lambda _: run.drain())
    report = await run
    assert not report.exhausted
    assert 1 <= report.enabled == report.total < 40


@pytest.mark.parametrize("debug", [False])
def test_a_fake_connection_that_is_reset_takes_no_timeout_on_any_loop(runner: Runner) -> None:
    async def main() -> None:
        once = RetryPolicy(attempts=1)
        async with FakeMonoCloud(retry=once, timeout=3600) as session, asyncio.timeout(60):
            session.sandbox.script("ada", "reset")
            with pytest.raises(m.TransportError):
                await session.enable_user("ada")

    runner.run(main())


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("use", [calls, runs])
def test_it_is_the_same_on_any_loop(use: Use, runner: Runner) -> None:
    policy = RetryPolicy(wait_initial=0.001, wait_max=0.002)

    async def main() -> None:
        async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=policy) as session:
            await use(sandbox, session)
        assert len(asyncio.all_tasks()) == 1

    with Sandbox(users=40) as sandbox:  # on a loop of its own
        runner.run(main())


WITHOUT_ASSERTIONS = """
import asyncio
from monocloud_async import MonoCloudSession
from monocloud_async.sandbox import Sandbox

async def main():
    async with Sandbox(users=50) as sandbox:
        async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
            first, *others = sandbox.user_ids()
            print((await session.enable_user(first)).user_id == first)
            print((await session.bulk_enable(others)).enabled)

asyncio.run(main())
"""


@pytest.mark.process
def test_it_is_the_same_without_assertions() -> None:
    process = subprocess.run(
        [sys.executable, "-O", "-W", "error", "-c", WITHOUT_ASSERTIONS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (process.stdout.split(), process.stderr) == (["True", "49"], "")
