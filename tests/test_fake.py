"""A session whose tenant is in memory behaves as one over sockets."""

import asyncio
import socket
from pathlib import Path
from unittest.mock import create_autospec

import pytest

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox
from monocloud_async.testing import FakeMonoCloud


@pytest.fixture(autouse=True)
def _no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("no connection is needed")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


async def test_users_are_enabled_disabled_and_listed() -> None:
    async with FakeMonoCloud(Sandbox(users=["ada", "bob"])) as session:
        assert (await session.enable_user("ada")).disabled is False
        assert (await session.disable_user("ada", revoke_sessions=True)).disabled is True
        assert session.sandbox.sessions_revoked("ada")
        assert (await session.get_user("bob")).user_id == "bob"
        assert [user.user_id async for user in session.list_users()] == ["ada", "bob"]
        with pytest.raises(m.NotFoundError):
            await session.enable_user("nobody")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (404, m.NotFoundError),
        (503, m.ServerError),
        ("429:1", m.RateLimitedError),
        ("422:identity", m.IdentityValidationError),
        ("reset", m.TransportError),
        ("cut", m.TransportError),
        ("hang", m.RequestTimeoutError),
        ("html", m.InvalidResponseError),
    ],
)
async def test_each_fault_is_the_error_that_it_is_over_sockets(
    step: int | str, error: type[m.MonoCloudError]
) -> None:
    once, timeout = RetryPolicy(attempts=1), 0.05 if step == "hang" else 10.0
    async with FakeMonoCloud(retry=once, timeout=timeout) as session:
        session.sandbox.script("ada", step)
        with pytest.raises(error) as caught:
            await session.enable_user("ada")
    assert type(caught.value) is error


async def test_faults_that_pass_are_retried_in_hundredths_of_a_second() -> None:
    async with FakeMonoCloud() as session:
        session.sandbox.script("ada", 503, "reset", "cut", 200)
        assert (await session.enable_user("ada")).user_id == "ada"
        assert session.sandbox.stats().requests == 4


async def test_a_run_has_its_outcomes_its_bounds_and_its_journal(tmp_path: Path) -> None:
    async with FakeMonoCloud(Sandbox(users=30, latency=0.2)) as session:
        ids = session.sandbox.user_ids()
        async with session.bulk_enable(ids, concurrency=7, journal=tmp_path / "j") as run:
            statuses = [outcome.status async for outcome in run]
        assert statuses == ["enabled"] * 30
        assert session.sandbox.stats().peak_in_flight == 7
        again = await session.bulk_enable(ids, journal=tmp_path / "j")
        assert again.already_enabled == 30


async def test_closing_ends_what_hangs() -> None:
    session = FakeMonoCloud()
    session.sandbox.script("ada", "hang")
    call = asyncio.ensure_future(session.enable_user("ada"))
    await asyncio.sleep(0.01)
    await session.close()
    with pytest.raises(m.TransportError, match="the session was closed"):
        await call


async def test_an_autospec_has_every_method_and_a_fake_gives_it_runs() -> None:
    mocked = create_autospec(MonoCloudSession, instance=True)
    mocked.enable_user.return_value = m.User(user_id="ada", disabled=False)
    assert (await mocked.enable_user("ada", timeout=3)).user_id == "ada"
    with pytest.raises(TypeError):
        mocked.bulk_enable()
    async with FakeMonoCloud() as fake:
        mocked.bulk_enable.side_effect = fake.bulk_enable
        ids = fake.sandbox.user_ids()
        assert (await mocked.bulk_enable(ids)).enabled == 10
        mocked.bulk_enable.assert_called_once_with(ids)
    await mocked.close(drain=20)
