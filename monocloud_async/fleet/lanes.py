"""How a rate is spread over the fleet, and how much of the source a lane is given at a time."""

from typing import Final

from monocloud_async.fleet.messages import Chunk, Span, State

MAX_LANES: Final = 16

_LANE_RATE: Final = 50.0  # requests a second that are worth a lane of their own
_LONGEST: Final = 30.0  # seconds of work that a chunk is
_SHORTEST: Final = 2.0
# Out at once: what became of them has to fit one payload of 2 MB, at 120 bytes for one who failed.
_MAX_USERS: Final = 10_000


def lanes(max_rate: float) -> int:
    """On how many lanes a rate is spread: few enough for each to keep its pace well."""
    return min(MAX_LANES, max(1, int(max_rate // _LANE_RATE)))


def next_chunk(state: State) -> Chunk:
    """What was begun first; else a piece of the source, smaller towards the end.

    So the lanes end at about the same time. There has to be something left.
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
