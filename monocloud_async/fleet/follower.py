"""The session of a worker, as it keeps its part of the fleet's rate; see `pace`.

Until the workflow has answered, and if it belongs to an earlier version, the session learns the
rate by itself. If the workflow is silent later, the session goes on at the last rates: it pauses
when it is refused, and is careful until it hears of a new epoch.
"""

import math
from collections.abc import Callable
from typing import Final

from monocloud_async.bulk.run import BulkRun
from monocloud_async.fleet.messages import Granted, Pace, Sent, Throttled
from monocloud_async.fleet.pace import rate_after, sent
from monocloud_async.ratelimit.estimator import MeasurementInterval
from monocloud_async.ratelimit.limiter import RateLimiter

_HOLD: Final = 2.5  # seconds for which a session waits for news, before it asks the tenant itself
_TOO_LONG: Final = 10.0  # seconds after its time, when a pause no longer holds
_LOST: Final = 5.0  # seconds after which an answer without news shows that a signal was lost
_CAREFUL: Final = 0.7  # part of the last rate, while the new one is not known
_LEAST: Final = 0.1  # requests per second


class Follower:
    """Gives the session's limiter its rate: an `Estimator` that learns from the workflow alone.

    Args:
        limiter: of the session.
        worker: the name of this worker.
        tell: sends the workflow a signal, soon.
        clock: that of the limiter.

    Attributes:
        chunks: how many chunks this worker has.
        runs: the runs of these chunks, and the highest rate of each.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        worker: str,
        tell: Callable[[Throttled | Granted], None],
        clock: Callable[[], float],
    ) -> None:
        self.chunks = 0
        self.runs: dict[BulkRun, float | None] = {}
        self._limiter = limiter
        self._worker = worker
        self._tell = tell
        self._clock = clock
        self._pace: Pace | None = None  # None until the workflow has answered
        self._began = 0.0  # when the epoch began here
        self._share = 1.0
        self._held_at: float | None = None  # since when the session waits for another one
        self._rests_since: float | None = None
        self._told = False  # that it was refused, in this epoch
        self._unheard_since: float | None = None  # what follows from what was told
        self._sent: Sent | None = None
        self._busy = False
        limiter.listeners.add(self._look)

    @property
    def epoch(self) -> tuple[str, int]:
        """The run and the epoch of which this session knows."""
        return ("", 0) if self._pace is None else (self._pace.run, self._pace.epoch)

    @property
    def waits(self) -> bool:
        """Whether news is expected soon."""
        return self._told or self._unheard_since is not None or self._held_at is not None

    def hear(self, pace: Pace) -> None:
        """Take in an answer of the workflow."""
        chunks = max(1, self.chunks)
        alone = pace.alone in {"", self._worker} or chunks >= pace.lanes
        whole = bool(pace.alone) and alone
        self._share = 1.0 if whole else chunks / max(chunks, pace.lanes)
        for run, max_rate in self.runs.items():
            if max_rate is not None:  # all lanes rest but those of the session that is alone
                run.set_max_rate(max_rate * max(1.0, pace.lanes / chunks if whole else 1.0))
        first, now = self._pace is None, self._clock()
        self._busy = True
        try:
            if self.epoch != (pace.run, pace.epoch):
                self._pace, self._began = pace, now
                self._held_at = self._unheard_since = self._sent = None
                self._told = False
                self._limiter.follow(self, 1 / self._share)
                if not first and alone:
                    since, self._rests_since = self._rests_since, None
                    self._limiter.release(now, 0.0 if since is None else now - since)
            else:
                self._limiter.follow(self, 1 / self._share)
                if self._unheard_since is not None and now > self._unheard_since + _LOST:
                    self._unheard_since = None  # the signal was lost
            if not alone or (pace.paused and pace.prober != self._worker):
                self._hold(pace, now)
        finally:
            self._busy = False
        self._look()

    def _hold(self, pace: Pace, now: float) -> None:
        if self._held_at is None:
            self._held_at = now
        if self._rests_since is None:
            self._rests_since = now
        if now < self._held_at + pace.wait + _TOO_LONG:
            self._limiter.hold(now, _HOLD)

    def _look(self) -> None:
        """Tell the workflow if the session was refused, or if the tenant grants again."""
        limiter = self._limiter
        if self._busy or self._pace is None or limiter.down:
            return
        now, epoch = self._clock(), self._pace.epoch
        paused, held = limiter.state == "paused", self._held_at is not None
        if paused and not (self._told or held or self._unheard_since is not None):
            self._told, self._rests_since = True, now
            wait = limiter.pause_from(now)
            self._tell(Throttled(worker=self._worker, epoch=epoch, wait=wait))
        elif not paused and (self._told or held):
            self._tell(Granted(worker=self._worker, epoch=epoch, sent=self._sent))
            self._told, self._unheard_since, self._held_at, self._sent = False, now, None, None
            self._busy = True
            limiter.hold(now, _HOLD)
            self._busy = False

    # What the limiter asks

    @property
    def rate(self) -> float:
        """Requests a second to send now."""
        if self._pace is None:
            return math.inf
        rate = self._share * rate_after(self._pace, self._clock() - self._began)
        return max(_LEAST, rate * (1 if self._unheard_since is None else _CAREFUL))

    @property
    def burst(self) -> float:
        """Requests that the tenant grants this session at once after a rest."""
        return 0.0 if self._pace is None else self._pace.burst * self._share

    @property
    def known(self) -> bool:
        """Whether the rate is measured, and not still searched for."""
        return self._pace is not None and self._pace.known

    def preview(self, _interval: MeasurementInterval) -> float:
        """Return the rate as it is."""
        return self.rate

    def advance(self, gap: float) -> None:
        """Do nothing: the rate depends on the time alone."""

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        _coming: float = 0.0,
    ) -> None:
        """Keep what is to be told to the workflow."""
        self._sent = sent(interval, refused_rate * interval.weight, paused_at, now, self._clock())
