"""The command line as people run it: in this process to be quick, in its own to be real."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monocloud_async import tenant
from monocloud_async.sandbox import Sandbox

PROGRAM = [sys.executable, "-m", "monocloud_async"]


@contextmanager
def running(**options: Any) -> Iterator[Sandbox]:
    """A sandbox in a thread of its own, as the command line brings its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sandbox = Sandbox(**options)
    try:
        asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result()
        yield sandbox
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def environment(sandbox: Sandbox) -> dict[str, str]:
    return {**os.environ, tenant.DOMAIN: sandbox.url, tenant.API_KEY: sandbox.api_key}


@contextmanager
def started(sandbox: Sandbox, *argv: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A real process; it is gone afterwards."""
    with subprocess.Popen(
        [*PROGRAM, *map(str, argv)],
        env=environment(sandbox),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
