"""Real processes, real signals and a full disk, and then the same command again."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import journals
import pytest
from terminal import PROGRAM, environment, started, wait_for

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

CONCURRENCY = 10
LATENCY = 0.01  # so that 50 ms are at most 50 calls
PER_KILL = CONCURRENCY + round(0.05 * CONCURRENCY / LATENCY)


def write_ids(path: Path, sandbox: Sandbox) -> Path:
    path.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    return path


def bulk(sandbox: Sandbox, users: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "bulk", users, "--concurrency", CONCURRENCY, *options]
    return subprocess.run(
        [str(part) for part in command],
        env=environment(sandbox),
        capture_output=True,
        text=True,
        check=False,
    )


def test_kill_9_at_random_moments_loses_nobody(tmp_path: Path) -> None:
    rng = random.Random(4)
    with Sandbox(users=3000, latency=LATENCY) as sandbox:
        users = write_ids(tmp_path / "users.txt", sandbox)
        journal = tmp_path / "users.txt.journal"
        for _ in range(10):
            requests = sandbox.stats().requests
            enabled = journals.outcomes(journal)["enabled"] if journal.exists() else 0
            with started(sandbox, "bulk", users, "--concurrency", CONCURRENCY) as process:
                wait_for(partial(lambda seen: sandbox.stats().requests > seen, requests))
                time.sleep(rng.uniform(0.0, 0.25))  # time for the process to work
                process.send_signal(signal.SIGKILL)
            wait_for(lambda: sandbox.stats().in_flight == 0)
            assert journals.is_intact(journal)
            found = journals.outcomes(journal)
            assert set(found) <= {"enabled"}
            repeated = (sandbox.stats().requests - requests) - (found["enabled"] - enabled)
            assert 0 <= repeated <= PER_KILL
        done = bulk(sandbox, users)
        assert done.returncode == 0, done.stderr
        assert sandbox.stats().users == {"enabled": 3000, "disabled": 0}
        rows = journals.rows(journal)
        assert [row[1] for row in rows] == sandbox.user_ids()
        assert {row[2] for row in rows} == {"enabled"}
        assert journals.is_intact(journal)
        assert not (tmp_path / "users.txt.journal-wal").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_to_repeat(tmp_path: Path, number: signal.Signals) -> None:
    with Sandbox(users=1000, latency=0.05) as sandbox:
        users = write_ids(tmp_path / "users.txt", sandbox)
        with started(sandbox, "bulk", users, "--concurrency", CONCURRENCY) as process:
            wait_for(lambda: sandbox.stats().requests > 100)
            process.send_signal(number)
            _, err = process.communicate(timeout=90)
        assert process.returncode == 130
        assert "The same command resumes the run" in err
        assert sandbox.stats().requests < 1000
        sandbox.latency = 0
        done = bulk(sandbox, users, "--json")
        assert done.returncode == 0
        told = json.loads(done.stdout.splitlines()[-1])["summary"]
        assert told["enabled"] + told["already_enabled"] == 1000
        assert sandbox.stats().requests == 1000


@pytest.fixture(params=["a full disk", "a file size limit"])
def cramped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder, and a prefix for commands that limits files to about 150 KiB."""
    if request.param == "a file size limit":
        yield tmp_path, ["sh", "-c", 'ulimit -f 256; exec "$@"', "sh"]
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk; the file size limit is tested anyway")
    yield tmp_path, []
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_and_the_same_command_finishes_it(
    cramped: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, prefix = cramped
    with Sandbox(users=4000) as sandbox:
        users = write_ids(tmp_path_factory.mktemp("input") / "users.txt", sandbox)
        journal = folder / "run.journal"
        command = [*prefix, *PROGRAM, "bulk", str(users), "--journal", str(journal)]
        # Coverage keeps its data in SQLite too, and would break it on so small a disk.
        unmeasured = {k: v for k, v in environment(sandbox).items() if "COVERAGE" not in k}
        process = subprocess.run(
            command, env=unmeasured, capture_output=True, text=True, check=False
        )
        assert process.returncode == 3, process.stderr
        assert "its journal could not be written (d" in process.stderr  # "database or disk is full"
        assert "outcomes are not in it" in process.stderr
        requests = sandbox.stats().requests
        assert 0 < requests < 4000
        assert journals.is_intact(journal)
        kept = journals.outcomes(journal)["enabled"]
        assert 0 < kept <= requests
        if prefix == []:
            subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        done = bulk(sandbox, users, "--journal", journal)
        assert done.returncode == 0, done.stderr
        assert sandbox.stats().users["enabled"] == 4000
        assert sandbox.stats().requests == 4000 + (requests - kept)
        assert journals.outcomes(journal) == {"enabled": 4000}


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    with Sandbox(users=100) as sandbox:
        users = write_ids(tmp_path / "users.txt", sandbox)
        for user_id in sandbox.user_ids():
            sandbox.script(user_id, "hang")
        with started(sandbox, "bulk", users) as process:
            wait_for(lambda: sandbox.stats().requests > 0)
            second = bulk(sandbox, users)
            assert second.returncode == 2
            assert f"users.txt.journal is in use by process {process.pid} on" in second.stderr


def test_only_this_users_own_processes_see_the_journal_and_ps_shows_no_key(tmp_path: Path) -> None:
    with Sandbox(users=50, latency=0.5) as sandbox:
        users = write_ids(tmp_path / "users.txt", sandbox)
        with started(sandbox, "bulk", users, "--concurrency", 1) as process:
            wait_for(lambda: sandbox.stats().requests > 3)
            files = [file for file in tmp_path.iterdir() if ".journal" in file.name]
            assert len(files) == 4  # the journal, its log and index, and the lock
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
            if sys.platform == "linux":
                arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                assert sandbox.api_key.encode() not in arguments
