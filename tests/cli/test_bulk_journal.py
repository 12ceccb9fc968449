"""The journal of `bulk`: its path, its messages, and when it is refused."""

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import journals
import pytest
from terminal import Cli, Result, started, wait_for

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

Bulk = Callable[..., Result]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


@pytest.fixture
def users(sandbox: Sandbox, tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text("nobody\n" + "".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    return path


@pytest.fixture
def bulk(sandbox: Sandbox, cli: Cli) -> Bulk:
    """Run the command, in a real process if its input is this text in a pipe."""

    def run(*argv: object, text: str | None = None) -> Result:
        if text is None:
            return cli("bulk", *argv)
        with started(sandbox, "bulk", *argv) as process:
            out, err = process.communicate(text)
        return Result(process.returncode, out, err)

    return run


def test_the_journal_is_beside_the_input_and_the_run_says_so(
    bulk: Bulk, sandbox: Sandbox, users: Path
) -> None:
    first = bulk(users)
    assert first.code == 1
    assert f"The journal of this run is {users}.journal: the same command resumes" in first.err
    second = bulk(users)
    assert second.code == 1
    assert f"Resuming the run of the journal {users}.journal; users enabled" in second.err
    assert "50  enabled before, according to the journal" in second.out
    assert sandbox.stats().requests == 52
    assert journals.outcomes(users.with_name("users.txt.journal")) == {"enabled": 50, "failed": 1}


def test_without_a_journal_everybody_is_asked_for(
    bulk: Bulk, sandbox: Sandbox, users: Path
) -> None:
    for _ in range(2):
        assert bulk(users, "--no-journal").code == 1
    assert sandbox.stats().requests == 102
    assert not list(users.parent.glob("*.journal*"))


def test_a_dry_run_makes_none(bulk: Bulk, users: Path) -> None:
    assert bulk(users, "--dry-run").code == 0
    assert not list(users.parent.glob("*.journal*"))


def test_a_pipe_has_one_only_where_it_is_named(bulk: Bulk, sandbox: Sandbox, users: Path) -> None:
    ids = users.read_text()
    bulk("-", text=ids)
    assert not list(users.parent.glob("*.journal*"))
    journal = users.parent / "piped"
    bulk("-", "--journal", journal, text=ids)
    seen = sandbox.stats().requests
    assert bulk("-", "--journal", journal, text=ids + "nobody2\n").code == 1
    assert sandbox.stats().requests == seen + 2


@pytest.mark.parametrize("piped", [False, True])
def test_an_input_that_changed_is_an_error_of_usage(
    bulk: Bulk, sandbox: Sandbox, users: Path, *, piped: bool
) -> None:
    lines = users.read_text().splitlines(keepends=True)
    ids = lines[1:] if piped else lines  # no user is sent before the change is detected
    users.write_text("".join(ids))
    bulk(users)
    journal = users.with_name("users.txt.journal")
    before, seen = journal.read_bytes(), sandbox.stats().requests
    ids[30] = "somebody-else\n"
    users.write_text("".join(ids))
    options = ["-", "--journal", journal] if piped else [users]
    done = bulk(*options, text="".join(ids) if piped else None)
    assert done.code == 2
    assert "id number 31 is 'somebody-else', but was" in done.err
    assert "ids may only be added at its end), or start a new journal" in done.err
    assert "Traceback" not in done.err
    assert sandbox.stats().requests == seen
    assert journal.read_bytes() == before


@pytest.mark.parametrize("option", ["--yes", "--json"])
def test_a_shorter_input_than_the_journals_is_refused_and_no_success(
    bulk: Bulk, sandbox: Sandbox, users: Path, option: str
) -> None:
    ids = sandbox.user_ids()
    users.write_text("".join(f"{user_id}\n" for user_id in ids))
    assert bulk(users).code == 0
    users.write_text("".join(f"{user_id}\n" for user_id in ids[:5]))
    done = bulk(users, option)
    assert (done.code, done.out) == (2, "")
    assert "it ends after 5 ids, but the journal has 50; restore the input" in done.err
    assert "Nothing was sent" not in done.err


def test_the_input_is_not_taken_for_a_journal(bulk: Bulk, sandbox: Sandbox, users: Path) -> None:
    before = users.read_bytes()
    done = bulk(users, "--journal", users)
    assert done.code == 2
    assert f"the journal: {users} is the input; choose another file" in done.err
    assert users.read_bytes() == before
    assert sandbox.stats().requests == 0


def test_options_that_contradict_each_other_are_an_error_of_usage(bulk: Bulk, users: Path) -> None:
    done = bulk(users, "--journal", "x", "--no-journal")
    assert done.code == 2
    assert "contradict" in done.err


def test_a_place_that_cannot_be_written_names_the_ways_out(bulk: Bulk, users: Path) -> None:
    done = bulk(users, "--journal", users.parent / "missing" / "j")
    assert done.code == 2
    assert "No such file or directory; name another path, or run without a journal" in done.err


def test_a_run_that_is_interrupted_before_it_read_anything_does_not_call_the_input_empty(
    sandbox: Sandbox, users: Path
) -> None:
    with started(sandbox, "bulk", "-") as process:  # an empty pipe that stays open
        assert process.stderr
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
        assert process.stdout
        assert "no ids in" not in process.stdout.read()
    users.write_text("")
    with started(sandbox, "bulk", users) as process:
        _, err = process.communicate(timeout=90)
    assert "there are no ids in" in err


def test_a_run_that_is_refused_leaves_the_failures_of_the_last_one(
    bulk: Bulk, users: Path, tmp_path: Path
) -> None:
    failed = tmp_path / "failed.txt"
    bulk(users, "--failures", failed)
    assert failed.read_text() == "nobody\n"
    ids = users.read_text()
    users.write_text(ids.replace("nobody", "nobody2"))
    assert bulk(users, "--failures", failed).code == 2
    assert failed.read_text() == "nobody\n"
    users.write_text(ids)
    assert bulk(users, "--failures", failed).code == 1
    assert failed.read_text() == "nobody\n"


def test_the_failures_do_not_go_into_the_journal(bulk: Bulk, users: Path) -> None:
    bulk(users)
    journal = users.with_name("users.txt.journal")
    before = journal.read_bytes()
    for name in (journal, users.with_name("users.txt.journal-wal")):
        done = bulk(users, "--failures", name)
        assert done.code == 2
        assert f"--failures: {name} is a file of the journal; choose another file" in done.err
    assert journal.read_bytes() == before


def test_a_name_that_only_looks_like_the_journals_is_fine(bulk: Bulk, users: Path) -> None:
    failed = users.with_name("users.txt.journal.failed")
    assert bulk(users, "--failures", failed).code == 1
    assert failed.read_text() == "nobody\n"


def query(path: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as sql:
        return sql.execute(text).fetchall()


def test_the_journal_knows_who_ran_which_command_and_no_secret(
    bulk: Bulk, sandbox: Sandbox, users: Path
) -> None:
    bulk(users, "--note", f"HELP-7 {sandbox.api_key}", "--concurrency", 7)
    journal = users.with_name("users.txt.journal")
    told = f"monocloud-async bulk {users} --note 'HELP-7 ****' --concurrency 7"
    assert query(journal, "SELECT command, note FROM commands") == [(told, "HELP-7 ****")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_journal_knows_the_signal_that_ended_a_run(
    sandbox: Sandbox, users: Path, number: signal.Signals
) -> None:
    sandbox.latency = 0.3
    with started(sandbox, "bulk", users, "--concurrency", 2) as process:
        wait_for(lambda: sandbox.stats().requests > 5)
        process.send_signal(number)
        assert process.wait(timeout=90) == 130
    journal = users.with_name("users.txt.journal")
    assert query(journal, "SELECT how, signal FROM sittings JOIN commands USING (sitting)") == [
        ("interrupted", number.name)
    ]
    assert query(journal, "SELECT path, about FROM input") == [(str(users), 51)]


def test_a_run_that_is_interrupted_while_it_reads_the_list_was_not_killed(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    sandbox.max_page_size, sandbox.latency = 10, 2.0  # the journal has it after a second
    journal = users.with_name("users.txt.journal")
    with started(sandbox, "bulk", users, "--check") as process:
        wait_for(lambda: journal.exists() and journal.stat().st_size > 0)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=90)
        assert process.returncode == 130
    assert "Stopping\n" in said  # no call is in flight
    first, *_ = cli("report", journal).out.splitlines()
    assert first.startswith("Not finished (interrupted by SIGTERM): about 0 %")
    assert first.endswith(f"; go on with: monocloud-async bulk {users} --check")


def test_a_run_over_an_input_that_has_grown_is_not_finished_before_it_was_read_to_its_end(
    cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    known = sandbox.user_ids()
    journal, failed = users.with_name("users.txt.journal"), users.with_name("failed.txt")
    users.write_text("".join(f"{user_id}\n" for user_id in known[:20]))
    assert cli("bulk", users).code == 0
    users.write_text("".join(f"{user_id}\n" for user_id in known))
    sandbox.max_page_size, sandbox.latency = 10, 2.0  # the journal has it after a second
    with started(sandbox, "bulk", users, "--check") as process:
        wait_for(lambda: len(query(journal, "SELECT * FROM sittings")) > 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
    done = cli("report", journal, "--failures", failed, "--exit-code")
    first, *_ = done.out.splitlines()
    told = "Not finished (interrupted by SIGINT): about 40 %, about 30 of about 50 users not yet"
    assert (done.code, first.partition("; go on")[0]) == (3, told)
    assert failed.read_text().split() == known[20:]


def test_a_run_that_is_refused_after_its_first_requests_was_not_killed(
    bulk: Bulk, cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    journal, known = tmp_path / "j", sandbox.user_ids()[0]
    first, other = (f"nobody\n{known}\n{third}\n" for third in ("nobody2", "nobody3\n.."))
    assert bulk("-", "--journal", journal, text=first).code == 1
    assert bulk("-", "--journal", journal, text=other).code == 2
    assert query(journal, "SELECT how FROM sittings") == [
        ("finished",),
        ("stopped: ConfigurationError",),
    ]
    assert query(journal, "SELECT ids, bad_lines FROM input") == [(3, 0)]
    assert "killed" not in cli("report", journal).out


def test_a_success_on_the_word_of_an_old_journal_has_its_date_and_the_way_out(
    bulk: Bulk, sandbox: Sandbox, users: Path
) -> None:
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    bulk(users)
    journal = users.with_name("users.txt.journal")
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE users SET at = 1790000000000")
    told = (
        "Nothing was sent: all of them were enabled by 2026-09-21 14:13:20 UTC, according to the"
        " journal, which does not know what happened since (`check` tells how it is now);"
        " --no-journal or another --journal asks for everybody again"
    )
    done = bulk(users)
    assert (done.code, told in done.out) == (0, True)
    done = bulk(users, "--json")
    assert (done.code, told in done.err) == (0, True)
    users.write_text(users.read_text() + "nobody\n")
    assert "Some of them were enabled by 2026-09-21" in bulk(users).out


def test_bad_lines_are_in_the_journal(bulk: Bulk, users: Path) -> None:
    table = users.with_suffix(".csv")
    table.write_text("user_id,note\n,nobody\nghost-of-a-user,x\n,nobody\n")
    assert bulk(table).code == 1
    journal = users.with_name("users.csv.journal")
    assert [line for (line,) in query(journal, "SELECT line FROM bad_lines")] == [2, 4]
    assert query(journal, "SELECT ids, bad_lines FROM input") == [(1, 2)]


def test_a_report_of_a_colleague_does_not_lock_the_owner_out(
    bulk: Bulk, cli: Cli, sandbox: Sandbox, users: Path
) -> None:
    ids = users.read_text()
    few = "".join(ids.splitlines(keepends=True)[:10])
    journal = users.with_name("users.journal")
    bulk("-", "--journal", journal, text=few)
    before = sorted(entry.name for entry in users.parent.iterdir())
    done = cli("report", journal)
    assert sorted(entry.name for entry in users.parent.iterdir()) == before
    assert "Finished: all 10 users were asked for" in done.out
    assert bulk("-", "--journal", journal, text=ids).code == 1
    assert sandbox.stats().users["enabled"] == 50


def test_a_journal_that_another_program_locks_is_refused_before_the_run_begins(
    bulk: Bulk, users: Path
) -> None:
    bulk(users)
    with closing(sqlite3.connect(f"{users}.journal", isolation_level=None)) as sql:
        sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        sql.execute("BEGIN EXCLUSIVE")
        done = bulk(users)
    assert done.code == 2
    assert "another program has locked it" in done.err
    assert "Enabling" not in done.err
