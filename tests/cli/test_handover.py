"""A run is cut off somewhere; whoever has journal and input can account for everybody."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from terminal import PROGRAM, environment, started, wait_for

from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

USERS = 400


def report(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "report", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_everybody_is_accounted_for(tmp_path: Path, number: signal.Signals) -> None:
    rng = random.Random(number)
    with Sandbox(users=USERS, latency=0.06) as sandbox:
        ids = [*sandbox.user_ids(), "nobody-of-this-name"]
        rng.shuffle(ids)
        users = tmp_path / "users.txt"
        users.write_text("".join(f"{user_id}\n" for user_id in ids))
        with started(sandbox, "bulk", users, "--concurrency", 4) as process:
            begun = rng.randrange(5, USERS // 2)
            wait_for(lambda: sandbox.stats().requests > begun)
            time.sleep(rng.uniform(0, 0.1))  # time for the process to work
            process.send_signal(number)
            process.wait(timeout=90)
        wait_for(lambda: sandbox.stats().in_flight == 0)
        sandbox.latency = 0
        journal, again = tmp_path / "users.txt.journal", tmp_path / "again.txt"
        done = report(journal, "--json", "--failures", again, "--exit-code")
        assert done.returncode == 3
        *lines, last = map(json.loads, done.stdout.splitlines())
        summary = last["summary"]
        assert [line["user_id"] for line in lines] == ids
        assert (summary["finished"], summary["complete"], summary["total"]) == (False, True, 401)
        enabled = {line["user_id"] for line in lines if line["status"] == "enabled"}
        assert not [user_id for user_id in enabled if sandbox.is_disabled(user_id)]
        assert again.read_text().split() == [user_id for user_id in ids if user_id not in enabled]
        first, *_ = report(journal).stdout.splitlines()
        assert re.match(r"Not finished.*: about \d+ %, about \d+ of about 401 users not yet", first)
        go_on = first.partition("go on with: ")[2]
        assert go_on == summary["go_on"] == f"monocloud-async bulk {users}"
        rest = subprocess.run(
            [*PROGRAM, *go_on.split()[1:]],
            env=environment(sandbox), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert rest.returncode == 1
        assert sandbox.stats().users == {"enabled": USERS, "disabled": 0}
    told = report(journal).stdout
    assert told.startswith("Finished: all 401 users were asked for; 1 of them is not enabled")
