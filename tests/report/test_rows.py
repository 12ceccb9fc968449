"""The users of a journal one by one, those included who have no outcome."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from recorded import outcome, write

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.report.rows import (
    InputChangedError,
    NobodyRecordedError,
    bad_lines,
    everybody,
    failures,
    find,
    users,
)
from monocloud_async.sandbox import Sandbox

IDS = [f"user{place}" for place in range(10)]


def changed(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute(statement)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal that ends before the last two users, and has a gap after a kill."""
    outcomes = [outcome(place, IDS[place], "No" if place == 4 else "") for place in range(8)]
    path = write(tmp_path / "run.journal", outcomes)
    changed(path, "DELETE FROM users WHERE position = 6")
    return path


def test_everybody_has_an_outcome_or_a_reason_why_not(path: Path) -> None:
    found = list(everybody(path, IDS))
    assert [row.user_id for row in found] == IDS
    assert [row.position for row in found] == list(range(10))
    outcomes = ["enabled"] * 4 + ["failed", "enabled", "unknown", "enabled"]
    assert [row.outcome for row in found] == [*outcomes, "not_attempted", "not_attempted"]
    assert found[4].message == "404 No"
    assert found[6].message == "was in flight, and has no outcome"
    assert found[8].message.startswith("the run has not come to this user, or was cut off")
    changed(path, "UPDATE sittings SET ended = began + 1000")
    assert list(everybody(path, IDS))[8].message == "the run has not come to this user"


def test_a_fleet_leaves_gaps_that_were_never_begun(path: Path) -> None:
    changed(path, "CREATE TABLE chunks (start INTEGER PRIMARY KEY)")
    assert list(everybody(path, IDS))[6].outcome == "not_attempted"


@pytest.mark.parametrize(
    ("user_ids", "why"),
    [
        ([*IDS[:5], "secret", *IDS[6:]], r"^id number 6 was 'user5', and is another one now$"),
        (IDS[:7], "it ends before id number 8"),
        ([], "it ends before id number 1"),
    ],
)
def test_another_input_is_told_and_not_quoted(path: Path, user_ids: list[str], why: str) -> None:
    with pytest.raises(InputChangedError, match=why) as caught:
        list(everybody(path, user_ids))
    assert "secret" not in str(caught.value)


def test_a_journal_without_users_recognizes_no_input(path: Path) -> None:
    changed(path, "DELETE FROM users")
    with pytest.raises(NobodyRecordedError, match="has no user by which to recognize it"):
        list(everybody(path, IDS))


def test_users_and_failures_are_those_with_an_outcome(path: Path) -> None:
    assert [row.user_id for row in users(path)] == [*IDS[:6], "user7"]
    assert [row.user_id for row in failures(path)] == ["user4"]


async def test_a_failure_that_was_tried_again_is_found_with_what_came_before(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    path = tmp_path / "run.journal"
    ids = sandbox.user_ids()
    sandbox.script(ids[3], "422:identity")
    await session.bulk_enable(ids, journal=path)
    await session.bulk_enable(ids, journal=path)
    latest, earlier = find(path, ids[3])
    assert [(row.outcome, row.attempts) for row in latest] == [("enabled", 2)]
    assert [(row.outcome, row.status, row.attempts) for row in earlier] == [("failed", 422, 1)]
    assert earlier[0].at <= latest[0].at
    assert find(path, ids[0]).earlier == []
    assert find(path, "nobody") == ([], [])


def test_a_damaged_row_is_told_wherever_it_is_read(path: Path) -> None:
    changed(path, "UPDATE users SET ms = 'x' WHERE position = 4")
    for look in (users, failures, lambda path: everybody(path, IDS)):
        with pytest.raises(ConfigurationError, match="values in `users` that no run writes"):
            list(look(path))


def test_an_old_journal_has_no_bad_lines_and_no_earlier_failures(path: Path) -> None:
    changed(path, "DROP TABLE bad_lines")
    changed(path, "DROP TABLE earlier")
    changed(path, "PRAGMA user_version = 1")
    assert list(bad_lines(path)) == []
    assert find(path, "user4").earlier == []
