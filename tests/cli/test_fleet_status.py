"""What `fleet status` says, and that it says what to do next."""

import sys
from typing import Any

import pytest
from rich.console import Console

from monocloud_async.cli.display import say
from monocloud_async.cli.fleet import commands
from monocloud_async.cli.fleet.commands import progress_lines
from monocloud_async.fleet import Progress, WorkerProgress


def lines(**members: Any) -> list[str]:
    known: dict[str, Any] = {
        "tenant": "https://acme",
        "source": "/shared/ids.txt",
        "size": 1000,
        "expected": 12_000,
        "max_rate": 300.0,
        **members,
    }
    return progress_lines(Progress(**known))


def test_the_real_rate_and_the_time_left_are_told() -> None:
    first, _, rate, *_ = lines(done=200, enabled=3000, rate=150.0, under_way=700, chunks=6)
    assert first == "25.0% of /shared/ids.txt is processed, about 0:01:00 left"
    assert rate == "150 requests a second now, at most 300; 700 users under way in 6 chunks"


def test_a_run_that_sends_nothing_promises_no_time() -> None:
    first, *others = lines(pause_left=42.0)
    assert "left" not in first
    assert "The tenant asks to wait, 42 s more" in others


def test_an_outage_is_told_with_what_is_left_until_workers_leave() -> None:
    assert (
        "The tenant has been down for 20 s; workers leave the run in 280 s, if it stays down"
        in lines(outage=20.0, max_outage=300.0, pause_left=3.0)
    )


def test_the_learnt_rate_is_told_and_that_nobody_set_a_highest_one() -> None:
    rate = lines(rate=150.0, learnt=198.4, max_rate=None)[2]
    assert rate.startswith("150 requests a second now, the tenant grants about 198; ")
    rate = lines(rate=150.0, learnt=198.4)[2]
    assert rate.startswith("150 requests a second now, the tenant grants about 198, at most 300; ")


def test_the_time_left_has_the_pause_in_it() -> None:
    first = lines(enabled=9000, rate=150.0, pause_left=40.0)[0]
    assert first.endswith("about 0:01:00 left")


def test_failures_are_counted_by_kind_the_most_frequent_first() -> None:
    kinds = {"unknown": 1, "failed 404 NotFoundError": 2}
    counts = lines(enabled=5, failed=2, unknown=1, kinds=kinds)[1]
    assert counts == "5 enabled, 2 failed, 1 unknown (2 failed 404 NotFoundError, 1 unknown)"


def test_members_are_named_with_their_last_sign_of_life() -> None:
    worker = WorkerProgress(name="7@host 0.1.0", role="worker", seconds=1.2, chunks=3)
    assert "Worker 7@host 0.1.0: last seen 1 s ago, 3 chunks" in lines(members=[worker])


def test_what_to_do_next_is_the_last_line() -> None:
    away = {"7@host 0.1.0": "401 Unauthorized"}
    *_, left, last = lines(away=away)
    assert left == "Left the run: worker 7@host 0.1.0: 401 Unauthorized"
    assert last == "When they are mended, take them in with: monocloud-async fleet resume"
    assert lines(paused="by hand", away=away)[-1] == (
        "Paused: by hand. Resume with: monocloud-async fleet resume"
    )
    assert lines(waiting=2)[-1].endswith("start one: monocloud-async fleet worker")


def test_what_others_write_is_one_line_and_cuts_nothing_of_what_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "\x1b[31mno\n" + 300 * "é so "
    shown = lines(
        source=long, done=200, rate=150.0, enabled=3000, kinds={long: 1}, trouble=[long],
        away={long: long}, paused=long,
        members=[WorkerProgress(name=long, role="worker", seconds=1.2, chunks=3)],
    )  # fmt: skip
    assert shown[0].endswith(" is processed, about 0:01:00 left")
    assert shown[3].endswith(": last seen 1 s ago, 3 chunks")
    assert shown[-1].endswith(". Resume with: monocloud-async fleet resume")
    assert not any("\x1b" in line or "\n" in line for line in shown)
    assert all(len(line) < 1100 for line in shown)
    console = Console(file=sys.stdout)
    for line in shown:
        say(console, line, commands._LONGEST)
    said = capsys.readouterr().out.splitlines()
    # Some versions of rich write no space at the end of a line.
    assert [line.rstrip() for line in said] == [line.rstrip() for line in shown]
