"""The background job of a web service: started, watched, stopped, and resumed after a restart."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from recipes import EXAMPLES, free_port, process
from terminal import environment, wait_for
from test_docs_web import listens

from monocloud_async.sandbox import Sandbox

pytestmark = [
    pytest.mark.process,
    pytest.mark.parametrize("name", ["job_fastapi", "job_litestar"]),
]


class Service:
    """A running example."""

    def __init__(self, port: int, process: subprocess.Popen[Any]) -> None:
        self.port = port
        self.process = process

    async def ask(self, method: str, json: object = None) -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.port}/job"
        async with aiohttp.request(method, url, json=json) as response:
            return response.status, await response.json()

    async def state(self, wanted: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (answer := (await self.ask("GET"))[1])["state"] != wanted:  # noqa: ASYNC110  the service has no events
                await asyncio.sleep(0.02)
        return answer


@contextmanager
def started(name: str, sandbox: Sandbox, folder: Path) -> Iterator[Service]:
    port = free_port()
    command = [sys.executable, "-W", "error", "-m", "uvicorn", f"{name}:app", "--port", port]
    env = environment(sandbox) | {"JOBS": str(folder)}
    with (folder / "output.txt").open("ab") as output:
        options: dict[str, Any] = {"stdout": output, "stderr": output}
        with process(*command, cwd=EXAMPLES, env=env, **options) as service:
            wait_for(lambda: service.poll() is not None or listens(port))
            assert service.poll() is None, (folder / "output.txt").read_text()
            yield Service(port, service)


async def test_a_job_runs_to_its_end_one_at_a_time(name: str, tmp_path: Path) -> None:
    with Sandbox(users=60, latency=2) as sandbox, started(name, sandbox, tmp_path) as service:
        ids = sandbox.user_ids()
        assert (await service.ask("GET"))[1] == {"state": "none"}
        assert (await service.ask("POST", ids))[0] == 202
        assert (await service.ask("POST", ["ada"]))[0] == 409
        sandbox.latency = 0
        assert (await service.state("ended"))["enabled"] == 60
        assert (await service.ask("POST", ids[:3]))[0] == 202
        assert (await service.state("ended"))["enabled"] == 3


async def test_a_job_that_is_stopped_is_over(name: str, tmp_path: Path) -> None:
    with Sandbox(users=400, latency=1) as sandbox:
        with started(name, sandbox, tmp_path) as service:
            await service.ask("POST", sandbox.user_ids())
            await asyncio.to_thread(wait_for, lambda: sandbox.stats().requests > 5)
            assert (await service.ask("DELETE"))[0] == 200
            done = (await service.state("ended"))["enabled"]
            assert 0 < done < 400
        with started(name, sandbox, tmp_path) as service:
            assert (await service.ask("GET"))[1] == {"state": "none"}
        assert sandbox.stats().users["enabled"] == done


async def test_a_deploy_interrupts_a_job_and_loses_nobody(name: str, tmp_path: Path) -> None:
    with Sandbox(users=400, latency=1) as sandbox:
        with started(name, sandbox, tmp_path) as service:
            await service.ask("POST", sandbox.user_ids())
            await asyncio.to_thread(wait_for, lambda: sandbox.stats().requests > 5)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.process.wait, 30) == -signal.SIGTERM
        assert 0 < sandbox.stats().users["enabled"] < 400
        sandbox.latency = 0
        with started(name, sandbox, tmp_path) as service:
            assert (await service.state("ended"))["enabled"] == 400
        assert sandbox.stats().by_status == {"200": 400}  # nobody was asked for twice
    # The run was cut short, or its last calls have ended in time; it went on in either case.
    assert "Traceback" not in (tmp_path / "output.txt").read_text()
