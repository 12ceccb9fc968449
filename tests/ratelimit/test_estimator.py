"""The rate that a tenant grants is found: each rule by itself, in figures worked out by hand."""

import math
from itertools import pairwise

import pytest
from runs import bulk
from tenant_in_memory import Tenant, now, users
from tenants import Bucket
from virtual_time import run

from monocloud_async import Outcome
from monocloud_async.ratelimit.estimator import MeasurementInterval, RateEstimator, Ticket


def test_a_run_finds_the_tenants_limit_and_loses_nobody() -> None:
    async def main() -> None:
        tenant = Tenant(Bucket(100, 10))
        outcomes: list[Outcome] = []
        report = await bulk(users(5000), tenant.send, concurrency=100, on_outcome=outcomes.append)
        assert (report.enabled, report.failed, report.retries) == (5000, 0, 0)
        assert sorted(o.position for o in outcomes) == list(range(5000))
        assert report.throttled == report.requests - 5000 < 0.05 * 5000
        assert report.paused_seconds > 1
        assert now() < 1.15 * 50
        assert all(o.attempts == 1 for o in outcomes)

    run(main(), sockets=False)


# What an interval says


def interval(*sent_at: float, refused: int = 1, number: int = 0) -> MeasurementInterval:
    """Requests sent at these times; so many of the last ones were refused."""
    found = MeasurementInterval(number)
    tickets = [found.send(at, math.inf) for at in sent_at]
    for ticket in tickets[len(tickets) - refused :]:
        found.refuse(ticket)
    return found


def evenly(rate: float, count: int, begin: float = 0.0) -> list[float]:
    return [begin + number / rate for number in range(count)]


def test_requests_are_counted_up_to_the_last_refused_one() -> None:
    found = interval(*evenly(10, 30), refused=3)
    late = found.send(99.0, math.inf)
    assert (found.granted, found.first_refused_at, found.last_refused_at) == (27, 2.7, 2.9)
    found.refuse(late)
    assert (found.granted, found.refused, found.last_refused_at) == (27, 4, 99.0)


def test_refusals_come_in_any_order() -> None:
    found = MeasurementInterval(0)
    tickets = [found.send(at, math.inf) for at in evenly(10, 30)]
    for place in (29, 20, 25):
        found.refuse(tickets[place])
    assert (found.granted, found.last_refused_at, found.first_refused_at) == (27, 2.9, 2.9)


def test_of_requests_sent_together_nobody_knows_which_the_tenant_saw_first() -> None:
    found = MeasurementInterval(0)
    tickets = [found.send(at, math.inf) for at in (0.0, 1.0, 1.004, 1.005, 1.011)]
    found.refuse(tickets[1])
    assert found.granted == 3  # the three of 1.000 to 1.005 are one moment


def test_the_rate_is_what_was_granted_after_a_burst_by_the_time() -> None:
    assert interval(*evenly(100, 101)).rate(51) == pytest.approx((100 + 1 - 51) / 1.0)


def test_the_part_that_says_most_is_right() -> None:
    slow_first = [*evenly(1, 100), *evenly(50, 101, begin=100.0)]
    assert interval(*slow_first).rate(1) == pytest.approx(100 / 2.0, rel=0.02)


def test_a_part_of_few_requests_says_nothing() -> None:
    with_volley = [*evenly(10, 200), *([20.0] * 10), 20.06]  # 10 in 0.06 s
    assert interval(*with_volley).rate(1) == pytest.approx(20 / 1.06, rel=0.05)


def test_the_whole_counts_however_few_it_has() -> None:
    assert interval(*evenly(10, 6)).rate(1) == pytest.approx(5 / 0.5)


def test_what_was_sent_after_the_first_refusal_begins_no_part() -> None:
    found = MeasurementInterval(0)
    found.send(0.0, math.inf)
    found.refuse(found.send(10.0, math.inf))
    for at in evenly(100, 60, begin=10.1):
        found.send(at, math.inf)
    for _ in range(30):
        found.send(10.75, math.inf)
    found.refuse(found.send(10.76, math.inf))
    assert found.rate(1) == pytest.approx(90 / 0.76, rel=0.02)


def test_the_burst_is_what_was_granted_beyond_the_rate() -> None:
    volley = interval(*([0.0] * 40), *evenly(20, 21, begin=0.05))
    assert volley.burst(10) == pytest.approx(60 - 10 * 1.05)
    assert volley.burst(100) == pytest.approx(1, abs=4)  # not below what the last moment says


def test_a_calm_before_a_volley_is_no_burst() -> None:
    calm = interval(*evenly(5, 500), *([100.0] * 30), 100.01)
    assert calm.burst(10) == pytest.approx(30, abs=1.2)


def test_the_first_requests_were_there_when_the_quickest_answer_says_so() -> None:
    found = MeasurementInterval(0)
    tickets = [found.send(0.0, math.inf) for _ in range(20)] + [found.send(0.3, math.inf)]
    last = found.send(0.5, math.inf)
    found.grant(tickets[0], 0.32)  # it had to connect
    found.grant(tickets[20], 0.32)
    found.grant(tickets[20], 9.0)
    found.grant(Ticket(7, 0, 0.0, 1.0), 0.001)  # of another interval
    found.refuse(last)
    assert found.burst(10) == pytest.approx(21 - 10 * 0.2)


def test_a_volley_that_was_refused_before_the_first_answer_took_no_time() -> None:
    found = MeasurementInterval(0)
    volley = [found.send(0.0, math.inf) for _ in range(20)]
    later = found.send(0.28, math.inf)
    found.grant(later, 0.30)
    found.refuse(volley[-1])
    assert found.burst(10) == 19


def test_no_more_than_a_thousand_moments_are_remembered() -> None:
    found = interval(*evenly(10, 5000))
    assert len(found.marks) == 1024
    assert found.rate(1) == pytest.approx(10, rel=0.01)


# Search


def searching(pause: float = 1.0, granted: int = 50) -> RateEstimator:
    """After a first interval: a volley at 0.0, of which so many were granted."""
    estimator = RateEstimator()
    first = interval(*([0.0] * (granted + 1)))
    estimator.learn(first, math.inf, 0.02, 0.02 + pause)
    assert not estimator.known
    return estimator


@pytest.mark.parametrize(("pause", "times"), [(0.5, 3), (1, 3), (2, 1.5), (3, 1), (6, 1)])
def test_the_search_begins_above_what_was_granted_until_now(pause: float, times: float) -> None:
    assert searching(pause).rate == pytest.approx(times * 50 / (pause + 0.02))


def test_the_search_begins_with_one_request_a_second_at_least() -> None:
    assert searching(pause=200).rate == 1


@pytest.mark.parametrize(("pause", "seconds"), [(0.5, 0.2), (1, 0.2), (2, 0.4)])
def test_the_search_grows_by_e_in_a_time_that_grows_with_the_pause(
    pause: float, seconds: float
) -> None:
    estimator = searching(pause)
    before = estimator.rate
    for _ in range(100):
        estimator.advance(seconds / 100)
    assert estimator.rate / before == pytest.approx(math.e)


def test_one_request_raises_a_search_by_a_quarter_at_most() -> None:
    estimator = searching()
    before = estimator.rate
    estimator.advance(10.0)
    assert estimator.rate == pytest.approx(1.25 * before)


# Measure


class Learner:
    """A bucket's tenant, and an estimator that learns in cycles: at a rate, then a pause."""

    def __init__(self, burst: int = 50) -> None:
        self.estimator = searching(granted=burst)
        self.now = 1.02

    def cycle(
        self,
        rate: float,
        granted: int,
        *,
        pause: float = 1.0,
        refused: int = 1,
        refused_rate: float | None = None,
    ) -> float:
        """What is learnt when so many were granted at this rate until refusals; the rate."""
        sent = evenly(rate, granted + refused, begin=self.now)
        found = interval(*sent, refused=refused, number=1)
        paused_at = sent[-1]
        self.now = paused_at + pause
        self.estimator.learn(found, refused_rate or rate, paused_at, self.now)
        return self.estimator.rate

    def age(self, seconds: float) -> None:
        """Time passes, at the rate, in steps of a hundredth of a second."""
        for _ in range(round(seconds * 100)):
            self.estimator.advance(0.01)

    @property
    def hold(self) -> float:
        """Seconds of quiet until the rate grows."""
        before, found = self.estimator.rate, 0
        while self.estimator.rate == before:
            self.estimator.advance(0.1)
            found += 1
        return (found - 1) / 10


def test_the_second_refusal_measures_the_rate_and_the_burst() -> None:
    learner = Learner(burst=50)
    assert learner.cycle(100, 100) == pytest.approx(51 * 0.998)  # (100 + 1 - 50) in one second
    assert learner.estimator.known
    assert learner.estimator.burst == pytest.approx(50)


def test_a_refusal_is_previewed_before_the_tenant_grants_again() -> None:
    found = interval(*evenly(100, 101, begin=1.02), number=1)
    assert searching(granted=50).preview(found) == pytest.approx(51)
    # What was granted since the refusal before says the least.
    assert searching(granted=500).preview(found) == pytest.approx(100 / 2.02)


def test_a_window_is_measured_by_its_cycle_and_saves_up_nothing() -> None:
    learner = Learner(burst=1000)
    assert learner.cycle(500, 1000, pause=8.0) == pytest.approx(1000 / 10 * 0.998)
    assert learner.estimator.burst == 0


def test_where_two_rates_fit_the_middle_is_taken_and_the_higher_is_previewed() -> None:
    estimator = RateEstimator()
    calm = interval(*evenly(36, 180), *([5.0] * 14), 5.001)  # five seconds of calm, then a volley
    estimator.learn(calm, math.inf, 5.02, 6.02)
    second = interval(*evenly(200, 36, begin=6.02), number=1)
    assert 80 < estimator.preview(second) < 150
    estimator.learn(second, 200, 6.2, 7.2)
    assert 40 < estimator.rate < 80


def test_nobody_is_taken_for_less_than_one_request_a_second() -> None:
    learner = Learner(burst=2)
    assert learner.cycle(1, 25, pause=100) == pytest.approx(0.998)


# Hold


def test_a_search_that_ends_where_it_began_is_a_measurement() -> None:
    learner = Learner(burst=50)
    began = learner.estimator.rate
    learner.cycle(200, 185, pause=30)
    assert learner.estimator.rate == pytest.approx(began, rel=0.02)
    assert learner.hold == pytest.approx(15, abs=0.11)


@pytest.mark.parametrize(
    ("granted", "pause", "seconds"),
    [
        (100, 3.0, 15),  # far above the mean of the cycle, by many requests
        (100, 0.01, 4),  # near the mean of the cycle
        (50, 30.0, 15),
        (49, 30.0, 4),  # by few requests
    ],
)
def test_a_measurement_is_held_for_longer_where_it_is_sure(
    granted: int, pause: float, seconds: float
) -> None:
    learner = Learner(burst=5)
    learner.cycle(100, granted, pause=pause)
    assert learner.hold == pytest.approx(seconds, abs=0.11)


def refused_again(learner: Learner, **options: int) -> float:
    """The quiet after a refusal that came while the rate was probed, at the limit of before."""
    _ = learner.hold
    rate = learner.estimator.rate / 0.998
    # A long interval, with a pause that is short beside it: the cycle says this very rate.
    learner.cycle(rate, 5000, pause=0.01, **options)
    return learner.hold


def test_the_quiet_grows_with_each_refusal_that_finds_the_limit_where_it_was() -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    found = [refused_again(learner) for _ in range(9)]
    for before, after in pairwise([4, *found]):
        assert after == pytest.approx(min((2 if before < 15 else 1.4) * before, 90), abs=0.3)
    assert found[-1] == pytest.approx(90, abs=0.2)


def test_a_refusal_of_many_requests_is_worth_a_longer_quiet() -> None:
    quiets = []
    for refused in (1, 20, 200):
        learner = Learner(burst=5)
        learner.cycle(100, 100, pause=3)  # 100/s by then, held for 15 s
        quiets.append(refused_again(learner, refused=refused))
    usual, rate = 1.4 * 15, 96
    assert quiets == pytest.approx([usual, 150 * 20 / rate, 2 * 15], rel=0.08)


def test_a_refusal_before_the_quiet_is_over_does_not_change_it() -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    learner.age(3)
    learner.cycle(learner.estimator.rate / 0.998, 5000, pause=0.01)
    assert learner.hold == pytest.approx(4, abs=0.11)


@pytest.mark.parametrize(("times", "seconds"), [(1.14, 8), (1.2, 4), (0.8, 4)])
def test_a_new_limit_is_doubted_soon(times: float, seconds: float) -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    _ = learner.hold
    learner.cycle(times * learner.estimator.rate / 0.998, 5000, pause=0.01)
    assert learner.hold == pytest.approx(seconds, abs=0.11)


# Probe


def test_the_growth_doubles_from_slow_to_a_limit() -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    learner.age(4)
    rates = [learner.estimator.rate]
    for _ in range(5):
        learner.age(0.5)
        rates.append(learner.estimator.rate)
    grown = [math.log(after / before) for before, after in pairwise(rates)]
    # The integral of 0.002 * 2 ** (4 * seconds), which is 0.15 after 1.56 s
    assert grown[0] == pytest.approx(0.002 * 3 / (4 * math.log(2)), rel=0.05)
    assert grown[1] == pytest.approx(4 * grown[0], rel=0.05)
    assert grown[4] == pytest.approx(0.15 * 0.5, rel=0.01)


def test_a_rate_of_twice_what_was_learnt_grows_on_as_one_among_others_does() -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    learnt = learner.estimator.rate
    while not learner.estimator.is_shared:
        assert learner.estimator.rate < 2.01 * learnt
        learner.estimator.advance(0.01)
    before = learner.estimator.rate
    learner.age(4)
    # 2 + the root of the rate + 3 for each second, each second; far more than 3 % of the rate
    assert learner.estimator.rate == pytest.approx(before + 4 * (2 + 15 + 6), rel=0.02)


@pytest.mark.parametrize(("times", "step"), [(1.1, 0.01), (1.2, 0.05)])
def test_one_request_raises_the_rate_by_little_and_by_more_where_the_limit_has_moved(
    times: float, step: float
) -> None:
    learner = Learner(burst=5)
    learner.cycle(100, 49, pause=30)
    learnt = learner.estimator.rate
    learner.age(4)
    while (before := learner.estimator.rate) < times * learnt:
        learner.estimator.advance(0.01)
    learner.estimator.advance(5.0)
    assert learner.estimator.rate == pytest.approx(before * math.exp(step))


# Reach


def reached(
    *, burst: int, pause: float, refused: int = 1, refused_rate: float = math.inf, rate: float = 100
) -> float:
    """What is learnt over what was measured, in a cycle after the first measurement."""
    learner = Learner(burst=burst)
    learner.cycle(2 * rate, 2 * burst + 200, pause=pause)
    begin = learner.now
    sent = evenly(rate, 1000 + refused, begin=begin)
    found = interval(*sent, refused=refused, number=2)
    first = interval(*([0.0] * (burst + 1)))
    cycle = 1000 / (sent[-1] + pause - begin)
    measured = cycle
    for _ in range(50):
        measured = max(cycle, found.rate(max(1.0, first.burst(measured))))
    learner.age(2)  # a refusal at once would be others'
    learner.estimator.learn(found, refused_rate, sent[-1], sent[-1] + pause)
    return learner.estimator.rate / 0.998 / measured


def test_where_a_burst_makes_the_pause_good_it_reaches_half_way_to_what_was_refused() -> None:
    measured = 1000 / 11
    found = reached(burst=200, pause=1, refused_rate=1.1 * measured)
    assert found == pytest.approx(1.05, rel=0.001)


def test_it_reaches_a_quarter_at_most_and_less_where_many_were_refused() -> None:
    assert reached(burst=200, pause=1) == pytest.approx(1.125, rel=0.01)
    assert reached(burst=200, pause=1, refused=40) == pytest.approx(1.015, rel=0.005)


def test_where_no_burst_makes_the_pause_good_it_keeps_to_what_was_measured() -> None:
    assert reached(burst=30, pause=1) == pytest.approx(1, rel=0.002)
    # 75 of the 92.6 that a pause of a second costs
    assert reached(burst=75, pause=1) == pytest.approx(1 + (2 * 75 / 92.6 - 1) * 0.125, rel=0.002)


def test_below_a_windows_limit_it_reaches_whatever_the_pause_costs() -> None:
    assert reached(burst=2000, pause=80) == pytest.approx(1.125, rel=0.01)


# Others on the same limit


def learn(
    estimator: RateEstimator,
    granted: int,
    *,
    refused_rate: float = 50.0,
    age: float = 0.0,
    unheld: float = 0.0,
    arrival_rate: float = 0.0,
) -> None:
    """So many were granted in a second and the last one refused, after `age` seconds of sending."""
    for _ in range(round(age * 100)):
        estimator.advance(0.01)
    begin = estimator._began
    found = interval(*evenly(granted, granted + 1, begin=begin), number=1)
    found.unheld = unheld
    estimator.learn(found, refused_rate, begin + 1, begin + 2, arrival_rate)


def test_a_search_that_grants_few_shows_others_where_the_tenant_is_no_slow_one() -> None:
    shared = {}
    for granted, refused_rate in ((24, 50.0), (25, 50.0), (24, 10.0)):
        estimator = searching()
        learn(estimator, granted, refused_rate=refused_rate)
        shared[granted, refused_rate] = estimator.is_shared
    assert shared == {(24, 50.0): True, (25, 50.0): False, (24, 10.0): False}


@pytest.mark.parametrize(
    ("granted", "seconds", "shared"),
    [(2, 0.3, True), (3, 0.3, False), (15, 4.0, True), (24, 6.0, False)],
)
def test_a_search_that_measures_next_to_nothing_shows_others_on_any_tenant(
    granted: int, seconds: float, *, shared: bool
) -> None:
    estimator = searching(granted=1)
    begin = estimator._began
    sent = evenly(granted / seconds, granted + 1, begin=begin)
    estimator.learn(interval(*sent, number=1), 6.0, sent[-1], sent[-1] + 1)
    assert estimator.is_shared is shared


@pytest.mark.parametrize(("refused", "rate"), [(1, 5.0), (20, (1 - 0.07 - 0.35) * 5)])
def test_who_is_granted_nothing_at_first_begins_with_few(refused: int, rate: float) -> None:
    estimator = RateEstimator()
    estimator.learn(interval(*([0.0] * refused), refused=refused), math.inf, 0.02, 1.02)
    assert estimator.is_shared is (refused > 1)
    assert estimator.rate == pytest.approx(rate)


def holding() -> RateEstimator:
    """An estimator that has measured 50/s, and holds that for 15 s."""
    learner = Learner(burst=5)
    learner.cycle(100, 100, pause=3)
    assert not learner.estimator.is_shared
    return learner.estimator


@pytest.mark.parametrize(
    ("age", "refused_rate", "shared"), [(0.4, 50.0, True), (0.6, 50.0, False), (0.4, 9.0, False)]
)
def test_a_refusal_just_after_the_pause_shows_others(
    age: float, refused_rate: float, *, shared: bool
) -> None:
    estimator = holding()
    learn(estimator, 50, age=age, refused_rate=refused_rate)
    assert estimator.is_shared is shared


def test_the_fourth_refusal_in_a_row_while_the_rate_was_held_shows_others() -> None:
    estimator = holding()
    for _ in range(3):
        learn(estimator, 50, age=2)
        assert not estimator.is_shared
    learn(estimator, 50, age=2)
    assert estimator.is_shared


def test_a_refusal_that_came_late_ends_the_count() -> None:
    estimator = holding()
    for age in (2, 2, 2, 16, 2, 2, 2):
        learn(estimator, 50, age=age)
    assert not estimator.is_shared


@pytest.mark.parametrize(
    ("granted", "age", "shared"),
    [
        ((40, 32), 4.2, True),  # others take more and more
        ((40, 40, 32), 4.2, False),
        ((46, 42), 4.2, False),
        ((40, 32), 0.8, False),  # it was measured too high
    ],
)
def test_two_measurements_in_a_row_far_below_the_one_before_show_others(
    granted: tuple[int, ...], age: float, *, shared: bool
) -> None:
    estimator = holding()
    for count in granted:
        assert not estimator.is_shared
        estimator._hold = 4.0  # no refusal comes before the quiet time is over
        learn(estimator, count, age=age)
    assert estimator.is_shared is shared


def test_who_is_measured_below_one_request_a_second_twice_is_among_others() -> None:
    learner = Learner(burst=1)
    learner.cycle(1, 25, pause=3)
    estimator = learner.estimator
    for _ in range(2):
        assert not estimator.is_shared
        estimator._hold = 4.0
        for _ in range(50):
            estimator.advance(0.1)
        begin = estimator._began
        found = interval(begin, begin + 4, number=1)
        estimator.learn(found, 1.0, begin + 4, begin + 5)
    assert estimator.is_shared


def test_a_refusal_within_the_burst_after_a_pause_takes_the_burst_away_and_no_rate() -> None:
    learner = Learner(burst=50)
    learner.cycle(100, 100)
    before = learner.estimator.rate
    assert learner.estimator.burst > 1
    learn(learner.estimator, 5, unheld=0.9)
    assert (learner.estimator.rate, learner.estimator.burst) == (before, 0)
    assert not learner.estimator.is_shared


def test_calls_that_are_refused_within_the_burst_take_it_away_as_well() -> None:
    learner = Learner(burst=50)
    learner.cycle(100, 100)
    before = learner.estimator.rate
    learn(learner.estimator, 5, unheld=0.9, arrival_rate=60.0)
    assert (learner.estimator.rate, learner.estimator.burst) == (before, 0)


def test_among_others_a_refusal_lowers_the_rate_that_was_refused() -> None:
    estimator = holding()
    learn(estimator, 50, age=0.4)
    learn(estimator, 60, age=1, refused_rate=60.0)
    # A second's measurement of cycles of two seconds cools the heat by a tenth.
    assert estimator.rate == pytest.approx(60 * (1 - 0.07 - 0.35), rel=0.1)


def test_among_others_a_session_of_calls_keeps_what_they_need() -> None:
    estimator = holding()
    learn(estimator, 50, age=0.4)
    learn(estimator, 60, age=1, refused_rate=60.0, arrival_rate=25.0)
    assert estimator.rate == 50


def test_three_measurements_that_agree_end_the_sharing() -> None:
    estimator = holding()
    learn(estimator, 50, age=0.4)
    for _ in range(2):
        learn(estimator, 60, age=1)
        assert estimator.is_shared
    learn(estimator, 60, age=1)
    assert not estimator.is_shared


def test_a_session_that_sends_less_than_it_may_keeps_its_rate_for_the_calls_that_come() -> None:
    estimator = holding()
    before = estimator.rate
    learn(estimator, 10, age=0.5, unheld=0.9, arrival_rate=10.0, refused_rate=before)
    assert (estimator.rate, estimator.is_shared) == (before, False)
    learn(estimator, 10, age=0.5, unheld=0.9, arrival_rate=80.0, refused_rate=120.0)
    assert estimator.rate == 120  # twice what comes, but no more than what was refused


def test_a_search_begins_with_the_calls_that_come_and_is_slow() -> None:
    estimator = RateEstimator()
    estimator.learn(interval(*evenly(10, 4)), math.inf, 0.3, 1.3, 30.0)
    assert estimator.rate == 30
    for _ in range(100):
        estimator.advance(0.01)
    assert estimator.rate == pytest.approx(30 * math.e)
