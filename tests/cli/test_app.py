"""The command line as a whole: usage, help, version, and what it needs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Cli

from monocloud_async import __version__
from monocloud_async import cli as command_line
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bulk", "no.txt"], "no.txt: No such file"),
        (["bulk", "users.txt", "--column", "id"], "no columns"),
        (["bulk", "users.csv"], "--column"),
        (["bulk", "users.txt", "--failures", "users.txt"], "is the input"),
        (["bulk", "users.txt", "--failures", "no/failed.txt"], "cannot write no/failed.txt"),
        (["bulk", "users.txt", "--concurrency", "0"], "concurrency"),
        (["bulk", "users.txt", "--timeout", "-1"], "'--timeout': must be a number above 0"),
        (["bulk", "users.txt", "--max-rate", "0"], "'--max-rate': must be a number above 0"),
        (["bulk", "users.txt", "--max-rate", "inf"], "'--max-rate': must be a number above 0"),
        (["bulk", "users.txt", "--attempts", "0"], "attempts"),
        (["bulk", "users.txt", "--domain", "http://acme.com"], "clear text"),
        (["bulk", "users.txt", "--api-key-file", "no.key"], "no.key: No such file"),
        (["bulk", "users.txt", "--api-key-file", "users.txt"], "the API key in users.txt is"),
        (["bulk", "users.txt", "--api-key", "x"], "No such option"),
        (["enable", "ada", ".."], "'..'"),
        (["enable"], "Missing argument"),
        (["sandbox", "--script", "ada"], "not like ada=503"),
        (["sandbox", "--script", "ada=nonsense"], "unknown step 'nonsense'"),
        (["sandbox", "--db", "no/folder.db"], "unable to open database"),
        (["sandbox", "--port", "0", "--ids", "no/ids.txt"], "cannot write no/ids.txt"),
        (["nonsense"], "No such command"),
        (["enabel", "ada"], "Did you mean 'enable'?"),
        (["disable", "ada"], "No such command 'disable': `undo JOURNAL` disables again"),
        (["--json", "bulk", "users.txt"], "go behind it: monocloud-async COMMAND ... --json"),
        (["fleet", "--domain", "x", "start"], "monocloud-async fleet COMMAND ... --domain"),
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


@pytest.mark.parametrize("command", ["users", "bulk", "check", "undo", "report", "enable"])
def test_a_help_names_no_option_of_another_command_as_its_own(cli: Cli, command: str) -> None:
    out = cli(command, "--help").out
    has = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", out, re.MULTILINE))
    named = set(re.findall(r"(?<!bulk )--[a-z-]+", " ".join(out.split())))
    assert "--help" in has
    assert named <= has | {"--"}


@pytest.mark.process
def test_help_is_quick_because_aiohttp_is_not_imported() -> None:
    code = (
        "import sys; from monocloud_async.cli import main; main(['--help']);"
        "assert 'aiohttp' not in sys.modules and 'asyncio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.process
@pytest.mark.parametrize("module", ["streams", "app"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(module: str) -> None:
    program = f"""
import sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "monocloud_async.cli.{module}":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from monocloud_async.cli import main
sys.exit(main(["--help"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
