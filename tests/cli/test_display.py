"""What people see of a run, in a terminal and elsewhere, and the counts of failures."""

import asyncio
import io
import os
import pty
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from runs import bulk
from terminal import PROGRAM, environment
from virtual_time import run

import monocloud_async as m
from monocloud_async import BulkReport, Outcome, User
from monocloud_async.cli.display import Display, Tally, reasons, speed
from monocloud_async.sandbox import Sandbox


def test_of_many_kinds_of_failure_the_first_hundred_are_told_apart() -> None:
    tally = Tally()
    for position in range(250):
        problem = m.ProblemDetails(title=f"Said {position % 125}")
        error = m.NotFoundError(status=404, user_id="u", problem=problem)
        tally.outcome(Outcome(user_id="u", position=position, status="failed", error=error))
    assert len(tally.kinds) == 101
    assert tally.kinds.total() == 250
    assert tally.kinds["other failures"] == 50
    assert len(reasons(tally)) == 5


def test_a_log_has_a_line_every_ten_seconds() -> None:
    said = io.StringIO()

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(1)
        return User(user_id=user_id)

    async def main() -> None:
        running = bulk([f"u{number}" for number in range(35)], send, concurrency=1)
        with Display(Console(file=said), running, Tally(), title="Enabling", expected=35) as shown:
            task = asyncio.ensure_future(running)
            while not task.done():
                await asyncio.wait([task], timeout=0.2)
                shown.refresh()

    run(main(), sockets=False)
    title, *lines = said.getvalue().splitlines()
    assert title == "Enabling"
    assert [line.split(" |")[0] for line in lines] == ["10 of 35", "20 of 35", "30 of 35"]
    assert lines[0].endswith("| 10 enabled, 1 in flight")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=400) as sandbox:
        yield sandbox


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


@pytest.mark.process
@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_run_live(sandbox: Sandbox, users: Path, columns: int) -> None:
    sandbox.rate_limit, sandbox.burst = 40, 75
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()[:150]))
    sandbox.script(sandbox.user_ids()[0], 404)
    code, seen = in_terminal(columns, environment(sandbox), "bulk", str(users))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert code == 1
    assert re.search(r"\d+ of 150 +[\d,]+/s +\d\d:\d\d left", text)
    assert re.search(r"\d+ enabled, \d+ in flight", text)
    assert "1 failed (404 Not Found: 1)" in text
    assert re.search(r"waiting \d s for the tenant", text)
    assert "149  enabled" in text
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") > 0  # the cursor is back


def test_the_speed_counts_nobody_who_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BulkReport, "seconds", 2.0)
    report = BulkReport(total=100, failed=4, already_enabled=6, not_attempted=90)
    assert speed(report).startswith("2.0 s, 2 users a second; 0 requests")
    report.failed = 1
    assert speed(report).startswith("2.0 s, 0.5 users a second; 0 requests")
