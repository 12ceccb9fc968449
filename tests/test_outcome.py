"""What became of one user, and the counts of a run."""

import asyncio
import pickle

import pytest
from runs import bulk, enable
from virtual_time import run

import monocloud_async as m
from monocloud_async import BulkReport, Outcome, User
from monocloud_async.endpoint import ENABLE
from monocloud_async.outcome import Status, add_outcome


def test_the_seconds_of_a_report_are_live_and_never_go_back() -> None:
    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(0.5)
        if user_id == "u3" and asyncio.get_running_loop().time() < 3:
            raise m.RateLimitedError(status=429, user_id=user_id, retry_after=10)
        return User(user_id=user_id)

    async def main() -> None:
        running = bulk([f"u{number}" for number in range(6)], send, concurrency=1)
        report = running.report
        assert (report.seconds, report.paused_seconds) == (0, 0)
        async with running:
            seen = [(report.seconds, report.paused_seconds) async for _ in running]
            kept = pickle.loads(pickle.dumps(report))  # noqa: S301  our own bytes
        assert [seconds for seconds, _ in seen[:3]] == pytest.approx([0.5, 1.0, 1.5])
        assert seen[2][1] == 0
        assert seen[3][1] > 9
        for figure in zip(*seen, strict=True):
            assert list(figure) == sorted(figure)
        await asyncio.sleep(5)
        assert (report.seconds, report.paused_seconds) == (kept.seconds, kept.paused_seconds)

    run(main(), sockets=False)


async def test_a_report_that_is_pickled_while_its_run_goes_on_stands_still() -> None:
    async with bulk(["a", "b"], enable) as running:
        async for _ in running:
            copy = pickle.loads(pickle.dumps(running.report))  # noqa: S301  our own bytes
            assert 0 < copy.seconds <= running.report.seconds
            assert copy.stopwatch.running is None


def test_a_report_keeps_the_first_thousand_failures_and_counts_all() -> None:
    report = BulkReport()
    for position in range(1500):
        add_outcome(
            report, Outcome(user_id=f"u{position}", position=position, status="failed"), ENABLE
        )
    assert report.failed == 1500
    assert [outcome.position for outcome in report.failures] == [*range(1000)]


@pytest.mark.parametrize("status", ["enabled", "not_attempted", "already_enabled"])
def test_who_did_not_fail_is_no_failure(status: Status) -> None:
    report = BulkReport()
    add_outcome(report, Outcome(user_id="ada", position=0, status=status), ENABLE)
    assert report.failures == []
    assert getattr(report, status) == 1


def test_who_is_enabled_by_an_answer_that_says_otherwise_is_unconfirmed() -> None:
    report = BulkReport()
    for disabled in (True, False, None):
        user = User(user_id="ada", disabled=disabled)
        add_outcome(report, Outcome(user_id="ada", position=0, status="enabled", user=user), ENABLE)
    assert (report.enabled, report.unconfirmed) == (3, 1)


def test_a_report_is_one_line_without_the_ids_of_those_who_failed() -> None:
    report = BulkReport()
    add_outcome(report, Outcome(user_id="ada", position=0, status="failed"), ENABLE)
    told = repr(report)
    assert "failed=1" in told
    assert "failures=<1>" in told
    assert "ada" not in told
