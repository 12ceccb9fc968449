"""The users of a sandbox are like a tenant's, and the same every time."""

import itertools
import re
import time
from collections import Counter

from plain_client import sample

from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.people import person


def test_seeded_users_are_varied_disabled_and_the_same_every_time() -> None:
    sandbox, again, other = Sandbox(users=300), Sandbox(users=300), Sandbox(users=300, seed=1)
    ids = sandbox.user_ids()
    users = [sandbox.user(user_id) or {} for user_id in ids]
    assert all(re.fullmatch(r"[A-Za-z0-9]{21}", user_id) for user_id in ids)
    assert users == [again.user(user_id) for user_id in again.user_ids()]
    assert set(ids).isdisjoint(other.user_ids())
    assert all(user["disabled"] for user in users)
    assert len({user["claims"]["name"] for user in users}) > 150
    assert len({user["creation_time"] for user in users}) == 300
    assert 0 < sum(bool(user["passkeys"]) for user in users) < 150
    assert all(user["creation_time"] <= user["last_updated"] for user in users)


def test_people_have_the_members_of_the_samples_of_both_eras() -> None:
    newest, documented = sample("user-newest.json"), sample("user-documented.json")
    shapes = Counter(frozenset(person(str(n))) for n in range(300))
    assert set(shapes) == {frozenset(newest), frozenset(documented)}
    assert shapes[frozenset(newest)] > shapes[frozenset(documented)]
    for user, n in itertools.product([newest, documented], range(300)):
        someone = person(str(n))
        if set(someone) == set(user):
            for key in ("emails", "phone_numbers", "external_providers", "passkeys", "idps"):
                for part in someone.get(key, []):
                    assert set(part) == set((user.get(key) or documented[key])[0])


def test_ten_thousand_users_are_seeded_in_a_moment() -> None:
    started = time.process_time()
    sandbox = Sandbox(users=10_000)
    assert time.process_time() - started < 0.9
    assert sandbox.stats().users == {"enabled": 0, "disabled": 10_000}
