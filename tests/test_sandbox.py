"""The sandbox: every endpoint and every fault, over real HTTP."""

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from yarl import URL

from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.answers import TokenBucket
from monocloud_async.sandbox.people import person

SAMPLES = Path(__file__).parent / "samples"
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")
PROBLEM = "application/problem+json"


class Tenant:
    """A sandbox, and an aiohttp client that is independent of this package."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.http = http

    async def send(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any
    ) -> tuple[int, Any, Any]:
        """Return status, headers and decoded body; `path` is sent unchanged."""
        url = URL(self.sandbox.url + path, encoded=True)
        headers = {"X-API-KEY": self.sandbox.api_key} if headers is None else headers
        async with self.http.request(
            method, url, headers=headers, allow_redirects=False, **options
        ) as response:
            body = await response.read()
            is_json = "json" in response.content_type
            return response.status, response.headers, json.loads(body) if is_json else body

    async def enable(self, user_id: str) -> tuple[int, Any, Any]:
        return await self.send("POST", f"/api/users/{quote(user_id, safe='')}/enable")

    async def in_flight(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.sandbox.stats().in_flight != count:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def tenant(http: aiohttp.ClientSession) -> AsyncIterator[Tenant]:
    async with Sandbox(users=["ada", "bob"]) as sandbox:
        yield Tenant(sandbox, http)


def without_trace(problem: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in problem.items() if key not in {"traceId", "trace_id"}}


def sample(name: str) -> dict[str, Any]:
    return dict(json.loads((SAMPLES / name).read_bytes()))


# The endpoints


async def test_enable_flips_the_user_and_stamps_it(tenant: Tenant) -> None:
    before = int(time.time())
    status, headers, user = await tenant.enable("ada")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    assert (user["user_id"], user["disabled"]) == ("ada", False)
    assert user["last_updated"] >= before
    assert not tenant.sandbox.is_disabled("ada")
    assert tenant.sandbox.is_disabled("bob")


async def test_enabling_twice_is_200_and_disable_undoes_it(tenant: Tenant) -> None:
    assert [(await tenant.enable("ada"))[0] for _ in range(2)] == [200, 200]
    status, _, user = await tenant.send("POST", "/api/users/ada/disable")
    assert (status, user["disabled"]) == (200, True)
    assert tenant.sandbox.is_disabled("ada")


async def test_get_shows_what_user_shows_and_changes_nothing(tenant: Tenant) -> None:
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
async def test_a_missing_user_is_the_documented_404(tenant: Tenant, method: str, path: str) -> None:
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
    tenant: Tenant, method: str, path: str, headers: dict[str, str]
) -> None:
    status, _, problem = await tenant.send(method, path, headers=headers)
    assert status == 401
    assert without_trace(problem) == without_trace(sample("problem-401-newest.json"))
    assert TRACEPARENT.fullmatch(problem["trace_id"])
    assert tenant.sandbox.is_disabled("ada")


async def test_every_trace_is_fresh(tenant: Tenant) -> None:
    traces = {(await tenant.enable("nobody"))[2]["traceId"] for _ in range(3)}
    assert len(traces) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/users",
        "/api/users//enable",
        "/api/users/ada/enable/",
        "/api/users/x/../ada/enable",
        "/api/users/%FF/enable",
        "/_sandbox/users",
        "/_sandbox/users/",
    ],
)
async def test_an_unknown_route_is_a_404_problem(tenant: Tenant, path: str) -> None:
    status, headers, problem = await tenant.send("POST", path)
    assert (status, headers["Content-Type"], problem["status"]) == (404, PROBLEM, 404)
    assert problem["detail"] == "There is no such endpoint."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/users/ada/enable", "POST"),
        ("PUT", "/api/users/ada/disable", "POST"),
        ("DELETE", "/api/users/ada", "GET"),
        ("GET", "/_sandbox/users/ada", "PUT"),
        ("POST", "/_sandbox/stats", "GET"),
    ],
)
async def test_a_wrong_method_is_a_405_problem(
    tenant: Tenant, method: str, path: str, allowed: str
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
async def test_an_id_is_decoded_once_and_never_normalised(tenant: Tenant, user_id: str) -> None:
    for other in IDS:
        tenant.sandbox.add_user(other)
    status, _, user = await tenant.enable(user_id)
    assert (status, user["user_id"]) == (200, user_id)
    assert [other for other in IDS if not tenant.sandbox.is_disabled(other)] == [user_id]


async def test_an_absolute_request_target_finds_the_same_user(tenant: Tenant) -> None:
    sandbox = tenant.sandbox
    answer = await raw(sandbox, f"POST {sandbox.url}/api/users/ada/enable HTTP/1.1")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_the_header_shape_of_the_javascript_client_is_served(tenant: Tenant) -> None:
    headers = {
        "X-API-KEY": tenant.sandbox.api_key,
        "Content-Type": "application/json",
        "accept": "*/*",
    }
    status, _, user = await tenant.send("POST", "/api/users/ada/enable", headers=headers)
    assert (status, user["disabled"]) == (200, False)


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
async def test_a_real_javascript_fetch_is_served(tenant: Tenant) -> None:
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


# The scripts


async def raw(sandbox: Sandbox, request_line: str) -> bytes:
    """Return everything that the sandbox sends before it closes the connection."""
    reader, writer = await asyncio.open_connection(sandbox.host, sandbox.port)
    try:
        writer.write(
            f"{request_line}\r\nHost: sandbox\r\nX-API-KEY: {sandbox.api_key}\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_script_is_consumed_step_by_step_and_then_all_is_normal(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", 503, "404", 200, 500)
    statuses = [(await tenant.enable("ada"))[0] for _ in range(5)]
    assert statuses == [503, 404, 200, 500, 200]


async def test_a_script_is_one_user_s_and_only_about_enable(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", 503)
    assert (await tenant.enable("bob"))[0] == 200
    assert (await tenant.send("GET", "/api/users/ada"))[0] == 200
    assert (await tenant.send("POST", "/api/users/ada/disable"))[0] == 200
    assert (await tenant.enable("ada"))[0] == 503


async def test_a_scripted_status_writes_nothing_until_a_scripted_200_does(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", 503, 200)
    await tenant.enable("ada")
    assert tenant.sandbox.is_disabled("ada")
    await tenant.enable("ada")
    assert not tenant.sandbox.is_disabled("ada")


async def test_a_new_script_replaces_the_old_and_an_empty_one_ends_it(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", 500, 500)
    tenant.sandbox.script("ada", 503)
    assert (await tenant.enable("ada"))[0] == 503
    tenant.sandbox.script("bob", 500)
    tenant.sandbox.script("bob")
    assert (await tenant.enable("bob"))[0] == 200


async def test_add_user_resets_the_user_and_its_script(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", 500)
    tenant.sandbox.add_user("ada", disabled=False)
    assert not tenant.sandbox.is_disabled("ada")
    assert (await tenant.enable("ada"))[0] == 200


async def test_a_script_for_nobody_makes_the_user(tenant: Tenant) -> None:
    tenant.sandbox.script("eve", 503)
    assert [(await tenant.enable("eve"))[0] for _ in range(2)] == [503, 200]
    assert tenant.sandbox.user_ids() == ["ada", "bob", "eve"]


@pytest.mark.parametrize(
    "step",
    [0, 100, 201, 302, 600, 1000, True, "", "ok", "200:1", "422:other", "429:", "429:x", "5ö3"],
)
async def test_an_unknown_step_is_refused_at_once_with_the_known_ones(
    tenant: Tenant, step: int | str
) -> None:
    with pytest.raises(ValueError, match=r"422:identity, 422:keyed, reset, cut, hang"):
        tenant.sandbox.script("ada", 503, step)
    assert (await tenant.enable("ada"))[0] == 200


@pytest.mark.parametrize("status", [400, 402, 403, 409, 418, 422, 500, 503, 520, 599])
async def test_a_scripted_status_is_a_problem_with_that_status(tenant: Tenant, status: int) -> None:
    tenant.sandbox.script("ada", status)
    answered, headers, problem = await tenant.enable("ada")
    assert (answered, headers["Content-Type"], problem["status"]) == (status, PROBLEM, status)
    assert problem["type"] == f"https://httpstatuses.io/{status}"
    assert problem["title"]
    assert "Retry-After" not in headers


@pytest.mark.parametrize("kind", ["identity", "keyed"])
async def test_both_kinds_of_422_are_the_samples(tenant: Tenant, kind: str) -> None:
    tenant.sandbox.script("ada", f"422:{kind}")
    status, headers, problem = await tenant.enable("ada")
    assert (status, headers["Content-Type"]) == (422, PROBLEM)
    assert without_trace(problem) == without_trace(sample(f"problem-422-{kind}.json"))


@pytest.mark.parametrize(
    ("step", "says_when", "retry_after"),
    [
        (429, True, "1"),
        (429, False, None),
        ("429:2", True, "2"),
        ("429:2", False, "2"),
        ("503:30", True, "30"),
    ],
)
async def test_a_scripted_429_says_when_to_come_back(
    tenant: Tenant, step: int | str, *, says_when: bool, retry_after: str | None
) -> None:
    tenant.sandbox.retry_after = says_when
    tenant.sandbox.script("ada", step)
    assert (await tenant.enable("ada"))[1].get("Retry-After") == retry_after


async def test_html_is_a_200_that_wrote_nothing(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "html")
    status, headers, body = await tenant.enable("ada")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")
    assert tenant.sandbox.is_disabled("ada")


async def test_redirect_is_a_307_to_another_origin(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "redirect")
    status, headers, _ = await tenant.enable("ada")
    assert status == 307
    assert URL(headers["Location"]).host == "sign-in.invalid"
    assert tenant.sandbox.is_disabled("ada")


async def test_reset_ends_the_connection_with_an_rst(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "reset")
    with pytest.raises(ConnectionResetError):  # a FIN would be an empty answer
        await raw(tenant.sandbox, "POST /api/users/ada/enable HTTP/1.1")
    assert tenant.sandbox.is_disabled("ada")


async def test_cut_promises_more_than_it_sends_and_the_write_has_happened(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "cut")
    answer = await raw(tenant.sandbox, "POST /api/users/ada/enable HTTP/1.1")
    head, _, body = answer.partition(b"\r\n\r\n")
    promised = re.search(rb"Content-Length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert promised is not None
    assert 0 < len(body) < int(promised[1])
    assert not tenant.sandbox.is_disabled("ada")


async def test_cut_breaks_a_kept_alive_connection_too(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "cut")
    with pytest.raises(aiohttp.ClientPayloadError):
        await tenant.enable("ada")


async def test_hang_never_answers_and_ends_when_the_client_leaves(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await tenant.enable("ada")
    await tenant.in_flight(0)
    assert tenant.sandbox.is_disabled("ada")
    assert tenant.sandbox.stats().by_status == {"none": 1}


# Faults of the whole tenant


async def test_latency_delays_every_answer(tenant: Tenant) -> None:
    tenant.sandbox.latency = 0.05
    started = time.monotonic()
    await tenant.enable("ada")
    assert time.monotonic() - started >= 0.05


async def test_the_rate_limit_lets_a_burst_through_and_then_says_when(tenant: Tenant) -> None:
    tenant.sandbox.rate_limit, tenant.sandbox.burst = 0.4, 3
    answers = [await tenant.enable("ada") for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429]
    status, headers, problem = answers[-1]
    assert headers["Retry-After"] == "3"  # a token takes 2.5 s
    assert (headers["Content-Type"], problem["status"]) == (PROBLEM, 429)
    assert (await tenant.send("GET", "/_sandbox/stats"))[0] == 200
    tenant.sandbox.retry_after = False
    status, headers, _ = await tenant.enable("ada")
    assert status == 429
    assert "Retry-After" not in headers
    tenant.sandbox.rate_limit = None
    assert (await tenant.enable("ada"))[0] == 200


async def test_a_refused_request_spends_no_step_and_a_wrong_key_no_token(tenant: Tenant) -> None:
    tenant.sandbox.rate_limit, tenant.sandbox.burst = 0.001, 1
    tenant.sandbox.script("ada", 503, 200)
    await tenant.send("POST", "/api/users/ada/enable", headers={})
    assert [(await tenant.enable("ada"))[0] for _ in range(2)] == [503, 429]
    tenant.sandbox.rate_limit = None
    assert (await tenant.enable("ada"))[0] == 200
    assert (await tenant.enable("ada"))[0] == 200


def test_the_bucket_fills_at_its_rate_and_never_above_its_burst() -> None:
    now = 0.0
    bucket = TokenBucket(clock=lambda: now)
    assert [bucket.take(rate=10, burst=2) for _ in range(3)] == [0, 0, pytest.approx(0.1)]
    now = 0.1
    assert [bucket.take(rate=10, burst=2) for _ in range(2)] == [0, pytest.approx(0.1)]
    now = 1000.0
    assert [bucket.take(rate=10, burst=2) > 0 for _ in range(3)] == [False, False, True]


async def test_the_burst_is_one_second_s_worth_unless_given(tenant: Tenant) -> None:
    tenant.sandbox.rate_limit = 2.5
    statuses = [(await tenant.enable("ada"))[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_the_error_rate_fails_a_repeatable_share_and_writes_nothing(
    http: aiohttp.ClientSession,
) -> None:
    async def failures(seed: int) -> list[str]:
        async with Sandbox(users=map(str, range(60)), error_rate=0.5, seed=seed) as sandbox:
            tenant = Tenant(sandbox, http)
            failed = [i for i in sandbox.user_ids() if (await tenant.enable(i))[0] == 500]
            assert failed == [i for i in sandbox.user_ids() if sandbox.is_disabled(i)]
            return failed

    first = await failures(seed=1)
    assert 15 < len(first) < 45
    assert await failures(seed=1) == first
    assert await failures(seed=2) != first


# The control endpoints


async def test_put_creates_a_user_with_a_script(tenant: Tenant) -> None:
    wanted = {"disabled": True, "script": ["503", "422:identity", 200]}
    status, _, user = await tenant.send("PUT", "/_sandbox/users/a%2Fb", json=wanted)
    assert (status, user["user_id"], user["disabled"]) == (200, "a/b", True)
    assert [(await tenant.enable("a/b"))[0] for _ in range(3)] == [503, 422, 200]


async def test_put_resets_a_user_that_was_touched(tenant: Tenant) -> None:
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
    tenant: Tenant, body: bytes, named: str
) -> None:
    status, headers, problem = await tenant.send("PUT", "/_sandbox/users/eve", data=body)
    assert (status, headers["Content-Type"], problem["status"]) == (400, PROBLEM, 400)
    assert named in problem["detail"]
    assert tenant.sandbox.user("eve") is None


async def test_stats_count_requests_and_connections_but_not_the_control(tenant: Tenant) -> None:
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


async def test_peak_in_flight_is_what_was_served_at_once(tenant: Tenant) -> None:
    tenant.sandbox.latency = 0.05
    await asyncio.gather(*(tenant.enable("ada") for _ in range(7)))
    assert tenant.sandbox.stats().peak_in_flight == 7


# The people


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


def test_given_ids_keep_their_order_and_come_once() -> None:
    assert Sandbox(users=["bob", "ada", "bob"]).user_ids() == ["bob", "ada"]


def test_is_disabled_of_nobody_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        Sandbox().is_disabled("nobody")


# The file, and the life of the server


async def test_another_process_s_connection_sees_who_is_enabled(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    db = tmp_path / "tenant.db"
    async with Sandbox(users=["ada", "bob"], db=db) as sandbox:
        await Tenant(sandbox, http).enable("ada")
        with contextlib.closing(sqlite3.connect(db)) as other:
            rows = other.execute("SELECT user_id, disabled FROM users ORDER BY position").fetchall()
    assert rows == [("ada", 0), ("bob", 1)]


async def test_a_file_with_users_keeps_them(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    db = str(tmp_path / "tenant.db")
    async with Sandbox(users=["ada"], db=db) as sandbox:
        await Tenant(sandbox, http).enable("ada")
        enabled = sandbox.user("ada")
    async with Sandbox(users=100, db=db) as sandbox:
        assert sandbox.user_ids() == ["ada"]
        assert sandbox.user("ada") == enabled


def test_a_seed_that_breaks_off_leaves_the_file_empty(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "ada"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        Sandbox(users=broken(), db=tmp_path / "tenant.db")
    assert Sandbox(db=tmp_path / "tenant.db").user_ids() == []


async def test_a_restart_keeps_the_port_the_users_and_the_counts(tenant: Tenant) -> None:
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
        assert (await Tenant(second, http).enable("ada"))[0] == 200


async def test_stop_does_not_wait_for_a_hanging_request(tenant: Tenant) -> None:
    tenant.sandbox.script("ada", "hang")
    hanging = asyncio.create_task(tenant.enable("ada"))
    await tenant.in_flight(1)
    started = time.monotonic()
    await tenant.sandbox.stop()
    assert time.monotonic() - started < 0.4
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await hanging
    assert tenant.sandbox.stats().in_flight == 0


async def test_stop_lets_an_answer_in_progress_go_out(tenant: Tenant) -> None:
    tenant.sandbox.latency = 0.01
    answer = asyncio.create_task(tenant.enable("ada"))
    await tenant.in_flight(1)
    await tenant.sandbox.stop()
    assert (await answer)[0] == 200


async def test_start_twice_is_refused_and_stop_twice_is_not(tenant: Tenant) -> None:
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


async def test_repr_shows_where_it_is_and_never_the_key(tenant: Tenant) -> None:
    assert tenant.sandbox.url in repr(tenant.sandbox)
    assert tenant.sandbox.api_key not in repr(tenant.sandbox)
    await tenant.sandbox.stop()
    assert "stopped" in repr(tenant.sandbox)
