"""The rate that a tenant grants is found."""

from runs import bulk
from tenant_in_memory import Tenant, now, users
from tenants import Bucket
from virtual_time import run

from monocloud_async import Outcome


def test_a_run_finds_the_tenants_limit_and_loses_nobody() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(100, 10))
        outcomes: list[Outcome] = []
        report = await bulk(users(5000), tenant.send, concurrency=100, on_outcome=outcomes.append)
        assert (report.enabled, report.failed, report.retries) == (5000, 0, 0)
        assert sorted(o.position for o in outcomes) == list(range(5000))
        assert report.throttled == report.requests - 5000 < 0.05 * 5000
        assert report.paused_seconds > 1
        assert now() < 1.15 * 50
        assert all(o.attempts == 1 for o in outcomes)

    run(main(), sockets=False)
