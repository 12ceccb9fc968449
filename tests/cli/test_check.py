"""The commands `check` and `undo`, and `bulk` with what it looks up before it sends anything."""

import errno
import json
import os
import re
import resource
import shlex
import signal
import sqlite3
import subprocess
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorded
import typer
from terminal import PROGRAM, Cli, environment, stdin_from

from monocloud_async import config
from monocloud_async.cli import check, commands, states
from monocloud_async.cli.undo import locked
from monocloud_async.journal import snapshot
from monocloud_async.journal.before import is_journal
from monocloud_async.journal.lock import Lock
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=40, others=160) as sandbox:
        yield sandbox


@pytest.fixture
def users(sandbox: Sandbox, tmp_path: Path) -> Path:
    """A file of all users, of whom 40 and a few others are disabled."""
    return written(tmp_path / "users.txt", sandbox.user_ids())


def written(path: Path, ids: list[str]) -> Path:
    path.write_text("".join(f"{user_id}\n" for user_id in ids))
    return path


def disabled(sandbox: Sandbox) -> set[str]:
    return {user_id for user_id in sandbox.user_ids() if sandbox.is_disabled(user_id)}


def test_check_tells_each_state_and_ends_with_0_once_all_are_enabled(
    cli: Cli, sandbox: Sandbox, users: Path, tmp_path: Path
) -> None:
    was = len(disabled(sandbox))
    sandbox.add_user("locked", disabled=False, block_until=2_000_000_000)
    written(users, [*sandbox.user_ids(), "nobody"])
    table = tmp_path / "states.csv"
    done = cli("check", users, "-o", table)
    assert done.code == 1
    assert f"{200 - was:,} enabled\n" in done.out
    assert f"{was} disabled" in done.out
    assert "1 enabled, but locked out after failed sign-ins" in done.out
    assert "1 missing from the tenant" in done.out
    assert "locked,locked,2033-05-18T03:33:20Z," in table.read_text().splitlines()
    assert "nobody,missing,," in table.read_text().splitlines()
    written(users, sandbox.user_ids())
    assert cli("bulk", users).code == 0
    assert cli("check", users).code == 0


def test_check_of_a_pipe_holds_none_of_its_lines_in_memory(cli: Cli, tmp_path: Path) -> None:
    lines = written(tmp_path / "users.txt", ["a b", "ada"] * 50_000)
    with stdin_from(lines):
        tracemalloc.start()
        try:
            done = cli("check", "-")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "50,000 missing from the tenant\n50,000 bad lines\n" in done.out
    assert peak < 16 << 20


@pytest.mark.parametrize(("count", "requests"), [(2, 2), (200, 6)])
def test_the_way_with_fewer_requests_is_taken(
    cli: Cli, sandbox: Sandbox, users: Path, count: int, requests: int
) -> None:
    written(users, sandbox.user_ids()[:count])
    done = cli("check", users, "--json")
    assert sandbox.stats().requests == requests
    *rows, summary = map(json.loads, done.out.splitlines())
    assert {row["user_id"]: row["state"] for row in rows} == {
        user_id: "disabled" if sandbox.is_disabled(user_id) else "enabled"
        for user_id in sandbox.user_ids()[:count]
    }
    assert summary["summary"]["bad_lines"] == 0
    assert sum(summary["summary"].values()) == count


def test_a_journal_is_compared_with_what_is(cli: Cli, sandbox: Sandbox, users: Path) -> None:
    journal = users.with_name("users.txt.journal")
    ids = sandbox.user_ids()
    sandbox.script(ids[1], 422)
    assert cli("bulk", users).code == 1
    assert cli("check", journal).code == 1
    sandbox.add_user(ids[0], disabled=True)
    sandbox.add_user(ids[1], disabled=False)
    done = cli("check", journal)
    assert done.code == 1
    assert "1 of them were enabled by the journal, and are not any more" in done.out
    assert "1 of them are enabled now, although the run failed for them" in done.out
    assert f"user {ids[0]!r} is disabled" in done.err


def test_a_journal_proves_nothing_of_those_who_are_not_in_it(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    for user_id in sandbox.user_ids()[:20]:
        sandbox.add_user(user_id, disabled=True)
    cli("bulk", users, "--check", "--limit", 20)
    done = cli("check", journal)
    assert done.code == 1
    assert done.out.splitlines() == [
        "20 enabled",
        (
            "The run ended early: about 180 users of its input are not in the journal, and were not"
            " looked up"
        ),
        "The command that started the run resumes it",
    ]
    summary = json.loads(cli("check", journal, "--json").out.splitlines()[-1])["summary"]
    assert (summary["run"], summary["left"], summary["enabled"]) == ("ended", 180, 20)
    assert cli("undo", journal, "--limit", 5).code == 0
    done = cli("check", f"{journal}.undo")
    assert (done.code, "15 users of its input are not in the journal" in done.out) == (1, True)
    assert cli("undo", journal).code == 0
    assert cli("check", f"{journal}.undo").code == 0
    assert cli("bulk", users, "--no-journal").code == 0
    cli("bulk", users)
    done = cli("check", journal)
    assert (done.code, done.out) == (0, "200 enabled\n")


def test_bad_lines_of_a_journal_count_as_those_of_a_file_do(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    written(users, [sandbox.user_ids()[0], "ada@example.com", "no id"])
    cli("bulk", users)
    for name in (users, users.with_name("users.txt.journal")):
        done = cli("check", name)
        assert (done.code, done.out) == (1, "1 enabled\n2 bad lines\n")


def test_a_run_that_begins_during_a_check_changes_nothing_of_what_is_checked(
    cli: Cli, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More users than are in the memory of one reader."""
    journal = users.with_name("users.txt.journal")
    ids = written(users, [f"user-{number:017}" for number in range(40_000)])
    cli("bulk", users, "--limit", 1)
    with closing(sqlite3.connect(journal)) as sql, sql:
        sql.executemany(
            "INSERT OR IGNORE INTO users (position, user_id, outcome, attempts, ms, at, error)"
            " VALUES (?, ?, 'failed', 1, 9, 9, 'NotFoundError')",
            enumerate(ids.read_text().split()),
        )

    async def look_up(_access: Any, _session: Any, names: Any, *_more: Any) -> AsyncIterator[Any]:
        for number, name in enumerate(names):
            if number == 50:
                with closing(sqlite3.connect(journal)) as sql:
                    sql.execute("UPDATE users SET user_id = user_id || 'x' WHERE position % 3")
                    sql.commit()
                    sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            yield states.Looked(name, states.UserState.ENABLED)

    monkeypatch.setattr(check, "look_up", look_up)
    done = cli("check", journal, "-o", users.with_name("states.csv"))
    rows = users.with_name("states.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ids.read_text().split()
    assert "40,000 users" in done.err


def test_what_a_run_writes_during_the_check_of_its_journal_is_no_part_of_it(
    cli: Cli, sandbox: Sandbox, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = users.with_name("users.txt.journal")
    written(users, sorted(disabled(sandbox)))
    cli("bulk", users, "--limit", 10)

    def look_up(*arguments: Any) -> Any:
        with closing(sqlite3.connect(journal)) as sql, sql:
            sql.execute(
                "INSERT INTO users (position, user_id, outcome, attempts, ms, at)"
                " SELECT position + 10, user_id || 'x', outcome, attempts, ms, at FROM users"
            )
        return states.look_up(*arguments)

    monkeypatch.setattr(check, "look_up", look_up)
    with locked(journal):
        done = cli("check", journal)
    assert done.code == 1
    assert "Looking up 10 users" in done.err
    assert done.out.splitlines()[0] == "10 enabled"
    assert done.out.splitlines()[1].startswith("The run is at work: about ")
    assert len(done.out.splitlines()) == 2


def test_check_tells_what_was_found_in_the_file_and_refuses_an_empty_one(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = written(tmp_path / "ids.txt", ["# of today", sandbox.user_ids()[0]])
    assert "lines that begin with # are comments and passed over, as line 1" in (
        cli("check", ids).err
    )
    requests = sandbox.stats().requests
    written(ids, ["# of today"])
    done = cli("check", ids)
    assert (done.code, f"there are no ids in {ids}" in done.err) == (2, True)
    assert "as line 1" in done.err
    assert sandbox.stats().requests == requests


@pytest.mark.parametrize("end", ["", "-lock", "-wal", "-shm"])
def test_check_replaces_no_file_of_the_journal(
    cli: Cli, sandbox: Sandbox, users: Path, end: str
) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users, "--limit", 1)
    before = sorted(users.parent.iterdir()), journal.read_bytes(), sandbox.stats().requests
    done = cli("check", journal, "-o", f"{journal}{end}")
    assert (done.code, "is a file of the journal" in done.err) == (2, True)
    after = sorted(users.parent.iterdir()), journal.read_bytes(), sandbox.stats().requests
    assert after == before


def test_an_output_that_a_full_disk_does_not_take_ends_the_command_with_3(
    cli: Cli, users: Path
) -> None:
    cli("bulk", users, "--limit", 1)
    journal = users.with_name("users.txt.journal")
    for argv in (
        ("users", "--disabled", "-o"),
        ("check", users, "-o"),
        ("report", journal, "-o"),
        ("report", journal, "--failures"),
    ):
        done = cli(*argv, "/dev/full")
        assert done.code == 3
        assert done.err.endswith("Error: cannot write /dev/full: No space left on device\n")
        assert (" enabled\n" in done.out) == (argv[0] == "check")  # its counts are told anyway


def test_a_pipe_that_has_a_name_is_no_journal_and_keeps_its_content(users: Path) -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as pipe:
        os.write(writes, b"ada\n")
        os.close(writes)
        assert not is_journal(Path(f"/dev/fd/{reads}"))
        assert pipe.read() == b"ada\n"
    assert not is_journal(users)


def test_check_replaces_neither_the_input_of_the_run_nor_another_journal(
    cli: Cli, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users, "--check", "--limit", 1)
    cli("undo", journal)
    before = {path: path.read_bytes() for path in users.parent.iterdir()}
    for output, what in (
        (users, "is the input of the run"),
        (f"{journal}.undo", "is a journal"),
    ):
        done = cli("check", journal, "-o", output)
        assert (done.code, what in done.err) == (2, True)
    done = cli("bulk", users, "--no-journal", "--failures", journal)
    assert (done.code, "is a journal" in done.err) == (2, True)
    assert {path: path.read_bytes() for path in users.parent.iterdir()} == before


def test_check_refuses_what_it_cannot_tell(
    cli: Cli, sandbox: Sandbox, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users, "--limit", 1)
    was = disabled(sandbox)
    monkeypatch.setenv(config.API_KEY, "wrong-4711")
    done = cli("check", users)
    assert done.code == 3
    assert "401" in done.err
    monkeypatch.setenv(config.DOMAIN, "http://127.0.0.1:1")
    assert cli("check", users, "--attempts", 1).code == 3
    done = cli("check", journal)
    assert (done.code, "belongs to the tenant" in done.err) == (2, True)
    assert cli("check", users.with_name("no.txt")).code == 2
    assert disabled(sandbox) == was
    assert was


def test_bulk_check_leaves_out_who_is_enabled_and_undo_takes_back_only_the_others(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    done = cli("bulk", users, "--check", "--yes")
    assert done.code == 0
    assert f"{len(was)}  enabled" in done.out
    assert f"{200 - len(was)}  enabled before" in done.out
    assert disabled(sandbox) == set()
    sandbox.add_user(min(was), disabled=True)  # somebody else did it
    done = cli("undo", journal, "--dry-run")
    assert (done.code, disabled(sandbox)) == (0, {min(was)})
    assert f"{len(was)} would be disabled on {sandbox.url}" in done.out
    assert "Neither the key nor the tenant was tried.\n" in done.out
    done = cli("undo", journal, "--yes")
    assert done.code == 0
    assert disabled(sandbox) == was
    assert f"{len(was)}  disabled" in done.out
    assert cli("check", journal.with_name("users.txt.journal.undo")).code == 0
    assert cli("report", journal.with_name("users.txt.journal.undo")).code == 0
    again = cli("undo", journal, "--yes")
    assert f"{len(was)}  disabled before" in again.out
    assert f"without the file {journal}.undo, everybody is asked for again" in " ".join(
        again.out.split()
    )
    again = cli("undo", journal, "--dry-run")
    assert f"has {len(was)} disabled users, who are not sent again; the latest at" in again.out


def test_whom_only_the_journal_calls_enabled_nobody_has_seen_enabled(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    cli("bulk", users, "--check")
    cli("undo", journal)
    assert disabled(sandbox) == was
    requests = sandbox.stats().requests
    again = cli("bulk", users, "--check")
    assert sandbox.stats().requests == requests
    assert "200  enabled before, according to the journal" in again.out
    told = " ".join(again.out.split())
    assert "Nothing was sent: all of them were enabled by 20" in told
    assert "does not know what happened since (`check` tells how it is now)" in told
    enabled = sorted(set(sandbox.user_ids()) - was)
    written(users, [*sandbox.user_ids(), *enabled[:7], *sorted(was)[:3]])
    more = cli("bulk", users, "--check").out
    assert re.search(r"^ +3 +enabled *$", more, re.MULTILINE)
    assert re.search(r"^ +7 +enabled before *$", more, re.MULTILINE)
    assert "200  enabled before, according to the journal" in more
    assert "Some of them were enabled by 20" in more


def test_undo_checks_the_users_of_the_journal_once(
    cli: Cli, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("bulk", users, "--check")
    checked: list[str] = []
    has_rows = snapshot._has_rows

    def spy(sql: sqlite3.Connection, table: str, which: str = "1") -> bool:
        if which != "1":
            checked.append(table)
        return has_rows(sql, table, which)

    monkeypatch.setattr(snapshot, "_has_rows", spy)
    assert cli("undo", users.with_name("users.txt.journal"), "--dry-run").code == 0
    assert checked.count("users") == 1


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_undo_of_a_folder_is_an_error_of_usage(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    done = cli("undo", name)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"Error: {name or '.'} is not a journal of this program; name another file\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_undo_that_cannot_lock_its_journal_says_what_helps(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("undo", tmp_path / "no folder" / "j")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("no folder/j: No such file or directory\n")
    assert "cannot read the journal" in done.err

    def read_only(_: Lock) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Lock, "take", read_only)
    done = cli("undo", tmp_path / "j")
    assert (done.code, done.out) == (2, "")
    assert "Read-only file system; copy it, and its -wal if there is one, to a folder" in done.err


def test_undo_refuses_a_run_that_did_not_look(cli: Cli, sandbox: Sandbox, users: Path) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users)
    requests = sandbox.stats().requests
    done = cli("undo", journal, "--yes")
    assert done.code == 2
    assert "does not know who was disabled before the run" in done.err
    assert "a run with --check records it" in done.err
    assert sandbox.stats().requests == requests


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_undo_says_that_nobody_was_disabled_before_the_run(
    cli: Cli, sandbox: Sandbox, users: Path, options: tuple[str, ...]
) -> None:
    written(users, [user_id for user_id in sandbox.user_ids() if not sandbox.is_disabled(user_id)])
    cli("bulk", users, "--check")
    requests = sandbox.stats().requests
    done = cli("undo", users.with_name("users.txt.journal"), *options)
    assert done.code == 2
    assert "enabled nobody who was disabled before: there is nothing to undo" in done.err
    assert sandbox.stats().requests == requests
    assert not list(users.parent.glob("*.undo"))


def test_undo_leaves_alone_whom_the_journal_does_not_know(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    written(users, sandbox.user_ids()[:20])
    cli("bulk", users, "--limit", 8)
    cli("bulk", users, "--check")
    done = cli("undo", journal, "--yes")
    assert done.code == 1
    assert "8 users stay enabled" in done.err
    assert disabled(sandbox) >= set(sandbox.user_ids()[8:20])
    assert not disabled(sandbox) & set(sandbox.user_ids()[:8])


def test_undo_leaves_alone_whom_the_run_could_not_enable_and_somebody_else_did(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    refused = min(was)
    sandbox.script(refused, 409)
    assert cli("bulk", users, "--check").code == 1
    cli("enable", refused)
    assert cli("bulk", users, "--check").code == 0
    assert cli("undo", journal, "--yes").code == 0
    assert disabled(sandbox) == was - {refused}


def test_undo_knows_of_a_request_without_an_answer_though_a_later_one_could_not_be_sent(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    """Nobody else has enabled them: the first request did."""
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    assert cli("bulk", users, "--check").code == 0
    with closing(sqlite3.connect(journal)) as sql, sql:
        sql.execute(
            "INSERT INTO earlier (position, user_id, outcome, attempts, ms, at, error)"
            " SELECT position, user_id, 'unknown', 1, 9, at, 'RequestTimeoutError' FROM users"
        )
        sql.execute("UPDATE users SET outcome = 'failed', status = NULL, error = 'TransportError'")
    assert cli("bulk", users, "--check").code == 0
    assert cli("undo", journal, "--yes").code == 0
    assert disabled(sandbox) == was


def test_undo_refuses_the_journal_of_a_run_that_goes_on(cli: Cli, users: Path) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users, "--check")
    link = users.with_name("link")
    link.symlink_to(journal)
    with locked(journal):
        for name in (journal, link):
            done = cli("undo", name)
            assert done.code == 2
            assert f"is in use by process {os.getpid()} on " in done.err
    assert cli("undo", users.with_name("no.journal")).code == 2
    assert [path.name for path in users.parent.glob("*-lock")] == []


def test_an_undo_goes_on_with_whom_a_later_run_has_enabled(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    refused = min(was, key=sandbox.user_ids().index)
    sandbox.script(refused, 409)
    cli("bulk", users, "--check")
    assert cli("undo", journal).code == 0
    assert cli("bulk", users, "--check").code == 0
    assert disabled(sandbox) == was - {refused}
    done = cli("undo", journal, "--json")
    assert done.code == 0
    assert json.loads(done.out.splitlines()[-1])["summary"]["disabled"] == 1
    assert disabled(sandbox) == was


def test_an_undo_that_cannot_go_on_says_why_and_what_helps(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    cli("bulk", users, "--check")
    killed = min(was, key=sandbox.user_ids().index)
    with closing(sqlite3.connect(journal)) as sql, sql:
        sql.execute("DELETE FROM users WHERE user_id = ?", (killed,))
    assert cli("undo", journal).code == 0
    assert cli("bulk", users, "--check").code == 0
    done = cli("undo", journal)
    assert done.code == 2
    assert "a later run has changed who is to be disabled: move this journal away" in done.err
    assert "restore" not in done.err
    undo = users.with_name("users.txt.journal.undo")
    undo.rename(users.with_name("away"))
    assert cli("undo", journal).code == 0
    assert disabled(sandbox) == was


def test_an_address_that_gets_its_user_later_needs_another_journal(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()[:2]
    first, second = [(sandbox.user(user_id) or {})["emails"][0]["email"] for user_id in ids]
    ticket = written(tmp_path / "ticket.txt", [first, "late@example.com", second])
    assert cli("bulk", ticket, "--by", "email").code == 1
    sandbox.add_user("late", emails=[{"email": "late@example.com"}])
    done = cli("bulk", ticket, "--by", "email")
    assert done.code == 2
    assert "an e-mail address may have got or lost its user since: start a new" in done.err
    other = tmp_path / "other"
    assert cli("bulk", ticket, "--by", "email", "--check", "--journal", other).code == 0
    assert not sandbox.is_disabled("late")


def test_the_report_of_an_unfinished_undo_knows_its_users_and_its_command(
    cli: Cli, sandbox: Sandbox, users: Path, tmp_path: Path
) -> None:
    journal = users.with_name("users.txt.journal")
    undo = users.with_name("users.txt.journal.undo")
    lost = tmp_path / "lost.txt"
    count = len(disabled(sandbox))
    cli("bulk", users, "--check")
    assert cli("undo", journal, "--limit", 3).code == 0
    done = cli("report", undo, "--failures", lost)
    assert f"go on with: monocloud-async undo {journal}\n" in done.out
    assert f"{count - 3} users not disabled, {count - 3} of them never asked for: " in done.out
    assert len(lost.read_text().split()) == count - 3
    *rows, last = map(json.loads, cli("report", undo, "--json").out.splitlines())
    assert [row["status"] for row in rows] == ["disabled"] * 3 + ["not_attempted"] * (count - 3)
    summary = last["summary"]
    assert (summary["total"], summary["left"]) == (count, count - 3)
    assert summary["go_on"] == f"monocloud-async undo {journal}"
    assert "to this user; number" in cli("report", undo, "--user", rows[-1]["user_id"]).out
    assert cli("undo", journal).code == 0
    done = cli("report", undo)
    again = f"to ask again: monocloud-async undo {journal}, without the file {undo}\n"
    assert again in done.out
    undo.rename(tmp_path / "elsewhere")
    assert "to ask again: the same call" in cli("report", tmp_path / "elsewhere").out


def test_undo_refuses_other_journals(
    cli: Cli, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = users.with_name("users.txt.journal")
    cli("bulk", users, "--check")
    cli("undo", journal)
    done = cli("undo", f"{journal}.undo")
    assert (done.code, "only a run that enabled" in done.err) == (2, True)
    assert cli("undo", users).code == 2
    monkeypatch.setenv(config.DOMAIN, "http://127.0.0.1:1")
    done = cli("undo", journal)
    assert (done.code, "belongs to the tenant" in done.err) == (2, True)


def test_undo_knows_who_was_in_flight_when_the_run_was_killed(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    """The request was sent, and the kill came before the record of its outcome."""
    journal = users.with_name("users.txt.journal")
    was = disabled(sandbox)
    cli("bulk", users, "--check")
    with closing(sqlite3.connect(journal)) as sql, sql:
        sql.execute("DELETE FROM users WHERE outcome = 'enabled' AND position % 2")
    assert cli("undo", journal).code == 0
    assert disabled(sandbox) == was


def test_e_mail_addresses_are_refused_as_ids_and_resolved_if_asked(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()[:5]
    addresses = [(sandbox.user(user_id) or {})["emails"][0]["email"] for user_id in ids]
    ticket = written(tmp_path / "ticket.txt", addresses)
    done = cli("bulk", ticket)
    assert (done.code, "add --by email" in done.err) == (2, True)
    assert sandbox.stats().requests == 0
    done = cli("bulk", ticket, "--by", "email", "--dry-run")
    assert "5 ids, 0 bad lines. Nothing was changed." in done.out
    assert "The key works; --check asks the tenant who is enabled already." in done.out
    for twin in ("ada", "bob"):
        sandbox.add_user(twin, emails=[{"email": "twin@example.com"}])
    written(ticket, [*map(str.upper, addresses), "twin@example.com", "nobody@example.com"])
    failed = tmp_path / "failed.txt"
    done = cli("bulk", ticket, "--by", "email", "--failures", failed)
    assert done.code == 1
    assert "line 6 has the e-mail address twin@example.com, which several users have" in done.err
    assert "line 7 has the e-mail address nobody@example.com, which no user has" in done.err
    assert failed.read_text() == "twin@example.com\nnobody@example.com\n"
    assert not disabled(sandbox) & set(ids)
    assert sandbox.is_disabled("ada")
    again = cli("bulk", ticket, "--by", "email")
    assert "5  enabled before" in again.out


@pytest.mark.parametrize("header", ["email", "E-mail", "e-mail address", '"EMAIL"', "Mail"])
def test_a_list_of_addresses_may_have_a_header(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, header: str
) -> None:
    first, *_ = sandbox.user_ids()
    address = (sandbox.user(first) or {})["emails"][0]["email"]
    ticket = written(tmp_path / "ticket.txt", [header, address])
    for command in ("bulk", "check"):
        done = cli(command, ticket)
        assert (done.code, "add --by email" in done.err) == (2, True)
    assert sandbox.stats().requests == 0
    done = cli("bulk", ticket, "--by", "email")
    assert (done.code, f"line 1 is a header and passed over: {header!r}" in done.err) == (0, True)
    assert not sandbox.is_disabled(first)


@pytest.mark.parametrize(
    ("by", "sent"), [("id", "Nothing was sent."), ("email", "Nothing was changed.")]
)
def test_whoever_does_not_go_on_is_told_whether_the_tenant_was_asked(
    cli: Cli, sandbox: Sandbox, users: Path, monkeypatch: pytest.MonkeyPatch, by: str, sent: str
) -> None:
    """On a terminal, and with a tenant elsewhere."""
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(commands, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    monkeypatch.setattr(commands, "is_loopback", lambda _host: False)
    monkeypatch.setattr(typer, "confirm", lambda *_arguments, **_options: False)
    ids = sandbox.user_ids()[:20]
    if by == "email":
        ids = [(sandbox.user(user_id) or {})["emails"][0]["email"] for user_id in ids]
    done = cli("bulk", written(users, ids), "--by", by)
    assert done.code == 130
    assert f"{sent} --yes goes on without this question." in done.err
    assert (sandbox.stats().requests == 0) is (by == "id")


def test_the_command_that_goes_on_says_by_email_and_check(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()[:5]
    addresses = [(sandbox.user(user_id) or {})["emails"][0]["email"] for user_id in ids]
    ticket, journal = tmp_path / "ticket.csv", tmp_path / "ticket.csv.journal"
    written(ticket, ["E-Mail", *addresses])
    sandbox.script(ids[0], 422)
    options = ("--column", "E-Mail", "--by", "email", "--check")
    assert cli("bulk", ticket, *options, "--limit", 2).code == 1
    going_on = f"monocloud-async bulk {ticket} --column E-Mail --by email --check"
    assert cli("report", journal).out.splitlines()[0].endswith(f"go on with: {going_on}")
    again = tmp_path / "again.csv"
    done = cli("report", journal, "--failures", again)
    assert done.code == 2
    assert f"{ticket} cannot be read: it has e-mail addresses, whose users only the tenant" in (
        done.err
    )
    assert f"Finish the run first: {going_on}" in done.err
    sandbox.script(ids[0], 422)
    assert cli(*shlex.split(going_on)[1:]).code == 1
    done = cli("report", journal, "--failures", again)
    assert f"to ask again: {going_on} --no-journal" in done.out
    assert again.read_text() == f"user_id\n{ids[0]}\n"
    assert cli("bulk", again).code == 0
    assert cli("check", journal).code == 0


def test_a_dry_run_says_what_it_knows_and_how(
    cli: Cli, sandbox: Sandbox, users: Path, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()
    table = tmp_path / "users.csv"
    table.write_text("name,user_id\n" + "".join(f"x,{user_id}\n" for user_id in [*ids, ids[0]]))
    done = cli("bulk", table, "--dry-run", "--max-rate", 50)
    assert (done.code, sandbox.stats().requests) == (0, 0)
    assert "201 ids, 0 bad lines. Nothing was sent." in done.out
    assert "column 'user_id'" in done.out
    assert f"The first ids: {ids[0]!r}, {ids[1]!r}; the last ones: {ids[-1]!r}, {ids[0]!r}" in (
        done.out
    )
    assert "1 of the ids are duplicates" in done.out
    assert (
        f"\n200 would be enabled on {sandbox.url}, with 201 requests, in about 4 s at 50 a second"
        in done.out
    )
    slow = cli("bulk", table, "--dry-run", "--max-rate", 0.5).out
    assert "in about 6.7 min at 0.5 a second" in slow
    assert "no enabled users" in done.out
    assert "Neither the key nor the tenant was tried; --check asks the tenant" in done.out
    assert not table.with_name("users.csv.journal").exists()
    cli("bulk", table, "--limit", 30)
    done = cli("bulk", table, "--dry-run", "--limit", 100)
    assert "has 30 enabled users, who are not sent again" in done.out
    assert "; the latest at 20" in done.out
    assert "100 would be enabled" in done.out
    written(users, ids[:3])
    assert "; how long that takes depends" in cli("bulk", users, "--dry-run").out


def test_a_dry_run_with_check_asks_the_tenant_and_changes_nobody(
    cli: Cli, sandbox: Sandbox, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = disabled(sandbox)
    done = cli("bulk", users, "--dry-run", "--check")
    assert done.code == 0
    assert "The key works." in done.out
    assert "Of the 200 ids to look at, by the tenant:" in done.out
    assert f"{len(was)} disabled" in done.out
    assert f"\n{len(was)} would be enabled on" in done.out
    assert disabled(sandbox) == was
    done = cli("bulk", users, "--dry-run", "--check", "--json")
    seen = json.loads(done.out)
    assert seen["left"] == len(was)
    assert (seen["tenant"], seen["ids"], seen["states"]["disabled"]) == (
        sandbox.url,
        200,
        len(was),
    )
    monkeypatch.setenv(config.API_KEY, "wrong-4711")
    done = cli("bulk", users, "--dry-run", "--check")
    assert (done.code, "401" in done.err) == (3, True)


def test_a_dry_run_with_check_looks_only_at_those_who_are_left(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[1], 422)
    sandbox.add_user("locked", disabled=False, block_until=2_000_000_000)
    written(users, [*ids[:10], "nobody", "locked", *ids[10:]])
    assert cli("bulk", users, "--limit", 10).code == 1
    sandbox.add_user(ids[0], disabled=True)  # whom the run does not send again
    requests = sandbox.stats().requests
    done = cli("bulk", users, "--dry-run", "--check", "--limit", 2)
    assert sandbox.stats().requests == requests + 2
    assert "Of the 2 ids to look at, by the tenant:\n  1 disabled\n  1 missing\n" in done.out
    assert f"\n1 would be enabled on {sandbox.url}, with 2 requests" in done.out
    assert "\n1 would be asked for, and the tenant does not know them.\n" in done.out
    left = disabled(sandbox) - {ids[0]}
    done = cli("bulk", users, "--dry-run", "--check")
    assert "Of the 193 ids to look at" in done.out
    assert "  1 locked\n" in done.out
    assert f"\n{len(left)} would be enabled on" in done.out
    assert "\n1 would be asked for, and the tenant does not know them.\n" in done.out
    run = cli("bulk", users, "--check", "--json")
    summary = json.loads(run.out.splitlines()[-1])["summary"]
    assert summary["enabled"] + summary["failed"] == len(left) + 1
    assert sandbox.is_disabled(ids[0])


def test_a_preview_counts_people_and_not_their_ids_in_the_file(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    lost = sorted(disabled(sandbox))[:3]
    enabled = min(set(sandbox.user_ids()) - disabled(sandbox))
    written(users, [*lost, lost[0], lost[0], enabled, enabled, "nobody", "nobody"])
    done = cli("bulk", users, "--dry-run", "--check")
    assert "Of the 5 different ids to look at, by the tenant:" in done.out
    assert "  1 enabled\n  3 disabled\n  1 missing\n3 would be enabled on " in done.out
    assert ", with 7 requests; how long" in done.out
    assert "\n1 would be asked for, and the tenant does not know them.\n" in done.out
    seen = json.loads(cli("bulk", users, "--dry-run", "--check", "--json").out)
    assert (seen["users"], seen["left"], seen["ids"], seen["states"]["missing"]) == (3, 7, 9, 1)
    assert "\n5 would be enabled on" in cli("bulk", users, "--dry-run").out
    assert "\n3 would be enabled on" in cli("bulk", users, "--dry-run", "--limit", 4).out
    with stdin_from(users):
        assert "\n9 requests would be sent to " in cli("bulk", "-", "--dry-run").out
    was = disabled(sandbox)
    cli("bulk", users, "--check")
    assert was - disabled(sandbox) == set(lost)
    cli("undo", users.with_name("users.txt.journal"), "--limit", 1)
    done = cli("undo", users.with_name("users.txt.journal"), "--dry-run")
    assert "\n3 would be disabled on" in done.out  # the first one once more


def test_a_dry_run_with_check_asks_nothing_if_nobody_is_left(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    cli("bulk", users)
    requests = sandbox.stats().requests
    done = cli("bulk", users, "--dry-run", "--check")
    assert (done.code, sandbox.stats().requests) == (0, requests)
    assert "200 ids, 0 bad lines. Nothing was sent." in done.out
    assert "Neither the key nor the tenant was tried: nobody is left to look at." in done.out
    assert "The key works" not in done.out
    assert "\n0 would be enabled on" in done.out


def test_a_dry_run_of_a_pipe_leaves_the_comparison_with_the_journal_to_the_run(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    journal = users.with_name("j")
    sandbox.script(sandbox.user_ids()[3], 422)
    with stdin_from(users):
        assert cli("bulk", "-", "--journal", journal, "--limit", 50).code == 1
    with stdin_from(users):
        done = cli("bulk", "-", "--journal", journal, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert f"The journal {journal} has 49 enabled users" in done.out
    assert "Only the run compares its ids with the input, which can be read only once." in done.out
    assert "151 would be enabled" in done.out
    done = cli("bulk", users, "--journal", journal, "--dry-run")
    assert "Only the run compares" not in done.out


def test_a_dry_run_refuses_what_the_run_refuses(
    cli: Cli, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("bulk", users, "--limit", 5)
    written(users, ["another", *users.read_text().split()])
    changed = [cli("bulk", users, *options) for options in (["--dry-run"], [])]
    assert [done.code for done in changed] == [2, 2]
    assert len({done.err.splitlines()[-1] for done in changed}) == 1
    with locked(users.with_name("users.txt.journal")):
        in_use = [cli("bulk", users, *options) for options in (["--dry-run"], [])]
    assert [done.code for done in in_use] == [2, 2]
    assert len({done.err.splitlines()[-1] for done in in_use}) == 1
    monkeypatch.setenv(config.DOMAIN, "http://127.0.0.1:1")
    others = [cli("bulk", users, *options) for options in (["--dry-run"], [])]
    assert [done.code for done in others] == [2, 2]
    assert all("belongs to the tenant" in done.err for done in others)


def test_a_hundred_alike_stop_the_run_and_the_option_allows_them(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    nobody = written(tmp_path / "nobody.txt", [f"nobody{number}" for number in range(250)])
    done = cli("bulk", nobody, "--no-journal")
    assert (done.code, "first 100 users all failed in the same way" in done.err) == (3, True)
    assert done.err.endswith(". If that is to be expected, allow it with --max-same-failures\n")
    requests = sandbox.stats().requests
    assert 100 <= requests <= 200  # with those in flight
    assert cli("bulk", nobody, "--no-journal", "--max-same-failures", 0).code == 1
    assert sandbox.stats().requests == requests + 250
    options = ("--max-same-failures", 20, "--concurrency", 10)
    done = cli("bulk", nobody, "--no-journal", *options)
    assert (done.code, "first 20 users all failed in the same way" in done.err) == (3, True)
    assert requests + 270 <= sandbox.stats().requests <= requests + 280


@pytest.mark.process
@pytest.mark.parametrize("command", ["check", "report"])
def test_a_temporary_folder_that_is_full_is_told_and_not_the_journal(
    sandbox: Sandbox, users: Path, tmp_path: Path, command: str
) -> None:
    journal = recorded.write(tmp_path / "journal", [recorded.outcome(0, "user")])
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE header SET tenant = ?", (sandbox.url,))
        sql.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000)"
            " INSERT INTO users SELECT i, 'user of the number ' || i, 'enabled', 200, 1, i, i,"
            " NULL, NULL, NULL FROM n"
        )
        sql.execute("PRAGMA journal_mode = DELETE")

    def full() -> None:  # every file, as the tests cannot fill a disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))

    done = subprocess.run(
        [*PROGRAM, command, journal],
        env=environment(sandbox) | {"TMPDIR": str(tmp_path), "SQLITE_TMPDIR": ""}
        | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=full,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: the temporary folder {tmp_path} is full or cannot be written to, and the journal"
        f" {journal} is too large to be sorted in memory; make room there, or name another folder"
        " by the variable TMPDIR\n"
    )
