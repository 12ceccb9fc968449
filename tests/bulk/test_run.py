"""A run as a whole: everybody comes to one outcome, and it ends as it is told to."""

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from conftest import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import adds_up, bulk, enable
from tenant_in_memory import users
from virtual_time import run

import monocloud_async as m
from monocloud_async import BulkReport, MonoCloudSession, Outcome, User
from monocloud_async.sandbox import Sandbox

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


async def test_the_server_sees_at_most_concurrency_requests(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    sandbox.latency = 0.005
    await session.bulk_enable(sandbox.user_ids() * 3, concurrency=7)
    assert 1 < sandbox.stats().peak_in_flight <= 7


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
@pytest.mark.parametrize("steps", range(0, 40, 3))
def test_a_cancelled_run_counts_everybody_and_leaves_no_task(steps: int) -> None:
    async def main() -> None:
        running = bulk([f"u{i}" for i in range(50)], enable, concurrency=4)
        before = asyncio.all_tasks()

        async def wait() -> BulkReport:
            return await running

        task = asyncio.create_task(wait())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        assert adds_up(running.report)
        assert running.report.enabled == 0

    run(main(), sockets=False)  # where iterations of the event loop take no time


async def agen(ids: list[str]) -> AsyncIterator[str]:
    for user_id in ids:
        yield user_id


@pytest.mark.parametrize("how", ["cancel", "drain", "task", "all tasks"])
def test_a_user_who_was_just_read_gets_no_request_and_has_an_outcome(how: str) -> None:
    async def main() -> None:
        sent, told = list[str](), list[Outcome]()

        async def send(user_id: str, _seconds: float) -> User:
            sent.append(user_id)
            await asyncio.sleep(0.01)
            return User(user_id=user_id)

        async def source() -> AsyncIterator[str]:
            for number in range(100):
                yield f"u{number}"
                if number == 5:
                    end()  # in the step after the one in which this user was read

        def end() -> None:
            match how:
                case "cancel" | "drain":
                    getattr(running, how)()
                case "task":
                    task.cancel()
                case _:  # as `asyncio.run` does at its end
                    for each in asyncio.all_tasks() - {me}:
                        each.cancel()

        me = asyncio.current_task()
        running = bulk(source(), send, concurrency=50, on_outcome=told.append)
        task = asyncio.ensure_future(running)
        await asyncio.wait([task])
        report = running.report
        assert sorted(outcome.position for outcome in told) == list(range(report.total))
        assert adds_up(report)
        not_attempted = {o.user_id for o in told if o.status == "not_attempted"}
        assert not not_attempted & set(sent)
        assert len(sent) + len(not_attempted) == report.total >= 6

    run(main(), sockets=False)


async def test_what_on_outcome_raises_for_a_call_that_never_began_ends_the_run() -> None:
    async def source() -> AsyncIterator[str]:
        for number in range(6):
            yield f"u{number}"
        running.cancel()  # in the step after the one in which the last user was read

    def on_outcome(outcome: Outcome) -> None:
        if outcome.status == "not_attempted":
            raise LookupError(outcome.user_id)

    running = bulk(source(), enable, concurrency=50, on_outcome=on_outcome)
    with pytest.raises(LookupError, match="u"):
        await running
    assert adds_up(running.report)


@pytest.mark.parametrize("kind", [ValueError, StopIteration, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
async def test_whatever_on_outcome_raises_ends_the_run_at_once(
    kind: type[BaseException],
    is_async: bool,  # noqa: FBT001  a table
) -> None:
    def on_outcome(_: Outcome) -> None:
        raise kind

    async def source() -> AsyncIterator[str]:
        for user_id in users(100):
            yield user_id

    running = bulk(
        source() if is_async else users(100), enable, concurrency=5, on_outcome=on_outcome
    )
    expected = RuntimeError if kind is StopIteration else kind  # as Python has it
    with pytest.raises(expected):
        await running
    assert running.report.total <= 6
    assert adds_up(running.report)


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
async def test_what_on_outcome_raises_ends_a_drained_run_at_once_as_well(
    kind: type[BaseException],
) -> None:
    async def send(user_id: str, seconds: float) -> User:
        if user_id == "hangs":
            await asyncio.Event().wait()
        return await enable(user_id, seconds)

    def on_outcome(_: Outcome) -> None:
        running.drain()
        raise kind

    running = bulk(["ada", "hangs"], send, concurrency=2, on_outcome=on_outcome)
    with pytest.raises(kind):
        await running


@pytest.mark.parametrize("whose", ["user_ids", "on_outcome"])
@pytest.mark.parametrize("iterates", [False, True])
async def test_what_would_look_like_the_end_of_the_outcomes_is_an_error(
    whose: str,
    iterates: bool,  # noqa: FBT001  a table
) -> None:
    def source() -> Iterator[str]:
        yield from users(5)
        if whose == "user_ids":
            raise StopAsyncIteration  # as who reads an async iterator by hand may do

    def on_outcome(_: Outcome) -> None:
        if whose == "on_outcome":
            raise StopAsyncIteration

    running = bulk(source(), enable, on_outcome=on_outcome)
    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        if iterates:
            async with running:
                async for _ in running:
                    pass
        else:
            await running
    assert running.report.exhausted is False


@pytest.mark.parametrize("how", ["cancel", "drain", "session_closed"])
async def test_an_input_that_swallows_the_cancellation_gets_no_more_requests(how: str) -> None:
    sent, told = list[str](), list[Outcome]()

    async def send(user_id: str, _seconds: float) -> User:
        sent.append(user_id)
        return User(user_id=user_id)

    async def source() -> AsyncIterator[str]:
        yield "ada"
        with suppress(asyncio.CancelledError):
            reads.set()
            await asyncio.Event().wait()
        yield "bob"

    reads = asyncio.Event()
    running = bulk(source(), send, on_outcome=told.append)
    task = asyncio.ensure_future(running)
    await reads.wait()
    getattr(running, how)()
    await asyncio.wait([task])
    task.exception()
    assert sent == ["ada"]
    assert {o.user_id: o.status for o in told} == {"ada": "enabled", "bob": "not_attempted"}
    assert adds_up(running.report)


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
    assert [(o.status, o.attempts, o.error) for o in outcomes] == [("unknown", 1, None)] * 4
    assert (running.report.enabled, running.report.unknown) == (1, 4)


async def _end(run: m.BulkRun, how: str) -> None:
    """End a run that awaits something without end."""
    if how == "cancel":
        asyncio.get_running_loop().call_later(1, run.cancel)
        await run
        return
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            if how == "await":
                await run
            async with run:
                async for _ in run:
                    pass


@pytest.mark.parametrize("how", ["cancel", "await", "iterate"])
def test_a_cancelled_run_ends_where_the_clean_up_of_its_input_hangs(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        hung = asyncio.Event()

        async def ids() -> AsyncIterator[str]:
            try:
                yield "ada"
                await hung.wait()
            finally:
                try:
                    await hung.wait()
                finally:
                    await hung.wait()

        running = bulk(ids(), enable)
        await _end(running, how)
        assert (running.report.total, running.report.enabled) == (1, 1)
        assert asyncio.get_running_loop().time() <= 1 + 2 * 5
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(), sockets=False)
    assert "has not ended after 5 s; what hangs is cancelled again: to read or close user_ids" in (
        caplog.text
    )


def test_a_cancelled_run_ends_where_the_clean_up_of_its_calls_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        hung = asyncio.Event()

        async def send(_user_id: str, _seconds: float) -> User:
            try:
                await hung.wait()
            finally:
                await hung.wait()
            raise AssertionError

        running = bulk(["ada"], send)
        await _end(running, "cancel")
        assert (running.report.total, running.report.unknown) == (1, 1)

    run(main(), sockets=False)
    assert "what hangs is cancelled again: calls (1)" in caplog.text


async def test_memory_does_not_grow_with_the_input() -> None:
    async def quick(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0)
        raise m.NotFoundError(status=404, user_id=user_id)

    async def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            ids = (f"user-{i}" for i in range(count))
            await bulk(ids, quick, concurrency=20)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak(100)
    assert await peak(6000) < 1.6 * await peak(2000)  # both keep a thousand failures


class Places(asyncio.BoundedSemaphore):
    """A semaphore that remembers how many places there are, and how many were held at most."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.places, self.held, self.most = value, 0, 0

    async def acquire(self) -> Literal[True]:
        await super().acquire()
        self.held += 1
        self.most = max(self.most, self.held)
        return True

    def release(self) -> None:
        super().release()
        self.held -= 1


@pytest.mark.parametrize("reads", ["list", "async iterator"])
@pytest.mark.parametrize("consumed", ["awaited", "iterated", "cut short", "drained"])
async def test_a_bounded_semaphore_holds_every_run_to_its_concurrency(
    sandbox: Sandbox, reads: str, consumed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monocloud_async.bulk.run.asyncio.BoundedSemaphore", Places)
    sandbox.latency = 0.005
    ids = sandbox.user_ids() * 3

    async def later() -> AsyncIterator[str]:
        for user_id in ids:
            yield user_id

    async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
        running = session.bulk_enable(ids if reads == "list" else later(), concurrency=7)
        places = running._places
        assert isinstance(places, Places)
        match consumed:
            case "awaited":
                await running
            case "iterated":
                async with running:
                    async for _ in running:
                        assert running.in_flight <= places.held <= 7
            case "cut short":
                async with running:
                    for _ in range(15):
                        await anext(running)
            case "drained":
                task = asyncio.ensure_future(running)
                while sandbox.stats().in_flight < 2:  # noqa: ASYNC110  there is no event for it
                    await asyncio.sleep(0.001)
                running.drain()
                await task
    assert (places.places, places.held) == (7, 0)
    assert 1 < places.most <= 7
    assert 1 < sandbox.stats().peak_in_flight <= 7


async def test_an_error_that_nobody_expects_ends_the_run_at_once() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        if user_id == "ada":
            return User(user_id=user_id)  # until then the first call is alone
        if user_id == "bug":
            raise ZeroDivisionError
        await asyncio.Event().wait()
        raise AssertionError

    running = bulk(["ada", "hangs", "bug", "hangs"], send)
    async with asyncio.timeout(10):
        with pytest.raises(ZeroDivisionError):
            await running
    assert (running.report.enabled, running.report.unknown, running.report.total) == (1, 3, 4)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5])
def test_a_concurrency_that_makes_no_sense_is_refused(concurrency: int) -> None:
    with pytest.raises(m.ConfigurationError, match="concurrency"):
        bulk([], enable, concurrency=concurrency)


async def test_a_run_is_started_once_and_iterated_inside_its_block() -> None:
    running = bulk(["a"], enable)
    with pytest.raises(m.ConfigurationError, match="async with"):
        await anext(running)
    await running
    with pytest.raises(m.ConfigurationError, match="started before"):
        await running


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


def test_a_forgotten_await_is_told_as_for_a_coroutine() -> None:
    with pytest.warns(RuntimeWarning, match="never awaited"):
        bulk(["ada"], enable)
    with pytest.raises(m.ConfigurationError):  # an incomplete run cannot be awaited
        bulk(["ada"], enable, concurrency=0)
