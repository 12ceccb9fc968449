"""A forgotten `await` of a run, with the options that docs/testing.md names.

Nobody runs this; mypy and pyright read it.
"""
# mypy: enable-error-code="unused-awaitable"
# pyright: strict, reportUnusedCallResult=true, reportUnnecessaryTypeIgnoreComment=true

from monocloud_async import MonoCloudSession


async def a_run(session: MonoCloudSession, ids: list[str]) -> None:
    session.bulk_enable(ids)  # type: ignore[unused-awaitable]  # nobody is enabled without await
    session.bulk_disable(ids)  # type: ignore[unused-awaitable]  # and nobody is disabled
