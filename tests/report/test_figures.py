"""A run in figures, from its journal alone."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import journals
import pytest

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.report.figures import Halt, read, users_done
from monocloud_async.report.rows import failures
from monocloud_async.sandbox import Sandbox


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


@pytest.mark.parametrize("look", [read, users_done, lambda path: list(failures(path))])
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
