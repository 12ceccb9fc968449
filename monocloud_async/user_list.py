"""Reads a list of users page by page, so that nobody is left out unnoticed.

The API has no cursor, only numbers of pages. While a list is read, users sign up and leave, and
all users behind them move to another place: read from the first page to the last, the same user
may come twice, and another one never.

So a list without an order of the caller's is sorted by the time of creation, and read from the last
page to the first. Who leaves then only moves users from pages that were read to pages that were
not, where they come twice; who signs up is on the last page, which is read again at the end. If
there are fewer users then than the tenant counts, the order was not stable, and the whole list is
read again. So are the members of a group and the users of a filter: who joins them may be older
than the others, and then moves users from pages that were not read to pages that were.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Final, TypeVar

from monocloud_async.errors import (
    IncompleteListError,
    InvalidResponseError,
    MonoCloudError,
    NotFoundError,
)
from monocloud_async.models import User
from monocloud_async.response import PAGINATION, UserPage

T = TypeVar("T")

STABLE_SORT: Final = "creation_time:1"
_MAX_PASSES: Final = 5
_TRIES: Final = 3  # for a page that contradicts its header: users may have changed in between
_NUMBER: Final = (1 << 64) - 1

FetchPage = Callable[[int, int], Awaitable[UserPage]]
Steps = Generator[User | int, UserPage, T]  # yields users, and numbers of pages to be sent in

logger = logging.getLogger("monocloud_async")


class IdSet:
    """A set of user ids in 12 to 24 bytes each, where Python's own takes 110.

    It has 64-bit numbers in place of the ids. The chance that two of a million ids have the same
    number is one in 40 millions.
    """

    def __init__(self) -> None:
        self._numbers = array("Q", [0]) * 1024  # open addressing; 0 is a free place
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, user_id: str) -> bool:
        number = _number(user_id)
        return self._numbers[self._place(number)] == number

    def add(self, user_id: str) -> bool:
        """Add the id; return whether it is new."""
        number = _number(user_id)
        place = self._place(number)
        if self._numbers[place] == number:
            return False
        self._numbers[place] = number
        self._used += 1
        if 3 * self._used > 2 * len(self._numbers):
            old, self._numbers = self._numbers, array("Q", [0]) * (2 * len(self._numbers))
            for each in old:
                if each:
                    self._numbers[self._place(each)] = each
        return True

    def _place(self, number: int) -> int:
        numbers, last = self._numbers, len(self._numbers) - 1
        place = number & last
        while (there := numbers[place]) and there != number:
            place = (place + 1) & last
        return place


def _number(user_id: str) -> int:
    return hash(user_id) & _NUMBER or 1


class UserList:
    """The users of a list, as an async iterator over all of them; each comes once.

    A page that contradicts its own header is read again, and so is the whole list if its pages
    shifted in a way that the counts do not explain; users who were missed come then. The iteration
    ends with an `IncompleteListError` if users are still missing. Memory does not grow with the
    users, except for 12 to 24 bytes each. Several tasks may share the users of one list.

    After an error, the iterator raises the same error again. After a cancellation, it goes on, with
    the same page.

    Args:
        fetch: requests a page: its number, and the maximum number of its users.
        page_size: the maximum number of users on a page.
        ordered: whether the users come in an order of the caller's.
        selected: whether these are not all users of the tenant, but a group, or those of a filter.

    Attributes:
        total: how many users the tenant says the list has; None before the first page.
        returned: how many users the iterator has returned.
        repeated: how often a user came again, because the pages shifted.
        page_size: the maximum number of users on a page, as the tenant allows it.
        pages_read: how many pages were read.
        passes: how often the list was read from one end to the other.
    """

    def __init__(
        self, fetch: FetchPage, *, page_size: int, ordered: bool, selected: bool = False
    ) -> None:
        self.total: int | None = None
        self.returned = 0
        self.repeated = 0
        self.page_size = page_size
        self.pages_read = 0
        self.passes = 0
        self._fetch = fetch
        self._ordered = ordered
        self._selected = selected
        self._seen = IdSet()
        self._latest = 0  # when the youngest of the users was created
        self._users_left = self._users()
        self._wanted: int | None = None  # the page that `_users_left` waits for
        self._lock = asyncio.Lock()
        self._error: MonoCloudError | None = None
        self._is_aligned = True  # whether all pages of the first pass had the same size

    def __repr__(self) -> str:
        return f"<UserList {self.returned} of {self.total} users>"

    @property
    def pages(self) -> int | None:
        """How many pages the list has; None before the first page."""
        return None if self.total is None else -(-self.total // self.page_size)

    def __aiter__(self) -> AsyncIterator[User]:
        return self  # who leaves the loop in the middle can go on

    async def __anext__(self) -> User:
        async with self._lock:
            if self._error is not None:
                raise self._error
            try:
                while True:
                    if self._wanted is None:
                        step = next(self._users_left)
                    else:
                        page = await self._page(self._wanted)  # may be cancelled
                        self._wanted = None
                        step = self._users_left.send(page)
                    if isinstance(step, User):
                        return step
                    self._wanted = step
            except StopIteration:
                raise StopAsyncIteration from None
            except MonoCloudError as error:
                self._error = error
                raise

    def _users(self) -> Steps[None]:
        again = 0
        is_known = False  # a pass was read to its end
        while self.passes < _MAX_PASSES:
            before, latest, missed = self.returned, self._latest, 0
            is_whole = True
            first = yield 1
            for number in self._numbers():
                is_first = number == 1 and (self._ordered or (self.pages or 0) <= 1)
                page = first if is_first else (yield number)
                if page.size != first.size:  # its users are others than those of this number
                    self._is_aligned = is_whole = False
                    break
                unseen = self._unseen(page)
                if not self.passes:
                    again += len(page.users) - len(unseen)
                    self.repeated = again
                for user in unseen:
                    is_older = (user.creation_time or 0) <= latest
                    missed += is_older or (self._selected and not is_known)
                    yield self._counted(user)
            if not self._ordered and (self.repeated or self.total != first.total):
                missed += yield from self._newest(latest)
            self.passes += 1
            is_known |= is_whole
            if self._is_complete(first.total or 0, missed=missed):
                return
            if self.passes > 1 and self.returned == before:
                break  # to read it once more would find nobody either
            logger.info("someone may be missing from the list; reading it again")
        raise IncompleteListError(
            f"the list of users is incomplete: {self.returned:,} were read in {self.passes} passes,"
            f" and the tenant counts {self.total:,}",
            returned=self.returned,
            total=self.total or 0,
        )

    def _numbers(self) -> Iterator[int]:
        """Yield the numbers of the pages of a pass; the total may change meanwhile."""
        if not self._ordered:
            yield from range(self._last, 0, -1)
            return
        number = 1
        while number <= self._last:
            yield number
            number += 1

    @property
    def _last(self) -> int:
        """The number of the page with room for the next user, which is empty if all are full.

        A count that is capped, for example at ten thousand, is noticed there.
        """
        return (self.total or 0) // self.page_size + 1

    def _newest(self, latest: int) -> Steps[int]:
        """Yield the users who signed up while the list was read; they are on its last pages.

        Returns:
            How many of them were created before the `latest` of earlier passes.
        """
        missed = 0
        for number in range(self._last, 0, -1):
            page = yield number
            unseen = self._unseen(page)
            for user in unseen:
                missed += (user.creation_time or 0) <= latest
                yield self._counted(user)
            if len(unseen) < len(page.users):
                break
        return missed

    def _counted(self, user: User) -> User:
        self.returned += 1
        self._latest = max(self._latest, user.creation_time or 0)
        return user

    def _unseen(self, page: UserPage) -> list[User]:
        return [user for user in page.users if self._seen.add(user.user_id)]

    def _is_complete(self, total_before: int, *, missed: int) -> bool:
        """Return whether nobody can be missing after this pass.

        Who comes twice has the place of somebody who left, or who is missing. So for all users
        without an order of the caller's it is enough to count: if someone is missing, there are
        fewer users than the tenant counts. Elsewhere, the count has those who left in the place of
        those who are missing; so somebody who was missed may come in another pass.

        Args:
            total_before: how many users the list had when the pass began.
            missed: how many users of this pass were not known before, and are not younger than
                all who were.
        """
        if self.passes > 1:
            is_clean = not missed
        elif self._ordered:
            is_clean = not self.repeated and self.total == total_before
        else:
            is_clean = self._is_aligned and not (self._selected and (self.pages or 0) > 1)
        return is_clean and self.returned >= (self.total or 0)

    async def _page(self, number: int) -> UserPage:
        """Return a page that agrees with its own header.

        Raises:
            InvalidResponseError: it does not, also when it is read again.
        """
        problem: str | None = None
        for _ in range(_TRIES):
            try:
                page = await self._fetch(number, self.page_size)
            except NotFoundError:
                if number <= (self.pages or 1):
                    raise
                page = UserPage([], self.total)  # a server may have no page after the last one
            self.pages_read += 1
            if page.total is None:
                if number == 1 and len(page.users) < self.page_size:
                    return await self._whole(page)
                problem = f"has no readable {PAGINATION} header, which tells whether there are more"
                continue
            size = page.size or self.page_size
            problem = _problem(page, number, size)
            if problem is None:
                if size != self.page_size:
                    logger.info("the tenant sends pages of %d users, not %d", size, self.page_size)
                self.page_size = page.size = size
                self.total = page.total
                return page
        raise _inconsistent(number, problem or "")

    async def _whole(self, page: UserPage) -> UserPage:
        """Return this only page of a list without headers, if the next one is empty."""
        after = await self._fetch(2, self.page_size)
        self.pages_read += 1
        if after.users:
            raise _inconsistent(
                1, f"has {len(page.users)} users, not {self.page_size}, but it is not the last one"
            )
        page.total = self.total = len(page.users)
        return page


def _problem(page: UserPage, number: int, size: int) -> str | None:
    """Return how a page contradicts its own header, or None."""
    total = page.total or 0
    expected = max(0, min(size, total - (number - 1) * size))
    if len(page.users) != expected:
        return f"has {len(page.users):,} users, and {expected:,} by its header"
    if page.users and page.number not in {None, number}:
        return f"is page {page.number} by its header"
    is_last = number * size >= total
    if page.has_next is is_last:
        what = "not the last one" if is_last else "the last one"
        return f"is {what} by its header, which counts {total:,} users"
    return None


def _inconsistent(number: int, problem: str) -> InvalidResponseError:
    error = InvalidResponseError(f"page {number:,} of the list of users {problem}")
    error.advice = "Nobody knows who is missing from this list: try again"
    return error
