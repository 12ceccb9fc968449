"""Tests that need a real process: signals, pipes, a terminal, and `ps`."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import PROGRAM, environment, started, wait_for

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=400) as sandbox:
        yield sandbox


@pytest.fixture
def users(sandbox: Sandbox, tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    return path


def summary(out: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(out.splitlines()[-1])["summary"]
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains(sandbox: Sandbox, users: Path, number: signal.Signals) -> None:
    sandbox.latency = 0.3
    with started(sandbox, "bulk", users, "--json", "--concurrency", 5) as process:
        wait_for(lambda: sandbox.stats().peak_in_flight == 5)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    told = summary(out)
    assert process.returncode == 130
    assert "calls in flight finish first; Ctrl-C again cancels them" in err
    assert "The run was interrupted; the rest of" in err
    assert told["ended"] == "interrupted"
    assert told["unknown"] == told["failed"] == 0
    assert told["enabled"] == told["total"] == sandbox.stats().users["enabled"]
    assert len(out.splitlines()) - 1 == told["total"]


def test_the_second_signal_cancels_and_counts_what_nobody_knows(
    sandbox: Sandbox, users: Path, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()
    for user_id in ids[3:]:
        sandbox.script(user_id, "hang")
    failed = tmp_path / "failed.txt"
    with started(
        sandbox, "bulk", users, "--json", "--concurrency", 5, "--failures", failed
    ) as process:
        wait_for(lambda: sandbox.stats().in_flight == 5)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        while not process.stderr.readline().startswith("Stopping"):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    told = summary(out)
    assert process.returncode == 130
    assert (told["enabled"], told["unknown"], told["total"]) == (3, 5, 8)
    assert "unknown, cancelled" in err
    assert sorted(failed.read_text().split()) == sorted(ids[3:8])


def stands_still(sandbox: Sandbox) -> bool:
    requests = sandbox.stats().requests
    time.sleep(0.2)  # time for the process to do more
    return sandbox.stats().in_flight == 0 and sandbox.stats().requests == requests


def test_the_third_signal_ends_even_a_process_whose_output_is_stuck(tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    with Sandbox(users=3000) as sandbox:
        users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
        with started(sandbox, "bulk", users, "--json") as process:  # without a reader of its stdout
            wait_for(lambda: sandbox.stats().users["enabled"] > 300)
            wait_for(lambda: stands_still(sandbox))
            assert process.stderr
            for told in ("Stopping", "Cancelling"):
                process.send_signal(signal.SIGINT)
                while not process.stderr.readline().startswith(told):
                    pass
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == -signal.SIGINT


def test_ids_are_read_from_a_pipe_as_they_come(sandbox: Sandbox) -> None:
    first, second = sandbox.user_ids()[:2]
    with started(sandbox, "bulk", "-", "--json") as process:
        assert process.stdin
        process.stdin.write(f"{first}\n")
        process.stdin.flush()
        wait_for(lambda: not sandbox.is_disabled(first))
        out, _ = process.communicate(f"{second}\n", timeout=30)
    assert process.returncode == 0
    assert summary(out)["enabled"] == 2
    assert not sandbox.is_disabled(second)


def test_a_pipe_that_says_no_more_does_not_hold_up_the_end(sandbox: Sandbox) -> None:
    with started(sandbox, "bulk", "-") as process:
        assert process.stdin
        process.stdin.write(f"{sandbox.user_ids()[0]}\n")
        process.stdin.flush()
        wait_for(lambda: sandbox.stats().users["enabled"] == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_bad_header_on_a_pipe_is_an_error_of_usage(sandbox: Sandbox) -> None:
    with started(sandbox, "bulk", "-", "--format", "csv") as process:
        _, err = process.communicate("a,b\nx,y\n", timeout=30)
    assert process.returncode == 2
    assert "stdin" in err
    assert "--column" in err


def test_a_reader_that_leaves_stops_the_run_quietly(sandbox: Sandbox, users: Path) -> None:
    sandbox.latency = 0.02
    with started(sandbox, "bulk", users, "--json", "--concurrency", 2) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "Stopping: cannot write to stdout (Broken pipe)" in err
    assert "Traceback" not in err
    assert sandbox.stats().users["disabled"] > 0


def test_a_full_disk_for_the_failures_stops_the_run(sandbox: Sandbox, users: Path) -> None:
    sandbox.script(sandbox.user_ids()[0], 404)
    sandbox.latency = 0.02
    with started(sandbox, "bulk", users, "--concurrency", 2, "--failures", "/dev/full") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "cannot write the file of failures (No space left on device)" in err
    assert sandbox.stats().users["disabled"] > 1


def test_no_process_shows_the_key(sandbox: Sandbox, users: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(sandbox.api_key)
    sandbox.script(sandbox.user_ids()[0], "hang")
    with started(sandbox, "bulk", users, "--api-key-file", key) as process:
        wait_for(lambda: sandbox.stats().in_flight == 1)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"users.txt" in arguments
        assert sandbox.api_key.encode() not in arguments


def in_terminal(columns: int, environ: dict[str, str], *argv: str) -> tuple[int, str]:
    """Return the exit code, and everything written to a terminal of this width."""
    master, slave = pty.openpty()
    environ = environ | {"COLUMNS": str(columns), "LINES": "30", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [*PROGRAM, *argv], env=environ, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        seen = b""
        while select.select([master], [], [], 60)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:  # how Linux reports the end of a terminal
                break
        os.close(master)
    return process.returncode, seen.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_run_live(sandbox: Sandbox, users: Path, columns: int) -> None:
    sandbox.rate_limit, sandbox.burst = 200, 50
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()[:150]))
    sandbox.script(sandbox.user_ids()[0], 404)
    code, seen = in_terminal(columns, environment(sandbox), "bulk", str(users))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert code == 1
    assert re.search(r"\d+ of 150 +[\d,]+/s +\d\d:\d\d left", text)
    assert re.search(r"\d+ enabled, \d+ in flight", text)
    assert "1 failed (404 Not Found: 1)" in text
    assert re.search(r"paused \d\.\d s at the tenant's request", text)
    assert "149  enabled" in text
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") > 0  # the cursor is back


def test_a_sandbox_in_the_terminal(tmp_path: Path) -> None:
    ids, db = tmp_path / "ids.txt", tmp_path / "tenant.db"
    command = ["sandbox", "--port", "0", "--users", "3", "--ids", str(ids), "--db", str(db)]
    with subprocess.Popen(
        [*PROGRAM, *command, "--script", "a=b=422:keyed,200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        url, told, export = (process.stdout.readline().strip() for _ in range(3))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert told == "4 disabled users, 0 enabled; Ctrl-C ends it"
        settings = [part.partition("=") for part in export.split()[1:]]
        environ = os.environ | {name: value for name, _, value in settings}
        argv = [*PROGRAM, "enable", "a=b", *ids.read_text().split()]
        enabled = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert enabled.returncode == 1
        assert "422 Unprocessable Entity: user_id: The user id is malformed" in enabled.stderr
        with subprocess.Popen(
            [*PROGRAM, "sandbox", "--port", url.rpartition(":")[2]],
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            _, err = second.communicate(timeout=30)
            assert second.returncode == 2
            assert "cannot listen on 127.0.0.1 port" in err
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == "5 requests: 4 answered 200, 1 answered 422\n"


def test_the_demo_ends_well_and_shows_the_tenants_own_database() -> None:
    done = subprocess.run(
        [*PROGRAM, "demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "4,994 users are enabled, 6 are not: refused with 422." in done.stdout
    assert "404 Not Found: 12" in done.stdout


def test_a_demo_that_is_interrupted_ends_its_tenant_too() -> None:
    with subprocess.Popen(
        [*PROGRAM, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().split(" runs at ")[1].split(",")[0]
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    port = int(url.rpartition(":")[2])
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    refused = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    assert b"ConnectionRefusedError" in refused.stderr
