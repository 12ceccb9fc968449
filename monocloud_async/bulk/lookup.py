"""Tells whether users are disabled, in whichever way takes fewer requests."""

from collections.abc import Awaitable, Callable

from monocloud_async.models import User
from monocloud_async.user_list import IdSet, UserList

_FIRST_PAGES = 2  # requests that tell how long the list is

GetUser = Callable[[str, float], Awaitable[User]]


class Lookup:
    """The states of the users of a run: from the list of all users, or one by one.

    Args:
        get: requests one user, within a number of seconds.
        list_users: returns the list of all users of the tenant.

    Attributes:
        users: the list, once it is read; it knows how many pages were.
        reads_list: whether the list is read, and `disabled` knows who is in it.
    """

    def __init__(self, get: GetUser, list_users: Callable[[], UserList]) -> None:
        self.get = get
        self.users: UserList | None = None
        self.reads_list = False
        self._list_users = list_users
        self._enabled = IdSet()
        self._disabled = IdSet()

    async def prepare(self, count: int | None) -> None:
        """Read the list, if that takes fewer requests than to get this number of users.

        Args:
            count: how many users the run will look up, or None if that is unknown.

        Raises:
            MonoCloudError: the list could not be read.
        """
        if count is None or count <= _FIRST_PAGES:
            return
        self.users = self._list_users()
        async for user in self.users:
            self.reads_list = (self.users.pages or 0) < count
            if not self.reads_list:
                break
            if user.disabled is not None:
                (self._disabled if user.disabled else self._enabled).add(user.user_id)

    @property
    def requests(self) -> int:
        """How many requests were sent for the list."""
        return 0 if self.users is None else self.users.pages_read

    def disabled(self, user_id: str) -> bool | None:
        """Return whether the list has the user as disabled; None if it does not say."""
        if user_id in self._disabled:
            return True
        return False if user_id in self._enabled else None
