"""How the rate is divided into lanes, and the source into chunks."""

from types import SimpleNamespace
from typing import Any

import pytest
import temporalio.workflow
from hypothesis import given
from hypothesis import strategies as st
from plans import plan

from monocloud_async.fleet.lanes import MAX_LANES, MeasuredRate, lanes, most_lanes, next_chunk
from monocloud_async.fleet.messages import (
    Chunk,
    ChunkResult,
    Pace,
    RunState,
    Sign,
    Span,
    new_state,
)
from monocloud_async.fleet.workflow import RunWorkflow
from monocloud_async.journal.store import Rows


def state(size: int, max_rate: float, *, line: float = 10.0) -> RunState:
    begun = new_state(plan(size=size, begin=0, line=line, max_rate=max_rate))
    begun.gaps = [Span(0, size)]
    return begun


def cut(of: RunState, rate: float | None = None) -> list[Span]:
    found: list[Span] = []
    rate = rate or of.progress.max_rate or 0.0
    while of.gaps:
        found.append(next_chunk(of, rate, most_lanes(of.progress.max_rate)).span)
    return found


def users(span: Span, line: float = 10.0) -> float:
    return (span.end - span.start) / line


@pytest.mark.parametrize(
    ("max_rate", "number"),
    [(0.1, 1), (50, 1), (99, 1), (100, 2), (799, 15), (800, 16), (100_000, MAX_LANES)],
)
def test_there_is_a_lane_for_every_fifty_requests_a_second_up_to_sixteen(
    max_rate: float, number: int
) -> None:
    assert most_lanes(max_rate) == lanes(max_rate, None) == number


@pytest.mark.parametrize(
    ("max_rate", "rate", "number"),
    [
        (None, 1.0, 4),
        (None, 200.0, 8),
        (None, 5000.0, MAX_LANES),
        (300, 200.0, 6),
        (2000, 200.0, 8),
        (60, 50, 1),
    ],
)
def test_no_more_lanes_are_used_than_twice_what_the_measured_rate_needs(
    max_rate: float | None, rate: float, number: int
) -> None:
    assert most_lanes(None) == MAX_LANES
    assert lanes(max_rate, rate) == number


def test_the_rate_of_the_fleet_is_what_its_workers_said_lately() -> None:
    rate = MeasuredRate()
    assert rate.value(0.0) is None
    rate.add(Sign(users=1, rate=90.0, seconds=5.0, worker="one"), 0.0)
    rate.add(
        Sign(users=1, rate=10.0, seconds=5.0, learnt=70.0, worker="two"), 50.0
    )  # it waits for a chunk
    assert rate.value(55.0) == 160.0
    rate.add(Sign(users=1, rate=80.0, seconds=5.0, worker="two"), 60.0)
    assert rate.value(65.0) == 80.0  # the first one may be gone
    assert rate.value(130.0) is None
    rate.add(Sign(users=1, rate=33.0, seconds=0.03, worker="two"), 130.0)  # one user, at once
    assert rate.value(130.0) == pytest.approx(0.99)


def test_a_worker_s_rate_counts_after_its_chunk_and_not_if_the_result_waited() -> None:
    rate = MeasuredRate()
    for worker, moment in {"one": 96.5, "two": 99.9, "waited": 90.0, "wrong clock": 3700.0}.items():
        rate.add(Sign(users=1, rate=90.0, seconds=5.0, worker=worker, moment=moment), 100.0)
    assert [sign.worker for sign in rate.lately(100.0)] == ["one", "two"]
    assert [sign.worker for sign in rate.lately(102.0)] == ["two"]
    assert rate.value(102.0) == 360.0


@given(st.integers(1, 10**5), st.floats(0.1, 10**5), st.floats(1, 1000))
def test_chunks_follow_one_another_to_the_end(size: int, max_rate: float, line: float) -> None:
    found = cut(state(size, max_rate, line=line))
    assert [span.start for span in found] == [0, *(span.end for span in found[:-1])]
    assert found[-1].end == size


def test_a_chunk_is_half_a_minute_of_a_lane_and_ever_less_towards_the_end() -> None:
    found = cut(state(1_000_000, 200))  # 100,000 users in four lanes of 50 a second
    assert users(found[0]) == pytest.approx(1500, abs=1)
    sizes = [users(span) for span in found[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) == pytest.approx(100, abs=1)  # two seconds of a lane


def test_a_tenant_that_grants_less_than_is_asked_for_gets_smaller_chunks_at_the_end() -> None:
    sizes = [users(span) for span in cut(state(120_000, 2000), rate=200)[:-1]]
    assert sizes[0] == pytest.approx(375, abs=1)  # half of the share of one of sixteen lanes
    assert min(sizes) == pytest.approx(25, abs=1)


def test_the_result_of_a_chunk_fits_a_payload_at_any_rate() -> None:
    found = cut(state(10**9, 100_000))
    assert max(map(users, found)) * MAX_LANES <= 10_000 + MAX_LANES


def test_what_was_begun_is_done_first() -> None:
    begun = state(1000, 50)
    begun.unfinished = [Chunk(span=Span(5, 6)), Chunk(span=Span(8, 9))]
    spans = [next_chunk(begun, 50, 1).span for _ in range(3)]
    assert spans == [Span(5, 6), Span(8, 9), Span(0, 1000)]
    assert (begun.gaps, begun.unfinished) == ([], [])


def test_gaps_are_cut_one_after_the_other() -> None:
    begun = state(1000, 50)
    begun.gaps = [Span(0, 10), Span(500, 700)]
    assert cut(begun) == [Span(0, 10), Span(500, 700)]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The highest rates of the chunks that a workflow outside of Temporal hands out."""
    found: list[float | None] = []

    def start_activity(*_: object, args: list[Any], **_options: object) -> None:
        found.append(args[2])

    monkeypatch.setattr(temporalio.workflow, "start_activity", start_activity)
    monkeypatch.setattr(temporalio.workflow, "time", lambda: 1.0)
    return found


def running(lanes: int, *, pace: Pace, requests: int = 0) -> Any:
    """Return a workflow with this many lanes."""
    begun = state(1000, 300.0)
    begun.progress.requests = requests
    begun.pace = pace
    found: Any = RunWorkflow(begun)
    found._lanes = set(range(lanes))
    return found


@pytest.mark.parametrize(
    ("lanes", "pace", "requests", "rate"),
    [
        (1, Pace(), 0, 300.0),
        (1, Pace(), 9, 50.0),
        (1, Pace(epoch=1), 0, 300.0),
        (6, Pace(epoch=1), 9, 50.0),  # a pause of which nothing was learnt
        (6, Pace(epoch=2, rates=[(0.0, 200.0)], alone="me"), 9, 50.0),  # a search
        (1, Pace(epoch=2, rates=[(0.0, 200.0)], alone="me"), 9, 300.0),
    ],
)
def test_only_a_lane_that_is_the_only_one_has_all_of_the_highest_rate(
    lanes: int, pace: Pace, requests: int, rate: float, rates: list[float | None]
) -> None:
    running(lanes, pace=pace, requests=requests)._call_worker(Chunk(span=Span(0, 1)))
    assert rates == [rate]


def test_who_joins_the_lane_that_has_all_of_the_highest_rate_is_told(
    rates: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        temporalio.workflow, "info", lambda: SimpleNamespace(first_execution_run_id="r")
    )
    found = running(1, pace=Pace())
    found._call_worker(Chunk(span=Span(0, 1)))
    assert not found.pace("", 0).joins
    found._lanes.add(1)
    found._call_worker(Chunk(span=Span(1, 2)))
    assert found.pace("", 0).joins
    assert rates == [300.0, 50.0]
    monkeypatch.setattr(temporalio.workflow, "time", lambda: 2.5)
    found._call_worker(Chunk(span=Span(2, 3)))
    assert not found.pace("", 0).joins


def test_what_an_earlier_version_kept_is_counted_until_it_is_handed_out_again(
    rates: list[float | None],
) -> None:
    found = running(0, pace=Pace())
    done: list[object] = [0, "", 0, 0, 0]
    kept = ChunkResult(rows=Rows(done, []), requests=1)
    found._state.unfinished = [Chunk(span=Span(0, 9), so_far=kept), Chunk(span=Span(9, 18))]
    assert (found.progress().enabled, found.progress().requests) == (1, 1)
    found._in_hand = {0: kept}  # on its way to the journal
    assert (found.progress().enabled, rates) == (1, [])
