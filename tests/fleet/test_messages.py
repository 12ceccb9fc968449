"""The payloads of a fleet: what earlier versions stored is still read, and counts add up."""

from typing import Any

import msgspec
import pytest
from msgspec import structs
from plans import plan

from monocloud_async import Outcome
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    Failure,
    FleetReport,
    Plan,
    Remaining,
    RunState,
    Sign,
    Span,
    add_result,
    new_state,
)
from monocloud_async.journal.store import Rows
from monocloud_async.outcome import Status


def result(*statuses: Status, **members: Any) -> ChunkResult:
    outcomes = [
        Outcome(user_id="", position=place, status=status) for place, status in enumerate(statuses)
    ]
    return ChunkResult(rows=Rows.of(outcomes, 0), **members)


def test_a_plan_from_before_there_were_operations_enables() -> None:
    stored = msgspec.to_builtins(plan())
    del stored["operation"]
    assert msgspec.convert(stored, Plan).operation == "enable"


def test_what_is_left_is_stored_under_the_names_of_earlier_versions() -> None:
    left = Remaining(gaps=[], unfinished=[], users_done=3, failed=2, unknown=1, bad_lines=0)
    stored = msgspec.to_builtins(left)
    assert (stored["enabled"], stored["rests"]) == (3, [])
    assert msgspec.convert(stored, Remaining) == left


@pytest.mark.parametrize(
    ("operation", "done"),
    [
        ("enable", "enabled"),
        ("disable", "disabled"),
        ("disable_and_revoke_sessions", "disabled"),
    ],
)
def test_users_are_counted_by_what_was_done_for_them(operation: str, done: Status) -> None:
    state = new_state(plan(operation=operation))
    add_result(state.progress, result(done, done, "failed", "unknown", requests=5, retries=1))
    add_result(state.progress, result(done, bad_lines=2, throttled=3))
    stored = msgspec.to_builtins(state.progress)
    others = {"enabled", "disabled"} - {done}
    assert stored[done] == 3
    assert [stored[name] for name in others] == [0]
    counts = ("failed", "unknown", "bad_lines", "requests", "retries", "throttled")
    assert [stored[name] for name in counts] == [1, 1, 2, 5, 1, 3]
    assert state.report("cancelled").users_done == 3


def test_a_new_run_has_all_of_its_file_to_do() -> None:
    state = new_state(plan())
    assert (state.progress.size, state.progress.expected, state.progress.done) == (900, 100, 0)
    assert state.report("finished").gaps == [Span(100, 1000)]  # the journal was not read yet


def test_a_run_goes_on_from_its_journal_and_counts_what_was_begun_when_it_is_complete() -> None:
    state: RunState = new_state(plan())
    begun = Chunk(span=Span(200, 300), so_far=result("enabled", "enabled", "failed", "unknown"))
    gap = Span(500, 1000)
    left = Remaining(
        gaps=[gap], unfinished=[begun], users_done=40, failed=5, unknown=3, bad_lines=2
    )
    state.go_on(left)
    progress = state.progress
    assert (progress.enabled, progress.failed, progress.unknown) == (38, 4, 2)
    assert (progress.bad_lines, progress.done) == (2, 900 - 500 - 100)
    report = state.report("cancelled")
    assert report.gaps == [gap, begun.span]
    assert report.enabled == 38


@pytest.mark.parametrize(
    ("members", "share"),
    [
        ({}, 0.0),
        ({"enabled": 50, "failed": 3, "unknown": 2, "bad_lines": 1}, 0.56),  # no chunk is complete
        ({"enabled": 50, "done": 540}, 0.6),  # there are fewer users than estimated
        ({"enabled": 100}, 0.999),
        ({"enabled": 150, "done": 899}, 0.999),
        ({"enabled": 90, "done": 900}, 1.0),
    ],
)
def test_the_share_is_that_of_the_users_and_whole_only_when_the_journal_has_all(
    members: dict[str, int], share: float
) -> None:
    progress = structs.replace(new_state(plan()).progress, **members)
    assert progress.share == pytest.approx(share)


def test_a_report_is_shown_without_the_ids_of_its_failures() -> None:
    failure = Failure(user_id="ada", position=0, outcome="failed")
    report = FleetReport(how="finished", gaps=[], failures=[failure], enabled=7)
    assert "enabled=7" in repr(report)
    assert "failures=<1>" in repr(report)
    assert "ada" not in repr(report)


@pytest.mark.parametrize("title", ["Not Found", "x" * 500])
def test_the_failures_of_a_run_have_room_in_a_payload(title: str) -> None:
    run = new_state(plan())
    for place in range(0, 20_000, 100):
        run.add_failures(
            [
                Failure(user_id=f"nobody{number}", position=number, outcome="failed", title=title)
                for number in range(place, place + 100)
            ]
        )
    assert 500 < len(run.failures) <= 1000
    assert run.failures[-1].position == len(run.failures) - 1
    assert len(msgspec.json.encode(run)) < 1 << 20  # Temporal refuses payloads of 2 MB


def test_the_pause_that_is_left_is_that_of_who_has_waited_longest() -> None:
    progress = new_state(plan()).progress
    progress.add_signs([Sign(users=1, rate=0.0, pause_left=left) for left in (0.0, 40.0, 60.0)])
    assert progress.pause_left == 40.0
    progress.add_signs([Sign(users=1, rate=0.0)])
    assert progress.pause_left == 0.0
