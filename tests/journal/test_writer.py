"""Outcomes get to the journal in groups, soon, or hold up the calls that have not begun."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from journals import Store, outcomes
from runs import bulk, enable
from tenant_in_memory import Tenant

from monocloud_async import MonoCloudSession, Outcome, RunStoppedError, User
from monocloud_async.journal import Journal, file
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import JournalStore
from monocloud_async.sandbox import Sandbox


async def test_any_object_with_two_methods_is_a_journal(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    store: Journal = Store()
    await session.bulk_enable(sandbox.user_ids()[:10], journal=store)
    report = await session.bulk_enable(sandbox.user_ids(), journal=store)
    assert (report.already_enabled, report.enabled) == (10, 10)


async def test_a_store_that_fails_stops_the_run_with_what_it_did(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    store = Store()
    store.error = OSError("the store is gone")
    sandbox.latency = 0.03
    with pytest.raises(RunStoppedError, match=r"could not be written \(the store is gone\)") as end:
        await session.bulk_enable(sandbox.user_ids(), journal=store, concurrency=2)
    report = end.value.report
    assert report.enabled == report.total == sandbox.stats().requests < 20
    assert f"{report.total} of {report.total} outcomes are not in it" in str(end.value)
    assert end.value.__cause__ is store.error
    assert not report.exhausted


def run_of(store: Store, users: int, *, concurrency: int = 10) -> list[float]:
    """Return when each call began, in a run of calls that take 10 ms, which the store may end."""
    began: list[float] = []

    async def send(user_id: str, _seconds: float) -> User:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        return User(user_id=user_id)

    async def main() -> None:
        ids = (str(number) for number in range(users))
        with suppress(RunStoppedError):
            await bulk(ids, send, concurrency=concurrency, journal=store)

    virtual_time.run(main(), sockets=False)
    return began


def test_outcomes_are_written_in_groups_within_fifty_milliseconds() -> None:
    store = Store()
    began = run_of(store, 2000)
    assert sum(store.groups) == 2000
    assert began[-1] == pytest.approx(2.0, abs=0.1)  # the calls never waited for the store
    assert 20 < max(store.groups) <= 30  # 25 ms of calls, at 1,000 a second


def test_a_slow_disk_holds_the_calls_up_and_not_the_promise() -> None:
    store = Store()
    store.seconds = 0.5
    began = run_of(store, 400)
    assert max(store.groups) <= 10 + 50  # what is in flight, and 50 ms worth of calls
    assert sum(store.groups) == 400
    assert began[-1] > 1.0


@pytest.mark.parametrize("seconds", [0.04, 0.1, 0.5])
def test_no_call_begins_while_an_outcome_has_waited_for_fifty_milliseconds(seconds: float) -> None:
    ended: dict[str, float] = {}
    written: dict[str, float] = {}
    began: list[float] = []

    class Slow(Store):
        async def write(self, outcomes: Sequence[Outcome], /) -> None:
            await asyncio.sleep(seconds)
            now = asyncio.get_running_loop().time()
            written.update((outcome.user_id, now) for outcome in outcomes)

    async def send(user_id: str, _seconds: float) -> User:
        loop = asyncio.get_running_loop()
        began.append(loop.time())
        await asyncio.sleep(0.01)
        ended[user_id] = loop.time()
        return User(user_id=user_id)

    async def main() -> None:
        ids = (str(number) for number in range(1000))
        assert (await bulk(ids, send, concurrency=10, journal=Slow())).enabled == 1000

    virtual_time.run(main(), sockets=False)
    waits = [(ended[user_id] + 0.051, written[user_id]) for user_id in ended]
    assert not [moment for moment in began for late, at in waits if late < moment < at]


def test_a_slow_disk_does_not_end_the_workers() -> None:
    workers = set[asyncio.Task[None] | None]()

    async def send(user_id: str, _seconds: float) -> User:
        workers.add(asyncio.current_task())
        await asyncio.sleep(0.01)
        return User(user_id=user_id)

    async def main() -> None:
        store = Store()
        store.seconds = 0.5
        ids = (str(number) for number in range(400))
        assert (await bulk(ids, send, concurrency=10, journal=store)).enabled == 400

    virtual_time.run(main(), sockets=False)
    assert len(workers) < 15  # a few end before the first call has succeeded


def test_no_call_begins_after_the_journal_has_failed() -> None:
    store = Store()
    store.seconds, store.error = 0.5, OSError("no space left")
    began = run_of(store, 10_000, concurrency=100)
    assert began[-1] - began[0] < 0.2  # they waited for the first write


async def test_a_journal_whose_write_is_cancelled_has_failed() -> None:
    class Cancelled(Store):
        async def write(self, _outcomes: Sequence[Outcome], /) -> None:
            raise asyncio.CancelledError

    async def send(user_id: str, _seconds: float) -> User:
        return User(user_id=user_id)

    with pytest.raises(RunStoppedError, match="the write was cancelled"):
        await bulk(["ada"], send, journal=Cancelled())


class Hung(Store):
    """A store that does not respond, not even when it is to clean up."""

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.seconds)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
@pytest.mark.parametrize("how", ["cancel", "close", "timeout"])
def test_a_run_ends_in_seconds_where_a_store_of_ones_own_hangs(
    how: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    store = Hung()
    store.seconds = seconds

    async def main() -> None:
        loop = asyncio.get_running_loop()
        session = Tenant().session()
        running = session.bulk_enable(["ada", "bob"], journal=store)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await running
        else:
            task = asyncio.ensure_future(running)
            await asyncio.sleep(1)
            if how == "close":
                await session.close()
            else:
                running.cancel()
            with pytest.raises(RunStoppedError, match="2 of 2 outcomes are not in it") as stopped:
                await task
            assert "(the write was cancelled before it ended)" in str(stopped.value)
        assert loop.time() <= 1 + 2 * 5
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await session.close()

    virtual_time.run(main(), sockets=False)
    assert "cancelled again: a write of the journal (2 outcomes are not in it)" in caplog.text


def test_a_cancelled_run_waits_for_a_write_that_takes_seconds() -> None:
    store = Store()
    store.seconds = 4

    async def main() -> None:
        running = bulk(["ada", "bob"], enable, journal=store)
        asyncio.get_running_loop().call_later(1, running.cancel)
        assert (await running).enabled == 2

    virtual_time.run(main(), sockets=False)
    assert len(store.kept) == 2


def test_the_write_of_a_journal_file_is_never_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def commit(self: JournalFile) -> None:
            running.cancel()
            await asyncio.sleep(60)
            await written(self)

        written = JournalFile.commit
        monkeypatch.setattr(JournalFile, "commit", commit)
        path = tmp_path / "journal"
        running = bulk(["ada", "bob"], enable, journal=JournalFile(path, "acme"))
        assert (await running).enabled == 2
        assert outcomes(path) == {"enabled": 2}

    virtual_time.run(main())


@pytest.mark.parametrize(("work", "unwritten"), [("open", 0), ("write", 2), ("close", 0)])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_cancelled_run_tells_whose_disk_hangs_and_waits_for_it(
    how: str,
    work: str,
    unwritten: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, told = threading.Event(), threading.Event()
    of_store = getattr(JournalStore, work)

    def hang(self: JournalStore, *args: Any, **options: Any) -> None:
        begun.set()
        assert told.wait(60)
        of_store(self, *args, **options)

    async def main() -> None:
        running = bulk(["ada", "bob"], enable, journal=JournalFile(path, "acme"))
        task = asyncio.ensure_future(running)
        await asyncio.to_thread(begun.wait, 60)
        if how == "cancel":
            running.cancel()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def tell(record: logging.LogRecord) -> bool:
        if "a cancelled run" in record.msg:
            told.set()
        return True

    path = tmp_path / "journal"
    monkeypatch.setattr(JournalStore, work, hang)
    caplog.handler.addFilter(tell)
    try:
        virtual_time.run(main())
    finally:
        caplog.handler.removeFilter(tell)
    assert (
        f"it waits for the disk of the journal {path}, and {unwritten} outcomes are not known to be"
        " in it. If the disk does not answer, kill the process: the same run then does the rest"
    ) in caplog.text
    assert "is cancelled again" not in caplog.text
    if work != "open":
        assert outcomes(path) == {"enabled": 2}


@pytest.mark.parametrize("first", ["write", "add_sample"])
async def test_nothing_is_lost_when_every_task_is_cancelled(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of `asyncio.run`: the write is in the journal's thread, or waits for it."""
    begun, goes_on = threading.Event(), threading.Event()
    work = getattr(JournalStore, first)

    def slow(self: JournalStore, *args: Any, **options: Any) -> None:
        begun.set()
        assert goes_on.wait(60)
        work(self, *args, **options)

    async def send(user_id: str, _seconds: float) -> User:
        if user_id != "ada":
            await asyncio.sleep(600)
        return User(user_id=user_id)

    monkeypatch.setattr(JournalStore, first, slow)
    monkeypatch.setattr(file, "_SAMPLE_EVERY", 0.001)
    journal = JournalFile(tmp_path / "journal", "acme")
    running = asyncio.ensure_future(bulk(["ada", "bob", "cleo"], send, journal=journal))
    await asyncio.to_thread(begun.wait, 60)
    while first == "add_sample" and journal._done:  # noqa: ASYNC110  it has no event
        await asyncio.sleep(0.001)  # until it is asked to write them
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    asyncio.get_running_loop().call_later(0.1, goes_on.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert outcomes(tmp_path / "journal") == {"enabled": 1, "unknown": 2}


def test_a_write_in_progress_ends_although_on_outcome_raised() -> None:
    def refuse(_outcome: Outcome) -> None:
        raise ValueError("a fault of the caller's")

    async def main() -> None:
        store = Store()
        store.seconds = 6
        running = bulk(["ada", "bob"], enable, journal=store, on_outcome=refuse)
        with pytest.raises(ValueError, match="a fault of the caller's"):
            await running
        assert len(store.kept) == running.report.total

    virtual_time.run(main(), sockets=False)
