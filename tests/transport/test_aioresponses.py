"""Users' own tests: `ClientSession` is mocked with aioresponses, and all of ours works on it."""

from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses
from conftest import QUICK
from yarl import URL

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.sandbox import Sandbox

TENANT = "https://acme.eu.monocloud.com"
KEY = "sentinel-key-4711"


class MockedResponse(aiohttp.ClientResponse):
    """What docs/testing.md has: aioresponses gives no `stream_writer`, which aiohttp requires."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=Mock(), **kwargs)


def url_of(user_id: str) -> str:
    return f"{TENANT}/api/users/{user_id}/enable"


def answers(mocked: aioresponses, user_id: str = "ada", **answer: Any) -> None:
    """What the next request for this user is answered."""
    if not answer.keys() & {"status", "exception"}:
        answer["payload"] = {"user_id": user_id, "disabled": False}
    mocked.post(url_of(user_id), response_class=MockedResponse, **answer)


def requests(mocked: aioresponses, user_id: str = "ada") -> list[dict[str, Any]]:
    """The options of the requests that were made for this user."""
    return [call.kwargs for call in mocked.requests.get(("POST", URL(url_of(user_id))), [])]


def session_of(**options: Any) -> MonoCloudSession:
    settings: dict[str, Any] = {"retry": QUICK, **options}
    return MonoCloudSession("acme.eu.monocloud.com", KEY, **settings)


@pytest.mark.parametrize("lent", [False, True], ids=["its own", "lent"])
async def test_a_user_is_enabled_by_one_request_that_has_the_key(
    lent: bool,  # noqa: FBT001  a table
) -> None:
    with aioresponses() as mocked:
        answers(mocked)
        async with (
            aiohttp.ClientSession() as client,
            session_of(client_session=client if lent else None) as session,
        ):
            user = await session.enable_user("ada")
        (request,) = requests(mocked)
    assert (user.user_id, user.disabled) == ("ada", False)
    assert request["headers"]["X-API-KEY"] == KEY
    assert request["headers"]["Accept"] == "application/json, application/problem+json"
    assert request["allow_redirects"] is False


async def test_a_session_that_made_calls_before_is_mocked_too(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        await session.enable_user(user_id)
        with aioresponses() as mocked:
            mocked.post(f"{sandbox.url}/api/users/{user_id}/enable", status=404,
                        response_class=MockedResponse)  # fmt: skip
            with pytest.raises(m.NotFoundError):
                await session.enable_user(user_id)
        await session.enable_user(user_id)
    assert sandbox.stats().requests == 2


async def test_a_refusal_is_the_error_of_its_status() -> None:
    problem = {"title": "Not Found", "detail": "The user was not found", "status": 404}
    with aioresponses() as mocked:
        answers(mocked, status=404, payload=problem, content_type="application/problem+json")
        async with session_of() as session:
            with pytest.raises(m.NotFoundError, match="404 Not Found: The user was not found"):
                await session.enable_user("ada")
        assert len(requests(mocked)) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 503}, m.ServerError),
        ({"status": 429, "headers": {"Retry-After": "0"}}, m.RateLimitedError),
        ({"exception": TimeoutError()}, m.RequestTimeoutError),
        ({"exception": aiohttp.ServerDisconnectedError()}, m.TransportError),
        ({"exception": aiohttp.ClientPayloadError("half")}, m.TransportError),
        ({"exception": ConnectionResetError(104, "Connection reset by peer")}, m.TransportError),
    ],
)
async def test_what_passes_is_tried_again(
    answer: dict[str, Any], error: type[m.MonoCloudError]
) -> None:
    with aioresponses() as mocked:
        answers(mocked, **answer)
        answers(mocked, **answer)
        answers(mocked)
        async with session_of() as session:
            with pytest.raises(error) as caught:
                await session.enable_user("ada", retry=RetryPolicy(attempts=1))
            assert caught.value.attempts == 1
            assert (await session.enable_user("ada")).user_id == "ada"
        assert len(requests(mocked)) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 422}, m.UnprocessableError),
        ({"status": 200, "body": "<html>"}, m.InvalidResponseError),
        ({"status": 200, "payload": {"user_id": "bob"}}, m.InvalidResponseError),
        ({"status": 307, "headers": {"Location": "https://b.com/"}}, m.InvalidResponseError),
        ({"exception": aiohttp.InvalidURL("x")}, m.ConfigurationError),
    ],
)
async def test_what_does_not_pass_is_not(
    answer: dict[str, Any], error: type[m.MonoCloudError]
) -> None:
    with aioresponses() as mocked:
        answers(mocked, **answer)
        answers(mocked)
        async with session_of() as session:
            with pytest.raises(error):
                await session.enable_user("ada")
        assert len(requests(mocked)) == 1


async def test_a_request_that_nobody_mocked_is_an_error_of_ours() -> None:
    with aioresponses():
        async with session_of(retry=RetryPolicy(attempts=1)) as session:
            with pytest.raises(m.TransportError, match="the request failed"):
                await session.enable_user("ada")


async def test_a_run_counts_what_the_mocks_answer() -> None:
    ids = [f"u{number}" for number in range(20)]
    with aioresponses() as mocked:
        for user_id in ids[2:]:
            answers(mocked, user_id)
        answers(mocked, "u0", status=404)
        answers(mocked, "u1", status=503)
        answers(mocked, "u1", status=429, headers={"Retry-After": "0"})
        answers(mocked, "u1")
        async with session_of() as session:
            report = await session.bulk_enable(ids, concurrency=4)
        sent = sum(len(requests(mocked, user_id)) for user_id in ids)
    assert (report.total, report.enabled, report.failed) == (20, 19, 1)
    assert (report.requests, report.retries, report.throttled) == (sent, 1, 1) == (22, 1, 1)


async def test_what_is_passed_through_reaches_the_server(sandbox: Sandbox) -> None:
    user_id = sandbox.user_ids()[0]
    with aioresponses(passthrough=[sandbox.url]) as mocked:
        answers(mocked)
        async with (
            MonoCloudSession(sandbox.url, sandbox.api_key) as session,
            session_of() as other,
        ):
            assert (await session.enable_user(user_id)).user_id == user_id
            assert (await other.enable_user("ada")).user_id == "ada"
    assert not sandbox.is_disabled(user_id)
    assert sandbox.stats().requests == 1
