"""A call without a response ends at its deadline, or when it is cancelled."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from clients import nothing_left_behind, run
from faults import AUTHORITY, USER, chunked
from raw_server import Peer, RawServer, http
from secrets_search import KEY
from test_segments import SOON, arrived
from ways import Way, session_by, trusted, trusting

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy

LONG = 1000.0  # seconds
ONCE_IN_LONG = RetryPolicy(attempts=1, total=LONG)
TOLD_AT = 0.5  # seconds after the start at which the call is cancelled
CHUNKS = chunked(USER)[: -len(b"\r\n0\r\n\r\n")]
PACKED = http(gzip.compress(USER), b"Content-Encoding: gzip")


@dataclass(frozen=True)
class Stuck:
    """What a server sends, in segments, before it falls silent.

    Attributes:
        before: to the call before, in its last segment; "" is that there is none.
        segments: to ada.
    """

    segments: tuple[bytes, ...]
    before: bytes = b""
    tls: bool = False


STATES = {
    "no handshake": Stuck((), tls=True),
    "no word": Stuck(()),
    "half a status line": Stuck((b"HTTP/1.1 20",)),
    "half a head": Stuck((b"HTTP/1.1 200 OK\r\n", b"Content-Le")),
    "informational answers": Stuck((b"HTTP/1.1 100 Continue\r\n\r\n",) * 3),
    "no body": Stuck((http(USER)[: -len(USER)],)),
    "half a body": Stuck((http(USER)[:-5],)),
    "half a body, later": Stuck((http(USER)[:-9], USER[-9:-5])),
    "a body without an end": Stuck((http(USER, length=False),)),
    "half a chunk": Stuck((CHUNKS[:-4],)),
    "no end of a chunk": Stuck((CHUNKS,)),
    "no last chunk": Stuck((CHUNKS, b"\r\n")),
    "half the last chunk": Stuck((CHUNKS, b"\r\n0\r\n")),
    "no chunk size": Stuck((CHUNKS, b"\r\nzz\r\n")),
    "a negative chunk size": Stuck((CHUNKS[:-4], CHUNKS[-4:], b"\r\n-1\r\n")),
    "no chunk size, in a refusal": Stuck(
        (chunked(b"{}", status=404)[: -len(b"0\r\n\r\n")], b"zz\r\n")
    ),
    "another answer in place of a chunk": Stuck((CHUNKS, http(b"bad gateway", status=502))),
    "gzip that breaks": Stuck((PACKED[:-20], b"\1" * 20)),
    "half a head left from before": Stuck((), before=b"HTTP/1.1 404 Not Found\r\nContent-"),
    "half an answer left from before": Stuck(
        (), before=b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"
    ),
    "another protocol left from before": Stuck((), before=b"HTTP/1.1 101 X\r\n\r\n"),
}


async def by_timeout(session: MonoCloudSession) -> m.User:
    return await session.enable_user("ada", timeout=TOLD_AT)


async def by_total(session: MonoCloudSession) -> m.User:
    return await session.enable_user("ada", retry=RetryPolicy(total=TOLD_AT))


async def by_cancellation(session: MonoCloudSession) -> m.User:
    async with asyncio.timeout(TOLD_AT):
        return await session.enable_user("ada")


async def by_close(session: MonoCloudSession) -> m.User:
    call = asyncio.create_task(session.enable_user("ada"))
    await asyncio.wait([call], timeout=TOLD_AT)
    await session.close()
    return await call


async def by_drain(session: MonoCloudSession) -> m.BulkReport:
    bulk = session.bulk_enable(["ada"], timeout=TOLD_AT)
    running = asyncio.ensure_future(bulk)
    await asyncio.wait([running], timeout=TOLD_AT / 2)
    bulk.drain()
    return await running


async def by_end_of_run(session: MonoCloudSession) -> m.BulkReport:
    bulk = session.bulk_enable(["ada"])
    running = asyncio.ensure_future(bulk)
    await asyncio.wait([running], timeout=TOLD_AT)
    bulk.cancel()
    return await running


async def by_leaving_a_run(session: MonoCloudSession) -> m.BulkReport:
    async with session.bulk_enable(["ada"]) as bulk:
        await asyncio.sleep(TOLD_AT)
    return bulk.report


ENDS: dict[str, Callable[[MonoCloudSession], Awaitable[m.User | m.BulkReport]]] = {
    "timeout": by_timeout,
    "total": by_total,
    "cancellation": by_cancellation,
    "close()": by_close,
    "drain()": by_drain,
    "run.cancel()": by_end_of_run,
    "leaving the run": by_leaving_a_run,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", ["fast", "hooked", "lent", "theirs"])
def test_it_ends_in_its_time(way: Way, state: str, end: str) -> None:
    stuck = STATES[state]
    before = stuck.before

    async def act(peer: Peer) -> None:
        if stuck.tls:
            await peer.silence()
        nonlocal before
        if before:
            left, before = before, b""
            await peer.request()
            await peer.send(http(USER)[:-5])
            await arrived()
            await peer.send(http(USER)[-5:] + left)
        await peer.request()
        for segment in stuck.segments:
            await peer.send(segment)
            await arrived()
        await peer.silence()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with nothing_left_behind(), RawServer(act) as server:
            url = server.url.replace("http:", "https:") if stuck.tls else server.url
            async with session_by(way, url, KEY, timeout=LONG, retry=ONCE_IN_LONG) as session:
                if stuck.before:
                    await session.enable_user("ada")
                began = loop.time()
                ending = asyncio.ensure_future(ENDS[end](session))
                await asyncio.wait([ending], timeout=TOLD_AT + SOON)
                in_time = ending.done()
                if not in_time:
                    ending.cancel()
                    await asyncio.wait([ending], timeout=10)
                assert in_time
                assert loop.time() - began <= TOLD_AT + SOON
                error = ending.exception()
                if end == "cancellation" and isinstance(error, TimeoutError):
                    return
                assert error is None or isinstance(error, m.MonoCloudError)
                if error is None and isinstance(report := ending.result(), m.BulkReport):
                    assert (report.total, report.enabled) == (1, 0)

    with trusted(trusting(AUTHORITY)):
        run(main())
