"""The `fleet` commands, over real coordinators and workers."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from fleets import Fleet, Temporal, WatchedSandbox, temporal
from rich.console import Console
from terminal import PROGRAM, Cli, environment, started, wait_for

from monocloud_async.cli import loop
from monocloud_async.cli.fleet import commands, dev
from monocloud_async.fleet import FleetError, FleetRun
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import lock_path
from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

USERS = 600

Say = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    with temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
def sandbox() -> Iterator[WatchedSandbox]:
    with WatchedSandbox(users=USERS) as sandbox:
        yield sandbox


@pytest.fixture
def parts(tmp_path: Path, server: Temporal, sandbox: WatchedSandbox) -> Iterator[Fleet]:
    with closing(Fleet(tmp_path, server, sandbox)) as parts:
        yield parts


@pytest.fixture
def say(parts: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run a command of the fleet in this process, and return its output, stdout and stderr."""
    for name, value in parts.server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(parts.folder)

    def run(*argv: object, code: int = 0) -> str:
        done = cli("fleet", *argv)
        said = done.out + done.err
        assert done.code == code, said
        assert parts.sandbox.api_key not in said
        return said

    return run


def test_a_run_from_start_to_end(parts: Fleet, say: Say) -> None:
    coordinator, worker = parts.part("coordinator"), parts.part("worker")
    parts.sandbox.script(parts.sandbox.user_ids()[3], "422:identity")
    assert "has started, at 50 requests a second at most" in say(
        "start", parts.ids, "--max-rate", 50
    )
    assert "already has a run" in say("start", parts.ids, "--max-rate", 1, code=2)
    asyncio.run(parts.until(50))
    assert "The run was not paused" in say("resume")
    say("pause", "--why", "a deployment")
    assert "Paused: a deployment" in say("status")
    assert json.loads(say("status", "--json"))["paused"] == "a deployment"
    said = say("rate", 40)
    assert "is paused; with a resume, it continues at 40 requests a second at most" in said
    assert "at the rate that the tenant grants" in say("rate")
    assert "The run resumes" in say("resume")
    end = say("status", "--follow", code=1)
    assert "599  enabled" in end
    assert "The journal covers the whole file, without gaps" in end
    assert "id number 4, user" in say("failures")
    assert json.loads(say("failures", "--json"))["status"] == 422
    say("start", parts.ids)
    again = say("status", "--follow", code=1)
    assert "nobody was asked in this run" in again
    assert "another --journal" in again
    for part in (coordinator, worker):
        part.send(signal.SIGTERM)
        assert part.ended() == 0
        assert parts.sandbox.api_key not in part.said()


def test_a_run_that_is_cancelled(parts: Fleet, say: Say) -> None:
    parts.part("coordinator")
    parts.part("worker")
    parts.sandbox.rate_limit = 50
    started = say("start", parts.ids)
    assert "has started, at the rate that the tenant grants" in started
    asyncio.run(parts.until(50))
    assert say("pause", "--why", "a deployment") == "The run is pausing\n"
    assert say("pause") == "The run was already paused: a deployment\n"
    assert "A start with the same journal does the rest" in say("cancel")
    for options in ("--follow", "--domain", parts.sandbox.url), ("--domain", parts.sandbox.url):
        said = say("status", *options, code=3)
        assert "The run was cancelled" in said
        assert "To do the rest, start it again, with the same file and journal" in said
        assert "Paused" not in said.partition("requests,")[2]
    for order in ("cancel", "pause", "resume"):
        said = say(order, code=2)
        assert "the latest one has ended; to see how: monocloud-async fleet status" in said


def test_an_order_that_nobody_has_heard_says_so(parts: Fleet, say: Say) -> None:
    coordinator = parts.part("coordinator")
    parts.part("worker")
    say("start", parts.ids, "--max-rate", 20)
    asyncio.run(parts.until(10))
    coordinator.kill()
    for order in ("pause", "cancel"):
        said = say(order)
        assert "no coordinator could say that it has heard it" in said
        assert "start one with: monocloud-async fleet coordinator" in said


@pytest.mark.parametrize(
    "error", [msgspec.ValidationError("of another version"), FleetError("it cannot answer")]
)
def test_an_order_is_given_whatever_becomes_of_the_question_before_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []

    class Run:
        async def progress(self) -> None:
            raise error

    async def attach(*_: object) -> Run:
        return Run()

    async def order(run: object) -> None:
        given.append(run)

    monkeypatch.setattr(FleetRun, "attach", attach)
    commands.steer(None, order, lambda _: "done")
    assert len(given) == 1
    assert "no coordinator could say that it has heard it" in capsys.readouterr().out


def test_a_start_with_the_journal_of_something_else_is_refused_at_once(
    parts: Fleet, say: Say
) -> None:
    parts.journal.write_text("notes")
    parts.part("coordinator")
    asyncio.run(parts.until_hosted())
    said = say("start", parts.ids, "--max-rate", 50, code=2)
    assert "is not a journal of this program" in said
    said = say("start", parts.ids, "--max-rate", 50, "--journal", "up/j", code=2)
    assert "is not the name of a journal" in said


def test_mistakes_are_told_in_one_line(parts: Fleet, say: Say) -> None:
    for order in ("status", "cancel", "pause", "resume"):
        said = say(order, code=2)
        assert "no run is in progress for http" in said
        assert "to see the runs of all tenants: temporal workflow list" in said
    for part in ("worker", "coordinator"):
        assert "missing is not there" in say(part, "--source", "missing", code=2)
    assert "cannot read" in say("start", "nothing.txt", "--max-rate", 1, code=2)
    assert "max_rate must be" in say("start", parts.ids, "--max-rate", 0, code=2)
    said = say("start", parts.ids, "--max-rate", 1)
    assert "start one with: monocloud-async fleet coordinator" in said
    assert "no coordinator answers" in say("status", code=2)
    said = say("doctor", parts.ids, code=1)
    assert re.search(
        r"^ok       Temporal: .*; a run of this tenant is in progress$", said, re.MULTILINE
    )
    assert re.search(
        r"^problem  Coordinator: there is none: start one with: mono", said, re.MULTILINE
    )
    told = (say("doctor", "--json", code=1)).splitlines()
    assert [json.loads(each)["ok"] for each in told] == [True, False, False]
    say("cancel")


@pytest.mark.parametrize("command", ["status", "worker", "coordinator"])
def test_a_temporal_that_is_not_there_is_told_in_one_line(
    command: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*PROGRAM, "fleet", command],
        env=environment(sandbox) | {"TEMPORAL_ADDRESS": "127.0.0.1:1"},
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "cannot reach Temporal at 127.0.0.1:1" in said
    assert said.count("\n") <= 2


@pytest.mark.parametrize("command", ["worker", "coordinator"])
def test_a_part_that_temporal_refuses_says_so_and_ends(
    command: str, sandbox: Sandbox, server: Temporal, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*PROGRAM, "fleet", command],
        env=environment(sandbox) | server.environment | {"TEMPORAL_NAMESPACE": "nowhere"},
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    # The threads of Temporal's client may say something after it.
    said = done.stderr.splitlines()
    assert "Error: Temporal has no such namespace: check TEMPORAL_NAMESPACE" in said


def test_a_fleet_on_one_machine_and_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    with Sandbox(users=1000) as sandbox:
        ids = tmp_path / "ids.txt"
        ids.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
        command = ("fleet", "dev", ids, "--max-rate")
        with started(sandbox, *command, 100, cwd=tmp_path) as process:
            wait_for(lambda: sandbox.stats().requests > 100)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=90)
        assert process.returncode == 130, err
        assert "no coordinator answers" not in err
        assert "Cancelling" in err
        assert "The run was cancelled" in out
        with started(sandbox, *command, 300, cwd=tmp_path) as process:
            out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert "1,000  enabled" in out
        assert "The journal covers the whole file" in out
        assert "http://127.0.0.1:" in err
        assert sandbox.stats().users == {"enabled": 1000, "disabled": 0}
        assert sandbox.api_key not in out + err
        assert {path.name for path in tmp_path.iterdir()} == {"ids.txt", "ids.txt.journal"}


async def test_of_a_run_that_ends_only_the_first_ctrl_c_is_an_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[asyncio.Task[Any] | None] = []

    class Run:
        async def cancel(self) -> None:
            orders.append(asyncio.current_task())
            raise FleetError("it has just ended")

    async def watch(*_given: object) -> str:
        for _ in range(2):
            interrupts[0](signal.SIGINT)
            await asyncio.sleep(0)
        return "report"

    interrupts: list[Any] = []

    def signals(interrupt: Any) -> AbstractContextManager[None]:
        interrupts.append(interrupt)
        return nullcontext()

    monkeypatch.setattr(dev, "watch", watch)
    monkeypatch.setattr(loop, "signals", signals)
    run: Any = Run()
    report: Any = await dev._to_its_end(run, Console(stderr=True), "monocloud-async", {})
    assert report == "report"
    (order,) = orders
    assert order is not None
    await asyncio.wait({order})
    assert order.exception() is None  # else its traceback would be shown
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Cancelling")
    assert second.endswith("Ctrl-C again gives up")


def listening(process: int) -> set[int]:
    """Return the ports on which a process listens."""
    links = [str(each.readlink()) for each in Path(f"/proc/{process}/fd").iterdir()]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[1].partition(":")[2], 16)
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in links
    }


def blind_post(port: int) -> int:
    """Start a workflow as the page of another site may ask for it; 0 if that is no HTTP."""
    body = b'{"workflowType": {"name": "nobodys"}, "taskQueue": {"name": "nobodys"}}'
    path = "/api/v1/namespaces/default/workflows/a-page-of-another-site"
    headers = {"Content-Type": "text/plain", "Origin": "https://other.example"}
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of processes of Linux")
def test_a_fleet_on_one_machine_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    def is_there(process: int) -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            return " Z " not in Path(f"/proc/{process}/stat").read_text()
        return False

    with Sandbox(users=1000, rate_limit=50) as sandbox:
        ids = tmp_path / "ids.txt"
        ids.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
        with started(sandbox, "fleet", "dev", ids, cwd=tmp_path) as process:
            wait_for(lambda: sandbox.stats().requests > 0)
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            ports = [port for part in listed.split() for port in listening(int(part))]
            answers = {port: blind_post(port) for port in ports}
            process.kill()
            process.wait()
        parts = [int(part) for part in listed.split()]
        assert len(parts) == 5  # Temporal, coordinator, two workers, and who ends them
        wait_for(lambda: not any(map(is_there, parts)))
    assert len(answers) > 1  # the page, and the API
    assert HTTPStatus.OK not in answers.values()  # a page in a browser cannot begin anything


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of processes of Linux")
@pytest.mark.parametrize(
    ("part", "name"), [("start-dev", "Temporal"), ("coordinator", "the coordinator")]
)
def test_a_fleet_on_one_machine_ends_with_a_part_that_it_needs(
    part: str, name: str, tmp_path: Path
) -> None:
    with Sandbox(users=1000, rate_limit=50) as sandbox:
        ids = tmp_path / "ids.txt"
        ids.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
        with started(sandbox, "fleet", "dev", ids, cwd=tmp_path) as process:
            wait_for(lambda: sandbox.stats().requests > 0)
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for number in map(int, listed.split()):
                if part.encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                    os.kill(number, signal.SIGKILL)
            out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    *_, last = err.splitlines()
    assert last == f"Error: {name} has ended before the run; the same command goes on with it"


def test_a_journal_in_a_folder_that_is_not_there_is_refused_before_anything_starts(
    cli: Cli, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ada\n")
    journal = tmp_path / "nowhere" / "ids.journal"
    with mock.patch.object(subprocess, "Popen") as process:
        done = cli("fleet", "dev", ids, "--max-rate", 1, "--journal", journal)
    assert (done.code, "its folder is not there" in done.err) == (2, True)
    assert not process.called


def test_a_journal_that_another_process_has_is_refused_before_anything_starts(
    cli: Cli, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ada\n")
    lock = Lock(lock_path(tmp_path / "ids.txt.journal"), "the journal")
    lock.take()
    with mock.patch.object(subprocess, "Popen") as process:
        done = cli("fleet", "dev", ids, "--journal", tmp_path / "ids.txt.journal")
    assert (done.code, f"is in use by process {os.getpid()}" in done.err) == (2, True), done.err
    assert not process.called
    lock.release()


def test_a_journal_that_the_coordinator_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    ids, journal = tmp_path / "ids.txt", tmp_path / "ids.txt.journal"
    ids.write_text("ada\n")
    journal.write_text("no journal" * 100)
    with (
        Sandbox(users=["ada"]) as sandbox,
        started(sandbox, "fleet", "dev", ids, cwd=tmp_path) as process,
    ):
        out, err = process.communicate(timeout=90)
        assert (process.returncode, out, sandbox.stats().requests) == (2, "", 0)
    *shown, last = err.splitlines()
    assert last.startswith("Error: the run ended: refused: ")
    assert last.endswith("ids.txt.journal is not a journal of this program; name another file")
    assert not [line for line in shown if "refused" in line or "Traceback" in line]


def test_without_the_extra_it_is_said_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['temporalio'] = None; from monocloud_async.cli import main;"
        " sys.exit(main(['fleet', 'status']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: a fleet needs Temporal's client: pip install 'monocloud-async[temporal]'\n"
    )
