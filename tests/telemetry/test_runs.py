"""The telemetry of a run: log lines, and spans and metrics for OpenTelemetry."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from seen import Seen
from terminal import environment

from monocloud_async import MonoCloudSession, RetryPolicy, RunStoppedError
from monocloud_async.sandbox import Sandbox

DOCS = Path(__file__).parents[2] / "docs"
QUICK = RetryPolicy(wait_initial=0.01, wait_max=0.02)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["ada", "bob"]) as sandbox:
        yield sandbox


@pytest.mark.usefixtures("requests_seen")
async def test_a_run_is_a_span_above_its_requests(seen: Seen, sandbox: Sandbox) -> None:
    sandbox.script("ada", 503, 200)
    async with (
        MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session,
        session.bulk_enable(["ada", "bob", "nobody"]) as run,
    ):
        assert [outcome.status async for outcome in run].count("failed") == 1
    spans = seen.spans()
    (whole,) = spans["monocloud.bulk_enable"]
    assert whole.context is not None
    assert whole.attributes is not None
    assert {span.parent and span.parent.span_id for span in spans["POST"]} == {
        whole.context.span_id
    }
    assert whole.attributes["server.address"] == "127.0.0.1"
    assert [
        whole.attributes[f"monocloud.{name}"]
        for name in ("enabled", "failed", "unknown", "requests", "retries", "throttled")
    ] == [2, 1, 0, 4, 1, 0]
    assert whole.status.is_unset
    told = "".join(span.to_json() for each in spans.values() for span in each)
    assert sandbox.api_key not in told


async def test_a_run_that_is_stopped_is_a_span_with_its_error(seen: Seen, sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, "another-key") as session:
        with pytest.raises(RunStoppedError):
            await session.bulk_enable(["zoe"])
    (whole,) = seen.spans()["monocloud.bulk_enable"]
    assert not whole.status.is_ok
    assert "RunStoppedError" in (whole.status.description or "")
    assert whole.attributes is not None
    assert whole.attributes["error.type"] == "UnauthorizedError"
    assert "another-key" not in whole.to_json()
    assert "zoe" not in whole.to_json()


async def test_figures_are_of_all_runs_those_that_are_over_too(seen: Seen) -> None:
    before = seen.figures()  # other tests' runs

    def since(*name: str) -> float:
        return seen.figures().get(name, 0) - before.get(name, 0)

    async with Sandbox(users=["ada", "bob"], host="::1") as sandbox:
        sandbox.script("ada", "429:1", 200)
        async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
            for n in (1, 2):
                await session.bulk_enable(["bob", "nobody"])
                assert since("monocloud.users", "::1", "enabled") == n
            task = asyncio.ensure_future(session.bulk_enable(["ada"]))
            changed = asyncio.Event()
            session.pace.listeners.add(changed.set)
            await changed.wait()
            assert seen.figures()[("monocloud.paused", "::1")] == 1
            await task
    assert since("monocloud.users", "::1", "enabled") == 3
    assert since("monocloud.users", "::1", "failed") == 2
    assert since("monocloud.throttled", "::1", "run") == 1
    assert since("monocloud.requests", "::1", "run") == 6
    assert since("monocloud.paused_seconds", "::1") >= 1
    assert ("monocloud.paused", "::1") not in seen.figures()  # no run, no pace


async def test_a_run_shows_the_gauges_of_a_session_that_is_older_than_opentelemetry(
    seen: Seen, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.delitem(sys.modules, "opentelemetry.metrics")
        session = MonoCloudSession(sandbox.url, sandbox.api_key)
    async with session:
        assert ("monocloud.paused", "127.0.0.1") not in seen.figures()
        await session.bulk_enable(["ada"])
        assert ("monocloud.paused", "127.0.0.1") in seen.figures()


async def test_log_lines_carry_what_they_say_as_fields(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "monocloud_async")
    sandbox.script("ada", "429:1", 200)
    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        await session.bulk_enable(["ada", "nobody"])
    paused, ended = (vars(record) for record in caplog.records)
    assert (paused["tenant"], paused["seconds"]) == (sandbox.url, 1.0)
    assert (ended["tenant"], ended["enabled"], ended["failed"]) == (sandbox.url, 1, 1)
    assert "1 enabled, 1 failed" in caplog.text


async def python(sandbox: Sandbox, *argv: object) -> tuple[str, str]:
    """Return the output of a program that reads the tenant from its environment."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, argv), env=environment(sandbox),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = (told.decode() for told in await process.communicate())
    assert process.returncode == 0, err
    assert sandbox.api_key not in out + err
    return out, err


@pytest.mark.process
async def test_the_example_shows_all_of_it(sandbox: Sandbox) -> None:
    sandbox.script("ada", 503, 200)
    out, err = await python(sandbox, DOCS / "examples" / "observed.py", "ada", "nobody")
    assert "1 enabled\n" in out
    assert '"name": "monocloud.bulk_enable"' in out
    assert '"name": "monocloud.users"' in out
    (line,) = map(json.loads, err.splitlines())
    assert line["event"].startswith("a run ended after ")
    assert (line["level"], line["tenant"], line["failed"]) == ("info", sandbox.url, 1)


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (DOCS / "observability.md").read_text(encoding="utf-8")
    code = (DOCS / "examples" / "observed.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in page


@pytest.mark.process
async def test_without_opentelemetry_a_run_is_the_same(sandbox: Sandbox) -> None:
    code = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from monocloud_async import MonoCloudSession

async def main() -> None:
    async with MonoCloudSession() as session:
        print(await session.bulk_enable(["ada", "nobody"]))

asyncio.run(main())
"""
    out, _ = await python(sandbox, "-c", code)
    assert "enabled=1, disabled=0, failed=1" in out


@pytest.mark.process
async def test_a_run_does_not_load_opentelemetry_for_an_application_that_does_not(
    sandbox: Sandbox,
) -> None:
    code = """
import asyncio, sys
from monocloud_async import MonoCloudSession

async def main() -> None:
    async with MonoCloudSession() as session:
        await session.bulk_enable(["ada"])
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))

asyncio.run(main())
"""
    out, _ = await python(sandbox, "-c", code)
    assert out == "[]\n"
