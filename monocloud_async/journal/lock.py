"""A lock file that one process can hold, and that the system releases when the process dies."""

import errno
import os
import socket
import sys
import time
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from monocloud_async.errors import ConfigurationError
from monocloud_async.sanitize import clean

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)  # locked bytes are unreadable
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_FAR = 1 << 20
_START = b"process "
_TAKEN = {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # and a pipe could block
_LOOKS, _LOOK = 5, 0.01  # `lock_state` has the lock for a moment, in seconds


def _take_soon(descriptor: int) -> None:
    for _ in range(_LOOKS):
        with suppress(BlockingIOError):
            _take(descriptor)
            return
        time.sleep(_LOOK)
    _take(descriptor)


class LockState(Enum):
    """Whether a process holds a lock."""

    HELD = auto()
    FREE = auto()  # nobody holds it, as after a kill, which leaves the file behind
    MISSING = auto()  # there is no lock file
    UNKNOWN = auto()  # this user may not open it


def lock_state(path: Path) -> LockState:
    """Return whether a process holds the lock of this file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
    except FileNotFoundError:
        return LockState.MISSING
    except OSError:
        return LockState.UNKNOWN
    try:
        _take(descriptor)
    except OSError as error:
        return LockState.HELD if error.errno in _TAKEN else LockState.UNKNOWN
    finally:
        os.close(descriptor)
    return LockState.FREE


class JournalInUseError(ConfigurationError):
    """Another process holds the lock, and may release it soon."""


class Lock:
    """A lock that lasts from `take()` to `release()`, or to the end of the process.

    The lock is a separate file, because a process loses SQLite's locks on a database when it opens
    and closes that file a second time (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Args:
        path: the lock file; `release()` removes it.
        what: what the lock guards, for error messages.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def take(self) -> None:
        """Take the lock.

        Raises:
            JournalInUseError: another process holds the lock; the message says which one.
            OSError: the file cannot be created.
        """
        while True:
            # Never follow a link: an attacker could use one to have another file overwritten.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
            try:
                _take_soon(descriptor)
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
                    " wait until it has ended, or use another journal"
                ) from None
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            try:
                # Windows cannot remove an open file. What cannot be removed is only left behind.
                if sys.platform != "win32":
                    with suppress(OSError):
                        self._path.unlink()
            finally:
                os.close(self._descriptor)
                self._descriptor = None

    def _check_is_ours(self, descriptor: int) -> None:
        if os.read(descriptor, len(_START)) not in {b"", _START}:
            raise ConfigurationError(
                f"{self._path} is not a lock file, but {self._what} needs that name;"
                " move it, or use another journal"
            )
        os.lseek(descriptor, 0, os.SEEK_SET)

    def _is_there(self, descriptor: int) -> bool:
        """Return whether the open file is still at the path: its last holder may remove it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False
