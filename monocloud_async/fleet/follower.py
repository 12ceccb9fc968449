"""The session of a worker, as it keeps its part of the fleet's rate; see `pace`.

Until the workflow has answered, and if it belongs to an earlier version, the session learns the
rate by itself. If the workflow is silent later, the session goes on at the last rates: it pauses
when it is refused, and is careful until it hears of a new epoch.

The rate rises only by what is sent: a session that pauses, or has nothing to send, comes back at
the rate that it had. That of `--max-rate` is never exceeded, whatever the timetable says.
"""

import math
from collections.abc import Callable
from typing import Final

from msgspec import structs

from monocloud_async.bulk.run import BulkRun
from monocloud_async.fleet.messages import Granted, Pace, Sent, Throttled
from monocloud_async.fleet.pace import SEARCH, rate_after, sent
from monocloud_async.ratelimit.estimator import MeasurementInterval
from monocloud_async.ratelimit.limiter import RateLimiter

_HOLD: Final = 2.5  # seconds for which a session waits for news, before it asks the tenant itself
_TOO_LONG: Final = 10.0  # seconds after its time, when a pause no longer holds
_LOST: Final = 5.0  # seconds after which an answer without news shows that a signal was lost
_CAREFUL: Final = 0.7  # part of the last rate, while the new one is not known
_LEAST: Final = 0.1  # requests per second
_LONGER: Final = 1.0  # seconds by which a pause is longer than was told, so that it is told again


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
        self._busy = False
        self._forget()
        limiter.listeners.add(self._look)

    def _forget(self) -> None:
        self._pace: Pace | None = None  # None until the workflow has answered
        self._began = 0.0  # when the epoch began here
        self._sending = 0.0  # seconds of sending since then
        self._part = 1.0  # of the rate
        self._searches_until = -math.inf  # this session has the whole rate
        self._held_at: float | None = None  # since when the session waits for another one
        self._rests_since: float | None = None
        self._signalled_until = -math.inf  # the end of the pause that was signalled in this epoch
        self._unheard_since: float | None = None  # what follows from what was told
        self._sent: Sent | None = None

    def close(self) -> None:
        """Let the session learn the rate by itself again."""
        self._limiter.listeners.discard(self._look)
        self._leave()

    def _leave(self) -> None:
        """Begin as a new session does, slowly."""
        waits = self._held_at is not None or self._unheard_since is not None
        self._forget()
        self._limiter.follow(None)
        if waits:
            self._limiter.release(self._clock(), 0.0)

    @property
    def epoch(self) -> tuple[str, int]:
        """The run and the epoch of which this session knows."""
        return ("", 0) if self._pace is None else (self._pace.run, self._pace.epoch)

    @property
    def waits(self) -> bool:
        """Whether news is expected soon."""
        return self._has_signalled or self._unheard_since is not None or self._held_at is not None

    @property
    def pause_left(self) -> float:
        """Seconds that the tenant asks to wait; a wait for another session's news is none."""
        if self._limiter.down or self._unheard_since is not None:
            return 0.0
        if self._held_at is None:
            return self._limiter.pause_left
        if self._pace is None or not self._pace.paused:
            return 0.0
        return max(0.0, self._held_at + self._pace.wait - self._clock())

    @property
    def joins(self) -> bool:
        """Whether another session may still use the part of a chunk that begins now."""
        return self._pace is not None and self._pace.joins

    @property
    def _has_signalled(self) -> bool:
        return self._signalled_until > -math.inf

    @property
    def _searches(self) -> bool:
        """Whether this session looks for the rate alone: for some seconds, whatever it hears."""
        return self._clock() < self._searches_until

    @property
    def _share(self) -> float:
        return 1.0 if self._searches else self._part

    @property
    def _max_rate(self) -> float:
        """The highest requests per second of the whole fleet."""
        return math.inf if self._pace is None else self._pace.max_rate or math.inf

    def hear(self, pace: Pace) -> None:
        """Take in an answer of the workflow."""
        now = self._clock()
        self._busy = True
        try:
            if self._pace is not None and self._pace.run != pace.run:
                self._leave()
            before, self._pace = self._pace, pace
            is_new = before is None or before.epoch != pace.epoch
            if before is not None and not is_new:
                self._pace = structs.replace(pace, rates=before.rates)
            if is_new:
                self._began, self._sending, self._signalled_until = now, 0.0, -math.inf
                self._held_at = self._unheard_since = self._sent = None
            alone = self._take_share(pace)
            if is_new and before is not None and alone:
                since, self._rests_since = self._rests_since, None
                self._limiter.release(now, 0.0 if since is None else now - since)
            elif self._unheard_since is not None and now > self._unheard_since + _LOST:
                self._unheard_since = None  # the signal was lost
            if not alone or (pace.paused and pace.prober != self._worker):
                self._hold(pace, now)
        finally:
            self._busy = False
        self._look()

    def end_chunk(self) -> None:
        """Count a chunk less; a search for which others wait ends with this session's last one."""
        self.chunks -= 1
        pace, unheard = self._pace, self._unheard_since is not None
        if self.chunks or pace is None or pace.lanes < 2:  # noqa: PLR2004  others than this one
            return
        # It may have to search, and has nobody to send. But a pause lasts until the tenant grants.
        searches = pace.alone == self._worker and not (pace.paused or self._has_signalled)
        if searches or unheard:
            self._tell(Granted(worker=self._worker, epoch=pace.epoch + unheard))

    def _take_share(self, pace: Pace) -> bool:
        """Take this session's part of the rate; return False if another one searches alone."""
        chunks = max(1, self.chunks)
        alone = pace.alone in {"", self._worker} or chunks >= pace.lanes
        self._part = chunks / max(chunks, pace.lanes)
        self._searches_until = self._began + SEARCH if pace.alone and alone else -math.inf
        self.limit_runs()
        return alone

    def limit_runs(self) -> None:
        """Give the runs the highest rate that they may have now; a search may have ended."""
        chunks, share = max(1, self.chunks), self._share
        if self._pace is not None:
            self._limiter.follow(self, 1 / share)
        for run, own in self.runs.items():
            if own is not None:
                most = share * self._max_rate / chunks
                # All lanes rest but those of the session that searches alone.
                run.set_max_rate(most if self._searches and most < math.inf else min(own, most))

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
        if paused and not (held or self._unheard_since is not None):
            until = now + limiter.pause_from(now)
            if not self._has_signalled:
                self._rests_since = now
            if until > max(now, self._signalled_until + _LONGER):
                self._signalled_until = until
                wait = until - (now if self._rests_since is None else self._rests_since)
                self._tell(Throttled(worker=self._worker, epoch=epoch, wait=wait))
        elif not paused and (self._has_signalled or held):
            self._tell(Granted(worker=self._worker, epoch=epoch, sent=self._sent))
            self._signalled_until, self._unheard_since = -math.inf, now
            self._held_at = self._sent = None
            self._busy = True
            limiter.hold(now, _HOLD)
            self._busy = False

    # What the limiter asks

    @property
    def rate(self) -> float:
        """Requests a second to send now."""
        if self._pace is None or not self._pace.rates:
            return math.inf
        rate = self._share * min(rate_after(self._pace, self._sending), self._max_rate)
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
        """Count the time of sending, if it is the learnt rate that holds requests back."""
        if self._pace is not None and rate_after(self._pace, self._sending) < self._max_rate:
            self._sending += gap

    def learn(
        self,
        interval: MeasurementInterval,
        refused_rate: float,
        paused_at: float,
        now: float,
        _arrival_rate: float = 0.0,
    ) -> None:
        """Keep what is to be told to the workflow."""
        self._sent = sent(interval, refused_rate * interval.weight, paused_at, now, self._clock())
