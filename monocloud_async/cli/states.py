"""Looks users up: from the list of all users, or one by one, whichever takes fewer requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple

from rich.console import Console

from monocloud_async.bulk import MAX_OUTAGE
from monocloud_async.cli.access import Access
from monocloud_async.cli.list_display import failures_told, shown
from monocloud_async.errors import NotFoundError
from monocloud_async.models import User
from monocloud_async.retry import RetryPolicy
from monocloud_async.session import MonoCloudSession

_AT_ONCE: Final = 50  # users that are requested at once


class UserState(StrEnum):
    """What a tenant says of a user."""

    ENABLED = "enabled"
    LOCKED = "locked"  # enabled, and locked out after failed sign-ins for a while
    DISABLED = "disabled"
    MISSING = "missing"  # the tenant has no such user
    UNKNOWN = "unknown"  # the tenant does not say


class Looked(NamedTuple):
    """A user, the state, and until when the user is locked out, if so."""

    user_id: str
    state: UserState
    block_until: int | None = None


def looked(user_id: str, user: User | None, now: float) -> Looked:
    """Return what a lookup found; None for a user whom the tenant does not have."""
    if user is None:
        return Looked(user_id, UserState.MISSING)
    until = user.block_until if user.block_until and user.block_until > now else None
    if user.disabled is None:
        return Looked(user_id, UserState.UNKNOWN, until)
    if user.disabled:
        return Looked(user_id, UserState.DISABLED, until)
    return Looked(user_id, UserState.LOCKED if until else UserState.ENABLED, until)


async def look_up(
    access: Access, session: MonoCloudSession, ids: Iterable[str], count: int, err: Console
) -> AsyncIterator[Looked]:
    """Yield the state of each user, in this order; shows the progress.

    Args:
        access: the options of the session.
        session: the session.
        ids: the users.
        count: how many there are.
        err: stderr.

    Raises:
        MonoCloudError: the tenant cannot tell.
    """
    lookup = session.lookup()
    async with shown(err, lookup.users, session.pace):
        await lookup.prepare(count)
    now = time.time()
    if lookup.reads_list:
        for user_id in ids:
            yield looked(user_id, lookup.user(user_id), now)
        return
    retry = RetryPolicy(attempts=access.attempts).patient(MAX_OUTAGE)

    async def get(user_id: str) -> Looked:
        try:
            return looked(user_id, await session.get_user(user_id, retry=retry), now)
        except NotFoundError:
            return looked(user_id, None, now)

    rest = iter(ids)
    while some := list(islice(rest, _AT_ONCE)):
        async with failures_told(err, session.pace):
            found = await asyncio.gather(*map(get, some))
        for each in found:
            yield each
