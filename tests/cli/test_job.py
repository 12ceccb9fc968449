"""A run of the command line, for any operation: what it says, and its exit code."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import started, wait_for

from monocloud_async.cli import commands, loop
from monocloud_async.cli.access import Access
from monocloud_async.cli.job import Job
from monocloud_async.endpoint import DISABLE
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import open_ids
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


def test_a_run_of_another_operation_says_so_everywhere(
    sandbox: Sandbox, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users, journal = tmp_path / "users.txt", tmp_path / "users.journal"
    access = Access(domain=sandbox.url, api_key=sandbox.api_key)

    def disable(ids: list[str]) -> tuple[str, str]:
        users.write_text("".join(f"{user_id}\n" for user_id in ids))
        with open_ids(users, None, None) as reader:
            plan = commands.Plan(access=access, ids=reader, operation=DISABLE, journal=journal)
            code = commands.bulk(plan)
        assert code == 0
        return capfd.readouterr()

    ids = sandbox.user_ids()
    out, err = disable(ids[:30])
    assert "30  disabled" in out
    assert f"Disabling {users} on {sandbox.url}" in err
    more, told = disable(ids)
    assert "20  disabled " in more
    assert "30  disabled before, according to the journal" in more
    assert "users disabled there are not sent again" in told
    assert "enabl" not in (out + err + more + told).lower()
    assert sandbox.stats().requests == 50


@pytest.mark.process
def test_ids_are_read_from_a_pipe_as_they_come(sandbox: Sandbox) -> None:
    first, second = sandbox.user_ids()[:2]
    with started(sandbox, "bulk", "-", "--json") as process:
        assert process.stdin
        process.stdin.write(f"{first}\n")
        process.stdin.flush()
        wait_for(lambda: not sandbox.is_disabled(first))
        out, _ = process.communicate(f"{second}\n", timeout=90)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["summary"]["enabled"] == 2
    assert not sandbox.is_disabled(second)


@pytest.mark.process
def test_a_pipe_that_says_no_more_does_not_hold_up_the_end(sandbox: Sandbox) -> None:
    with started(sandbox, "bulk", "-") as process:
        assert process.stdin
        process.stdin.write(f"{sandbox.user_ids()[0]}\n")
        process.stdin.flush()
        wait_for(lambda: sandbox.stats().users["enabled"] == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130


@pytest.mark.process
def test_a_bad_header_on_a_pipe_is_an_error_of_usage(sandbox: Sandbox) -> None:
    with started(sandbox, "bulk", "-", "--format", "csv") as process:
        _, err = process.communicate("a,b\nx,y\n", timeout=90)
    assert process.returncode == 2
    assert "stdin" in err
    assert "--column" in err


def test_lines_without_an_id_give_signals_a_turn(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    access = Access(domain=sandbox.url, api_key=sandbox.api_key)
    read = 0

    def lines() -> Iterator[Line]:
        nonlocal read
        while True:
            read += 1
            if read == 5000:
                signal.raise_signal(signal.SIGINT)
            yield Line(read, "..\n", problem="is no id")

    job = Job(DISABLE, "users.txt", lines())
    assert loop.run(job.run(access)) == 130
    assert 5000 <= read < 6000
    out, err = capfd.readouterr()
    assert f"{read:,}  bad lines" in out
    assert "The run was interrupted" in err
