"""Divides the rate into lanes, and the source into chunks."""

from typing import Final

from monocloud_async.fleet.messages import Chunk, RunState, Span

MAX_LANES: Final = 16

_LANE_RATE: Final = 50.0  # requests per second for each lane
_LONGEST: Final = 30.0  # seconds of work in a chunk
_SHORTEST: Final = 2.0
# In a chunk: its result must fit a payload of 2 MB, at 120 bytes for each failure.
_MAX_USERS: Final = 10_000


def lanes(max_rate: float) -> int:
    """Return the number of lanes for a rate; few, so that each keeps its rate precisely."""
    return min(MAX_LANES, max(1, int(max_rate // _LANE_RATE)))


def next_chunk(state: RunState) -> Chunk:
    """Return an unfinished chunk if there is one, else a piece of the source.

    Pieces get smaller towards the end, so that all lanes end together. Requires that work is left.
    """
    if state.unfinished:
        return state.unfinished.pop(0)
    assert state.gaps  # noqa: S101  for the type checkers
    gap, rate = state.gaps[0], state.progress.max_rate
    line = state.plan.source.line / lanes(rate)
    share = sum(gap.end - gap.start for gap in state.gaps) / (2 * lanes(rate))
    longest = min(_LONGEST * rate, _MAX_USERS) * line
    shortest = min(_SHORTEST * rate, _MAX_USERS) * line
    end = min(gap.end, gap.start + int(min(longest, max(shortest, share))) + 1)
    state.gaps[:1] = [Span(end, gap.end)] if end < gap.end else []
    return Chunk(span=Span(gap.start, end))
