"""Runs the command line: in this process, which is quick, or in a real process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from monocloud_async import config
from monocloud_async.sandbox import Sandbox


class Result(NamedTuple):
    """What a command ended with, and said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]

PROGRAM = [sys.executable, "-m", "monocloud_async"]


def environment(sandbox: Sandbox) -> dict[str, str]:
    return {**os.environ, config.DOMAIN: sandbox.url, config.API_KEY: sandbox.api_key}


@contextmanager
def started(sandbox: Sandbox, *argv: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a real process, and end it afterwards."""
    with subprocess.Popen(
        [*PROGRAM, *map(str, argv)],
        env=environment(sandbox),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def stdin_from(path: Path) -> Iterator[None]:
    """Let the descriptor 0 of this process be this file, as after `<` in a shell."""
    before = os.dup(0)
    try:
        with path.open("rb") as file:
            os.dup2(file.fileno(), 0)
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90  # a process may take long to start, on a busy machine
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
