"""Who may use a session: one process and one event loop of asyncio, until it is closed."""

import asyncio
import os
import socket

import aiohttp
import pytest
from sessions import KEY, NEVER, session_for

import monocloud_async as m
from monocloud_async import MonoCloudSession
from monocloud_async.sandbox import Sandbox


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_closed_session_says_so(sandbox: Sandbox) -> None:
    session = session_for(sandbox.url)
    await session.close()
    await session.close()
    assert "closed" in repr(session)
    with pytest.raises(m.ConfigurationError, match="closed"):
        await session.enable_user("u")
    client = aiohttp.ClientSession()
    await client.close()
    borrower = MonoCloudSession(sandbox.url, KEY, client_session=client)
    with pytest.raises(m.ConfigurationError, match="borrowed"):
        await borrower.enable_user("u")


def test_a_session_whose_constructor_has_not_begun_can_be_printed() -> None:
    assert repr(MonoCloudSession.__new__(MonoCloudSession)) == "<MonoCloudSession of no tenant yet>"


def test_a_session_of_another_event_loop_says_so() -> None:
    session = session_for(f"http://127.0.0.1:{free_port()}")

    async def call() -> None:
        with pytest.raises(m.TransportError):
            await session.enable_user("u")

    async def call_again() -> None:
        with pytest.raises(m.ConfigurationError, match="another event loop"):
            await session.enable_user("u")
        with pytest.raises(m.ConfigurationError, match="another event loop"):
            session.bulk_enable(["u"])
        await session.close()

    asyncio.run(call())
    asyncio.run(call_again())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about threads and forks
def test_a_session_of_another_process_says_so_and_leaves_its_connections_alone() -> None:
    async def use() -> str:
        said = []
        for call in (
            session.enable_user,
            session.get_user,
            lambda user: session.bulk_enable([user]),
        ):
            try:
                await call(user)
            except m.ConfigurationError as error:
                said.append(str(error))
        await session.close()
        return "\n".join(said)

    with Sandbox(users=2) as sandbox, asyncio.Runner() as runner:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER)
        user = sandbox.user_ids()[0]
        runner.run(session.enable_user(user))
        theirs, ours = os.pipe()
        if os.fork() == 0:  # pragma: no cover  another process, with a copy of the event loop
            try:
                os.write(ours, runner.run(use()).encode())
            finally:
                os._exit(0)
        os.close(ours)
        with os.fdopen(theirs) as told:
            lines = told.read().splitlines()
        os.wait()
        assert len(lines) == 3
        assert all("belongs to another process; open one here" in line for line in lines)
        runner.run(session.enable_user(user))
        runner.run(session.close())
        assert sandbox.stats().requests == 2


@pytest.mark.parametrize("what", ["call", "run", "outcomes", "list"])
def test_without_asyncio_a_session_says_what_it_needs(what: str) -> None:
    session = session_for("http://127.0.0.1:1")

    async def use() -> None:
        match what:
            case "call":
                await session.enable_user("u")
            case "run":
                await session.bulk_enable(["u"])
            case "outcomes":
                async with session.bulk_enable(["u"]):
                    pass
            case _:
                await anext(aiter(session.list_users()))

    with pytest.raises(m.ConfigurationError, match="needs a running event loop of asyncio"):
        use().send(None)  # as trio does
