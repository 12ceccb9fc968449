"""A run that looks first: whom it leaves out, what it costs, and what its journal has of before."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from raw_server import RawServer, answering, http

import monocloud_async as m
from monocloud_async import MonoCloudSession
from monocloud_async.endpoint import ENABLE, Operation
from monocloud_async.sandbox import Sandbox


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=30, others=170) as sandbox:
        yield sandbox


def before(path: Path) -> dict[str, int | None]:
    with closing(sqlite3.connect(path)) as sql:
        return dict(sql.execute("SELECT user_id, disabled FROM before"))


def outcomes(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as sql:
        return dict(sql.execute("SELECT user_id, outcome FROM users"))


def states(sandbox: Sandbox) -> dict[str, bool]:
    return {user_id: sandbox.is_disabled(user_id) for user_id in sandbox.user_ids()}


async def as_async(ids: list[str]) -> AsyncIterator[str]:
    for user_id in ids:
        yield user_id


async def test_many_users_are_looked_up_in_the_list(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    was, path = states(sandbox), tmp_path / "journal"
    report = await session.bulk_enable([*was, "nobody"], check=True, journal=path)
    disabled = sum(was.values())
    assert (report.enabled, report.already_enabled, report.failed) == (
        disabled,
        200 - disabled,
        1,
    )
    # Four full pages, an empty one, and the first one twice; then who is disabled, and who is not
    # in the list.
    assert report.requests == sandbox.stats().requests == 6 + disabled + 1
    assert before(path) == {**was, "nobody": None}
    assert sandbox.stats().users["disabled"] == 0


async def test_a_first_user_who_needs_no_request_does_not_hold_up_the_others(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    ids = sorted(sandbox.user_ids(), key=sandbox.is_disabled)
    for user_ids in (ids, as_async(ids)):
        report = await session.bulk(ENABLE, user_ids, check=True, count=len(ids), concurrency=5)
        assert report.already_enabled + report.enabled == 200
        assert report.already_enabled > 0


@pytest.mark.parametrize("known", [True, False])
async def test_few_users_or_an_unknown_number_are_looked_up_one_by_one(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path, *, known: bool
) -> None:
    ids = sandbox.user_ids()
    wanted = [ids[0], next(each for each in ids if not sandbox.is_disabled(each))]
    was, path = states(sandbox), tmp_path / "journal"
    input_ids = wanted if known else iter([*wanted, "nobody"])
    report = await session.bulk_enable(input_ids, check=True, journal=path)
    assert (report.enabled, report.already_enabled) == (1, 1)
    assert report.failed == (0 if known else 1)
    assert sandbox.stats().requests == (3 if known else 4)
    assert before(path) == {user_id: was[user_id] for user_id in wanted}


async def test_a_list_with_more_pages_than_users_is_not_read(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    ids = sandbox.user_ids()[:4]
    report = await session.bulk_enable(ids, check=True)
    assert report.enabled == 4
    assert sandbox.stats().requests == 3 + 4 + 4  # the list has as many pages as there are users


async def test_users_of_a_lookup_are_not_looked_up_again(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    ids, path = sandbox.user_ids(), tmp_path / "journal"
    await session.bulk_enable(ids, check=True, journal=path)
    requests = sandbox.stats().requests
    again = await session.bulk_enable(ids, check=True, journal=path)
    assert (again.already_enabled, again.total) == (200, 200)
    assert sandbox.stats().requests == requests


async def test_what_was_before_is_on_disk_before_the_request(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, path = sandbox.user_ids()[:2], tmp_path / "journal"
    sandbox.script(ids[0], "hang")
    sent, known = asyncio.Event(), dict[str, int | None]()
    send = session._http.send

    async def watched(operation: Operation[Any], user_id: str, *rest: Any) -> Any:
        if operation is ENABLE and user_id == ids[0]:
            known.update(before(path))
            sent.set()
        return await send(operation, user_id, *rest)

    monkeypatch.setattr(session._http, "send", watched)
    run = session.bulk_enable(ids, check=True, journal=path)
    task = asyncio.ensure_future(run)
    await sent.wait()
    assert known[ids[0]] == 1
    assert ids[0] not in outcomes(path)
    run.cancel()
    await task
    assert outcomes(path)[ids[0]] == "unknown"


@pytest.mark.parametrize("step", [500, 502, 408, "reset"])
async def test_the_first_look_counts_after_a_request_that_may_have_been_carried_out(
    sandbox: Sandbox, tmp_path: Path, step: int | str
) -> None:
    (user_id, other), path = sandbox.user_ids()[:2], tmp_path / "journal"
    sandbox.script(user_id, step)
    once = m.RetryPolicy(attempts=1)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=once) as session:
        await session.bulk_enable([user_id, other], check=True, journal=path)
        await session.enable_user(user_id)
        again = await session.bulk_enable([user_id, other], check=True, journal=path)
    assert again.already_enabled == 2
    assert before(path) == {user_id: 1, other: 1}


@pytest.mark.parametrize("step", [400, 404, 409, 422])
async def test_the_last_look_counts_as_long_as_every_request_was_refused(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path, step: int
) -> None:
    """Somebody else has enabled the user meanwhile."""
    (user_id, other), path = sandbox.user_ids()[:2], tmp_path / "journal"
    sandbox.script(user_id, step)
    await session.bulk_enable([user_id, other], check=True, journal=path)
    assert before(path) == {user_id: 1, other: 1}
    await session.enable_user(user_id)
    again = await session.bulk_enable([user_id, other], check=True, journal=path)
    assert again.already_enabled == 2
    assert before(path) == {user_id: 0, other: 1}


async def test_the_first_look_counts_if_a_killed_run_may_have_sent_a_request(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    """It has no record of that, but the refusal of the run before it."""
    (user_id, other), path = sandbox.user_ids()[:2], tmp_path / "journal"
    sandbox.script(user_id, 409)
    await session.bulk_enable([user_id, other], check=True, journal=path)
    with closing(sqlite3.connect(path)) as sql, sql:
        (latest,) = sql.execute("SELECT max(at) FROM users").fetchone()
        sql.execute("INSERT INTO sittings (began) VALUES (?)", (latest + 1,))
    await session.enable_user(user_id)
    again = await session.bulk_enable([user_id, other], check=True, journal=path)
    assert again.already_enabled == 2
    assert before(path) == {user_id: 1, other: 1}


async def test_a_user_who_cannot_be_looked_up_fails_and_nothing_was_sent(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    report = await session.bulk_enable(iter(["nobody"]), check=True)
    (outcome,) = report.failures
    assert (outcome.status, type(outcome.error)) == ("failed", m.NotFoundError)
    assert sandbox.stats().requests == 1


async def test_a_list_that_cannot_be_read_stops_the_run(sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, "wrong", retry=QUICK) as session:
        with pytest.raises(m.RunStoppedError, match="the list of users cannot be read") as caught:
            await session.bulk_enable(sandbox.user_ids(), check=True)
    assert isinstance(caught.value.__cause__, m.UnauthorizedError)
    assert caught.value.report.requests == sandbox.stats().requests == 1


async def test_requests_for_pages_that_failed_count_too(sandbox: Sandbox) -> None:
    sandbox.error_rate = 0.5
    async with (
        MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session,
        session.bulk_enable(sandbox.user_ids(), check=True, concurrency=1) as run,
    ):
        first = await anext(run)
        sandbox.error_rate = 0
        assert run.report.retries > 0
        async for outcome in run:
            assert outcome.error is None
    stats = sandbox.stats()
    assert first.error is None
    assert (run.report.requests, run.report.retries) == (stats.requests, stats.by_status["500"])


IDS = [f"u{number}" for number in range(6)]


def tenant_with(bad: bytes, header: bytes = b'X-Pagination: {"total_count": 7}') -> RawServer:
    """Return a tenant of six disabled users, whose list has another one."""
    users = {user_id: b'{"user_id": "%s", "disabled": true}' % user_id.encode() for user_id in IDS}

    def answer(request: bytes) -> bytes:
        path = request.split()[1].decode()
        if "page=" in path:
            return http(b"[%s]" % b", ".join([*users.values(), bad]), header)
        user = users[path.split("/")[3]]
        return http(user.replace(b"true", b"false") if request.startswith(b"POST") else user)

    return RawServer(answering(answer))


@pytest.mark.parametrize(
    ("bad", "header"),
    [
        (b'{"user_id": "u\\ud800"}', b'X-Pagination: {"total_count": 7}'),
        (b'{"user_id": 7}', b'X-Pagination: {"total_count": 7}'),
        (b'{"disabled": true}', b'X-Pagination: {"total_count": 7}'),
        (b"null", b'X-Pagination: {"total_count": 7}'),
        (b"nonsense", b'X-Pagination: {"total_count": 7}'),
        (b'{"user_id": "ada"}', b'X-Pagination: {"total_count": 5}'),  # it contradicts itself
    ],
)
async def test_a_list_that_cannot_be_read_because_of_one_user_stops_no_run(
    bad: bytes, header: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        tenant_with(bad, header) as server,
        MonoCloudSession(server.url, "key", retry=QUICK) as session,
    ):
        report = await session.bulk_enable(IDS, check=True, journal=tmp_path / "journal")
        assert report.enabled == 6
    assert before(tmp_path / "journal") == dict.fromkeys(IDS, 1)
    assert "looking users up one by one, because " in caplog.text


async def test_a_user_of_the_list_without_a_state_is_one_whose_state_is_unknown() -> None:
    async with (
        tenant_with(b'{"user_id": "ada"}') as server,
        MonoCloudSession(server.url, "key", retry=QUICK) as session,
    ):
        lookup = session.lookup()
        await lookup.prepare(7)
        assert lookup.reads_list
        ada = lookup.user("ada")
        assert ada is not None
        assert ada.disabled is None
        assert lookup.user("nobody") is None


async def test_disable_looks_for_the_other_state(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    was = states(sandbox)
    report = await session.bulk_disable(list(was), check=True)
    assert (report.already_disabled, report.disabled) == (
        sum(was.values()),
        200 - sum(was.values()),
    )


def endless(ids: list[str]) -> Iterator[str]:
    yield from ids
    raise AssertionError("read too far")


async def test_a_limit_ends_the_run_after_the_first_who_are_left(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    ids, path = sandbox.user_ids(), tmp_path / "journal"
    first = await session.bulk_enable(ids, limit=3, journal=path)
    second = await session.bulk_enable(ids, limit=4, journal=path)
    assert (first.enabled, second.already_enabled, second.enabled) == (3, 3, 4)
    assert (first.exhausted, first.total) == (False, 3)
    third = await session.bulk_enable(endless(ids[7:9]), limit=2)
    assert third.enabled == 2
    assert [sandbox.is_disabled(user_id) for user_id in ids[:10]] == [False] * 9 + [True]


@pytest.mark.parametrize("options", [{"limit": 0}, {"max_same_failures": 0}, {"limit": 1.5}])
async def test_a_limit_is_a_number_above_0(
    session: MonoCloudSession, options: dict[str, Any]
) -> None:
    with pytest.raises(m.ConfigurationError, match="must be 1 or more"):
        session.bulk_enable(["ada"], **options)


async def test_a_hundred_who_fail_in_the_same_way_from_the_first_one_on_stop_the_run(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    nobody = [f"nobody{number}" for number in range(1000)]
    told = r"first 100 users all failed in the same way .* allow it with max_same_failures$"
    with pytest.raises(m.RunStoppedError, match=told):
        await session.bulk_enable(nobody, concurrency=5, max_same_failures=100)
    assert 100 <= sandbox.stats().requests < 110
    report = await session.bulk_enable(nobody)
    assert report.failed == 1000


@pytest.mark.parametrize("place", [0, 50, 99])
async def test_one_other_outcome_among_them_is_enough_to_go_on(
    sandbox: Sandbox, session: MonoCloudSession, place: int
) -> None:
    nobody = [f"nobody{number}" for number in range(300)]
    nobody[place] = sandbox.user_ids()[0]
    report = await session.bulk_enable(nobody, concurrency=1, max_same_failures=100)
    assert (report.failed, report.enabled) == (299, 1)


async def test_who_is_enabled_by_the_journal_proves_the_ids(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    ids = [sandbox.user_ids()[0], *(f"nobody{number}" for number in range(150))]
    for _ in range(2):
        report = await session.bulk_enable(ids, journal=tmp_path / "journal", max_same_failures=100)
        assert report.failed == 150


async def test_sessions_are_not_left_open_because_somebody_is_disabled_already(
    session: MonoCloudSession, tmp_path: Path
) -> None:
    with pytest.raises(m.ConfigurationError, match="leave check or revoke_sessions out"):
        session.bulk_disable(["ada"], revoke_sessions=True, check=True)
    await session.bulk_disable(["ada"], journal=tmp_path / "j")
    with pytest.raises(m.ConfigurationError, match="disable with revoke_sessions; name another"):
        await session.bulk_disable(["ada"], revoke_sessions=True, journal=tmp_path / "j")


async def test_look_ups_that_succeed_are_answers_like_any_other(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    """A hundred 403s in a row stop a run, but not if the tenant answers between them."""
    enabled = [user_id for user_id, disabled in states(sandbox).items() if not disabled][:150]
    refused = [f"refused{number}" for number in range(150)]
    for user_id in refused:
        sandbox.script(user_id, 403)
    both = [user_id for pair in zip(enabled, refused, strict=True) for user_id in pair]
    report = await session.bulk_enable(iter(both), check=True, concurrency=1)
    assert (report.already_enabled, report.failed) == (150, 150)


class Wrapper:
    """An iterable that has a length by its class, and none by its content, as tqdm's."""

    def __iter__(self) -> Iterator[str]:
        return iter(["ada"])

    def __len__(self) -> int:
        raise TypeError("object of type 'generator' has no len()")


@pytest.mark.parametrize("check", [False, True])
async def test_an_input_may_not_know_its_length(session: MonoCloudSession, *, check: bool) -> None:
    assert (await session.bulk_enable(Wrapper(), check=check)).failed == 1


async def test_the_length_of_the_input_is_not_asked_for_in_vain(session: MonoCloudSession) -> None:
    """It may be a query, which then reads everything."""

    class Query(list[str]):
        def __len__(self) -> int:
            raise AssertionError("it reads all rows")

    assert (await session.bulk_enable(Query(["ada"]))).failed == 1


async def test_the_end_of_the_input_is_none_of_the_limit(
    sandbox: Sandbox, session: MonoCloudSession, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    await session.bulk_enable(sandbox.user_ids()[:2], limit=3, journal=path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT how FROM sittings").fetchall() == [("finished",)]
