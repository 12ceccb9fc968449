"""An outage is waited out with a few probes; users who fail by themselves are none."""

import asyncio
from itertools import pairwise

from runs import adds_up, bulk
from tenant_in_memory import Tenant, now, users
from tenants import Bucket
from virtual_time import run

from monocloud_async import RetryPolicy
from monocloud_async.ratelimit.limiter import RateLimiter


def test_an_outage_is_waited_out_and_costs_a_few_probes() -> None:
    async def main() -> None:
        tenant = Tenant(down=(10, 130))
        report = await bulk(
            users(20_000), tenant.send, concurrency=20, policy=RetryPolicy(attempts=1)
        )
        assert (report.enabled, report.failed, report.unknown) == (20_000 - report.failed, 4, 0)
        during = [at for at in tenant.times if 10 < at < 130]
        assert len(during) < 60
        assert max(b - a for a, b in pairwise(during)) <= 5.1
        assert 119 < report.paused_seconds < 127
        after = [at for at in tenant.times if at > 130]
        assert after[8] - after[0] > 0.05  # one, two, four

    run(main(), sockets=False)


def test_with_retries_an_outage_costs_no_user_anything() -> None:
    async def main() -> None:
        tenant = Tenant(down=(10, 130))
        report = await bulk(users(20_000), tenant.send, concurrency=20)
        assert report.enabled == 20_000
        assert report.retries < 60

    run(main(), sockets=False)


def test_users_that_fail_in_a_tenant_that_is_well_never_stop_the_others() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.failing = lambda user_id: user_id.endswith("7")
        limiter = RateLimiter(seed=1)
        states: set[str] = set()
        report = await bulk(
            users(5000),
            tenant.send,
            limiter=limiter,
            concurrency=100,
            on_outcome=lambda _: states.add(limiter.state),
        )
        assert (report.enabled, report.failed, report.retries) == (4500, 500, 1500)
        assert states == {"open"}

    run(main(), sockets=False)


def test_users_that_fail_by_themselves_do_not_keep_the_probes_from_the_others() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.failing = lambda user_id: int(user_id[1:]) < 20
        report = await bulk(users(100), tenant.send, concurrency=50, max_rate=100)
        assert (report.enabled, report.failed) == (80, 20)
        assert now() < 200

    run(main(), sockets=False)


def test_draining_in_an_outage_ends_at_once() -> None:
    async def main() -> None:
        tenant = Tenant(down=(2, 1e9))
        running = bulk(users(20_000), tenant.send)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(30)
        running.drain()
        report = await task
        assert now() < 31
        assert report.not_attempted == 10
        assert adds_up(report)

    run(main(), sockets=False)


def test_a_run_that_is_left_while_it_probes_leaves_the_pace_to_the_next_one() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(10, 10), down=(5, 60))
        async with tenant.session() as session:
            for _ in range(8):
                async with session.bulk_enable(users(500), concurrency=30) as running:
                    await asyncio.sleep(4.01)
                assert adds_up(running.report)
            await asyncio.sleep(30)
            assert (await session.bulk_enable(users(50))).enabled == 50
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(), sockets=False)
