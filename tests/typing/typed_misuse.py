"""What type checkers refuse, before anything is sent. Nobody runs this; mypy and pyright read it.

Every comment that ignores an error asks for that error: where it does not come, both complain.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from monocloud_async import BulkReport, MonoCloudSession, Outcome, RetryPolicy, User


async def one_call(session: MonoCloudSession, user_id: str | None) -> None:
    await session.enable_user(1)  # type: ignore[arg-type]  # an id is a string
    await session.enable_user(b"ada")  # type: ignore[arg-type]  # not bytes
    await session.enable_user(user_id)  # type: ignore[arg-type]  # nor None
    await session.enable_user(["ada"])  # type: ignore[arg-type]  # one id; many are for bulk_enable
    await session.enable_user("ada", 3)  # type: ignore[call-arg]  # options have names
    await session.enable_user("ada", retry=3)  # type: ignore[arg-type]  # a policy, not a number
    await session.enable_user("ada", timeout="3")  # type: ignore[arg-type]  # seconds are a number
    session.enable_user("ada")  # type: ignore[unused-coroutine]  # nothing is sent without await


def a_name() -> None:
    from monocloud_async import NotFoundErorr  # type: ignore[attr-defined]  # noqa: F401, PLC0415


def a_session() -> None:
    MonoCloudSession("acme.eu.monocloud.com", b"key")  # type: ignore[arg-type]  # a key is a string
    MonoCloudSession("acme.eu.monocloud.com", "key", 10)  # type: ignore[call-arg]  # options have names
    MonoCloudSession(retry=3)  # type: ignore[arg-type]  # a policy, not a number
    MonoCloudSession(retries=3)  # type: ignore[call-arg]  # no such option
    RetryPolicy(3)  # type: ignore[call-arg]  # options have names


async def also_later(outcome: Outcome) -> None:
    """A callback is called, not awaited."""


class HalfAStore:
    async def enabled(self, position: int, user_id: str) -> bool:
        return False


async def a_run(session: MonoCloudSession, ids: list[str], found: list[str | None]) -> None:
    await session.bulk_enable(1)  # type: ignore[arg-type]  # many ids
    await session.bulk_enable([1, 2])  # type: ignore[list-item]  # ids are strings
    await session.bulk_enable(b"ada")  # type: ignore[arg-type]  # bytes are numbers when iterated over
    await session.bulk_enable(found)  # type: ignore[arg-type]  # None is no id
    await session.bulk_enable(ids, 50)  # type: ignore[call-arg]  # options have names
    await session.bulk_enable(ids, retry=3)  # type: ignore[arg-type]  # a policy, not a number
    await session.bulk_enable(ids, journal=3)  # type: ignore[arg-type]  # a path or a journal
    await session.bulk_enable(ids, journal=HalfAStore())  # type: ignore[arg-type]  # it has no `write`
    await session.bulk_enable(ids, on_outcome=also_later)  # type: ignore[arg-type]  # nobody would await it
    with session.bulk_enable(ids):  # type: ignore[attr-defined]  # async with
        pass
    for _ in session.bulk_enable(ids):  # type: ignore[attr-defined]  # async for, in async with
        pass


def results(user: User, outcome: Outcome, report: BulkReport) -> None:
    user.disabled = False  # type: ignore[misc]  # frozen: what the tenant said
    outcome.status = "enabled"  # type: ignore[misc]  # frozen: what happened
    _ = outcome.user.user_id  # type: ignore[union-attr]  # None where it failed
    _ = outcome.error.attempts  # type: ignore[union-attr]  # None where it is enabled
    _ = report.succeeded  # type: ignore[attr-defined]  # it is called `enabled`
