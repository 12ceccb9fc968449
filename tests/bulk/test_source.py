"""The ids of a run: whatever they come from, each is read once, and what that raises comes out."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from runs import bulk, enable
from virtual_time import run

import monocloud_async as m
from monocloud_async import ConfigurationError, MonoCloudSession, User
from monocloud_async.bulk.run import BulkRun
from monocloud_async.journal.file import JournalFile
from monocloud_async.sandbox import Sandbox


async def async_ids(count: int) -> AsyncIterator[str]:
    for number in range(count):
        await asyncio.sleep(0)
        yield f"u{number}"


@pytest.mark.parametrize("count", [0, 1, 5, 300])
async def test_async_iterables_are_read_too(count: int) -> None:
    report = await bulk(async_ids(count), enable)
    assert (report.total, report.enabled, report.exhausted) == (count, count, True)


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


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_input_that_ends_with_a_cancellation_of_its_own_does_not_end_as_if_whole(
    is_async: bool,  # noqa: FBT001  the name of a case
) -> None:
    def ids() -> Iterator[str]:
        yield from ["a", "b"]
        raise asyncio.CancelledError("the pool is closed")

    async def async_ids() -> AsyncIterator[str]:
        for user_id in ids():
            yield user_id

    source = async_ids if is_async else ids
    running = bulk(source(), enable)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (running.report.enabled, running.report.exhausted) == (2, False)
    outcomes: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        async with bulk(source(), enable) as streamed:
            async for outcome in streamed:
                outcomes.append(outcome.user_id)  # noqa: PERF401  what came before the error counts
    assert sorted(outcomes) == ["a", "b"]


@pytest.mark.parametrize("ids", ["one-id", b"x", 5])
def test_what_is_not_many_ids_is_refused(ids: list[str]) -> None:
    with pytest.raises(m.ConfigurationError, match="user_ids"):
        bulk(ids, enable)


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


async def test_the_error_that_stopped_a_run_survives_an_input_that_cannot_be_closed() -> None:
    async def refused(user_id: str, _seconds: float) -> User:
        raise m.UnauthorizedError(status=401, user_id=user_id)

    with pytest.raises(m.RunStoppedError) as stopped:
        await bulk(that_cannot_be_closed(), refused)
    assert isinstance(stopped.value.__cause__, m.UnauthorizedError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.mark.parametrize(
    "unordered",
    [
        *(set, frozenset, lambda ids: iter(set(ids)), Counter, lambda ids: Counter(ids).keys()),
        *(lambda ids: Counter(ids).items(), lambda ids: {n: n for n in ids}.values()),
    ],
)
async def test_an_input_without_a_lasting_order_is_refused_before_any_request(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, unordered: Callable[[list[str]], Any]
) -> None:
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="pass a list, such as sorted"):
            await session.bulk_enable(unordered(sandbox.user_ids()), journal=path)
    assert sandbox.stats().requests == 0
    assert not path.exists()
    assert (await session.bulk_enable(set(sandbox.user_ids()))).enabled == 20


@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
async def test_users_of_an_earlier_run_can_be_skipped_many_at_once(
    tmp_path: Path, kind: str
) -> None:
    def again(count: int) -> tuple[BulkRun, list[int]]:
        skipped: list[int] = []
        ids = async_ids(count) if kind == "async iterator" else (f"u{n}" for n in range(count))
        return bulk(
            ids,
            enable,
            journal=JournalFile(tmp_path / "journal", "http://127.0.0.1"),
            on_skipped_many=skipped.extend,
        ), skipped

    first, skipped = again(700)
    assert ((await first).enabled, skipped) == (700, [])
    longer, skipped = again(710)
    async with longer as run:
        outcomes = [(outcome.position, outcome.status) async for outcome in run]
    assert sorted(outcomes) == [(number, "enabled") for number in range(700, 710)]
    assert skipped == list(range(700))
    assert (run.report.already_enabled, run.report.enabled, run.report.total) == (700, 10, 710)
    shorter, skipped = again(650)
    with pytest.raises(ConfigurationError, match="650"):
        await shorter
    assert skipped == list(range(650))


async def test_an_id_that_differs_among_those_skipped_at_once_ends_the_run(tmp_path: Path) -> None:
    def journal() -> JournalFile:
        return JournalFile(tmp_path / "journal", "http://127.0.0.1")

    await bulk(async_ids(300), enable, journal=journal())

    async def other() -> AsyncIterator[str]:
        async for user_id in async_ids(300):
            yield "stranger" if user_id == "u200" else user_id

    skipped: list[int] = []
    with pytest.raises(ConfigurationError, match="stranger"):
        await bulk(other(), enable, journal=journal(), on_skipped_many=skipped.extend)
    assert skipped == list(range(200))
