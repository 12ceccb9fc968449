"""The rows of a journal: what they have, and how those of several runs come together."""

import asyncio
import os
import pwd
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import journals
import pytest
import virtual_time

from monocloud_async import (
    ConfigurationError,
    MonoCloudSession,
    NotFoundError,
    RetryPolicy,
    RunStoppedError,
)
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.before import undoable
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import Caller, InputInfo, JournalStore, Rows
from monocloud_async.report import rows
from monocloud_async.report.figures import read
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def once(user_ids: list[str]) -> AsyncIterator[str]:
    for user_id in user_ids:
        yield user_id


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


async def test_localhost_and_its_address_are_one_tenant(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    named = sandbox.url.replace("127.0.0.1", "localhost")
    async with MonoCloudSession(named, sandbox.api_key) as again:
        report = await again.bulk_enable(sandbox.user_ids(), journal=path)
    assert (report.already_enabled, sandbox.stats().requests) == (20, 20)


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
    slow = RetryPolicy(attempts=2, wait_initial=1e6, wait_max=1e6, total=1e7)  # drained before that

    async def main() -> None:
        async with Sandbox(users=["ada"]) as sandbox:
            url, key = sandbox.url, sandbox.api_key
            sandbox.script("ada", 500, 500, 500, 500)
            async with MonoCloudSession(url, key, retry=RetryPolicy(attempts=2)) as session:
                await session.bulk_enable(["ada"], journal=path)
                assert journals.rows(path) == [(0, "ada", "failed", 2)]
                run = session.bulk_enable(["ada"], journal=path, retry=slow)
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


async def test_an_input_whose_name_is_not_text_has_a_journal(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    journal = JournalFile(path, sandbox.url, input_info=InputInfo("us\udce9rs.txt"))
    report = await session.bulk_enable(sandbox.user_ids(), journal=journal)
    assert report.enabled == 20


def rows_of(*user_ids: object) -> Rows:
    return Rows([value for place, user_id in enumerate(user_ids) for value in
                 (place, user_id, 1, 20, 1_790_000_000_000)], [])  # fmt: skip


def test_a_group_is_written_whole_or_not_at_all_and_the_next_one_can_be(path: Path) -> None:
    store = JournalStore(path, "https://acme.com", ENABLE, InputInfo())
    store.open()
    with pytest.raises(sqlite3.Error):
        store.write(rows_of("ada", "bob", object()), 1)
    assert journals.rows(path) == []
    store.write(rows_of("ada", "bob"), 2)
    store.close()
    assert journals.outcomes(path) == {"enabled": 2}


def test_a_group_is_on_the_disk_before_its_write_returns(path: Path) -> None:
    store = JournalStore(path, "https://acme.com", ENABLE, InputInfo())
    store.open()
    store.write(rows_of("ada"), 1)
    sql = store.connection(1)
    assert sql.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sql.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_a_run_counts_its_own_pauses_and_not_those_before_it(path: Path) -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with (
            Sandbox(users=["ada"]) as sandbox,
            MonoCloudSession(sandbox.url, sandbox.api_key) as session,
        ):
            session.pace.refused(session.pace.send(clock()), 30, clock())
            await session.enable_user("ada")
            assert session.pace.paused_seconds(clock()) >= 30
            await session.bulk_enable(["ada"], journal=path)

    virtual_time.run(main())
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT max(paused) FROM samples").fetchone() == (0,)


def query(path: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as sql:
        return sql.execute(text).fetchall()


INPUT = "SELECT path, sheet, named_by, ids, at_least, about, bad_lines FROM input"


async def test_the_size_of_the_input_is_known_when_it_was_read_to_its_end(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    info = InputInfo("users.txt", path="/x/users.txt", about=21, sheet="S", by="email")

    def journal() -> JournalFile:
        return JournalFile(path, sandbox.url, input_info=info)

    async with session.bulk_enable(iter(ids), journal=journal(), concurrency=1) as run:
        async for outcome in run:
            if outcome.position == 4:
                run.drain()
    ((*_, ids_known, at_least, about, bad_lines),) = query(path, INPUT)
    assert (ids_known, about, bad_lines) == (None, 21, 0)
    assert 5 <= int(str(at_least)) < 20
    await session.bulk_enable(iter(ids), journal=journal())
    assert query(path, INPUT) == [("/x/users.txt", "S", "email", 20, 20, 21, 0)]
    await session.bulk_enable([*ids, "nobody"], journal=journal())  # it has grown
    assert query(path, INPUT) == [("/x/users.txt", "S", "email", 21, 21, 21, 0)]


async def test_a_list_says_its_size_at_once(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    async with session.bulk_enable(sandbox.user_ids(), journal=path, concurrency=1) as run:
        async for _ in run:
            run.drain()
    assert query(path, "SELECT ids FROM input") == [(20,)]


async def test_bad_lines_are_recorded_and_forgotten_when_they_are_mended(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    def journal(*lines: int) -> JournalFile:
        made = JournalFile(path, sandbox.url)
        for line in lines:
            made.add_bad_line(line, "is no id\x1b")
        return made

    await session.bulk_enable(iter(sandbox.user_ids()), journal=journal(3, 30))
    assert query(path, "SELECT line, problem FROM bad_lines") == [
        (3, "is no id "), (30, "is no id "),
    ]  # fmt: skip
    await session.bulk_enable(iter(sandbox.user_ids()), journal=journal(3))
    assert query(path, "SELECT line FROM bad_lines") == [(3,)]
    assert query(path, "SELECT bad_lines FROM input") == [(1,)]


async def test_an_input_of_bad_lines_alone_has_a_journal(
    session: MonoCloudSession, sandbox: Sandbox, path: Path
) -> None:
    journal = JournalFile(path, sandbox.url)
    journal.add_bad_line(1, "is no id")
    await session.bulk_enable([], journal=journal)
    assert query(path, "SELECT line FROM bad_lines") == [(1,)]
    assert query(path, "SELECT ids, bad_lines FROM input") == [(0, 1)]


async def test_a_run_that_only_skips_is_recorded_too(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    for _ in range(2):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert query(path, "SELECT how FROM sittings") == [("finished",)] * 2


async def test_who_ran_what_where_is_recorded(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    caller = Caller("monocloud-async bulk x", "HELP-7")
    journal = JournalFile(path, sandbox.url, caller=caller)
    await session.bulk_enable(sandbox.user_ids(), journal=journal)
    ((login, folder, command, note),) = query(
        path, "SELECT login, folder, command, note FROM commands"
    )
    assert str(login).split(",")[0] == pwd.getpwuid(os.geteuid()).pw_name
    assert (folder, command, note) == (str(Path.cwd()), *caller)


async def test_an_error_of_the_caller_is_how_a_run_ended_without_its_words(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    def broken() -> Iterator[str]:
        yield from sandbox.user_ids()[:3]
        raise ValueError("sentinel-key-4711")

    with pytest.raises(ValueError, match="sentinel"):
        await session.bulk_enable(broken(), journal=path)
    assert query(path, "SELECT how FROM sittings") == [("stopped: ValueError",)]


async def test_how_an_interrupted_run_ended_is_what_its_caller_says(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    for ends_early in (True, False):
        journal = JournalFile(path, sandbox.url)
        journal.ending = "stopped: a full disk"
        async with session.bulk_enable(sandbox.user_ids(), journal=journal, concurrency=1) as run:
            async for _ in run:
                if ends_early:
                    run.drain()
    ends = query(path, "SELECT how FROM sittings")
    assert ends == [("stopped: a full disk",), ("finished",)]


@pytest.mark.parametrize("later", [-3600, 0, 3600])
@pytest.mark.parametrize("enabled_by", ["the killed run", "somebody else"])
async def test_what_a_killed_run_may_have_done_is_told_whatever_the_clock_was(
    path: Path, later: int, enabled_by: str
) -> None:
    """A run refuses a user, and another one is killed while the clock is an earlier one."""
    async with (
        Sandbox(users=["ada"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):

        async def run(at: int, *, check: bool = True) -> None:
            journal = JournalFile(path, sandbox.url, now=lambda: at)
            await session.bulk_enable(["ada"], journal=journal, check=check)

        sandbox.script("ada", 409, *([409] if enabled_by == "somebody else" else []))
        await run(1_790_000_000)
        with closing(sqlite3.connect(path, isolation_level=None)) as sql:
            refused = sql.execute("SELECT * FROM users").fetchall()
            await run(1_790_000_000 + later, check=False)
            sql.execute("UPDATE sittings SET ended = NULL, how = NULL WHERE sitting = 2")
            if enabled_by == "the killed run":  # which did not come to record it
                sql.execute("DELETE FROM users")
                sql.executemany("INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", refused)
                sql.execute("DELETE FROM earlier")
        await session.enable_user("ada")
        await run(1_790_000_000 + 2 * later)
    assert journals.outcomes(path) == {"already_enabled": 1}
    assert list(undoable(path)) == (["ada"] if enabled_by == "the killed run" else [])


@pytest.mark.parametrize("refused", ["the key", "the request", "the request after a look"])
async def test_a_refusal_tells_what_a_killed_run_has_done_only_if_the_user_was_looked_up(
    path: Path, refused: str
) -> None:
    """A run is killed, the next one is refused, and the one after that finds the user enabled."""
    async with (
        Sandbox(users=["ada"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
        MonoCloudSession(sandbox.url, "a-key-that-was-revoked") as revoked,
    ):
        await session.bulk_enable(["ada"], journal=path, check=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as sql:  # it was killed
            sql.execute("UPDATE sittings SET ended = NULL, how = NULL")
            sql.execute("DELETE FROM users")
        if refused == "the key":
            with pytest.raises(RunStoppedError, match="401"):
                await revoked.bulk_enable(["ada"], journal=path, check=True)
        else:
            looks = refused == "the request after a look"
            if looks:
                await session.disable_user("ada")
            sandbox.script("ada", 409)
            await session.bulk_enable(["ada"], journal=path, check=looks)
            await session.enable_user("ada")  # by somebody else
        await session.bulk_enable(["ada"], journal=path, check=True)
    assert journals.outcomes(path) == {"already_enabled": 1}
    assert list(undoable(path)) == ([] if refused == "the request after a look" else ["ada"])


async def test_a_run_whose_journal_could_not_be_written_may_have_done_what_it_does_not_know(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sqlite3.OperationalError("database or disk is full")

    def no_room(*_: object, **__: object) -> None:
        raise full

    async with (
        Sandbox(users=["ada", "bob", "cy"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        sandbox.script("ada", 409)
        everybody = ["ada", "bob", "cy"]
        await session.bulk_enable(everybody, journal=path, check=True, limit=1)
        run = session.bulk_enable(everybody, journal=path, check=True, concurrency=1)
        with pytest.raises(RunStoppedError, match="journal could not be written"):
            async with run:
                async for _ in run:
                    monkeypatch.setattr(JournalStore, "write", no_room)
        monkeypatch.undo()
        told = "stopped: its journal could not be written: database or disk is full"
        assert read(path).headline().startswith(f"Not finished ({told}): 33 %, 2 of 3 users not")
        assert [row.message for row in rows.everybody(path, everybody)][1:] == [
            "the run has not come to this user, or was cut off when it had just come to it"
        ] * 2
        await session.bulk_enable(everybody, journal=path, check=True)
        assert read(path).runs[1].how == told
    assert list(undoable(path)) == everybody


async def test_a_run_whose_last_outcomes_could_not_be_written_is_not_called_finished(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    write = JournalStore.write

    def no_room(store: JournalStore, rows: Rows, *args: Any, **options: Any) -> None:
        if rows.positions():
            raise full
        write(store, rows, *args, **options)

    monkeypatch.setattr(JournalStore, "write", no_room)
    async with (
        Sandbox(users=["ada"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        with pytest.raises(RunStoppedError, match="journal could not be written"):
            await session.bulk_enable(["ada"], journal=path, check=True)
    told = "stopped: its journal could not be written: database or disk is full"
    assert read(path).headline() == f"Not finished ({told}): 0 %, 1 of 1 user not yet"
