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
from monocloud_async.fleet.pace import FleetPace, interval, sent
from monocloud_async.ratelimit.estimator import MeasurementInterval
from monocloud_async.ratelimit.limiter import RateLimiter

LATENCY = 0.02  # seconds of a request
SIGNAL = 0.05  # seconds of a signal or of an answer of the workflow


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
    first = structs.replace(measured(4 * rate, 0.5), rate=None)
    pace.granted(told(first, epoch=0), 1.5)
    pace.granted(told(measured(rate, 2.0), epoch=1), 4.5)
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
    patient.granted(told(measured(210, 30.0), epoch=2), 4.5 + 31)
    hasty.granted(told(measured(210, 3.0), epoch=2), 4.5 + 4)
    quiet = [min(time for time, _ in each.pace.rates if time) for each in (patient, hasty)]
    assert quiet[0] > quiet[1]  # a rate that held for long is held for longer


def test_refusals_right_after_a_pause_change_the_rate_only_if_they_go_on() -> None:
    pace, now = known(200), 4.5
    before = pace.pace.rates
    for epoch in (2, 3):
        now += 1.4
        pace.granted(told(measured(200, 0.4), epoch=epoch), now)
        assert (pace.pace.rates, pace.pace.burst) == (before, 0.0)
    pace.granted(told(measured(200, 0.4), epoch=4), now + 1.4)
    assert pace.pace.rates[0][1] == pytest.approx(0.58 * 200)  # as among other clients


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


RATES = [(0.0, 200.0), (10.0, 220.0)]


def test_a_session_keeps_its_part_by_the_number_of_its_chunks() -> None:
    session = Session(chunks=2)
    session.follower.hear(Pace(run="r", epoch=4, rates=RATES, known=True, lanes=8))
    assert session.limiter.rate == 50
    session.now = 11.0
    assert session.limiter.rate == 55
    session.follower.hear(Pace(run="r", epoch=4, lanes=4))  # the rates are known
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
    session.follower.hear(Pace(run="r", lanes=6))
    highest: dict[str, float] = {}

    class Run:
        def set_max_rate(self, max_rate: float) -> None:
            highest["now"] = max_rate

    run: Any = Run()
    session.follower.runs[run] = 50.0
    session.follower.hear(Pace(run="r", epoch=1, rates=RATES, alone="me", lanes=6))
    assert highest["now"] == 150.0  # in each of two lanes
    session.follower.hear(Pace(run="r", epoch=2, rates=RATES, known=True, lanes=6))
    assert highest["now"] == 50.0


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
    session.follower.hear(Pace(run="r", epoch=4))  # the workflow knows nothing of it
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


class Fleet:
    """Three sessions on a tenant, and their workflow, in simulated time.

    One of them begins alone, as in a run, until something is known of the rate.
    """

    def __init__(self, tenant: Bucket, users: int) -> None:
        self.now = 0.0
        self.tenant, self.left = tenant, users
        self.refused = 0
        self.pace = FleetPace(Pace(run="r"))
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        for number, chunks in enumerate((1, 3, 4)):
            limiter = RateLimiter(seed=number)
            follower = Follower(limiter, f"worker {number}", self._tell, lambda: self.now)
            self._at(0.1 * number, self._ask, follower)
            self._at(0.2 + 0.1 * number, self._send, limiter, follower, chunks)

    def _at(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what, args))

    def _tell(self, message: Throttled | Granted) -> None:
        if isinstance(message, Throttled):
            self._at(SIGNAL, lambda: self.pace.throttled(message))
        else:
            self._at(SIGNAL, lambda: self.pace.granted(message, self.now))

    def _ask(self, follower: Follower) -> None:
        answer = structs.replace(self.pace.pace, lanes=8 if self._known() else 1)
        self._at(SIGNAL, follower.hear, answer)
        self._at(0.15 if follower.waits else 0.5, self._ask, follower)

    def _known(self) -> bool:
        return self.pace.pace.epoch > 0 and not self.pace.pace.alone

    def _send(self, limiter: RateLimiter, follower: Follower, chunks: int) -> None:
        follower.chunks = chunks if self._known() else chunks == 1
        wait = limiter.delay(self.now)
        if follower.chunks and not wait:
            self._at(LATENCY, self._answer, limiter, limiter.send(self.now))
        self._at(min(max(wait, 1e-3), 0.05), self._send, limiter, follower, chunks)

    def _answer(self, limiter: RateLimiter, ticket: Any) -> None:
        wait = self.tenant.take(self.now)
        if wait is None:
            self.left -= 1
            limiter.granted(ticket, self.now)
        else:
            self.refused += 1
            limiter.refused(ticket, wait, self.now)

    def run(self) -> float:
        """Return the seconds until all users are done."""
        while self.left > 0:
            self.now, _, what, args = heapq.heappop(self._events)
            what(*args)
        return self.now


@pytest.mark.parametrize("burst", [20, 50, 200])
def test_a_fleet_takes_what_a_tenant_grants(burst: int) -> None:
    fleet = Fleet(Bucket(200, burst), 12_000)
    ideal = (12_000 - burst) / 200
    assert fleet.run() < 1.15 * ideal
    assert fleet.refused < 0.05 * 12_000
