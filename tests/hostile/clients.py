"""One call, or many, against an adversary, and what they leave behind."""

import asyncio
import gc
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import aiohttp
import virtual_time
from faults import AUTHORITY, Fault, certificate
from raw_server import RawServer

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector

KEY = "sentinel-key-4711"
TIMEOUT = 3.0
# The server is in this very thread, so an answer needs no time on its way.
run = partial(virtual_time.run, grace=0.004)
POLICY = RetryPolicy(attempts=3, wait_initial=0.01, wait_max=0.01)


@asynccontextmanager
async def against(
    fault: Fault, policy: RetryPolicy = POLICY, *, key: str = KEY
) -> AsyncIterator[tuple[RawServer, MonoCloudSession]]:
    """The adversary, and a session with it."""
    tls = certificate(fault.tls) if fault.tls and not fault.raw else None
    async with RawServer(fault.act, tls=tls) as server:
        url = server.url.replace("http://", "https://") if fault.raw else server.url
        if fault.tls in {"", "untrusted"}:
            async with MonoCloudSession(url, key, timeout=TIMEOUT, retry=policy) as session:
                yield server, session
            return
        context = ssl.create_default_context()
        AUTHORITY.configure_trust(context)
        async with (
            aiohttp.ClientSession(connector=Connector(ssl=context)) as client,
            MonoCloudSession(
                url, key, timeout=TIMEOUT, retry=policy, client_session=client
            ) as session,
        ):
            yield server, session


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task and no file descriptor more than there were."""
    tasks, open_before = asyncio.all_tasks(), descriptors()
    yield
    for _ in range(20):  # the server's side of a connection ends a moment later
        if asyncio.all_tasks() == tasks and descriptors() == open_before:
            break
        await asyncio.sleep(0.01)
        gc.collect()
    assert asyncio.all_tasks() == tasks
    assert descriptors() == open_before


def descriptors() -> set[str]:
    """What this process has open, as paths; loopback sockets are told apart by their inode."""
    links = set()
    for entry in Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir():
        try:
            links.add(str(entry.readlink()) if sys.platform == "linux" else entry.name)
        except OSError:
            continue  # the folder's own
    return links


class Peak:
    """The most memory that a piece of code held beyond what there was, in bytes."""

    def __enter__(self) -> Self:
        self.bytes = 0
        gc.collect()
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status("VmRSS")
        else:
            tracemalloc.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if sys.platform == "linux":
            self.bytes = _status("VmHWM") - self._before
        else:
            self.bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(name)
