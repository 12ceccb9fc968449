"""The command `sandbox`."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from recorded import outcome, write
from terminal import PROGRAM, Cli


@pytest.mark.process
def test_a_sandbox_in_the_terminal(tmp_path: Path) -> None:
    ids, db = tmp_path / "ids.txt", tmp_path / "tenant.db"
    command = ["sandbox", "--port", "0", "--users", "3", "--ids", str(ids), "--db", str(db)]
    with subprocess.Popen(
        [*PROGRAM, *command, "--script", "a=b=422:keyed,200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        url, told, export = (process.stdout.readline().strip() for _ in range(3))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert told == "4 disabled users, 0 enabled; Ctrl-C ends it"
        settings = [part.partition("=") for part in export.split()[1:]]
        environ = os.environ | {name: value for name, _, value in settings}
        argv = [*PROGRAM, "enable", "a=b", *ids.read_text().split()]
        enabled = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert enabled.returncode == 1
        assert "422 Unprocessable Entity: user_id: The user id is malformed" in enabled.stderr
        with subprocess.Popen(
            [*PROGRAM, "sandbox", "--port", url.rpartition(":")[2]],
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            _, err = second.communicate(timeout=90)
            assert second.returncode == 2
            assert "cannot listen on 127.0.0.1 port" in err
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 0
    assert err == "5 requests: 4 answered 200, 1 answered 422\n"


@pytest.mark.parametrize("db", ["missing/tenant.db", "", "ids.txt"])
def test_a_database_that_cannot_be_used_is_named(db: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("ada\n" * 1000)
    done = cli("sandbox", "--port", "0", "--db", tmp_path / db)
    assert done.code == 2
    assert f"--db {tmp_path / db}: " in done.err.replace("\n", " ")
    assert "a new file in a folder that is there" in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("db", "is a file of the database"),
        ("db-wal", "is a file of the database"),
        ("ids.journal", "is a journal"),
        ("-", "name a file"),
    ],
)
def test_the_ids_replace_no_database(ids: str, told: str, cli: Cli, tmp_path: Path) -> None:
    for name in ("db", "db-wal"):
        (tmp_path / name).write_text("old")
    write(tmp_path / "ids.journal", [outcome(0, "ada")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    named = ids if ids == "-" else tmp_path / ids
    done = cli("sandbox", "--port", "0", "--db", tmp_path / "db", "--ids", named)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: --ids: ")
    assert told in done.err
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("host", ["a" * 300, "a..b"])
def test_a_host_that_is_no_name_of_one_is_told_in_one_line(host: str, cli: Cli) -> None:
    done = cli("sandbox", "--host", host, "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert f"Error: cannot listen on {host} port 0: this is no name of a host\n" in done.err
