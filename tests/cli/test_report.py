"""The report of a journal: in the terminal, as a file of failures, and as a page."""

import csv
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import journals
import pytest
from recorded import NASTY, TENANT, outcome, told, write
from terminal import PROGRAM, Cli, stdin_from

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.cli import main
from monocloud_async.inputs.ids import NotAnIdError, find
from monocloud_async.inputs.reader import open_ids
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import InputInfo
from monocloud_async.report import rows
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
    assert re.search(
        r"^at least \d+ requests, 4 of them retries, 6 answered 429", out, re.MULTILINE
    )
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
        ("workbook", None, "out.csv"),
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
    assert "1 user to retry" in out
    assert "2 ids are left out, because a file cannot say them" in out
    assert (tmp_path / "out.txt").read_text() == "nobody\n"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "is empty"),
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


def unfinished(tmp_path: Path, form: str = "txt", *, asked: int = 6) -> Path:
    """A journal of a run that was interrupted after some of ten users, beside its input."""
    ids = [f"user{place}" for place in range(10)]
    source = tmp_path / f"users.{form}"
    lines = {
        "txt": ids,
        "csv": ["name,key", *(f"x,{user_id}" for user_id in ids)],
        "jsonl": [json.dumps({"key": user_id}) for user_id in ids],
    }[form]
    source.write_text("\n".join(lines) + "\n")
    column = None if form == "txt" else "key"
    outcomes = [outcome(place, ids[place], "No" if place == 1 else "") for place in range(asked)]
    info = InputInfo(str(source), form, column, path=str(source), about=10)
    path = write(tmp_path / f"users.{form}.journal", outcomes, info)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE sittings SET how = 'interrupted by SIGINT' WHERE sitting = 2")
    return path


@pytest.mark.parametrize("form", ["txt", "csv", "jsonl"])
def test_of_an_unfinished_run_the_failures_are_all_who_are_not_enabled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    path = unfinished(tmp_path, form)
    again = tmp_path / f"again.{form}"
    out = told(capsys, path, "--failures", again)
    first, *_ = out.splitlines()
    assert first.startswith("Not finished (interrupted by SIGINT): about 60 %, about 4 of about 10")
    column = "" if form == "txt" else " --column key"
    assert first.endswith(f"go on with: monocloud-async bulk {tmp_path}/users.{form}{column}")
    assert "5 users to retry, 4 of them never asked for" in out
    with open_ids(again, None, None if form == "txt" else "key") as source:
        assert [line.user_id for line in source] == ["user1", *(f"user{n}" for n in range(6, 10))]


def test_an_input_whose_name_begins_with_a_dash_is_no_option_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-users.txt").write_text("ada\nbob\n")
    info = InputInfo("-users.txt", "txt", None, path=str(tmp_path / "-users.txt"), about=2)
    path = write(tmp_path / "-users.txt.journal", [outcome(0, "ada")], info)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE sittings SET how = 'interrupted by SIGINT'")
    out = told(capsys, path)
    assert "go on with: monocloud-async bulk ./-users.txt\n" in out


def test_several_outputs_need_the_input_to_be_checked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unfinished(tmp_path)
    opened: list[object] = []

    def spy(*args: Any, **options: Any) -> Any:
        opened.append(args[0])
        return open_ids(*args, **options)

    monkeypatch.setattr("monocloud_async.cli.report.open_ids", spy)
    told(capsys, path, "--failures", tmp_path / "again.txt", "-o", tmp_path / "page.html")
    assert len(opened) == 3  # for the check, and for each output


def without_users(source: Path) -> None:
    with closing(sqlite3.connect(f"{source}.journal", isolation_level=None)) as sql:
        sql.execute("DELETE FROM users")


def test_a_run_over_an_input_without_ids_has_no_time(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("..\n")
    assert cli("bulk", ids).code == 1
    page = tmp_path / "page.html"
    *_, last = cli("report", f"{ids}.journal", "-o", page).out.splitlines()[:-1]
    assert last == f"Nobody was asked for; to ask: monocloud-async bulk {ids} --no-journal"
    assert "1970" not in page.read_text()
    assert sandbox.stats().requests == 0


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda source: source.unlink(), "users.txt is not there"),
        (lambda source: source.write_text("other\n" * 10), "has changed: id number 1 was 'user0'"),
        (lambda source: source.write_text("user0\n"), "has changed: it ends before id number 2"),
        (without_users, "may have changed: the journal has no user by which to recognize it"),
    ],
)
def test_failures_that_cannot_be_known_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    why: str,
) -> None:
    path = unfinished(tmp_path)
    again = tmp_path / "again.txt"
    again.write_text("before")
    spoil(tmp_path / "users.txt")
    assert main(["report", str(path), "--failures", str(again)]) == 2
    err = capsys.readouterr().err
    assert "--failures cannot have everybody: Not finished" in err
    assert why in err
    assert f"Finish the run first: monocloud-async bulk {tmp_path}/users.txt" in err
    assert again.read_text() == "before"


def test_an_input_that_moved_with_its_journal_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    unfinished(tmp_path)
    for name in ("users.txt", "users.txt.journal"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    path = tmp_path / "there" / "users.txt.journal"
    assert "4 of them never asked for" in told(capsys, path, "--failures", tmp_path / "again.txt")
    assert main(["report", str(path), "-o", str(tmp_path / "there" / "users.txt")]) == 2


@pytest.mark.parametrize(
    ("user_id", "said"),
    [
        ("user0", "'user0': enabled at 2026-"),
        ("user1", "'user1': failed at 2026-"),
        ("user9", "'user9': not attempted; the run has not come to this user"),
    ],
)
def test_what_became_of_a_user_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], user_id: str, said: str
) -> None:
    out = told(capsys, unfinished(tmp_path), "--user", user_id)
    assert out.startswith(said)
    assert out.rstrip().endswith(f"number {int(user_id[4:]) + 1} of the input")
    assert ("404 No; trace 00-abc-01" in out) == (user_id == "user1")


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",)])
def test_a_user_who_is_not_in_the_run_is_an_error_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    path = unfinished(tmp_path)
    assert main(["report", str(path), "--user", "nobody", *options]) == 2
    captured = capsys.readouterr()
    assert "'nobody' is not in the journal" in captured.err
    assert "and not in its input" in captured.err
    assert captured.out == ""
    (tmp_path / "users.txt").unlink()
    assert main(["report", str(path), "--user", "nobody", *options]) == 2
    assert "has not come to this user, or the user is not in its input" in capsys.readouterr().err


def test_the_json_lines_account_for_everybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("INSERT INTO bad_lines VALUES (3, 1, 'is not UTF-8')")
        sql.execute("UPDATE input SET bad_lines = 1")
    *lines, last = [json.loads(line) for line in told(capsys, path, "--json").splitlines()]
    users = [line for line in lines if "number" in line]
    assert [line["user_id"] for line in users] == [f"user{n}" for n in range(10)]
    assert [line["status"] for line in users[:2]] == ["enabled", "failed"]
    assert users[1]["error"] == {
        "type": "NotFoundError", "message": "404 No", "status": 404, "trace_id": "00-abc-01",
    }  # fmt: skip
    assert {line["status"] for line in users[6:]} == {"not_attempted"}
    assert [line["line"] for line in lines if "line" in line] == [3]
    summary = last["summary"]
    assert (summary["state"], summary["finished"], summary["complete"]) == ("ended", False, True)
    counts = [summary[name] for name in ("total", "enabled", "failed", "not_attempted", "left")]
    assert counts == [10, 5, 1, 4, 4]
    assert summary["bad_lines"] == 1
    assert summary["go_on"] == f"monocloud-async bulk {tmp_path}/users.txt"
    assert summary["runs"][1]["how"] == "interrupted by SIGINT"


def test_without_the_input_the_json_lines_say_that_they_are_not_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    (tmp_path / "users.txt").unlink()
    assert main(["report", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    *lines, last = captured.out.splitlines()
    assert len(lines) == 6
    assert json.loads(last)["summary"]["complete"] is False
    assert "Users who were never asked for are not listed: the input" in captured.err


def test_the_csv_has_every_outcome_and_no_formula(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(journal), "--csv"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(captured.out.splitlines()))
    assert len(rows) == 235
    assert (rows[0]["number"], rows[0]["user_id"], rows[0]["status"]) == ("1", "user0", "enabled")
    assert {row["message"] for row in rows} == {"", "404 Not Found"}
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] and cell[0] in "=+-@\t\r\uff1d\uff0b\uff0d"]
    assert captured.err.startswith("Finished")


def test_one_user_can_be_had_as_json_and_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    out = told(capsys, path, "--user", "user9", "--json")
    assert [json.loads(line).get("user_id") for line in out.splitlines()] == ["user9", None]
    out = told(capsys, path, "--user", "user1", "--csv")
    assert [row["user_id"] for row in csv.DictReader(out.splitlines())] == ["user1"]
    assert main(["report", str(path), "--csv", "--json"]) == 2


def test_the_exit_code_tells_the_state_where_that_is_asked_for(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(journal), "--exit-code"]) == 1  # 35 failed
    (tmp_path / "x").mkdir()
    path = unfinished(tmp_path / "x")
    assert main(["report", str(path), "--exit-code"]) == 3
    assert main(["report", str(path)]) == 0
    done = write(tmp_path / "done", [outcome(0, "ada"), outcome(1, "bob")])
    assert main(["report", str(done), "--exit-code"]) == 0
    with closing(sqlite3.connect(done, isolation_level=None)) as sql:
        sql.execute("UPDATE input SET bad_lines = 1")
    assert main(["report", str(done), "--exit-code"]) == 1
    capsys.readouterr()


def test_a_finished_run_says_since_when_and_how_to_ask_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "users.list"
    source.write_text("ada\n")
    info = InputInfo("users.list", "txt", path=str(source))
    out = told(capsys, write(tmp_path / "my journal", [outcome(0, "ada")], info))
    assert "The journal knows the tenant as it was at 2026-09-22 " in out
    again = f"monocloud-async bulk {source} --format txt --no-journal"
    assert out.rstrip().endswith(f"to ask again: {again}")


def test_a_command_is_told_from_what_is_needed_and_never_taken_from_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    evil = path.rename(tmp_path / "my journal;rm")
    with closing(sqlite3.connect(evil, isolation_level=None)) as sql:
        sql.execute("UPDATE commands SET command = 'rm -rf x'")
        sql.execute("UPDATE header SET input = 'users.txt; rm -rf x'")
        sql.execute("UPDATE input SET path = '/nothing; rm -rf x'")
    first, *_ = told(capsys, evil).splitlines()
    assert first.endswith(f"bulk 'users.txt; rm -rf x' --format txt --journal '{evil}'")


@pytest.mark.parametrize(
    ("recorded", "options"),
    [
        ("monocloud-async bulk --profile '../x;rm' users.txt", ""),
        ("monocloud-async bulk --profile ' $(rm)' --domain ';rm x' users.txt", " --domain ';rm x'"),
        ("monocloud-async bulk users.txt --api-key-file '/x/****'", ""),
        ("monocloud-async bulk users.txt --domain 'cut of", ""),
        ("monocloud-async bulk users.txt --max-rate=2.5 --limit 3 --note x", " --max-rate 2.5"),
        ("monocloud-async bulk users.txt --max-rate .5", " --max-rate .5"),
        ("monocloud-async bulk users.txt --max-rate 1e1", " --max-rate 1e1"),
        ("monocloud-async bulk users.txt --max-rate nan", ""),
        ("monocloud-async bulk users.txt --max-same-failures 0", " --max-same-failures 0"),
        ("monocloud-async bulk users.txt --max-rate '$(rm)' --max-same-failures -1", ""),
        ("monocloud-async bulk users.txt --domain", ""),
        ("monocloud-async bulk users.txt -- --domain x", ""),
        ("monocloud-async", ""),
        ("", ""),
    ],
)
def test_of_the_recorded_command_only_what_the_next_run_needs_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: str, options: str
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE commands SET command = ?", (recorded,))
    first, *_ = told(capsys, path).splitlines()
    assert first.endswith(f"; go on with: monocloud-async bulk {tmp_path}/users.txt{options}")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE input SET path = ?",
        "UPDATE commands SET command = 'monocloud-async bulk x --api-key-file ' || ?",
    ],
)
def test_a_path_that_this_user_cannot_look_at_is_one_that_is_not_there(
    cli: Cli, tmp_path: Path, statement: str
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute(statement, (str(tmp_path / ("a" * 300)),))
    done = cli("report", path)
    assert (done.code, done.err) == (0, "")
    assert f"; go on with: monocloud-async bulk {tmp_path}/users.txt\n" in done.out


def test_a_command_that_was_recorded_in_part_is_not_told_in_part(cli: Cli, tmp_path: Path) -> None:
    ids, key = tmp_path / "ids.txt", tmp_path / "key"
    ids.write_text("ada\nbob\n")
    with Sandbox(users=["ada", "bob"]) as sandbox:
        key.write_text(sandbox.api_key)
        argv = ("bulk", ids, "--note", "a" * 3900, "--domain", sandbox.url, "--api-key-file", key)
        assert cli(*argv, "--limit", 1).code == 0
        assert "; go on with: the same command\n" in cli("report", f"{ids}.journal").out
        assert cli(*argv).code == 0
    text = cli("report", f"{ids}.journal").out
    assert text.endswith("; to ask again: the same command with another --journal\n")


@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("key", " --api-key-file {folder}/key"),
        ("missing", ""),
        ("pipe", ""),
        ("folder", ""),
        ("/dev/stdin", ""),
    ],
)
def test_of_key_files_only_one_that_is_there_is_named_to_go_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, options: str
) -> None:
    path = unfinished(tmp_path)
    key = tmp_path / "key"
    key.touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    command = f"monocloud-async bulk users.txt --api-key-file {named}"
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE commands SET folder = ?, command = ?", (str(tmp_path), command))
    with stdin_from(key):
        first, *_ = told(capsys, path).splitlines()
    _, _, going_on = first.partition("; go on with: ")
    options = options.format(folder=tmp_path)
    assert going_on == f"monocloud-async bulk {tmp_path}/users.txt{options}"


def test_ids_from_stdin_are_told_as_gone_and_not_as_a_file_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE header SET input = 'stdin'")
        sql.execute("UPDATE input SET path = ''")
    assert main(["report", str(path), "--failures", str(tmp_path / "again.txt")]) == 2
    why = "its ids came from stdin, which cannot be read again"
    going_on = f"monocloud-async bulk - --format txt --journal {path}"
    assert f"{why}. Finish the run first: {going_on}" in capsys.readouterr().err


def test_an_input_that_was_an_open_file_is_to_come_from_stdin_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE header SET input = '/dev/fd/63'")
        sql.execute("UPDATE input SET path = NULL")
    first, *_ = told(capsys, path).splitlines()
    assert first.endswith(f"; go on with: monocloud-async bulk - --format txt --journal {path}")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE header SET input = 'https://bucket/ids.txt?Signature=' || hex(zeroblob(500))",
        (
            "UPDATE commands SET command = 'monocloud-async bulk x --api-key-file '"
            " || hex(zeroblob(500))"
        ),
        # To look at such a file is an error, as it is in a folder that is closed to this user.
        "UPDATE input SET path = '/' || hex(zeroblob(150))",
        "UPDATE commands SET folder = hex(zeroblob(150)), command = 'x bulk --api-key-file a x'",
        "UPDATE commands SET command = 'monocloud-async bulk x --api-key-file a' || char(0)",
        "UPDATE commands SET folder = char(0), command = 'monocloud-async bulk --api-key-file a x'",
        "UPDATE header SET input = 'a' || char(0)",
        "UPDATE input SET path = '/a' || char(0)",
    ],
)
def test_a_path_that_cannot_be_one_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute(statement)
    first, *_ = told(capsys, path).splitlines()
    assert "; go on with: monocloud-async bulk " in first
    assert first.isprintable()


@pytest.mark.process
def test_a_command_with_control_characters_can_be_pasted_into_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a'b\\ \x1b[31m\x85\u202e\n.txt"
    source.write_text("user0\nuser1\n")
    made = unfinished(tmp_path)
    path = made.rename(f"{source}.journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE header SET input = ?", (str(source),))
        sql.execute("UPDATE input SET path = NULL")
    first, *_ = told(capsys, path).splitlines()
    _, _, command = first.partition("go on with: ")
    assert command.isprintable()
    shell = ["bash", "-c", f'printf "%s\\0" {command}']
    words = subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    assert words[:3] == [b"monocloud-async", b"bulk", os.fsencode(source)]


@pytest.mark.parametrize(
    ("count", "said"), [(1, "the one user was asked for"), (2, "all 2 users were asked for")]
)
def test_the_first_line_fits_the_number_of_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, said: str
) -> None:
    path = write(tmp_path / "j", [outcome(place, f"user{place}") for place in range(count)])
    assert told(capsys, path).startswith(f"Finished: {said}\n")


def test_bad_lines_are_told_with_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.executemany("INSERT INTO bad_lines VALUES (?, 1, 'is bad')", [(n,) for n in range(12)])
        sql.execute("UPDATE input SET bad_lines = 12")
    out = told(capsys, path)
    assert "12 bad lines without a valid id (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in out


@pytest.mark.process
@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_an_output_that_stdout_does_not_take_is_told_in_one_line(
    journal: Path, option: str
) -> None:
    command = [*PROGRAM, "report", str(journal), option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.endswith("Error: cannot write to stdout (No space left on device)\n")
    assert "Traceback" not in done.stderr


def test_an_id_that_was_refused_is_found_by_its_own_name(tmp_path: Path) -> None:
    path = write(tmp_path / "j", [outcome(0, "ada")])
    name = "na\udcefme"  # as Python has a byte that is not UTF-8
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("UPDATE users SET user_id = ?", (ascii(name),))
    assert [row.user_id for row in rows.find(path, name).latest] == [ascii(name)]
