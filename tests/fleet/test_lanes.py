"""How the rate is divided into lanes, and the source into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan

from monocloud_async.fleet.lanes import MAX_LANES, lanes, next_chunk
from monocloud_async.fleet.messages import Chunk, RunState, Span, new_state


def state(size: int, max_rate: float, *, line: float = 10.0) -> RunState:
    begun = new_state(plan(size=size, begin=0, line=line, max_rate=max_rate))
    begun.gaps = [Span(0, size)]
    return begun


def cut(of: RunState) -> list[Span]:
    found: list[Span] = []
    while of.gaps:
        found.append(next_chunk(of).span)
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
    assert lanes(max_rate) == number


@given(st.integers(1, 10**7), st.floats(0.1, 10**5), st.floats(1, 1000))
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


def test_the_result_of_a_chunk_fits_a_payload_at_any_rate() -> None:
    found = cut(state(10**9, 100_000))
    assert max(map(users, found)) * MAX_LANES <= 10_000 + MAX_LANES


def test_what_was_begun_is_done_first() -> None:
    begun = state(1000, 50)
    begun.unfinished = [Chunk(span=Span(5, 6)), Chunk(span=Span(8, 9))]
    assert [next_chunk(begun).span for _ in range(3)] == [Span(5, 6), Span(8, 9), Span(0, 1000)]
    assert (begun.gaps, begun.unfinished) == ([], [])


def test_gaps_are_cut_one_after_the_other() -> None:
    begun = state(1000, 50)
    begun.gaps = [Span(0, 10), Span(500, 700)]
    assert cut(begun) == [Span(0, 10), Span(500, 700)]
