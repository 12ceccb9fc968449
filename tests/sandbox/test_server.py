"""The sandbox: every endpoint and every fault, over real HTTP."""

import asyncio
import contextlib
import errno
import logging
import shutil
import time

import aiohttp
import pytest
from plain_client import PROBLEM, TRACEPARENT, PlainClient, raw, sample, without_trace

from monocloud_async.sandbox import Sandbox


async def test_enable_flips_the_user_and_stamps_it(tenant: PlainClient) -> None:
    before = int(time.time())
    status, headers, user = await tenant.enable("ada")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    assert (user["user_id"], user["disabled"]) == ("ada", False)
    assert user["last_updated"] >= before
    assert not tenant.sandbox.is_disabled("ada")
    assert tenant.sandbox.is_disabled("bob")


async def test_enabling_twice_is_200_and_disable_undoes_it(tenant: PlainClient) -> None:
    assert [(await tenant.enable("ada"))[0] for _ in range(2)] == [200, 200]
    status, _, user = await tenant.send("POST", "/api/users/ada/disable")
    assert (status, user["disabled"]) == (200, True)
    assert tenant.sandbox.is_disabled("ada")


async def test_get_shows_what_user_shows_and_changes_nothing(tenant: PlainClient) -> None:
    status, _, user = await tenant.send("GET", "/api/users/ada")
    assert (status, user) == (200, tenant.sandbox.user("ada"))
    assert user["disabled"] is True
    assert tenant.sandbox.user("nobody") is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/users/nobody/enable"),
        ("POST", "/api/users/nobody/disable"),
        ("GET", "/api/users/nobody"),
    ],
)
async def test_a_missing_user_is_the_documented_404(
    tenant: PlainClient, method: str, path: str
) -> None:
    status, headers, problem = await tenant.send(method, path)
    assert (status, headers["Content-Type"]) == (404, PROBLEM)
    assert without_trace(problem) == without_trace(sample("problem-404.json"))
    assert TRACEPARENT.fullmatch(problem["traceId"])


@pytest.mark.parametrize("headers", [{}, {"X-API-KEY": "another's"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/users/ada/enable"),
        ("POST", "/api/users/nobody/enable"),
        ("PUT", "/_sandbox/users/ada"),
        ("GET", "/_sandbox/stats"),
    ],
)
async def test_a_wrong_key_is_401_before_anything_else(
    tenant: PlainClient, method: str, path: str, headers: dict[str, str]
) -> None:
    status, _, problem = await tenant.send(method, path, headers=headers)
    assert status == 401
    assert without_trace(problem) == without_trace(sample("problem-401-newest.json"))
    assert TRACEPARENT.fullmatch(problem["trace_id"])
    assert tenant.sandbox.is_disabled("ada")


async def test_every_trace_is_fresh(tenant: PlainClient) -> None:
    traces = {(await tenant.enable("nobody"))[2]["traceId"] for _ in range(3)}
    assert len(traces) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/users//enable",
        "/api/users/ada/enable/",
        "/api/users/x/../ada/enable",
        "/api/users/%FF/enable",
        "/_sandbox/users",
        "/_sandbox/users/",
    ],
)
async def test_an_unknown_route_is_a_404_problem(tenant: PlainClient, path: str) -> None:
    status, headers, problem = await tenant.send("POST", path)
    assert (status, headers["Content-Type"], problem["status"]) == (404, PROBLEM, 404)
    assert problem["detail"] == "There is no such endpoint."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/users/ada/enable", "POST"),
        ("PUT", "/api/users/ada/disable", "POST"),
        ("PUT", "/api/users/ada/unblock", "POST"),
        ("DELETE", "/api/users/ada", "GET"),
        ("POST", "/api/users", "GET"),
        ("POST", "/api/users/groups/staff/assigned", "GET"),
        ("GET", "/_sandbox/groups/staff", "PUT"),
        ("GET", "/_sandbox/users/ada", "PUT"),
        ("POST", "/_sandbox/stats", "GET"),
    ],
)
async def test_a_wrong_method_is_a_405_problem(
    tenant: PlainClient, method: str, path: str, allowed: str
) -> None:
    status, headers, problem = await tenant.send(method, path)
    assert (status, headers["Content-Type"], problem["status"]) == (405, PROBLEM, 405)
    assert headers["Allow"] == allowed


IDS = [
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "a%2fb",
    "a+b",
    "a b",
    "a%20b",
    "caf\u00e9",
    "cafe\u0301",
    "{id}",
    "a?b#c",
    "a.b",
    "A.B",
    "-x",
    "\U0001f600",
    "auth0|1",
]


@pytest.mark.parametrize("user_id", IDS)
async def test_an_id_is_decoded_once_and_never_normalised(
    tenant: PlainClient, user_id: str
) -> None:
    for other in IDS:
        tenant.sandbox.add_user(other)
    status, _, user = await tenant.enable(user_id)
    assert (status, user["user_id"]) == (200, user_id)
    assert [other for other in IDS if not tenant.sandbox.is_disabled(other)] == [user_id]


async def test_an_absolute_request_target_finds_the_same_user(tenant: PlainClient) -> None:
    sandbox = tenant.sandbox
    answer = await raw(sandbox, f"POST {sandbox.url}/api/users/ada/enable HTTP/1.1")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_the_header_shape_of_the_javascript_client_is_served(tenant: PlainClient) -> None:
    headers = {
        "X-API-KEY": tenant.sandbox.api_key,
        "Content-Type": "application/json",
        "accept": "*/*",
    }
    status, _, user = await tenant.send("POST", "/api/users/ada/enable", headers=headers)
    assert (status, user["disabled"]) == (200, False)


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
async def test_a_real_javascript_fetch_is_served(tenant: PlainClient) -> None:
    script = """
        const [url, key] = process.argv.slice(1);
        const headers = {'X-API-KEY': key, 'Content-Type': 'application/json'};
        const response = await fetch(url, {method: 'POST', headers});
        console.log(response.status, (await response.json()).disabled);
    """
    node = await asyncio.create_subprocess_exec(
        *["node", "--input-type=module", "-e", script, "--"],
        *[f"{tenant.sandbox.url}/api/users/ada/enable", tenant.sandbox.api_key],
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await node.communicate()
    assert stdout.split() == [b"200", b"false"]


async def test_a_restart_keeps_the_port_the_users_and_the_counts(tenant: PlainClient) -> None:
    sandbox, url = tenant.sandbox, tenant.sandbox.url
    await tenant.enable("ada")
    await sandbox.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await tenant.http.get(url)
    assert not sandbox.is_disabled("ada")
    await sandbox.start()
    assert sandbox.url == url
    assert (await tenant.enable("bob"))[0] == 200
    assert sandbox.stats().requests == 2


async def test_another_sandbox_can_take_over_the_port(http: aiohttp.ClientSession) -> None:
    async with Sandbox() as first:
        port = first.port
    async with Sandbox(users=["ada"], port=port) as second:
        assert (await PlainClient(second, http).enable("ada"))[0] == 200


async def test_stop_does_not_wait_for_a_hanging_request(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "hang")
    hanging = asyncio.create_task(tenant.enable("ada"))
    await tenant.in_flight(1)
    started = time.monotonic()
    await tenant.sandbox.stop()
    assert time.monotonic() - started < 0.4
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await hanging
    assert tenant.sandbox.stats().in_flight == 0


async def test_stop_lets_an_answer_in_progress_go_out(tenant: PlainClient) -> None:
    tenant.sandbox.latency = 0.01
    answer = asyncio.create_task(tenant.enable("ada"))
    await tenant.in_flight(1)
    await tenant.sandbox.stop()
    assert (await answer)[0] == 200


def test_to_enter_it_twice_is_refused_and_it_runs_on() -> None:
    with Sandbox(users=1) as sandbox:
        with pytest.raises(RuntimeError, match="already runs"), sandbox:
            pass
        assert sandbox.url


async def test_start_twice_is_refused_and_stop_twice_is_not(tenant: PlainClient) -> None:
    with pytest.raises(RuntimeError, match="already runs"):
        await tenant.sandbox.start()
    await tenant.sandbox.stop()
    await tenant.sandbox.stop()
    with pytest.raises(RuntimeError, match="started"):
        _ = tenant.sandbox.url


async def test_a_port_that_is_taken_is_an_os_error_and_leaves_nothing_running() -> None:
    async with Sandbox() as first:
        second = Sandbox(port=first.port)
        with pytest.raises(OSError, match=str(errno.EADDRINUSE)):
            await second.start()
        await second.stop()


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],  # noqa: S104 - the point
)
async def test_a_host_that_others_can_reach_is_warned_about(
    caplog: pytest.LogCaptureFixture, host: str, *, is_loopback: bool
) -> None:
    sandbox = Sandbox(host=host)
    assert sandbox.is_loopback is is_loopback
    with (
        caplog.at_level(logging.WARNING, logger="monocloud_async.sandbox"),
        contextlib.suppress(
            OSError  # a machine without IPv6
        ),
    ):
        await sandbox.start()
    await sandbox.stop()
    assert bool(caplog.records) is not is_loopback


def test_a_name_that_is_not_localhost_is_not_loopback() -> None:
    assert not Sandbox(host="tenant.example").is_loopback


async def test_repr_shows_where_it_is_and_never_the_key(tenant: PlainClient) -> None:
    assert tenant.sandbox.url in repr(tenant.sandbox)
    assert tenant.sandbox.api_key not in repr(tenant.sandbox)
    await tenant.sandbox.stop()
    assert "stopped" in repr(tenant.sandbox)
