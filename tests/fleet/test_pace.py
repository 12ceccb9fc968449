"""One rate for all sessions of a fleet: what the workflow learns, and how sessions keep to it."""

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from msgspec import json, structs
from tenants import Bucket

from monocloud_async.fleet.follower import Follower
from monocloud_async.fleet.messages import Granted, Pace, Sent, Throttled
from monocloud_async.fleet.pace import HEARD, FleetPace, interval, sent
from monocloud_async.ratelimit import limiter
from monocloud_async.ratelimit.estimator import MeasurementInterval
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.ratelimit.pacer import Pacer

LATENCY = 0.02  # seconds of a request
SIGNAL = 0.05  # seconds of a signal or of an answer of the workflow
LANES = 8
KNOWN = 10.5  # when `known` has learnt


def measured(rate: float, seconds: float, *, paused: float = 1.0) -> Sent:
    """Return what a session tells that sent evenly, until one request was refused."""
    found, now = MeasurementInterval(0), 0.0
    for _ in range(int(rate * seconds)):
        found.grant(found.send(now, rate), now + LATENCY)
        now += 1 / rate
    found.refuse(found.send(now, rate))
    return sent(found, rate, now, now + paused, now + paused)


def told(message: Sent | None, *, epoch: int, worker: str = "one") -> Granted:
    return Granted(worker=worker, epoch=epoch, sent=message)


def known(rate: float) -> FleetPace:
    """Return the pace of a fleet that has learnt a rate, after a search."""
    pace = FleetPace(Pace())
    first = structs.replace(measured(4 * rate, 0.05), rate=None)
    pace.granted(told(first, epoch=0), 1.5)
    pace.granted(told(measured(rate, 8.0), epoch=1), KNOWN)
    return pace


def test_what_a_session_measured_survives_its_way_through_temporal() -> None:
    found = MeasurementInterval(3)
    found.weight = 2.5
    tickets = [found.send(10 + place / 50, 50) for place in range(100)]
    found.grant(tickets[0], 10.02)
    found.refuse(tickets[60])
    message = sent(found, math.inf, 12.0, 13.0, 13.5)
    there = interval(json.decode(json.encode(message), type=Sent), 1013.5)
    assert there.granted == found.granted == 61 * 2.5 - 2.5
    assert there.rate(1.0) == pytest.approx(found.rate(1.0))
    assert there.burst(20.0) == pytest.approx(found.burst(20.0))


def test_a_session_that_is_refused_pauses_all_once() -> None:
    pace = FleetPace(Pace())
    pace.throttled(Throttled(worker="one", epoch=0, wait=1.0))
    pace.throttled(Throttled(worker="two", epoch=0, wait=60.0))
    assert (pace.pace.paused, pace.pace.prober, pace.pace.wait) == (True, "one", 60.0)
    pace.granted(told(None, epoch=0), 61.0)
    assert (pace.pace.paused, pace.pace.epoch) == (False, 1)
    after = pace.pace
    pace.throttled(Throttled(worker="two", epoch=0, wait=60.0))  # this is no news
    pace.granted(told(measured(100, 1.0), epoch=0), 62.0)
    assert pace.pace is after


def test_one_session_looks_for_the_rate_and_all_keep_it() -> None:
    pace = FleetPace(Pace())
    pace.granted(told(structs.replace(measured(800, 0.5), rate=None), epoch=0), 1.5)
    assert (pace.alone(1.6), pace.pace.known) == ("one", False)
    assert pace.alone(60.0) == ""  # a search that meets no limit ends
    pace.granted(told(measured(200, 20.0), epoch=1), 22.5)
    assert (pace.pace.alone, pace.pace.known) == ("", True)
    rates = dict(pace.pace.rates)
    assert rates[0.0] == pytest.approx(200, rel=0.1)
    assert list(rates) == sorted(rates)
    assert min(time for time in rates if time) > 4  # it is held for a while
    assert max(rates.values()) > 5000  # and tried to be raised later


def test_after_a_long_pause_all_look_for_the_rate() -> None:
    pace = FleetPace(Pace())
    first = structs.replace(measured(300, 5.0, paused=60.0), rate=None)
    pace.granted(told(first, epoch=0), 65.0)
    assert pace.pace.alone == ""
    assert 0 < pace.pace.rates[0][1] < 300


def test_the_time_of_sending_counts_until_the_next_refusal() -> None:
    patient, hasty = known(200), known(200)
    patient.granted(told(measured(210, 30.0), epoch=2), KNOWN + 31)
    hasty.granted(told(measured(210, 3.0), epoch=2), KNOWN + 4)
    quiet = [min(time for time, _ in each.pace.rates if time) for each in (patient, hasty)]
    assert quiet[0] > quiet[1]  # a rate that held for long is held for longer


def test_refusals_right_after_a_pause_change_the_rate_only_if_they_go_on() -> None:
    pace, now = known(200), KNOWN
    before = pace.pace.rates
    for epoch in (2, 3):
        now += 1.4
        pace.granted(told(measured(200, 0.4), epoch=epoch), now)
        assert (pace.pace.rates, pace.pace.burst) == (before, 0.0)
    pace.granted(told(measured(200, 0.4), epoch=4), now + 1.4)
    assert pace.pace.rates[0][1] == pytest.approx(0.58 * 200)  # as among other clients


def test_a_time_in_which_nothing_was_sent_changes_no_rate() -> None:
    busy, idle = known(200), known(200)
    busy.granted(told(measured(200, 5.0), epoch=2), KNOWN + 6.0)
    idle.granted(told(measured(200, 5.0), epoch=2), KNOWN + 3606.0)
    assert idle.pace.rates[0] == pytest.approx(busy.pace.rates[0])


def test_the_rate_that_was_learnt_does_not_rise_by_itself() -> None:
    pace = known(200)
    assert pace.learnt == pace.pace.rates[0][1] == pytest.approx(200, rel=0.1)
    assert FleetPace(pace.pace).learnt == pace.learnt  # in a new history as well
    assert FleetPace(Pace()).learnt is None


def test_the_highest_rate_is_told_to_who_knows_the_epoch_too() -> None:
    pace = known(200)
    news = pace.answer("", 0, me="r", lanes=0, max_rate=300.0, now=5.0)
    assert (news.run, news.lanes, news.max_rate, news.rates) == ("r", 1, 300.0, pace.pace.rates)
    known_already = pace.answer("r", pace.pace.epoch, me="r", lanes=6, max_rate=None, now=5.0)
    assert (known_already.rates, known_already.max_rate, known_already.lanes) == ([], None, 6)


def test_a_new_history_keeps_the_rates_of_the_one_before() -> None:
    before = known(200)
    after = FleetPace(json.decode(json.encode(before.pace), type=Pace))
    assert after.pace == before.pace
    after.granted(told(None, epoch=2), 10.0)
    assert after.pace.rates == before.pace.rates


# The session's side


class Session:
    """A session with its follower, and a clock that the tests set."""

    def __init__(self, chunks: int = 1) -> None:
        self.now = 0.0
        self.told: list[Throttled | Granted] = []
        self.limiter = RateLimiter(seed=1)
        self.follower = Follower(self.limiter, "me", self.told.append, lambda: self.now)
        self.follower.chunks = chunks

    def refused(self) -> None:
        self.limiter.refused(self.limiter.send(self.now), 1.0, self.now)

    def probes(self) -> None:
        self.now += self.limiter.delay(self.now) + 1e-9
        ticket = self.limiter.send(self.now)
        self.limiter.granted(ticket, self.now + LATENCY)

    def sends(self, seconds: float) -> int:
        """Send as fast as the limiter lets, all of it granted; return how many were sent."""
        end, sent = self.now + seconds, 0
        while self.now + (wait := self.limiter.delay(self.now)) < end:
            self.now += wait
            self.limiter.granted(self.limiter.send(self.now), self.now)
            sent += 1
        self.now = end
        return sent


class Run:
    """A bulk run, of which the highest rate is looked at."""

    max_rate = 50.0

    def set_max_rate(self, max_rate: float) -> None:
        self.max_rate = max_rate


RATES = [(0.0, 200.0), (10.0, 220.0)]


def test_a_session_keeps_its_part_by_the_number_of_its_chunks() -> None:
    session = Session(chunks=2)
    session.follower.hear(Pace(run="r", epoch=4, rates=RATES, known=True, lanes=8))
    assert session.limiter.rate == 50
    session.sends(11.0)
    assert session.limiter.rate == 55
    session.follower.hear(Pace(run="r", epoch=4, known=True, lanes=4))  # the rates are known
    assert session.limiter.rate == 110


def test_a_session_that_is_refused_tells_it_and_what_it_sent_once_it_is_granted_again() -> None:
    session = Session()
    session.follower.hear(Pace(run="r"))
    session.refused()
    (throttled,) = session.told
    assert isinstance(throttled, Throttled)
    assert throttled.wait == pytest.approx(1.0, abs=0.05)
    session.probes()
    _, granted = session.told
    assert isinstance(granted, Granted)
    assert granted.sent is not None
    assert (granted.sent.refused, granted.sent.rate) == (1, None)
    assert session.limiter.state == "paused"  # until it hears the new rate
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, known=True))
    assert (session.limiter.state, session.limiter.rate) == ("paced", 200)


def test_a_session_waits_for_the_probe_of_another_one() -> None:
    session = Session()
    session.follower.hear(Pace(run="r"))
    session.follower.hear(Pace(run="r", paused=True, prober="other", wait=1.0))
    assert session.limiter.state == "paused"
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone="other", lanes=2))
    assert (session.limiter.state, session.limiter.rate) == ("paused", None)
    session.follower.hear(Pace(run="r", epoch=2, rates=RATES, known=True, lanes=2))
    assert (session.limiter.state, session.limiter.rate) == ("paced", 100)
    assert session.told == []


def test_a_session_that_looks_for_the_rate_alone_may_use_the_whole_highest_rate() -> None:
    session = Session(chunks=2)
    session.follower.hear(Pace(run="r", lanes=6, max_rate=300))
    run: Any = Run()
    session.follower.runs[run] = 50.0
    alone = Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6, max_rate=300)
    session.follower.hear(alone)
    assert run.max_rate == 150.0  # in each of two lanes
    session.follower.hear(Pace(run="r", epoch=2, rates=RATES, lanes=6, max_rate=300))
    assert run.max_rate == 50.0


def test_a_search_ends_with_the_last_chunk_of_the_session_if_others_wait_for_it() -> None:
    session = Session(chunks=2)
    alone = Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6)
    session.follower.hear(Pace(run="r", lanes=6))
    session.follower.hear(alone)
    session.follower.end_chunk()
    assert session.told == []
    session.follower.end_chunk()
    over = Granted(worker="me", epoch=1)
    assert session.told == [over]
    pace = FleetPace(alone)
    pace.granted(over, 1.0)
    assert (pace.alone(1.0), pace.pace.epoch, pace.pace.rates) == ("", 2, RATES)


def test_a_session_whose_last_user_was_the_probe_leaves_the_search_to_others() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", lanes=3))
    session.refused()
    session.probes()
    session.follower.end_chunk()
    assert session.told[-1] == Granted(worker="me", epoch=1)


@pytest.mark.parametrize("who", ["this session", "another one"])
def test_a_chunk_that_ends_in_a_pause_does_not_end_the_pause(who: str) -> None:
    session = Session()
    session.follower.hear(Pace(run="r", lanes=6))
    alone = Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6)
    session.follower.hear(alone)
    if who == "this session":
        session.refused()
    else:
        session.follower.hear(structs.replace(alone, paused=True, prober="other", wait=60.0))
    session.follower.end_chunk()
    assert [type(each) for each in session.told] == [Throttled] * (who == "this session")


@pytest.mark.parametrize("alone", ["", "other"])
def test_a_chunk_that_ends_is_no_news_else(alone: str) -> None:
    session = Session()
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone=alone, lanes=6))
    session.follower.end_chunk()
    session.follower.chunks = 1
    session.follower.hear(Pace(run="r", epoch=2, rates=RATES, alone="me", lanes=1))
    session.follower.end_chunk()
    assert session.told == []


def test_a_session_searches_alone_for_some_seconds_whatever_it_hears() -> None:
    session = Session(chunks=2)
    run: Any = Run()
    session.follower.runs[run] = 50.0
    session.follower.hear(Pace(run="r", lanes=6, max_rate=300))
    session.follower.hear(
        Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6, max_rate=300, known=True)
    )
    assert (session.limiter.rate, run.max_rate) == (200, 150)
    session.now += 5.1  # the coordinator has died
    session.follower.limit_runs()
    assert session.limiter.rate == pytest.approx(200 / 3)
    assert run.max_rate == 50


def test_what_is_sent_after_a_search_counts_as_a_part_of_what_the_fleet_sends() -> None:
    session = Session(chunks=2)
    session.follower.hear(Pace(run="r", lanes=6))
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6))
    session.now += 5.1  # the coordinator has died
    session.follower.limit_runs()
    sent = session.sends(10.0)
    session.refused()
    session.probes()
    granted = session.told[-1]
    assert isinstance(granted, Granted)
    assert granted.sent is not None
    assert granted.sent.sent == pytest.approx(3 * (sent + 1))


def test_a_lane_that_was_alone_leaves_the_others_their_part_of_the_highest_rate() -> None:
    session = Session()
    run: Any = Run()
    session.follower.runs[run] = 300.0  # as the only one, it had all of it
    session.follower.hear(Pace(run="r", max_rate=300))
    assert run.max_rate == 300
    session.follower.hear(Pace(run="r", lanes=6, max_rate=300))
    assert run.max_rate == 50


def test_a_session_that_was_idle_comes_back_at_the_rate_that_it_had() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", epoch=4, rates=RATES, known=True))
    session.sends(5.0)
    session.now += 600.0
    assert session.limiter.rate == 200
    session.sends(4.0)
    assert session.limiter.rate == 200
    session.sends(2.0)
    assert session.limiter.rate == 220


def test_the_highest_rate_holds_and_may_change_in_an_epoch() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", epoch=4, rates=RATES, known=True, max_rate=100))
    session.sends(20.0)
    assert session.limiter.rate == 100
    session.follower.hear(Pace(run="r", epoch=4, known=True, max_rate=700))
    assert session.limiter.rate == 200  # no higher rate was tried so far
    session.sends(11.0)
    session.follower.hear(Pace(run="r", epoch=4, known=True, max_rate=None))
    assert session.limiter.rate == 220
    session.follower.hear(Pace(run="r", epoch=4, known=True, max_rate=50))
    assert session.limiter.rate == 50


def test_a_session_that_waits_for_a_search_keeps_its_part_if_the_coordinator_dies_then() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", lanes=4))
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone="other", lanes=4))
    assert session.limiter.delay(0.0) == 2.5
    for _ in range(3):
        session.probes()
    assert session.limiter.state == "paced"
    assert session.sends(1.0) <= 50


def test_a_longer_wait_is_told_in_the_pause_too() -> None:
    session = Session()
    session.follower.hear(Pace(run="r"))
    session.refused()
    session.now += session.limiter.delay(session.now) + 1e-9
    session.limiter.refused(session.limiter.send(session.now), 60.0, session.now)
    waits = [told.wait for told in session.told if isinstance(told, Throttled)]
    assert waits == [pytest.approx(1.0, abs=0.05), pytest.approx(61.0, abs=0.1)]
    session.limiter.refused(session.limiter.send(session.now + 61), 1.0, session.now + 61)
    assert len(session.told) == 3


def test_a_wait_for_another_session_is_not_the_tenant_s(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    monkeypatch.setattr(limiter, "current_time", lambda: session.now)
    session.follower.hear(Pace(run="r"))
    session.follower.hear(Pace(run="r", paused=True, prober="other", wait=1.0))
    session.now = 1.0
    assert (session.limiter.pause_left, session.follower.pause_left) == (1.5, 0.0)
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone="other", lanes=2))
    assert (session.limiter.state, session.follower.pause_left) == ("paused", 0.0)
    session = Session()
    session.follower.hear(Pace(run="r"))
    session.refused()
    assert session.follower.pause_left == pytest.approx(1.0, abs=0.05)


def test_who_waits_tells_what_the_tenant_asks_although_another_session_was_told() -> None:
    session = Session()
    session.follower.hear(Pace(run="r"))
    session.follower.hear(Pace(run="r", paused=True, prober="gone", wait=60.0))
    session.now = 20.0
    session.follower.hear(Pace(run="r", paused=True, prober="gone", wait=60.0))
    assert session.follower.pause_left == 40.0


def test_a_second_run_begins_as_slowly_as_the_first() -> None:
    session = Session()
    first = [session.limiter.send(0.0) for _ in range(20)]
    window = session.limiter.delay(0.0)
    assert window > 0
    for ticket in first:
        session.limiter.granted(ticket, 0.1)
    session.now = 0.1
    session.follower.hear(Pace(run="first"))
    session.refused()
    session.probes()
    session.follower.hear(Pace(run="first", epoch=1, rates=RATES, known=True))
    session.sends(3.0)
    session.follower.hear(Pace(run="second"))
    assert (session.limiter.state, session.limiter.rate) == ("open", None)
    for _ in range(20):
        assert session.limiter.delay(session.now) == 0
        session.limiter.send(session.now)
    assert session.limiter.delay(session.now) == pytest.approx(window)
    assert session.follower.epoch == ("second", 0)


def test_a_session_whose_worker_has_ended_learns_by_itself() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, known=True))
    session.follower.hear(Pace(run="r", epoch=1, paused=True, prober="other"))
    session.follower.close()
    assert session.limiter.is_open
    session.refused()
    session.probes()
    assert session.told == []
    assert not session.limiter.listeners
    assert session.limiter.state == "paced"


def test_a_pause_whose_probe_is_lost_ends_nevertheless() -> None:
    session = Session()
    session.follower.hear(Pace(run="r"))
    paused = Pace(run="r", paused=True, prober="dead", wait=1.0)
    while not session.told:
        session.follower.hear(paused)
        if session.limiter.delay(session.now) > 1:
            session.now += 1.0
        else:
            session.probes()
    assert 10 < session.now < 20
    assert session.told == [Granted(worker="me", epoch=0)]


def test_a_session_without_news_goes_on_carefully_at_the_last_rate() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", epoch=4, rates=RATES, known=True))
    session.refused()
    session.probes()
    session.probes()
    assert session.limiter.state == "paced"
    assert session.limiter.rate == pytest.approx(140)
    session.now += 6.0
    session.follower.hear(Pace(run="r", epoch=4, known=True))  # the workflow knows nothing of it
    assert session.limiter.rate == pytest.approx(200)


def test_a_session_of_an_older_workflow_learns_by_itself() -> None:
    session = Session()
    session.refused()
    session.probes()
    assert session.limiter.state == "paced"
    assert session.told == []


def test_the_pause_of_an_outage_is_left_alone() -> None:
    session = Session()
    session.follower.hear(Pace(run="r", rates=RATES, known=True, epoch=1))
    for user in range(30):
        session.limiter.failed(session.limiter.send(session.now), f"user {user}", session.now)
        session.now += 1.0
    assert session.limiter.down
    session.follower.hear(Pace(run="r", rates=RATES, known=True, epoch=2))
    assert session.limiter.down
    assert session.limiter.state == "paused"
    assert session.told == []


# All together


class Lane:
    """Chunks of a session, one after the other, each with its part of the highest rate."""

    def __init__(self, limiter: RateLimiter, follower: Follower) -> None:
        self.limiter = limiter
        self.follower = follower
        self.max_rate: float | None = None  # of the fleet, when the chunk began
        self.pacer = Pacer()

    def set_max_rate(self, max_rate: float) -> None:
        self.pacer.rate = max_rate


class Fleet:
    """Three sessions with eight lanes on a tenant, and their workflow, in simulated time.

    One lane begins alone, as in a run, until something is known of the rate.
    """

    def __init__(self, tenant: Bucket, users: int, max_rate: float | None = None) -> None:
        self.now = 0.0
        self.max_rate = max_rate
        self.paused = False  # by `fleet pause`
        self.sent: list[float] = []  # when
        self.tenant, self.left = tenant, users
        self.refused = 0
        self.pace = FleetPace(Pace())
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._out: list[Lane] = []
        self._has_all = False
        self._joined_at = -math.inf
        for number, chunks in enumerate((1, 3, 4)):
            limiter = RateLimiter(seed=number)
            follower = Follower(limiter, f"worker {number}", self._tell, lambda: self.now)
            self._at(0.1 * number, self._ask, follower)
            for _ in range(chunks):
                self._at(0.2 + 0.1 * number, self._begin, Lane(limiter, follower))

    def _at(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what, args))

    def _tell(self, message: Throttled | Granted) -> None:
        if isinstance(message, Throttled):
            self._at(SIGNAL, lambda: self.pace.throttled(message))
        else:
            self._at(SIGNAL, lambda: self.pace.granted(message, self.now))

    def _ask(self, follower: Follower) -> None:
        follower.limit_runs()
        if follower.chunks:
            self._at(SIGNAL, follower.hear, self._told(follower))
        self._at(0.15 if follower.waits else 0.5, self._ask, follower)

    def _told(self, follower: Follower) -> Pace:
        return self.pace.answer(
            *follower.epoch,
            me="r",
            lanes=len(self._out),
            max_rate=self.max_rate,
            joined_at=self._joined_at,
            now=self.now,
        )

    def _known(self) -> bool:
        return bool(self.pace.pace.rates) and not self.pace.alone(self.now)

    def _begin(self, lane: Lane) -> None:
        drains = any(each.max_rate != self.max_rate for each in self._out)
        if self.paused or drains or (self._out and not self._known()):
            return self._at(0.05, self._begin, lane)
        if self._has_all:
            self._joined_at = self.now
        self._has_all = not self._known()
        own = self.max_rate and self.max_rate / (1 if self._has_all else LANES)
        run: Any = lane
        lane.max_rate, lane.pacer = self.max_rate, Pacer(own or math.inf)
        self._out.append(lane)
        lane.follower.chunks += 1
        lane.follower.runs[run] = own
        self._at(SIGNAL, lambda: lane.follower.hear(self._told(lane.follower)))
        return self._at(2 * SIGNAL, self._join, lane)

    def _join(self, lane: Lane) -> None:
        self._at(HEARD if lane.follower.joins else 0.0, self._send, lane)

    def _send(self, lane: Lane) -> None:
        if self.paused or lane.max_rate != self.max_rate:
            run: Any = lane
            self._out.remove(lane)
            lane.follower.chunks -= 1
            del lane.follower.runs[run]
            return self._at(0.05, self._begin, lane)
        limiter = lane.limiter
        wait = max(limiter.delay(self.now), lane.pacer.delay(self.now))
        if not wait:
            self.sent.append(self.now)
            lane.pacer.take(self.now)
            self._at(LATENCY, self._answer, limiter, limiter.send(self.now))
        return self._at(min(max(wait, 1e-3), 0.05), self._send, lane)

    def _answer(self, limiter: RateLimiter, ticket: Any) -> None:
        wait = self.tenant.take(self.now)
        if wait is None:
            self.left -= 1
            limiter.granted(ticket, self.now)
        else:
            self.refused += 1
            limiter.refused(ticket, wait, self.now)

    @property
    def rate(self) -> float:
        """What the sessions keep to, all together."""
        limiters = {each.limiter for each in self._out}
        return sum(limiter.rate or 0.0 for limiter in limiters)

    def run(self, seconds: float = math.inf) -> float:
        """Return the time when all users are done, or when so many seconds have passed."""
        end = self.now + seconds
        while self.left > 0 and self._events[0][0] < end:
            self.now, _, what, args = heapq.heappop(self._events)
            what(*args)
        return self.now


@pytest.mark.parametrize(("burst", "most"), [(20, 1.13), (50, 1.10), (200, 1.06)])
def test_a_fleet_takes_what_a_tenant_grants(burst: int, most: float) -> None:
    fleet = Fleet(Bucket(200, burst), 12_000)
    ideal = (12_000 - burst) / 200
    assert fleet.run() < most * ideal
    assert fleet.refused <= 60
    assert fleet.pace.learnt == pytest.approx(200, rel=0.05)


def test_a_fleet_that_was_paused_comes_back_at_the_rate_that_it_had() -> None:
    fleet = Fleet(Bucket(200, 50), 100_000)
    fleet.run(25.0)
    fleet.paused = True
    fleet.run(120.0)
    refused, began = fleet.refused, fleet.now
    fleet.paused = False
    fleet.run(10.0)
    assert sum(began + 1 <= at < began + 2 for at in fleet.sent) < 1.1 * 200
    assert sum(began <= at for at in fleet.sent) < 1.1 * 2000 + 50
    assert fleet.refused - refused <= 20
    assert fleet.pace.learnt == pytest.approx(200, rel=0.1)


def test_a_fleet_whose_highest_rate_is_raised_uses_it_and_never_sent_more() -> None:
    fleet = Fleet(Bucket(200, 50), 100_000, max_rate=300)
    fleet.run(60.0)
    assert fleet.pace.learnt == pytest.approx(200, rel=0.1)
    fleet.max_rate = 120
    fleet.run(1.0)
    began = fleet.now
    fleet.run(60.0)
    assert sum(at >= began for at in fleet.sent) <= 60 * 120 + 5
    assert fleet.rate == pytest.approx(120)
    fleet.max_rate, refused = 700, fleet.refused
    fleet.run(1.0)
    began = fleet.now
    fleet.run(60.0)
    assert sum(at >= began for at in fleet.sent) > 60 * 200 * 0.9
    assert fleet.refused - refused < 20  # it goes on at the rate that was tried before


class Moody(Bucket):
    """A tenant that refuses one request, and has no limit otherwise."""

    def take(self, now: float) -> float | None:
        self.asked = getattr(self, "asked", 0) + 1
        return 1.0 if self.asked == 100 else None


def test_lanes_that_join_the_only_one_never_send_more_than_the_highest_rate() -> None:
    fleet = Fleet(Moody(1e6, 1e6), 100_000, max_rate=300)
    fleet.run(30.0)
    assert fleet.pace.pace.rates
    counted = [0] * 3001
    for at in fleet.sent:
        counted[round(100 * at)] += 1
    seconds = [sum(counted[begin : begin + 100]) for begin in range(2900)]
    assert seconds[-1] > 290
    assert max(seconds) <= 309
