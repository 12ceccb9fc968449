"""The command `bulk`: what it says, writes, and ends with."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import Cli, stdin_from

from monocloud_async import config
from monocloud_async.inputs.table import MAX_LINE
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


def json_lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_csv_is_enabled(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    rows = [f"{user_id},x" for user_id in sandbox.user_ids()]
    users.write_text("\n".join(["id,name", *rows]))
    done = cli("bulk", users, "--column", "id")
    assert (done.code, sandbox.stats().users) == (0, {"enabled": 50, "disabled": 0})
    assert "50  enabled" in done.out
    assert "50 requests, 0 of them retries, 0 answered 429" in done.out
    assert f"Enabling {users} on {sandbox.url}" in done.err


@pytest.mark.parametrize(
    ("name", "head", "form", "bad"),
    [
        ("users.csv", "name,id\n", "x,{}\n", "x\n"),
        ("users.txt", "", "{}\n", "..\n"),
        ("users.jsonl", "", '{{"id": "{}", "n": 1}}\n', "{{}}\n"),
    ],
)
def test_the_failures_file_has_what_failed_and_can_be_fed_back(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, name: str, head: str, form: str, bad: str
) -> None:
    users, failed, again = tmp_path / name, tmp_path / f"failed-{name}", tmp_path / f"again-{name}"
    known = sandbox.user_ids()
    sandbox.script(known[7], 422)
    sandbox.script(known[8], *[503] * 4)
    missing = [f"nobody{number}" for number in range(20)]
    rows = [form.format(user_id) for user_id in known[:10] + missing + known[10:]]
    bad = bad.format()
    users.write_text("".join([head, *rows, bad]).rstrip("\n"))
    done = cli("bulk", users, "--failures", failed, "--attempts", 1)
    assert done.code == 1
    assert failed.read_text().startswith(head)
    kept = failed.read_text().removeprefix(head).splitlines(keepends=True)
    wanted = [form.format(user_id) for user_id in [known[7], known[8], *missing]]
    assert sorted(kept) == sorted([*wanted, bad])
    assert "404 Not Found: 20. Check the id" in done.out
    assert f"23 lines to retry: {failed}" in done.out

    sandbox.script(known[8])
    done = cli("bulk", failed, "--failures", again)
    assert done.code == 1
    assert sandbox.stats().users == {"enabled": 50, "disabled": 0}
    assert len(again.read_text().removeprefix(head).splitlines()) == 21


def test_bad_lines_are_told_with_their_numbers_and_only_the_first_ones(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text(f"{sandbox.user_ids()[0]}\n\n" + "..\n" * 15)
    done = cli("bulk", users)
    assert done.code == 1
    assert "line 3 this id is a dot segment" in done.err
    assert "line 12 this" in done.err
    assert "line 13 this" not in done.err
    assert "and more failures" in done.err
    assert "15  bad lines" in done.out
    assert sandbox.stats().requests == 1


def test_json_is_one_object_a_line_and_the_summary_last(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    first = sandbox.user_ids()[0]
    users.write_text(f"{first}\n..\nnobody\n")
    done = cli("bulk", users, "--json", "--concurrency", 1)
    *lines, summary = json_lines(done.out)
    by_line = {line["line"]: line for line in lines}
    assert done.code == 1
    assert by_line[1] | {"seconds": 0} == {
        "line": 1,
        "user_id": first,
        "status": "enabled",
        "attempts": 1,
        "seconds": 0,
        "disabled": False,
    }
    assert by_line[2]["status"] == "failed"
    assert "line 2 this id is a dot segment" in by_line[2]["error"]["message"]
    assert by_line[3]["error"]["type"] == "NotFoundError"
    assert by_line[3]["error"]["status"] == 404
    assert by_line[3]["error"]["trace_id"]
    assert summary["summary"] | {"seconds": 0} == {
        "total": 2,
        "enabled": 1,
        "disabled": 0,
        "failed": 1,
        "unknown": 0,
        "not_attempted": 0,
        "already_enabled": 0,
        "already_disabled": 0,
        "unconfirmed": 0,
        "requests": 2,
        "retries": 0,
        "throttled": 0,
        "paused_seconds": 0,
        "seconds": 0,
        "exhausted": True,
        "bad_lines": 1,
        "ended": "finished",
    }
    assert "1  enabled" in done.err


def test_the_lines_of_json_can_be_fed_back(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    users, again = tmp_path / "users.txt", tmp_path / "again.jsonl"
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    again.write_text(cli("bulk", users, "--json").out)
    done = cli("bulk", again)
    assert "50  enabled" in done.out
    assert "1  bad line\n" in done.out  # the summary


def test_a_refused_key_stops_the_run_after_one_request(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, failed = tmp_path / "users.txt", tmp_path / "failed.txt"
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    monkeypatch.setenv(config.API_KEY, "wrong-and-secret")
    done = cli("bulk", users, "--failures", failed)
    assert done.code == 3
    assert sandbox.stats().requests == 1
    assert "Error: the run was stopped" in done.err
    assert "401 Unauthorized" in done.err
    assert "Check that the API key" in done.err
    assert "was not read" in done.err
    assert failed.read_text() == f"{sandbox.user_ids()[0]}\n"
    assert "secret" not in done.out + done.err


def test_a_dry_run_checks_every_line_and_sends_nothing(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, failed = tmp_path / "users.txt", tmp_path / "failed.txt"
    users.write_text("ada\n..\nbob\n" + ".\n" * 30)
    done = cli("bulk", users, "--dry-run", "--failures", failed)
    assert (done.code, sandbox.stats().requests) == (1, 0)
    assert "2 ids, 31 bad lines. Nothing was sent." in done.out
    assert "line 2 this id is a dot segment" in done.err
    assert not failed.exists()
    users.write_text("ada\n")
    assert cli("bulk", users, "--dry-run").code == 0
    monkeypatch.delenv(config.API_KEY)
    done = cli("bulk", users, "--dry-run")
    assert done.code == 2
    assert done.err.startswith(
        "Error: no API key: pass api_key (--api-key-file on the command line)"
    )


def test_an_empty_file_is_told(cli: Cli, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("\n")
    done = cli("bulk", users)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"Error: there are no ids in {users}\n"
    assert list(tmp_path.iterdir()) == [users]  # nor a journal
    assert cli("bulk", users, "--dry-run").err == done.err


def test_what_comes_from_outside_moves_no_cursor(cli: Cli, tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text('{"id": "x\u202eada"}\n{"\\u001b[2J": "x"}\n"\\u001b[31m"\n')
    done = cli("bulk", users)
    assert "\x1b" not in done.out + done.err
    assert "U+202E" in done.err
    done = cli("bulk", users, "--column", "\x1b[2J")
    assert "\x1b" not in done.out + done.err


def test_a_dry_run_knows_the_journal(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    ids = sandbox.user_ids()
    users.write_text("".join(f"{user_id}\n" for user_id in ids))
    assert f"{len(ids)} would be enabled on {sandbox.url}" in cli("bulk", users, "--dry-run").out
    cli("bulk", users)
    done = cli("bulk", users, "--dry-run")
    assert f"users.txt.journal has {len(ids)} enabled users, who are not sent again" in done.out
    assert "who are not sent again (--no-journal sends every id)" in done.out
    assert f"0 would be enabled on {sandbox.url}" in done.out


def test_nobody_is_asked_on_a_stdin_that_is_closed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("# nobody\n")
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # no request leaves this machine
    done = cli("bulk", users, "--domain", "acme.eu.monocloud.com")
    assert (done.code, f"there are no ids in {users}" in done.err) == (2, True)


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_name_of_an_open_file_has_no_journal_beside_it(cli: Cli, users: Path, name: str) -> None:
    if not Path(name).exists():
        pytest.skip("this system has no such name")
    with stdin_from(users):
        done = cli("bulk", name, "--format", "txt")
    assert done.code == 0, done.err
    assert "journal" not in done.err
    assert not Path(f"{name}.journal").exists()


def test_a_run_that_ends_at_its_limit_says_so(cli: Cli, users: Path) -> None:
    done = cli("bulk", users, "--limit", 5)
    assert f"The run was finished, at its limit; the rest of {users} was not read" in done.err
    assert "The same command resumes the run" in done.err


@pytest.mark.parametrize(
    ("name", "start"), [("users.txt", ""), ("users.csv", "id\n"), ("users.jsonl", "")]
)
def test_a_line_that_is_too_long_to_be_kept_is_left_out_of_the_failures(
    cli: Cli, tmp_path: Path, name: str, start: str
) -> None:
    users, failed = tmp_path / name, tmp_path / "failed"
    short = '{"user_id": ".."}\n' if name.endswith("jsonl") else "..\n"
    users.write_text(start + short + "x" * (MAX_LINE + 1) + "\n")
    done = cli("bulk", users, "--failures", failed)
    assert failed.read_text() == start + short
    assert f"1 line to retry: {failed}; 1 is too long and left out" in done.out
    assert "2  bad lines" in done.out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_timeout_names_the_option_and_the_variable_that_allow_a_longer_one(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, options: list[str]
) -> None:
    first, *_ = sandbox.user_ids()
    users = tmp_path / "users.txt"
    users.write_text(f"{first}\n")
    sandbox.script(first, *["hang"] * 2)
    limits = ("--timeout", 0.2, "--attempts", 1)
    for done in (cli("bulk", users, *limits, *options), cli("enable", first, *limits, *options)):
        assert done.code == 1
        for name in ("--timeout", config.TIMEOUT):
            assert name in done.out + done.err
