"""Profiles, `whoami`, ids that begin with a dash, and completion."""

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Cli

from monocloud_async import __version__, config
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=3) as sandbox:
        yield sandbox


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of profiles, whose owner has no variables for a tenant."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "monocloud-async"
    folder.mkdir()
    return folder


def write(folder: Path, sandbox: Sandbox, name: str = "acme", mode: int = 0o600) -> None:
    key = folder / "key"
    key.write_text(sandbox.api_key)
    key.chmod(0o600)
    path = folder / f"{name}.toml"
    path.write_text(f'domain = "{sandbox.url}"\napi_key_file = "key"\n')
    path.chmod(mode)


def test_a_profile_with_a_byte_order_mark_is_read(cli: Cli, sandbox: Sandbox, folder: Path) -> None:
    write(folder, sandbox)
    profile = folder / "acme.toml"
    profile.write_text(profile.read_text(), encoding="utf-8-sig")
    done = cli("whoami", "--profile", "acme")
    assert (done.code, done.err) == (0, "")


def test_a_home_that_is_not_there_is_an_error_of_usage(
    cli: Cli, sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, sandbox)
    profile = folder / "acme.toml"
    profile.write_text('api_key_file = "~no such user/key"\n')
    done = cli("whoami", "--profile", "acme")
    assert (done.code, done.out) == (2, "")
    said = f"the profile {profile} has the key in ~no such user/key: there is no such home; write"
    assert said in done.err

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    done = cli("whoami", "--profile", "acme")
    assert (done.code, done.out) == (2, "")
    assert "this user has no home for profiles; XDG_CONFIG_HOME names another folder" in done.err


@pytest.mark.parametrize(
    "argv",
    [
        ("--profile", "acme", "whoami"),
        ("whoami", "--profile", "acme"),
        ("whoami", "--profile=acme"),
    ],
)
def test_a_profile_names_the_tenant_and_the_file_of_its_key(
    cli: Cli, sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    write(folder, sandbox)
    monkeypatch.setenv(config.DOMAIN, "other.eu.monocloud.com")
    monkeypatch.delenv(config.API_KEY)
    done = cli(*argv)
    assert done.code == 0, done.err
    assert done.out == (
        f"Tenant: {sandbox.url}\nAPI key: from the file {folder / 'key'}\n"
        "The key works: it may read users\n"
    )


def test_the_file_of_a_key_in_a_profile_is_kept_as_well(
    cli: Cli, sandbox: Sandbox, folder: Path
) -> None:
    write(folder, sandbox)
    users = folder / "users.txt"
    users.write_text("nobody\n")
    done = cli("bulk", users, "--profile", "acme", "--failures", folder / "key")
    assert done.code == 2
    assert "is the file of the API key" in done.err
    assert (folder / "key").read_text() == sandbox.api_key


def test_no_output_replaces_a_profile(cli: Cli, sandbox: Sandbox, folder: Path) -> None:
    write(folder, sandbox)
    write(folder, sandbox, "other")
    profile = (folder / "acme.toml").read_text()
    ids = folder / "ids.txt"
    ids.write_text("nobody\n")
    journal = folder / "ids.txt.journal"
    assert cli("bulk", "--profile", "acme", ids).code == 1
    for name in ("acme", "other"):
        for argv in (
            ("users", "--profile", "acme", "-o"),
            ("bulk", "--profile", "acme", ids, "--failures"),
            ("check", "--profile", "acme", ids, "-o"),
            ("report", journal, "--failures"),
            ("bulk", ids, "--journal"),
        ):
            done = cli(*argv, folder / f"{name}.toml")
            assert (done.code, "is a profile" in done.err) == (2, True)
            assert (folder / f"{name}.toml").read_text() == profile


WAYS = [
    ("--profile", "acme", "bulk", "ids.txt", "--note", "--domain"),
    ("bulk", "--profile=acme", "ids.txt"),
    ("bulk", "ids.txt", "--api-key-file", "the key", "--domain", "{url}"),
    ("bulk", "--domain={url}", "--api-key-file=the key", "--", "ids.txt"),
]


@pytest.mark.parametrize("argv", WAYS, ids=" ".join)
def test_the_command_that_goes_on_names_the_same_tenant_and_key(
    cli: Cli,
    sandbox: Sandbox,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
) -> None:
    write(folder, sandbox)
    monkeypatch.setenv(config.DOMAIN, "other.eu.monocloud.com")
    monkeypatch.delenv(config.API_KEY)
    monkeypatch.chdir(folder)
    (folder / "the key").write_text(sandbox.api_key)
    Path("ids.txt").write_text("\n".join(sandbox.user_ids()))
    command = [word.format(url=sandbox.url) for word in argv]
    place = command.index("bulk") + 1
    assert cli(*command[:place], "--limit", 1, *command[place:]).code == 0
    monkeypatch.chdir("/")
    first, *_ = cli("report", folder / "ids.txt.journal").out.splitlines()
    _, _, going_on = first.partition("; go on with: ")
    done = cli(*shlex.split(going_on)[1:])
    assert (done.code, sandbox.stats().users["disabled"]) == (0, 0), going_on + done.err


def test_without_a_home_there_are_no_profiles_to_keep(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cli("users", "-o", tmp_path / "users.csv").code == 0


def test_behind_two_dashes_there_is_no_profile(cli: Cli, sandbox: Sandbox) -> None:
    done = cli("enable", "--", "--profile", "acme")
    assert "user '--profile': 404" in done.err


@pytest.mark.parametrize(
    ("name", "content", "mode", "message"),
    [
        ("gone", "", 0o600, "No such file"),
        ("../acme", "", 0o600, "is no name of a profile"),
        ("", "", 0o600, "is no name of a profile"),
        ("open", 'domain = "a.com"', 0o640, "chmod 600"),
        ("wrong", "domain = ", 0o600, "is no TOML"),
        ("key", 'api_key = "secret-4711"', 0o600, "may have domain and api_key_file"),
        ("number", "domain = 1", 0o600, "may have domain and api_key_file"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_in_one_line(
    cli: Cli, folder: Path, name: str, content: str, mode: int, message: str
) -> None:
    if content:
        (folder / f"{name}.toml").write_text(content)
        (folder / f"{name}.toml").chmod(mode)
    done = cli("enable", "ada", "--profile", name)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err
    assert "4711" not in done.err


@pytest.mark.parametrize("options", [["--note", "--profile"], ["--note=--profile"]])
def test_the_value_of_another_option_is_no_profile(
    cli: Cli, folder: Path, sandbox: Sandbox, users: Path, options: list[str]
) -> None:
    write(folder, sandbox)
    done = cli("bulk", users, *options, "--no-journal")
    assert (done.code, done.err.count("\n")) == (0, 1), done.err
    done = cli("bulk", "--no-journal", users, *options, "--profile", "none")
    assert "cannot read the profile" in done.err


def test_a_profile_that_is_a_pipe_is_refused(cli: Cli, folder: Path) -> None:
    os.mkfifo(folder / "pipe.toml", 0o600)
    done = cli("whoami", "--profile", "pipe")
    assert (done.code, "is no regular file" in done.err) == (2, True)


def test_whoami_tells_that_a_key_is_refused(
    cli: Cli, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.API_KEY, "wrong-and-secret")
    done = cli("whoami")
    assert done.code == 3
    assert done.out.endswith(f"API key: from the variable {config.API_KEY}\n")
    assert "401 Unauthorized" in done.err
    assert "secret" not in done.out + done.err


def test_whoami_tells_that_a_tenant_cannot_be_reached(cli: Cli) -> None:
    with socket.socket() as deaf:  # it does not listen
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        done = cli("whoami", "--attempts", 2, "--domain", f"http://127.0.0.1:{port}")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert done.err.startswith("Error: could not connect")


@pytest.mark.parametrize("user_id", ["-dKihhOJc", "--ihhOJc", "-hKihhOJc"])
def test_an_id_that_begins_with_a_dash_is_written_after_two(
    cli: Cli, sandbox: Sandbox, user_id: str
) -> None:
    done = cli("enable", "ada", user_id)
    assert done.code == 2
    assert f"monocloud-async enable -- {user_id}" in done.err
    assert sandbox.stats().requests == 0
    done = cli("enable", "--timeout", 5, "--", user_id)
    assert f"user '{user_id}': 404" in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_is_for_the_shell_that_is_asked_for(cli: Cli, shell: str) -> None:
    done = cli("--show-completion", shell)
    assert done.code == 0
    assert f"complete_{shell}" in done.out
    assert cli("--show-completion", "tcsh").code == 2


def test_the_shell_gets_the_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MONOCLOUD_ASYNC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "monocloud-async whoa")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert cli().out.split() == ["whoami"]


@pytest.mark.parametrize(
    ("words", "place", "shown"),
    [
        ("monocloud-async --prof", "1", "--profile"),
        ("monocloud-async bulk --prof", "2", "--profile"),
        ("monocloud-async fleet start --prof", "3", "--profile"),
        ("monocloud-async --profile none whoa", "3", "whoami"),
        ("monocloud-async whoami --profile none --time", "4", "--timeout"),
        ("monocloud-async whoami --profile", "2", "--profile"),
        ("monocloud-async enable --wrong --dom", "3", "--domain"),
        ("monocloud-async disable --prof", "2", "--profile"),
        ("monocloud-async bulk --limit x --dom", "4", "--domain"),
        ("monocloud-async whoa", "x", ""),
        ("monocloud-async whoa", None, ""),
        (None, "1", ""),
    ],
)
def test_completion_prints_no_error_into_the_line(
    cli: Cli,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str | None,
    place: str | None,
    shown: str,
) -> None:
    (folder / "none.toml").write_text("domain = ")
    monkeypatch.setenv("_MONOCLOUD_ASYNC_COMPLETE", "complete_bash")
    for name, value in (("COMP_WORDS", words), ("COMP_CWORD", place)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    done = cli()
    assert (done.out.strip(), done.err) == (shown, "")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--profile ", "acme acme-test beta"),
        ("whoami --profile ", "acme acme-test beta"),
        ("whoami --profile acme", "acme acme-test"),
        ("fleet start --profile=b", "beta"),
        ("whoami --profile none", ""),
        ("whoami --domain ", ""),
    ],
)
def test_completion_knows_the_names_of_the_profiles(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, shown: str
) -> None:
    for name in ("beta.toml", "acme.toml", "acme-test.toml", "-x.toml", "a b.toml", "key"):
        (folder / name).touch()
    monkeypatch.setenv("_MONOCLOUD_ASYNC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"monocloud-async {words}")
    monkeypatch.setenv("COMP_CWORD", str(1 + words.count(" ")))
    assert cli().out.split() == shown.split()


@pytest.mark.parametrize("instruction", ["complete_tcsh", "wrong"])
def test_a_shell_that_is_not_known_gets_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, instruction: str
) -> None:
    monkeypatch.setenv("_MONOCLOUD_ASYNC_COMPLETE", instruction)
    assert cli("--version") == (2, "", "")


def test_an_empty_variable_asks_for_no_completion(
    cli: Cli, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MONOCLOUD_ASYNC_COMPLETE", "")
    assert cli("--version") == (0, f"monocloud-async {__version__}\n", "")
    user_id, *_ = sandbox.user_ids()
    assert cli("enable", user_id) == (0, f"{user_id}: enabled\n", "")
