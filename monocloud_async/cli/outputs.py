"""The outputs of a run: JSON lines for programs, and a file of failures to run again."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import msgspec

from monocloud_async.errors import ConfigurationError, MonoCloudError, StatusError
from monocloud_async.inputs.lines import Line
from monocloud_async.outcome import REPORT_FIELDS, BulkReport, Outcome
from monocloud_async.sanitize import clean

OnBroken = Callable[[str], None]

_MANY = 1 << 16  # bytes


class JsonLines:
    """Writes JSON lines to stdout in a thread, so that a slow reader delays no request."""

    def __init__(self, on_broken: OnBroken) -> None:
        self._on_broken = on_broken
        self._buffer = bytearray()
        self._writing = asyncio.Lock()
        self._broken = False

    def outcome(self, line: Line, outcome: Outcome) -> None:
        """Add the outcome of one user."""
        members: dict[str, Any] = {
            "line": line.number,
            "user_id": outcome.user_id,
            "status": outcome.status,
            "attempts": outcome.attempts,
            "seconds": round(outcome.seconds, 3),
        }
        if outcome.user is not None:
            members["disabled"] = outcome.user.disabled
        if outcome.error is not None:
            members["error"] = _described(outcome.error)
        self._add(members)

    def bad_line(self, line: Line) -> None:
        """Add a line without a valid id."""
        error = {"type": "InvalidUserIdError", "message": f"line {line.number} {line.problem}"}
        self._add({"line": line.number, "user_id": None, "status": "failed", "error": error})

    def summary(self, report: BulkReport, bad_lines: int, ended: str) -> None:
        """Add the last line: the counts, and how the run ended."""
        members = {name: getattr(report, name) for name in REPORT_FIELDS}
        for name in ("seconds", "paused_seconds"):
            members[name] = round(members[name], 3)
        self._add({"summary": members | {"bad_lines": bad_lines, "ended": ended}})

    async def flush(self, *, when_many: bool = False) -> None:
        """Write what was added; with `when_many`, only if it is enough to be worth a thread."""
        if when_many and len(self._buffer) < _MANY:
            return
        async with self._writing:
            lines, self._buffer = self._buffer, bytearray()
            if not lines or self._broken:
                return
            try:
                await asyncio.to_thread(_write, lines)
            except OSError as error:
                self._broken = True
                forget_stdout()
                self._on_broken(f"cannot write to stdout ({error.strerror})")

    def _add(self, members: dict[str, Any]) -> None:
        self._buffer += msgspec.json.encode(members) + b"\n"


def _write(lines: bytearray) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()


def forget_stdout() -> None:
    """Discard later output: the reader of stdout is gone, and Python would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _described(error: MonoCloudError) -> dict[str, Any]:
    members: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StatusError):
        members |= {"status": error.status, "trace_id": error.trace_id}
    return members


class HasHeader(Protocol):
    """An input with a text above its first row, which is empty until it is read."""

    @property
    def header(self) -> str: ...  # noqa: D102


class FailuresFile:
    """Writes the lines of the input that failed, unchanged."""

    def __init__(self, file: FileIO, reader: HasHeader, on_broken: OnBroken) -> None:
        self._file = file  # unbuffered, so that a killed process loses nothing
        self._reader = reader
        self._on_broken = on_broken
        self._begun = False
        self.lines = 0
        self.broken = False  # whether a line could not be written
        self.name = clean(str(file.name))

    def begin(self) -> None:
        """Empty the file; called only when this run is certain to start."""
        if not self._begun:
            self._begun = True
            if os.fstat(self._file.fileno()).st_size:  # devices and pipes have no size
                self._file.truncate(0)

    def add(self, line: Line) -> None:
        """Write one line at once, in UTF-8 if it was in UTF-16."""
        start = "" if self.lines else self._reader.header
        end = "" if line.text.endswith(("\n", "\r")) else "\n"
        text = (start + line.text + end).encode(errors="surrogateescape")
        self.lines += 1
        try:
            self._file.write(text)
        except OSError as error:
            self.broken = True
            self._on_broken(f"cannot write the file of failures ({error.strerror})")


@contextmanager
def open_failures(path: Path | None) -> Iterator[FileIO | None]:
    """Open the file without emptying it, or yield None without a path.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    with file:
        yield file
