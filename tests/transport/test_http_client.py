"""The HTTP client of a session: the client that it borrows, proxies, and what was not sent."""

import asyncio
import re
import socket
from socket import AF_INET, AF_INET6, AddressFamily

import aiohttp
import pytest
import samples
from raw_server import RawServer, answering, http
from sessions import KEY, NEVER, session_for

import monocloud_async as m
from monocloud_async import MonoCloudSession
from monocloud_async.sandbox import Sandbox


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    async with RawServer(answering(http(samples.user("u")))) as thief:
        answer = http(b"", f"Location: {thief.url}/api/users/u/enable".encode(), status=status)
        async with RawServer(answering(answer)) as server, session_for(server.url) as session:
            with pytest.raises(m.InvalidResponseError, match=f"redirect .{status}.") as caught:
                await session.enable_user("u")
    assert caught.value.foreign
    assert thief.requests == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection_was_never_sent() -> None:
    async with session_for(f"http://127.0.0.1:{free_port()}") as session:
        with pytest.raises(m.TransportError, match="could not connect") as caught:
            await session.enable_user("u")
    assert not caught.value.sent
    assert caught.value.transient


async def test_a_name_that_does_not_exist_was_never_sent() -> None:
    async with session_for("no-such-tenant.invalid") as session:
        with pytest.raises(m.TransportError, match="host name") as caught:
            await session.enable_user("u")
    assert not caught.value.sent


async def test_refusals_are_read_so_that_the_connection_is_kept(sandbox: Sandbox) -> None:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER) as session:
        for step in (200, 404, 503, 429, "422:keyed"):
            user_id = sandbox.user_ids()[0]
            sandbox.script(user_id, step)
            if step == 200:
                await session.enable_user(user_id)
            else:
                with pytest.raises(m.StatusError):
                    await session.enable_user(user_id)
    assert sandbox.stats().connections == 1


async def test_a_borrowed_client_session_is_used_and_stays_open(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession(headers={"X-Trace": "1"}, raise_for_status=True) as client:
        session = MonoCloudSession(sandbox.url, sandbox.api_key, retry=NEVER, client_session=client)
        async with session:
            await session.enable_user(sandbox.user_ids()[0])
            with pytest.raises(m.NotFoundError):  # its raise_for_status would raise aiohttp's own
                await session.enable_user("nobody")
        assert not client.closed


BAD_PROXIES = [
    *("http://eve:hunter2@a..b:9", "eve:hunter2@127.0.0.1:9", "socks5://eve:hunter2@p:9"),
    *("http://eve:hunter2@[x", "http://eve:hunter2@p:x", "http://eve:hunter2@p:99999"),
    *("http://eve:hun#ter2@p:9", "http://eve:12/hunter2@p:9", "http://eve:hunter2@p q:9"),
    *("http://eve:hunter2@:9", "http://eve:hunter2@p:0", "http://eve:hunter2@1.2.3.4.5:9"),
    *("http://eve%3a:hunter2@p:9", "http://eve:hunter2\u20ac@p:9"),
]


BAD = "(must be|has a user or a password that cannot be sent)"


@pytest.mark.parametrize("proxy", BAD_PROXIES)
async def test_a_borrowed_client_session_with_a_malformed_proxy_says_so(proxy: str) -> None:
    async with aiohttp.ClientSession(proxy=proxy) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(
            m.ConfigurationError, match=f"the proxy of the client_session {BAD}"
        ) as caught:
            await session.enable_user("u")
    assert not {"hunter2", "hun"} & set(re.findall("[a-z0-9]+", str(caught.value)))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize("proxy", BAD_PROXIES)
async def test_a_malformed_proxy_of_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, proxy: str, name: str
) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv(name, proxy)
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.ConfigurationError, match=f"{name} {BAD}") as caught:
            await session.enable_user("u")
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        with pytest.raises(m.RunStoppedError, match=f"{name} {BAD}"):
            await session.bulk_enable(["u", "v"])


async def test_a_malformed_proxy_that_aiohttp_reads_along_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WS_PROXY", "http://[x")
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.ConfigurationError, match="WS_PROXY must be"):
            await session.enable_user("u")


@pytest.mark.parametrize("way", ["its own", "HTTP_PROXY", "http_proxy", "HTTP_PROXY, set later"])
async def test_the_key_goes_to_no_proxy_in_clear(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with RawServer(answering(http(b"", status=407))) as proxy:
        own = proxy.url if way == "its own" else None
        async with aiohttp.ClientSession(proxy=own, trust_env=True) as client:
            session = MonoCloudSession(
                sandbox.url, sandbox.api_key, client_session=client, retry=NEVER
            )
            if "later" in way:
                await session.enable_user(sandbox.user_ids()[0])
            if own is None:
                monkeypatch.setenv(way.partition(",")[0], proxy.url)
            with pytest.raises(m.ConfigurationError, match="the API key in clear text"):
                await session.enable_user(sandbox.user_ids()[0])
            with pytest.raises(m.RunStoppedError, match="the API key in clear text"):
                await session.bulk_enable(sandbox.user_ids())
            if own is None:
                monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
                assert await session.enable_user(sandbox.user_ids()[0])
        assert proxy.requests == []


@pytest.mark.parametrize(("host", "family"), [("[::1]", AF_INET), ("127.0.0.1", AF_INET6)])
async def test_a_borrowed_connector_of_another_family_says_so(
    host: str, family: AddressFamily
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(family=family)) as client:
        session = MonoCloudSession(f"http://{host}:9", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.MonoCloudError):
            await session.enable_user("u")
        with pytest.raises(m.RunStoppedError) as caught:
            await session.bulk_enable(["u", "v"], max_outage=0.1)
        assert caught.value.report.enabled == 0


async def test_a_host_that_is_not_found_is_named_be_it_the_proxys() -> None:
    async with aiohttp.ClientSession(proxy="http://proxy.invalid:9") as client:
        session = MonoCloudSession("acme.invalid", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.TransportError, match=r"the host name proxy\.invalid could not"):
            await session.enable_user("u")


def test_a_borrowed_client_session_of_another_loop_says_so() -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def use(client: aiohttp.ClientSession) -> None:
        session = MonoCloudSession("http://127.0.0.1:9", KEY, client_session=client, retry=NEVER)
        with pytest.raises(m.MonoCloudError) as caught:
            await session.enable_user("u")
        assert caught.value.__context__ is None
        with pytest.raises(m.RunStoppedError):
            await session.bulk_enable(["u", "v"])

    with asyncio.Runner() as first, asyncio.Runner() as second:
        client = first.run(make())
        second.run(use(client))
        first.run(client.close())
