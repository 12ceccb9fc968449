"""Where a run's outcomes go: its report, its journal, whoever iterates, and `on_outcome`."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from monocloud_async.outcome import BulkReport, Outcome, count

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.recorder import Recorder

OnOutcome = Callable[[Outcome], None]


class Delivery:
    """Hands on every outcome, and holds the run up where nobody takes them.

    Args:
        report: where they are counted.
        recorder: the journal's, if there is one.
        on_outcome: the caller's own, if there is one.
        places: how many may be on their way, from the reading of an id to the taking of its
            outcome, where that is counted.
        counted: whether it is, although nobody iterates.

    Attributes:
        bug: what `on_outcome` raised, or a mistake in here; it ends the run.
        bounded: whether a user needs a place; see `place`.
    """

    def __init__(
        self,
        report: BulkReport,
        recorder: "Recorder | None",
        on_outcome: OnOutcome | None,
        *,
        places: int,
        counted: bool,
    ) -> None:
        self.bug: BaseException | None = None
        self._report = report
        self._recorder = recorder
        self._on_outcome = on_outcome
        self._places = asyncio.BoundedSemaphore(places)
        self.bounded = counted
        self._outcomes: asyncio.Queue[Outcome | None] | None = None  # only where somebody iterates

    @property
    def tells(self) -> bool:
        """Whether anybody hears of an outcome before the run's end."""
        return self._outcomes is not None or self._on_outcome is not None

    def stream(self) -> None:
        """From now on, somebody iterates."""
        self._outcomes = asyncio.Queue()  # unbounded in itself: the places bound it
        self.bounded = True

    async def next(self) -> Outcome | None:
        """The next outcome for whoever iterates; None after the last one, again and again."""
        assert self._outcomes is not None  # noqa: S101  somebody iterates
        outcome = await self._outcomes.get()
        if outcome is None:
            self._outcomes.put_nowait(None)
        else:
            self._places.release()
        return outcome

    async def place(self) -> None:
        """Returns when one more user may be on the way."""
        await self._places.acquire()

    def record(self, outcome: Outcome) -> None:
        """Hand on what became of a user; raises what `on_outcome` does."""
        count(self._report, outcome)
        if self._recorder is not None:
            self._recorder.add(outcome)
        if self._outcomes is not None:
            self._outcomes.put_nowait(outcome)
        elif self.bounded:
            self._places.release()
        if self._on_outcome is not None:
            self._call_back(outcome)

    async def tell_of(self, outcome: Outcome) -> None:
        """Hand on the outcome of a user that the journal has as enabled."""
        self._call_back(outcome)
        if self._outcomes is not None:
            self._outcomes.put_nowait(outcome)
            await self._places.acquire()  # this one's comes back when somebody takes it

    def end(self) -> None:
        """There are no more."""
        if self._outcomes is not None:
            self._outcomes.put_nowait(None)

    def _call_back(self, outcome: Outcome) -> None:
        try:
            if self._on_outcome is not None:
                self._on_outcome(outcome)
        except BaseException as error:
            self.bug = self.bug or error
            raise
