"""The files of a journal, and which of them a run may use.

In a folder that others may write to, somebody else may have made any of them: as a link to a file
of this user, or open to everybody.
"""

import os
import stat
from pathlib import Path
from typing import Final

from monocloud_async.errors import ConfigurationError
from monocloud_async.journal.schema import no_journal
from monocloud_async.sanitize import clean

# SQLite's log, its index, the log of its other mode, and the lock of `journal.lock`.
ENDS: Final = ("-wal", "-shm", "-journal", "-lock")
_OTHERS: Final = 0o077


def files_of(journal: Path) -> list[Path]:
    """Return the paths of the journal and of all files next to it that belong to it."""
    return [journal, *(Path(f"{journal}{end}") for end in ENDS)]


def lock_path(journal: Path) -> Path:
    """Return the path of the journal's lock."""
    return Path(f"{journal}-lock")


def undo_path(journal: Path) -> Path:
    """Return the path of the journal of an undo of this journal's run."""
    return Path(f"{journal}.undo")


def real_path(journal: str | os.PathLike[str]) -> Path:
    """Return the path without links to folders; for the file itself, see `check_files`.

    Raises:
        ConfigurationError: as `resolved`.
    """
    path = Path(journal)
    file = resolved(path)
    return file if path.name in {"", ".."} else resolved(path.parent) / path.name


def resolved(path: Path) -> Path:
    """Return the whole path without links.

    Raises:
        ConfigurationError: it has a NUL byte, or begins in a folder that was removed.
    """
    try:
        return Path(os.path.realpath(path))  # `Path.resolve` fails for a link to itself
    except ValueError:
        raise ConfigurationError(f"{clean(str(path))!r} is not a path: it has a NUL byte") from None
    except FileNotFoundError:  # from `os.getcwd`
        raise ConfigurationError(
            f"{clean(str(path))}: this process is in a folder that was removed; give the whole path"
        ) from None


def check_files(journal: Path) -> None:
    """Check the files that are there, before a run opens any of them.

    Raises:
        ConfigurationError: one of them is a link, has another name as well, or is another user's.
        OSError: the folder cannot be read.
    """
    for path in files_of(journal):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(status.st_mode):
            raise ConfigurationError(
                f"{path} is a link to {path.readlink()}; remove it, or name that file itself"
            )
        if stat.S_ISDIR(status.st_mode):
            continue  # opening it gives the right message
        if not stat.S_ISREG(status.st_mode):
            raise no_journal(path)
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{path} belongs to another user ({owner(status.st_uid)}); run as that user, get"
                " the file back with chown, or name another journal"
            )
        if status.st_nlink > 1:
            raise ConfigurationError(
                f"{path} has another name as well (a hard link); copy it to a new file, and name"
                " that one"
            )


def close_to_others(journal: Path) -> None:
    """Take from others every right to the files of the journal; raises `OSError`."""
    for path in files_of(journal):
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        if mode & _OTHERS:
            path.chmod(mode & ~_OTHERS)


def owner(number: int) -> str:
    """Return the name of this user, or the number if there is no name."""
    try:
        import pwd  # noqa: PLC0415  not on Windows

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"user {number}"
