"""Lists of users: nobody is left out unnoticed, whatever the pages do while they are read."""

import asyncio
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from conftest import QUICK
from raw_server import RawServer, answering, http
from virtual_time import run

import monocloud_async as m
from monocloud_async import MonoCloudSession, User, UserList
from monocloud_async.endpoint import Operation
from monocloud_async.response import UserPage
from monocloud_async.sandbox import Sandbox
from monocloud_async.user_list import IdSet


class Tenant:
    """A tenant in memory, which something happens to after each page."""

    def __init__(self, count: int, *, cap: int = 50) -> None:
        self.users = [f"u{number}" for number in range(count)]
        self.created = {user_id: number for number, user_id in enumerate(self.users, 1)}
        self.cap = cap
        self.pages = list[int]()
        self.after: Callable[[], None] = lambda: None
        self.changed: Callable[[UserPage], UserPage] = lambda page: page

    async def fetch(self, number: int, size: int) -> UserPage:
        self.pages.append(number)
        size = min(size, self.cap)
        start = (number - 1) * size
        page = UserPage(
            [
                User(user_id=user_id, creation_time=self.created.get(user_id))
                for user_id in self.users[start : start + size]
            ],
            len(self.users),
            size,
            number,
            start + size < len(self.users),
        )
        self.after()
        return self.changed(page)

    def list(self, *, ordered: bool = False, selected: bool = False) -> UserList:
        return UserList(self.fetch, page_size=50, ordered=ordered, selected=selected)


async def ids(users: AsyncIterator[User] | UserList) -> list[str]:
    return [user.user_id async for user in users]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seen", [1, 29, 30, 31, 130])
async def test_who_leaves_the_loop_can_go_on(seen: int, *, ordered: bool) -> None:
    tenant = Tenant(230)
    users = tenant.list(ordered=ordered)
    first = []
    async for user in users:
        first.append(user.user_id)
        assert users.returned == len(first)
        if len(first) == seen:
            break
    rest = await ids(users)
    assert sorted(first + rest) == sorted(tenant.users)
    assert await ids(users) == []


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 99, 100, 101, 1003])
@pytest.mark.parametrize("ordered", [True, False])
async def test_everybody_comes_once_in_as_few_requests_as_pages(
    count: int, *, ordered: bool
) -> None:
    tenant = Tenant(count)
    users = tenant.list(ordered=ordered)
    found = await ids(users)
    assert sorted(found) == sorted(tenant.users)
    assert (found == tenant.users) or not ordered
    # If the last page is full, an empty one shows that the count is not capped.
    pages = count // 50 + 1
    # Without an order, the first page is read for the count, and again at the end.
    assert len(tenant.pages) == (pages if ordered or count <= 50 else pages + 1)
    assert (users.total, users.returned, users.repeated) == (count, count, 0)


async def test_who_leaves_moves_nobody_out_of_the_list() -> None:
    tenant = Tenant(1000)
    left = list[str]()
    tenant.after = lambda: left.append(tenant.users.pop(0))
    users = tenant.list()
    found = await ids(users)
    assert set(tenant.users) <= set(found)
    assert len(found) == len(set(found))
    assert users.repeated > 0
    assert users.passes == 1


async def test_who_leaves_while_another_one_signs_up_moves_nobody_out_of_the_list() -> None:
    """The total stays the same, so a reader from the first page on would notice nothing."""
    tenant = Tenant(1000)
    first = set(tenant.users)

    def after() -> None:
        tenant.users.pop(0)
        tenant.users.append(f"newcomer{len(tenant.pages)}")

    tenant.after = after
    users = tenant.list()
    found = await ids(users)
    assert first & set(tenant.users) <= set(found)
    assert len(found) == len(set(found))
    assert sum(user_id.startswith("newcomer") for user_id in found) > 10  # the newest as well
    assert users.passes == 1


async def test_users_without_a_stable_order_are_read_again_until_all_are_there() -> None:
    """As with a database that sorts users of the same second differently for each page."""
    tenant = Tenant(1000)
    everybody = set(tenant.users)
    rng = Random(1)
    shuffles = 0

    def after() -> None:
        nonlocal shuffles
        if shuffles < 30:
            shuffles += 1
            rng.shuffle(tenant.users)

    tenant.after = after
    users = tenant.list()
    found = await ids(users)
    assert set(found) == everybody
    assert len(found) == len(everybody)
    assert users.passes > 1


async def test_who_is_missed_is_not_taken_for_one_who_left() -> None:
    """One user leaves, and another one changes places with a user who was read already."""
    tenant = Tenant(1000)
    everybody = set(tenant.users)

    def after() -> None:
        if len(tenant.pages) == 4:
            users = tenant.users
            users[10], users[910] = users[910], users[10]
            del users[5]

    tenant.after = after
    users = tenant.list()
    found = await ids(users)
    assert set(found) == everybody - {"u5"}
    assert len(found) == 999
    assert users.passes > 1


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_list_that_never_holds_still_ends_with_an_error(*, ordered: bool) -> None:
    tenant = Tenant(1000)
    rng = Random(1)

    def after() -> None:
        rng.shuffle(tenant.users)
        tenant.users[:20] = [f"n{len(tenant.pages)}-{number}" for number in range(20)]

    tenant.after = after
    users = tenant.list(ordered=ordered)
    with pytest.raises(m.IncompleteListError, match="1,000") as caught:
        await ids(users)
    assert caught.value.total == 1000
    assert caught.value.returned == users.returned


async def test_a_count_that_never_fits_is_an_error_after_a_second_pass() -> None:
    tenant = Tenant(100)
    tenant.users += tenant.users[:7]  # the tenant counts some users twice
    with pytest.raises(m.IncompleteListError, match=r"100 were read in 2 passes, .* counts 107"):
        await ids(tenant.list())


@pytest.mark.parametrize("ordered", [True, False])
async def test_pages_that_the_tenant_cuts_are_followed(*, ordered: bool) -> None:
    tenant = Tenant(230, cap=20)
    users = tenant.list(ordered=ordered)
    assert sorted(await ids(users)) == sorted(tenant.users)
    assert (users.page_size, users.passes) == (20, 1)


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_size_that_is_cut_half_way_begins_a_new_pass(*, ordered: bool) -> None:
    tenant = Tenant(430)

    def after() -> None:
        tenant.cap = 50 if len(tenant.pages) < 4 else 20

    tenant.after = after
    users = tenant.list(ordered=ordered)
    assert sorted(await ids(users)) == sorted(tenant.users)
    assert (users.page_size, users.passes > 1) == (20, True)


async def test_a_page_is_read_again_if_it_contradicts_its_header() -> None:
    tenant = Tenant(230)
    wrong = 0

    def changed(page: UserPage) -> UserPage:
        nonlocal wrong
        if page.number == 3 and wrong < 2:
            wrong += 1
            page.users.pop()
        return page

    tenant.changed = changed
    assert len(await ids(tenant.list())) == 230
    assert wrong == 2


def short(page: UserPage) -> None:
    page.users.pop()


def headless(page: UserPage) -> None:
    page.total = page.size = page.number = page.has_next = None


def capped_count(page: UserPage) -> None:
    page.total = 100


def other_page(page: UserPage) -> None:
    page.number = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (short, "page 5 .* has 29 users, and 30 by its header"),
        (headless, "page 5 .* has no readable x-pagination header"),
        (other_page, "page 5 .* is page 1 by its header"),
    ],
)
async def test_a_page_that_keeps_contradicting_its_header_is_an_error(
    change: Callable[[UserPage], None], message: str
) -> None:
    tenant = Tenant(230)

    def changed(page: UserPage) -> UserPage:
        if len(tenant.pages) > 1:
            change(page)
        return page

    tenant.changed = changed
    with pytest.raises(m.InvalidResponseError, match=message):
        await ids(tenant.list())
    assert tenant.pages == [1, 5, 5, 5]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("has_next", [True, False, None])
async def test_a_count_that_is_capped_is_not_the_end(
    *, has_next: bool | None, ordered: bool
) -> None:
    """Search engines count up to ten thousand, and stop."""
    tenant = Tenant(230)

    def changed(page: UserPage) -> UserPage:
        capped_count(page)
        if not has_next:  # which may be computed from the count
            page.has_next = has_next if has_next is None else tenant.pages[-1] < 2
        return page

    tenant.changed = changed
    problem = "page 3 .* has 50 users, and 0 by its header"
    if has_next and ordered:
        problem = "page 2 .* is not the last one by its header, which counts 100 users"
    with pytest.raises(m.InvalidResponseError, match=problem):
        await ids(tenant.list(ordered=ordered))


@pytest.mark.parametrize("number", [None, 2])
async def test_the_page_after_a_full_last_one_need_only_be_empty(number: int | None) -> None:
    """Some servers return the last page's number for it."""
    tenant = Tenant(100)

    def changed(page: UserPage) -> UserPage:
        if not page.users:
            page.number = number
        return page

    tenant.changed = changed
    assert len(await ids(tenant.list())) == 100


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_tenant_may_have_no_page_after_a_full_last_one(*, ordered: bool) -> None:
    tenant = Tenant(100)

    def changed(page: UserPage) -> UserPage:
        if tenant.pages[-1] > 2:
            raise m.NotFoundError("404 Not Found", status=404)
        return page

    tenant.changed = changed
    assert len(await ids(tenant.list(ordered=ordered))) == 100


async def test_any_other_page_that_is_not_found_is_an_error() -> None:
    tenant = Tenant(100)

    def changed(page: UserPage) -> UserPage:
        if len(tenant.pages) > 1 and tenant.pages[-1] == 2:
            raise m.NotFoundError("404 Not Found", status=404)
        return page

    tenant.changed = changed
    with pytest.raises(m.NotFoundError):
        await ids(tenant.list())


async def test_who_joins_a_group_and_is_older_than_the_others_hides_nobody() -> None:
    """The count has the member who left in the place of the one who is missing."""
    tenant = Tenant(300)
    tenant.created["old"] = 1

    def after() -> None:
        if len(tenant.pages) == 3:
            tenant.users.remove("u299")
            tenant.users.insert(0, "old")

    tenant.after = after
    users = tenant.list(selected=True)
    found = await ids(users)
    assert set(tenant.users) <= set(found)
    assert len(found) == len(set(found))
    assert users.passes > 1


async def test_a_group_that_changes_in_every_pass_ends_with_an_error() -> None:
    tenant = Tenant(300)

    def after() -> None:
        tenant.users.pop()
        tenant.users.insert(0, f"old{len(tenant.pages)}")

    tenant.after = after
    with pytest.raises(m.IncompleteListError):
        await ids(tenant.list(selected=True))


async def test_who_signs_up_all_the_time_is_no_doubt_about_the_others() -> None:
    tenant = Tenant(300)

    def after() -> None:
        user_id = f"newcomer{len(tenant.pages)}"
        tenant.created[user_id] = 1000 + len(tenant.pages)
        tenant.users.append(user_id)

    tenant.after = after
    users = tenant.list(selected=True)
    assert {f"u{number}" for number in range(300)} <= set(await ids(users))
    assert users.passes == 2


@pytest.mark.parametrize(("count", "asked"), [(30, 1), (50, 2), (51, 6)])
async def test_one_page_of_a_group_is_read_once(count: int, asked: int) -> None:
    tenant = Tenant(count)
    assert len(await ids(tenant.list(selected=True))) == count
    assert len(tenant.pages) == asked


async def test_a_group_is_read_twice_also_where_the_first_pass_broke_off() -> None:
    tenant = Tenant(30)
    tenant.cap = 20

    def after() -> None:
        tenant.cap = 10  # a proxy, or a new version of the server

    tenant.after = after
    users = tenant.list(selected=True)
    assert len(await ids(users)) == 30
    assert users.passes == 3


async def test_an_error_is_raised_again_whoever_iterates() -> None:
    tenant = Tenant(230)
    error = m.TransportError("connection reset")

    def changed(page: UserPage) -> UserPage:
        if page.number == 3:
            raise error
        return page

    tenant.changed = changed
    users = tenant.list()
    for _ in range(2):
        with pytest.raises(m.TransportError) as caught:
            await ids(users)
        assert caught.value is error
        assert users.returned == 80
    assert tenant.pages == [1, 5, 4, 3]  # nothing was asked for again


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_list_goes_on_after_a_cancellation(*, ordered: bool) -> None:
    tenant = Tenant(230)
    users = tenant.list(ordered=ordered)
    found = list[str]()

    async def read() -> None:
        async for user in users:
            found.append(user.user_id)
            await asyncio.sleep(0)

    fetch = users._fetch

    async def cancelled_fetch(number: int, size: int) -> UserPage:
        page = await fetch(number, size)
        if len(tenant.pages) == 4:
            task.cancel()
        await asyncio.sleep(0)
        return page

    users._fetch = cancelled_fetch
    task = asyncio.ensure_future(read())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < len(found) < 230
    await read()
    assert len(found) == 230
    assert set(found) == set(tenant.users)
    assert (users.repeated, users.passes) == (0, 1)  # no page has shifted


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("selected", [True, False])
async def test_a_page_whose_wait_was_cancelled_is_the_next_one(
    *, ordered: bool, selected: bool
) -> None:
    tenant = Tenant(230)
    undisturbed = await ids(tenant.list(ordered=ordered, selected=selected))
    pages, tenant.pages = tenant.pages, []
    users = tenant.list(ordered=ordered, selected=selected)
    fetch = users._fetch
    asked = asyncio.Event()

    async def hung(number: int, size: int) -> UserPage:
        page = await fetch(number, size)
        assert len(tenant.pages) <= 2 * len(pages)
        if len(tenant.pages) % 2:
            asked.set()
            await asyncio.Event().wait()
        return page

    users._fetch = hung
    found = list[str]()
    while True:
        asked.clear()
        coming = asyncio.ensure_future(anext(users, None))
        hanging = asyncio.ensure_future(asked.wait())
        await asyncio.wait([coming, hanging], return_when=asyncio.FIRST_COMPLETED)
        hanging.cancel()
        if not coming.done():
            coming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await coming
            continue
        if (user := await coming) is None:
            break
        found.append(user.user_id)
    assert found == undisturbed
    assert tenant.pages == [number for number in pages for _ in range(2)]  # no other page
    assert users.pages_read == len(pages)


async def test_several_tasks_share_the_users_of_a_list() -> None:
    tenant = Tenant(230)
    users = tenant.list()

    async def read() -> list[str]:
        found = []
        async for user in users:
            found.append(user.user_id)
            await asyncio.sleep(0)
        return found

    shares = await asyncio.gather(*(read() for _ in range(3)))
    assert sorted(user_id for share in shares for user_id in share) == sorted(tenant.users)


@pytest.mark.parametrize(("count", "asked"), [(0, 2), (30, 2)])
async def test_a_short_page_without_a_header_is_all_if_the_next_one_is_empty(
    count: int, asked: int
) -> None:
    tenant = Tenant(count)

    def changed(page: UserPage) -> UserPage:
        headless(page)
        return page

    tenant.changed = changed
    assert await ids(tenant.list()) == tenant.users
    assert len(tenant.pages) == asked


@pytest.mark.parametrize(("count", "cap"), [(50, 50), (230, 50), (230, 20)])
async def test_without_a_header_nobody_knows_whether_there_are_more(count: int, cap: int) -> None:
    """Also where the tenant cut the pages without saying so."""
    tenant = Tenant(count, cap=cap)

    def changed(page: UserPage) -> UserPage:
        headless(page)
        return page

    tenant.changed = changed
    with pytest.raises(m.InvalidResponseError, match="page 1 of the list of users has"):
        await ids(tenant.list())


def test_a_hundred_thousand_users_take_flat_memory() -> None:
    def peak(count: int) -> int:
        async def main() -> None:
            tenant = Tenant(count)
            tracemalloc.start()
            try:
                async for _user in tenant.list():
                    pass
            finally:
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()

        peaks = list[int]()
        run(main(), sockets=False)
        return peaks[0]

    assert peak(100_000) - peak(1_000) < 4 << 20


def test_an_id_set_is_a_set_of_ids() -> None:
    found, expected = IdSet(), set[str]()
    rng = Random(1)
    for _ in range(5000):
        user_id = str(rng.randrange(3000))
        assert (user_id in found) is (user_id in expected)
        assert found.add(user_id) is (user_id not in expected)
        expected.add(user_id)
    assert len(found) == len(expected)


async def test_a_session_lists_its_tenant(sandbox: Sandbox, session: MonoCloudSession) -> None:
    await session.enable_user(sandbox.user_ids()[0])
    users = session.list_users(page_size=7)
    states = {user.user_id: user.disabled async for user in users}
    assert states == {user_id: sandbox.is_disabled(user_id) for user_id in sandbox.user_ids()}
    assert users.pages == 3


async def test_the_order_the_filter_and_the_group_are_the_tenants(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    everybody = [user async for user in session.list_users(sort="last_updated:-1")]
    times = [user.last_updated or 0 for user in everybody]
    assert times == sorted(times, reverse=True)
    email = everybody[3].emails[0].email
    assert await ids(session.list_users(filter=email)) == [everybody[3].user_id]
    sandbox.assign("staff & co", sandbox.user_ids()[:2])
    found = await ids(session.list_users(group="staff & co"))
    assert sorted(found) == sorted(sandbox.user_ids()[:2])


async def test_a_group_and_a_filter_are_read_until_nobody_new_comes(
    sandbox: Sandbox, session: MonoCloudSession
) -> None:
    sandbox.assign("staff", sandbox.user_ids())
    for users in (
        session.list_users(page_size=7, group="staff"),
        session.list_users(page_size=7, filter=""),
    ):
        assert len(await ids(users)) == 20
        assert users.passes == 2


@pytest.mark.parametrize("options", [{"filter": 5}, {"sort": 5}, {"sort": b"last_updated:1"}])
async def test_the_filter_and_the_order_are_texts(
    session: MonoCloudSession, options: dict[str, Any]
) -> None:
    with pytest.raises(m.ConfigurationError, match="must be a str, not"):
        session.list_users(**options)


async def test_a_list_is_retried_and_paced_like_any_call(sandbox: Sandbox) -> None:
    sandbox.error_rate = 0.3
    retry = m.RetryPolicy(attempts=30, wait_initial=0.001, wait_max=0.002)
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=retry) as session:
        assert len(await ids(session.list_users(page_size=2))) == 20
        assert session.pace.state == "open"


class Session(MonoCloudSession):
    """A session whose tenant is in memory, and is down from the second page on for a while."""

    def __init__(self, tenant: Tenant, seconds: float) -> None:
        super().__init__("acme.eu.monocloud.com", "k")
        self._tenant = tenant
        self._down_until = seconds
        self._http.send = self._send  # type: ignore[method-assign]  # no HTTP

    async def _send(
        self, operation: Operation[Any], target: str, timeout: float, time_slice: object = None
    ) -> Any:
        await asyncio.sleep(0.02)
        if len(self._tenant.pages) > 1 and asyncio.get_running_loop().time() < self._down_until:
            raise m.TransportError("connection refused", sent=False)
        found = re.search("page=([0-9]+)&size=([0-9]+)", target)
        assert found
        return await self._tenant.fetch(int(found[1]), int(found[2]))


@pytest.mark.parametrize(("seconds", "is_read"), [(200, True), (700, False)])
def test_a_list_waits_minutes_for_a_tenant_that_is_down(seconds: float, *, is_read: bool) -> None:
    async def main() -> int:
        async with Session(Tenant(500), seconds) as session:
            users = session.list_users()
            try:
                return len(await ids(users))
            except m.MonoCloudError:
                assert asyncio.get_running_loop().time() > 290
                return users.returned

    assert (run(main(), sockets=False) == 500) is is_read


async def test_pages_that_shift_on_the_way_miss_nobody() -> None:
    async with (
        Sandbox(users=100, others=300, shift_pages=True) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session,
    ):
        disabled = {user_id for user_id in sandbox.user_ids() if sandbox.is_disabled(user_id)}
        users = session.list_users(page_size=20)
        assert {user.user_id async for user in users if user.disabled} == disabled
        assert users.repeated > 0


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, m.UnauthorizedError), (404, m.NotFoundError), (422, m.UnprocessableError)],
)
async def test_a_refusal_is_the_error_of_its_status_and_names_no_user(
    status: int, error: type[m.StatusError]
) -> None:
    async with (
        RawServer(answering(http(b"{}", status=status))) as server,
        MonoCloudSession(server.url, "k", retry=QUICK) as session,
    ):
        with pytest.raises(error) as caught:
            await ids(session.list_users())
        assert caught.value.user_id is None
        assert str(caught.value).startswith(str(status))


@pytest.mark.parametrize(
    ("group", "advice"), [(None, "Check the domain"), ("staff", "Check the id of the group")]
)
async def test_a_list_that_is_not_found_gives_no_advice_about_a_user(
    group: str | None, advice: str
) -> None:
    async with (
        RawServer(answering(http(b"{}", status=404))) as server,
        MonoCloudSession(server.url, "k", retry=QUICK) as session,
    ):
        with pytest.raises(m.NotFoundError, match=advice) as caught:
            await ids(session.list_users(group=group))
        assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"<html>", m.InvalidResponseError, "Check the domain"),
        (b"[error] no upstream", m.InvalidResponseError, "Check the domain"),
        (b"{}", m.InvalidResponseError, "no list of users"),
        (b'\xef\xbb\xbf{"title": "x"}', m.InvalidResponseError, "who is missing"),
        (b'[{"disabled": true}]', m.InvalidResponseError, "a user who has no user_id"),
        (b'[{"user_id": "ada"}, {"user_id"', m.TransportError, "cut short"),
        (b'[{"user_id": "ada"}, 3]', m.InvalidResponseError, "a user who has no user_id"),
        (b'[{"user_id": "ada"} 3]', m.InvalidResponseError, "no list of users .*who is missing"),
    ],
)
async def test_what_is_no_list_is_told(
    body: bytes, error: type[m.MonoCloudError], message: str
) -> None:
    answer = http(body, b'X-Pagination: {"total_count": 1}')
    async with (
        RawServer(answering(answer)) as server,
        MonoCloudSession(server.url, "k", retry=QUICK) as session,
    ):
        with pytest.raises(error, match=message):
            await ids(session.list_users())


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b'X-Pagination: {"total_count": 1, "note": "\xff"}',
        b"X-Pagination: nonsense",
        b'X-Pagination: {"total_count": "2"}',
        b"X-Pagination: {}",
    ],
)
async def test_an_unreadable_header_is_none(header: bytes) -> None:
    def answer(request: bytes) -> bytes:
        body = b"[]" if b"page=2&" in request else b'[{"user_id": "ada"}, {"user_id": "bob"}]'
        return http(body, *filter(None, [header]))

    async with (
        RawServer(answering(answer)) as server,
        MonoCloudSession(server.url, "k", retry=QUICK) as session,
    ):
        assert await ids(session.list_users()) == ["ada", "bob"]
        with pytest.raises(m.InvalidResponseError, match="no readable x-pagination"):
            await ids(session.list_users(page_size=2))


async def test_unusual_data_of_one_user_does_not_spoil_the_page() -> None:
    members = b'"disabled": true, "emails": null, "claims": {"n": NaN}, "username": 3'
    body = b'[{"user_id": "ada", %s}]' % members
    answer = http(body, b'X-Pagination: {"total_count": 1}')
    async with (
        RawServer(answering(answer)) as server,
        MonoCloudSession(server.url, "k", retry=QUICK) as session,
    ):
        (user,) = [user async for user in session.list_users()]
    assert (user.user_id, user.disabled, user.emails, user.username) == ("ada", True, [], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page_size": 0}, "page_size must be 1 or more"),
        ({"page_size": "50"}, "page_size must be 1 or more"),
        ({"sort": "\ud800"}, "valid Unicode"),
        ({"group": ".."}, "^group '..': this id is a dot segment"),
    ],
)
async def test_options_are_checked_before_any_request(
    session: MonoCloudSession, sandbox: Sandbox, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(m.MonoCloudError, match=message):
        session.list_users(**options)
    assert sandbox.stats().requests == 0


@pytest.mark.parametrize(
    ("length", "says"), [(4 << 20, None), ((4 << 20) + 1, "ask for a smaller page_size")]
)
async def test_a_page_may_have_four_megabytes(length: int, says: str | None) -> None:
    user = b'[{"user_id":"ada"}]'
    answer = http(user + b" " * (length - len(user)), b'X-Pagination: {"total_count": 1}')
    async with (
        RawServer(answering(answer)) as server,
        MonoCloudSession(server.url, "key", retry=QUICK) as session,
    ):
        if says is None:
            assert await ids(session.list_users()) == ["ada"]
        else:
            with pytest.raises(m.InvalidResponseError, match=says):
                await ids(session.list_users())
