"""The input of `undo`: the users whom a run has enabled, and who were disabled before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monocloud_async.config import tenant_name
from monocloud_async.endpoint import ENABLE
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.lines import Line
from monocloud_async.journal.before import count_undoable, read_head, undoable
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import lock_path, resolved
from monocloud_async.sanitize import clean


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    """Hold the lock of the journal: what a run is still doing cannot be undone.

    Raises:
        ConfigurationError: a run uses the journal, or its folder cannot be written.
    """
    lock = Lock(lock_path(resolved(journal)), f"the journal {journal}")
    try:
        lock.take()
    except FileNotFoundError as error:  # the folder
        raise ConfigurationError(f"cannot read the journal {journal}: {error.strerror}") from None
    except OSError as error:
        raise ConfigurationError(
            f"cannot lock {journal}: {error.strerror}; copy it, and its -wal if there is one, to a"
            " folder where you may write"
        ) from None
    try:
        yield
    finally:
        lock.release()


class UndoIds:
    """The users to disable again, as an input of a run; see `IdReader` for the attributes.

    Args:
        journal: the journal of the run.
        tenant: the address of the tenant.

    Attributes:
        unknown: users whom the run has enabled, and of whom the journal does not know what was
            before.

    Raises:
        ConfigurationError: the journal is another tenant's, does not know what was before, or
            has nobody to disable.
    """

    form = Format.TXT
    by = By.ID
    column = None
    header = ""
    sheet = None

    def __init__(self, journal: Path, tenant: str) -> None:
        head = read_head(journal)
        if tenant_name(head.tenant) != tenant_name(tenant):
            raise ConfigurationError(
                f"the journal {journal} belongs to the tenant {head.tenant}, not to {tenant}"
            )
        if head.operation.endpoint != ENABLE.endpoint:
            raise ConfigurationError(
                f"the journal {journal} is of {head.operation.endpoint}; only a run that enabled"
                " users can be undone"
            )
        self._count, self.unknown = count_undoable(journal)
        if self.unknown and not self._count:
            raise ConfigurationError(
                f"the journal {journal} does not know who was disabled before the run, so nothing"
                " can be undone safely; a run with --check records it"
            )
        if not self._count:
            raise ConfigurationError(
                f"the run of {journal} enabled nobody who was disabled before: there is nothing to"
                " undo"
            )
        self.name = clean(str(journal))
        self.path = journal
        self.size = journal.stat().st_size
        self.found = "a journal, whose users were disabled before the run"
        self.if_changed: str | None = (
            "a later run has changed who is to be disabled: move this journal away, and the same"
            " command disables all of them again"
        )
        self.notes: list[str] = []
        if self.unknown:
            self.notes.append(
                f"{self.unknown:,} users stay enabled: the journal does not know what they were"
                " before the run"
            )

    def expected(self) -> int:
        """Return how many users there are."""
        return self._count

    def reread(self) -> Iterator[str]:
        """Return the users from the start."""
        return undoable(self.path)

    def lines_again(self) -> Iterator[Line]:
        """Return the lines from the start."""
        return iter(self)

    def __iter__(self) -> Iterator[Line]:
        for number, user_id in enumerate(undoable(self.path), 1):
            yield Line(number, f"{user_id}\n", user_id)
