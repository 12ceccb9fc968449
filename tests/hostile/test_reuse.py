"""What a connection that is kept open does to the call that uses it next."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from clients import against, run
from faults import USER, Fault, Tls
from raw_server import Peer, RawServer, answering, http
from secrets_search import KEY

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy

BOB = http(b'{"user_id":"bob"}')
ONCE = RetryPolicy(attempts=1)


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
            assert asyncio.get_running_loop().time() < 0.1  # nobody waited

    run(main())


@pytest.mark.parametrize("tls", ["", "trusted"])
def test_a_connection_on_which_nobody_spoke_is_used_again(tls: Tls) -> None:
    """TLS has words of its own, its tickets, that are nobody's answer and no reason to leave."""
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
    """A second answer after the first: to the next call, it is not there."""

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
                if when or smuggled.startswith(b"HTTP"):
                    await session.enable_user("ada")
                else:  # it came along with the answer, which is no HTTP any more
                    with pytest.raises(m.TransportError, match="not HTTP"):
                        await session.enable_user("ada")
                await asyncio.sleep(2 * when)
                assert (await session.enable_user("bob")).creation_time == 4711
            assert (server.connections, len(server.requests)) == (2, 2)

    run(main())


@pytest.mark.parametrize("ends", [False, True])
def test_what_the_event_loop_has_not_read_yet_counts_too(ends: bool) -> None:  # noqa: FBT001  a table
    """The words, or the end, are on this machine when the next call looks for a connection."""
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
