"""Send times are evenly spaced; a late one makes up for a moment, and an idle time for a burst."""

import math
import random

import pytest

from monocloud_async.ratelimit.pacer import SLACK, Pacer


def taken(pacer: Pacer, now: float) -> int:
    """Return how many send times there are at this moment."""
    count = 0
    while pacer.delay(now) <= 0:
        pacer.take(now)
        count += 1
    return count


def test_the_first_send_time_is_now_and_the_next_ones_are_evenly_spaced() -> None:
    pacer, now, times = Pacer(4), 100.0, []
    for _ in range(5):
        now += pacer.delay(now)
        times.append(now)
        pacer.take(now)
    assert times == [100.0, 100.25, 100.5, 100.75, 101.0]


def test_a_question_changes_nothing() -> None:
    pacer = Pacer(10, burst=3)
    pacer.take(5.0)
    before = vars(pacer).copy()
    for now in (5.0, 5.05, 9.0):
        pacer.delay(now)
        pacer.when(now, 7)
    assert vars(pacer) == before


def test_timers_that_fire_late_cost_no_rate() -> None:
    late, pacer, now = random.Random(1), Pacer(200), 0.0
    for _ in range(2000):
        if delay := pacer.delay(now):
            now += delay + late.uniform(0, 0.9 * SLACK)
        pacer.take(now)
    assert now == pytest.approx(10, abs=0.02)


def test_a_longer_delay_is_not_caught_up() -> None:
    pacer = Pacer(100)
    assert taken(pacer, 0.0) == 1
    assert taken(pacer, 0.05) == 2  # what came due within the slack, and the one that was waiting


@pytest.mark.parametrize(("idle", "at_once"), [(0.125, 1), (0.375, 3), (60.0, 5)])
def test_an_idle_time_allows_as_many_at_once_as_it_saved_up_to_the_burst(
    idle: float, at_once: int
) -> None:
    pacer = Pacer(8, burst=5)
    assert taken(pacer, 1000.0) == 5
    assert taken(pacer, 1000.125) == 1
    assert taken(pacer, 1000.125 + idle) == at_once
    assert pacer.delay(1000.125 + idle) > 0


def test_without_a_burst_no_idle_time_allows_two_at_once() -> None:
    pacer = Pacer(10)
    for now in (0.0, 0.2, 60.0):
        assert taken(pacer, now) == 1


def test_when_says_the_time_that_a_place_in_the_queue_gets() -> None:
    pacer = Pacer(10, burst=3)
    pacer.take(0.0)
    for begin in (0.0, 0.05, 7.0):
        queue, now = Pacer(10, burst=3), begin
        queue.take(0.0)
        for place in range(20):
            now += queue.delay(now)
            assert pacer.when(begin, place) == pytest.approx(now)
            queue.take(now)


def test_the_gap_is_told_only_where_the_rate_held_the_request_back() -> None:
    pacer = Pacer(4)
    assert pacer.take(0.0) == 0  # nobody had waited
    assert pacer.take(0.25) == 0.25
    assert pacer.take(0.50 + SLACK / 2) == 0.25
    assert pacer.take(0.90) == 0


def test_nothing_is_sent_before_the_time_that_it_is_held_until() -> None:
    pacer = Pacer(10, burst=5)
    pacer.hold(3.0)
    assert pacer.delay(1.0) == 2.0
    assert pacer.when(1.0, 2) == pytest.approx(3.2)


def test_without_a_rate_nobody_waits() -> None:
    pacer = Pacer()
    for _ in range(1000):
        assert pacer.delay(1.0) == 0
        assert pacer.take(1.0) == 0
    assert pacer.when(1.0, 10**9) == 1.0
    assert pacer.rate == math.inf
