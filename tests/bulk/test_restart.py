"""A real tenant that is killed in the middle of a run, and comes back."""

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import PROGRAM

from monocloud_async import BulkReport, MonoCloudSession, RetryPolicy

pytestmark = pytest.mark.process


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.005)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_run_survives_a_tenant_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    database, ids = tmp_path / "tenant.db", tmp_path / "ids.txt"
    first = subprocess.Popen(
        [*PROGRAM, "sandbox", "--db", database, "--users", "3000", "--port", "0", "--ids", ids],
        stdout=subprocess.PIPE,
        text=True,
    )
    second: subprocess.Popen[str] | None = None
    with first:
        url = url_of(first)

        async def drill() -> BulkReport:
            nonlocal second
            policy = RetryPolicy(wait_initial=0.05, wait_max=0.1)
            async with MonoCloudSession(url, "sandbox-key", retry=policy) as session:
                running = session.bulk_enable(ids.read_text().split(), concurrency=50)
                task = asyncio.ensure_future(running)
                await until(lambda: running.report.enabled > 500)
                first.send_signal(signal.SIGKILL)
                first.wait()
                before = running.report.requests
                await until(lambda: session.pace.down)
                await asyncio.sleep(2)  # in which it probes
                assert running.report.requests - before < 60 + 50  # 50 were in flight
                second = await asyncio.to_thread(again)
                return await task

        def again() -> subprocess.Popen[str]:
            port = url.rpartition(":")[2].strip("/")
            process = subprocess.Popen(
                [*PROGRAM, "sandbox", "--db", database, "--port", port],
                stdout=subprocess.PIPE,
                text=True,
            )
            url_of(process)
            return process

        try:
            report = asyncio.run(drill())
        finally:
            if second is not None:
                second.terminate()
                second.communicate()
    assert (report.total, report.enabled, report.exhausted) == (3000, 3000, True)
