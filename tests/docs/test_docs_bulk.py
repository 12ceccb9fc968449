"""The commands of docs/bulk.md, in this order, do what the page says."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import journals
import pytest
from terminal import PROGRAM, environment

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "bulk.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)

# Not on the page: wait for the sandbox, and stop it afterwards.
KNOCK = 'import socket; socket.create_connection(("127.0.0.1", PORT)).close()'
WAIT = f"""
trap "kill $!" EXIT
while ! {sys.executable} -c '{KNOCK}' 2>/dev/null; do sleep 0.1; done
"""

# The page kills the run after five seconds, in which a busy machine may not even have begun it.
# Here, two seconds begin when it has a journal.
TIMEOUT = """#!/bin/sh
test "$1 $2 $3" = "--signal KILL 5" || exit 2
shift 3
"$@" &
while kill -0 $! 2>/dev/null && ! test -s lost.csv.journal; do sleep 0.1; done
sleep 2
kill -KILL $!
wait $!
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_whole_job(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "monocloud-async"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m monocloud_async "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "timeout").write_text(TIMEOUT)
    (tmp_path / "bin" / "timeout").chmod(0o755)
    first, *others = BLOCKS
    assert first.rstrip().endswith("&")
    steps = [
        f"echo '== {number}' | tee /dev/stderr\n{block}" for number, block in enumerate(others)
    ]
    script = "set -eu\n" + first.replace(" &", " >sandbox.log 2>&1 &") + WAIT
    script = (script + "".join(steps)).replace("8080", "PORT").replace("PORT", str(free_port()))
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out, err = (
        re.split(r"^== \d$", text, flags=re.MULTILINE) for text in (done.stdout, done.stderr)
    )
    export, find, look, killed, resumed, check, report, page, again, undo = out[1:]
    assert export.strip() == find.strip() == ""
    assert "3,000 of 5,000 users, in lost.csv" in err[2]
    assert "lost.csv: 3,001 ids, 0 bad lines. Nothing was changed." in look
    assert "3,000 disabled" in look
    assert killed.strip() == "The process is gone: 137"
    assert "The journal of this run is lost.csv.journal" in err[4]
    assert "Resuming the run of the journal lost.csv.journal" in err[5]
    assert re.search(r"^ *[1-9][0-9,]* +enabled before", resumed, re.MULTILINE)
    assert "1 line to retry: failed.csv" in resumed
    assert "Exit code 1: somebody could not be enabled" in resumed
    assert (tmp_path / "failed.csv").read_text().splitlines()[1] == "nobody,,,,,,,"
    assert "3,000 enabled" in check
    assert "1 missing from the tenant" in check
    assert "Exit code 1: someone is not enabled" in check
    assert "enabled" in report
    assert "killed" in report
    assert "The report as a page: run.html" in page
    assert (tmp_path / "again.csv").read_text() == "user_id\nnobody\n"
    assert "Exit code 1: still nobody" in again
    assert "3,000  disabled" in undo
    counts = journals.outcomes(tmp_path / "lost.csv.journal")
    assert counts.pop("failed") == 1
    assert sum(counts.values()) == 3000
    assert journals.outcomes(tmp_path / "lost.csv.journal.undo") == {"disabled": 3000}
    assert not (tmp_path / "again.csv.journal").exists()


def test_the_pictures_are_there_and_ask_nobody_for_anything() -> None:
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", PAGE)
    assert len(pictures) == 4
    for picture in pictures:
        content = (DOCS / picture).read_bytes()
        assert len(content) > 1000
        if picture.endswith(".svg"):
            assert b"href=" not in content
            assert b"url(http" not in content


def test_the_json_lines_have_the_members_that_the_page_shows(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    users = tmp_path / "users.txt"
    users.write_text("ada\nnobody\n..\n")
    with Sandbox(users=["ada"]) as sandbox:
        done = subprocess.run(
            [*PROGRAM, "bulk", users, "--json", "--no-journal"],
            env=environment(sandbox), check=False, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1

    def shape(value: object) -> object:
        return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value)

    shown, printed = (
        sorted(map(json.loads, text.splitlines()), key=str) for text in (block, done.stdout)
    )
    assert list(map(shape, shown)) == list(map(shape, printed))
