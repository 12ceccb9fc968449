"""Which answers end a whole run, and which are their user's own failure."""

import asyncio

import pytest
from conftest import QUICK
from runs import adds_up, bulk, throttling
from tenant_in_memory import Tenant, now, users
from virtual_time import run

import monocloud_async as m
from monocloud_async import BulkReport, MonoCloudSession, User
from monocloud_async.sandbox import Sandbox


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


async def blocked_after(count: int, error: m.MonoCloudError, total: int) -> BulkReport:
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
    report = await blocked_after(5, error, 104)
    assert (report.enabled, report.failed) == (5, 99)
    with pytest.raises(m.RunStoppedError, match="last 100 answers were all like this") as caught:
        await blocked_after(5, error, 10_000)
    assert caught.value.report.total == 105


async def test_a_certificate_or_host_that_does_not_fit_stops_the_first_call_only() -> None:
    error = m.TransportError(
        "the certificate is for another host", sent=False, transient=False, lasting=True
    )
    with pytest.raises(m.RunStoppedError, match="certificate") as caught:
        await blocked_after(0, error, 10)
    assert caught.value.report.requests == 1
    report = await blocked_after(1, error, 10)
    assert (report.enabled, report.total) == (1, 10)


STOPPING = [
    m.UnauthorizedError(status=401),
    m.PaymentRequiredError(status=402),
    m.ForbiddenError(status=403),
    m.InvalidResponseError("a redirect", status=302, foreign=True),
    m.TransportError("certificate", sent=False, transient=False, lasting=True),
]


@pytest.mark.parametrize("refusal", STOPPING, ids=lambda e: type(e).__name__)
async def test_a_refused_key_costs_one_request(refusal: m.MonoCloudError) -> None:
    async def send(_user_id: str, _seconds: float) -> User:
        raise refusal

    source = iter([f"u{i}" for i in range(100)])
    with pytest.raises(m.RunStoppedError, match=r"stopped \(ids read: 1\): ") as caught:
        await bulk(source, send)
    report = caught.value.report
    assert caught.value.__cause__ is refusal
    assert (report.total, report.requests, report.failed) == (1, 1, 1)
    assert not report.exhausted
    assert next(source) == "u1"


async def test_a_wrong_key_stops_a_run_against_a_real_tenant(sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, "wrong", retry=QUICK) as session:
        with pytest.raises(m.RunStoppedError, match=r"401 Unauthorized.*API key"):
            await session.bulk_enable(sandbox.user_ids())
    assert sandbox.stats().requests == 1


async def test_a_key_refused_in_the_middle_lets_calls_in_flight_finish(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    sandbox.latency = 0.01
    ids = sandbox.user_ids()
    sandbox.script(ids[8], 401)
    with pytest.raises(m.RunStoppedError) as caught:
        async with session.bulk_enable(ids, concurrency=3) as running:
            async for _ in running:
                pass
    report = caught.value.report
    assert (report.failed, report.unknown, report.not_attempted) == (1, 0, 0)
    assert report.enabled == report.total - 1 == sandbox.stats().users["enabled"]
    assert report.total < 15
    assert adds_up(report)


async def test_later_403s_and_pages_of_html_fail_only_their_user() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        if user_id == "b":
            raise m.ForbiddenError(status=403)
        if user_id == "c":
            raise m.InvalidResponseError("html", status=200, foreign=True)
        return User(user_id=user_id)

    report = await bulk(["a", "b", "c", "d"], send)
    assert (report.enabled, report.failed) == (2, 2)


def test_a_tenant_that_asks_for_too_long_a_pause_stops_the_run() -> None:
    async def main() -> None:
        send, sent = throttling({"u3": [901.0]})
        with pytest.raises(m.RunStoppedError, match="429") as caught:
            await bulk([f"u{i}" for i in range(99)], send, concurrency=4)
        assert caught.value.report.not_attempted == 1
        assert adds_up(caught.value.report)
        assert len(sent) < 12

    run(main(), sockets=False)


ALWAYS = [
    m.UnauthorizedError(status=401),
    m.PaymentRequiredError(status=402),
    m.ConfigurationError("the borrowed client_session is closed"),
    m.TransportError("the session was closed", transient=False, lasting=True),
]


@pytest.mark.parametrize("error", ALWAYS, ids=lambda e: type(e).__name__)
async def test_what_concerns_all_users_stops_the_run_whenever_it_comes(
    error: m.MonoCloudError,
) -> None:
    with pytest.raises(m.RunStoppedError, match=r"stopped \(ids read: 6\): ") as caught:
        await blocked_after(5, error, 10)
    assert caught.value.__cause__ is error
    assert caught.value.report.enabled == 5


@pytest.mark.parametrize("between", ["enabled", "404"])
async def test_only_a_row_without_any_other_answer_counts(between: str) -> None:
    answered = 0

    async def send(user_id: str, _seconds: float) -> User:
        nonlocal answered
        answered += 1
        if answered == 1:
            return User(user_id=user_id)
        if answered != 100:
            raise m.ForbiddenError(status=403)
        if between == "404":
            raise m.NotFoundError(status=404)
        return User(user_id=user_id)

    report = await bulk(users(199), send, concurrency=1)
    assert report.total == 199
    assert report.failed == 197 + (between == "404")
