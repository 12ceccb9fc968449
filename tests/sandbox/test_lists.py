"""The lists of a sandbox, and the neighbours of enable: disable, unblock, groups."""

import asyncio
import json
import shutil
import time
from typing import Any

import aiohttp
import pytest
from plain_client import PROBLEM, PlainClient

from monocloud_async.sandbox import Sandbox

MEMBERS_ONLY_OF_A_USER = {"public_data", "private_data"}


async def listed(
    tenant: PlainClient, query: str = "", path: str = "/api/users"
) -> tuple[list[str], dict[str, Any] | None]:
    """Return the ids of a page, and its header."""
    status, headers, users = await tenant.send("GET", f"{path}?{query}")
    assert status == 200
    where = headers.get("x-pagination")
    return [user["user_id"] for user in users], None if where is None else json.loads(where)


async def test_pages_of_ten_by_default_tell_where_they_are(http: aiohttp.ClientSession) -> None:
    async with Sandbox(users=23) as sandbox:
        tenant = PlainClient(sandbox, http)
        pages = [await listed(tenant, f"page={number}") for number in (1, 2, 3, 4)]
    assert [len(ids) for ids, _ in pages] == [10, 10, 3, 0]
    assert sorted(user_id for ids, _ in pages for user_id in ids) == sorted(sandbox.user_ids())
    whole = {"total_count": 23, "page_size": 10}
    assert [header for _, header in pages] == [
        whole | {"current_page": 1, "has_next": True, "has_previous": False},
        whole | {"current_page": 2, "has_next": True, "has_previous": True},
        whole | {"current_page": 3, "has_next": False, "has_previous": True},
        whole | {"current_page": 4, "has_next": False, "has_previous": True},
    ]


async def test_a_page_is_cut_to_fifty_and_the_header_says_so(http: aiohttp.ClientSession) -> None:
    async with Sandbox(users=70) as sandbox:
        ids, header = await listed(PlainClient(sandbox, http), "size=1000")
        assert (len(ids), header and header["page_size"]) == (50, 50)
        sandbox.max_page_size = 7
        ids, header = await listed(PlainClient(sandbox, http), "size=50")
        assert (len(ids), header and header["page_size"]) == (7, 7)


async def test_a_summary_is_the_user_without_custom_data(tenant: PlainClient) -> None:
    for number in range(40):
        tenant.sandbox.add_user(f"u{number}")
    _, _, users = await tenant.send("GET", "/api/users?size=50")
    for summary in users:
        user = tenant.sandbox.user(summary["user_id"]) or {}
        assert set(user) - set(summary) == MEMBERS_ONLY_OF_A_USER
        assert summary["emails"] == user["emails"]
        providers = [*summary.get("external_providers", []), *summary.get("idps", [])]
        assert all("claims" not in provider for provider in providers)


@pytest.mark.parametrize(
    "field",
    ["creation_time", "last_updated", "failure_count", "last_sign_in_success", "block_until"],
)
async def test_lists_are_sorted_both_ways(http: aiohttp.ClientSession, field: str) -> None:
    async with Sandbox(users=45) as sandbox:
        sandbox.add_user("locked", block_until=2_000_000_000)
        tenant = PlainClient(sandbox, http)
        up, down = [(await listed(tenant, f"size=50&sort={field}:{way}"))[0] for way in (1, -1)]
        values = [(sandbox.user(user_id) or {}).get(field) or 0 for user_id in up]
    assert values == sorted(values)
    assert down == up[::-1]


@pytest.mark.parametrize(
    ("query", "member"),
    [("page=0", "page"), ("page=-1", "page"), ("size=x", "size"), ("sort=name:1", "sort")],
)
async def test_a_query_that_cannot_be_read_is_a_422(
    tenant: PlainClient, query: str, member: str
) -> None:
    status, headers, problem = await tenant.send("GET", f"/api/users?{query}")
    assert (status, headers["Content-Type"], list(problem["errors"])) == (422, PROBLEM, [member])
    assert problem["type"] == "https://httpstatuses.io/422#validation-error"


async def test_a_filter_finds_names_and_addresses(tenant: PlainClient) -> None:
    ada = tenant.sandbox.user("ada") or {}
    ids, header = await listed(tenant, f"filter={ada['emails'][0]['email'].upper()}")
    assert (ids, header and header["total_count"]) == (["ada"], 1)


async def test_a_group_lists_its_members_alone(tenant: PlainClient) -> None:
    tenant.sandbox.assign("staff", ["ada"])
    path = "/api/users/groups/staff/assigned"
    assert (await listed(tenant, path=path))[0] == ["ada"]
    await tenant.send("PUT", "/_sandbox/groups/staff", json=["bob"])
    assert (await listed(tenant, path=path))[0] == ["bob"]
    assert (await tenant.send("GET", "/api/users/groups/nobody/assigned"))[0] == 404
    assert (await tenant.send("PUT", "/_sandbox/groups/staff", json={}))[0] == 400


async def test_the_header_can_be_left_out(tenant: PlainClient) -> None:
    tenant.sandbox.paging_header = False
    assert (await listed(tenant))[1] is None


async def test_pages_can_shift_while_they_are_read(http: aiohttp.ClientSession) -> None:
    async with Sandbox(others=40, shift_pages=True) as sandbox:
        tenant = PlainClient(sandbox, http)
        before = set(sandbox.user_ids())
        pages = [await listed(tenant, f"page={number}") for number in (1, 2, 3, 4)]
        assert [header and header["total_count"] for _, header in pages] == [40] * 4
        missed = before - {user_id for ids, _ in pages for user_id in ids}
        assert missed & set(sandbox.user_ids())


async def test_disable_takes_the_sessions_too_if_asked(tenant: PlainClient) -> None:
    for user_id, wanted in (("ada", True), ("bob", False)):
        body = {"revoke_sessions": wanted}
        status, _, user = await tenant.send("POST", f"/api/users/{user_id}/disable", json=body)
        assert (status, user["disabled"]) == (200, True)
        assert tenant.sandbox.sessions_revoked(user_id) is wanted
    status, _, problem = await tenant.send(
        "POST", "/api/users/ada/disable", json={"revoke_sessions": "yes"}
    )
    assert (status, list(problem["errors"])) == (422, ["revoke_sessions"])


async def test_unblock_ends_the_lockout_and_leaves_the_switch(tenant: PlainClient) -> None:
    tenant.sandbox.add_user("eve", block_until=2_000_000_000, failure_count=5)
    assert (await tenant.send("GET", "/api/users/eve"))[2]["block_until"] == 2_000_000_000
    status, _, user = await tenant.send("POST", "/api/users/eve/unblock")
    assert (status, user["block_until"], user["failure_count"]) == (200, None, 0)
    assert user["disabled"] is True
    assert (await tenant.send("POST", "/api/users/nobody/unblock"))[0] == 404


@pytest.mark.parametrize(("status", "has_code"), [(403, True), (409, True), (422, False)])
async def test_some_problems_have_an_error_code(
    tenant: PlainClient, status: int, *, has_code: bool
) -> None:
    tenant.sandbox.script("ada", status)
    assert ("error_code" in (await tenant.enable("ada"))[2]) is has_code


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
async def test_a_javascript_loop_over_the_pages_is_served() -> None:
    script = """
        const [url, key] = process.argv.slice(1);
        const headers = {'X-API-KEY': key, 'Content-Type': 'application/json'};
        let ids = [], page = 0, more = true;
        while (more) {
            const response = await fetch(`${url}/api/users?page=${++page}&size=10`, {headers});
            ids.push(...(await response.json()).map(user => user.user_id));
            more = JSON.parse(response.headers.get('x-pagination')).has_next;
        }
        const body = JSON.stringify({revoke_sessions: true});
        const response = await fetch(
            `${url}/api/users/${ids[0]}/disable`, {method: 'POST', headers, body});
        console.log(new Set(ids).size, (await response.json()).disabled);
    """
    async with Sandbox(users=23) as sandbox:
        node = await asyncio.create_subprocess_exec(
            *["node", "--input-type=module", "-e", script, "--", sandbox.url, sandbox.api_key],
            stdout=asyncio.subprocess.PIPE,
        )
        stdout, _ = await node.communicate()
    assert stdout.split() == [b"23", b"true"]


async def test_users_are_disabled_in_a_known_hour_and_others_are_not() -> None:
    hour = 1_764_079_200
    sandbox = Sandbox(users=200, others=800, disabled_at=hour)
    users = [sandbox.user(user_id) or {} for user_id in sandbox.user_ids()]
    inside = [user for user in users if hour <= user["last_updated"] < hour + 3600]
    assert sum(user["disabled"] for user in inside) == 200
    assert 0 < len(inside) - 200 < 100  # some others changed something
    assert 0 < sum(user["disabled"] for user in users) - 200 < 150  # before
    assert all(user["creation_time"] <= user["last_updated"] < time.time() for user in users)
