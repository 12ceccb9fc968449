"""The command `enable`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import Cli

from monocloud_async import User
from monocloud_async.cli import commands
from monocloud_async.cli.access import Access
from monocloud_async.config import API_KEY
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


def json_lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_enable_tells_each_user(cli: Cli, sandbox: Sandbox) -> None:
    first, second = sandbox.user_ids()[:2]
    done = cli("enable", first, "nobody", second)
    assert done.code == 1
    assert sorted(done.out.splitlines()) == sorted([f"{first}: enabled", f"{second}: enabled"])
    assert done.err.startswith("user 'nobody': 404 Not Found: The user was not found [trace ")
    assert done.err.endswith(". Check the id, and that the user belongs to this tenant\n")
    assert done.err.count("\n") == 1
    assert not sandbox.is_disabled(first)


@pytest.mark.parametrize(
    ("block_until", "told"),
    [
        (4102444800, "locked out until 2100-01-01 00:00:00 UTC"),
        (1763000000000, "locked out until 1,763,000,000,000 s after 1970 UTC"),
        (2**63 - 1, "locked out until 1,000,000,000,000,000,000 s after 1970 UTC"),
        (10**4000, "locked out until"),
        (-(10**30), "ada: enabled"),
    ],
)
def test_enable_tells_of_a_lock_out_that_no_calendar_has(block_until: int, told: str) -> None:
    assert told in commands._told(User(user_id="ada", block_until=block_until))


def test_enable_tells_once_what_ended_it(cli: Cli, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("another-key")
    key.chmod(0o600)
    done = cli("enable", "ada", "--api-key-file", key)
    assert done.code == 3
    assert done.err.startswith("user 'ada': 401 Unauthorized")
    assert done.err.count("\n") == 1
    done = cli("enable", "ada", "bob", "--api-key-file", key)
    assert done.err.count("\n") == 2
    assert done.err.endswith("The run was stopped; not attempted: 'bob'\n")


def test_enable_in_json(cli: Cli, sandbox: Sandbox) -> None:
    user, summary = json_lines(cli("enable", sandbox.user_ids()[0], "--json").out)
    assert (user["status"], summary["summary"]["enabled"]) == ("enabled", 1)


def test_the_recorded_command_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "sentinel-key-4711")
    access = Access(domain="a.com", api_key="sentinel-file-key")
    arguments = ["bulk", "sentinel-key-4711.txt", "--note=sentinel-file-key", "https://me:pw@x/y"]
    told = commands.caller(access, arguments, "by sentinel-key-4711")
    assert told == (
        "monocloud-async bulk '****.txt' '--note=****' 'https://****@x/y'",
        "by ****",
    )
