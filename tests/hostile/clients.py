"""Calls against a hostile server, and checks of what they leave behind."""

import asyncio
import gc
import ssl
import sys
import time
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
from secrets_search import KEY

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.connector import Connector

TIMEOUT = 3.0
# The server runs in this thread, so a response takes no time.
run = partial(virtual_time.run, grace=0.004)
POLICY = RetryPolicy(attempts=3, wait_initial=0.01, wait_max=0.01)


@asynccontextmanager
async def against(
    fault: Fault, policy: RetryPolicy = POLICY
) -> AsyncIterator[tuple[RawServer, MonoCloudSession]]:
    """Start the hostile server, and a session connected to it."""
    tls = certificate(fault.tls) if fault.tls and not fault.raw else None
    async with RawServer(fault.act, tls=tls) as server:
        url = server.url.replace("http://", "https://") if fault.raw else server.url
        if fault.tls in {"", "untrusted"}:
            async with MonoCloudSession(url, KEY, timeout=TIMEOUT, retry=policy) as session:
                yield server, session
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and host names
        AUTHORITY.configure_trust(context)
        async with (
            aiohttp.ClientSession(connector=Connector(ssl=context)) as client,
            MonoCloudSession(
                url, KEY, timeout=TIMEOUT, retry=policy, client_session=client
            ) as session,
        ):
            yield server, session


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Check that no task and no file descriptor is left over.

    What an earlier test left open may be collected, and so closed, in the meantime.
    """
    tasks, open_before = asyncio.all_tasks(), descriptors()
    yield
    for attempt in range(20):  # the server's side of a connection ends a moment later
        if asyncio.all_tasks() == tasks and descriptors() <= open_before:
            break
        await asyncio.sleep(0.01)
        if attempt > 5:  # it costs more than all the rest of most tests
            gc.collect()
    assert asyncio.all_tasks() == tasks
    assert descriptors() <= open_before


def descriptors() -> set[str]:
    """Return the open files as paths; the inode distinguishes loopback sockets."""
    links = set()
    for entry in Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir():
        try:
            links.add(str(entry.readlink()) if sys.platform == "linux" else entry.name)
        except OSError:
            continue  # the descriptor of the folder itself
    return links


class Costs:
    """Measure a piece of code: the peak of additional memory in bytes, and CPU seconds.

    Memory is the process's own, which counts what C libraries take, or what Python's allocators
    gave out, which counts what finds room in a heap that is there already: the greater of the two.
    """

    def __enter__(self) -> Self:
        self.bytes, self.cpu = 0, 0.0
        gc.collect()
        gc.freeze()  # what is here by now is not looked at again
        tracemalloc.start()
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status("VmRSS")
        self._began = time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        self.cpu = time.process_time() - self._began
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if sys.platform == "linux":
            self.bytes = max(self.bytes, _status("VmHWM") - self._before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(name)
