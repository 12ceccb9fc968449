"""The event loop of the command line, and signals."""

import asyncio
import fcntl
import json
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from terminal import Cli, started, wait_for

from monocloud_async.cli import loop
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=400) as sandbox:
        yield sandbox


def summary(out: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(out.splitlines()[-1])["summary"]
    return found


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_the_loop_is_uvloop_where_it_is_installed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)

    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    assert loop.run(module()) == kind


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_are_heard_and_the_next_one_ends_the_process(number: signal.Signals) -> None:
    async def main() -> None:
        heard, times = asyncio.Event(), 0

        def interrupt(which: signal.Signals) -> None:
            nonlocal times
            assert which is number
            times += 1
            heard.set()

        with loop.signals(interrupt):
            for count in (1, 2):
                assert signal.getsignal(number) is not signal.SIG_DFL
                signal.raise_signal(number)
                await asyncio.wait_for(heard.wait(), 10)
                heard.clear()
                assert times == count
            for each in (signal.SIGINT, signal.SIGTERM):
                assert signal.getsignal(each) is signal.SIG_DFL

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        loop.run(main())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_afterwards_signals_are_nobody_s(number: signal.Signals) -> None:
    async def main() -> None:
        with loop.signals(lambda _: None):
            during = signal.getsignal(number)
        assert signal.getsignal(number) is not during

    before = signal.getsignal(number)
    try:
        loop.run(main())
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        ([signal.SIGHUP], [signal.SIGHUP]),
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], [signal.SIGHUP]),
        ([signal.SIGINT, signal.SIGHUP], [signal.SIGINT]),
        ([signal.SIGHUP, signal.SIGINT], [signal.SIGHUP, signal.SIGINT]),
    ],
)
def test_a_terminal_that_closes_is_the_first_signal_or_none(
    sent: list[signal.Signals], heard: list[signal.Signals]
) -> None:
    told: list[signal.Signals] = []

    async def main() -> None:
        with loop.signals(told.append):
            for number in sent:
                signal.raise_signal(number)
                await asyncio.sleep(0.05)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in numbers}
    try:
        loop.run(main())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert told == heard


def test_under_nohup_a_terminal_that_closes_is_nothing() -> None:
    async def main() -> None:
        with loop.signals(lambda number: pytest.fail(str(number))):
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(0.05)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        loop.run(main())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_drains(sandbox: Sandbox, users: Path, number: signal.Signals) -> None:
    sandbox.latency = 0.3
    with started(sandbox, "bulk", users, "--json", "--concurrency", 5) as process:
        wait_for(lambda: sandbox.stats().peak_in_flight == 5)
        process.send_signal(number)
        out, err = process.communicate(timeout=90)
    told = summary(out)
    assert process.returncode == 130
    assert "calls in flight finish first; Ctrl-C again cancels them" in err
    assert "The run was interrupted; the rest of" in err
    assert told["ended"] == "interrupted"
    assert told["unknown"] == told["failed"] == 0
    assert told["enabled"] == told["total"] == sandbox.stats().users["enabled"]
    assert len(out.splitlines()) - 1 == told["total"]


@pytest.mark.process
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
        out, err = process.communicate(timeout=90)
    told = summary(out)
    assert process.returncode == 130
    assert (told["enabled"], told["unknown"], told["total"]) == (3, 5, 8)
    assert "unknown, cancelled" in err
    assert sorted(failed.read_text().split()) == sorted(ids[3:8])


def waiting_bytes(pipe: IO[str]) -> int:
    return int.from_bytes(fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.process
@pytest.mark.parametrize("option", ["--json", "--dry-run"])
def test_who_waits_for_a_line_from_a_pipe_hears_a_signal(sandbox: Sandbox, option: str) -> None:
    with started(sandbox, "bulk", "-", option) as process:
        assert process.stdin
        pipe = process.stdin
        pipe.write("ad")
        pipe.flush()
        wait_for(lambda: not waiting_bytes(pipe))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130


def stands_still(sandbox: Sandbox) -> bool:
    requests = sandbox.stats().requests
    time.sleep(0.2)  # time for the process to do more
    return sandbox.stats().in_flight == 0 and sandbox.stats().requests == requests


@pytest.mark.process
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
            assert process.wait(timeout=90) == -signal.SIGINT


def sleeps(process: subprocess.Popen[str]) -> bool:
    """Whether the process has nothing to do, and does not only wait for a busy processor."""
    for _ in range(10):
        if ") S " not in Path(f"/proc/{process.pid}/stat").read_text():
            return False
        time.sleep(0.02)
    return True


@contextmanager
def all_done_but_unread(sandbox: Sandbox, *argv: object) -> Iterator[subprocess.Popen[str]]:
    """A process whose work is done, and whose results wait for a reader of a short pipe."""
    with started(sandbox, *argv, pipesize=4096) as process:
        assert process.stdout
        pipe = process.stdout
        wait_for(lambda: waiting_bytes(pipe) > 0)
        wait_for(lambda: stands_still(sandbox) and sleeps(process))
        yield process


def heard(process: subprocess.Popen[str], start: str) -> str:
    """Return the line of stderr that begins so."""
    assert process.stderr
    return next(line for line in process.stderr if line.startswith(start))


@pytest.fixture
def late(sandbox: Sandbox, users: Path, cli: Cli, request: pytest.FixtureRequest) -> list[object]:
    """A command whose results do not fit into a short pipe."""
    if request.param == "bulk":
        return ["bulk", users, "--json", "--no-journal"]
    if request.param == "enable":
        return ["enable", "--json", *sandbox.user_ids()]
    cli("bulk", users)
    return ["report", f"{users}.journal", "--json"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("late", "number"),
    [
        ("bulk", signal.SIGINT),
        ("bulk", signal.SIGHUP),
        ("enable", signal.SIGTERM),
    ],
    indirect=["late"],
)
def test_a_signal_after_the_work_cuts_no_result(
    sandbox: Sandbox, late: list[object], number: signal.Signals
) -> None:
    with all_done_but_unread(sandbox, *late) as process:
        process.send_signal(number)
        told = heard(process, "Stopping once")
        out, _ = process.communicate(timeout=90)
    assert re.search(r"\d lines of results in stdout are read; Ctrl-C again", told)
    assert process.returncode == 130
    assert len([json.loads(line) for line in out.splitlines()]) >= 401


@pytest.mark.process
@pytest.mark.parametrize("late", ["report"], indirect=True)
def test_a_terminal_that_closes_may_say_so_several_times(
    sandbox: Sandbox, late: list[object]
) -> None:
    with all_done_but_unread(sandbox, *late) as process:
        process.send_signal(signal.SIGHUP)
        heard(process, "Stopping once")
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "lost" not in out
    assert len([json.loads(line) for line in out.splitlines()]) >= 401


@pytest.mark.process
@pytest.mark.parametrize(
    ("late", "second"),
    # Coverage has a handler of its own for SIGTERM, where this program has none otherwise.
    [("bulk", signal.SIGTERM), ("report", signal.SIGINT)],
    indirect=["late"],
)
def test_a_second_signal_after_the_work_tells_how_many_results_are_lost(
    sandbox: Sandbox, late: list[object], second: signal.Signals
) -> None:
    with all_done_but_unread(sandbox, *late) as process:
        process.send_signal(signal.SIGINT)
        heard(process, "Stopping once")
        process.send_signal(second)
        told = heard(process, "Error: ")
        assert process.wait(timeout=90) == 130
    assert re.search(r"\d lines of results are lost", told)
