"""What the sandbox and its fixtures give to the type checkers of other people's tests.

Nobody runs this; mypy and pyright read it.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import Any, assert_type

from monocloud_async import BulkReport, MonoCloudSession, User
from monocloud_async.sandbox import Sandbox, SandboxStats


async def test_with_the_fixtures(
    monocloud_sandbox: Sandbox, monocloud_session: MonoCloudSession
) -> None:
    ids = assert_type(monocloud_sandbox.user_ids(), list[str])
    assert_type(monocloud_sandbox.is_disabled(ids[0]), bool)
    assert_type(monocloud_sandbox.user(ids[0]), dict[str, Any] | None)
    assert_type(await monocloud_session.enable_user(ids[0]), User)
    assert_type(await monocloud_session.bulk_enable(ids), BulkReport)


async def test_with_a_tenant_of_its_own() -> None:
    async with Sandbox(users=["ada"], latency=0.01, rate_limit=20, burst=5) as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.url, str)
        assert_type(sandbox.api_key, str)
        sandbox.add_user("bob", disabled=False)
        sandbox.script("ada", 503, "reset", 200)
        sandbox.script("ada", 5.0)  # type: ignore[arg-type]  # a status or a named fault
        stats = assert_type(sandbox.stats(), SandboxStats)
        assert_type(stats.requests, int)
        assert_type(stats.by_status, dict[str, int])
        assert_type(stats.peak_in_flight, int)
        assert_type(stats.users, dict[str, int])
