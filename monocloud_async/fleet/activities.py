"""Activities for workflows of your own, for one user each; a run over a fleet needs none of them.

```python
async with MonoCloudSession() as session:
    activities = UserActivities(session).all()
    await Worker(client, task_queue="users", activities=activities).run()
```

And in a workflow, whose sandbox must not load this module again:

```python
with workflow.unsafe.imports_passed_through():
    from monocloud_async.fleet.activities import UserActivities

await workflow.execute_activity_method(
    UserActivities.enable_user,
    user_id,
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=10),
)
```
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError

from monocloud_async.errors import (
    BadRequestError,
    InvalidUserIdError,
    MonoCloudError,
    NotFoundError,
    StatusError,
    UnprocessableError,
)
from monocloud_async.fleet.heartbeats import beating
from monocloud_async.session import MonoCloudSession

# The tenant would refuse this user again. All else may be mended meanwhile, a refused key too.
_FINAL: Final = (BadRequestError, InvalidUserIdError, NotFoundError, UnprocessableError)


class UserActivities:
    """Activities that enable and disable users through one session, which all calls share.

    They return nothing, so that no data of a user is in Temporal's history. An error is an
    `ApplicationError` whose `type` is the class name of the session's error, such as
    "NotFoundError". It is retryable unless the tenant would refuse the user again, and asks
    Temporal to wait as long as the tenant asked for.

    A cancelled activity cancels its call. If its request was already sent, nobody knows whether it
    was done; to do it again is harmless. Set a `heartbeat_timeout`, as Temporal tells an activity
    of a cancellation in the response to a heartbeat.

    Args:
        session: an open session; it stays open. Its retries take place within one attempt of
            Temporal's, so `start_to_close_timeout` must be longer than `RetryPolicy.total`.
    """

    def __init__(self, session: MonoCloudSession) -> None:
        self._session = session

    def all(self) -> list[Callable[..., Any]]:
        """Return all activities, for a Temporal worker."""
        return [self.enable_user, self.disable_user]

    @activity.defn
    async def enable_user(self, user_id: str) -> None:
        """Enable a user; enabling an enabled user changes nothing."""
        await _call(self._session.enable_user(user_id))

    @activity.defn
    async def disable_user(self, user_id: str, revoke_sessions: bool = False) -> None:  # noqa: FBT001, FBT002  Temporal passes arguments by position
        """Disable a user, and with `revoke_sessions` also end the current sessions of the user."""
        await _call(self._session.disable_user(user_id, revoke_sessions=revoke_sessions))


async def _call(call: Awaitable[object]) -> None:
    async with beating():
        try:
            await call
        except MonoCloudError as error:
            wait = error.retry_after if isinstance(error, StatusError) else None
            raise ApplicationError(
                str(error),
                type=type(error).__name__,
                non_retryable=isinstance(error, _FINAL),
                next_retry_delay=None if wait is None else timedelta(seconds=wait),
            ) from None
