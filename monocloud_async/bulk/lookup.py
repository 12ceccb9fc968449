"""Tells whether users are disabled, in whichever way takes fewer requests."""

from collections.abc import Awaitable, Callable

from monocloud_async.models import User
from monocloud_async.user_list import IdSet, UserList

_FIRST_PAGES = 2  # at least so many requests tell how long the list is

GetUser = Callable[[str, float], Awaitable[User]]


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
        self._enabled = IdSet()
        self._disabled = IdSet()
        self._locked: dict[str, int] = {}

    async def prepare(self, count: int | None) -> None:
        """Read the list, if that takes fewer requests than to get this number of users.

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
        finally:
            self.reading = None

    async def _read(self, count: int) -> None:
        async for user in self.users:
            self.reads_list = (self.users.pages or 0) < count
            if not self.reads_list:
                return
            if user.disabled is not None:
                (self._disabled if user.disabled else self._enabled).add(user.user_id)
            if user.block_until:
                self._locked[user.user_id] = user.block_until

    def user(self, user_id: str) -> User | None:
        """Return what the list says of this user, as far as it was kept; None for nobody."""
        disabled = user_id in self._disabled
        if not disabled and user_id not in self._enabled:
            return None
        return User(user_id=user_id, disabled=disabled, block_until=self._locked.get(user_id))
