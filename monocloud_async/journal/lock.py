"""One process at a time: a lock file that the system lets go of when its process dies."""

import errno
import os
import socket
import sys
from pathlib import Path

from monocloud_async.errors import ConfigurationError
from monocloud_async.sanitize import clean

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)  # what is locked there cannot be read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_FAR = 1 << 20
_START = b"process "
_TAKEN = {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


class JournalInUseError(ConfigurationError):
    """Another process holds the lock, and may let go of it soon."""


class Lock:
    """Held from `take()` to `release()`, or to the end of the process, however it ends.

    A file of its own, because SQLite's locks on a database are lost when the process that holds
    them opens and closes that file once more (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Args:
        path: the lock file; it is gone again after `release()`.
        what: what it guards, for people.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is held here."""
        return self._descriptor is not None

    def take(self) -> None:
        """Hold the lock.

        Raises:
            JournalInUseError: another process holds it, and which one.
            OSError: there is no place for the file.
        """
        while True:
            # Not through a link, which somebody may have laid to have another file overwritten.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._path, flags, 0o600)
            try:
                _take(descriptor)
                if self._is_there(descriptor):
                    self._check_is_ours(descriptor)
                    os.ftruncate(descriptor, 0)
                    os.write(
                        descriptor, _START + f"{os.getpid()} on {socket.gethostname()}".encode()
                    )
                    self._descriptor = descriptor
                    return
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                os.lseek(descriptor, 0, os.SEEK_SET)
                holder = clean(os.read(descriptor, 200).decode(errors="replace"))
                raise JournalInUseError(
                    f"{self._what} is in use by {holder or 'another process'};"
                    " wait for its end, or use another journal"
                ) from None
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self) -> None:
        """Let go."""
        if self._descriptor is not None:
            try:
                if sys.platform != "win32":  # there, a file that is open cannot be removed
                    self._path.unlink(missing_ok=True)
            finally:
                os.close(self._descriptor)
                self._descriptor = None

    def _check_is_ours(self, descriptor: int) -> None:
        if os.read(descriptor, len(_START)) not in {b"", _START}:
            raise ConfigurationError(
                f"{self._path} is no lock file, and {self._what} would need that name;"
                " move it, or use another journal"
            )
        os.lseek(descriptor, 0, os.SEEK_SET)

    def _is_there(self, descriptor: int) -> bool:
        """Whether the file is still the one of that name: who held it last may have removed it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False
