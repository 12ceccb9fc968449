"""The recipes for job queues work: a real broker, and the queue's own worker as a process."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from recipes import EXAMPLES, RECIPES, Recipe, Send, access, broker

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

IN_FLIGHT = 5  # calls of a worker
# What takes long is tried with two of the queues.
AS_EXAMPLES = pytest.mark.parametrize("queue", ["taskiq", "saq"], indirect=True)


class Queue(NamedTuple):
    recipe: Recipe
    send: Send
    log: Path  # what its workers say


@pytest.fixture
def again_after() -> int:
    """Seconds until a job is delivered again; tests that wait for it use fewer."""
    return 20


@pytest.fixture(params=RECIPES)
async def queue(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again_after: int,
) -> AsyncIterator[Queue]:
    recipe = RECIPES[request.param]
    monkeypatch.setenv("AGAIN_AFTER", str(again_after))
    monkeypatch.syspath_prepend(EXAMPLES)
    with broker(recipe.broker, tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        async with recipe.opened() as send:
            yield Queue(recipe, send, tmp_path / "worker.log")


@contextmanager
def worker(sandbox: Sandbox, queue: Queue) -> Iterator[subprocess.Popen[Any]]:
    with queue.recipe.running(queue.log, access(sandbox)) as started:
        yield started


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110  what it looks at sets no event
            await asyncio.sleep(0.02)


def answered(sandbox: Sandbox, by_status: dict[str, int]) -> bool:
    return sandbox.stats().by_status == by_status


def all_have_access(sandbox: Sandbox) -> bool:
    return sandbox.stats().users == {"enabled": 20, "disabled": 0}


async def test_access_is_given_back_through_one_session_and_a_refused_user_does_not_come_again(
    sandbox: Sandbox, queue: Queue
) -> None:
    flaky, odd, *_ = user_ids = sandbox.user_ids()
    sandbox.script(flaky, 503)
    with worker(sandbox, queue):
        for user_id in user_ids:
            await queue.send(user_id)
        await until(partial(answered, sandbox, {"200": 20, "503": 1}))
        assert all_have_access(sandbox)
        connections = sandbox.stats().connections
        sandbox.script(odd, 422)
        for user_id in ("nobody", odd, ""):
            await queue.send(user_id)
        await until(lambda: queue.log.read_bytes().count(b"refused: ") == 3)
        await queue.send(flaky)
        await until(partial(answered, sandbox, {"200": 21, "404": 1, "422": 1, "503": 1}))
        assert sandbox.stats().connections == connections
    log = queue.log.read_text(encoding="utf-8")
    assert len(re.findall(r"refused: user 'nobody': 404 .*", log)) == 1
    assert len(re.findall(rf"refused: user '{odd}': 422 .*", log)) == 1
    assert "Traceback" not in log
    assert sandbox.api_key not in log


@pytest.mark.parametrize("again_after", [1])
async def test_an_outage_is_outlasted_with_a_pause_between_attempts(
    sandbox: Sandbox, queue: Queue
) -> None:
    sandbox.error_rate = 1.0
    with worker(sandbox, queue):
        for user_id in sandbox.user_ids():
            await queue.send(user_id)
        # Each job more than once; while the tenant is down, nearly all of them without a request.
        await until(lambda: queue.log.read_text().count("will be retried: user ") >= 40)
        assert sandbox.stats().requests < 40
        sandbox.error_rate = 0.0
        await until(lambda: all_have_access(sandbox))
    assert "Traceback" not in queue.log.read_text(encoding="utf-8")


@AS_EXAMPLES
@pytest.mark.parametrize("again_after", [1])
async def test_a_refused_key_loses_nobody(sandbox: Sandbox, queue: Queue) -> None:
    with worker(sandbox, queue):
        key, sandbox.api_key = sandbox.api_key, "another"
        for user_id in sandbox.user_ids():
            await queue.send(user_id)
        await until(lambda: sandbox.stats().requests >= 21)
        sandbox.api_key = key
        await until(lambda: all_have_access(sandbox))


@pytest.mark.parametrize("again_after", [3])
async def test_sigterm_cuts_no_call(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.latency = 0.8
    with worker(sandbox, queue) as started:
        for user_id in sandbox.user_ids():
            await queue.send(user_id)
        await until(lambda: sandbox.stats().in_flight == IN_FLIGHT)
        started.send_signal(signal.SIGTERM)
        await asyncio.to_thread(started.wait, 60)
    done = sandbox.stats()
    assert done.by_status == {"200": done.users["enabled"]}


@AS_EXAMPLES
@pytest.mark.parametrize("again_after", [1])
async def test_kill_9_loses_nobody(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.latency = 10
    with worker(sandbox, queue):
        for user_id in sandbox.user_ids():
            await queue.send(user_id)
        await until(lambda: sandbox.stats().in_flight == IN_FLIGHT)
    assert not sandbox.stats().users["enabled"]
    sandbox.latency = 0.0
    with worker(sandbox, queue):
        await until(lambda: all_have_access(sandbox))


@pytest.mark.parametrize("queue", ["saq"], indirect=True)
@pytest.mark.parametrize("again_after", [1])
async def test_saq_brings_back_a_job_that_a_dead_worker_took_and_did_not_begin(
    sandbox: Sandbox, queue: Queue
) -> None:
    first, *_ = sandbox.user_ids()
    await queue.send(first)
    assert await sys.modules["worker_saq"].queue.dequeue(timeout=1)
    with worker(sandbox, queue):
        await until(lambda: not sandbox.is_disabled(first))


def test_the_page_is_short() -> None:
    page = (EXAMPLES.parent / "workers.md").read_text(encoding="utf-8")
    assert page.count("\n") < 230


def test_the_page_shows_the_recipes_as_they_are() -> None:
    page = (EXAMPLES.parent / "workers.md").read_text(encoding="utf-8")
    for name in ("worker_taskiq.py", "worker_saq.py"):
        code = (EXAMPLES / name).read_text(encoding="utf-8")
        assert f"```python\n{code}```\n" in page
