"""Everything that a session sends waits in one queue: single calls first, then runs."""

import asyncio
import gc
import random
import statistics
import tracemalloc
from collections import Counter
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest
from runs import bulk
from tenant_in_memory import Tenant, now, users
from tenants import Bucket
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy, User

# max_rate


async def report_of(run: m.BulkRun) -> m.BulkReport:
    return await run


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


@pytest.mark.parametrize(
    ("count", "before", "after", "end"), [(10, 0.01, 100, 5.1), (510, 100, 0.1, 95)]
)
def test_a_max_rate_that_is_changed_holds_for_those_who_wait_already(
    count: int, before: float, after: float, end: float
) -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session() as session:
            run = session.bulk_enable(users(count), max_rate=before)
            running = asyncio.ensure_future(report_of(run))
            await asyncio.sleep(5)
            run.set_max_rate(after)
            await running
        assert now() == pytest.approx(end, abs=1)

    run(main(), sockets=False)


async def test_a_max_rate_is_changed_to_a_number_above_0() -> None:
    async with Tenant().session() as session:
        run = session.bulk_enable([], max_rate=1)
        with pytest.raises(m.ConfigurationError, match="max_rate must be a number above 0, not 0"):
            run.set_max_rate(0)
        await run


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
        assert tenant.times[1] >= tenant.times[0] + 0.02  # one goes ahead

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


def test_a_max_rate_that_leaves_no_place_is_told_at_once_and_says_when() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(1) as session:
            policy = RetryPolicy(total=10)
            calls = [session.enable_user(user_id, retry=policy) for user_id in users(30)]
            told = []

            async def call(waiting: Coroutine[Any, Any, User]) -> None:
                try:
                    await waiting
                except m.RateLimitedError as error:
                    assert now() <= 0.02  # the first response tells how long one takes
                    told.append(error)

            await asyncio.gather(*map(call, calls))
        assert len(tenant.sent) == 30 - len(told) == 10
        assert "max_rate has no place for it within 10 s; nothing was sent" in str(told[0])
        assert told[0].retry_after == pytest.approx(len(tenant.sent), abs=1.1)
        assert session.pace.throttled == 0

    run(main(), sockets=False)


# One queue


@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_a_burst_that_the_tenant_can_serve_in_time_is_served_whole(
    retry_after: float | None,
) -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 50, tells=False))
        tenant.retry_after = retry_after
        async with tenant.session() as session:
            policy = RetryPolicy(total=10)
            await asyncio.gather(*(session.enable_user(u, retry=policy) for u in users(300)))
        assert now() < 7

    run(main(), sockets=False)


def test_single_calls_keep_their_order_and_one_that_was_answered_429_goes_first() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 50))
        async with tenant.session() as session:
            await asyncio.gather(*map(session.enable_user, users(300)))
        sent = [user_id for _, user_id in tenant.sent]
        assert list(dict.fromkeys(sent)) == users(300)
        again = next(place for place, user_id in enumerate(sent) if user_id in sent[:place])
        refused = [user_id for user_id in sent[:again] if user_id in sent[again:]]
        assert sent[again : again + len(refused)] == refused
        assert 300 < len(sent) < 400
        assert now() < 6.5

    run(main(), sockets=False)


def test_a_429_spends_no_attempt_and_no_retry() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 50))
        async with tenant.session() as session:
            once = RetryPolicy(attempts=2, budget=0)
            await asyncio.gather(*(session.enable_user(u, retry=once) for u in users(300)))

    run(main(), sockets=False)


def test_who_waits_in_vain_is_told_as_soon_as_it_is_known_and_when_to_come_back() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 50))
        told: list[tuple[float, float]] = []
        async with tenant.session() as session:

            async def call(user_id: str) -> None:
                try:
                    await session.enable_user(user_id, retry=RetryPolicy(total=10))
                except m.RateLimitedError as error:
                    told.append((now(), error.retry_after or 0))

            await asyncio.gather(*map(call, users(1000)))
            assert len(tenant.sent) - session.pace.throttled >= 500
            assert session.pace.throttled < 100
        assert max(tenant.times) <= 10 - 0.02  # nothing is sent without time for its response
        assert statistics.median(at for at, _ in told) < 1.5
        assert all(6 < wait < 10 for at, wait in told if at < 1.5)

    run(main(), sockets=False)


@pytest.mark.parametrize("retry_after", [None, 5.0])
def test_a_burst_that_is_over_leaves_nothing_behind(retry_after: float | None) -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(100, 10))
        tenant.retry_after = retry_after
        waits: list[tuple[float, float]] = []
        async with tenant.session() as session, asyncio.TaskGroup() as tasks:

            async def call(user_id: str) -> None:
                began = now()
                await session.enable_user(user_id)
                waits.append((began, now() - began))

            for number in range(900):
                tasks.create_task(call(f"u{number}"))
                if number == 150:
                    for extra in range(40):
                        tasks.create_task(call(f"x{extra}"))
                await asyncio.sleep(1 / 30)
        assert len(waits) == 940
        assert statistics.median(wait for began, wait in waits if began > 15) < 0.03

    run(main(), sockets=False)


def test_a_run_gets_a_tenth_beside_any_number_of_single_calls() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(50, 50))
        async with tenant.session() as session:
            running = session.bulk_enable(users(5000))
            task = asyncio.ensure_future(running)
            await asyncio.sleep(10)
            before, began = running.report.enabled, now()
            calls = [session.enable_user(f"x{number}") for number in range(900)]
            await asyncio.gather(*calls)
            share = running.report.enabled - before
            assert now() - began < 22  # the single calls go first
            assert 0.09 * 1000 < share < 0.13 * 1000
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main(), sockets=False)


def test_two_runs_share_and_one_that_keeps_to_a_max_rate_holds_nobody_up() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(100) as session:
            slow = session.bulk_enable([f"slow{n}" for n in range(20)], max_rate=2)
            quick = session.bulk_enable(users(900))
            slow_task, began = asyncio.ensure_future(slow), now()
            await quick
            assert 9 <= now() - began < 9.5
            await slow_task
            assert 9.4 < now() - began < 10.1

    run(main(), sockets=False)


def test_who_is_cancelled_leaves_its_place_to_the_next_one() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(10) as session:
            calls = [asyncio.ensure_future(session.enable_user(u)) for u in users(30)]
            await asyncio.sleep(0.01)
            assert session.pace.waiting == 29
            for call in calls[1::2]:
                call.cancel()
            await asyncio.wait(calls)
            assert session.pace.waiting == 0
            assert now() == pytest.approx(1.42, abs=0.01)

    run(main(), sockets=False)


def test_a_place_that_comes_in_the_moment_of_a_cancellation_is_given_back() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session() as session:
            session.pace.refused(session.pace.send(now()), 1.0, now())
            first = asyncio.ensure_future(session.enable_user("ada"))
            second = asyncio.ensure_future(session.enable_user("bob"))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(session.pace.pause_left, first.cancel)
            await asyncio.wait([first, second])
            assert first.cancelled()
            assert not second.exception()

    run(main(), sockets=False)


def test_whoever_left_the_queue_takes_no_memory_while_another_one_waits() -> None:
    async def main() -> int:
        _, session = paused(1800)
        patient = RetryPolicy(total=3000, max_retry_after=3000)
        async with session:
            first = asyncio.ensure_future(session.enable_user("first", retry=patient))
            await asyncio.sleep(1)
            tracemalloc.start()
            for _ in range(10):
                calls = asyncio.gather(
                    *(session.enable_user(user, retry=patient) for user in users(500)),
                    return_exceptions=True,
                )
                await asyncio.sleep(0.01)
                assert session.pace.waiting == 501
                calls.cancel()
                await asyncio.wait([calls])
                del calls
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert session.pace.waiting == 1
            first.cancel()
        return held

    assert run(main(), sockets=False) < 500_000  # of 5,000 who left; it was 500 bytes for each


# While the tenant is down


def fails(session: MonoCloudSession, user_id: str, **policy: Any) -> Coroutine[Any, Any, Any]:
    return asyncio.wait_for(
        asyncio.gather(
            session.enable_user(user_id, retry=RetryPolicy(**policy)), return_exceptions=True
        ),
        timeout=1000,
    )


async def brought_down(session: MonoCloudSession) -> None:
    once = RetryPolicy(attempts=1)
    calls = (session.enable_user(f"d{number}", retry=once) for number in range(5))
    await asyncio.gather(*calls, return_exceptions=True)
    assert session.pace.down


def test_while_the_tenant_is_down_single_calls_fail_at_once_and_one_at_a_time_probes() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 30))
        async with tenant.session() as session:
            await brought_down(session)
            before = len(tenant.sent)
            slowest = 0.0
            while now() < 29:
                began = now()
                [error] = await fails(session, f"u{began}")
                assert isinstance(error, m.MonoCloudError)
                slowest = max(slowest, now() - began)
                if isinstance(error, m.ServerError):
                    assert "the tenant is down" in str(error)
                    assert 0 < (error.retry_after or 0) <= 5
                    assert session.pace.pause_left == pytest.approx(error.retry_after)
                await asyncio.sleep(0.02)
            assert slowest < 0.03  # a probe's own time
            assert len(tenant.sent) - before < 12
            await asyncio.sleep(5)
            assert session.pace.pause_left == 0  # readiness, without a call of its own
            probe = asyncio.ensure_future(session.enable_user("eve"))
            await asyncio.sleep(0.01)
            assert 0 < session.pace.pause_left <= 5  # until the probe is answered
            await probe
            await session.enable_user("ada")
            assert not session.pace.down

    run(main(), sockets=False)


def test_a_run_asks_a_tenant_that_is_down_again_when_its_503s_say() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.failing, tenant.retry_after = (lambda _user_id: now() < 35), 10.0
        async with tenant.session() as session:
            report = await session.bulk_enable(users(60))
        assert report.enabled == 60
        probes = [at for at in tenant.times if 1 < at < 45]
        assert [round(at / 10) for at in probes[:3]] == [1, 2, 3]
        assert tenant.times[-1] < 46

    run(main(), sockets=False)


def test_those_who_wait_when_the_tenant_goes_down_are_told_too() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        async with tenant.session() as session:
            ended = await asyncio.gather(
                *(session.enable_user(u) for u in users(500)), return_exceptions=True
            )
            assert now() < 0.6  # the first four wait for a retry: it may be their own failure
            assert len(tenant.sent) < 30
            assert all(isinstance(error, m.MonoCloudError) for error in ended)

    run(main(), sockets=False)


def test_a_policy_can_say_that_a_call_waits_while_the_tenant_is_down() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 30))
        async with tenant.session() as session:
            await brought_down(session)
            patient = RetryPolicy(attempts=2, wait_if_down=True)
            await asyncio.gather(*(session.enable_user(u, retry=patient) for u in users(20)))
            assert 30 < now() < 36
            [error] = await fails(session, "ada", total=5, wait_if_down=True)
            assert isinstance(error, m.User)

    run(main(), sockets=False)


def test_half_of_all_requests_failing_is_no_outage() -> None:
    async def main() -> None:
        tenant, seeded, downs = Tenant(), random.Random(1), 0
        tenant.failing = lambda _user_id: seeded.random() < 0.5
        async with tenant.session() as session:
            was_down, calls = False, []
            for number in range(1000):
                calls.append(asyncio.ensure_future(fails(session, f"u{number}", attempts=1)))
                await asyncio.sleep(0.02)
                downs += session.pace.down and not was_down
                was_down = session.pace.down
            await asyncio.gather(*calls)
        assert downs <= 2

    run(main(), sockets=False)


def test_a_tenant_that_hangs_is_down_and_nothing_piles_up() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.hangs = True
        async with tenant.session() as session:
            tasks = []
            for number in range(1000):
                tasks.append(asyncio.ensure_future(fails(session, f"u{number}")))
                await asyncio.sleep(0.02)
            assert session.pace.down
            assert sum(not task.done() for task in tasks) < 10
            await asyncio.wait(tasks)

    run(main(), sockets=False)


# A tenant that is well, but slow


async def ends(session: MonoCloudSession, user_id: str, total: float) -> str:
    """Make a call with so many seconds; return its refusal, or the name of its error, or "ok"."""
    try:
        await session.enable_user(user_id, retry=RetryPolicy(total=total))
    except m.MonoCloudError as error:
        return error.refusal or type(error).__name__
    return "ok"


@pytest.mark.parametrize(("latency", "total"), [(0.5, 2), (1, 3), (2, 4)])
@pytest.mark.parametrize("before", [0, 1])
def test_the_first_window_fails_no_call_of_a_tenant_that_refuses_nothing(
    latency: float, total: float, before: int
) -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session() as session:
            for number in range(before):
                await session.enable_user(f"before {number}")
            tenant.latency = latency
            ended = await asyncio.gather(*(ends(session, u, total) for u in users(600)))
        assert Counter(ended) == {"ok": 600}
        assert not session.pace.down

    run(main(), sockets=False)


def test_the_window_hurries_no_more_than_the_calls_need() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.latency = 1
        async with tenant.session() as session:
            calls = [ends(session, u, 60) for u in users(100)]
            ended = await asyncio.gather(*calls, ends(session, "last", 2))
        assert Counter(ended) == {"ok": 101}
        assert tenant.times[19] == 0  # the first twenty go out at once
        assert max(tenant.times) == pytest.approx(2 / 3, abs=0.02)  # a third of the last one's time

    run(main(), sockets=False)


def test_a_window_that_is_small_after_an_outage_is_named_with_a_time_to_come_back() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1))
        async with tenant.session() as session:
            await asyncio.gather(*(ends(session, u, 0.5) for u in users(10)))
            await asyncio.sleep(1)
            await session.enable_user("back")
            tenant.latency = 1
            policy = RetryPolicy(total=2)
            calls = (session.enable_user(u, retry=policy) for u in users(300))
            ended = await asyncio.gather(*calls, return_exceptions=True)
        refused = [error for error in ended if isinstance(error, m.RateLimitedError)]
        assert {error.refusal for error in refused} == {"slow_start"}
        assert "too many requests wait for their response to send it within 2 s" in str(refused[0])
        assert all((error.retry_after or 0) >= 1 for error in refused)
        assert session.pace.throttled == 0
        assert not session.pace.down

    run(main(), sockets=False)


@pytest.mark.parametrize(("max_rate", "refusal"), [(10, "max_rate"), (1000, "slow_start")])
def test_max_rate_is_only_named_where_it_is_the_reason(max_rate: float, refusal: str) -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1))
        async with tenant.session(max_rate) as session:
            await asyncio.gather(*(ends(session, u, 0.9) for u in users(20)))
            await asyncio.sleep(1)
            await session.enable_user("back")
            tenant.latency = 1
            ended = await asyncio.gather(*(ends(session, u, 2) for u in users(300)))
        assert {"max_rate", "slow_start"} & set(ended) == {refusal}

    run(main(), sockets=False)


def test_a_max_rate_that_leaves_no_place_is_named_although_few_requests_are_in_flight() -> None:
    async def main() -> None:
        tenant = Tenant()
        tenant.latency = 1
        async with tenant.session(200) as session:
            ended = await asyncio.gather(*(ends(session, u, 3) for u in users(1000)))
        assert {"max_rate", "slow_start"} & set(ended) == {"max_rate"}
        assert Counter(ended)["ok"] >= 400

    run(main(), sockets=False)


def test_a_request_that_had_the_rest_of_a_calls_time_is_no_news_of_the_tenant() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(10) as session:
            await session.enable_user("first")
            tenant.latency = 1
            ended = await asyncio.gather(*(ends(session, u, 3) for u in users(30)))
            assert Counter(ended)["RequestTimeoutError"] > 5
            assert not session.pace.down
            assert await ends(session, "next", 3) == "ok"

    run(main(), sockets=False)


def test_a_tenant_that_hangs_is_down_also_where_calls_queue_first() -> None:
    async def main() -> None:
        tenant = Tenant()
        async with tenant.session(10) as session:
            await session.enable_user("first")
            tenant.hangs = True
            tasks = []
            for number in range(300):  # more than max_rate allows
                tasks.append(asyncio.ensure_future(ends(session, f"u{number}", 3)))
                await asyncio.sleep(0.05)
            assert session.pace.down
            await asyncio.wait(tasks)

    run(main(), sockets=False)


def test_who_waits_for_a_probe_that_hangs_is_told_so_and_when_to_come_back() -> None:
    async def main() -> None:
        tenant, session = paused(1)
        tenant.hangs = True
        probe = asyncio.ensure_future(ends(session, "probe", 10))
        await asyncio.sleep(2)
        with pytest.raises(m.RateLimitedError) as caught:
            await session.enable_user("ada", retry=RetryPolicy(total=3))
        assert now() == pytest.approx(5)
        assert (caught.value.refusal, caught.value.retry_after) == ("probe", 0.5)
        assert "after a pause, the response to the first request has not arrived within 3 s" in str(
            caught.value
        )
        await probe

    run(main(), sockets=False)


def test_who_waited_for_a_tenant_that_is_down_is_told_that_and_of_no_pause() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1000))
        async with tenant.session() as session:
            policy = RetryPolicy(total=30, wait_if_down=True)
            calls = (session.enable_user(u, retry=policy) for u in users(20))
            ended = await asyncio.gather(*calls, return_exceptions=True)
        waited = [error for error in ended if isinstance(error, m.MonoCloudError) and error.refusal]
        assert waited
        assert {(type(error), error.refusal) for error in waited} == {(m.ServerError, "down")}

    run(main(), sockets=False)
