"""The streams of the process, stdout and stderr, written by a thread that checks each write.

Nobody who prints waits for a slow reader, and no print raises an error. What could not be written
is known afterwards: a command whose results are lost does not end with 0, and a display that is
lost changes nothing.
"""

import errno
import io
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED, STOPPED

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

_ROOM: Final = 1 << 16  # bytes that may wait for a slow reader
_MOST: Final = 1 << 20  # bytes after which `write` itself waits
_PIECE: Final = 4096  # bytes that a pipe takes at once if it takes any
_RETRY: Final = 0.05  # seconds between two looks at streams that take nothing
_LAST_WORDS: Final = 5.0  # seconds that the end of the process waits for the reader of stderr
_JOURNALS: Final = (".journal", ".undo")  # the ends of their default names
_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_NAMES: Final = {_STDOUT: "stdout", _STDERR: "stderr"}
_OPEN_FILES: Final = ("/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/tty", "/proc")
_MOST_LINKS: Final = 40
_LEFT_OUT: Final = b"... some lines are left out here: this output was slow\n"
_SIZE: Final = r"[1-9][0-9]{0,3}"  # of a terminal, in COLUMNS and LINES


class Raw(Protocol):
    """An unbuffered binary file."""

    @property
    def name(self) -> Any:
        """The name or the descriptor of the file."""
        ...

    def write(self, data: bytes, /) -> int | None:
        """Write some of the data, and return how much; None for nothing."""
        ...

    def fileno(self) -> int:
        """Return the descriptor."""
        ...

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        ...


class _Writer:
    """Writes what its outputs were given, oldest first; one that is stuck does not stop another."""

    def __init__(self) -> None:
        self._given = 0
        self.begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin)  # a fork has no threads of its parent

    def begin(self) -> None:
        """Begin with nothing to write, and no thread."""
        self.changed = threading.Condition()
        self._outputs: list[Output] = []
        self._thread: threading.Thread | None = None

    def give(self, output: "Output", data: bytes) -> None:
        """Add data; called with `changed` held."""
        self._given += 1
        output.add(self._given, data)
        if output not in self._outputs:
            self._outputs.append(output)
        if self._thread is None:
            # A daemon: at its end, the process must not wait for a reader that reads nothing.
            self._thread = threading.Thread(target=self._work, daemon=True, name="output")
            self._thread.start()
        self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: any(output.waiting for output in self._outputs))
                busy = [output for output in self._outputs if output.waiting]
                busy.sort(key=lambda output: output.waiting[0][0])
            for output in busy:
                if output.takes_some():
                    output.write_some()
                    break
            else:
                time.sleep(_RETRY)


_writer = _Writer()


class Output(io.BufferedIOBase):
    """The binary end of a stream, which takes data at once and writes it in the background.

    Args:
        file: the unbuffered file to write to; None if it was closed before the process started.
        display: whether it only shows what happens. Then the oldest output is kept and more is left
            out while its reader is slow, and the terminal replaces it where it is lost.

    Attributes:
        error: why something could not be written, or None.
        has_results: whether a reader that leaves early misses results.
        waiting: the numbered pieces that are not written yet.
    """

    def __init__(self, file: "Raw | None", *, display: bool = False) -> None:
        self.error: OSError | None = None
        self.has_results = False
        self.waiting: deque[tuple[int, bytes]] = deque()
        self._size = 0  # of what waits
        self._display = display
        self._left_out = False
        self._file = file
        self._descriptor = _descriptor(file)
        if file is None and not display:
            self.error = OSError(errno.EBADF, "it is closed")

    @property
    def name(self) -> str:
        """The name of the file."""
        return "<output>" if self._file is None else str(self._file.name)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._file is not None and self._file.isatty()

    def fileno(self) -> int:
        """Return the descriptor."""
        if self._descriptor is None:
            raise io.UnsupportedOperation("fileno")
        return self._descriptor

    def write(self, data: "ReadableBuffer") -> int:
        """Add data, which is written in the background; raises nothing.

        It waits if much too much waits already. On an event loop, await `room` before that.
        """
        content = bytes(data)
        if self.error is not None or self._file is None or not content:
            return len(content)
        with _writer.changed:
            if self._display and self._size > _ROOM:
                self._left_out = True
                return len(content)
            if self._left_out:
                self._left_out = False
                _writer.give(self, _LEFT_OUT)
            _writer.give(self, content)
            _writer.changed.wait_for(lambda: self._size < _MOST)
        return len(content)

    def add(self, number: int, data: bytes) -> None:
        """Let data wait; called with the writer's lock held."""
        self.waiting.append((number, data))
        self._size += len(data)

    async def room(self) -> None:
        """Wait, without holding up the event loop, while too much waits for a slow reader."""
        await self._until(lambda: self._size <= _ROOM)

    async def written(self) -> None:
        """Wait, without holding up the event loop, until everything is written or lost."""
        await self._until(lambda: not self.waiting)

    async def _until(self, condition: Callable[[], bool]) -> None:
        import asyncio  # noqa: PLC0415  help is quick

        while not condition():  # noqa: ASYNC110  a thread changes it, which may hang in a write
            await asyncio.sleep(_RETRY / 10)

    def finish(self, seconds: float | None = None) -> None:
        """Wait until everything is written or lost, or for so many seconds."""
        with _writer.changed:
            _writer.changed.wait_for(lambda: not self.waiting, seconds)

    def interrupted(self) -> str:
        """Return what to tell a person who interrupts the process while something waits."""
        return (
            f"Stopping once {self._lines()} of results in {self.name.strip('<>')} are read;"
            " Ctrl-C again stops without them"
        )

    def lose(self) -> None:
        """Forget what waits, because the process was interrupted."""
        with _writer.changed:
            if self.waiting:
                what = f"interrupted, so {self._lines()} of results are lost"
                self._forget(OSError(errno.EINTR, what))

    def _lines(self) -> str:
        with _writer.changed:
            lines = sum(data.count(b"\n") for _, data in self.waiting)
        return f"{lines:,} {'line' if lines == 1 else 'lines'}"

    def takes_some(self) -> bool:
        """Return whether a write would not block; True where nobody can know."""
        if self._descriptor is None or not hasattr(select, "poll"):
            return True
        ask = select.poll()
        ask.register(self._descriptor, select.POLLOUT)
        return bool(ask.poll(0))

    def write_some(self) -> None:
        """Write a piece of what waits, and note an error; called by the thread alone."""
        with _writer.changed:
            if not self.waiting:  # another thread called `lose`
                return
            number, data = self.waiting[0]
        assert self._file is not None  # noqa: S101  without one, nothing waits
        try:
            taken = self._file.write(data[:_PIECE]) or 0  # None: not one byte without waiting
        except BlockingIOError as error:
            taken = error.characters_written
        except OSError as error:
            self._lose(error)
            return
        if not taken:
            time.sleep(_RETRY)
            return
        with _writer.changed:
            if not self.waiting:
                return
            self._size -= taken
            if taken < len(data):
                self.waiting[0] = number, data[taken:]
            else:
                self.waiting.popleft()
            _writer.changed.notify_all()

    def _lose(self, error: OSError) -> None:
        with _writer.changed:
            terminal = _terminal() if self._display and self.error is None else None
            if terminal is not None:
                self._file, self._descriptor = terminal, terminal.fileno()
                what = f"stderr cannot be written to ({error.strerror}): going on here\n".encode()
                self.waiting.appendleft((0, what))
                self._size += len(what)
                _writer.changed.notify_all()
            else:
                self._forget(error)

    def _forget(self, error: OSError) -> None:
        """Forget what waits, and note why; called with the writer's lock held."""
        self.waiting.clear()
        self._size = 0
        self.error = error
        _writer.changed.notify_all()


def _descriptor(file: "Raw | None") -> int | None:
    try:
        return None if file is None else file.fileno()
    except (OSError, ValueError):
        return None


def _raw(file: TextIO | None) -> "Raw | None":
    if file is None:
        return None
    binary: Raw = getattr(file.buffer, "raw", file.buffer)  # unbuffered streams have no `raw`
    return binary


def _terminal() -> io.FileIO | None:
    """Open the terminal that this process was started from, if it is in the foreground there."""
    with suppress(OSError, AttributeError):  # Windows has no such functions
        number = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        if os.tcgetpgrp(number) == os.getpgrp():
            return io.FileIO(number, "w")
        os.close(number)
    return None


def _text(output: Output, file: TextIO | None) -> TextIO:
    """Return a text stream that replaces what its encoding cannot say."""
    encoding = "utf-8" if file is None else file.encoding
    if output.isatty() and _is_plain_locale():
        encoding = "ascii"
    return io.TextIOWrapper(output, encoding, errors="backslashreplace", write_through=True)


def _is_plain_locale() -> bool:
    """Return whether the locale says that the terminal knows ASCII only; Python assumes UTF-8."""
    named = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    return named in {"C", "POSIX"} and not os.environ.get("PYTHONIOENCODING")


@contextmanager
def own_streams() -> Iterator[Callable[[int], int]]:
    """Replace `sys.stdout` and `sys.stderr` by streams of this module, and a closed stdin.

    Yields:
        A function that takes the exit code of the command, writes what waits, and returns the exit
        code of the process: a command whose results are lost does not end with 0 or 1.
    """
    _keep_places()
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = Output(_raw(sys.stdout)), Output(_raw(sys.stderr), display=True)
    sys.stdout, sys.stderr = _text(out, streams[1]), _text(err, streams[2])

    def finish(code: int) -> int:
        code = _finish(out, code)
        if out.error is not None and (out.has_results or not _has_left(out.error)):
            sys.stderr.write(f"Error: cannot write to stdout ({out.error.strerror})\n")
            code = STOPPED if code in {ALL_DONE, SOME_FAILED} else code
        err.finish(_LAST_WORDS)
        return code

    try:
        with (
            nullcontext(sys.stdin) if sys.stdin else Path(os.devnull).open() as sys.stdin,
            _signals_interrupt(),
        ):
            yield finish
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams


def _finish(out: Output, code: int) -> int:
    """Write what waits; the first interrupt tells what still waits, and the second loses it."""
    interrupts = int(code == INTERRUPTED)
    while True:
        try:
            if interrupts:
                out.finish(_RETRY)  # nearly always, everything is written by then
                if out.waiting:
                    sys.stderr.write(out.interrupted() + "\n")
            out.finish()
        except KeyboardInterrupt:
            code = INTERRUPTED
            interrupts += 1
            if interrupts > 1:
                out.lose()
        else:
            return code


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what SIGINT does, where they would end the process unheard."""
    before: dict[int, Any] = {}

    def hang_up(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a terminal that closes may send it several times
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                handler = hang_up if name == "SIGHUP" else signal.default_int_handler
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_places() -> None:
    """Open what was closed of stdin, stdout and stderr, or another file would get its number."""
    if None in {sys.stdin, sys.stdout, sys.stderr}:
        while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(number)


def _has_left(error: OSError) -> bool:
    """Return whether nobody reads, which is no fault where nobody misses a result: `--help`."""
    return error.errno in {errno.EPIPE, errno.EBADF}


def keep_out_of(files: Iterable[str | Path | int]) -> list[str]:
    """Return which of stdout and stderr are written to one of these files, or descriptors.

    From then on, messages go to stdout instead of stderr, or nowhere: they would spoil the file.
    """
    written = [number for number in _NAMES if any(_is_written(number, file) for file in files)]
    if _STDERR in written and _is_stderr(_STDERR):
        sys.stderr = sys.stdout
    if _STDOUT in written and _is_stderr(_STDOUT):
        sys.stderr = _text(Output(None, display=True), None)
    return [_NAMES[number] for number in written]


def keep_out_of_inputs(arguments: Iterable[str]) -> None:
    """Keep messages out of the files that a command of these arguments may read.

    For what ends a command before it knows its files. Any word may name one, or the value after its
    equals sign; next to a file may be its journal, and stdin may be a file. A word such as
    /dev/stdout, or a link to it, names a stream.
    """
    words = {word for argument in arguments for word in (argument, argument.partition("=")[2])}
    with suppress(FileNotFoundError):  # this folder was removed
        words = {word for word in words if not is_open_file(word)}
    keep_out_of([_STDIN, *words, *(f"{word}{end}" for word in words for end in _JOURNALS)])


def is_open_file(path: str | Path) -> bool:
    """Return whether this names an open file of a process, such as /dev/fd/63, or links to it."""
    return _names_open_file(followed(path))


def _names_open_file(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _OPEN_FILES)


def followed(path: str | Path) -> Path:
    """Return the absolute path behind these links, or the first one that names an open file.

    What is behind that one is a file or a pipe, which does not tell that it is open.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  `Path` has no function for it
    with suppress(OSError, ValueError):  # it is no link, or no file may have this name
        for _ in range(_MOST_LINKS):
            if _names_open_file(path):
                break
            # Not `Path.resolve`, which raises a `RuntimeError` for a folder that links to itself.
            folder = os.path.realpath(path.parent)
            path = Path(os.path.abspath(folder / path.readlink()))  # noqa: PTH100
    return path


def _is_written(number: int, file: str | Path | int) -> bool:
    try:
        mine, there = os.fstat(number), os.stat(file)  # noqa: PTH116  a descriptor has no path
    except (OSError, ValueError):  # there is none, or no file may have this name
        return False
    return os.path.samestat(mine, there) and stat.S_ISREG(mine.st_mode)


def _is_stderr(number: int) -> bool:
    """Return whether what is for stderr goes to this descriptor."""
    return _descriptor(_raw(sys.stderr)) == number


def check_streams(what: str, file: Path | int) -> None:
    """Check that neither stdout nor stderr is this file: a command would read what it says.

    Raises:
        ConfigurationError: one of them is. The error goes elsewhere.
    """
    from monocloud_async.errors import ConfigurationError  # noqa: PLC0415  help is quick

    if written := keep_out_of([file]):
        raise ConfigurationError(f"{written[0]} is written to {what}; send it to another file")


def results() -> Output:
    """Return the output for the results of a command, which are bytes."""
    output = getattr(sys.stdout, "buffer", None)
    if not isinstance(output, Output):  # a caller of this package has its own stream
        output = Output(_raw(sys.stdout))
    output.has_results = True
    return output


def out() -> "Console":
    """Return the console for the results of a command."""
    results()
    return _console(stderr=False)


def err() -> "Console":
    """Return the console for what people should see of a command at work."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    import re  # noqa: PLC0415  help is quick

    from rich.console import Console  # noqa: PLC0415  help is quick

    environ = dict(os.environ)
    for name in ("COLUMNS", "LINES"):  # a Console of no width prints nothing, without an error
        if not re.fullmatch(_SIZE, environ.get(name, "")):
            environ.pop(name, None)
    file = sys.stderr if stderr else sys.stdout  # or Console does not ask for its encoding
    return Console(file=file, stderr=stderr, highlight=False, _environ=environ)


def is_live(console: "Console") -> bool:
    """Return whether lines can be replaced in place.

    Variables such as FORCE_COLOR wish for colour; they do not turn a log into a terminal.
    """
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal
