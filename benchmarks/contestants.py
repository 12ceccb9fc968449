"""The clients that `speed` measures, each in a process of its own.

    python benchmarks/contestants.py NAME URL USERS LOOP

It prints one JSON object: CPU seconds (user and system, all threads) and wall seconds for so many
users after a warm-up, the most memory, and the versions of what it used.
"""

import asyncio
import json
import os
import platform
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

WARM_UP, CONCURRENCY = 2_000, 100
KEY = "a-key-of-the-length-that-keys-have-0123456789"

Users = Iterator[str]
Run = Callable[[int], Awaitable[None]]


def ids(count: int) -> Users:
    return (f"UOtBaOybB6dTpIJN{number:06}" for number in range(count))


async def by_workers(count: int, one: Callable[[str], Awaitable[Any]]) -> None:
    """The cheapest way to keep a hundred calls going: workers that share one iterator."""
    users = ids(count)

    async def work() -> None:
        for user_id in users:
            await one(user_id)

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


@asynccontextmanager
async def bulk(url: str, journal: Path | None = None) -> AsyncIterator[Run]:
    from monocloud_async import MonoCloudSession

    async with MonoCloudSession(url, KEY) as session:

        async def run(count: int) -> None:
            file = None if journal is None else journal / f"{count}.journal"
            report = await session.bulk_enable(ids(count), concurrency=CONCURRENCY, journal=file)
            assert report.enabled == count

        yield run


@asynccontextmanager
async def bulk_with_a_journal(url: str) -> AsyncIterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        async with bulk(url, Path(folder)) as run:
            yield run


@asynccontextmanager
async def single(url: str) -> AsyncIterator[Run]:
    from monocloud_async import MonoCloudSession

    async with MonoCloudSession(url, KEY) as session:
        yield lambda count: by_workers(count, session.enable_user)


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[Run]:
    """The loop that a good engineer writes with aiohttp."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, connector=connector) as client:

        async def one(user_id: str) -> None:
            async with client.post(f"{url}/api/users/{user_id}/enable") as response:
                response.raise_for_status()
                user = await response.json()
                assert user["user_id"] == user_id

        yield lambda count: by_workers(count, one)


@asynccontextmanager
async def aiohttp_tuned(url: str) -> AsyncIterator[Run]:
    import aiohttp
    from yarl import URL

    from monocloud_async import User

    decode = msgspec.json.Decoder(User).decode
    async with aiohttp.ClientSession(
        headers={"X-API-KEY": KEY},
        connector=aiohttp.TCPConnector(limit=CONCURRENCY),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Content-Type", "User-Agent", "Accept"),
    ) as client:

        async def one(user_id: str) -> None:
            address = URL(f"{url}/api/users/{user_id}/enable", encoded=True)
            async with client.post(address) as response:
                assert response.status == 200
                assert decode(await response.read()).user_id == user_id

        yield lambda count: by_workers(count, one)


class Bare(asyncio.Protocol):
    """As little as asyncio allows: a request, and an answer with a length."""

    transport: asyncio.Transport
    answer: asyncio.Future[bytes]
    got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got = got = self.got + data if self.got else data
        end = got.find(b"\r\n\r\n")
        if end < 0:
            return
        assert got.startswith(b"HTTP/1.1 200 ")
        at = got.index(b"Content-Length: ") + 16
        length = int(got[at : got.index(b"\r", at)])
        if len(got) >= end + 4 + length:
            self.got = b""
            self.answer.set_result(got[end + 4 : end + 4 + length])


@asynccontextmanager
async def bare_protocol(url: str) -> AsyncIterator[Run]:
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
        protocol.answer = loop.create_future()
        protocol.transport.write(f"POST /api/users/{user_id}{rest}".encode())
        assert decode(await protocol.answer).user_id == user_id
        free.append(protocol)

    yield lambda count: by_workers(count, one)
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

        yield lambda count: by_workers(count, one)


@asynccontextmanager
async def pyreqwest(url: str) -> AsyncIterator[Run]:
    from pyreqwest.client import ClientBuilder

    from monocloud_async import User

    decode = msgspec.json.Decoder(User).decode
    authority = Path(os.environ["SSL_CERT_FILE"]).read_bytes()
    builder = ClientBuilder().add_root_certificate_pem(authority).max_connections(CONCURRENCY)
    async with builder.http1_only().default_headers({"X-API-KEY": KEY}).build() as client:

        async def one(user_id: str) -> None:
            response = await client.post(f"{url}/api/users/{user_id}/enable").build().send()
            assert response.status == 200
            assert decode(bytes(await response.bytes())).user_id == user_id

        yield lambda count: by_workers(count, one)


CONTESTANTS = {
    "bulk": bulk,
    "bulk with a journal": bulk_with_a_journal,
    "single calls": single,
    "by hand": by_hand,
    "aiohttp, tuned": aiohttp_tuned,
    "bare protocol": bare_protocol,
    "httpx": httpx,
    "pyreqwest": pyreqwest,
}
USED = {
    "httpx": ["httpx"],
    "pyreqwest": ["pyreqwest", "msgspec"],
    "bare protocol": ["msgspec"],
    "by hand": ["aiohttp"],
}


async def measure(name: str, url: str, users: int) -> dict[str, object]:
    async with CONTESTANTS[name](url) as run:
        await run(WARM_UP)
        began, cpu = time.perf_counter(), time.process_time()
        await run(users)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu": cpu,
        "seconds": seconds,
        "megabytes": most / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        "versions": {package: version(package) for package in USED.get(name, ())}
        | {"python": platform.python_version()},
    }


def main() -> None:
    name, url, users, loop = sys.argv[1:]
    new_loop = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        print(json.dumps(runner.run(measure(name, url, int(users)))))


if __name__ == "__main__":
    main()
