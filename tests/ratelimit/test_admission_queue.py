"""Runs take turns within `max_rate` and the tenant's own limit; a single call passes them by."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from runs import bulk
from tenant_in_memory import Tenant, now, users
from tenants import Bucket
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy

# max_rate


@pytest.mark.parametrize("where", ["session", "run", "both"])
def test_max_rate_holds_from_the_first_request(where: str) -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(None if where == "run" else 20) as session:
            limit = {"session": None, "run": 20, "both": 50}[where]
            report = await session.bulk_enable(users(60), max_rate=limit)
        assert report.enabled == 60
        gaps = [b - a for a, b in pairwise(tenant.times)]
        assert gaps[1:] == pytest.approx([0.05] * 58)  # the second one waits for the first answer

    run(main(), sockets=False)


def test_max_rate_of_a_session_counts_single_calls_and_runs_together() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(10) as session:
            running = asyncio.ensure_future(session.bulk_enable(users(100)))
            await asyncio.sleep(1)
            await asyncio.gather(*(session.enable_user(f"x{number}") for number in range(10)))
            await running
        assert len(tenant.sent) == 110
        assert tenant.times[-1] == pytest.approx(10.9, abs=0.2)
        by_second = Counter(int(at) for at in tenant.times)
        assert max(by_second.values()) <= 11

    run(main(), sockets=False)


def test_max_rate_above_the_tenants_limit_leaves_the_learning_to_the_pace() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 5))
        report = await bulk(users(2000), tenant.send, max_rate=60)
        assert report.enabled == 2000
        assert now() < 1.25 * 2000 / 50  # two limits look alike at first
        assert max(Counter(int(at) for at in tenant.times).values()) <= 61

    run(main(), sockets=False)


def test_a_run_with_a_max_rate_obeys_the_tenant_too() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 5))
        report = await bulk(users(300), tenant.send, max_rate=200)
        assert report.enabled == 300
        assert report.throttled <= 15
        assert report.paused_seconds > 0

    run(main(), sockets=False)


def test_a_run_with_a_max_rate_sends_a_tenant_that_is_down_probes_alone() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0.5, 20.5))
        report = await bulk(users(100), tenant.send, max_rate=50)
        assert report.enabled == 100
        assert len([at for at in tenant.times if 0.7 < at < 20.5]) < 12

    run(main(), sockets=False)


# Single calls beside a run


def test_a_single_call_does_not_queue_behind_a_run() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(20, 20))
        async with tenant.session() as session:
            running = asyncio.ensure_future(session.bulk_enable(users(2000), concurrency=100))
            await asyncio.sleep(30)
            assert session.pace.state == "paced"
            for number in range(20):
                began = now()
                await session.enable_user(f"x{number}")
                assert now() - began < 3  # 100 users wait in the queue: five seconds' worth
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(main(), sockets=False)


def paused(seconds: float) -> tuple[Tenant, MonoCloudSession]:
    tenant = Tenant()
    session = tenant.session()
    session.pace.refused(session.pace.send(now()), seconds, now())
    return tenant, session


def test_a_single_call_sits_out_a_pause() -> None:
    async def main() -> None:
        tenant, session = paused(20)
        await asyncio.gather(*(session.enable_user(user_id) for user_id in users(50)))
        assert min(tenant.times) >= 20
        assert max(tenant.times) > min(tenant.times) + 0.5  # not as one

    run(main(), sockets=False)


def test_a_single_call_fails_at_once_where_the_pause_is_too_long() -> None:
    async def main() -> None:
        tenant, session = paused(400)
        with pytest.raises(
            m.RateLimitedError, match=r"user 'ada': .* 400 s more; nothing"
        ) as caught:
            await session.enable_user("ada")
        assert now() == 0
        assert caught.value.retry_after == pytest.approx(400, abs=0.1)
        assert tenant.sent == []

    run(main(), sockets=False)


def test_a_tenant_that_asks_for_a_year_is_asked_again_in_an_hour() -> None:
    async def main() -> None:
        tenant, session = paused(365 * 86_400)
        await asyncio.sleep(3601)
        await session.enable_user("ada")
        assert len(tenant.sent) == 1

    run(main(), sockets=False)


def test_a_max_rate_that_leaves_no_place_is_not_the_tenants_fault() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(1) as session:
            policy = RetryPolicy(total=10)
            calls = [session.enable_user(user_id, retry=policy) for user_id in users(30)]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert now() == pytest.approx(10, abs=0.1)
        errors = [error for error in ended if isinstance(error, m.RequestTimeoutError)]
        assert len(errors) == 30 - len(tenant.sent) >= 19
        assert "max_rate had no place for it within 10 s; nothing was sent" in str(errors[0])
        assert not errors[0].sent
        assert session.pace.throttled == 0

    run(main(), sockets=False)
