"""The rules of the rate limiter, one by one, and all together with simulated tenants."""

import logging
import math
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import tenants
from hypothesis import given, settings
from hypothesis import strategies as st
from limiters import Ours

from monocloud_async.cli.display import limiter_status
from monocloud_async.ratelimit.estimator import RateEstimator, Ticket
from monocloud_async.ratelimit.limiter import LimiterState, RateLimiter
from monocloud_async.ratelimit.pacer import Pacer


def at_once(limiter: RateLimiter, count: int, now: float) -> list[Ticket]:
    """Send this many requests, none of which has to wait."""
    tickets = []
    for _ in range(count):
        assert limiter.delay(now) == 0
        tickets.append(limiter.send(now))
    return tickets


def answered(limiter: RateLimiter, count: int, now: float) -> None:
    """The tenant grants this many requests, one after the other."""
    for _ in range(count):
        limiter.granted(at_once(limiter, 1, now)[0], now)


def in_flight(limiter: RateLimiter, count: int, now: float) -> list[Ticket]:
    """Have this many requests in flight, as soon as the window allows it."""
    while limiter._window < count:
        for ticket in at_once(limiter, int(limiter._window), now):
            limiter.granted(ticket, now)
    return at_once(limiter, count, now)


def due(limiter: RateLimiter, now: float) -> float:
    """Return when the next request may be sent."""
    while wait := limiter.delay(now):
        now += max(wait, 1e-9)  # sums of floats fall short
    return now


def reopen(limiter: RateLimiter, now: float) -> float:
    """Wait until the pause ends and the probe is allowed; return when."""
    now = due(limiter, now)
    probe = at_once(limiter, 1, now)[0]
    limiter.granted(probe, now + 0.02)
    return now + 0.02


def paced(rate: float) -> tuple[RateLimiter, float]:
    """Return a limiter that has measured `rate`, and the time."""
    tenant, limiter, now = tenants.Bucket(rate, 1), RateLimiter(seed=1), 0.0
    while limiter.rate is None:
        now = due(limiter, now)
        ticket = limiter.send(now)
        wait = tenant.take(now)
        if wait is None:
            limiter.granted(ticket, now)
        else:
            limiter.refused(ticket, wait, now)
    return limiter, now


def gaps(limiter: RateLimiter, now: float, count: int) -> list[float]:
    found = []
    for _ in range(count):
        at = due(limiter, now)
        limiter.granted(limiter.send(at), at)
        found.append(at - now)
        now = at
    return found[1:]


# Open


def test_nobody_waits_where_no_limit_was_seen() -> None:
    limiter = RateLimiter()
    answered(limiter, 1000, 0.0)
    assert (limiter.state, limiter.rate, limiter.pause_left, limiter.throttled) == (
        "open",
        None,
        0.0,
        0,
    )
    assert repr(limiter) == "<RateLimiter open>"


@pytest.mark.parametrize("rate", [0.5, 7.0, 250.0])
def test_max_rate_is_exact_from_the_first_request(rate: float) -> None:
    limiter, now, sent = RateLimiter(rate), 100.0, []
    for _ in range(50):
        now = due(limiter, now)
        limiter.granted(limiter.send(now), now + 0.02)
        sent.append(now)
    assert sent == pytest.approx([100 + place / rate for place in range(50)])


def test_max_rate_makes_no_burst_after_a_rest() -> None:
    limiter = RateLimiter(10)
    at_once(limiter, 1, 0.0)
    assert gaps(limiter, 60.0, 5) == pytest.approx([0.1] * 4)


# Paused


def test_a_429_pauses_everybody_for_what_the_tenant_asks_and_a_little_jitter() -> None:
    ends = set()
    for seed in range(50):
        limiter = RateLimiter(seed=seed)
        limiter.refused(at_once(limiter, 1, 0.0)[0], 7.0, 1.0)
        ends.add(1.0 + limiter.delay(1.0))
        assert limiter.delay(5.0) > 3
    assert min(ends) >= 8.0
    assert max(ends) <= 8.02
    assert len(ends) > 40


def test_without_retry_after_the_pause_grows_from_half_a_second_until_one_is_granted() -> None:
    limiter, now, waits = RateLimiter(seed=1), 0.0, []
    for _ in range(30):
        now = due(limiter, now)
        limiter.refused(limiter.send(now), None, now)
        waits.append(limiter.delay(now))
    assert waits[0] == pytest.approx(0.5, abs=0.021)
    assert waits[3] == pytest.approx(0.5 * 1.3**3, abs=0.021)
    assert waits[-1] == pytest.approx(30, abs=0.021)
    now = reopen(limiter, now)
    now = due(limiter, now)
    limiter.refused(limiter.send(now), None, now)
    assert limiter.delay(now) == pytest.approx(0.5, abs=0.021)


def test_429s_of_requests_from_before_the_pause_are_no_news() -> None:
    """Late responses of the same episode neither pause again nor lower the rate again."""
    limiter = RateLimiter(seed=1)
    tickets = in_flight(limiter, 40, 0.0)
    limiter.granted(tickets[0], 0.02)
    limiter.refused(tickets[1], 1.0, 0.02)
    now = reopen(limiter, 0.02)
    rate = limiter._estimator and limiter._estimator.rate
    for late in tickets[2:]:
        limiter.refused(late, 60.0, now)
    assert limiter.state == "paced"
    assert limiter.delay(now) < 1.5
    assert limiter._estimator is not None
    assert limiter._estimator.rate == rate
    assert limiter.throttled == 39


def test_a_longer_retry_after_of_the_same_episode_lengthens_the_pause() -> None:
    limiter = RateLimiter(seed=1)
    first, second = at_once(limiter, 2, 0.0)
    limiter.refused(first, 1.0, 0.02)
    limiter.refused(second, 9.0, 0.03)
    assert limiter.delay(0.03) == pytest.approx(9.0, abs=0.02)


def test_after_a_pause_one_request_goes_ahead_and_the_rest_wait_for_its_answer() -> None:
    limiter = RateLimiter(seed=1)
    limiter.refused(at_once(limiter, 1, 0.0)[0], 1.0, 0.0)
    now = due(limiter, 0.0)
    probe = at_once(limiter, 1, now)[0]
    assert limiter.delay(now + 5) == math.inf
    assert limiter.state == "paused"
    limiter.refused(probe, 2.0, now + 5)
    assert limiter.delay(now + 5) == pytest.approx(2.0, abs=0.02)
    reopen(limiter, now + 5)
    assert limiter.delay(now + 60) == 0


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_probe_that_brings_no_news_is_followed_by_another(how: str) -> None:
    limiter, heard = RateLimiter(seed=1), []
    limiter.refused(at_once(limiter, 1, 0.0)[0], 1.0, 0.0)
    limiter.listeners.add(lambda: heard.append(how))
    probe = at_once(limiter, 1, 2.0)[0]
    limiter.abandoned(probe, 2.1) if how == "lost" else limiter.failed(probe, "a", 2.1)
    assert limiter.delay(2.1) == 0
    assert heard


def test_time_spent_paused_is_counted() -> None:
    limiter = RateLimiter(seed=1)
    limiter.refused(at_once(limiter, 1, 10.0)[0], 5.0, 10.0)
    assert limiter.paused_seconds(12.0) == 2.0
    now = reopen(limiter, 10.0)
    assert limiter.paused_seconds(now + 100) == pytest.approx(5.0, abs=0.02)


def test_hunger_is_counted_from_the_first_429_to_the_end_of_the_pause() -> None:
    limiter = RateLimiter(seed=1)
    assert limiter.starved_for(5.0) == 0
    limiter.refused(at_once(limiter, 1, 10.0)[0], 60.0, 10.0)
    assert limiter.starved_for(11.0) == pytest.approx(60.0, abs=0.02)
    now = due(limiter, 10.0)
    limiter.refused(at_once(limiter, 1, now)[0], 100.0, now)
    assert limiter.starved_for(now) == pytest.approx(160.0, abs=0.04)
    now = reopen(limiter, now)
    assert limiter.starved_for(now) == 0


# Paced


@pytest.mark.parametrize("rate", [100.0, 300.0])
def test_requests_are_evenly_spaced_at_what_the_tenant_grants(rate: float) -> None:
    limiter, now = paced(rate)
    assert limiter.state == "paced"
    assert limiter.rate is not None
    assert limiter.rate < 1.1 * rate  # a first guess
    found = gaps(limiter, now, 10)
    assert found == pytest.approx([1 / limiter.rate] * 9)


def test_a_reservation_does_not_outlive_the_pause() -> None:
    """Send times that were granted before the pause would allow a burst after it."""
    limiter, now = paced(50)
    at_once(limiter, 1, due(limiter, now))
    ticket = limiter.send(now + 1)
    limiter.refused(ticket, 5.0, now + 1)
    now = reopen(limiter, now + 1)
    assert min(gaps(limiter, now, 20)) > 0.015


def test_grants_that_arrive_late_do_not_raise_the_measure() -> None:
    """Requests are counted when they were sent: responses arrive in bunches on a slow network."""
    slow, fast = RateLimiter(seed=1), RateLimiter(seed=1)
    for limiter, latency in ((slow, 3.0), (fast, 0.02)):
        sent, now = [], 0.0
        for _ in range(100):
            sent.append(limiter.send(now))
            now += 0.01
        refused = limiter.send(now)
        limiter.refused(refused, 1.0, now + 0.02)
        for ticket in sent:
            limiter.granted(ticket, ticket.sent_at + latency)
        reopen(limiter, now + 0.02)
    assert slow._estimator is not None
    assert fast._estimator is not None
    assert slow._estimator.rate == fast._estimator.rate


def test_probing_is_gentle_and_goes_above_the_last_limit() -> None:
    limiter, now = paced(100)
    before = limiter.rate or 0
    rates = []
    for _ in range(6000):
        now = due(limiter, now)
        limiter.granted(limiter.send(now), now)
        rates.append(limiter.rate or 0)
    assert rates[-1] > 1.05 * before
    steps = [b / a for a, b in pairwise(rates)]
    assert max(steps) <= 1.01
    assert min(steps) >= 1.0


def test_one_line_is_logged_for_a_change_and_none_for_a_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "monocloud_async")
    limiter, now = paced(100)
    rate = limiter.rate
    gaps(limiter, now, 500)
    assert [record.message for record in caplog.records] == [
        *["paused for 1.0 s: the tenant answered 429"] * limiter.throttled,
        f"paced: at {rate:.1f} requests/s at most, for now",
    ]


def test_a_rate_reads_as_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "monocloud_async")
    limiter, _ = paced(20_000)
    assert limiter.rate is not None
    assert limiter.rate > 10_000
    assert re.fullmatch(r"<RateLimiter paced \d+\.\d/s>", repr(limiter))
    assert re.search(r"at \d+\.\d requests/s at most", caplog.messages[-1])


# Outages


def test_several_users_in_a_row_are_an_outage_and_one_user_is_none() -> None:
    limiter = RateLimiter(seed=1)
    for _ in range(50):
        limiter.failed(at_once(limiter, 1, 0.0)[0], "same", 0.1)
    assert not limiter.down
    for user_id in "bcd":
        limiter.failed(at_once(limiter, 1, 0.0)[0], user_id, 0.1)
    assert not limiter.down
    limiter.granted(at_once(limiter, 1, 0.0)[0], 0.1)
    for user_id in "efgh":
        limiter.failed(at_once(limiter, 1, 0.0)[0], user_id, 0.1)
    assert not limiter.down
    limiter.failed(at_once(limiter, 1, 0.0)[0], "i", 0.1)
    assert limiter.down
    assert limiter.state == "paused"
    assert "down" in repr(limiter)


def outage(limiter: RateLimiter, now: float) -> None:
    for number, ticket in enumerate(at_once(limiter, 5, now)):
        limiter.failed(ticket, f"u{number}", now)
    assert limiter.down


def test_in_an_outage_one_probe_at_a_time_goes_out_at_growing_intervals() -> None:
    limiter, now, waits = RateLimiter(seed=1), 0.0, []
    outage(limiter, now)
    for _ in range(8):
        waits.append(limiter.delay(now))
        now = due(limiter, now)
        probe = at_once(limiter, 1, now)[0]
        assert limiter.delay(now + 1) == math.inf
        limiter.failed(probe, "u0", now)
    assert waits == [0.5, 1, 2, 4, 5, 5, 5, 5]
    assert limiter.down_for(now) == now


def test_the_probes_of_an_outage_are_as_far_apart_as_the_503s_ask() -> None:
    limiter, now, waits = RateLimiter(seed=1), 0.0, []
    for number, ticket in enumerate(at_once(limiter, 5, now)):
        limiter.failed(ticket, f"u{number}", now, retry_after=8.0)
    for asked in (20.0, None, 9999.0):
        waits.append(limiter.delay(now))
        assert limiter.probe_delay(now) == limiter.delay(now)  # what a call is told
        now = due(limiter, now)
        limiter.failed(at_once(limiter, 1, now)[0], "u0", now, retry_after=asked)
    waits.append(limiter.delay(now))
    assert waits == [8, 20, 2, 30]


def test_one_503_that_asks_for_a_wait_holds_nobody_else_back() -> None:
    limiter = RateLimiter(seed=1)
    limiter.failed(at_once(limiter, 1, 0.0)[0], "ada", 0.1, retry_after=30.0)
    assert limiter.delay(0.1) == 0


def test_one_answer_ends_an_outage_gently(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "monocloud_async")
    limiter = RateLimiter(seed=1)
    outage(limiter, 0.0)
    now = reopen(limiter, 0.0)
    assert not limiter.down
    assert limiter.state == "open"
    assert volleys(limiter, now, 5) == [2, 4, 8, 16, 32]
    assert [record.message for record in caplog.records] == [
        "the tenant is down: 5 users failed in a row; probing",
        "the tenant is back",
    ]


def test_a_429_ends_an_outage_too() -> None:
    limiter = RateLimiter(seed=1)
    outage(limiter, 0.0)
    now = due(limiter, 0.0)
    limiter.refused(at_once(limiter, 1, now)[0], 3.0, now)
    assert not limiter.down
    assert limiter.delay(now) == pytest.approx(3, abs=0.02)


def test_failures_of_requests_sent_before_the_outage_do_not_lengthen_it() -> None:
    limiter = RateLimiter(seed=1)
    tickets = in_flight(limiter, 50, 0.0)
    for number, ticket in enumerate(tickets):
        limiter.failed(ticket, f"u{number}", 0.1)
    assert limiter.delay(0.1) == 0.5


def test_an_outage_does_not_count_in_what_is_learnt() -> None:
    limiter, now = paced(100)
    before = limiter.rate
    tickets = []
    for _ in range(6):
        now = due(limiter, now)
        tickets.append(limiter.send(now))
    limiter.refused(tickets[0], 1.0, now)
    for number, ticket in enumerate(tickets[1:]):
        limiter.failed(ticket, f"u{number}", now)
    assert limiter.down
    now = due(limiter, now + 100)
    limiter.refused(limiter.send(now), 1.0, now)
    reopen(limiter, now)
    assert limiter.rate == before


# Slow start


def volleys(limiter: RateLimiter, now: float, count: int) -> list[int]:
    """How many requests are in flight at once, from one round of answers to the next."""
    found = []
    for _ in range(count):
        tickets = []
        while limiter.delay(now) == 0:
            tickets.append(limiter.send(now))
        found.append(len(tickets))
        now += 0.001
        for ticket in tickets:
            limiter.granted(ticket, now)
    return found


def test_the_requests_in_flight_begin_few_and_grow_with_the_answers() -> None:
    assert volleys(RateLimiter(), 0.0, 4) == [20, 40, 80, 160]


def test_the_window_does_not_grow_while_few_are_in_flight() -> None:
    limiter = RateLimiter()
    answered(limiter, 1000, 0.0)
    assert volleys(limiter, 0.0, 1) == [20]


def test_failures_do_not_enlarge_the_window() -> None:
    limiter = RateLimiter()
    for ticket in at_once(limiter, 20, 0.0):
        limiter.failed(ticket, "same", 0.1)
    assert volleys(limiter, 0.2, 1) == [20]


def test_requests_that_hang_hold_the_others_back_for_a_moment_only() -> None:
    limiter, now = RateLimiter(), 0.0
    at_once(limiter, 20, now)
    for _ in range(30):
        assert limiter.delay(now) == pytest.approx(0.02)
        now = due(limiter, now)
        limiter.send(now)
    assert now == pytest.approx(0.6)


def test_where_the_rate_is_learnt_there_is_no_window() -> None:
    limiter, now = paced(1000)
    for _ in range(200):
        now = due(limiter, now)
        limiter.send(now)
    assert limiter.delay(now) < 0.002


def test_an_answer_that_makes_room_is_told_to_those_who_wait() -> None:
    limiter, heard = RateLimiter(), list[int]()
    tickets = at_once(limiter, 20, 0.0)
    limiter.listeners.add(lambda: heard.append(1))
    limiter.granted(tickets[0], 0.01)
    assert heard
    heard.clear()
    limiter.granted(tickets[1], 0.01)
    assert not heard  # there was room already


def test_a_429_at_once_after_an_outage_changes_no_rate() -> None:
    """An answer to an older request ended the outage, so nothing was granted since then."""
    limiter, now = paced(100)
    before = limiter.rate
    now = due(limiter, now)
    older = limiter.send(now)
    for number in range(5):
        now = due(limiter, now)
        limiter.failed(limiter.send(now), f"u{number}", now)
    assert limiter.down
    limiter.granted(older, now + 0.1)
    assert not limiter.down
    for _ in range(2):
        now = due(limiter, now + 0.1)
        limiter.refused(limiter.send(now), 1.0, now)
    reopen(limiter, now)
    assert limiter.rate == before


# What to expect


def test_the_expected_delay_is_the_place_by_the_rate_after_the_pause() -> None:
    limiter, now = paced(50)
    rate = limiter.rate or 0
    begin = due(limiter, now)
    assert limiter.expected_delay(now, 110) == pytest.approx(begin - now + 100 / rate)
    limiter.refused(limiter.send(begin), 9.0, begin)
    assert limiter.expected_delay(begin, 110) == pytest.approx(9 + 100 / rate, abs=0.5)


def test_the_expected_delay_of_max_rate_is_exact() -> None:
    limiter = RateLimiter(4)
    at_once(limiter, 1, 0.0)
    assert limiter.expected_delay(0.0, 0) == 0.25
    assert limiter.expected_delay(0.0, 10) == 2.75


def test_nobody_knows_what_to_expect_before_the_second_429() -> None:
    limiter = RateLimiter(seed=1)
    assert limiter.expected_delay(0.0, 1000) == 0
    for ticket in in_flight(limiter, 60, 0.0)[50:]:
        limiter.refused(ticket, 1.0, 0.02)
    assert limiter.expected_delay(0.02, 1000) == pytest.approx(1, abs=0.03)
    now = reopen(limiter, 0.02)
    assert limiter.expected_delay(now, 1000) < 0.1
    tickets = []
    for _ in range(130):
        now = due(limiter, now)
        tickets.append(limiter.send(now))
    limiter.refused(tickets[-1], 1.0, now)
    assert 5 < limiter.expected_delay(now, 1000) < 40  # by what two refusals say


def test_a_burst_of_the_tenant_is_used_in_part_after_a_pause() -> None:
    tenant, limiter, now = tenants.Bucket(50, 50), RateLimiter(seed=1), 0.0
    while limiter.rate is None:
        now = due(limiter, now)
        ticket = limiter.send(now)
        wait = tenant.take(now)
        if wait is None:
            limiter.granted(ticket, now)
        else:
            limiter.refused(ticket, wait, now)
    assert 15 < len(at_once_allowed(limiter, now)) <= 25


def at_once_allowed(limiter: RateLimiter, now: float) -> list[Ticket]:
    tickets = []
    while limiter.delay(now) == 0:
        tickets.append(limiter.send(now))
    return tickets


def test_max_rate_allows_its_burst_after_a_rest_and_no_more() -> None:
    limiter = RateLimiter(10, burst=5)
    assert len(at_once_allowed(limiter, 100.0)) == 5
    assert limiter.delay(100.0) == pytest.approx(0.1)
    assert len(at_once_allowed(limiter, 100.2001)) == 2
    assert len(at_once_allowed(limiter, 200.0)) == 5


# Random responses


class Checked(Ours):
    """A limiter whose every request is checked against what its state allows."""

    def __init__(self, max_rate: float | None) -> None:
        super().__init__()
        self._limit_rate = max_rate
        if max_rate is not None:
            self._limit = Pacer(max_rate)
        self.sent: list[float] = []

    def send(self, now: float) -> Ticket:
        assert now >= self._until, "sent in a pause"
        assert self._state is not LimiterState.PROBING, "sent beside the probe"
        if self._limit_rate is not None:
            since = [at for at in self.sent if at > now - 1]
            assert len(since) <= self._limit_rate * 1.02 + 1, "over max_rate"
        self.sent.append(now)
        return super().send(now)


ANSWERS = st.sampled_from(["ok", "ok", "ok", "404", "429", "429 for 2 s", "503", "lost"])


@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(ANSWERS, max_size=200),
    max_rate=st.sampled_from([None, 3.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_for_any_answers_it_sends_no_more_than_its_state_allows_and_every_pause_ends(
    answers: list[str], max_rate: float | None, seed: int
) -> None:
    limiter, now, jitter = Checked(max_rate), 0.0, random.Random(seed)
    flying: list[tuple[Ticket, str]] = []
    for number, answer in enumerate(answers):
        while (wait := limiter.delay(now)) == math.inf or (flying and jitter.random() < 0.5):
            assert flying, "everybody waits for a probe that is not there"
            now += 0.01 * jitter.random()
            ticket, said = flying.pop(jitter.randrange(len(flying)))
            if said in {"ok", "404"}:
                limiter.granted(ticket, now)
            elif said == "503":
                limiter.failed(ticket, f"u{number}", now)
            elif said == "lost":
                limiter.abandoned(ticket, now)
            else:
                limiter.refused(ticket, 2.0 if said.endswith("s") else None, now)
        assert wait < 60, "a pause that does not end"
        now += wait
        if limiter.delay(now) == 0:
            flying.append((limiter.send(now), answer))
    for ticket, _ in flying:
        limiter.granted(ticket, now)
    now = due(limiter, now)
    assert limiter.delay(now) == 0


# All rules together; benchmarks/pace.py has many more scenarios


@pytest.mark.parametrize("concurrency", [50, 300])
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda tells: tenants.Bucket(200, 20, tells=tells), 200),
        (lambda tells: tenants.Bucket(50, 50, tells=tells), 50),
        (lambda tells: tenants.Window(1000, 10, tells=tells), 100),
        (lambda tells: tenants.Shared(tenants.Bucket(200, 200, tells=tells), 100), 100),
    ],
)
def test_it_finds_the_pace_and_holds_it(
    make: Callable[[bool], tenants.Tenant], rate: float, concurrency: int, *, tells: bool
) -> None:
    result = tenants.simulate(
        Ours(), make(tells), users=8000, concurrency=concurrency, latency=0.05
    )
    assert result.seconds <= 1.15 * 8000 / rate
    assert result.refused <= 0.06 * result.requests
    assert result.lost == 0


@pytest.mark.parametrize(("before", "after"), [(200.0, 100.0), (100.0, 200.0)])
def test_it_follows_a_limit_that_changes(before: float, after: float) -> None:
    tenant = tenants.Bucket(lambda now: before if now < 100 else after, 20)
    result = tenants.simulate(Ours(), tenant, users=30_000, concurrency=50, latency=0.05)
    assert statistics.median(result.grants[-40:]) == pytest.approx(after, rel=0.03)
    assert result.refused <= 0.01 * result.requests


# In words


def test_the_display_says_what_the_tenant_does() -> None:
    assert limiter_status(RateLimiter()) == ""
    fast, _ = paced(20_000)
    assert re.fullmatch(r"limited to 1\d,\d{3}/s", limiter_status(fast))
    resting, now = RateLimiter(seed=1), time.monotonic()
    resting.refused(resting.send(now), 60.0, now)
    assert re.fullmatch(r"waiting (61|60) s for the tenant", limiter_status(resting))
    broken = RateLimiter()
    outage(broken, now)
    assert re.fullmatch(
        r"the tenant is down for \d s: probing, for at most 300 s", limiter_status(broken)
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about threads and forks
def test_limiters_that_were_made_before_a_fork_have_a_jitter_of_their_own() -> None:
    limiter = RateLimiter()
    pauses = []
    for _ in range(2):
        theirs, ours = os.pipe()
        if os.fork() == 0:  # pragma: no cover  another process
            limiter.refused(limiter.send(0.0), 1.0, 0.0)
            os.write(ours, repr(limiter.pause_from(0.0)).encode())
            os._exit(0)
        os.wait()
        pauses.append(os.read(theirs, 100))
        os.close(theirs)
        os.close(ours)
    assert pauses[0] != pauses[1]


class Leader(RateEstimator):
    """Knows a rate from the begin, or later."""

    def __init__(self, rate: float = math.inf) -> None:
        super().__init__()
        self.rate = rate


def test_a_follower_of_an_unknown_rate_keeps_it_as_soon_as_it_is_known() -> None:
    limiter, leader = RateLimiter(seed=1), Leader()
    limiter.follow(leader)
    limiter.hold(0.0, 1.0)
    leader.rate = 50.0
    limiter.follow(leader, 2.0)
    limiter.granted(limiter.send(1.0), 1.1)  # nobody has released it
    assert limiter.state == "paced"
    limiter.send(1.2)
    assert limiter.delay(1.2) == pytest.approx(0.02)
    running = RateLimiter(seed=1)
    leader = Leader()
    running.follow(leader)
    leader.rate = 50.0
    running.follow(leader)
    assert running.state == "paced"


def test_who_follows_nobody_any_more_begins_anew_and_slowly() -> None:
    limiter = RateLimiter(seed=1)
    limiter.follow(Leader(50.0))
    limiter.hold(0.0, 1.0)
    limiter.release(1.0, 1.0)
    answered(limiter, 1, 1.1)
    limiter.follow(None)
    assert (limiter.state, limiter.rate) == ("open", None)
    at_once(limiter, 20, 2.0)
    assert limiter.delay(2.0) > 0


@pytest.mark.parametrize("gap", [-0.05, 0.0, 1e-6])
def test_one_call_that_has_come_too_late_hurries_nobody(gap: float) -> None:
    limiter = RateLimiter(seed=1)
    at_once(limiter, 20, 0.0)
    waits = limiter.delay(0.0)
    limiter.hurry(gap, 0.0)
    assert limiter.delay(0.0) == waits > 0
    limiter.hurry(0.001, 0.0)
    assert 0 < limiter.delay(0.0) < waits


def test_nobody_hurries_after_an_outage_because_of_a_call_that_waited_in_it() -> None:
    limiter = RateLimiter(seed=1)
    now = 0.0
    while not limiter.down:
        now += max(1.0, limiter.delay(now))
        limiter.failed(limiter.send(now), str(now), now)
    now += limiter.delay(now)
    probe = limiter.send(now)
    limiter.hurry(0.001, now + 11)
    limiter.granted(probe, now + 11)
    at_once(limiter, int(limiter._window), now + 11)
    assert limiter.delay(now + 11) == pytest.approx(0.02)
