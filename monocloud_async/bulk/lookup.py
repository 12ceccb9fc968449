"""Tells whether users are disabled, in whichever way takes fewer requests."""

import logging
from collections.abc import Awaitable, Callable

from monocloud_async.errors import IncompleteListError, InvalidResponseError
from monocloud_async.models import User
from monocloud_async.user_list import IdSet, UserList

_FIRST_PAGES = 2  # at least so many requests tell how long the list is

GetUser = Callable[[str, float], Awaitable[User]]

logger = logging.getLogger("monocloud_async")


class Lookup:
    """The states of users: from the list of all users, or one by one.

    Args:
        get: requests one user, within a number of seconds.
        users: the list of all users of the tenant, not yet read.

    Attributes:
        reading: the list, while it is read.
        reads_list: whether the list was read; otherwise, get one user after the other.
    """

    def __init__(self, get: GetUser, users: UserList) -> None:
        self.get = get
        self.users = users
        self.reading: UserList | None = None
        self.reads_list = False
        self._forget()

    def _forget(self) -> None:
        self._enabled = IdSet()
        self._disabled = IdSet()
        self._undecided = IdSet()  # the list does not say whether they are disabled
        self._locked: dict[str, int] = {}

    async def prepare(self, count: int | None) -> None:
        """Read the list, if that takes fewer requests than to get this number of users.

        A list that contradicts itself, or has a user without a readable id, is not read: each user
        alone can be looked up all the same.

        Args:
            count: how many users will be looked up, or None if that is unknown.

        Raises:
            MonoCloudError: the list could not be read.
        """
        if count is None or count <= _FIRST_PAGES:
            return
        self.reading = self.users
        try:
            await self._read(count)
        except (InvalidResponseError, IncompleteListError) as error:
            if isinstance(error, InvalidResponseError) and error.foreign:
                raise
            self.reads_list = False
            self._forget()
            logger.warning("looking users up one by one, because %s", error.args[0])
        finally:
            self.reading = None

    async def _read(self, count: int) -> None:
        async for user in self.users:
            self.reads_list = (self.users.pages or 0) < count
            if not self.reads_list:
                return
            match user.disabled:
                case None:
                    self._undecided.add(user.user_id)
                case True:
                    self._disabled.add(user.user_id)
                case False:
                    self._enabled.add(user.user_id)
            if user.block_until:
                self._locked[user.user_id] = user.block_until

    def user(self, user_id: str) -> User | None:
        """Return what the list says of this user, as far as it was kept; None for nobody."""
        if user_id in self._disabled:
            disabled: bool | None = True
        elif user_id in self._enabled:
            disabled = False
        elif user_id in self._undecided:
            disabled = None
        else:
            return None
        return User(user_id=user_id, disabled=disabled, block_until=self._locked.get(user_id))
