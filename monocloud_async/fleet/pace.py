"""The rate of the whole fleet, learnt once, in the workflow of the run.

When a session of a worker is answered 429, the sessions of all workers pause. That session asks the
tenant again, and tells what was sent until the tenant refused. From this, the same estimator as
that of a session alone learns the rate. While it searches for the rate, that session goes on alone.
Then a new epoch begins for all: each session keeps its part of the rate, by the number of its
chunks.

Between two pauses, the rate depends on the time of sending alone. So each epoch has a timetable of
rates, and the workers need no news until the next pause. `follower` is the worker's side.
"""

import copy
import math
from bisect import bisect
from typing import Final

from msgspec import structs

from monocloud_async.fleet.messages import Granted, Pace, Sent, Throttled
from monocloud_async.ratelimit.estimator import MeasurementInterval, RateEstimator

_HORIZON: Final = 300.0  # seconds of a timetable; long before, it has reached the highest rate
_HIGHEST: Final = 10_000.0  # requests per second; no fleet sends more
_SHORT: Final = 3.0  # seconds; after a longer pause the search is slow, and all can take part
_SETTLING: Final = 1.0  # seconds after a pause, in which a refusal may be one of those before it
_PROOF: Final = 2  # of them in a row, that say nothing
_APART: Final = 1.02  # a rate is in the timetable if it is so many times the one before
_MARKS: Final = 200  # of an interval, in a message
SEARCH: Final = 5.0  # seconds for which a session looks for the rate alone, at most
# Seconds in which a session hears of others: it asks twice a second.
HEARD: Final = 1.0
# Steps of the timetable, in seconds; the search, which comes first, is quick.
_STEP, _LONG_STEP = 0.02, 0.05


class FleetPace:
    """What all sessions of a fleet keep to.

    Args:
        pace: that of the history before, to which the sessions keep until the next pause.

    Attributes:
        pace: what is told to the workers.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._estimator: RateEstimator | None = None
        self._began = 0.0  # when the epoch began
        self._soon = 0  # refusals in a row right after a pause

    def alone(self, now: float) -> str:
        """Return the worker whose session alone looks for the rate, as long as a search lasts."""
        return self.pace.alone if now - self._began < SEARCH else ""

    @property
    def learnt(self) -> float | None:
        """Requests per second that were learnt from the last 429, or None if none are known."""
        return rate_after(self.pace, 0.0) if self.pace.known else None

    def answer(
        self,
        run: str,
        epoch: int,
        *,
        me: str,
        lanes: int,
        max_rate: float | None,
        joined_at: float = -math.inf,
        now: float,
    ) -> Pace:
        """Return what the sessions keep to; the rates only to who knows another epoch.

        Args:
            run: the run that the session knows.
            epoch: the epoch that it knows.
            me: this run.
            lanes: how many chunks are out.
            max_rate: the highest rate of the whole fleet.
            joined_at: when others joined the only chunk, which had all of that rate.
            now: as everywhere.
        """
        knows = (run, epoch) == (me, self.pace.epoch)
        return structs.replace(
            self.pace,
            run=me,
            rates=[] if knows else self.pace.rates,
            lanes=max(1, lanes),
            alone=self.alone(now),
            max_rate=max_rate,
            joins=now < joined_at + HEARD,
        )

    def throttled(self, signal: Throttled) -> None:
        """Record that a session was refused, and has paused."""
        if signal.epoch != self.pace.epoch:
            return
        if not self.pace.paused:
            self.pace = structs.replace(self.pace, paused=True, prober=signal.worker)
        self.pace = structs.replace(self.pace, wait=max(self.pace.wait, signal.wait))

    def granted(self, signal: Granted, now: float) -> None:
        """Learn from what was sent until the pause, and begin a new epoch."""
        if signal.epoch != self.pace.epoch:
            return
        was = self.pace
        pace = Pace(epoch=signal.epoch + 1, rates=was.rates, known=was.known, burst=was.burst)
        sent = signal.sent
        if sent is not None and self._is_too_soon(now - sent.paused):
            pace = structs.replace(pace, burst=0.0)
        elif sent is not None:
            estimator = self._estimator
            if estimator is None:
                estimator = self._estimator = RateEstimator()
            else:
                _advance(estimator, now - sent.paused - self._began, sent.rate or 0.0)
            estimator.learn(
                interval(sent, now),
                math.inf if sent.rate is None else sent.rate,
                now - sent.paused,
                now - sent.resumed,
            )
            rested = sent.paused - sent.resumed
            alone = not estimator.known and rested < _SHORT
            pace = structs.replace(
                pace,
                rates=_timetable(estimator),
                alone=signal.worker if alone else "",
                known=estimator.known,
                burst=estimator.burst,
            )
        self.pace, self._began = pace, now

    def _is_too_soon(self, paused_at: float) -> bool:
        """Return whether this refusal says nothing: not all had heard of the pause before.

        Sessions that go on while others wait use what the tenant saves up. If refusals are so soon
        again and again, other clients share the limit, which the estimator notices.
        """
        settled = not self._estimator or not self._estimator.known
        self._soon += 1
        if settled or paused_at - self._began > _SETTLING or self._soon > _PROOF:
            self._soon = 0
        return self._soon > 0


def rate_after(pace: Pace, seconds: float) -> float:
    """Return the requests per second of the whole fleet, after so much time of sending."""
    place = bisect(pace.rates, seconds, key=_begin) - 1
    return pace.rates[max(0, place)][1] if pace.rates else math.inf


def _begin(entry: tuple[float, float]) -> float:
    return entry[0]


def _advance(estimator: RateEstimator, seconds: float, refused_rate: float) -> None:
    """Let the time of sending pass, of which nobody knows how much of these seconds it was.

    The rate tells it: none was sent at a higher one than that which was refused.
    """
    highest, passed = _APART * max(refused_rate, estimator.rate), 0.0
    while (step := _step(passed)) <= seconds - passed and estimator.rate <= highest:
        estimator.advance(step)
        passed += step


def _step(passed: float) -> float:
    return _STEP if passed < SEARCH else _LONG_STEP


def _timetable(estimator: RateEstimator) -> list[tuple[float, float]]:
    """Return the rates from now on, if nobody is refused."""
    estimator, passed = copy.deepcopy(estimator), 0.0
    found = [(0.0, estimator.rate)]
    while passed < _HORIZON and estimator.rate < _HIGHEST:
        step = _step(passed)
        estimator.advance(step)
        passed += step
        if estimator.rate > _APART * found[-1][1]:
            found.append((round(passed, 3), estimator.rate))
    return found


def sent(
    of: MeasurementInterval, rate: float, paused_at: float, resumed_at: float, now: float
) -> Sent:
    """Return a message of what a session sent until it was refused."""
    marks = list(of.marks)
    apart = math.ceil(len(marks) / _MARKS) or 1
    return Sent(
        rate=rate if rate < math.inf else None,
        paused=now - paused_at,
        resumed=now - resumed_at,
        began=now - of.began,
        answered=None if of.answered_at is None else now - of.answered_at,
        latency=of.latency if of.latency < math.inf else None,
        first_refused=now - of.first_refused_at,
        last_refused=now - of.last_refused_at,
        sent=of.sent,
        refused=of.refused,
        end=of.end,
        unheld=of.unheld,
        weight=of.weight,
        marks=[(now - at, before) for at, before in marks[::apart]],
    )


def interval(sent: Sent, now: float) -> MeasurementInterval:
    """Return the interval that a session measured, with the times of this clock."""
    found = MeasurementInterval(0)
    found.began = now - sent.began
    found.answered_at = None if sent.answered is None else now - sent.answered
    found.latency = math.inf if sent.latency is None else sent.latency
    found.first_refused_at = now - sent.first_refused
    found.last_refused_at = now - sent.last_refused
    found.sent, found.refused, found.end = sent.sent, sent.refused, sent.end
    found.unheld, found.weight = sent.unheld, sent.weight
    found.marks.extend((now - age, before) for age, before in sent.marks)
    return found
