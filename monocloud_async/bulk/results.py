"""Where a run's outcomes go: its report, its journal, whoever iterates, and `on_outcome`."""

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from monocloud_async.models import User
from monocloud_async.outcome import BulkReport, Outcome, add_outcome

if TYPE_CHECKING:  # SQLite and threads, only where a journal is kept
    from monocloud_async.journal.writer import JournalWriter

OnOutcome = Callable[[Outcome], None]

_ROOM: Final = 16 << 20  # bytes of users that may wait for whoever iterates
_LARGE: Final = 8192  # bytes of JSON; what a smaller user holds is not worth a closer look
_FORGET: Final = 7 / 8  # of the size that the next user is thought of, with each smaller one


class Waiting:
    """Outcomes that wait for whoever iterates, and the memory that their users hold.

    There are few, but a user may be of 256 KiB, and hold up to 24 times as much once it is read.

    Attributes:
        on_the_way: users whose outcome is still to come.
    """

    def __init__(self) -> None:
        self.on_the_way = 0
        self._outcomes: asyncio.Queue[tuple[Outcome | None, int]] = asyncio.Queue()
        self._held = 0
        self._expected = 0.0  # of a user on the way
        self._changed = asyncio.Event()
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()

    async def room(self) -> None:
        """Returns when there is memory for one more user."""
        while self._held + self.on_the_way * self._expected > _ROOM:
            self._changed.clear()
            await self._changed.wait()

    def put(self, outcome: Outcome) -> None:
        """One more waits."""
        size = 0
        if outcome.user is not None:
            size = self._size(outcome.user)
            self._expected = max(size, self._expected * _FORGET)
        self._held += size
        self._outcomes.put_nowait((outcome, size))
        self._changed.set()

    async def get(self) -> Outcome | None:
        """The first one; None after the last one, again and again."""
        outcome, size = await self._outcomes.get()
        if outcome is None:
            self.end()
        self._held -= size
        self._changed.set()
        return outcome

    def end(self) -> None:
        """There are no more."""
        self._outcomes.put_nowait((None, 0))

    def _size(self, user: User) -> int:
        """About how many bytes it holds."""
        try:
            self._encoder.encode_into(user, self._buffer)
        except RecursionError:
            return _held_by(user)
        return _held_by(user) if len(self._buffer) > _LARGE else len(self._buffer)


def _held_by(thing: object) -> int:
    """Bytes of this and all that it leads to; nothing in it leads back."""
    size, objects = 0, [thing]
    while objects:
        size += sum(map(sys.getsizeof, objects))
        objects = [each for each in gc.get_referents(*objects) if not isinstance(each, type)]
    return size


class Results:
    """Hands on every outcome, and holds the run up where nobody takes them.

    Args:
        report: where they are counted.
        writer: the journal's, if there is one.
        on_outcome: the caller's own, if there is one.
        slots: how many may be on their way where somebody iterates, from the reading of an id to
            the taking of its outcome.

    Attributes:
        error: what `on_outcome` raised, or a mistake in here; it ends the run.
        streamed: whether somebody iterates, so that a user needs room; see `room`.
    """

    def __init__(
        self,
        report: BulkReport,
        writer: "JournalWriter | None",
        on_outcome: OnOutcome | None,
        *,
        slots: int,
    ) -> None:
        self.error: BaseException | None = None
        self._report = report
        self._writer = writer
        self._on_outcome = on_outcome
        self._slots = asyncio.BoundedSemaphore(slots)
        self.streamed = False
        self._waiting: Waiting | None = None  # only where somebody iterates

    @property
    def has_listener(self) -> bool:
        """Whether anybody hears of an outcome before the run's end."""
        return self._waiting is not None or self._on_outcome is not None

    def stream(self) -> None:
        """From now on, somebody iterates."""
        self._waiting = Waiting()
        self.streamed = True

    async def next(self) -> Outcome | None:
        """The next outcome for whoever iterates; None after the last one, again and again."""
        assert self._waiting is not None  # noqa: S101  somebody iterates
        outcome = await self._waiting.get()
        if outcome is not None:
            self._slots.release()
        return outcome

    async def room(self) -> None:
        """Returns when one more user may be on the way; at once where nobody iterates."""
        if self._waiting is not None:
            await self._waiting.room()
            self._waiting.on_the_way += 1
            await self._slots.acquire()

    def record(self, outcome: Outcome) -> None:
        """Hand on what became of a user; raises what `on_outcome` does."""
        add_outcome(self._report, outcome)
        if self._writer is not None:
            self._writer.add(outcome)
        if self._waiting is not None:
            self._waiting.on_the_way -= 1
            self._waiting.put(outcome)
        if self._on_outcome is not None:
            self._call_back(outcome)

    async def record_skipped(self, outcome: Outcome) -> None:
        """Hand on the outcome of a user that the journal has as enabled."""
        self._call_back(outcome)
        if self._waiting is not None:
            self._waiting.put(outcome)
            await self._slots.acquire()  # this one's comes back when somebody takes it

    def end(self) -> None:
        """There are no more."""
        if self._waiting is not None:
            self._waiting.end()

    def _call_back(self, outcome: Outcome) -> None:
        try:
            if self._on_outcome is not None:
                self._on_outcome(outcome)
        except BaseException as error:
            self.error = self.error or error
            raise
