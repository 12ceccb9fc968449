"""The operations of the API as values: enable, disable or get a user, and list users.

An `Operation` is one request. A new one needs one value here and one method of the session;
everything in between is generic. One that runs do for many users is a `BulkOperation`, whose
outcomes and counts are also declared here. `user_id` says which ids may be in a path, and
`response` what an answer says; `transport` sends and receives.
The specification is MonoCloud's page "Enable a user", and the public source of its own clients.
"""

from collections.abc import Callable, Mapping
from typing import Final, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec

from monocloud_async.errors import ConfigurationError
from monocloud_async.models import User
from monocloud_async.response import (
    MAX_PAGE,
    MAX_PROBLEM,
    MAX_USER,
    Response,
    UserPage,
    read_page,
    read_user,
)
from monocloud_async.user_id import path_segment
from monocloud_async.version import __version__

ACCEPT = "application/json, application/problem+json"
USER_AGENT = f"monocloud-async/{__version__}"

_USERS_PATH = "/api/users"
_GROUP_PATH = f"{_USERS_PATH}/groups/{{group_id}}/assigned"
_OK = 200

T_co = TypeVar("T_co", covariant=True)


# Operations are compared by identity.
class Operation(msgspec.Struct, Generic[T_co], frozen=True, kw_only=True, eq=False):
    """An idempotent request of the API, and how its response is read.

    Attributes:
        name: the API's name for the operation.
        method: the HTTP method.
        body: the JSON to send, or "" for none.
        max_body: the maximum number of bytes of a 200, decompressed.
    """

    name: str
    method: str
    body: str = ""
    max_body: int = MAX_USER

    @property
    def template(self) -> str:
        """The path as MonoCloud's documentation writes it, with `{user_id}` for the id."""
        raise NotImplementedError

    def path(self, target: str) -> str:
        """Return the path of the request for this target: a user id, or a query."""
        raise NotImplementedError

    def read(self, target: str, response: Response) -> T_co:
        """Return what the response has; raises `MonoCloudError` if it is not a success."""
        raise NotImplementedError

    def body_limit(self, status: int) -> int:
        """Return the maximum number of bytes to read of a response with this status."""
        return self.max_body if status == _OK else MAX_PROBLEM


class UserOperation(Operation[User], frozen=True, kw_only=True, eq=False):
    """An operation on one user, whose id is its target.

    Attributes:
        suffix: the path after `/api/users/{user_id}`.
        variant: what tells the operation from others with the same path, for `endpoint`.
    """

    suffix: str = ""
    variant: str = ""

    @property
    def template(self) -> str:
        """The path with `{user_id}` for the id."""
        return f"{_USERS_PATH}/{{user_id}}{self.suffix}"

    @property
    def endpoint(self) -> str:
        """The operation as MonoCloud's documentation writes it; journals store it."""
        return f"{self.method} {self.template}{self.variant}"

    def path(self, target: str) -> str:
        """Return the percent-encoded path for this user; the id is exactly one segment of it.

        Raises:
            InvalidUserIdError: the id cannot be one segment (see `user_id.check_user_id`).
        """
        return f"{_USERS_PATH}/{path_segment(target)}{self.suffix}"

    def read(self, target: str, response: Response) -> User:
        """Return the user in the response; raises as `response.read_response` does."""
        return read_user(target, response)


class ListOperation(Operation[UserPage], frozen=True, kw_only=True, eq=False):
    """A page of a list of users; its target is the path of `list_path`.

    Attributes:
        collection: the path, with `{group_id}` for the id of a group.
    """

    collection: str = _USERS_PATH

    @property
    def template(self) -> str:
        """The path, with `{group_id}` for the id of a group."""
        return self.collection

    def path(self, target: str) -> str:
        """Return the target, which is a path."""
        return target

    def read(self, target: str, response: Response) -> UserPage:
        """Return the page in the response; raises as `response.read_page` does."""
        del target
        return read_page(response)


Done = Literal["enabled", "disabled"]
DoneBefore = Literal["already_enabled", "already_disabled"]


class DoneCounts(msgspec.Struct, kw_only=True):
    """How many users an operation was done for: a field for each `Done`."""

    enabled: int = 0
    disabled: int = 0


class DoneBeforeCounts(DoneCounts, kw_only=True):
    """Also how many users it had been done for before: a field for each `DoneBefore`."""

    already_enabled: int = 0
    already_disabled: int = 0


class BulkOperation(UserOperation, frozen=True, kw_only=True, eq=False):
    """An operation that a run can do for many users, because it sets a state.

    Attributes:
        doing: what a run does to the users, for messages.
        done: the `Outcome.status` of a user for whom it is done.
        done_before: the `Outcome.status` of a user for whom it was done before the run.
        contradicted_by: returns whether the user in a successful response is in another state.
    """

    doing: str
    done: Done
    done_before: DoneBefore
    contradicted_by: Callable[[User], bool]


LIST_USERS: Final = ListOperation(name="list", method="GET", max_body=MAX_PAGE)
LIST_GROUP: Final = msgspec.structs.replace(LIST_USERS, collection=_GROUP_PATH)
GET_USER: Final = UserOperation(name="get", method="GET")
ENABLE: Final = BulkOperation(
    name="enable",
    method="POST",
    suffix="/enable",
    doing="enabling",
    done="enabled",
    done_before="already_enabled",
    contradicted_by=lambda user: user.disabled is True,
)
DISABLE: Final = BulkOperation(
    name="disable",
    method="POST",
    suffix="/disable",
    body='{"revoke_sessions":false}',
    doing="disabling",
    done="disabled",
    done_before="already_disabled",
    contradicted_by=lambda user: user.disabled is False,
)
# A journal of the one is not for the other, which would leave sessions open.
DISABLE_AND_REVOKE_SESSIONS: Final = msgspec.structs.replace(
    DISABLE, body='{"revoke_sessions":true}', variant=" with revoke_sessions"
)
# By the name that a fleet's messages have. A journal stores the `endpoint` of one of these.
BULK_OPERATIONS: Final[Mapping[str, BulkOperation]] = {
    "enable": ENABLE,
    "disable": DISABLE,
    "disable_and_revoke_sessions": DISABLE_AND_REVOKE_SESSIONS,
}


def bulk_operation(name: str) -> BulkOperation:
    """Return the operation of this name.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return BULK_OPERATIONS[name]
    except (KeyError, TypeError):  # a list is not even a possible name
        known = ", ".join(BULK_OPERATIONS)
        raise ConfigurationError(f"operation must be one of {known}, not {name!r}") from None


def list_path(
    number: int,
    size: int,
    *,
    query: str | None = None,
    sort: str | None = None,
    group: str | None = None,
) -> str:
    """Return the path of one page of a list of users.

    Args:
        number: the number of the page, from 1.
        size: the maximum number of users on a page.
        query: the API's `filter`.
        sort: the API's `sort`.
        group: the id of a group, for its members alone.

    Raises:
        InvalidUserIdError: the id of the group cannot be one segment of a path.
    """
    path = _USERS_PATH if group is None else _GROUP_PATH.format(group_id=path_segment(group))
    parts = {"page": str(number), "size": str(size), "filter": query, "sort": sort}
    # Percent-encoded, also the space: a "+" is one only for some servers.
    pairs = (f"{name}={quote(text, safe='')}" for name, text in parts.items() if text is not None)
    return f"{path}?{'&'.join(pairs)}"
