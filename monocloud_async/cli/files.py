"""The rule for which files an output may replace, and outputs that appear whole or not at all."""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import typer

from monocloud_async.cli import streams
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import STOPPED
from monocloud_async.cli.profile import profiles
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.reader import STDIN
from monocloud_async.journal.before import is_journal
from monocloud_async.journal.paths import files_of, real_path, resolved

_STANDARD = {f"/dev/std{name}": f"/dev/fd/{n}" for n, name in enumerate(("in", "out", "err"))}
_DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/(?:self|thread-self)/fd)/([0-9]{1,9})")


class Kept:
    """The files that a command reads or keeps, none of which an output may replace.

    All profiles are among them.
    """

    def __init__(self) -> None:
        self._files: list[tuple[str, Path | int]] = []
        for path in profiles():
            self.add("a profile", path)

    def add(self, what: str, file: Path | int | None) -> None:
        """Keep this file, or the one behind a descriptor; `what` names it in messages.

        Raises:
            ConfigurationError: stdout or stderr is written to it.
        """
        if file is not None:
            streams.check_streams(what, file)
            self._files.append((what, file))

    def add_inputs(self, files: Iterable[Path]) -> None:
        """Keep the files that may be the input of a run whose journal is read."""
        for file in files:
            self.add("the input of the run", file)

    def add_journal(self, journal: Path | None) -> None:
        """Keep the journal and the files that SQLite and the lock have next to it.

        Raises:
            ConfigurationError: one of them is a file that is kept already, or it is `-`.
        """
        if journal is not None:
            _refuse_stream("the journal", journal)
            files = {*files_of(real_path(journal)), *files_of(resolved(journal))}
            for file in files:
                self._check("the journal", file)
            for file in files:
                self.add("a file of the journal", file)

    def check(self, option: str, output: Path | None) -> None:
        """Check that this output, named by this option, replaces none of the files.

        From then on, the output is itself a file that no other output may replace.

        Raises:
            ConfigurationError: it is one of them, by whatever path or link, or would become one; or
                it is a journal, of whatever run, or `-`; or stdout or stderr is written to it.
        """
        if output is not None:
            _refuse_stream(option, output)
            self._check(option, output)
            if is_journal(output):
                raise ConfigurationError(f"{option}: {output} is a journal; choose another file")
            if not streams.is_open_file(output):  # /dev/stdout is meant as it is
                streams.check_streams(f"{output}, too", output)
            self._files.append((f"the file of {option}", output))

    def _check(self, option: str, output: Path) -> None:
        for what, file in self._files:
            if _same(output, file):
                raise ConfigurationError(f"{option}: {output} is {what}; choose another file")


def _refuse_stream(option: str, path: Path) -> None:
    if path == STDIN:
        raise ConfigurationError(f"{option}: - is a stream elsewhere, and no file; name a file")


def _same(output: Path, file: Path | int) -> bool:
    try:
        there = os.stat(file)  # noqa: PTH116  a descriptor has no path
    except OSError:
        if isinstance(file, int):
            return False
        # The file may appear later, and then in a file system that ignores case.
        return _folded(output) == _folded(file)
    try:
        mine = output.stat()
    except OSError:
        return False
    return os.path.samestat(mine, there) and (
        stat.S_ISREG(mine.st_mode) or stat.S_ISDIR(mine.st_mode)
    )


def _folded(path: Path) -> str:
    return os.path.realpath(path).casefold()


def opened(path: str, flags: int) -> int:
    """Open an output, as `os.open` does; what a process has open is not emptied.

    Of an open file of this process, such as /dev/stdout, the result is a copy of its descriptor,
    which has the same place in the file: neither writes over what the other one has written.
    """
    meant = str(streams.followed(path))
    found = _DESCRIPTOR.fullmatch(_STANDARD.get(meant, meant))
    if found:
        return os.dup(int(found[1]))
    if streams.is_open_file(path):
        flags = flags & ~os.O_TRUNC | os.O_APPEND
    return os.open(path, flags, 0o666)


def _is_device(path: Path) -> bool:
    """Return whether it is a device, a pipe or a socket, where nothing can be replaced.

    So is an open file of this process, such as /dev/stdout, even if it leads to a file.
    """
    if streams.is_open_file(path):
        return True
    with suppress(OSError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


@contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """Open a text file that replaces `path` at the end, or, after an error, leaves it as it was.

    Raises:
        ConfigurationError: the file cannot be opened.
        Exit: it cannot be written, as on a full disk; an error of one line was printed.
    """
    target = draft = path
    is_device = _is_device(path)
    try:
        if not is_device:
            target = Path(os.path.realpath(path))
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(target.stat().st_mode):
                    raise ConfigurationError(f"cannot write {path}: it is a folder")
            draft = target.with_name(f".{secrets.token_hex(8)}.part")
        file = open(  # noqa: SIM115  closed below
            draft, "w" if is_device else "x", encoding="utf-8", newline="", opener=opened
        )
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    with written(str(path)), file:
        try:
            yield file
            file.flush()
            if not is_device:
                os.fsync(file.fileno())
                if target.exists():
                    draft.chmod(stat.S_IMODE(target.stat().st_mode))
                draft.replace(target)
        except BaseException:
            if not is_device:
                draft.unlink(missing_ok=True)
            raise


@contextmanager
def written(name: str) -> Iterator[None]:
    """End the command as one whose results are lost if an output cannot be written.

    Raises:
        Exit: that is so; an error of one line was printed.
    """
    try:
        yield
    except OSError as error:
        say(streams.err(), f"Error: cannot write {name}: {error.strerror}")
        raise typer.Exit(STOPPED) from None
