"""A run in figures, from its journal alone."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import journals
import pytest

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import lock_path
from monocloud_async.report.figures import Halt, JournalState, ended, read
from monocloud_async.report.rows import failures
from monocloud_async.sandbox import Sandbox

DAY = 86_400_000  # milliseconds
SECOND_RUN = 1_790_000_000_000 + DAY  # see `recorded.write`


def test_the_figures_put_the_runs_one_after_the_other(journal: Path) -> None:
    figures = read(journal)
    assert [run.ended is None for run in figures.runs] == [True, False]
    assert figures.seconds == pytest.approx(2.0)
    assert figures.borders == [pytest.approx(1.0)]
    assert sum(point.done for point in figures.timeline) * figures.step == pytest.approx(200)
    assert sum(point.other for point in figures.timeline) * figures.step == pytest.approx(35)
    assert [(m.what, round(m.start, 3), round(m.end, 3)) for m in figures.halts] == [
        ("paused", 0.3, 0.6),
        ("paused", 1.3, 1.6),
        ("outage", 1.6, 2.0),
    ]
    assert sum(count for _, count in figures.times) == 200
    assert dict(figures.attempts) == {1: 67, 2: 67, 3: 66}
    assert figures.unrecorded == 0
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("DELETE FROM users WHERE position < 3")
    assert read(journal).unrecorded == 3
    assert isinstance(figures.halts[0], Halt)


def test_nobody_is_done_within_0_milliseconds(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE users SET ms = 0")
    assert read(journal).percentiles == dict.fromkeys((50, 90, 99, 100), 1)


@pytest.mark.parametrize("look", [read, lambda path: list(failures(path))])
def test_a_journal_of_an_unknown_operation_is_refused(
    look: Callable[[Path], object], journal: Path
) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE header SET endpoint = 'POST /api/users/{user_id}/promote'")
    with pytest.raises(ConfigurationError, match=r"is of POST .*/promote, which is not known here"):
        look(journal)


def test_a_run_of_any_length_has_a_bounded_timeline(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE sittings SET ended = began + 100000000000000 WHERE sitting = 2")
    figures = read(journal)
    assert 100 <= len(figures.timeline) <= 201
    assert sum(point.done for point in figures.timeline) * figures.step == pytest.approx(200)


async def test_a_run_can_be_looked_at_while_it_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "j"
    async with Sandbox(users=20) as sandbox:
        ids = sandbox.user_ids()
        sandbox.script(ids[19], "hang")
        async with (
            MonoCloudSession(sandbox.url, sandbox.api_key) as session,
            session.bulk_enable(ids, journal=path) as run,
        ):
            async with asyncio.timeout(30):
                while not path.exists() or not path.stat().st_size or len(journals.rows(path)) < 19:  # noqa: ASYNC110  another thread writes it
                    await asyncio.sleep(0.01)
            assert read(path).outcomes == {"enabled": 19}
            assert run.in_flight == 1


def old(path: Path) -> Path:
    """Turn the journal into one of format 1."""
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        for table in ("input", "commands", "bad_lines", "earlier", "before"):
            sql.execute(f"DROP TABLE {table}")
        sql.execute("PRAGMA user_version = 1")
    return path


def change(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        for statement in statements:
            sql.execute(statement)
    return path


KILLED = "UPDATE sittings SET ended = NULL, how = NULL WHERE sitting = 2"
STOPPED = "UPDATE sittings SET how = 'interrupted by SIGTERM' WHERE sitting = 2"


def test_a_run_that_came_to_the_end_of_its_input_is_finished(journal: Path) -> None:
    change(journal, "UPDATE input SET ids = 235")
    figures = read(journal)
    assert figures.state is JournalState.FINISHED
    assert (figures.left, figures.percent) == (0, 100)
    assert (
        figures.headline() == "Finished: all 235 users were asked for; 35 of them are not enabled"
    )


def test_a_run_that_was_interrupted_tells_how_and_how_many_are_left(journal: Path) -> None:
    change(journal, STOPPED, "UPDATE input SET ids = 1500")
    figures = read(journal)
    assert figures.state is JournalState.ENDED
    told = "Not finished (interrupted by SIGTERM): 15 %, 1,265 of 1,500 users not yet"
    assert figures.headline() == told


def test_before_the_input_was_read_to_its_end_the_numbers_are_about(journal: Path) -> None:
    change(journal, KILLED, "UPDATE input SET about = 1502, bad_lines = 2")
    figures = read(journal)
    assert figures.state is JournalState.KILLED
    told = "Not finished, cut off (killed): about 15 %, about 1,265 of about 1,500 users not yet"
    assert figures.headline() == told
    change(journal, "UPDATE input SET about = NULL")
    assert "235 users asked for; the input was not read to its end" in read(journal).headline()


async def test_a_run_that_ends_where_the_last_one_found_the_end_of_its_input_may_not_be_finished(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    ids = ["nobody", *sandbox.user_ids()]
    await session.bulk_enable(iter(ids[:10]), journal=path)
    assert read(path).state is JournalState.FINISHED

    report = await session.bulk_enable(iter(ids), journal=path, limit=1)  # one who failed before
    assert (report.total, report.exhausted) == (1, False)
    told = "10 users asked for; the input was not read to its end"
    assert read(path).headline() == f"Not finished (at its limit): {told}"

    await session.bulk_enable(iter(ids[:10]), journal=path)
    assert read(path).state is JournalState.FINISHED

    async def grown() -> AsyncIterator[str]:
        for user_id in ids[:10]:
            yield user_id
        run.drain()
        await asyncio.Event().wait()  # the other ids come later

    run = session.bulk_enable(grown(), journal=path)
    assert (await run).total == 10
    assert read(path).headline() == f"Not finished (interrupted): {told}"
    await session.bulk_enable(iter(ids), journal=path)
    assert read(path).ids == 21


def test_nobody_is_called_finished_who_was_not_attempted(journal: Path) -> None:
    change(
        journal,
        "UPDATE input SET ids = 235",
        "UPDATE users SET outcome = 'not_attempted' WHERE position = 7",
        STOPPED,
    )
    figures = read(journal)
    assert (figures.left, figures.percent) == (1, 99)
    assert figures.headline().endswith("99 %, 1 of 235 users not yet")


def test_the_lock_tells_a_run_at_work_from_a_killed_one(journal: Path) -> None:
    change(journal, KILLED, "UPDATE input SET ids = 300", "DELETE FROM users WHERE position < 4")
    lock = Lock(lock_path(journal), "the journal")
    lock.take()
    figures = read(journal)
    assert figures.state is JournalState.AT_WORK
    assert figures.headline().startswith(f"At work (process {os.getpid()} on ")
    assert figures.headline().endswith("77 %, 69 of 300 users not yet, 4 in flight")
    lock.release()
    figures = read(journal)
    assert figures.state is JournalState.KILLED
    assert figures.headline().endswith("69 of 300 users not yet, 4 were in flight")
    assert [ended(figures, run).split(":")[0] for run in figures.runs] == ["killed", "killed"]


def test_a_run_that_has_ended_is_not_named_as_the_one_at_work(journal: Path) -> None:
    """Its journal could not be written, and the next run has written nothing yet."""
    change(journal, KILLED, "UPDATE sittings SET how = 'stopped: its journal could not be written'")
    change(journal, "UPDATE input SET ids = 300")
    lock = Lock(lock_path(journal), "the journal")
    lock.take()
    headline = read(journal).headline()
    lock.release()
    assert headline == "At work: 78 %, 65 of 300 users not yet"


def test_of_a_run_on_another_machine_the_lock_says_nothing(journal: Path) -> None:
    change(journal, KILLED, "UPDATE sittings SET host = 'elsewhere'")
    figures = read(journal)
    assert figures.state is JournalState.UNKNOWN
    assert "killed, or at work as process" in figures.headline()


def test_a_copy_of_the_journal_of_a_process_that_is_there_is_not_called_killed(
    journal: Path,
) -> None:
    change(journal, KILLED, f"UPDATE sittings SET process = {os.getppid()}")  # noqa: S608  a number
    assert read(journal).state is JournalState.UNKNOWN
    change(journal, f"UPDATE sittings SET process = {os.getpid()}")  # noqa: S608  as above
    assert read(journal).state is JournalState.KILLED


def test_a_killed_run_is_told_by_its_free_lock_also_if_its_process_number_is_in_use_again(
    journal: Path,
) -> None:
    change(journal, KILLED, f"UPDATE sittings SET process = {os.getppid()}")  # noqa: S608  a number
    lock_path(journal).write_text(f"process {os.getppid()} on this host")  # nobody holds it
    figures = read(journal)
    assert figures.state is JournalState.KILLED
    assert figures.headline().startswith("Not finished, cut off (killed): ")


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("SELECT 1", JournalState.FINISHED),
        (STOPPED, JournalState.ENDED),
        (KILLED, JournalState.KILLED),
    ],
)
def test_a_journal_of_format_1_is_read_as_far_as_it_knows(
    journal: Path, statement: str, state: JournalState
) -> None:
    figures = read(change(old(journal), statement))
    assert figures.state is state
    assert figures.bad_lines is None
    assert figures.ids == (235 if state is JournalState.FINISHED else None)


async def test_a_run_of_today_adds_to_a_journal_of_format_1_what_it_lacks(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    ids = sandbox.user_ids()
    await session.bulk_enable(ids[:5], journal=path)
    assert read(old(path)).ids == 5
    await session.bulk_enable(ids, journal=path)
    figures = read(path)
    assert (figures.ids, figures.bad_lines, figures.state) == (20, 0, JournalState.FINISHED)
    assert [bool(run.login) for run in figures.runs] == [False, True]


async def test_the_timeline_counts_a_failure_when_it_happened(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    ids = sandbox.user_ids()
    for user_id in ids[:5]:
        sandbox.script(user_id, "422:identity")
    await session.bulk_enable(ids, journal=path)
    await session.bulk_enable(ids, journal=path)
    change(path, "UPDATE sittings SET began = began - 60000, ended = began WHERE sitting = 1")
    figures = read(path)
    assert figures.outcomes == {"enabled": 20}
    others = sum(point.other for point in figures.timeline) * figures.step
    done = sum(point.done for point in figures.timeline) * figures.step
    assert (round(others), round(done)) == (5, 20)


def test_the_speed_is_that_of_the_time_in_which_requests_were_let_through(journal: Path) -> None:
    figures = read(journal)
    # Two pauses of 0.2 s, each somewhere within 0.3 s, and an outage of 0.4 s.
    assert figures.idle == pytest.approx(0.8)
    assert figures.rate == pytest.approx(235 / 1.2)


def set_back(journal: Path, milliseconds: int) -> None:
    """Set the clock back between the two runs of this journal."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        for text in (
            f"UPDATE users SET at = at - ? WHERE at >= {SECOND_RUN}",  # noqa: S608  a number
            "UPDATE samples SET at = at - ? WHERE sitting = 2",
            "UPDATE sittings SET began = began - ? WHERE sitting = 2",
            "UPDATE sittings SET ended = ended - ? WHERE sitting = 2",
        ):
            sql.execute(text, (milliseconds,))


def test_where_the_clock_was_set_back_between_two_runs_each_has_its_own_users_and_pauses(
    journal: Path,
) -> None:
    before = read(journal)
    set_back(journal, DAY + 5_000)
    figures = read(journal)
    assert [halt.what for halt in figures.halts] == [halt.what for halt in before.halts]
    assert figures.idle == pytest.approx(before.idle)
    assert [run.requests for run in figures.runs] == [run.requests for run in before.runs]
    for point, was in zip(figures.timeline, before.timeline, strict=True):
        assert [point.done, point.other] == pytest.approx([was.done, was.other])


def test_of_runs_that_overlap_by_the_clock_the_one_that_began_last_has_the_users(
    journal: Path,
) -> None:
    # The first run lasts 5 s, with its 117 users in the last second, and the second one 1 s.
    change(journal, "UPDATE users SET at = at + 4000 WHERE position < 117")
    change(journal, "UPDATE samples SET at = at + 4000 WHERE sitting = 1")
    set_back(journal, DAY - 500)  # within the first one
    figures = read(journal)
    assert figures.borders == [pytest.approx(5.0)]
    users = {(0, 4): 0.0, (4, 5): 117.0, (5, 7): 118.0}
    for (start, end), count in users.items():
        part = [point for point in figures.timeline if start - 0.05 <= point.seconds < end - 0.05]
        done = sum(point.done + point.other for point in part) * figures.step
        assert done == pytest.approx(count), (start, end)


def test_a_pause_over_several_samples_is_drawn_where_it_was(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("DELETE FROM samples")
        for at, paused in ((0, 0), (300, 100), (600, 400), (900, 600)):
            sql.execute(
                "INSERT INTO samples (sitting, at, requests, retries, throttled, paused, down)"
                " SELECT min(sitting), min(began) + ?, 0, 0, 0, ?, 0 FROM sittings",
                (at, paused),
            )
    (halt,) = read(journal).halts
    assert halt.what == "paused"
    assert [halt.start, halt.end, halt.seconds] == pytest.approx([0.2, 0.8, 0.6])


def test_a_pause_before_the_first_sample_is_one_and_no_pause_is_longer_than_its_run(
    journal: Path,
) -> None:
    change(journal, "DELETE FROM samples")
    change(
        journal,
        "INSERT INTO samples (sitting, at, requests, retries, throttled, paused, down)"
        " SELECT sitting, began + 500, 0, 0, 0, iif(sitting = 1, 300, 90000), 0 FROM sittings",
    )
    figures = read(journal)
    assert [run.paused for run in figures.runs] == [0.3, pytest.approx(figures.runs[1].seconds)]
    assert [halt.seconds for halt in figures.halts] == pytest.approx([0.3, 0.5])


def test_a_tenant_that_says_something_else_each_time_makes_no_endless_list(journal: Path) -> None:
    change(journal, "UPDATE users SET outcome = 'failed', error = 'E', title = 'said ' || position")
    figures = read(journal)
    assert figures.kinds == 235
    assert len(figures.groups) == 50
    assert all(len(group.examples) == group.count == 1 for group in figures.groups)


def test_a_killed_run_has_at_least_the_requests_of_its_users(journal: Path) -> None:
    """Its last second has no sample, and it may have lasted less than that."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.executescript("DELETE FROM users; DELETE FROM sittings; DELETE FROM samples")
        sql.executemany(
            "INSERT INTO sittings VALUES (?, ?, ?, 'finished', 1, 'host', '1')",
            [(1, 10_040, None), (2, 20_040, None), (3, 30_040, 31_000)],
        )
        sql.execute("INSERT INTO samples VALUES (2, 21000, 9, 0, 0, 0, 0)")
        users = "INSERT INTO {} VALUES (?, 'u', 'failed', 500, ?, 5, ?, NULL, NULL, NULL)"
        # The first users are recorded just before the first commit, which is the start.
        sql.executemany(
            users.format("users"),
            [(0, 1, 10_001), (1, 2, 10_500), (2, 8, 30_001), (3, 3, 20_001), (4, 1, 30_500)],
        )
        sql.executemany(users.format("earlier"), [(2, 4, 10_600), (2, 7, 20_600)])
    requests = [run.requests for run in read(journal).runs]
    assert requests == [1 + 2 + 4, 9, 0]
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("DELETE FROM samples")
    assert [run.requests for run in read(journal).runs] == [7, 3 + 3, 0]


@pytest.mark.parametrize(("sittings", "samples"), [(1, 2600), (3000, 1)])
def test_a_killed_run_of_any_length_and_any_number_of_them_is_read(
    journal: Path, sittings: int, samples: int
) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.executescript("BEGIN; DELETE FROM users; DELETE FROM sittings; DELETE FROM samples")
        sql.executemany(
            "INSERT INTO users VALUES (?, 'u', 'enabled', 200, 1, 5, ?, NULL, NULL, NULL)",
            [(place, 1000 * place + 500) for place in range(3000)],
        )
        sql.executemany(
            "INSERT INTO sittings VALUES (?, ?, NULL, NULL, 1, 'host', '1')",
            [(number, 1000 * number) for number in range(sittings)],
        )
        sql.executemany(
            "INSERT INTO samples VALUES (?, ?, 1, 0, 0, 0, 0)",
            [
                (number, 1000 * (number + place))
                for number in range(sittings)
                for place in range(samples)
            ],
        )
        sql.execute("COMMIT")
    runs = read(journal).runs
    assert len(runs) == sittings
    # The last user within two seconds after the last sample.
    assert runs[0].seconds == samples - 1 + 1.5
