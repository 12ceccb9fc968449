"""The endpoints by which a test of any language controls the sandbox."""

import asyncio

import aiohttp
import msgspec
import pytest
from plain_client import PROBLEM, PlainClient


async def test_put_creates_a_user_with_a_script(tenant: PlainClient) -> None:
    wanted = {"disabled": True, "script": ["503", "422:identity", 200]}
    status, _, user = await tenant.send("PUT", "/_sandbox/users/a%2Fb", json=wanted)
    assert (status, user["user_id"], user["disabled"]) == (200, "a/b", True)
    assert [(await tenant.enable("a/b"))[0] for _ in range(3)] == [503, 422, 200]


async def test_put_resets_a_user_that_was_touched(tenant: PlainClient) -> None:
    untouched = tenant.sandbox.user("ada")
    tenant.sandbox.script("ada", 200, 500)
    await tenant.enable("ada")
    assert (await tenant.send("PUT", "/_sandbox/users/ada", json={}))[2] == untouched
    assert tenant.sandbox.user_ids() == ["ada", "bob"]
    assert (await tenant.enable("ada"))[0] == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"disabled": 1}', "$.disabled"),
        (b'{"script": [{}]}', "$.script[0]"),
        (b'{"enabled": true}', "`enabled`"),
        (b'{"script": ["503", "explode"]}', "'explode'"),
    ],
)
async def test_put_names_what_is_wrong_and_changes_nothing(
    tenant: PlainClient, body: bytes, named: str
) -> None:
    status, headers, problem = await tenant.send("PUT", "/_sandbox/users/eve", data=body)
    assert (status, headers["Content-Type"], problem["status"]) == (400, PROBLEM, 400)
    assert named in problem["detail"]
    assert tenant.sandbox.user("eve") is None


async def test_stats_count_requests_and_connections_but_not_the_control(
    tenant: PlainClient,
) -> None:
    tenant.sandbox.script("bob", "429", "reset")
    await tenant.enable("ada")
    await tenant.enable("nobody")
    await tenant.enable("bob")
    with pytest.raises(aiohttp.ClientOSError):
        await tenant.enable("bob")
    status, _, stats = await tenant.send("GET", "/_sandbox/stats")
    assert status == 200
    assert stats == msgspec.to_builtins(tenant.sandbox.stats())
    assert stats == {
        "requests": 4,
        "by_status": {"200": 1, "404": 1, "429": 1, "none": 1},
        "in_flight": 0,
        "peak_in_flight": 1,
        "connections": 2,
        "users": {"enabled": 1, "disabled": 1},
    }


async def test_peak_in_flight_is_what_was_served_at_once(tenant: PlainClient) -> None:
    tenant.sandbox.latency = 0.5
    await asyncio.gather(*(tenant.enable("ada") for _ in range(7)))
    assert tenant.sandbox.stats().peak_in_flight == 7
