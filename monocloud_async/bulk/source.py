"""Reads the ids of a run one at a time, and skips those that its journal records as done."""

import asyncio
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
    Sized,
)
from collections.abc import (
    Set as AbstractSet,
)
from contextlib import suppress
from contextvars import copy_context
from enum import Enum
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from monocloud_async.bulk import OnSkippedMany, UserIds
from monocloud_async.endpoint import BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.outcome import BulkReport, Outcome
from monocloud_async.user_id import exact_id

if TYPE_CHECKING:  # loads SQLite and threads, which only a journal needs
    from monocloud_async.journal.writer import JournalWriter

OnSkipped = Callable[[Outcome], Awaitable[None]]

YIELD_EVERY: Final = 256  # ids after which other tasks get a chance to run
_MANY: Final = 512  # ids that are skipped at once, and in memory as long


_SetIterator: Final = type(iter(set[str]()))


class End(Enum):
    """Marks the end of the input; None could be an id by mistake."""

    END = 0


def _has_no_lasting_order(user_ids: object) -> bool:
    """Return whether another process may have the same ids in another order, as in a set.

    This includes a dict and its views, whose order depends on how the dict was filled.
    """
    unordered = AbstractSet | Mapping | MappingView | _SetIterator
    return isinstance(user_ids, unordered) and not isinstance(user_ids, Sequence)


class Source:
    """The input of a run, read only as far as workers are free.

    Args:
        operation: the operation of the run.
        user_ids: any iterable or async iterable.
        report: counts the skipped users.
        writer: gives access to the journal, if there is one.
        limit: how many ids to return at most, without those that the journal records as done.
        count: about how many ids there are, if `user_ids` does not tell.
        on_skipped_many: called with the positions of skipped users, in place of `on_skipped`.

    Attributes:
        needs_own_task: whether a single task has to read and close the input: an async generator
            may hold what belongs to a task, such as a timeout, a task group or a cursor.
        opened: whether `open` was called.
        is_ready: whether `open` has succeeded, so that the journal belongs to this run.
        skipped: how many users the journal records as done.
        held: an id that was read, and is not handed out before a request may be sent.

    Raises:
        ConfigurationError: `user_ids` is not an iterable of ids.
    """

    def __init__(
        self,
        operation: BulkOperation,
        user_ids: UserIds,
        report: BulkReport,
        writer: "JournalWriter | None",
        *,
        limit: int | None = None,
        count: int | None = None,
        on_skipped_many: OnSkippedMany | None = None,
    ) -> None:
        if isinstance(user_ids, str | bytes):
            raise ConfigurationError("user_ids must be many ids; pass a single one as [user_id]")
        if not isinstance(user_ids, Iterable | AsyncIterable):
            raise ConfigurationError("user_ids must be an iterable or an async iterable of ids")
        self.needs_own_task = isinstance(user_ids, AsyncIterable)
        self.opened = self.is_ready = False
        self.skipped = 0
        self.held: str | None = None
        self._operation = operation
        self._user_ids = user_ids
        self._report = report
        self._writer = writer
        self._left = math.inf if limit is None else limit
        self._count = count
        self._on_skipped: OnSkipped | None = None
        self._on_skipped_many = on_skipped_many
        self._to_close: AsyncIterator[str] | None = None
        self._async_iterator: AsyncIterator[str] | None = None
        self._iterator: Iterator[str] = iter(())
        self._next_in_context: Callable[[], str | End] = lambda: End.END

    async def open(self, on_skipped: OnSkipped | None = None) -> None:
        """Open the journal, if there is one, and prepare to read.

        Args:
            on_skipped: called with the outcome of each skipped user, if given.

        Raises:
            ConfigurationError: the journal is not for these ids, or they have no stable order.
        """
        self.opened = True
        self._on_skipped = on_skipped if self._on_skipped_many is None else None
        if self._writer is not None:
            if _has_no_lasting_order(self._user_ids):
                raise ConfigurationError(
                    "user_ids has no order that lasts, so a journal cannot say where to go on:"
                    " pass a list, such as sorted(user_ids)"
                )
            await self._writer.open(self._user_ids)
        if isinstance(self._user_ids, AsyncIterable):
            self._to_close = self._async_iterator = aiter(self._user_ids)
        else:
            self._iterator = iter(self._user_ids)
            # Always in the same context, for all tasks.
            self._next_in_context = partial(copy_context().run, self._next_now)
        self.is_ready = True

    async def close(self) -> None:
        """Stop reading, and close an async generator."""
        if isinstance(self._to_close, AsyncGenerator):
            await self._to_close.aclose()

    @property
    def is_at_limit(self) -> bool:
        """Whether `next` returns no more ids, although there may be more."""
        return self._left <= 0

    @property
    def expected(self) -> int | None:
        """About how many ids `next` will return, or None if that is unknown."""
        if self._count is None and isinstance(self._user_ids, Sized):
            with suppress(TypeError):  # a wrapper may have the length of what has none
                self._count = len(self._user_ids)
        if self._count is None:
            return None
        done = 0 if self._writer is None else self._writer.users_done
        return round(min(self._left, max(0, self._count - done)))

    async def next(self) -> str | End:
        """Return the next id that the journal does not record as done; END also at the limit."""
        if self.is_at_limit:
            return End.END
        user_id = await self._next()
        if user_id is not End.END:
            self._left -= 1
        return user_id

    async def _next(self) -> str | End:
        report, writer, on_skipped = self._report, self._writer, self._on_skipped
        # One by one, an async iterator that has to wait for its ids counts each as soon as it came.
        skips_many = on_skipped is None and (
            self._async_iterator is None or self._on_skipped_many is not None
        )
        while True:
            if skips_many and writer is not None and report.total < writer.reached:
                await self._skip(writer.done_from(report.total))
            user_id = (
                self._next_in_context()
                if self._async_iterator is None
                else await anext(self._async_iterator, End.END)
            )
            if user_id is End.END:
                report.exhausted = True
                if writer is not None:
                    writer.input_ended(report.total)
                return user_id
            user_id = exact_id(user_id)
            position = report.total
            if writer is None or position >= writer.reached:
                return user_id
            try:
                if not await writer.is_done(position, user_id):
                    return user_id
            except asyncio.CancelledError:
                self.held = user_id
                raise
            self._count_skipped(1)
            if on_skipped is not None:
                status = self._operation.done_before
                await on_skipped(Outcome(user_id=user_id, position=position, status=status))
            if position % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _count_skipped(self, users: int) -> None:
        report, status = self._report, self._operation.done_before
        if self._on_skipped_many is not None:
            self._on_skipped_many(range(report.total, report.total + users))
        self.skipped += users
        report.total += users
        setattr(report, status, getattr(report, status) + users)

    def _next_now(self) -> str | End:
        return next(self._iterator, End.END)

    async def _skip(self, known: Sequence[str | None]) -> None:
        """Skip all of these at once, if they are the next ids.

        This is only for speed: ten million users of an earlier run take seconds, not minutes.
        """
        known = known[:_MANY]
        if not known:
            return
        if self._async_iterator is None:
            here = list(islice(self._iterator, len(known)))
        else:
            here = await _first(self._async_iterator, len(known))
        if here != known:  # which may be for their class alone, and costs time for each
            here = [exact_id(user_id) for user_id in here]
        if here == known:
            self._count_skipped(len(here))
            await asyncio.sleep(0)
        elif self._async_iterator is None:  # one by one, up to the id that differs, or is missing
            self._iterator = iter(here)
        else:
            self._async_iterator = _each(here)


async def _first(ids: AsyncIterator[str], count: int) -> list[str]:
    """Return the next ids, at most so many."""
    first = []
    async for user_id in ids:
        first.append(user_id)
        if len(first) == count:
            break
    return first


async def _each(ids: list[str]) -> AsyncIterator[str]:
    for user_id in ids:
        yield user_id
