"""A run with a journal, through the public API and with real SQLite files."""

import asyncio
import os
import re
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import journals
import pytest
import virtual_time
from runs import adds_up, bulk

from monocloud_async import (
    ConfigurationError,
    MonoCloudSession,
    NotFoundError,
    Outcome,
    RetryPolicy,
    RunStoppedError,
    User,
)
from monocloud_async.bulk.source import UserIds
from monocloud_async.journal import Journal
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import InputInfo
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
        await anext(run)
        await asyncio.sleep(0.05)  # real time, in which a run without bounds would read it all
        assert run.report.total <= 5


async def test_a_row_has_what_an_auditor_asks_for_and_neither_key_nor_body(
    sandbox: Sandbox, path: Path
) -> None:
    ids = [*sandbox.user_ids()[:2], "nobody", "..", "a\ud800"]
    key = "sentinel-key-4711"
    sandbox.api_key = key
    async with MonoCloudSession(sandbox.url, key) as session:
        report = await session.bulk_enable(ids, journal=path)
    (problem,) = [o.error for o in report.failures if isinstance(o.error, NotFoundError)]
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT tenant, endpoint FROM header").fetchall() == [
            (sandbox.url, "POST /api/users/{user_id}/enable")
        ]
        found = sql.execute(
            "SELECT user_id, outcome, status, attempts, error, title, trace_id FROM users"
            " ORDER BY position"
        ).fetchall()
        dump = "\n".join(sql.iterdump())
    assert found[0] == (ids[0], "enabled", 200, 1, None, None, None)
    assert found[2] == ("nobody", "failed", 404, 1, "NotFoundError", "Not Found", problem.trace_id)
    assert found[3][:5] == ("'..'", "failed", None, 0, "InvalidUserIdError")
    assert found[4][0] == "'a\\ud800'"
    assert key not in dump
    assert b"family_name" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


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
@pytest.mark.parametrize("form", [list, once])
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


async def test_ids_may_be_added_at_the_end(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    await session.bulk_enable(ids[:5], journal=path)
    report = await session.bulk_enable(once(ids), journal=path)
    assert (report.already_enabled, report.enabled) == (5, 15)


async def test_places_that_a_kill_left_empty_are_asked_for(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    await session.bulk_enable(ids, journal=path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("DELETE FROM users WHERE position IN (3, 4, 11)")
    for form in (once, list):
        changed = [*ids[:19], "else"]
        with pytest.raises(ConfigurationError, match="id number 20"):
            await session.bulk_enable(form(changed), journal=path)
        report = await session.bulk_enable(form(ids), journal=path)
        assert report.already_enabled + report.enabled == 20
    assert [row[0] for row in journals.rows(path)] == list(range(20))


async def test_another_tenants_journal_is_refused(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    before = path.read_bytes()
    async with Sandbox() as other, MonoCloudSession(other.url, other.api_key) as elsewhere:
        with pytest.raises(ConfigurationError, match=f"belongs to the tenant {sandbox.url}, and"):
            await elsewhere.bulk_enable(sandbox.user_ids(), journal=path)
        assert other.stats().requests == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"user_id\nada\n" * 100, "is not a journal of this program; name another file"),
        (b"ada\n", "is not a journal of this program"),  # SQLite would take it for empty
    ],
)
async def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    session: MonoCloudSession, path: Path, content: bytes, why: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=why):
        await session.bulk_enable(["ada"], journal=path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_somebody_elses_database_is_refused_and_left_alone(
    session: MonoCloudSession, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE users (position INTEGER)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is not a journal of this program"):
        await session.bulk_enable(["ada"], journal=path)
    assert path.read_bytes() == before


async def test_a_newer_format_is_refused(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match=r"newer version \(format 2, this one reads 1\)"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE users SET user_id = x'ff' WHERE position = 7",
        "DROP TABLE users",
        "DELETE FROM header",
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
        with pytest.raises(ConfigurationError, match=r"the journal .*(read|run)"):
            await session.bulk_enable(ids, journal=path)
    assert sandbox.stats().requests == seen


async def test_a_torn_journal_is_refused_in_words(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    whole = path.read_bytes()
    for size in (17, 100, 511, 1000, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigurationError, match="journal"):
            await session.bulk_enable(sandbox.user_ids(), journal=path)
        assert path.read_bytes() == whole[:size]


async def test_a_journal_has_one_run_at_a_time(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[0], "hang")
    async with session.bulk_enable(ids, journal=path) as run:
        while not sandbox.stats().in_flight:  # noqa: ASYNC110  a count has no event
            await asyncio.sleep(0.001)
        with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()} on "):
            await session.bulk_enable(ids, journal=path)
        assert run.in_flight == 1
    report = await session.bulk_enable(ids, journal=path)
    assert report.enabled == 20


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


class Store:
    """A custom journal, whose two methods can fail."""

    def __init__(self) -> None:
        self.kept: dict[int, Outcome] = {}
        self.groups: list[int] = []
        self.error: Exception | None = None
        self.seconds = 0.0

    async def enabled(self, position: int, user_id: str, /) -> bool:
        kept = self.kept.get(position)
        return kept is not None and kept.user_id == user_id and kept.status == "enabled"

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.groups.append(len(outcomes))
        self.kept |= {outcome.position: outcome for outcome in outcomes}


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
    """Return when each call began, in a run of calls that take 10 ms."""
    began: list[float] = []

    async def send(user_id: str, _seconds: float) -> User:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        return User(user_id=user_id)

    async def main() -> None:
        ids = (str(number) for number in range(users))
        await bulk(ids, send, concurrency=concurrency, journal=store)

    virtual_time.run(main(), sockets=False)
    return began


def test_outcomes_are_written_in_groups_within_fifty_milliseconds() -> None:
    store = Store()
    began = run_of(store, 2000)
    assert sum(store.groups) == 2000
    assert began[-1] == pytest.approx(2.0, abs=0.1)  # the calls never waited for the store
    assert 10 < max(store.groups) <= 50  # 50 ms of calls, at 1,000 a second


def test_a_slow_disk_holds_the_calls_up_and_not_the_promise() -> None:
    store = Store()
    store.seconds = 0.5
    began = run_of(store, 400)
    assert max(store.groups) <= 10 + 50  # what is in flight, and 50 ms worth of calls
    assert sum(store.groups) == 400
    assert began[-1] > 1.0


async def test_an_id_that_is_looked_up_when_the_run_is_drained_is_counted() -> None:
    asked = asyncio.Event()

    class Slow(Store):
        async def enabled(self, position: int, user_id: str, /) -> bool:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError(position, user_id)

    async def never(user_id: str, _seconds: float) -> User:
        raise AssertionError(user_id)

    source = iter(["ada", "bob"])
    async with bulk(source, never, journal=Slow()) as run:
        await asked.wait()
        run.drain()
        outcomes = [outcome async for outcome in run]
    assert [(o.user_id, o.status) for o in outcomes] == [("ada", "not_attempted")]
    assert run.report.total == 1
    assert list(source) == ["bob"]


def test_what_is_known_of_a_user_outlives_a_run_that_does_not_come_to_it(path: Path) -> None:
    async def main() -> None:
        async with Sandbox(users=["ada"]) as sandbox:
            sandbox.script("ada", "422:identity", 429)
            async with MonoCloudSession(sandbox.url, sandbox.api_key) as session:
                await session.bulk_enable(["ada"], journal=path)
                async with session.bulk_enable(["ada"], journal=path) as run:
                    while run.report.throttled == 0:  # noqa: ASYNC110  a count has no event
                        await asyncio.sleep(0.001)
                    run.drain()
                    assert [outcome.status async for outcome in run] == ["not_attempted"]

    virtual_time.run(main())
    assert journals.rows(path) == [(0, "ada", "failed", 1)]


def test_attempts_add_up_over_the_runs(path: Path) -> None:
    async def main() -> None:
        async with Sandbox(users=["ada"]) as sandbox:
            url, key = sandbox.url, sandbox.api_key
            sandbox.script("ada", 500, 500, 500, 500)
            async with MonoCloudSession(url, key, retry=RetryPolicy(attempts=2)) as session:
                await session.bulk_enable(["ada"], journal=path)
                assert journals.rows(path) == [(0, "ada", "failed", 2)]
                run = session.bulk_enable(["ada"], journal=path)
                async with run:
                    while run.report.requests == 0:  # noqa: ASYNC110  a count has no event
                        await asyncio.sleep(0.001)
                    run.drain()
                    async for _ in run:
                        pass
                assert journals.rows(path) == [(0, "ada", "failed", 3)]
                await session.bulk_enable(["ada"], journal=path)

    virtual_time.run(main())
    assert journals.rows(path) == [(0, "ada", "enabled", 5)]


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
    task.cancel()
    for _ in range(gaps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [t for t in asyncio.all_tasks() if "_keep_counts" in repr(t)]
    report = await session.bulk_enable(ids, journal=path)
    assert report.enabled == 20
    assert threading.active_count() <= threads + 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def collected(session: MonoCloudSession, ids: list[str], path: Path) -> None:
    await session.bulk_enable(ids, journal=path)


async def test_a_link_to_a_journal_is_that_journal(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    ids = sandbox.user_ids()
    sandbox.script(ids[0], "hang")
    async with session.bulk_enable(ids, journal=path):
        while not sandbox.stats().in_flight:  # noqa: ASYNC110  a count has no event
            await asyncio.sleep(0.001)
        with pytest.raises(ConfigurationError, match="in use by process"):
            await session.bulk_enable(ids, journal=link)


async def test_the_lock_destroys_no_file_of_its_name(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    place = path.with_name(f"{path.name}-lock")
    victim = path.with_name("victim")
    victim.write_text("precious")
    place.write_text("precious")
    with pytest.raises(ConfigurationError, match="is not a lock file"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert place.read_text() == "precious"
    place.unlink()
    place.symlink_to(victim)
    with pytest.raises(ConfigurationError, match="cannot write the journal"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert victim.read_text() == "precious"
    assert sandbox.stats().requests == 0


async def test_a_named_pipe_is_no_journal(session: MonoCloudSession, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="is not a journal of this program"):
        await session.bulk_enable(["ada"], journal=path)


async def test_an_input_whose_name_is_not_text_has_a_journal(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    journal = JournalFile(path, sandbox.url, input_info=InputInfo("us\udce9rs.txt"))
    report = await session.bulk_enable(sandbox.user_ids(), journal=journal)
    assert report.enabled == 20
