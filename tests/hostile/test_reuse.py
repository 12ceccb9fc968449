"""How a kept-alive connection affects the call that reuses it."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from clients import against, run
from faults import USER, Fault, Tls, chunked
from raw_server import Peer, RawServer, answering, http
from secrets_search import KEY
from ways import Way, session_by

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector

BOB = http(b'{"user_id":"bob"}')
ONCE = RetryPolicy(attempts=1)
every_way = pytest.mark.parametrize("way", ["fast", "hooked", "lent", "theirs"])


async def first_call(peer: Peer) -> None:
    await peer.request()
    await peer.send(http(USER))


async def leaves_as_it_is_reused(peer: Peer) -> None:
    await first_call(peer)
    await peer.request()


async def resets_as_it_is_reused(peer: Peer) -> None:
    await leaves_as_it_is_reused(peer)
    peer.reset()


@pytest.mark.parametrize("act", [leaves_as_it_is_reused, resets_as_it_is_reused])
def test_a_connection_that_dies_as_it_is_reused_costs_no_time(
    act: Callable[[Peer], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with RawServer(act) as server, MonoCloudSession(server.url, KEY) as session:
            for _ in range(5):
                assert (await session.enable_user("ada")).user_id == "ada"
            assert (server.connections, len(server.requests)) == (5, 9)
            assert asyncio.get_running_loop().time() < 0.1  # no wait

    run(main())


@every_way
@pytest.mark.parametrize("act", [leaves_as_it_is_reused, resets_as_it_is_reused])
def test_a_server_that_ends_every_connection_as_it_is_reused_is_not_noticed(
    act: Callable[[Peer], Awaitable[None]],
    way: Way,
    by_hand: bool,  # noqa: FBT001  a fixture
) -> None:
    """It uses no attempt, no token of the session's retry budget, and no wait."""
    calls = 4_000 if by_hand else 400

    async def main() -> None:
        async with (
            RawServer(act) as server,
            session_by(way, server.url, KEY, retry=ONCE) as session,
        ):
            for _ in range(calls):
                assert (await session.enable_user("ada")).user_id == "ada"
            assert (server.connections, len(server.requests)) == (calls, 2 * calls - 1)
            assert asyncio.get_running_loop().time() < 0.1

    run(main())


@every_way
def test_the_free_retry_is_one(way: Way) -> None:
    """A server that no longer responds is not a problem of the connections."""

    async def act(peer: Peer) -> None:
        if server.connections == 1:
            await first_call(peer)
        await peer.request()
        peer.reset()

    server = RawServer(act)

    async def main() -> None:
        async with server, session_by(way, server.url, KEY, retry=ONCE) as session:
            await session.enable_user("ada")
            for requests in (3, 4):
                with pytest.raises(
                    m.TransportError, match=r"connection broke|closed before"
                ) as caught:
                    await session.enable_user("ada")
                assert (caught.value.attempts, len(server.requests)) == (1, requests)

    run(main())


def refuse(server: RawServer, _patch: pytest.MonkeyPatch) -> None:
    server.refuse()


def never_answer(_server: RawServer, patch: pytest.MonkeyPatch) -> None:
    async def wait(*_arguments: object) -> None:
        await asyncio.sleep(3600)

    patch.setattr(aiohttp.TCPConnector, "_create_connection", wait)


@every_way
@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("go_away", [refuse, never_answer])
def test_who_was_asked_over_a_connection_that_died_was_asked_if_no_other_can_be_made(
    way: Way,
    attempts: int,
    go_away: Callable[[RawServer, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tenant may have done it before it went away."""

    async def act(peer: Peer) -> None:
        await first_call(peer)
        await peer.request()
        go_away(server, monkeypatch)
        peer.reset()

    server = RawServer(act)
    policy = RetryPolicy(attempts=attempts, wait_initial=0.01)

    async def main() -> None:
        async with server, session_by(way, server.url, KEY, retry=policy) as session:
            await session.enable_user("ada")
            with pytest.raises(m.TransportError) as caught:
                await session.enable_user("ada")
            assert caught.value.sent
            assert len(server.requests) == 2

    run(main())


@every_way
def test_in_a_run_too_who_was_asked_over_a_connection_that_died_is_unknown(way: Way) -> None:
    async def act(peer: Peer) -> None:
        await first_call(peer)
        await peer.request()
        server.refuse()
        peer.reset()

    server = RawServer(act)
    policy = RetryPolicy(attempts=2, wait_initial=0.01)

    async def main() -> None:
        async with server, session_by(way, server.url, KEY, retry=policy) as session:
            report = await session.bulk_enable(["ada", "ada"], concurrency=1)
            assert (report.enabled, report.unknown) == (1, 1)
            (error,) = [outcome.error for outcome in report.failures]
            assert isinstance(error, m.TransportError)
            assert error.sent

    run(main())


@pytest.mark.parametrize("kind", [Connector, aiohttp.TCPConnector])
def test_who_was_asked_before_the_borrowed_session_was_closed_was_asked(
    kind: type[aiohttp.TCPConnector],
) -> None:
    async def main() -> None:
        async def act(peer: Peer) -> None:
            await first_call(peer)
            await peer.request()
            await client.close()

        async with (
            RawServer(act) as server,
            aiohttp.ClientSession(connector=kind()) as client,
            MonoCloudSession(server.url, KEY, retry=ONCE, client_session=client) as session,
        ):
            await session.enable_user("ada")
            with pytest.raises(m.TransportError, match="was closed before an answer") as caught:
                await session.enable_user("ada")
            assert caught.value.sent

    run(main())


MANY = 100


@every_way
@pytest.mark.parametrize("death", ["reset", "end", "reset as it is used", "end as it is used"])
def test_a_hundred_connections_that_die_at_once_are_nobodys_fault(way: Way, death: str) -> None:
    """After a gateway has restarted, the next call does not use the closed connections."""
    everybody, killed = asyncio.Barrier(MANY), asyncio.Event()

    async def act(peer: Peer) -> None:
        old = server.connections <= MANY
        await peer.request()
        if old:
            await everybody.wait()
        await peer.send(http(USER))
        if old:
            await (peer.request() if death.endswith("used") else killed.wait())
            if death.startswith("reset"):
                peer.reset()
            return
        while True:
            await peer.request()
            await peer.send(http(USER))

    server = RawServer(act)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with server, session_by(way, server.url, KEY, retry=ONCE) as session:
            await asyncio.gather(*(session.enable_user("ada") for _ in range(MANY)))
            assert server.connections == MANY
            killed.set()
            began = clock()
            for calls in (1, MANY, MANY):
                users = await asyncio.gather(*(session.enable_user("ada") for _ in range(calls)))
                assert [user.user_id for user in users] == ["ada"] * calls
            assert clock() - began < 0.1
            report = await session.bulk_enable(["ada"] * MANY)
            assert (report.enabled, report.retries) == (MANY, 0)

    run(main())


SWITCHES = {
    "bare": b"HTTP/1.1 101 X\r\n\r\n",
    "with a protocol": b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n",
    "whole": b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "with a length": http(b"ok", status=101),
    "in chunks": chunked(b"ok", status=101),
}


@every_way
@pytest.mark.parametrize("behind", [b"", BOB, b"\0\0\6\4\0\0\0\0\0"], ids=["", "user", "h2c"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_connection_that_speaks_another_protocol_is_given_up(
    way: Way, switch: str, behind: bytes
) -> None:
    """No request was sent, so the data on the connection is not a response."""

    async def act(peer: Peer) -> None:
        old = server.connections == 1
        while True:
            request = await peer.request()
            if b"/bob/" not in request:
                await peer.send(SWITCHES[switch] + behind)
            elif old:
                await peer.send(http(b'{"title":"for ada"}', status=404))
            else:
                await peer.send(http(b'{"user_id":"bob","creation_time":4711}'))

    server = RawServer(act)

    async def main() -> None:
        async with server, session_by(way, server.url, KEY, retry=ONCE) as session:
            with pytest.raises(m.InvalidResponseError, match="status 101"):
                await session.enable_user("ada")
            assert (await session.enable_user("bob")).creation_time == 4711
            assert (server.connections, len(server.requests)) == (2, 2)

    run(main())


@pytest.mark.parametrize("tls", ["", "trusted"])
def test_a_connection_on_which_nobody_spoke_is_used_again(tls: Tls) -> None:
    """TLS session tickets are neither a response nor a reason to close the connection."""
    fault = Fault(kind="none", name="none", act=answering(http(USER)), error=None, tls=tls)

    async def main() -> None:
        async with against(fault) as (server, session):
            for pause in (0.0, 0.1, 0.0, 0.1):
                await session.enable_user("ada")
                await asyncio.sleep(pause)
            assert (server.connections, len(server.requests)) == (1, 4)

    run(main())


@pytest.mark.parametrize("when", [0.0, 0.2])
@pytest.mark.parametrize(
    "smuggled", [BOB, http(b"", status=404), BOB[:-1], b"x"], ids=["user", "refusal", "half", "x"]
)
def test_words_that_nobody_asked_for_are_nobodys_answer(smuggled: bytes, when: float) -> None:
    """A second response after the first is not used for the next call."""

    async def act(peer: Peer) -> None:
        request = await peer.request()
        if b"/bob/" in request:
            await peer.send(http(b'{"user_id":"bob","creation_time":4711}'))
            return
        answers = [http(USER), smuggled]
        if when:
            await peer.send(answers.pop(0))
            await asyncio.sleep(when)
        await peer.send(b"".join(answers))
        await peer.silence()

    async def main() -> None:
        async with RawServer(act) as server:
            async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
                await session.enable_user("ada")
                await asyncio.sleep(2 * when)
                assert (await session.enable_user("bob")).creation_time == 4711
            assert (server.connections, len(server.requests)) == (2, 2)

    run(main())


@pytest.mark.parametrize("ends", [False, True])
def test_what_the_event_loop_has_not_read_yet_counts_too(ends: bool) -> None:  # noqa: FBT001  a table
    """Wait until the data, or the end, has arrived when the next call looks for a connection."""
    spoken = asyncio.Event()

    async def act(peer: Peer) -> None:
        request = await peer.request()
        if b"/bob/" in request:
            await peer.send(http(b'{"user_id":"bob","creation_time":4711}'))
            return
        await peer.send(http(USER))
        await asyncio.sleep(0.1)
        if ends:
            peer.drop()
        else:
            await peer.send(BOB)
        spoken.set()

    async def main() -> None:
        async with RawServer(act) as server:
            async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
                await session.enable_user("ada")
                await spoken.wait()
                assert (await session.enable_user("bob")).creation_time == 4711
            assert (server.connections, len(server.requests)) == (2, 2)

    run(main())


def test_a_connection_that_waits_is_not_read_without_end() -> None:
    heard_out = asyncio.Event()

    async def act(peer: Peer) -> None:
        await first_call(peer)
        await asyncio.sleep(0.1)
        try:
            for _ in range(1000):
                await peer.send(http(b"", status=204, length=False) * 3000)
                await asyncio.sleep(0)
        except ConnectionError:
            heard_out.set()

    async def main() -> None:
        async with (
            RawServer(act) as server,
            MonoCloudSession(server.url, KEY, retry=ONCE) as session,
        ):
            await session.enable_user("ada")
            async with asyncio.timeout(10):
                await heard_out.wait()

    run(main())


def test_every_connection_that_spoke_unasked_is_given_up() -> None:
    async def act(peer: Peer) -> None:
        await first_call(peer)
        await asyncio.sleep(0.2)
        await peer.send(BOB)
        await peer.silence()

    async def main() -> None:
        async with RawServer(act) as server:
            async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
                for _ in range(2):
                    await asyncio.gather(*(session.enable_user("ada") for _ in range(10)))
                    await asyncio.sleep(0.4)
            assert (server.connections, len(server.requests)) == (20, 20)

    run(main())


def test_a_server_that_speaks_first_is_not_called_again_and_again() -> None:
    async def act(peer: Peer) -> None:
        await peer.send(b"220 mail.example ESMTP\r\n")
        await peer.silence()

    async def main() -> None:
        async with RawServer(act) as server:
            async with MonoCloudSession(server.url, KEY, retry=ONCE) as session:
                for _ in range(2):
                    with pytest.raises(m.TransportError, match="not HTTP"):
                        await session.enable_user("ada")
            assert server.connections == 2

    run(main())
