import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from monocloud_async import User, __version__, config
from monocloud_async import cli as command_line
from monocloud_async.cli import commands
from monocloud_async.cli.access import Access
from monocloud_async.sandbox import Sandbox


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


@pytest.fixture
def cli(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    monkeypatch.setenv(config.DOMAIN, sandbox.url)
    monkeypatch.setenv(config.API_KEY, sandbox.api_key)

    def run(*argv: object) -> Result:
        capfd.readouterr()
        code = command_line.main([str(part) for part in argv])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


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
    assert "1  bad lines" in done.out  # the summary


def test_a_refused_key_stops_the_run_after_one_request(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, failed = tmp_path / "users.txt", tmp_path / "failed.txt"
    users.write_text("".join(f"{user_id}\n" for user_id in sandbox.user_ids()))
    monkeypatch.setenv(config.API_KEY, "wrong-key-4711")
    done = cli("bulk", users, "--failures", failed)
    assert done.code == 3
    assert sandbox.stats().requests == 1
    assert "Error: the run was stopped" in done.err
    assert "401 Unauthorized" in done.err
    assert "Check that the API key" in done.err
    assert "was not read" in done.err
    assert failed.read_text() == f"{sandbox.user_ids()[0]}\n"
    assert "4711" not in done.out + done.err


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
    assert done.code == 0
    assert f"There are no ids in {users}" in done.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bulk", "no.txt"], "no.txt: No such file"),
        (["bulk", "users.txt", "--column", "id"], "no columns"),
        (["bulk", "users.csv"], "--column"),
        (["bulk", "users.txt", "--failures", "users.txt"], "the input itself"),
        (["bulk", "users.txt", "--failures", "no/failed.txt"], "cannot write no/failed.txt"),
        (["bulk", "users.txt", "--concurrency", "0"], "concurrency"),
        (["bulk", "users.txt", "--timeout", "-1"], "timeout must be a number above 0"),
        (["bulk", "users.txt", "--attempts", "0"], "attempts"),
        (["bulk", "users.txt", "--domain", "http://acme.com"], "clear text"),
        (["bulk", "users.txt", "--api-key-file", "no.key"], "no.key: No such file"),
        (["bulk", "users.txt", "--api-key-file", "users.txt"], "the API key is"),
        (["bulk", "users.txt", "--api-key", "x"], "No such option"),
        (["enable", "ada", ".."], "'..'"),
        (["enable"], "Missing argument"),
        (["sandbox", "--script", "ada"], "not like ada=503"),
        (["sandbox", "--script", "ada=nonsense"], "unknown step 'nonsense'"),
        (["sandbox", "--db", "no/folder.db"], "unable to open database"),
        (["sandbox", "--port", "0", "--ids", "no/ids.txt"], "cannot write no/ids.txt"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_usage_is_one_clear_error_before_any_request(
    cli: Cli,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("users.txt").write_text("two words in a key\n")
    Path("users.csv").write_text("a,b\nx,y\n")
    done = cli(*argv)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert sandbox.stats().requests == 0
    assert Path("users.txt").read_text() == "two words in a key\n"


def test_a_key_file_loses_one_line_end_and_a_readable_one_is_told(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(config.API_KEY)
    users, key = tmp_path / "users.txt", tmp_path / "key"
    users.write_text(sandbox.user_ids()[0])
    key.write_bytes(sandbox.api_key.encode() + b"\r\n")
    key.chmod(0o600)
    done = cli("bulk", users, "--api-key-file", key)
    assert done.code == 0
    assert "chmod" not in done.err
    key.chmod(0o640)
    done = cli("bulk", users, "--api-key-file", key)
    assert done.code == 0
    assert f"chmod 600 {key}" in done.err
    key.write_bytes(sandbox.api_key.encode() + b"\n\n")
    done = cli("bulk", users, "--api-key-file", key)
    assert done.code == 2
    assert sandbox.api_key not in done.err


def test_what_comes_from_outside_moves_no_cursor(cli: Cli, tmp_path: Path) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text('{"id": "[red]\u202eada"}\n{"\\u001b[2J": "x"}\n"\\u001b[31m"\n')
    done = cli("bulk", users)
    assert "\x1b" not in done.out + done.err
    assert "[red]" in done.err
    done = cli("bulk", users, "--column", "\x1b[2J")
    assert "\x1b" not in done.out + done.err


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
    assert done.err.endswith("The run was stopped; the rest of the users named was not read\n")


def test_enable_in_json(cli: Cli, sandbox: Sandbox) -> None:
    user, summary = json_lines(cli("enable", sandbox.user_ids()[0], "--json").out)
    assert (user["status"], summary["summary"]["enabled"]) == ("enabled", 1)


def test_the_version(cli: Cli) -> None:
    assert cli("--version").out == f"monocloud-async {__version__}\n"


def test_without_the_extra_one_line_tells_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    assert command_line.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command_line.main([]) == 2
    assert "pip install 'monocloud-async[cli]'" in capsys.readouterr().err


def test_help_is_quick_because_aiohttp_is_not_imported() -> None:
    code = (
        "import sys; from monocloud_async.cli import main; main(['--help']);"
        "assert 'aiohttp' not in sys.modules and 'asyncio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("domain", "proxy", "bypass", "wanted"),
    [
        ("acme.eu.monocloud.com", "http://eve:hunter2@p:3128", "", "http://eve:hunter2@p:3128"),
        ("acme.eu.monocloud.com", "p:3128", "", "http://p:3128"),
        ("acme.eu.monocloud.com", "p:3128", "example.com,.monocloud.com", None),
        ("http://127.0.0.1:8080", "p:3128", "", None),
        ("acme.eu.monocloud.com", "", "", None),
    ],
)
def test_the_proxy_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, domain: str, proxy: str, bypass: str, wanted: str | None
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", bypass)
    assert Access(domain=domain).proxy == wanted


@pytest.mark.parametrize(
    "proxy",
    [
        *("socks5://eve:hunter2@p:3128", "http://:3128", "http://[x", "eve:hunter2@[x"),
        *("http://eve:hunter2@p:x", "http://eve:hunter2@p:99999", "eve:hunter2@p:3128:1"),
        *("http://eve:1/hunter2@p:3128", "p q:3128", "p:0", "-p:3128", "http://eve:hunter2@"),
    ],
)
def test_a_proxy_that_is_none_is_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str
) -> None:
    (tmp_path / "users.txt").write_text("ada\n")
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    for what in (["enable", "ada"], ["bulk", tmp_path / "users.txt", "--dry-run"]):
        done = cli(*what, "--domain", "acme.eu.monocloud.com")
        assert done.code == 2
        assert "Error: HTTPS_PROXY must be an address such as http://proxy:3128" in done.err
        assert "hunter2" not in done.out + done.err


def test_a_dry_run_knows_the_journal(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    ids = sandbox.user_ids()
    users.write_text("".join(f"{user_id}\n" for user_id in ids))
    assert f"{len(ids)} would be enabled on {sandbox.url}" in cli("bulk", users, "--dry-run").out
    cli("bulk", users)
    done = cli("bulk", users, "--dry-run")
    assert f"users.txt.journal has {len(ids)} enabled users, who are not sent again" in done.out
    assert f"0 would be enabled on {sandbox.url}" in done.out


def test_an_empty_key_file_is_told_as_that(cli: Cli, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("\n")
    key.chmod(0o600)
    assert f"the key file {key} is empty" in cli("enable", "ada", "--api-key-file", key).err
