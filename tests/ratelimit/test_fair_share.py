"""Sessions that share a limit come to equal shares: each rule in figures, and all together."""

import math

import pytest
from limiters import Ours
from sharing import Client, jain, share
from tenants import Bucket

from monocloud_async.ratelimit.fair_share import FairShare


def refused_every(seconds: float) -> FairShare:
    """A law that is calm, and is usually refused after so long."""
    law = FairShare(0.0)
    law.refused(seconds, seconds)
    return law


def grown(law: FairShare, rate: float, seconds: float, age: float = 0.0) -> float:
    """The rate after so many seconds without a refusal, in steps of a hundredth."""
    for step in range(round(seconds * 100)):
        rate *= law.growth(rate, age + step / 100, 0.01)
    return rate


def test_a_refusal_costs_seven_percent_and_more_while_hot() -> None:
    assert FairShare(0.0).kept(100) == pytest.approx(93)
    assert FairShare(1.0).kept(100) == pytest.approx(58)


def test_a_hot_session_keeps_what_its_calls_need_and_is_lowered_all_the_same() -> None:
    kept = [FairShare(1.0).kept(100, needed) for needed in (50, 70, 200)]
    assert kept == pytest.approx([58, 70, 93])


def test_a_calm_session_makes_a_refusal_good_in_twelve_seconds() -> None:
    assert grown(refused_every(12.0), 46.5, 12) == pytest.approx(50, rel=0.01)


def test_the_growth_doubles_every_two_seconds() -> None:
    law = refused_every(12.0)
    early, late = (math.log(law.growth(50, age, 0.01)) for age in (4.0, 6.0))
    assert late == pytest.approx(2 * early)


def test_a_hot_session_gains_more_the_longer_nobody_refuses() -> None:
    law = FairShare(1.0)
    # 2 + the root of 25 + 3 for each second, and 0.0027 * 5 * 2 ** (age / 2)
    assert math.log(law.growth(25, 0.0, 0.01)) == pytest.approx((2 + 5 + 0.0135) / 25 * 0.01)
    assert math.log(law.growth(25, 2.0, 0.01)) == pytest.approx((2 + 5 + 6 + 0.027) / 25 * 0.01)


def test_the_lower_rate_grows_by_the_larger_part() -> None:
    law = FairShare(1.0)
    assert grown(law, 5, 2) / 5 > 2 * grown(law, 50, 2) / 50


@pytest.mark.parametrize(("heat", "step"), [(0.0, 0.05), (1.0, 0.30)])
def test_one_request_raises_the_rate_by_so_much_at_most(heat: float, step: float) -> None:
    assert FairShare(heat).growth(1.0, 60.0, 10.0) == pytest.approx(math.exp(step))


@pytest.mark.parametrize(("heat", "fastest"), [(0.0, 0.6), (1.0, 1.0)])
def test_the_rate_grows_by_so_much_a_second_at_most(heat: float, fastest: float) -> None:
    assert FairShare(heat).growth(1.0, 60.0, 0.01) == pytest.approx(math.exp(fastest * 0.01))


def test_the_heat_is_gone_after_forty_seconds() -> None:
    law = FairShare(1.0)
    heats = []
    for _ in range(5):
        law.refused(age=9.0, cycle=10.0)
        heats.append(law.heat)
    assert heats == pytest.approx([0.75, 0.5, 0.25, 0, 0])


def test_a_refusal_much_sooner_than_usual_warms() -> None:
    law = FairShare(0.0)
    law.refused(age=10.0, cycle=11.0)
    law.refused(age=10.0, cycle=11.0)
    law.refused(age=2.9, cycle=4.0)  # who is refused every 10 s is refused too soon below 3
    assert law.heat == pytest.approx(0.2)
    law = FairShare(0.0)
    law.refused(age=4.0, cycle=5.0)
    law.refused(age=2.0, cycle=3.0)
    assert law.heat == 0
    law.refused(age=0.3, cycle=1.3)  # 15 % of the 3.4 s that are usual by then
    assert law.heat == pytest.approx(0.2)


def test_measurements_that_agree_are_those_of_a_session_alone() -> None:
    law = FairShare(0.0)
    assert [law.is_alone(rate, 1000) for rate in (100, 100.5, 101)] == [False, False, True]
    assert not law.is_alone(103, 1000)


def test_an_interval_of_few_requests_is_compared_with_nothing() -> None:
    law = FairShare(0.0)
    found = [law.is_alone(100, granted) for granted in (50, 50, 11, 50, 50, 50)]
    assert found == [False, False, False, False, False, True]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_sessions_that_share_a_bucket_come_to_equal_shares_and_use_it(count: int) -> None:
    clients = [Client(Ours, begin=0.1 * number) for number in range(count)]
    found = share(Bucket(200, 50), clients, seconds=180, latency=0.02, seed=2)
    later = [float(sum(each.granted[60:])) for each in found]
    assert jain(later) > 0.9
    assert sum(later) > 0.9 * 200 * 120
    assert sum(sum(each.refused) for each in found) < 0.03 * sum(sum(e.granted) for e in found)


def test_pods_keep_what_they_need_beside_a_run() -> None:
    pods = [Client(Ours, begin=10.0, end=40.0, rate=30.0) for _ in range(3)]
    found = share(
        Bucket(200, 50), [*pods, Client(Ours, concurrency=100)], seconds=45, latency=0.02, seed=1
    )
    assert all(len(each.waits) == 900 for each in found[:3])
    assert max(max(each.waits) for each in found[:3]) < 8
    assert sum(found[3].granted[10:40]) > 60 * 30
