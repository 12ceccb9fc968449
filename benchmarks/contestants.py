"""The clients that `speed` measures, each in its own process.

    python benchmarks/contestants.py NAME URL USERS LOOP [STEP]

It prints one JSON object: the CPU seconds (user and system, all threads) and the wall seconds of so
many users after a warm-up, the most memory in MB, and with a STEP the memory after every so many.
"""

import asyncio
import json
import os
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec

WARM_UP, CONCURRENCY = 2_000, 100
KEY = "a-key-of-the-length-that-keys-have-0123456789"
STATUS = Path("/proc/self/status")

Users = Iterator[str]
Run = Callable[[Users], Awaitable[int]]  # returns how many users are enabled


def ids(number: int) -> Users:
    return (f"UOtBaOybB6dTpIJN{n:08}" for n in range(number))


def megabytes(*, most: bool) -> float:
    """Return the memory of this process.

    Not `ru_maxrss` where there is better: Linux counts in it what the parent had at the start.
    """
    if STATUS.exists():
        field = "VmHWM:" if most else "VmRSS:"
        return int(STATUS.read_text(encoding="ascii").split(field)[1].split()[0]) / 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / (1 << 20 if sys.platform == "darwin" else 1 << 10)


async def by_workers(users: Users, one: Callable[[str], Awaitable[Any]]) -> int:
    """Run a hundred workers that share one iterator, the cheapest way to make concurrent calls."""

    async def work() -> int:
        done = 0
        for user_id in users:
            await one(user_id)
            done += 1
        return done

    return sum(await asyncio.gather(*(work() for _ in range(CONCURRENCY))))


@asynccontextmanager
async def bulk(url: str, journals: Iterable[Path | None] = ()) -> AsyncIterator[Run]:
    from monocloud_async import MonoCloudSession

    journal = iter(journals)
    async with MonoCloudSession(url, KEY) as session:

        async def run(users: Users) -> int:
            report = await session.bulk_enable(
                users, concurrency=CONCURRENCY, journal=next(journal, None)
            )
            return report.enabled

        yield run


@asynccontextmanager
async def bulk_with_a_journal(url: str) -> AsyncIterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        async with bulk(url, (Path(folder, f"{n}.journal") for n in count())) as run:
            yield run


@asynccontextmanager
async def single(url: str) -> AsyncIterator[Run]:
    from monocloud_async import MonoCloudSession

    async with MonoCloudSession(url, KEY) as session:
        yield lambda users: by_workers(users, session.enable_user)


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[Run]:
    """A loop with aiohttp as a good engineer would write it."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, connector=connector) as client:

        async def one(user_id: str) -> None:
            async with client.post(f"{url}/api/users/{user_id}/enable") as response:
                response.raise_for_status()
                user = await response.json()
                assert user["user_id"] == user_id

        yield lambda users: by_workers(users, one)


@asynccontextmanager
async def aiohttp_tuned(url: str) -> AsyncIterator[Run]:
    """The same loop, without everything that aiohttp can leave out."""
    import aiohttp
    from yarl import URL

    from monocloud_async import User

    decode = msgspec.json.Decoder(User).decode
    async with aiohttp.ClientSession(
        headers={"X-API-KEY": KEY},
        connector=aiohttp.TCPConnector(limit=CONCURRENCY),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as client:

        async def one(user_id: str) -> None:
            address = URL(f"{url}/api/users/{user_id}/enable", encoded=True)
            async with client.post(address) as response:
                response.raise_for_status()
                assert decode(await response.read()).user_id == user_id

        yield lambda users: by_workers(users, one)


class Bare(asyncio.Protocol):
    """A minimal asyncio protocol: a request, and a response with a length."""

    transport: asyncio.Transport
    answer: asyncio.Future[bytes] | None = None
    got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.got = got = self.got + data if self.got else data
        end = got.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        assert got.startswith(b"HTTP/1.1 200 ")
        at = got.index(b"\r\nContent-Length: ", 0, end) + 18
        whole = end + int(got[at : got.index(b"\r", at)])
        if len(got) >= whole:
            assert len(got) == whole
            assert self.answer is not None
            self.got, answer, self.answer = b"", self.answer, None
            answer.set_result(got[end:])

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed by the server"))


@asynccontextmanager
async def bare_protocol(url: str) -> AsyncIterator[Run]:
    """The limit of asyncio: no client can be faster."""
    from monocloud_async import User

    loop = asyncio.get_running_loop()
    host, _, port = url.partition("://")[2].partition(":")
    context = ssl.create_default_context() if url.startswith("https") else None
    decode = msgspec.json.Decoder(User).decode
    rest = f"/enable HTTP/1.1\r\nHost: {host}\r\nX-API-KEY: {KEY}\r\nContent-Length: 0\r\n\r\n"
    free = [
        (await loop.create_connection(Bare, host, int(port), ssl=context))[1]
        for _ in range(CONCURRENCY)
    ]

    async def one(user_id: str) -> None:
        protocol = free.pop()
        protocol.answer = answer = loop.create_future()
        protocol.transport.write(f"POST /api/users/{user_id}{rest}".encode())
        assert decode(await answer).user_id == user_id
        free.append(protocol)

    yield lambda users: by_workers(users, one)
    for protocol in free:
        protocol.transport.abort()


@asynccontextmanager
async def httpx(url: str) -> AsyncIterator[Run]:
    import httpx

    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(headers={"X-API-KEY": KEY}, limits=limits) as client:

        async def one(user_id: str) -> None:
            response = await client.post(f"{url}/api/users/{user_id}/enable")
            assert response.raise_for_status().json()["user_id"] == user_id

        yield lambda users: by_workers(users, one)


@asynccontextmanager
async def pyreqwest(url: str) -> AsyncIterator[Run]:
    from pyreqwest.client import ClientBuilder

    from monocloud_async import User

    decode = msgspec.json.Decoder(User).decode
    authority = Path(os.environ["SSL_CERT_FILE"]).read_bytes()
    builder = ClientBuilder().add_root_certificate_pem(authority).max_connections(CONCURRENCY)
    builder = builder.http1_only().no_proxy().error_for_status().default_headers({"X-API-KEY": KEY})
    async with builder.build() as client:

        async def one(user_id: str) -> None:
            response = await client.post(f"{url}/api/users/{user_id}/enable").build().send()
            assert decode(memoryview(await response.bytes())).user_id == user_id

        yield lambda users: by_workers(users, one)


CONTESTANTS = {
    "bulk": bulk,
    "bulk + journal": bulk_with_a_journal,
    "single": single,
    "by hand": by_hand,
    "aiohttp tuned": aiohttp_tuned,
    "bare protocol": bare_protocol,
    "httpx": httpx,
    "pyreqwest": pyreqwest,
}


def watched(users: Users, step: int, seen: list[float]) -> Users:
    for number, user_id in enumerate(users):
        if number and not number % step:
            seen.append(megabytes(most=False))
        yield user_id
    seen.append(megabytes(most=False))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(name: str, url: str, number: int, step: int) -> dict[str, object]:
    memory: list[float] = []
    users = watched(ids(number), step, memory) if step else ids(number)
    async with CONTESTANTS[name](url) as run:
        warm_up = min(WARM_UP, number)
        assert await run(ids(warm_up)) == warm_up
        began, cpu = time.perf_counter(), cpu_seconds()
        assert await run(users) == number
        cpu, seconds = cpu_seconds() - cpu, time.perf_counter() - began
    most = megabytes(most=True)
    return {"cpu": cpu, "seconds": seconds, "megabytes": most, "memory": memory}


def main() -> None:
    name, url, number, loop, *step = sys.argv[1:]
    new_loop = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        print(json.dumps(runner.run(measure(name, url, int(number), int(*step)))))


if __name__ == "__main__":
    main()
