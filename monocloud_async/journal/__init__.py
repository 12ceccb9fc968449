"""The durable record of a run: a user who is recorded as done is not sent again.

A run asks its journal about every id that it reads, and gives it every outcome. To write your own
store, implement `Journal`. `journal=path` makes a `JournalFile`, which is a SQLite file.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from monocloud_async.outcome import Outcome

__all__ = ["Journal"]


@runtime_checkable
class Journal(Protocol):
    """A store for the outcomes of a run: any object with these two methods."""

    async def enabled(self, position: int, user_id: str, /) -> bool:
        """Return whether the operation is already done for this user, who is then skipped.

        The method has this name for every operation: for a run that disables, True means disabled.

        The run calls this for every id, in the order of the input, so answer from memory or read
        ahead. An exception ends the run.
        """
        ...

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        """Store these outcomes durably.

        The run writes one group at a time, 25 ms after the first outcome of the group, and leaves
        out the skipped users. An exception ends the run with a `RunStoppedError`,
        after the calls in flight have finished. If the run is cancelled, the write is too, but only
        after 5 seconds.
        """
        ...
