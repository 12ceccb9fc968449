"""Which tenant, with which key, through which proxy: what options and the environment say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Cli, started, wait_for

from monocloud_async import config
from monocloud_async.cli.access import Access
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


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


NO_PROXY = "HTTPS_PROXY must be an address such as http://proxy:3128"
NOT_SENT = "HTTPS_PROXY has a user or a password that cannot be sent"


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("socks5://eve:hunter2@p:3128", NO_PROXY),
        ("http://:3128", NO_PROXY),
        ("http://[x", NO_PROXY),
        ("eve:hunter2@[x", NO_PROXY),
        ("http://eve:hunter2@p:x", NO_PROXY),
        ("http://eve:hunter2@p:99999", NO_PROXY),
        ("eve:hunter2@p:3128:1", NO_PROXY),
        ("http://eve:1/hunter2@p:3128", NO_PROXY),
        ("p q:3128", NO_PROXY),
        ("p:0", NO_PROXY),
        ("-p:3128", NO_PROXY),
        ("http://eve:hunter2@", NO_PROXY),
        ("http://eve%3A:hunter2@p:3128", NOT_SENT),
        ("http://eve:hunter2\u20ac@p:3128", NOT_SENT),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str, told: str
) -> None:
    (tmp_path / "users.txt").write_text("ada\n")
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    for what in (["enable", "ada"], ["bulk", tmp_path / "users.txt", "--dry-run"]):
        done = cli(*what, "--domain", "acme.eu.monocloud.com")
        assert done.code == 2
        assert f"Error: {told}" in done.err
        assert "hunter2" not in done.out + done.err


def test_an_empty_key_file_is_told_as_that(cli: Cli, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("\n")
    key.chmod(0o600)
    assert f"the key file {key} is empty" in cli("enable", "ada", "--api-key-file", key).err


def test_a_key_file_may_begin_with_the_mark_of_utf_8(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(config.API_KEY)
    key = tmp_path / "key"
    key.write_text(f"{sandbox.api_key}\n", encoding="utf-8-sig")
    assert cli("enable", sandbox.user_ids()[0], "--api-key-file", key).code == 0


def test_a_file_that_is_no_key_is_named_and_not_quoted(cli: Cli, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ada-lovelace\nbob-the-builder\n")
    ids.chmod(0o644)
    done = cli("enable", "ada", "--api-key-file", ids)
    assert done.code == 2
    assert f"Error: the API key in {ids} is no text, too long, or has characters" in done.err
    assert "chmod" not in done.err
    assert "ada-lovelace" not in done.err


@pytest.mark.process
def test_no_process_shows_the_key(sandbox: Sandbox, tmp_path: Path) -> None:
    users, key = tmp_path / "users.txt", tmp_path / "key"
    users.write_text(f"{sandbox.user_ids()[0]}\n")
    key.write_text(sandbox.api_key)
    sandbox.script(sandbox.user_ids()[0], "hang")
    with started(sandbox, "bulk", users, "--api-key-file", key) as process:
        wait_for(lambda: sandbox.stats().in_flight == 1)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"users.txt" in arguments
        assert sandbox.api_key.encode() not in arguments
