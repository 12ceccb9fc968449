"""Twelve ways to lose an output, each for four commands: true exit codes, and nobody is lost."""

import fcntl
import os
import pty
import resource
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from terminal import PROGRAM, Cli, environment

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

OWN = -1  # the exit code that the command has with all its outputs
IDS = ["ada", "nobody", "bob", "cyd"]
ROOM = 1 << 20  # bytes that a file may have in `little_room`


class Streams(NamedTuple):
    """Where a process writes; None for a pipe that is read."""

    stdout: int | None = None
    stderr: int | None = None
    preexec: Callable[[], None] | None = None
    environ: tuple[tuple[str, str], ...] = ()


Way = Callable[[ExitStack], Streams]


def full(stack: ExitStack) -> int:
    return stack.enter_context(Path("/dev/full").open("wb")).fileno()


def unread(stack: ExitStack) -> int:
    """A pipe whose reader has left."""
    reads, writes = os.pipe()
    os.close(reads)
    stack.callback(os.close, writes)
    return writes


def stuck(stack: ExitStack) -> int:
    """A pipe in non-blocking mode that is full, and whose reader sleeps."""
    reads, writes = os.pipe()
    stack.callback(os.close, reads)
    stack.callback(os.close, writes)
    fcntl.fcntl(writes, fcntl.F_SETFL, os.O_NONBLOCK)
    while True:
        try:
            os.write(writes, bytes(4096))
        except BlockingIOError:
            return writes


def slow(stack: ExitStack) -> int:
    """A pipe in non-blocking mode that is full, and is read a little later."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        while True:
            os.write(writes, bytes(4096))
    except BlockingIOError:
        pass

    def read() -> None:
        while os.read(reads, 65536):
            pass
        os.close(reads)

    reader = threading.Timer(1, read)
    reader.start()
    stack.callback(reader.join)
    stack.callback(os.close, writes)
    return writes


def gone_terminal(stack: ExitStack) -> int:
    master, slave = pty.openpty()
    os.close(master)
    stack.callback(os.close, slave)
    return slave


def little_room() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))


# Where it is measured, its own file would be longer than `little_room` allows.
NO_COVERAGE = (("COVERAGE_PROCESS_START", ""), ("COVERAGE_PROCESS_CONFIG", ""))


def nearly_full_disk(stack: ExitStack) -> Streams:
    """A log that may grow by only a few bytes; the journal is smaller, however many its writes."""
    Path("log").write_bytes(bytes(ROOM - 10))
    log = os.open("log", os.O_WRONLY | os.O_APPEND)
    stack.callback(os.close, log)
    return Streams(stdout=log, preexec=little_room, environ=NO_COVERAGE)


def closed(number: int) -> Streams:
    return Streams(preexec=lambda: os.close(number))


ASCII = (("PYTHONIOENCODING", "ascii"), ("PYTHONUTF8", "0"))
WAYS: dict[str, tuple[Way, int]] = {
    "stdout on a full disk": (lambda stack: Streams(stdout=full(stack)), 3),
    "stdout on a disk that fills up": (nearly_full_disk, 3),
    "stdout without a reader": (lambda stack: Streams(stdout=unread(stack)), 3),
    "stdout closed": (lambda _: closed(1), 3),
    "stdout with a slow reader": (lambda stack: Streams(stdout=slow(stack)), OWN),
    "stdout without some letters": (lambda _: Streams(environ=ASCII), OWN),
    "stderr on a full disk": (lambda stack: Streams(stderr=full(stack)), OWN),
    "stderr without a reader": (lambda stack: Streams(stderr=unread(stack)), OWN),
    "stderr closed": (lambda _: closed(2), OWN),
    "stderr with a reader that sleeps": (lambda stack: Streams(stderr=stuck(stack)), OWN),
    "both without a reader": (lambda s: Streams(stdout=unread(s), stderr=unread(s)), 3),
    "a terminal that is gone": (lambda s: Streams(gone_terminal(s), gone_terminal(s)), 3),
}
COMMANDS = {
    "bulk": (["bulk", "\u0436.txt", "--journal", "journal"], 1),
    "bulk --json": (["bulk", "\u0436.txt", "--json", "--journal", "journal"], 1),
    "enable": (["enable", *IDS], 1),
    "report": (["report", "journal"], 0),
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=["ada", "bob", "cyd"]) as sandbox:
        yield sandbox


def recorded() -> int:
    """How many users are enabled according to the journal."""
    with closing(sqlite3.connect("journal")) as sql:
        count: int = sql.execute("SELECT count(*) FROM users WHERE outcome = 'enabled'").fetchone()[
            0
        ]
        return count


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_lost_output_is_told_and_changes_nothing_else(
    sandbox: Sandbox,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("\u0436.txt").write_text("\n".join(IDS) + "\n", encoding="utf-8")
    argv, own = COMMANDS[command]
    if command == "report":
        cli(*COMMANDS["bulk"][0])
    with ExitStack() as stack:
        streams = WAYS[way][0](stack)
        done = subprocess.run(
            [*PROGRAM, *argv],
            env=environment(sandbox) | dict(streams.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if streams.stdout is None else streams.stdout,
            stderr=subprocess.PIPE if streams.stderr is None else streams.stderr,
            timeout=60,
            check=False,
            preexec_fn=streams.preexec,
        )
    wanted = own if WAYS[way][1] == OWN else WAYS[way][1]
    said = (done.stdout or b"") + (done.stderr or b"")
    assert done.returncode == wanted, said
    assert b"Traceback" not in said
    if wanted == 3 and streams.stderr is None:
        assert b"cannot write to stdout" in done.stderr
    enabled = sandbox.stats().users["enabled"]
    if way == "stdout closed" and command in {"bulk --json", "enable"}:
        assert (enabled, b"nothing was sent" in done.stderr) == (0, True)
    else:
        assert enabled == 3
    if command != "enable" and enabled:
        assert recorded() == enabled
