"""The report of a journal: in the terminal, as a file of failures, and as a page."""

import csv
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import journals
import pytest
from recorded import NASTY, TENANT, outcome, told, write

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.cli import main
from monocloud_async.inputs.ids import NotAnIdError, find
from monocloud_async.inputs.reader import open_ids
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import InputInfo
from monocloud_async.sandbox import Sandbox


def test_the_night_after_a_kill_is_no_work(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(journal)) as sql:
        # The first users of the next run may have a time just before its start.
        sql.execute(
            "UPDATE users SET at = (SELECT max(began) FROM sittings) - 5 WHERE position = 140"
        )
        sql.commit()
    assert "2.0 s of work" in told(capsys, journal)


def test_the_summary_tells_what_became_of_everybody(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys, journal)
    assert f"users.csv on {TENANT}, from the journal {journal}"[:60] in out
    assert re.search(r"^200 +enabled", out, re.MULTILINE)
    assert re.search(r"^ +35 +failed", out, re.MULTILINE)
    assert re.search(r"2\.0 s of work, \d+ users a second while requests were let through", out)
    assert "40 requests, 4 of them retries, 6 answered 429" in out
    assert "paused for 0.4 s" in out
    assert "within 50 ms, 90 % within 90 ms, 99 % within 99 ms, all within 100 ms" in out
    assert "killed" in out
    assert "still running" not in out  # another run came after it
    assert "finished" in out
    assert "404 Not Found" in out
    assert "\u202e" not in out


def test_a_terminal_is_told_no_ids_that_move_its_cursor_or_turn_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a\u202eb", "c\u2066d", "[red]e[/]", "f\u061cg"]
    path = write(tmp_path / "j", [outcome(*each, "\x1b[31mNo\x07") for each in enumerate(names)])
    out = told(capsys, path)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\u2066\u061c]", out)
    assert "a\\u202eb" in out.replace("\\\\", "\\")
    assert "[red]e[/]" in out
    assert "404" in out


@pytest.mark.parametrize(
    ("form", "column", "name"),
    [
        ("csv", "id", "out.csv"),
        ("csv", None, "out.csv"),
        ("jsonl", None, "x.jsonl"),
        ("txt", None, "x.txt"),
    ],
)
def test_the_failures_are_a_file_that_bulk_takes_as_exactly_those_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, column: str | None, name: str
) -> None:
    outcomes = [outcome(place, user_id, "No") for place, user_id in enumerate(NASTY)]
    path = write(tmp_path / "j", [*outcomes, outcome(10, "ada")], InputInfo("x", form, column))
    out = told(capsys, path, "--failures", tmp_path / name)
    sayable = [user_id for user_id in NASTY if is_sayable(user_id)]
    assert 0 < len(sayable) < len(NASTY)
    assert f"{len(sayable)} users to retry" in out
    assert f"{len(NASTY) - len(sayable)} ids are left out, because a file cannot say them" in out
    with open_ids(tmp_path / name, None, column) as source:
        assert sorted(line.user_id or "" for line in source) == sorted(sayable)


def is_sayable(user_id: str) -> bool:
    """Return whether a line of a file can have this id."""
    try:
        return find(user_id) == user_id
    except NotAnIdError:
        return False


def test_no_cell_of_a_csv_is_a_formula(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, journal, "--failures", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert cells[0] == "id"
    assert len(cells) == 30
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"]


async def test_ids_that_cannot_be_sent_are_no_ids_to_feed_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "j"
    async with (
        Sandbox(users=["ada"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        await session.bulk_enable(["ada", "..", "nobody", "x\ud800"], journal=path)
    out = told(capsys, path, "--failures", tmp_path / "out.txt")
    assert "1 users to retry" in out
    assert "2 ids are left out, because a file cannot say them" in out
    assert (tmp_path / "out.txt").read_text() == "nobody\n"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "is still empty"),
        (lambda path: path.write_text("user_id\n"), "is not a journal of this program"),
        (
            lambda path: write(path, [outcome(0, "ada")]).write_bytes(path.read_bytes()[:9000]),
            "read",
        ),
    ],
)
def test_what_is_no_journal_is_an_error_of_usage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    why: str,
) -> None:
    make(tmp_path / "j")
    assert main(["report", str(tmp_path / "j")]) == 2
    assert why in capsys.readouterr().err


def test_the_journal_is_not_overwritten_by_its_report(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = journals.rows(journal)
    for option in ("-o", "--failures"):
        assert main(["report", str(journal), option, str(journal)]) == 2
        assert "is a file of the journal" in capsys.readouterr().err
    assert main(["report", str(journal), "-o", "/nowhere/run.html"]) == 2
    assert "cannot write /nowhere/run.html" in capsys.readouterr().err
    assert journals.rows(journal) == before


async def test_neither_the_page_nor_the_summary_has_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sentinel-key-4711"
    path = tmp_path / "j"
    async with (
        Sandbox(users=3, api_key=key) as sandbox,
        MonoCloudSession(sandbox.url, key, retry=RetryPolicy(attempts=1)) as session,
    ):
        ids = sandbox.user_ids()
        sandbox.script(ids[1], "reset")
        await session.bulk_enable([*ids, "nobody"], journal=JournalFile(path, sandbox.url))
    out = told(capsys, path, "-o", tmp_path / "run.html", "--failures", tmp_path / "f.txt")
    for text in (out, (tmp_path / "run.html").read_text(), (tmp_path / "f.txt").read_text()):
        assert key not in text
    assert json.dumps(key)[1:-1] not in out


def test_a_clock_that_was_set_back_is_no_reason_to_fail(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in (
        "UPDATE users SET at = at - 3600000 WHERE position > 100",
        "UPDATE sittings SET ended = began - 7200000",
        "UPDATE sittings SET began = began + 864000000 WHERE sitting = 1",
    ):
        with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
            sql.execute(change)
        told(capsys, journal)


def test_the_input_is_not_overwritten_by_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("ada\n")
    path = write(tmp_path / "j", [outcome(0, "ada")], InputInfo(str(users)))
    for option in ("-o", "--failures"):
        assert main(["report", str(path), option, str(users)]) == 2
        assert "is the input of the run; choose another file" in capsys.readouterr().err
    assert users.read_text() == "ada\n"
