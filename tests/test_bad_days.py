"""Runs and single calls against a tenant that throttles, is down, or refuses the key."""

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Send, adds_up, bulk
from tenants import Bucket
from terminal import PROGRAM
from virtual_time import run

import monocloud_async as m
from monocloud_async import BulkReport, MonoCloudSession, Outcome, RetryPolicy, User
from monocloud_async.endpoint import ENABLE, Operation
from monocloud_async.ratelimit.limiter import RateLimiter


def now() -> float:
    return asyncio.get_running_loop().time()


class Tenant:
    """A tenant in virtual time: 20 ms for each request, a rate limit, and outages."""

    def __init__(self, limit: Bucket | None = None, *, down: tuple[float, float] = (0, 0)) -> None:
        self.limit = limit
        self.down = down
        self.sent: list[tuple[float, str]] = []
        self.failing: Callable[[str], bool] = lambda _user_id: False

    async def send(self, user_id: str, _seconds: float) -> User:
        self.sent.append((now(), user_id))
        await asyncio.sleep(0.02)
        if self.down[0] <= now() < self.down[1]:
            raise m.TransportError("refused", user_id=user_id, sent=False)
        if self.failing(user_id):
            raise m.ServerError(status=503, user_id=user_id)
        if self.limit is not None and (wait := self.limit.take(now())) is not None:
            raise m.RateLimitedError(status=429, user_id=user_id, retry_after=wait)
        return User(user_id=user_id)

    def session(self, max_rate: float | None = None) -> MonoCloudSession:
        return Session(self.send, max_rate)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.sent]


class Session(MonoCloudSession):
    """Return a session whose requests go to a tenant in memory."""

    def __init__(self, answer: Send, max_rate: float | None) -> None:
        super().__init__("acme.eu.monocloud.com", "k", max_rate=max_rate)
        self._answer = answer

    async def _send(self, operation: Operation, user_id: str, timeout: float) -> User:
        assert operation is ENABLE
        return await self._answer(user_id, timeout)


def users(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]


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


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "fast"])
async def test_a_max_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(m.ConfigurationError, match="max_rate"):
        MonoCloudSession("acme.eu.monocloud.com", "k", max_rate=rate)
    async with MonoCloudSession("acme.eu.monocloud.com", "k") as session:
        with pytest.raises(m.ConfigurationError, match="max_rate"):
            session.bulk_enable(["u"], max_rate=rate)


# The tenant's limit


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


def test_a_quarter_of_an_hour_of_429s_stops_the_run() -> None:
    async def main() -> None:
        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.02)
            if now() > 3:
                raise m.RateLimitedError(status=429, retry_after=200)
            return User(user_id=user_id)

        with pytest.raises(m.RunStoppedError, match="it would have to wait over 900 s") as caught:
            await bulk(users(10_000), send)
        assert 600 < now() < 900
        assert adds_up(caught.value.report)
        assert caught.value.report.not_attempted == 10

    run(main(), sockets=False)


def test_waiting_in_the_queue_is_no_retry_time() -> None:
    async def main() -> None:
        answers = {"a": [503, 503], "b": [429]}

        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.02)
            match answers.get(user_id):
                case [503, *rest]:
                    answers[user_id] = rest
                    raise m.ServerError(status=503)
                case [429]:
                    del answers[user_id]
                    raise m.RateLimitedError(status=429, retry_after=100)
            return User(user_id=user_id)

        report = await bulk(["x", "a", "b"], send, policy=RetryPolicy(total=10))
        assert (report.enabled, report.retries) == (3, 2)
        assert now() > 100

    run(main(), sockets=False)


# Outages


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
        assert after[20] - after[0] > 0.3  # gently

    run(main(), sockets=False)


def test_with_retries_an_outage_costs_no_user_anything() -> None:
    async def main() -> None:
        tenant = Tenant(down=(10, 130))
        report = await bulk(users(20_000), tenant.send, concurrency=20)
        assert report.enabled == 20_000
        assert report.retries < 60

    run(main(), sockets=False)


def test_an_outage_that_lasts_too_long_stops_the_run() -> None:
    async def main() -> None:
        tenant = Tenant(down=(2, 1e9))
        source = iter(users(20_000))
        with pytest.raises(m.RunStoppedError, match="the tenant is down for 60 s") as caught:
            await bulk(source, tenant.send, max_outage=60)
        report = caught.value.report
        assert 60 < now() < 70
        assert (report.failed, report.unknown, report.not_attempted) == (0, 0, 10)
        assert adds_up(report)
        assert next(source) == f"u{report.total}"

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


def test_single_calls_do_not_multiply_the_load_of_a_broken_tenant() -> None:
    async def main() -> None:
        tenant = Tenant(down=(0, 1e9))
        async with tenant.session() as session:
            for user_id in users(200):
                with pytest.raises(m.TransportError):
                    await session.enable_user(user_id)
            assert len(tenant.sent) == 200 + 500 // 14
            tenant.down = (0, 0)
            for user_id in users(28):
                await session.enable_user(user_id)
            tenant.down, before = (0, 1e9), len(tenant.sent)
            for user_id in users(10):
                with pytest.raises(m.TransportError):
                    await session.enable_user(user_id)
            assert len(tenant.sent) - before == 12  # 10 left over and 28 earned buy two

    run(main(), sockets=False)


# What stops a run


async def barred_after(count: int, error: m.MonoCloudError, total: int) -> BulkReport:
    left = count

    async def send(user_id: str, _seconds: float) -> User:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return User(user_id=user_id)

    return await bulk(users(total), send, concurrency=1)


@pytest.mark.parametrize(
    "error",
    [
        m.ForbiddenError(status=403),
        m.InvalidResponseError("redirect", status=302, foreign=True),
    ],
)
async def test_a_hundred_answers_in_a_row_that_no_user_is_to_blame_for_stop_the_run(
    error: m.MonoCloudError,
) -> None:
    report = await barred_after(5, error, 104)
    assert (report.enabled, report.failed) == (5, 99)
    with pytest.raises(m.RunStoppedError, match="last 100 answers were all like this") as caught:
        await barred_after(5, error, 10_000)
    assert caught.value.report.total == 105


async def test_a_certificate_or_host_that_does_not_fit_stops_the_first_call_only() -> None:
    error = m.TransportError(
        "the certificate is for another host", sent=False, transient=False, lasting=True
    )
    with pytest.raises(m.RunStoppedError, match="certificate") as caught:
        await barred_after(0, error, 10)
    assert caught.value.report.requests == 1
    report = await barred_after(1, error, 10)
    assert (report.enabled, report.total) == (1, 10)


# Random responses


ANSWER = st.sampled_from(["ok", "ok", "ok", "404", "429", "429 for 5 s", "503", "reset"])


@settings(max_examples=60, deadline=None)
@given(
    answers=st.lists(ANSWER, max_size=150),
    concurrency=st.integers(1, 12),
    stop=st.sampled_from([None, None, "drain", "cancel"]),
)
def test_no_user_is_lost_or_told_twice(
    answers: list[str], concurrency: int, stop: str | None
) -> None:
    async def main() -> None:
        left = iter(answers)
        done: Counter[str] = Counter()

        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.02)
            match next(left, "ok"):
                case "404":
                    raise m.NotFoundError(status=404)
                case "503":
                    raise m.ServerError(status=503)
                case "reset":
                    raise m.TransportError("reset")
                case "429":
                    raise m.RateLimitedError(status=429)
                case "429 for 5 s":
                    raise m.RateLimitedError(status=429, retry_after=5)
            done[user_id] += 1
            return User(user_id=user_id)

        outcomes: list[Outcome] = []
        running = bulk(users(60), send, concurrency=concurrency, on_outcome=outcomes.append)
        task = asyncio.ensure_future(running)
        if stop:
            await asyncio.sleep(1)
            getattr(running, stop)()
        report = await task
        assert sorted(o.position for o in outcomes) == list(range(report.total))
        assert adds_up(report)
        assert {o.user_id for o in outcomes if o.status == "enabled"} <= set(done)
        assert all(count == 1 for count in done.values())
        assert report.requests >= report.total - report.not_attempted
        if stop is None:
            assert (report.total, report.exhausted) == (60, True)
            assert report.not_attempted == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(), sockets=False)


# A drill: a real process, killed in the middle


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.005)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_run_survives_a_tenant_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    database, ids = tmp_path / "tenant.db", tmp_path / "ids.txt"
    first = subprocess.Popen(
        [*PROGRAM, "sandbox", "--db", database, "--users", "3000", "--port", "0", "--ids", ids],
        stdout=subprocess.PIPE,
        text=True,
    )
    second: subprocess.Popen[str] | None = None
    with first:
        url = url_of(first)

        async def drill() -> BulkReport:
            nonlocal second
            policy = RetryPolicy(wait_initial=0.05, wait_max=0.1)
            async with MonoCloudSession(url, "sandbox-key", retry=policy) as session:
                running = session.bulk_enable(ids.read_text().split(), concurrency=50)
                task = asyncio.ensure_future(running)
                await until(lambda: running.report.enabled > 500)
                first.send_signal(signal.SIGKILL)
                first.wait()
                before = running.report.requests
                await until(lambda: session.pace.down)
                await asyncio.sleep(2)  # in which it probes
                assert running.report.requests - before < 60 + 50  # 50 were in flight
                second = await asyncio.to_thread(again)
                return await task

        def again() -> subprocess.Popen[str]:
            port = url.rpartition(":")[2].strip("/")
            process = subprocess.Popen(
                [*PROGRAM, "sandbox", "--db", database, "--port", port],
                stdout=subprocess.PIPE,
                text=True,
            )
            url_of(process)
            return process

        try:
            report = asyncio.run(drill())
        finally:
            if second is not None:
                second.terminate()
                second.communicate()
    assert (report.total, report.enabled, report.exhausted) == (3000, 3000, True)
