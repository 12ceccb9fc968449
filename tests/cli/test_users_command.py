"""The command `users`: whom it finds, what it writes, and what it says."""

import csv
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from terminal import Cli, started, stdin_from, wait_for

from monocloud_async import config
from monocloud_async.cli import display, list_display
from monocloud_async.cli.times import iso, read_time
from monocloud_async.errors import ConfigurationError
from monocloud_async.sandbox import Sandbox
from monocloud_async.sanitize import UNSAFE

HOUR = 1_764_079_200  # 2025-11-25T14:00:00Z


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=60, others=240, disabled_at=HOUR) as sandbox:
        yield sandbox


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected(sandbox: Sandbox, *, disabled: bool | None = None, hour: bool = False) -> set[str]:
    users = [sandbox.user(user_id) or {} for user_id in sandbox.user_ids()]
    return {
        user["user_id"]
        for user in users
        if (disabled is None or user["disabled"] is disabled)
        and (not hour or HOUR <= user["last_updated"] < HOUR + 3600)
    }


@pytest.mark.parametrize("shift", [False, True])
def test_who_was_disabled_in_an_hour_is_found_and_can_be_enabled(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, *, shift: bool
) -> None:
    lost = tmp_path / "lost.csv"
    sandbox.shift_pages = shift
    window = ["--changed-after", "2025-11-25T14:00Z", "--changed-before", "2025-11-25T16:00+01:00"]
    done = cli("users", "--disabled", *window, "-o", lost)
    assert done.code == 0
    found = {row["user_id"] for row in rows(lost)}
    assert found == expected(sandbox, disabled=True, hour=True)
    assert len(found) == 60
    assert re.search(rf"60 of 30\d users, in {lost}", done.err)
    assert f"Reading the users of {sandbox.url}" in done.err
    assert done.out == ""
    assert cli("bulk", lost).code == 0
    assert all(not sandbox.is_disabled(user_id) for user_id in found)


@pytest.mark.parametrize(
    ("option", "disabled"), [("--disabled", True), ("--enabled", False), (None, None)]
)
def test_the_row_decides_whether_a_user_is_disabled(
    cli: Cli, sandbox: Sandbox, option: str | None, *, disabled: bool | None
) -> None:
    done = cli("users", *filter(None, [option]))
    found = list(csv.DictReader(done.out.splitlines()))
    assert {row["user_id"] for row in found} == expected(sandbox, disabled=disabled)
    assert {row["disabled"] for row in found} <= {"true", "false"}


def test_a_row_has_what_people_know_a_user_by(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_user(
        "ada",
        disabled=False,
        claims={"given_name": "Ada", "family_name": "=1+1"},
        emails=[
            {"email": "old@example.com", "primary": False},
            {"email": "ada@example.com", "primary": True},
        ],
        username={"username": "=cmd;=cmd"},
        last_updated=HOUR,
        last_sign_in_success=HOUR + 1,
        block_until=2_000_000_000,
    )
    wanted = {
        "user_id": "ada",
        "disabled": False,
        "email": "ada@example.com",
        "username": "=cmd;=cmd",
        "name": "Ada =1+1",
        "last_updated": "2025-11-25T14:00:00Z",
        "last_sign_in": "2025-11-25T14:00:01Z",
        "block_until": "2033-05-18T03:33:20Z",
    }
    found = tmp_path / "found.jsonl"
    assert cli("users", "--filter", "ada@example", "-o", found).code == 0
    assert [json.loads(line) for line in found.read_text().splitlines()] == [wanted]
    table = tmp_path / "found.csv"
    assert cli("users", "--filter", "ada@example", "-o", table).code == 0
    (row,) = rows(table)
    assert (row["username"], row["disabled"]) == (" =cmd; =cmd", "false")  # no formula


def test_addresses_find_their_users_and_doubts_are_told(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    ids = sandbox.user_ids()
    mine = [(sandbox.user(user_id) or {})["emails"][0]["email"] for user_id in ids[:3]]
    emails, found = tmp_path / "ticket.csv", tmp_path / "found.csv"
    emails.write_text("name,E-Mail\n" + "".join(f"x,{address.upper()}\n" for address in mine))
    done = cli("users", "--by-email", emails, "-o", found)
    assert done.code == 0
    assert {row["user_id"] for row in rows(found)} == set(ids[:3])
    for twin in ("ada", "bob"):
        sandbox.add_user(twin, emails=[{"email": "twin@example.com"}])
    emails.write_text("email\nTwin@example.com\nnobody@example.com\nno address\n")
    done = cli("users", "--by-email", emails, "-o", found)
    assert done.code == 1
    assert "no user has nobody@example.com" in done.err
    assert "several users have twin@example.com" in done.err
    assert "1 lines without an e-mail address" in done.err
    assert "2 users left out, because several users have the same address" in done.err
    assert rows(found) == []


def test_a_user_of_a_shared_address_is_kept_only_if_another_one_is_the_users_alone(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    emails, found = tmp_path / "ticket.txt", tmp_path / "found.csv"
    shared, own = {"email": "twin@example.com"}, {"email": "ada@example.com", "primary": True}
    sandbox.add_user("ada", emails=[shared, own])
    sandbox.add_user("bob", emails=[shared])
    emails.write_text("twin@example.com\nada@example.com\n")
    done = cli("users", "--by-email", emails, "-o", found)
    assert done.code == 1
    assert "1 of 302 users" in done.err
    assert "1 user left out, because several users have the same address" in done.err
    assert [row["user_id"] for row in rows(found)] == ["ada"]


def test_an_address_is_not_taken_for_another_one_that_is_spelled_differently(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_user("ada", emails=[{"email": "stra\u00dfe@example.com"}])
    emails = tmp_path / "ticket.txt"
    emails.write_text("strasse@example.com\n")
    assert "no user has strasse@example.com" in cli("users", "--by-email", emails).err
    assert cli("bulk", emails, "--by", "email").code == 1
    assert sandbox.is_disabled("ada")
    emails.write_text("STRA\u00dfE@example.com\n")
    assert cli("bulk", emails, "--by", "email", "--no-journal").code == 0
    assert not sandbox.is_disabled("ada")


HOSTILE = (
    "Ann\rbanned", "Ann\nbanned", "Ann\r\nbanned", 'Ann "\nbanned', "Ann\x85banned",
    "Ann\u2028banned", "\x1b]0;owned\x07\x9b2J", "\u202eboo", "\r=1+1", "\x00nul",
    ",,,\nbanned,,,,,,,\n",
)  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_no_name_of_a_user_becomes_a_line_or_moves_the_text_of_a_terminal(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, form: str
) -> None:
    sandbox.add_user("banned", last_updated=1)
    for number, name in enumerate(HOSTILE):
        sandbox.add_user(
            f"hostile{number}",
            claims={"name": name},
            username={"username": name},
            last_updated=HOUR,
        )
    lost = tmp_path / f"lost.{form}"
    done = cli("users", "--disabled", "--changed-after", "2025-11-25T14:00Z", "-o", lost)
    assert done.code == 0
    text = lost.read_bytes().decode()
    assert len(text.split("\n")) == 60 + len(HOSTILE) + 1 + (form == "csv")
    assert not re.search(UNSAFE, text.replace("\n", ""))
    if form == "jsonl":
        names = {json.loads(line)["name"] for line in text.splitlines()}
        assert names >= set(HOSTILE)
    assert cli("bulk", lost).code == 0
    assert not any(sandbox.is_disabled(f"hostile{number}") for number in range(len(HOSTILE)))
    assert sandbox.is_disabled("banned")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("user_id", ["'banned", "banned\u200b", "<banned>", "ban\u2028ned"])
def test_an_id_that_would_be_read_as_another_one_is_left_out_and_told(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, user_id: str, form: str
) -> None:
    sandbox.add_user("banned", last_updated=1)
    sandbox.add_user(user_id, last_updated=HOUR)
    lost = tmp_path / f"lost.{form}"
    done = cli("users", "--disabled", "--changed-after", "2025-11-25T14:00Z", "-o", lost)
    assert done.code == 1
    assert "60 of 302 users" in done.err
    assert "1 user left out, because a file cannot say the id" in done.err
    assert cli("bulk", lost).code == 0
    assert sandbox.is_disabled("banned")


@pytest.mark.parametrize("name", ["found.json", "found.XLSX", "found.csv.gz"])
def test_a_file_name_of_another_format_is_refused_before_anything_is_sent(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ada\n")
    for command in (["users"], ["check", ids]):
        done = cli(*command, "-o", tmp_path / name)
        assert (done.code, "a table is written as csv or JSON lines" in done.err) == (2, True)
    assert sandbox.stats().requests == 0
    assert not (tmp_path / name).exists()
    assert cli("users", "--format", "csv", "-o", tmp_path / name).code == 0


def test_what_was_found_in_the_addresses_is_told_and_an_empty_file_is_refused(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    emails = tmp_path / "ticket.txt"
    emails.write_text("# of today\nnobody@example.com\n")
    assert "lines that begin with # are comments and passed over, as line 1" in (
        cli("users", "--by-email", emails).err
    )
    requests = sandbox.stats().requests
    emails.write_text("# of today\n")
    done = cli("users", "--by-email", emails)
    assert (done.code, f"there are no e-mail addresses in {emails}" in done.err) == (2, True)
    emails.write_text("UOtBaOybB6dTpIJNrnkRw\n")
    done = cli("users", "--by-email", emails)
    says = f"there are no e-mail addresses in {emails}; 1 line without one\n"
    assert (done.code, done.out, says in done.err) == (2, "", True)
    assert sandbox.stats().requests == requests


def test_who_cannot_be_judged_is_told(cli: Cli, sandbox: Sandbox) -> None:
    sandbox.add_user("ada", last_updated=HOUR)
    assert cli("users", "--changed-after", "2025-11-25T14:00Z").code == 0
    sandbox.add_user("eve")
    sandbox._users._sql.execute(
        """UPDATE users SET members = '{"last_updated": null}' WHERE user_id = 'eve'"""
    )
    done = cli("users", "--changed-after", "2025-11-25T14:00Z")
    assert done.code == 1
    assert "1 users were left out" in done.err


def test_the_members_of_a_group(cli: Cli, sandbox: Sandbox) -> None:
    sandbox.assign("staff", sandbox.user_ids()[:4])
    done = cli("users", "--group", "staff")
    assert len(done.out.splitlines()) == 5
    assert cli("users", "--group", "..").code == 2
    assert cli("users", "--group", "nobody").code == 3


@pytest.mark.parametrize("fault", ["header", "key"])
def test_no_file_is_better_than_a_part_of_one(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    lost = tmp_path / "lost.csv"
    lost.write_text("of yesterday")
    if fault == "header":
        sandbox.paging_header = False
    else:
        monkeypatch.setenv(config.API_KEY, "wrong-and-secret")
    done = cli("users", "--disabled", "-o", lost)
    assert done.code == 3
    assert len([line for line in done.err.splitlines() if line.startswith("Error: ")]) == 1
    assert "secret" not in done.err
    assert lost.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [lost]
    assert cli("users").out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--changed-after", "2025-11-25T14:00"], "--changed-after '2025-11-25T14:00' has no time"),
        (["--changed-before", "yesterday"], "--changed-before 'yesterday' is no time"),
        (["--disabled", "--enabled"], "contradict each other"),
        (["--changed-after", "1 hour ago", "--changed-before", "2 hours ago"], "is not before"),
        (["-o", "/nowhere/lost.csv"], "cannot write /nowhere/lost.csv: No such file"),
        (["--by-email", "nowhere.csv"], "cannot read nowhere.csv"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_sent(
    cli: Cli, sandbox: Sandbox, arguments: list[str], message: str
) -> None:
    done = cli("users", *arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert sandbox.stats().requests == 0


def test_the_input_is_not_replaced(cli: Cli, tmp_path: Path) -> None:
    emails = tmp_path / "emails.csv"
    emails.write_text("email\nada@example.com\n")
    done = cli("users", "--by-email", emails, "-o", emails)
    assert (done.code, "is the file of --by-email" in done.err) == (2, True)
    assert emails.read_text() == "email\nada@example.com\n"


def test_the_file_of_the_key_is_not_replaced(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(sandbox.api_key)
    key.chmod(0o600)
    done = cli("users", "--api-key-file", key, "-o", key)
    assert (done.code, "is the file of the API key" in done.err) == (2, True)
    assert key.read_text() == sandbox.api_key
    assert sandbox.stats().requests == 0


def test_a_file_that_is_stdin_is_not_replaced(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    emails = tmp_path / "emails.txt"
    emails.write_text("ada@example.com\n")
    with stdin_from(emails):
        done = cli("users", "--by-email", "-", "-o", emails)
    assert (done.code, "is the file of --by-email" in done.err) == (2, True)
    assert emails.read_text() == "ada@example.com\n"
    assert sandbox.stats().requests == 0


@pytest.mark.parametrize("argv", [("users",), ("check", "all.txt"), ("check", "one.txt")])
def test_a_request_that_is_repeated_is_told_with_its_cause(
    cli: Cli,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    enabled = [each for each in sandbox.user_ids() if not sandbox.is_disabled(each)]
    Path("all.txt").write_text("\n".join(enabled))
    Path("one.txt").write_text(enabled[0])
    sandbox.error_rate = 1.0

    def say(console: Console, text: str) -> None:
        sandbox.error_rate = 0.0  # it is told while requests still fail
        display.say(console, text)

    monkeypatch.setattr(list_display, "say", say)
    done = cli(*argv)
    assert done.code == 0
    assert "500 Internal Server Error" in done.err
    assert "trying again, for at most 300 s" in done.err


@pytest.mark.process
def test_an_interrupted_list_leaves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.latency = 1
    lost = tmp_path / "lost.csv"
    with started(sandbox, "users", "-o", lost) as process:
        wait_for(lambda: sandbox.stats().requests > 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 hours ago", 1_000_000 - 7200),
        ("1 Day ago", 1_000_000 - 86_400),
        ("90minutes ago", 1_000_000 - 5400),
        ("1970-01-02T00:00Z", 86_400),
        ("1970-01-02 01:00:00+01:00", 86_400),
    ],
)
def test_a_time_is_iso_with_a_zone_or_ago(text: str, seconds: float) -> None:
    assert read_time(text, "--changed-after", 1_000_000) == seconds


@pytest.mark.parametrize(
    "text", ["", "2 hours", "ago", "1970-01-02", "9999999 days ago", "\x1b[2J"]
)
def test_no_other_time_is_guessed(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_time(text, "--changed-after", 0)
    assert "\x1b" not in str(caught.value)


def test_a_time_without_a_date_is_none() -> None:
    assert iso(10**20) is None
