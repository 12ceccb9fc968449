"""The command `demo`."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from terminal import PROGRAM

from monocloud_async.cli import demo


@pytest.mark.process
def test_the_demo_does_the_whole_job_and_keeps_its_folder() -> None:
    done = subprocess.run(
        [*PROGRAM, "demo"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3,000 of 5,000 users, in lost.csv" in done.stderr
    assert "Killed." in done.stdout
    assert "Resuming the run of the journal lost.csv.journal" in done.stderr
    assert "2,994 enabled" in done.stdout
    assert re.search(r"are not: 6 were refused with 422, and \d+ were disabled", done.stdout)
    folder, page, sandbox, undo = done.stdout.splitlines()[-4:]
    path = Path(folder.removeprefix("  cd "))
    assert {"lost.csv", "lost.csv.journal", "tenant.db"} <= {each.name for each in path.iterdir()}
    program = shlex.join(PROGRAM)
    assert page == f"  {program} report lost.csv.journal -o run.html"
    assert sandbox.startswith(f"  {program} sandbox --db tenant.db --port ")
    assert undo.endswith(f" {program} undo lost.csv.journal")
    subprocess.run(page, shell=True, cwd=path, check=True)  # noqa: S602  as people paste it
    assert (path / "run.html").stat().st_size


def shown_next(capsys: pytest.CaptureFixture[str]) -> str:
    demo._show_next(Console(width=200), Path("folder"), "http://127.0.0.1:8080")
    return capsys.readouterr().out


def test_what_to_try_next_calls_the_program_as_the_demo_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "monocloud-async"
    program.touch(mode=0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["./monocloud-async"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert f"  {program} sandbox --db tenant.db --port 8080 &\n" in shown_next(capsys)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "  monocloud-async sandbox --db tenant.db --port 8080 &\n" in shown_next(capsys)


def test_a_page_is_offered_only_where_its_extra_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "report lost.csv.journal -o run.html" in shown_next(capsys)
    monkeypatch.setattr(demo, "find_spec", {"jinja2": None, "vl_convert": 1}.get)
    assert "page" not in (told := shown_next(capsys))
    assert "run.html" not in told


@pytest.mark.process
def test_a_demo_that_is_interrupted_ends_its_tenant_too() -> None:
    with subprocess.Popen(
        [*PROGRAM, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().split(" runs at ")[1].split(",")[0]
        while not process.stdout.readline().startswith("$ "):
            pass
        time.sleep(0.5)  # time for the step's process to be started, and much less than it needs
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    assert process.returncode == 130
    port = int(url.rpartition(":")[2])
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    refused = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    assert b"ConnectionRefusedError" in refused.stderr


@pytest.mark.process
def test_a_step_finds_this_package_first_and_then_what_the_demo_itself_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, pathlib; pathlib.Path('paths').write_text(os.environ['PYTHONPATH'])"
    monkeypatch.setattr(demo, "PROGRAM", [sys.executable, "-c", code])
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert demo._step(Console(quiet=True), tmp_path, "http://127.0.0.1:1", (), None) == 0
    package = Path(demo.__file__).parents[2]
    assert (tmp_path / "paths").read_text() == f"{package}{os.pathsep}/theirs"
