"""The outputs of a run: JSON lines, and the file of failures."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import started

from monocloud_async import ConfigurationError, Outcome
from monocloud_async.cli.outputs import FailuresFile, JsonLines, open_failures
from monocloud_async.cli.streams import results
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import open_ids
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=400) as sandbox:
        yield sandbox


@pytest.mark.process
def test_a_reader_that_leaves_stops_the_run_quietly(sandbox: Sandbox, users: Path) -> None:
    sandbox.latency = 0.02
    with started(sandbox, "bulk", users, "--json", "--concurrency", 2) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=90)
    assert process.returncode == 3
    assert "Stopping: cannot write to stdout (Broken pipe)" in err
    assert "Traceback" not in err
    assert sandbox.stats().users["disabled"] > 0


@pytest.mark.process
def test_a_full_disk_for_the_failures_stops_the_run(sandbox: Sandbox, users: Path) -> None:
    sandbox.script(sandbox.user_ids()[0], 404)
    sandbox.latency = 0.02
    with started(sandbox, "bulk", users, "--concurrency", 2, "--failures", "/dev/full") as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 3
    assert "the file of failures cannot be written (No space left on device)" in err
    assert sandbox.stats().users["disabled"] > 1


async def test_lines_are_written_when_there_are_many_or_when_asked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = results()
    lines = JsonLines(output)
    bad = Line(1, "..", None, "is no id")
    lines.bad_line(bad)
    assert capfd.readouterr().out == ""
    lines.flush()
    await output.written()
    assert json.loads(capfd.readouterr().out)["error"]["message"] == "line 1 is no id"
    for _ in range(1000):
        lines.bad_line(bad)
    await output.written()
    assert 500 < len(capfd.readouterr().out.splitlines()) < 1000


async def test_a_cancelled_call_is_a_line_without_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = results()
    lines = JsonLines(output)
    lines.outcome(
        Line(7, "ada", "ada"),
        Outcome(user_id="ada", position=6, status="unknown", seconds=0.12345),
    )
    lines.flush()
    await output.written()
    assert json.loads(capfd.readouterr().out) == {
        "line": 7,
        "user_id": "ada",
        "status": "unknown",
        "attempts": 0,
        "seconds": 0.123,
    }


def test_the_failures_file_is_emptied_only_by_a_run_that_starts(tmp_path: Path) -> None:
    users, failed = tmp_path / "users.txt", tmp_path / "failed.txt"
    users.write_text("ada\n")
    failed.write_text("from the last run\n")
    with open_ids(users, None, None) as reader, open_failures(failed) as file:
        assert file is not None
        kept = FailuresFile(file, reader)
        assert failed.read_text() == "from the last run\n"
        kept.begin()
        assert failed.read_text() == ""
        kept.add(Line(1, "ada", "ada"))
        kept.begin()
        assert (failed.read_text(), kept.lines) == ("ada\n", 1)


def test_two_runs_do_not_empty_the_failures_file_of_each_other(tmp_path: Path) -> None:
    failed, link = tmp_path / "failed.csv", tmp_path / "link.csv"
    link.symlink_to(failed)
    with (
        open_failures(failed),
        pytest.raises(ConfigurationError, match=r"another run writes its failures to .*link.csv"),
        open_failures(link),
    ):
        pass
    with open_failures(link) as file:
        assert file is not None
