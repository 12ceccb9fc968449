"""The web backends do what their page says: each in a process of its own, before a real tenant."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from recipes import EXAMPLES, free_port, process
from terminal import environment, wait_for
from yarl import URL

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

KEY = "planted-key-4711"
PAGE = EXAMPLES.parent / "web.md"
COMMANDS = {
    "web_fastapi": ["-m", "uvicorn", "web_fastapi:app", "--port"],
    "web_litestar": ["-m", "uvicorn", "web_litestar:app", "--port"],
    "web_aiohttp": ["web_aiohttp.py"],
    "service_asyncio": ["service_asyncio.py"],
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any]
    retry_after: int | None


@dataclass(frozen=True)
class Backend:
    """A running example, its tenant, and what it printed."""

    name: str
    port: int
    tenant: Sandbox
    output: Path
    process: subprocess.Popen[Any]

    async def enable(self, user_id: str, wait: int | None = None) -> Answer:
        if self.name == "service_asyncio":
            return await self._line({"user_id": user_id} | ({"wait": wait} if wait else {}))
        headers = {"Prefer": f"respond-async, wait={wait}"} if wait else {}
        return await self._http("POST", f"/users/{quote(user_id, safe='')}/enable", headers)

    async def ready(self) -> Answer:
        if self.name == "service_asyncio":
            return await self._line({})
        return await self._http("GET", "/ready", {})

    async def _line(self, question: object) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer):
            writer.write(json.dumps(question).encode() + b"\n")
            body = json.loads(await reader.readline())
        return Answer(body["status"], body, body.pop("retry_after", None))

    async def _http(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with aiohttp.request(method, url, headers=headers) as response:
            kind = "application/json" if response.ok else "application/problem+json"
            assert response.content_type == kind
            body = await response.json(content_type=None)
            wait = response.headers.get("Retry-After")
            assert response.ok or body["status"] == response.status
            return Answer(response.status, body, None if wait is None else int(wait))


@contextmanager
def started(name: str, folder: Path, **tenant: Any) -> Iterator[Backend]:
    port, output = free_port(), folder / "output.txt"
    uvicorn = "uvicorn" in COMMANDS[name]
    command = [sys.executable, "-W", "error", *COMMANDS[name], *([port] if uvicorn else [])]
    with Sandbox(api_key=KEY, **tenant) as sandbox, output.open("wb") as file:
        env = environment(sandbox) | {"PORT": str(port)}
        with process(*command, cwd=EXAMPLES, env=env, stdout=file, stderr=file) as backend:
            wait_for(lambda: backend.poll() is not None or listens(port))
            assert backend.poll() is None, output.read_text()
            yield Backend(name, port, sandbox, output, backend)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", params=COMMANDS)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """One for all tests: each leaves it as it found it, ready and with a tenant that is well."""
    with started(request.param, tmp_path_factory.mktemp(request.param), users=200) as backend:
        yield backend


async def test_a_user_gets_access_back_and_nothing_else_of_it_is_told(backend: Backend) -> None:
    backend.tenant.add_user("müller ä%b")
    answer = await backend.enable("müller ä%b")
    assert (answer.status, answer.body.pop("status", 200)) == (200, 200)
    assert answer.body == {"enabled": "müller ä%b"}
    assert not backend.tenant.is_disabled("müller ä%b")


async def test_an_unknown_user_is_a_404_that_says_whom(backend: Backend) -> None:
    answer = await backend.enable("nobody")
    assert (answer.status, answer.body["title"]) == (404, "Not Found")
    assert "user 'nobody': 404 Not Found" in answer.body["detail"]


async def test_a_bad_id_is_a_400_and_never_reaches_the_tenant(backend: Backend) -> None:
    requests = backend.tenant.stats().requests
    answer = await backend.enable(" ada")
    assert (answer.status, answer.body["title"]) == (400, "Bad Request")
    assert "white space" in answer.body["detail"]
    assert backend.tenant.stats().requests == requests


async def test_a_user_whom_the_tenant_refuses_is_a_422(backend: Backend) -> None:
    backend.tenant.script("ada", 422)
    answer = await backend.enable("ada")
    assert (answer.status, answer.retry_after) == (422, None)
    assert "user 'ada': 422" in answer.body["detail"]


async def test_a_key_that_is_refused_is_a_500_whose_reason_only_the_log_has(
    backend: Backend,
) -> None:
    backend.tenant.api_key = "another"
    answer = await backend.enable("ada")
    backend.tenant.api_key = KEY
    assert answer.status == 500
    assert not re.search("401|key|unauthorized", str(answer.body), re.IGNORECASE)
    # Litestar logs from a thread of its own, a moment later.
    await asyncio.to_thread(wait_for, lambda: "401 Unauthorized" in backend.output.read_text())
    assert KEY not in backend.output.read_text()


async def test_a_429_is_a_503_that_says_when_and_not_ready_until_then(backend: Backend) -> None:
    backend.tenant.script("ada", "429:4")
    answer = await backend.enable("ada", wait=1)
    assert (answer.status, answer.body["title"]) == (503, "Service Unavailable")
    assert answer.retry_after in {4, 5}
    answer = await backend.ready()
    assert answer.status == 503
    assert answer.retry_after in range(1, 6)
    assert (await backend.enable("ada")).status == 200  # it waits, and then goes through
    assert (await backend.ready()).status == 200


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_tenant_that_hangs_is_a_504_in_time_and_holds_nobody_else_up(
    name: str, tmp_path: Path
) -> None:
    """Of a session that no 429 has slowed down; after one, the number in flight starts small."""
    hanging = [f"hanging-{number}" for number in range(50)]
    with started(name, tmp_path, users=["ada"]) as backend:
        for user_id in hanging:
            backend.tenant.script(user_id, "hang")
        calls = [asyncio.create_task(backend.enable(user_id, wait=5)) for user_id in hanging]
        await asyncio.to_thread(wait_for, lambda: backend.tenant.stats().in_flight == 50)
        assert (await backend.enable("ada")).status == 200
        assert not any(call.done() for call in calls)
        answers = await asyncio.gather(*calls)
        # How long it took here is not told: a busy machine needs longer. The log is exact.
        assert re.search(r"no complete answer within 4\.\d+ s", backend.output.read_text())
        assert {answer.status for answer in answers} == {504}
        await comes_back(backend)


async def comes_back(backend: Backend) -> None:
    """Be ready again when the pause ends, without a request; then the next call is the probe."""
    requests = backend.tenant.stats().requests
    async with asyncio.timeout(90):
        while (answer := await backend.ready()).status != 200:
            assert answer.status == 503
            assert answer.retry_after is not None
            await asyncio.sleep(0.1)
    assert answer.body.get("ready") is True
    assert backend.tenant.stats().requests == requests
    assert (await backend.enable("ada")).status == 200


@pytest.mark.parametrize("name", COMMANDS)
async def test_an_outage_is_not_ready_until_the_next_probe_is_due(
    name: str, tmp_path: Path
) -> None:
    with started(name, tmp_path, users=["ada"]) as backend:
        assert (await backend.ready()).status == 200
        backend.tenant.error_rate = 1.0
        answers = await asyncio.gather(*(backend.enable(f"user-{n}", wait=1) for n in range(20)))
        # 504: its last attempt came late; 503: it was not sent at all
        assert {answer.status for answer in answers} <= {502, 503, 504}
        async with asyncio.timeout(90):  # the first pauses may be over too soon for a slow machine
            while (answer := await backend.enable("ada", wait=1)).status != 503:
                assert answer.status in {502, 504}
            assert answer.retry_after is not None
            while (answer := await backend.ready()).status != 503:
                assert (await backend.enable("ada", wait=1)).status in {502, 503, 504}
        backend.tenant.error_rate = 0.0
        await comes_back(backend)


@pytest.mark.parametrize("name", COMMANDS)
async def test_200_requests_at_once_succeed_and_the_next_200_open_no_connection(
    name: str, tmp_path: Path
) -> None:
    """Of a session that no 429 has slowed down; after one, the number in flight starts small."""
    with started(name, tmp_path, users=200, latency=2) as backend:
        for _ in range(2):
            answers = await asyncio.gather(*map(backend.enable, backend.tenant.user_ids()))
            assert {answer.status for answer in answers} == {200}
        stats = backend.tenant.stats()
        assert 50 < stats.peak_in_flight <= 200
        assert stats.connections <= 200


async def test_a_line_that_is_no_question_is_a_400_and_the_next_one_is_answered(
    tmp_path: Path,
) -> None:
    with started("service_asyncio", tmp_path, users=["ada"]) as backend:
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        with closing(writer):
            writer.write(b'hello\n{"userid": "ada"}\n{"user_id": "ada"}\n' + b"x" * 100_000)
            answers = [json.loads(await reader.readline()) for _ in range(3)]
            assert [answer["status"] for answer in answers] == [400, 400, 200]
            assert await reader.read() == b""  # a line without end ends the connection
        assert (await backend.ready()).status == 200
        assert backend.output.read_text() == ""


@pytest.mark.parametrize("name", COMMANDS)
async def test_sigterm_lets_a_request_in_flight_finish(name: str, tmp_path: Path) -> None:
    with started(name, tmp_path, users=["ada"], latency=0.5) as backend:
        _, idle = await asyncio.open_connection("127.0.0.1", backend.port)  # must not hold it up
        call = asyncio.create_task(backend.enable("ada"))
        await asyncio.to_thread(wait_for, lambda: backend.tenant.stats().in_flight == 1)
        backend.process.send_signal(signal.SIGTERM)
        assert (await call).status == 200
        code = await asyncio.to_thread(backend.process.wait, 60)
        idle.close()
        # uvicorn ends by the signal that it was sent, once all is done: a shell sees 143.
        assert code == (-signal.SIGTERM if "uvicorn" in COMMANDS[name] else 0)
        printed = backend.output.read_text()
        assert KEY not in printed
        assert "Traceback" not in printed


def test_the_page_shows_the_fastapi_example_as_it_is_and_links_the_others() -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = (EXAMPLES / "web_fastapi.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in page
    assert page.count("\n") < 180
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page)
    assert {f"examples/{name}.py" for name in COMMANDS} <= set(targets)
    assert all((PAGE.parent / target).exists() for target in targets)
