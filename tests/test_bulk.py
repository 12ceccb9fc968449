import asyncio
import gc
import pickle
import statistics
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from conftest import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Send, adds_up, bulk, enable
from virtual_time import run

import monocloud_async as m
from monocloud_async import (
    BulkReport,
    ConfigurationError,
    MonoCloudSession,
    Outcome,
    RetryPolicy,
    User,
)
from monocloud_async.journal.file import JournalFile
from monocloud_async.sandbox import Sandbox


async def test_everybody_is_enabled_and_counted(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    ids = sandbox.user_ids()
    report = await session.bulk_enable(ids)
    assert sandbox.stats().users == {"enabled": 20, "disabled": 0}
    assert (report.total, report.enabled, report.requests, report.retries) == (20, 20, 20, 0)
    assert (report.exhausted, report.failures, report.throttled) == (True, [], 0)
    assert report.seconds > 0
    assert adds_up(report)


async def test_one_users_failure_is_a_value(sandbox: Sandbox, session: MonoCloudSession) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[1], *[503] * 4)
    sandbox.script(ids[2], "422:identity")
    sandbox.script(ids[3], "html")
    sandbox.script(ids[4], *["reset"] * 8)  # a reused connection is tried twice
    sandbox.script(ids[5], 403)
    report = await session.bulk_enable([*ids, "nobody", "", "a\nb"])
    assert (report.total, report.enabled, report.failed, report.unknown) == (23, 15, 7, 1)
    assert adds_up(report)
    found = {o.user_id: (o.status, type(o.error), o.attempts) for o in report.failures}
    assert found == {
        ids[1]: ("failed", m.ServerError, 4),
        ids[2]: ("failed", m.IdentityValidationError, 1),
        ids[3]: ("failed", m.InvalidResponseError, 1),
        ids[4]: ("unknown", m.TransportError, 4),
        ids[5]: ("failed", m.ForbiddenError, 1),
        "nobody": ("failed", m.NotFoundError, 1),
        "": ("failed", m.InvalidUserIdError, 0),
        "a\nb": ("failed", m.InvalidUserIdError, 0),
    }
    assert all(o.error is not None and o.error.__traceback__ is None for o in report.failures)


@pytest.mark.parametrize(
    ("then", "status"),
    [
        (m.ServerError(status=503), "unknown"),
        (m.InvalidResponseError("a page of HTML", status=200, foreign=True), "unknown"),
        (m.TransportError("refused", sent=False), "unknown"),
        (m.NotFoundError(status=404), "failed"),
        (m.UnprocessableError(status=422), "failed"),
    ],
)
async def test_who_was_not_answered_is_unknown_until_the_tenant_says_no(
    then: m.MonoCloudError, status: str
) -> None:
    errors = [m.TransportError("reset"), then]

    async def send(user_id: str, seconds: float) -> User:
        if user_id == "x" and errors:
            raise errors.pop(0)
        return await enable(user_id, seconds)

    seen: dict[str, Outcome] = {}
    policy = RetryPolicy(attempts=2, wait_initial=0.001)
    await bulk(
        ["a", "x"],
        send,
        policy=policy,
        on_outcome=lambda outcome: seen.update({outcome.user_id: outcome}),
    )
    assert (seen["x"].status, seen["x"].error) == (status, then)


async def test_outcomes_come_as_they_finish() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0.03 if user_id == "slow" else 0)
        return User(user_id=user_id, disabled=user_id == "b")

    seen: list[Outcome] = []
    async with bulk(["a", "slow", "b", "c"], send, on_outcome=seen.append) as running:
        order = [outcome async for outcome in running]
    assert [o.user_id for o in order] == ["a", "b", "c", "slow"]
    assert [o.position for o in order] == [0, 2, 3, 1]
    assert seen == order
    assert order[-1].seconds >= 0.03
    assert running.report.unconfirmed == 1
    assert order[0].user == User(user_id="a", disabled=False)


async def async_ids(count: int) -> AsyncIterator[str]:
    for number in range(count):
        await asyncio.sleep(0)
        yield f"u{number}"


@pytest.mark.parametrize("count", [0, 1, 5, 300])
async def test_async_iterables_are_read_too(count: int) -> None:
    report = await bulk(async_ids(count), enable)
    assert (report.total, report.enabled, report.exhausted) == (count, count, True)


async def test_the_server_sees_at_most_concurrency_requests(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    sandbox.latency = 0.005
    await session.bulk_enable(sandbox.user_ids() * 3, concurrency=7)
    assert 1 < sandbox.stats().peak_in_flight <= 7


async def test_the_first_call_goes_alone() -> None:
    order: list[str] = []

    async def send(user_id: str, _seconds: float) -> User:
        order.append(f"> {user_id}")
        await asyncio.sleep(0.01)
        order.append(f"< {user_id}")
        return User(user_id=user_id)

    await bulk(["a", "b", "c"], send)
    assert order == ["> a", "< a", "> b", "> c", "< b", "< c"]


async def test_a_first_call_that_must_retry_does_not_hold_the_others_up() -> None:
    answers = iter([m.ServerError(status=503, retry_after=50)])

    async def send(user_id: str, _seconds: float) -> User:
        for error in answers:
            raise error
        return User(user_id=user_id)

    async with bulk(["a", "b", "c"], send) as running:
        assert {(await anext(running)).user_id for _ in range(2)} == {"b", "c"}


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


async def test_leaving_early_cancels_what_is_in_flight_and_leaves_no_task(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    sandbox.latency = 0.02
    before = asyncio.all_tasks()
    async with session.bulk_enable(sandbox.user_ids(), concurrency=5) as running:
        async for outcome in running:
            assert outcome.status == "enabled"
            break
    ours = {t for t in asyncio.all_tasks() - before if "BulkRun" in repr(t)}
    assert ours == set()
    seen = sandbox.stats().requests
    await asyncio.sleep(0.05)
    assert sandbox.stats().requests == seen
    assert running.report.unknown > 0
    assert adds_up(running.report)


# A task that is cancelled before its first step has not awaited it.
@pytest.mark.filterwarnings("ignore:bulk_enable was never awaited:RuntimeWarning")
@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_cancelled_run_counts_everybody_and_leaves_no_task(turns: int) -> None:
    async def main() -> None:
        running = bulk([f"u{i}" for i in range(50)], enable, concurrency=4)
        before = asyncio.all_tasks()

        async def wait() -> BulkReport:
            return await running

        task = asyncio.create_task(wait())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        assert adds_up(running.report)
        assert running.report.enabled == 0

    run(main(), sockets=False)  # where iterations of the event loop take no time


@pytest.mark.parametrize(
    ("data", "most"),
    [({"note": "x" * 190_000}, 100), ({"note": "\U0001f600" * 47_000}, 100), ([[]] * 60_000, 10)],
)
async def test_what_waits_for_a_slow_consumer_is_bounded_in_bytes(data: object, most: int) -> None:
    body = msgspec.json.encode({"user_id": "u", "private_data": {"x": data}})

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return msgspec.json.decode(body, type=User)

    async with bulk((f"u{number}" for number in range(2000)), send, concurrency=1000) as running:
        told = []
        async for outcome in running:
            told.append(outcome.user_id)
            if len(told) < 5:
                await asyncio.sleep(0.05)
                assert running.report.enabled - len(told) < most
            if len(told) == 300:
                break
    assert len(set(told)) == 300


async def test_one_large_user_does_not_hold_up_who_comes_after() -> None:
    large = User(user_id="u0", private_data={"x": [[]] * 600_000})

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return large if user_id == "u0" else User(user_id=user_id)

    async with bulk((f"u{number}" for number in range(500)), send, concurrency=100) as running:
        assert len([outcome async for outcome in running]) == 500


async def agen(ids: list[str]) -> AsyncIterator[str]:
    for user_id in ids:
        yield user_id


@pytest.mark.skipif(sys.version_info < (3, 12), reason="it came with Python 3.12")
@pytest.mark.parametrize(("users", "concurrency"), [(0, 100), (50, 100), (600, 100), (600, 500)])
@pytest.mark.parametrize("form", [list, agen])
async def test_tasks_that_begin_at_once_change_nothing(
    form: Callable[[list[str]], AsyncIterator[str]],
    users: int,
    concurrency: int,
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    with Sandbox(users=users) as sandbox:
        ids = sandbox.user_ids()
        async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
            report = await session.bulk_enable(form(ids), concurrency=concurrency)
            assert (report.enabled, report.total, report.requests) == (users, users, users)
            async with session.bulk_enable(form(ids), concurrency=concurrency) as running:
                told = [outcome.user_id async for outcome in running]
            assert sorted(told) == sorted(ids)
            for before in (0, users):
                running = session.bulk_enable(form(ids), journal=tmp_path / "run.journal")
                assert (await running).already_enabled == before
            await asyncio.gather(*map(session.enable_user, ids[:50]))
    assert len(asyncio.all_tasks()) == 1


def test_the_seconds_of_a_report_are_live_and_never_go_back() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0.5)
        if user_id == "u3" and asyncio.get_running_loop().time() < 3:
            raise m.RateLimitedError(status=429, user_id=user_id, retry_after=10)
        return User(user_id=user_id)

    async def main() -> None:
        running = bulk([f"u{number}" for number in range(6)], send, concurrency=1)
        report = running.report
        assert (report.seconds, report.paused_seconds) == (0, 0)
        async with running:
            seen = [(report.seconds, report.paused_seconds) async for _ in running]
            kept = pickle.loads(pickle.dumps(report))  # noqa: S301  our own bytes
        assert [seconds for seconds, _ in seen[:3]] == pytest.approx([0.5, 1.0, 1.5])
        assert seen[2][1] == 0
        assert seen[3][1] > 9
        for figure in zip(*seen, strict=True):
            assert list(figure) == sorted(figure)
        await asyncio.sleep(5)
        assert (report.seconds, report.paused_seconds) == (kept.seconds, kept.paused_seconds)

    run(main(), sockets=False)


async def test_a_report_that_is_pickled_while_its_run_goes_on_stands_still() -> None:
    async with bulk(["a", "b"], enable) as running:
        async for _ in running:
            copy = pickle.loads(pickle.dumps(running.report))  # noqa: S301  our own bytes
            assert 0 < copy.seconds <= running.report.seconds
            assert copy.stopwatch.running is None


async def test_a_consumer_that_stalls_stalls_admission() -> None:
    read = 0

    def ids() -> Iterator[str]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield f"u{number}"

    async def quick(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        return User(user_id=user_id)

    async with bulk(ids(), quick, concurrency=5) as running:
        await anext(running)
        await asyncio.sleep(0.05)
        assert read <= 6
        count = 1 + len([outcome async for outcome in running])
    assert count == read == 1000


async def test_an_input_that_raises_loses_no_outcome() -> None:
    def ids() -> Iterator[str]:
        yield from ["a", "b", "c"]
        raise OSError("disk gone")

    running = bulk(ids(), enable)
    with pytest.raises(OSError, match="disk gone"):
        await running
    assert (running.report.enabled, running.report.exhausted) == (3, False)

    outcomes: list[str] = []
    with pytest.raises(OSError, match="disk gone"):
        async with bulk(ids(), enable) as streamed:
            async for outcome in streamed:
                outcomes.append(outcome.user_id)  # noqa: PERF401  what came before the error counts
    assert sorted(outcomes) == ["a", "b", "c"]


async def test_an_input_that_raised_is_not_asked_again() -> None:
    asked = 0

    class Ids:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            nonlocal asked
            asked += 1
            if asked == 50:
                raise OSError("disk gone")
            return f"u{asked}"

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)  # so that several calls end in one iteration of the event loop
        return User(user_id=user_id)

    running = bulk(Ids(), send)
    with pytest.raises(OSError, match="disk gone"):
        await running
    assert (asked, running.report.enabled) == (50, 49)


async def test_an_async_input_that_raises_loses_no_outcome_and_is_closed() -> None:
    closed = False

    async def ids() -> AsyncIterator[str]:
        nonlocal closed
        try:
            yield "a"
            yield "b"
            raise LookupError("cursor lost")
        finally:
            closed = True

    running = bulk(ids(), enable)
    with pytest.raises(LookupError):
        await running
    assert running.report.enabled == 2
    assert closed


async def test_an_error_of_on_outcome_ends_the_run_and_comes_out() -> None:
    def explode(_outcome: Outcome) -> None:
        raise ZeroDivisionError

    before = asyncio.all_tasks()
    running = bulk([f"u{i}" for i in range(99)], enable, on_outcome=explode)
    with pytest.raises(ZeroDivisionError):
        await running
    assert asyncio.all_tasks() == before
    assert adds_up(running.report)


def throttling(waits: dict[str, list[float | None]]) -> tuple[Send, list[tuple[float, str]]]:
    sent: list[tuple[float, str]] = []

    async def send(user_id: str, seconds: float) -> User:
        sent.append((asyncio.get_running_loop().time(), user_id))
        await asyncio.sleep(0.02)
        if waits.get(user_id):
            raise m.RateLimitedError(status=429, retry_after=waits[user_id].pop(0))
        return User(user_id=user_id)

    return send, sent


def test_a_429_pauses_everybody_and_spends_no_attempt_of_that_user() -> None:
    async def main() -> None:
        send, sent = throttling({"u5": [30.0] * 8})
        report = await bulk([f"u{i}" for i in range(40)], send, policy=RetryPolicy(attempts=1))
        assert (report.enabled, report.failed) == (40, 0)
        assert (report.throttled, report.retries, report.requests) == (8, 0, 48)
        times = [at for at, _ in sent]
        pauses = [b - a for a, b in pairwise(times) if b - a > 2]
        assert len(pauses) == 8
        assert min(pauses) >= 29.9

    run(main(), sockets=False)


def test_a_429_without_retry_after_pauses_for_a_growing_time() -> None:
    async def main() -> None:
        send, sent = throttling({"u0": [None] * 5})
        report = await bulk(["u0"], send)
        assert report.enabled == 1
        gaps = [b - a for (a, _), (b, _) in pairwise(sent)]
        guesses = [0.5 * 1.3**place for place in range(5)]
        assert gaps == pytest.approx([guess + 0.03 for guess in guesses], abs=0.0101)  # the jitter

    run(main(), sockets=False)


def test_a_tenant_that_asks_for_too_long_a_pause_stops_the_run() -> None:
    async def main() -> None:
        send, sent = throttling({"u3": [901.0]})
        with pytest.raises(m.RunStoppedError, match="429") as caught:
            await bulk([f"u{i}" for i in range(99)], send, concurrency=4)
        assert caught.value.report.not_attempted == 1
        assert adds_up(caught.value.report)
        assert len(sent) < 12

    run(main(), sockets=False)


def test_time_spent_paused_is_no_retry_time() -> None:
    async def main() -> None:
        send, _sent = throttling({"a": [100.0] * 5})
        report = await bulk(["a"], send, policy=RetryPolicy(total=10.0))
        assert report.enabled == 1

    run(main(), sockets=False)


async def test_draining_finishes_what_is_in_flight_and_reads_no_more() -> None:
    release = asyncio.Event()

    async def send(user_id: str, _seconds: float) -> User:
        if user_id != "u0":
            await release.wait()
        return User(user_id=user_id)

    source = iter([f"u{i}" for i in range(100)])
    async with bulk(source, send, concurrency=4) as running:
        await anext(running)
        await asyncio.sleep(0.01)
        assert running.in_flight == 4
        running.drain()
        release.set()
        assert len([outcome async for outcome in running]) == 4
    assert (running.report.enabled, running.report.exhausted) == (5, False)
    assert next(source) == "u5"


def test_draining_does_not_sit_out_a_pause() -> None:
    async def main() -> None:
        send, _sent = throttling({"u1": [600.0], "u2": [600.0]})
        running = bulk([f"u{i}" for i in range(9)], send, concurrency=2)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(10)
        assert 580 < running.pace.pause_left < 600
        running.drain()
        report = await task
        assert asyncio.get_running_loop().time() < 11
        assert (report.total, report.enabled, report.not_attempted) == (3, 1, 2)

    run(main(), sockets=False)


def test_draining_ends_a_call_that_waits_to_retry_with_its_error() -> None:
    async def main() -> None:
        async def send(user_id: str, _seconds: float) -> User:
            await asyncio.sleep(0.01)
            raise m.ServerError(status=503, retry_after=40)

        running = bulk(["a", "b"], send)
        task = asyncio.ensure_future(running)
        await asyncio.sleep(5)
        running.drain()
        report = await task
        assert Counter(type(o.error) for o in report.failures) == {m.ServerError: 2}
        assert report.failed == 2

    run(main(), sockets=False)


async def test_cancelling_makes_calls_in_flight_unknown_and_ends_the_run() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        if user_id != "u0":
            await asyncio.Event().wait()
        return User(user_id=user_id)

    async with bulk((f"u{i}" for i in range(100)), send, concurrency=4) as running:
        await anext(running)
        await asyncio.sleep(0.01)
        running.cancel()
        outcomes = [outcome async for outcome in running]
    assert [o.status for o in outcomes] == ["unknown"] * 4
    assert (running.report.enabled, running.report.unknown) == (1, 4)


async def test_memory_does_not_grow_with_the_input() -> None:
    async def quick(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        raise m.NotFoundError(status=404, user_id=user_id)

    async def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            await bulk((f"user-{i}" for i in range(count)), quick, concurrency=20)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak(100)
    assert await peak(6000) < 1.6 * await peak(2000)  # both keep a thousand failures


async def test_refused_ids_give_others_a_turn() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await bulk([""] * 5000, enable)
    ticking.cancel()
    assert ticks > 10


@pytest.mark.parametrize("concurrency", [0, -1, 1.5])
def test_a_concurrency_that_makes_no_sense_is_refused(concurrency: int) -> None:
    with pytest.raises(m.ConfigurationError, match="concurrency"):
        bulk([], enable, concurrency=concurrency)


@pytest.mark.parametrize("ids", ["one-id", b"x", 5])
def test_what_is_not_many_ids_is_refused(ids: list[str]) -> None:
    with pytest.raises(m.ConfigurationError, match="user_ids"):
        bulk(ids, enable)


async def test_a_run_is_started_once_and_iterated_inside_its_block() -> None:
    running = bulk(["a"], enable)
    with pytest.raises(m.ConfigurationError, match="async with"):
        await anext(running)
    await running
    with pytest.raises(m.ConfigurationError, match="started before"):
        await running


async def test_the_end_of_a_stream_stays_the_end() -> None:
    async with bulk(["a"], enable) as running:
        assert [o.user_id async for o in running] == ["a"]
        assert [o.user_id async for o in running] == []


async def test_a_borrowed_connector_bounds_the_concurrency(sandbox: Sandbox) -> None:
    import aiohttp  # noqa: PLC0415  the only test here that needs it

    sandbox.latency = 0.005
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=3)) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, client_session=client)
        await session.bulk_enable(sandbox.user_ids(), timeout=5, retry=QUICK)
    assert sandbox.stats().peak_in_flight <= 3


ANSWERS = st.sampled_from(
    [
        None,
        m.NotFoundError(status=404),
        m.ServerError(status=503),
        m.RateLimitedError(status=429),
        m.RateLimitedError(status=429, retry_after=2),
        m.TransportError("reset"),
        m.TransportError("refused", sent=False),
        m.InvalidResponseError("html", status=200, foreign=True),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ANSWERS, max_size=6), max_size=30), st.integers(1, 6))
def test_nobody_is_lost_or_answered_twice(
    scripts: list[list[m.MonoCloudError | None]], concurrency: int
) -> None:
    async def main() -> None:
        left = {f"u{i}": list(script) for i, script in enumerate(scripts)}
        requests = 0
        ends: Counter[str] = Counter()

        async def send(user_id: str, _seconds: float) -> User:
            nonlocal requests
            requests += 1
            await asyncio.sleep(0.01)
            answer = left[user_id].pop(0) if left[user_id] else None
            if answer is not None:
                raise answer
            return User(user_id=user_id)

        running = bulk(
            list(left),
            send,
            concurrency=concurrency,
            on_outcome=lambda outcome: ends.update([outcome.user_id]),
        )
        try:
            report = await running
            assert report.total == len(scripts)
        except m.RunStoppedError as stopped:
            report = stopped.report
        assert adds_up(report)
        assert report.requests == requests
        assert max(ends.values(), default=1) == 1
        assert sum(ends.values()) == report.total

    run(main(), sockets=False)


def test_a_run_that_was_held_up_is_soon_back_at_its_concurrency() -> None:
    """Workers do not take ids one per iteration of the event loop."""
    in_flight, seen = 0, []

    class LateJournal:
        async def enabled(self, _position: int, _user_id: str, /) -> bool:
            return False

        async def write(self, _outcomes: Sequence[Outcome], /) -> None:
            await asyncio.sleep(0.3)

    async def send(user_id: str, seconds: float) -> User:
        nonlocal in_flight
        in_flight += 1
        seen.append(in_flight)
        if len(seen) < 500:  # while the journal is late repeatedly
            await enable(user_id, seconds)
        else:
            for _ in range(5):
                await asyncio.sleep(0)
        in_flight -= 1
        return User(user_id=user_id)

    async def main() -> None:
        ids = [f"u{number}" for number in range(3000)]
        assert (await bulk(ids, send, concurrency=20, journal=LateJournal())).enabled == 3000

    run(main(), sockets=False)
    assert max(seen) == 20
    assert statistics.mean(seen[1000:-100]) > 15


# What belongs to one task


async def test_an_async_input_is_read_and_closed_by_one_task() -> None:
    """An iterator may hold what belongs to a task: a timeout, a task group, a cursor."""
    tasks = set()

    async def ids() -> AsyncIterator[str]:
        try:
            for number in range(20):
                tasks.add(asyncio.current_task())
                yield f"u{number}"
        finally:
            tasks.add(asyncio.current_task())

    assert (await bulk(ids(), enable, concurrency=3)).enabled == 20
    async with bulk(ids(), enable, concurrency=3) as early:
        await anext(early)
    assert len(tasks) == 2


@pytest.mark.parametrize("kind", ["a generator", "an async generator"])
async def test_an_input_has_a_context_of_its_own(kind: str) -> None:
    variable = ContextVar("variable", default="outside")

    def ids() -> Iterator[str]:
        token = variable.set("inside")
        for number in range(20):
            assert variable.get() == "inside"
            yield f"u{number}"
        variable.reset(token)

    async def async_ids() -> AsyncIterator[str]:
        for user_id in ids():
            yield user_id

    source = ids() if kind == "a generator" else async_ids()
    assert (await bulk(source, enable, concurrency=3)).enabled == 20
    assert variable.get() == "outside"


def test_an_input_may_bound_its_own_time() -> None:
    async def ids() -> AsyncIterator[str]:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    yield "u"
                    await asyncio.sleep(0.3)

    async def main() -> None:
        report = await bulk(ids(), enable)
        assert (report.total, report.enabled) == (4, 4)
        assert asyncio.get_running_loop().time() < 2

    run(main(), sockets=False)


async def that_cannot_be_closed() -> AsyncIterator[str]:
    try:
        for number in range(1000):
            yield f"u{number}"
    finally:
        raise OSError("the cursor is gone")


async def test_an_input_that_cannot_be_closed_ends_the_run_and_its_journal(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    running = bulk(
        that_cannot_be_closed(),
        enable,
        concurrency=3,
        journal=JournalFile(journal, "https://a.com"),
    )
    async with running:
        await anext(running)
        running.drain()
        with pytest.raises(OSError, match="the cursor is gone"):
            async with asyncio.timeout(5):
                async for _ in running:
                    pass
    with suppress(ConfigurationError):  # as it has other ids; but it is free
        await bulk(["x"], enable, journal=JournalFile(journal, "https://a.com"))


async def test_an_error_of_on_outcome_cancels_the_run_whoever_it_is_about() -> None:
    def told(outcome: Outcome) -> None:
        if outcome.status == "failed":
            raise LookupError("of the caller")

    async def never(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0 if user_id == "first" else 3600)
        return User(user_id=user_id)

    running = bulk(["first", *map(str, range(5)), "", "more"], never, on_outcome=told)
    async with asyncio.timeout(5):
        with pytest.raises(LookupError):
            await running
    assert (running.report.enabled, running.report.failed, running.report.unknown) == (1, 1, 5)


async def test_the_error_that_stopped_a_run_survives_an_input_that_cannot_be_closed() -> None:
    async def refused(user_id: str, _seconds: float) -> User:
        raise m.UnauthorizedError(status=401, user_id=user_id)

    with pytest.raises(m.RunStoppedError) as stopped:
        await bulk(that_cannot_be_closed(), refused)
    assert isinstance(stopped.value.__cause__, m.UnauthorizedError)


async def test_an_error_of_on_outcome_comes_out_also_for_who_was_cut_off() -> None:
    def told(outcome: Outcome) -> None:
        if outcome.status == "unknown":
            raise LookupError("of the caller")

    running = bulk([f"u{number}" for number in range(100)], enable, on_outcome=told)
    task = asyncio.ensure_future(running)
    await asyncio.sleep(0.03)
    running.cancel()
    with pytest.raises(LookupError):
        await task
    assert adds_up(running.report)


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_call_that_is_cancelled_by_itself_does_not_end_the_run(concurrency: int) -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        if user_id == "u7":
            raise asyncio.CancelledError
        return User(user_id=user_id)

    report = await bulk([f"u{number}" for number in range(100)], send, concurrency=concurrency)
    assert (report.total, report.enabled, report.unknown) == (100, 99, 1)
    assert report.exhausted


def test_a_forgotten_await_is_told_as_for_a_coroutine() -> None:
    with pytest.warns(RuntimeWarning, match="never awaited"):
        bulk(["ada"], enable)
    with pytest.raises(m.ConfigurationError):  # an incomplete run cannot be awaited
        bulk(["ada"], enable, concurrency=0)
