"""The whole job in real processes: find, preview, enable, a kill, verify, undo.

Of 2,000 users, 1,203 were disabled in a known hour. The tenant sends its users in pages of fifty,
which shift while they are read.
"""

import csv
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import PROGRAM, environment, started, wait_for

from monocloud_async import config
from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

HOUR = 1_764_079_200  # 2025-11-25T14:00:00Z
LOST, OTHERS = 1203, 797


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=LOST, others=OTHERS, disabled_at=HOUR, shift_pages=True) as sandbox:
        yield sandbox


def states(sandbox: Sandbox) -> tuple[set[str], set[str]]:
    """Return who was disabled in the hour, and who was before."""
    users = [sandbox.user(user_id) or {} for user_id in sandbox.user_ids()]
    gone = [user for user in users if user["disabled"]]
    inside = {user["user_id"] for user in gone if HOUR <= user["last_updated"] < HOUR + 3600}
    return inside, {user["user_id"] for user in gone} - inside


def disabled(sandbox: Sandbox) -> set[str]:
    users = ((user_id, sandbox.user(user_id) or {}) for user_id in sandbox.user_ids())
    return {user_id for user_id, user in users if user.get("disabled")}


def test_find_preview_enable_verify_undo(sandbox: Sandbox, tmp_path: Path) -> None:
    lost, before = states(sandbox)
    assert len(lost) == LOST

    def run(*argv: object) -> tuple[int, str, str]:
        with started(sandbox, *argv, cwd=tmp_path) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    window = ("--changed-after", "2025-11-25T14:00Z", "--changed-before", "2025-11-25T15:00Z")
    code, _, err = run("users", "--disabled", *window, "-o", "lost.csv")
    assert code == 0, err
    with (tmp_path / "lost.csv").open(newline="") as file:
        assert {row["user_id"] for row in csv.DictReader(file)} == lost
    assert disabled(sandbox) == lost | before

    # Somebody enables a few of them by hand meanwhile.
    by_hand = set(sorted(lost)[:50])
    for user_id in by_hand:
        sandbox.add_user(user_id, disabled=False, last_updated=int(time.time()))

    code, out, err = run("bulk", "lost.csv", "--dry-run", "--check", "--json")
    assert code == 0, err
    seen = json.loads(out)
    assert (seen["states"]["disabled"], seen["states"]["enabled"]) == (LOST - 50, 50)
    assert disabled(sandbox) == (lost | before) - by_hand

    sandbox.latency = 0.2
    with started(sandbox, "bulk", "lost.csv", "--check", "--yes", cwd=tmp_path) as process:
        wait_for(lambda: sandbox.stats().users["disabled"] < len(before) + LOST - 400)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=90)
    assert len(disabled(sandbox)) > len(before)
    sandbox.latency = 0
    code, out, err = run("bulk", "lost.csv", "--check", "--yes")
    assert code == 0, err
    assert "Resuming the run of the journal lost.csv.journal" in err
    assert disabled(sandbox) == before

    code, out, err = run("check", "lost.csv")
    assert (code, f"{LOST:,} enabled" in out) == (0, True), err
    code, out, err = run("check", "lost.csv.journal")
    assert code == 0, err

    code, _, err = run("undo", "lost.csv.journal", "--yes")
    assert code == 0, err
    assert disabled(sandbox) == before | (lost - by_hand)
    assert run("check", "lost.csv.journal.undo")[0] == 0


def test_a_wrong_key_a_wrong_domain_and_addresses_are_told_before_anything_is_sent(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()[:100]))
    emails = tmp_path / "emails.txt"
    emails.write_text("".join(f"u{number}@example.com\n" for number in range(100)))
    before = disabled(sandbox)
    wrong = {config.API_KEY: "wrong-and-secret"}, {config.DOMAIN: "http://127.0.0.1:1"}
    for path, environ, code in ((users, wrong[0], 3), (users, wrong[1], 3), (emails, {}, 2)):
        argv = [*PROGRAM, "bulk", str(path), "--check", "--yes", "--attempts", "1"]
        done = subprocess.run(
            argv,
            env=environment(sandbox) | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stdout + done.stderr
    assert disabled(sandbox) == before
    assert sandbox.stats().by_status.get("200", 0) == 0


@pytest.mark.parametrize(
    ("answer", "options"), [("n\n", []), ("y\n", []), ("", ["--yes"]), ("\x04", [])]
)
def test_on_a_terminal_a_tenant_elsewhere_is_asked_about_first(
    sandbox: Sandbox, tmp_path: Path, answer: str, options: list[str]
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("".join(f"u{number}\n" for number in range(20)))
    environ = environment(sandbox) | {config.DOMAIN: "acme.invalid", "TERM": "dumb"}
    master, slave = pty.openpty()
    argv = [*PROGRAM, "bulk", str(users), "--attempts", "1", *options]
    with subprocess.Popen(argv, env=environ, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        seen = b""
        answered = False
        while True:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
            if b"Go on?" in seen and not answered:
                answered = True
                os.write(master, answer.encode())
    os.close(master)
    text = " ".join(seen.decode().split())
    asked = "20 would be enabled on https://acme.invalid" in text
    assert asked is not bool(options)
    goes_on = bool(options) or answer == "y\n"
    assert process.returncode == (3 if goes_on else 130)
    assert ("Nothing was sent" in text) is not goes_on
