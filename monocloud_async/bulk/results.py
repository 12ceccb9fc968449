"""Passes the outcomes of a run to its report, its journal, its iterator, and `on_outcome`."""

import asyncio
import gc
import inspect
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from monocloud_async.bulk import OnOutcome
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.models import User
from monocloud_async.outcome import BulkReport, Outcome, add_outcome

if TYPE_CHECKING:  # loads SQLite and threads, which only a journal needs
    from collections.abc import Callable

    from monocloud_async.journal.writer import JournalWriter

_ROOM: Final = 16 << 20  # bytes of users that may wait for the iterating caller
_LARGE: Final = 8192  # bytes of JSON; smaller users are not measured exactly
_FORGET: Final = 7 / 8  # factor for the expected size, with each smaller user


class Waiting:
    """The outcomes that wait for the iterating caller, and the memory of their users.

    There are few, but the JSON of a user may have 256 KiB, and take 24 times as much in memory.

    Attributes:
        on_the_way: users whose outcome is still expected.
    """

    def __init__(self) -> None:
        self.on_the_way = 0
        self._outcomes: asyncio.Queue[tuple[Outcome | None, int]] = asyncio.Queue()
        self._held = 0
        self._expected = 0.0  # bytes of a user on the way
        self._changed = asyncio.Event()
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()

    async def room(self) -> None:
        """Wait until there is memory for one more user."""
        while self._held + self.on_the_way * self._expected > _ROOM:
            self._changed.clear()
            await self._changed.wait()

    def put(self, outcome: Outcome) -> None:
        """Add an outcome."""
        size = 0
        if outcome.user is not None:
            size = self._size(outcome.user)
            self._expected = max(size, self._expected * _FORGET)
        self._held += size
        self._outcomes.put_nowait((outcome, size))
        self._changed.set()

    async def get(self) -> Outcome | None:
        """Return the next outcome; None after the last one, and always from then on."""
        outcome, size = await self._outcomes.get()
        if outcome is None:
            self.end()
        self._held -= size
        self._changed.set()
        return outcome

    def end(self) -> None:
        """Mark the end of the outcomes."""
        self._outcomes.put_nowait((None, 0))

    def _size(self, user: User) -> int:
        """Return about how many bytes the user takes."""
        try:
            self._encoder.encode_into(user, self._buffer)
        except RecursionError:
            return _held_by(user)
        return _held_by(user) if len(self._buffer) > _LARGE else len(self._buffer)


def _held_by(thing: object) -> int:
    """Return the bytes of this object and of all that it refers to; there are no cycles."""
    size, objects = 0, [thing]
    while objects:
        size += sum(map(sys.getsizeof, objects))
        objects = [each for each in gc.get_referents(*objects) if not isinstance(each, type)]
    return size


class Results:
    """Passes on every outcome, and slows the run down if the caller does not take them.

    Args:
        operation: the operation of the run.
        report: counts the outcomes.
        writer: writes the journal, if there is one.
        on_outcome: the callback of the caller, if there is one.
        slots: if the caller iterates, how many users may be between the reading of their id and
            the taking of their outcome.

    Attributes:
        error: what `on_outcome` raised, or an internal error; it ends the run.
        streamed: whether the caller iterates, so that each user needs room; see `room`.
    """

    def __init__(
        self,
        operation: BulkOperation,
        report: BulkReport,
        writer: "JournalWriter | None",
        on_outcome: OnOutcome | None,
        *,
        slots: int,
    ) -> None:
        self.error: BaseException | None = None
        self._operation = operation
        self._report = report
        self._writer = writer
        self._on_outcome: Callable[[Outcome], object] | None = on_outcome
        self._slots = asyncio.BoundedSemaphore(slots)
        self.streamed = False
        self._waiting: Waiting | None = None  # only if the caller iterates

    @property
    def has_listener(self) -> bool:
        """Whether the caller gets outcomes during the run."""
        return self._waiting is not None or self._on_outcome is not None

    def stream(self) -> None:
        """Keep outcomes for a caller that iterates."""
        self._waiting = Waiting()
        self.streamed = True

    async def next(self) -> Outcome | None:
        """Return the next outcome for the iterating caller; None after the last one."""
        assert self._waiting is not None  # noqa: S101  only called after `stream`
        outcome = await self._waiting.get()
        if outcome is not None:
            self._slots.release()
        return outcome

    async def room(self) -> None:
        """Wait until there is room for one more user, if the caller iterates."""
        if self._waiting is not None:
            await self._waiting.room()
            self._waiting.on_the_way += 1
            await self._slots.acquire()

    def record(self, outcome: Outcome) -> None:
        """Pass on an outcome; raises what `on_outcome` raises."""
        add_outcome(self._report, outcome, self._operation)
        if self._writer is not None:
            self._writer.add(outcome)
        if self._waiting is not None:
            self._waiting.on_the_way -= 1
            self._waiting.put(outcome)
        if self._on_outcome is not None:
            self._call_back(outcome)

    async def record_skipped(self, outcome: Outcome) -> None:
        """Pass on the outcome of a user whom the journal records as done."""
        self._call_back(outcome)
        if self._waiting is not None:
            self._waiting.put(outcome)
            await self._slots.acquire()  # released when the caller takes the outcome

    def end(self) -> None:
        """Mark the end of the outcomes."""
        if self._waiting is not None:
            self._waiting.end()

    def _call_back(self, outcome: Outcome) -> None:
        try:
            if self._on_outcome is not None:
                _check_returned(self._on_outcome(outcome))
        except BaseException as error:
            self.error = self.error or error
            raise


def _check_returned(returned: object) -> None:
    """Refuse what nobody awaits; a lambda does not show beforehand that it returns a coroutine.

    A task, or another future, goes on by itself.
    """
    if returned is None:
        return
    if inspect.iscoroutine(returned):
        returned.close()
        raise nobody_awaits()
    if inspect.isasyncgen(returned) or (
        inspect.isawaitable(returned) and not asyncio.isfuture(returned)
    ):
        raise nobody_awaits()


def nobody_awaits() -> ConfigurationError:
    """Return the error of an `on_outcome` that would have to be awaited."""
    return ConfigurationError(
        "on_outcome must be a plain function, because nobody awaits it; to await something for each"
        " outcome, iterate over the run"
    )
