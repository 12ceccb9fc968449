"""The durable record of a run: what was done is never asked for again.

A run asks its journal about every id that it reads, and hands it every outcome. `Journal` is all
that a store of one's own needs; `JournalFile` is the one that `journal=path` makes, a SQLite file.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from monocloud_async.outcome import Outcome

__all__ = ["Journal"]


@runtime_checkable
class Journal(Protocol):
    """Where a run keeps what became of its users. Any object with these two methods will do."""

    async def enabled(self, position: int, user_id: str, /) -> bool:
        """Whether this user of the input is known to be enabled, and is not asked for again.

        Called for every id in the order of the input: answer from memory, or look ahead.
        What it raises ends the run.
        """
        ...

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        """Keep these outcomes for good.

        Called with one group at a time, 40 ms after the first of it came, and never with users
        that are "already_enabled". What it raises ends the run with a `RunStoppedError`; the calls
        in flight finish first.
        """
        ...
