"""What a session can do, as a protocol: for functions that also take a fake."""

import os
from typing import Protocol

import monocloud_async  # for BulkRun, which hints name by its path: it is loaded later
from monocloud_async.bulk import OnOutcome, UserIds
from monocloud_async.journal import Journal
from monocloud_async.models import User
from monocloud_async.retry import RetryPolicy
from monocloud_async.user_list import UserList


class MonoCloudClient(Protocol):
    """A `MonoCloudSession`, or anything with the same methods; they are documented there."""

    @property
    def tenant(self) -> str:
        """The address of the tenant."""
        ...

    async def enable_user(
        self, user_id: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> User:
        """Enable a user, and return the user."""
        ...

    async def disable_user(
        self,
        user_id: str,
        *,
        revoke_sessions: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> User:
        """Disable a user, and return the user."""
        ...

    async def get_user(
        self, user_id: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> User:
        """Return the user."""
        ...

    def list_users(
        self,
        *,
        filter: str | None = None,  # noqa: A002  the API's name for it
        sort: str | None = None,
        group: str | None = None,
        page_size: int = ...,
        retry: RetryPolicy | None = None,
    ) -> UserList:
        """Return the users of the tenant."""
        ...

    def bulk_enable(
        self,
        user_ids: UserIds,
        *,
        concurrency: int = ...,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        max_rate: float | None = None,
        max_outage: float = ...,
        max_same_failures: int | None = ...,
        check: bool = False,
        limit: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> "monocloud_async.BulkRun":
        """Return a run that enables many users."""
        ...

    def bulk_disable(
        self,
        user_ids: UserIds,
        *,
        revoke_sessions: bool = False,
        concurrency: int = ...,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        max_rate: float | None = None,
        max_outage: float = ...,
        max_same_failures: int | None = ...,
        check: bool = False,
        limit: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> "monocloud_async.BulkRun":
        """Return a run that disables many users."""
        ...

    async def close(self, *, drain: float = 0.0) -> None:
        """Close the session."""
        ...
