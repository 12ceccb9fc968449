"""The outputs of a run: JSON lines for programs, and a file of failures to run again."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import msgspec

from monocloud_async.cli.files import opened
from monocloud_async.cli.streams import Output, is_open_file
from monocloud_async.errors import ConfigurationError, MonoCloudError, StatusError
from monocloud_async.inputs.lines import Line
from monocloud_async.outcome import REPORT_FIELDS, BulkReport, Outcome
from monocloud_async.sanitize import clean

_MANY = 1 << 16  # bytes


class JsonLines:
    """Writes JSON lines to this output, many at a time."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._buffer = bytearray()

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

    def flush(self) -> None:
        """Write what was added."""
        self._output.write(self._buffer)
        self._buffer.clear()

    def _add(self, members: dict[str, Any]) -> None:
        self._buffer += msgspec.json.encode(members) + b"\n"
        if len(self._buffer) >= _MANY:
            self.flush()


def _described(error: MonoCloudError) -> dict[str, Any]:
    members: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StatusError):
        members |= {"status": error.status, "trace_id": error.trace_id}
    return members


class HasHeader(Protocol):
    """An input with a text above its first row, which is empty until it is read."""

    @property
    def header(self) -> str: ...  # noqa: D102  see the class


class FailuresFile:
    """Writes the lines of the input that failed, unchanged, each whole or not at all."""

    def __init__(self, file: FileIO, reader: HasHeader) -> None:
        self._file = file  # unbuffered, so that a killed process loses nothing
        self._reader = reader
        self._is_regular = _is_ours(file)
        self.output = Output(file)  # for pipes and devices, which may be slow
        self._begun = False
        self.lines = 0
        self.too_long = 0  # lines that are left out, as only their start is known
        self.name = clean(str(file.name))

    @property
    def error(self) -> OSError | None:
        """Why a line could not be written, or None."""
        return self.output.error

    @property
    def lost(self) -> str:
        """What to tell of the lines that are not in the file, or an empty string."""
        if self.error is not None:
            return "; others could not be written"
        too_long = self.too_long
        if not too_long:
            return ""
        return f"; {too_long:,} {'is' if too_long == 1 else 'are'} too long and left out"

    def begin(self) -> None:
        """Empty the file; called only when this run is certain to start."""
        if not self._begun:
            self._begun = True
            if self._is_regular:
                self._file.truncate(0)

    def add(self, line: Line) -> None:
        """Write one line at once, in UTF-8 if it was in UTF-16."""
        if not line.text:
            self.too_long += 1
            return
        start = "" if self.lines else self._reader.header
        end = "" if line.text.endswith(("\n", "\r")) else "\n"
        text = (start + line.text + end).encode(errors="surrogateescape")
        if not self._is_regular:
            self.output.write(text)
        elif not self._append(text):
            return
        self.lines += 1

    def _append(self, text: bytes) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.output.error = error
            with suppress(OSError):
                self._file.truncate(size)  # the start of a line may be somebody else's id
            return False
        return True

    async def finish(self) -> None:
        """Wait until everything is written."""
        await self.output.written()
        if self._is_regular:
            try:
                os.fsync(self._file.fileno())  # some file systems tell of a full disk only now
            except OSError as error:
                self.output.error = error


def _is_ours(file: FileIO) -> bool:
    """Return whether it is a file that a run may empty, and no pipe or log, as /dev/stdout."""
    is_open = is_open_file(str(file.name))
    return not is_open and stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _lock(file: FileIO) -> None:
    """Check that no other run writes its failures to this file, until it is closed.

    Raises:
        ConfigurationError: one does; this run would empty its file.
    """
    if sys.platform != "win32" and _is_ours(file):
        import fcntl  # noqa: PLC0415  not on Windows

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another run writes its failures to {clean(str(file.name))}; name another file, or"
                " wait until it has ended"
            ) from None
        except OSError:
            pass  # some file systems have no locks


@contextmanager
def open_failures(path: Path | None) -> Iterator[FileIO | None]:
    """Open the file without emptying it, or yield None without a path.

    Raises:
        ConfigurationError: the file cannot be written, or another run writes to it.
    """
    if path is None:
        yield None
        return
    try:
        file = open(path, "ab", buffering=0, opener=opened)  # noqa: SIM115  closed below
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    try:
        _lock(file)
        yield file
    finally:
        with suppress(OSError):  # what could not be written is known
            file.close()
