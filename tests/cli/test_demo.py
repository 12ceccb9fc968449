"""The command `demo`."""

import os
import re
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
    first, sandbox, undo = done.stdout.splitlines()[-3:]
    command = re.fullmatch(
        r"  cd (\S+) && monocloud-async report lost.csv.journal -o run.html", first
    )
    assert command
    assert {"lost.csv", "lost.csv.journal", "tenant.db"} <= {
        path.name for path in Path(command[1]).iterdir()
    }
    assert sandbox.startswith("  monocloud-async sandbox --db tenant.db --port ")
    assert undo.endswith("monocloud-async undo lost.csv.journal")


@pytest.mark.process
def test_a_demo_that_is_interrupted_ends_its_tenant_too() -> None:
    with subprocess.Popen(
        [*PROGRAM, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().split(" runs at ")[1].split(",")[0]
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
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
