"""What the tenant on this machine answers: scripts, and faults of the whole tenant."""

import asyncio
import re
import time

import aiohttp
import pytest
from multidict import CIMultiDict
from plain_client import PROBLEM, PlainClient, raw, sample, without_trace
from yarl import URL

from monocloud_async.ratelimit.hints import read_hint
from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.answers import TokenBucket


async def test_a_script_is_consumed_step_by_step_and_then_all_is_normal(
    tenant: PlainClient,
) -> None:
    tenant.sandbox.script("ada", 503, "404", 200, 500)
    statuses = [(await tenant.enable("ada"))[0] for _ in range(5)]
    assert statuses == [503, 404, 200, 500, 200]


async def test_a_script_is_one_user_s_and_only_about_enable(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", 503)
    assert (await tenant.enable("bob"))[0] == 200
    assert (await tenant.send("GET", "/api/users/ada"))[0] == 200
    assert (await tenant.send("POST", "/api/users/ada/disable"))[0] == 200
    assert (await tenant.enable("ada"))[0] == 503


async def test_a_scripted_status_writes_nothing_until_a_scripted_200_does(
    tenant: PlainClient,
) -> None:
    tenant.sandbox.script("ada", 503, 200)
    await tenant.enable("ada")
    assert tenant.sandbox.is_disabled("ada")
    await tenant.enable("ada")
    assert not tenant.sandbox.is_disabled("ada")


async def test_a_new_script_replaces_the_old_and_an_empty_one_ends_it(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", 500, 500)
    tenant.sandbox.script("ada", 503)
    assert (await tenant.enable("ada"))[0] == 503
    tenant.sandbox.script("bob", 500)
    tenant.sandbox.script("bob")
    assert (await tenant.enable("bob"))[0] == 200


async def test_add_user_resets_the_user_and_its_script(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", 500)
    tenant.sandbox.add_user("ada", disabled=False)
    assert not tenant.sandbox.is_disabled("ada")
    assert (await tenant.enable("ada"))[0] == 200


async def test_a_script_for_nobody_makes_the_user(tenant: PlainClient) -> None:
    tenant.sandbox.script("eve", 503)
    assert [(await tenant.enable("eve"))[0] for _ in range(2)] == [503, 200]
    assert tenant.sandbox.user_ids() == ["ada", "bob", "eve"]


@pytest.mark.parametrize(
    "step",
    [0, 100, 201, 302, 600, 1000, True, "", "ok", "200:1", "422:other", "429:", "429:x", "5ö3"],
)
async def test_an_unknown_step_is_refused_at_once_with_the_known_ones(
    tenant: PlainClient, step: int | str
) -> None:
    with pytest.raises(ValueError, match=r"422:identity, 422:keyed, reset, cut, hang"):
        tenant.sandbox.script("ada", 503, step)
    assert (await tenant.enable("ada"))[0] == 200


@pytest.mark.parametrize("status", [400, 402, 403, 409, 418, 422, 500, 503, 520, 599])
async def test_a_scripted_status_is_a_problem_with_that_status(
    tenant: PlainClient, status: int
) -> None:
    tenant.sandbox.script("ada", status)
    answered, headers, problem = await tenant.enable("ada")
    assert (answered, headers["Content-Type"], problem["status"]) == (status, PROBLEM, status)
    assert problem["type"] == f"https://httpstatuses.io/{status}"
    assert problem["title"]
    assert "Retry-After" not in headers


@pytest.mark.parametrize("kind", ["identity", "keyed"])
async def test_both_kinds_of_422_are_the_samples(tenant: PlainClient, kind: str) -> None:
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
    tenant: PlainClient, step: int | str, *, says_when: bool, retry_after: str | None
) -> None:
    tenant.sandbox.retry_after = says_when
    tenant.sandbox.script("ada", step)
    assert (await tenant.enable("ada"))[1].get("Retry-After") == retry_after


async def test_html_is_a_200_that_wrote_nothing(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "html")
    status, headers, body = await tenant.enable("ada")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")
    assert tenant.sandbox.is_disabled("ada")


async def test_redirect_is_a_307_to_another_origin(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "redirect")
    status, headers, _ = await tenant.enable("ada")
    assert status == 307
    assert URL(headers["Location"]).host == "sign-in.invalid"
    assert tenant.sandbox.is_disabled("ada")


async def test_reset_ends_the_connection_with_an_rst(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "reset")
    with pytest.raises(ConnectionResetError):  # a FIN would be an empty answer
        await raw(tenant.sandbox, "POST /api/users/ada/enable HTTP/1.1")
    assert tenant.sandbox.is_disabled("ada")


async def test_cut_promises_more_than_it_sends_and_the_write_has_happened(
    tenant: PlainClient,
) -> None:
    tenant.sandbox.script("ada", "cut")
    answer = await raw(tenant.sandbox, "POST /api/users/ada/enable HTTP/1.1")
    head, _, body = answer.partition(b"\r\n\r\n")
    promised = re.search(rb"Content-Length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert promised is not None
    assert 0 < len(body) < int(promised[1])
    assert not tenant.sandbox.is_disabled("ada")


async def test_cut_breaks_a_kept_alive_connection_too(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "cut")
    with pytest.raises(aiohttp.ClientPayloadError):
        await tenant.enable("ada")


async def test_hang_never_answers_and_ends_when_the_client_leaves(tenant: PlainClient) -> None:
    tenant.sandbox.script("ada", "hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await tenant.enable("ada")
    await tenant.in_flight(0)
    assert tenant.sandbox.is_disabled("ada")
    assert tenant.sandbox.stats().by_status == {"none": 1}


# Faults of the whole tenant


async def test_latency_delays_every_answer(tenant: PlainClient) -> None:
    tenant.sandbox.latency = 0.05
    started = time.monotonic()
    await tenant.enable("ada")
    assert time.monotonic() - started >= 0.05


async def test_the_rate_limit_lets_a_burst_through_and_then_says_when(tenant: PlainClient) -> None:
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


@pytest.mark.parametrize("form", ["ratelimit", "x-ratelimit"])
async def test_answers_say_how_many_requests_remain(tenant: PlainClient, form: str) -> None:
    tenant.sandbox.rate_limit, tenant.sandbox.burst = 0.001, 3
    assert not any("RateLimit" in name for name in (await tenant.enable("ada"))[1])
    tenant.sandbox.limit_headers = form
    found = [await tenant.enable("ada") for _ in range(3)]
    assert [status for status, _, _ in found] == [200, 200, 429]
    hints = [read_hint(CIMultiDict(headers), time.time()) for _, headers, _ in found]
    assert [hint and hint.remaining for hint in hints] == [1, 0, 0]
    assert [hint and hint.reset for hint in hints] == [
        pytest.approx(seconds, abs=3) for seconds in (2000, 3000, 3000)
    ]


def test_unknown_headers_of_a_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="x-ratelimit"):
        Sandbox(limit_headers="guess")


async def test_a_refused_request_spends_no_step_and_a_wrong_key_no_token(
    tenant: PlainClient,
) -> None:
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


async def test_the_burst_is_one_second_s_worth_unless_given(tenant: PlainClient) -> None:
    tenant.sandbox.rate_limit = 2.5
    statuses = [(await tenant.enable("ada"))[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_the_error_rate_fails_a_repeatable_share_and_writes_nothing(
    http: aiohttp.ClientSession,
) -> None:
    async def failures(seed: int) -> list[str]:
        async with Sandbox(users=map(str, range(60)), error_rate=0.5, seed=seed) as sandbox:
            tenant = PlainClient(sandbox, http)
            failed = [i for i in sandbox.user_ids() if (await tenant.enable(i))[0] == 500]
            assert failed == [i for i in sandbox.user_ids() if sandbox.is_disabled(i)]
            return failed

    first = await failures(seed=1)
    assert 15 < len(first) < 45
    assert await failures(seed=1) == first
    assert await failures(seed=2) != first
