"""Divides the rate into lanes, and the source into chunks."""

from typing import Final

from monocloud_async.fleet.messages import Chunk, RunState, Sign, Span

MAX_LANES: Final = 16

_LANE_RATE: Final = 50.0  # requests per second for each lane
_FEW_LANES: Final = 4  # for a slow tenant, so that one lane can rest while others work
_LONGEST: Final = 30.0  # seconds of work in a chunk
_SHORTEST: Final = 2.0
# In a chunk: its result must fit a payload of 2 MB, at 120 bytes for each failure.
_MAX_USERS: Final = 10_000
RATE_OVER: Final = 5.0  # seconds over which a worker measures its rate
_FRESH: Final = 60.0  # seconds; a worker that says nothing for longer may be gone


def most_lanes(max_rate: float | None) -> int:
    """Return the number of lanes among which the highest rate is divided.

    They are few, so that each keeps its rate precisely.
    """
    return MAX_LANES if max_rate is None else min(MAX_LANES, max(1, int(max_rate // _LANE_RATE)))


def lanes(max_rate: float | None, rate: float | None) -> int:
    """Return how many lanes to use at a measured rate; None if there is none.

    Twice as many as the rate needs: lanes with a highest rate must be able to reach more.
    """
    most = most_lanes(max_rate)
    return most if rate is None else min(most, max(_FEW_LANES, int(2 * rate // _LANE_RATE)))


class MeasuredRate:
    """The rate that the tenant grants the fleet, from what workers say at the end of a chunk."""

    def __init__(self) -> None:
        self._signs: dict[str, tuple[Sign, float]] = {}  # of each worker, and when it said so

    def add(self, sign: Sign, now: float) -> None:
        """Record what a worker says about itself."""
        self._signs[sign.worker] = sign, now

    def lately(self, now: float) -> list[Sign]:
        """Return the last signs of workers whose chunks came back in the last seconds."""
        # A result may have waited for a coordinator, and a worker's clock may be wrong.
        return [sign for sign, _ in self._signs.values() if abs(now - sign.moment) < RATE_OVER]

    def value(self, now: float) -> float | None:
        """Return the requests per second, or None if nobody has measured any."""
        # The rate that it has is lower while it waits for chunks, which must not get smaller.
        rates = [
            # That of a chunk of a few users, which took milliseconds, says little.
            max(sign.rate * min(1.0, sign.seconds), sign.learnt or 0.0)
            for sign, at in self._signs.values()
            if now - at < _FRESH
        ]
        return sum(rates) or None


def next_chunk(state: RunState, rate: float, number: int) -> Chunk:
    """Return an unfinished chunk if there is one, else a piece of the source.

    Pieces get smaller towards the end, so that all lanes end together. Requires that work is left.

    Args:
        state: the state of the run, from which the piece is removed.
        rate: requests per second over all lanes.
        number: of lanes.
    """
    if state.unfinished:
        return state.unfinished.pop(0)
    assert state.gaps  # noqa: S101  for the type checkers
    gap = state.gaps[0]
    line = state.plan.source.line / number
    share = sum(gap.end - gap.start for gap in state.gaps) / (2 * number)
    longest = min(_LONGEST * rate, _MAX_USERS) * line
    shortest = min(_SHORTEST * rate, _MAX_USERS) * line
    end = min(gap.end, gap.start + int(min(longest, max(shortest, share))) + 1)
    state.gaps[:1] = [Span(end, gap.end)] if end < gap.end else []
    return Chunk(span=Span(gap.start, end))
