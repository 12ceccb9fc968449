"""What a run leaves behind: JSON lines for programs, and a file of failures to feed back."""

import asyncio
import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from monocloud_async.errors import ConfigurationError, MonoCloudError, StatusError
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import IdReader
from monocloud_async.outcome import REPORT_FIELDS, BulkReport, Outcome
from monocloud_async.sanitize import clean

OnBroken = Callable[[str], None]

_MANY = 1 << 16  # bytes


class JsonLines:
    """One JSON object a line on stdout, written by a thread: a slow reader stalls no request."""

    def __init__(self, on_broken: OnBroken) -> None:
        self._on_broken = on_broken
        self._buffer = bytearray()
        self._writing = asyncio.Lock()
        self._broken = False

    def outcome(self, line: Line, outcome: Outcome) -> None:
        """One user's end."""
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
        """A line without a usable id."""
        error = {"type": "InvalidUserIdError", "message": f"line {line.number} {line.problem}"}
        self._add({"line": line.number, "user_id": None, "status": "failed", "error": error})

    def summary(self, report: BulkReport, bad_lines: int, ended: str) -> None:
        """The last line: the counts, and whether the run came to its own end."""
        members = {name: getattr(report, name) for name in REPORT_FIELDS}
        for name in ("seconds", "paused_seconds"):
            members[name] = round(members[name], 3)
        self._add({"summary": members | {"bad_lines": bad_lines, "ended": ended}})

    async def flush(self, *, when_many: bool = False) -> None:
        """Everything is written; with `when_many` only if it is worth a thread's time."""
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
                self._on_broken(f"stdout cannot be written to ({error.strerror})")

    def _add(self, members: dict[str, Any]) -> None:
        self._buffer += msgspec.json.encode(members) + b"\n"


def _write(lines: bytearray) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()


def forget_stdout() -> None:
    """Nothing more reaches stdout: its reader is gone, and Python would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _described(error: MonoCloudError) -> dict[str, Any]:
    members: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StatusError):
        members |= {"status": error.status, "trace_id": error.trace_id}
    return members


class FailuresFile:
    """The lines of the input that did not end in an enabled user, as they stood there."""

    def __init__(self, file: FileIO, reader: IdReader, on_broken: OnBroken) -> None:
        self._file = file  # unbuffered: what is added is not lost with the process
        self._reader = reader
        self._on_broken = on_broken
        self._begun = False
        self.lines = 0
        self.broken = False  # not all of them are in it
        self.name = clean(str(file.name))

    def begin(self) -> None:
        """Forget what an earlier run left here: not before it is sure that this one may run."""
        if not self._begun:
            self._begun = True
            if os.fstat(self._file.fileno()).st_size:  # a device or a pipe has none
                self._file.truncate(0)

    def add(self, line: Line) -> None:
        """One line more, on disk when this returns."""
        start = b"" if self.lines else self._reader.header
        if not (self.lines or start) and line.raw.startswith(codecs.BOM_UTF8):
            start = codecs.BOM_UTF8  # an id that begins with a mark keeps it
        end = b"" if line.raw.endswith(b"\n") else b"\n"
        self.lines += 1
        try:
            self._file.write(start + line.raw + end)
        except OSError as error:
            self.broken = True
            self._on_broken(f"the file of failures cannot be written to ({error.strerror})")


@contextmanager
def open_failures(
    path: Path | None, input_path: Path, journal: Path | None = None
) -> Iterator[FileIO | None]:
    """The file, as it is; refused when it is the input or the journal. Without a path, none.

    Raises:
        ConfigurationError: it cannot be written, or would destroy the input or the journal.
    """
    if path is None:
        yield None
        return
    try:
        if path.exists() and input_path.exists() and path.samefile(input_path):
            raise ConfigurationError("--failures names the input itself; choose another file")
        if journal is not None and path.resolve() in _files_of(journal.resolve()):
            raise ConfigurationError("--failures names the journal; choose another file")
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    with file:
        yield file


def _files_of(journal: Path) -> list[Path]:
    """A journal, what SQLite keeps beside it, and its lock."""
    return [journal.with_name(journal.name + end) for end in ("", "-wal", "-shm", "-lock")]
