"""A run with a journal, through the public API and with real SQLite files."""

import asyncio
import gc
import re
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from runs import adds_up

from monocloud_async import ConfigurationError, MonoCloudSession, Outcome, RunStoppedError
from monocloud_async.bulk import UserIds
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import JournalStore, Page
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def once(user_ids: list[str]) -> AsyncIterator[str]:
    for user_id in user_ids:
        yield user_id


async def test_the_same_call_goes_on_where_the_last_one_ended(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = [*sandbox.user_ids(), "nobody"]
    first = await session.bulk_enable(ids, journal=path)
    assert (first.enabled, first.failed, first.already_enabled) == (20, 1, 0)
    seen = sandbox.stats().requests
    second = await session.bulk_enable(ids, journal=path)
    assert (second.enabled, second.failed, second.already_enabled) == (0, 1, 20)
    assert sandbox.stats().requests == seen + 1
    assert adds_up(second)
    assert second.exhausted


async def test_who_was_enabled_before_is_an_outcome_in_the_stream(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = [*sandbox.user_ids(), "nobody"]
    await session.bulk_enable(ids, journal=path)
    told: list[Outcome] = []
    async with session.bulk_enable(ids, journal=path, concurrency=2, on_outcome=told.append) as run:
        streamed = [outcome async for outcome in run]
    assert streamed == told
    assert [outcome.user_id for outcome in streamed[:20]] == ids[:20]
    assert [outcome.position for outcome in streamed] == list(range(21))
    assert {outcome.status for outcome in streamed[:20]} == {"already_enabled"}
    assert streamed[20].status == "failed"


async def test_a_stalled_consumer_stalls_the_users_of_earlier_runs_too(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    await session.bulk_enable(ids, journal=path)
    async with session.bulk_enable(ids, journal=path, concurrency=3) as run:
        taken = 0
        async for _ in run:
            taken += 1
            for _ in range(100):  # turns of the loop, in which a run without bounds would read all
                await asyncio.sleep(0)
            assert run.report.total <= taken + 4
    assert taken == len(ids)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda ids: [*ids[:5], "else", *ids[6:]], "id number 6 is 'else', but was"),
        (lambda ids: [*ids[:5], *ids[6:]], "id number 6 is"),
        (lambda ids: ["new", *ids], "id number 1 is 'new'"),
        (lambda ids: ids[:12], "it ends after 12 ids, but the journal has 21"),
        (lambda _: [], "it ends after 0 ids"),
    ],
)
@pytest.mark.parametrize("form", [list, iter, once])
async def test_an_input_that_changed_is_refused(
    sandbox: Sandbox,
    session: MonoCloudSession,
    path: Path,
    change: Callable[[list[str]], list[str]],
    why: str,
    form: Callable[[list[str]], UserIds],
) -> None:
    ids = ["nobody", *sandbox.user_ids()] if form is list else [*sandbox.user_ids(), "nobody"]
    await session.bulk_enable(ids, journal=path)
    before, seen = path.read_bytes(), sandbox.stats().requests
    with pytest.raises(ConfigurationError, match=re.escape(why)) as caught:
        await session.bulk_enable(form(change(ids)), journal=path)
    assert "ids may only be added at its end" in str(caught.value)
    assert sandbox.stats().requests == seen
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_ids_may_be_added_at_the_end(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    await session.bulk_enable(ids[:5], journal=path)
    report = await session.bulk_enable(once(ids), journal=path)
    assert (report.already_enabled, report.enabled) == (5, 15)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE users SET user_id = x'ff' WHERE position = 7",
        "DROP TABLE users",
        "DELETE FROM header",
        "UPDATE users SET user_id = NULL WHERE position = 7",
        "UPDATE users SET at = 'x' WHERE position = 7",
    ],
)
async def test_a_damaged_journal_is_refused_in_words(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, damage: str
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    seen = sandbox.stats().requests
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute(damage)
    for ids in (sandbox.user_ids(), iter(sandbox.user_ids())):
        with pytest.raises(ConfigurationError, match=r"journal"):
            await session.bulk_enable(ids, journal=path)
    assert sandbox.stats().requests == seen


async def test_a_place_that_cannot_be_written_is_an_error_before_any_request(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    for path in (tmp_path / "missing" / "run.journal", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot write the journal"):
            await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert sandbox.stats().requests == 0


async def test_a_run_that_did_nothing_leaves_no_file(session: MonoCloudSession, path: Path) -> None:
    await session.bulk_enable([], journal=path)
    assert not list(path.parent.iterdir())


async def test_draining_leaves_nothing_to_repeat(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    sandbox.latency = 0.02
    ids = sandbox.user_ids()
    async with session.bulk_enable(ids, journal=path, concurrency=4) as run:
        async for _ in run:
            run.drain()
    report = await session.bulk_enable(ids, journal=path)
    assert run.report.enabled > 0
    assert run.report.enabled + report.enabled == 20
    assert sandbox.stats().requests == 20


async def test_how_a_run_ended_is_kept(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[9], 401)
    async with session.bulk_enable(ids, journal=path, concurrency=1) as run:
        async for outcome in run:
            if outcome.position == 4:
                run.drain()
    with pytest.raises(RunStoppedError):
        await session.bulk_enable(ids, journal=path, concurrency=1)
    await session.bulk_enable(ids, journal=path)
    with closing(sqlite3.connect(path)) as sql:
        ends = [how for (how,) in sql.execute("SELECT how FROM sittings ORDER BY sitting")]
    assert ends[0] == "interrupted"
    assert ends[1].startswith("stopped: 401")
    assert ends[2] == "finished"


@pytest.mark.parametrize("gaps", range(6))
async def test_cancelled_twice_it_still_lets_go_of_everything(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, gaps: int
) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[0], "hang")
    threads = threading.active_count()
    task = asyncio.ensure_future(collected(session, ids, path))
    while not sandbox.stats().in_flight:  # noqa: ASYNC110  a count has no event
        await asyncio.sleep(0.001)
    assert tasks_of_journals()
    task.cancel()
    for _ in range(gaps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tasks_of_journals()
    report = await session.bulk_enable(ids, journal=path)
    assert report.enabled == 20
    assert threading.active_count() <= threads + 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def tasks_of_journals() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "monocloud_async/journal" in repr(task)]


async def collected(session: MonoCloudSession, ids: list[str], path: Path) -> None:
    await session.bulk_enable(ids, journal=path)


async def test_what_fails_in_the_journals_thread_after_the_run_needs_it_is_nobodys_error(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ["nobody", *sandbox.user_ids()]
    await session.bulk_enable(ids, journal=path)
    page, told = JournalStore.page, list[dict[str, Any]]()

    def broken(store: JournalStore, start: int) -> Page:
        if start:  # read in advance
            raise sqlite3.OperationalError("database is locked")
        return page(store, start)

    monkeypatch.setattr(JournalStore, "page", broken)
    monkeypatch.setattr("monocloud_async.journal.store.PAGE", 8)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    journal = JournalFile(path, sandbox.url)
    is_there = weakref.ref(journal)
    report = await session.bulk_enable(iter(ids), journal=journal, limit=1)
    assert (report.failed, report.total) == (1, 1)
    del journal
    while is_there():
        await asyncio.sleep(0)
        gc.collect()
    assert told == []
