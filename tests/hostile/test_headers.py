"""Headers of up to 64 KiB are read, on every path; longer ones give an error that says so."""

import pytest
from clients import run
from faults import USER
from raw_server import Peer, RawServer, answering, http
from secrets_search import KEY
from test_segments import arrived
from ways import Way, session_by

import monocloud_async as m

KIB = 1 << 10


def lines(size: int, number: int) -> list[bytes]:
    """Return this many header lines, with this many bytes in total."""
    return [(b"X-%d: " % line).ljust(size // number - 2, b"y") for line in range(number)]


def policy(size: int) -> list[bytes]:
    """Return a header line as gateways add it."""
    return [b"Content-Security-Policy: ".ljust(size, b"y")]


READ = {
    "one of 9 KB": policy(9_000),
    "one of 60 KB": policy(60_000),
    "150 of them": lines(1_500, 150),
    "1,000 of 60 bytes": lines(60_000, 1_000),
    "30 of 2 KB": lines(60_000, 30),
}
TOO_LONG = {
    "one of 70 KB": policy(70_000),
    "one of 1 MB": policy(1_000_000),
    "two of 40 KB": policy(40_000) * 2,
    "1,000 of 80 bytes": lines(80_000, 1_000),
    "20,000 short ones": lines(200_000, 20_000),
}
# aiohttp's own connectors have no limit in bytes, so the number of lines is limited.
UNCOUNTED = lines(48_000, 4_000)
every_way = pytest.mark.parametrize("way", ["fast", "hooked", "lent", "theirs"])
# What the server sends at once.
pieces = pytest.mark.parametrize("piece", [1 << 30, 1_000])


async def in_pieces(peer: Peer, answer: bytes, size: int) -> None:
    for start in range(0, len(answer), size):
        await peer.send(answer[start : start + size])
        await arrived()


@every_way
@pieces
@pytest.mark.parametrize("headers", READ)
@pytest.mark.parametrize("status", [200, 404])
def test_headers_up_to_64_kib_are_read(way: Way, headers: str, piece: int, status: int) -> None:
    answer = http(USER, *READ[headers], status=status)
    assert len(answer) < 64 * KIB

    async def act(peer: Peer) -> None:
        while True:
            await peer.request()
            await in_pieces(peer, answer, piece)

    async def main() -> None:
        async with RawServer(act) as server, session_by(way, server.url, KEY) as session:
            for _ in range(3):
                if status == 200:
                    assert (await session.enable_user("ada")).user_id == "ada"
                else:
                    with pytest.raises(m.NotFoundError):
                        await session.enable_user("ada")
            assert (server.connections, len(server.requests)) == (1, 3)

    run(main())


@pytest.mark.parametrize("way", ["fast", "hooked", "lent"])
def test_many_short_headers_are_read(way: Way) -> None:
    async def main() -> None:
        answers = answering(http(USER, *UNCOUNTED))
        async with RawServer(answers) as server, session_by(way, server.url, KEY) as session:
            assert (await session.enable_user("ada")).user_id == "ada"

    run(main())


def test_aiohttps_own_connector_reads_fewer_lines_and_the_error_says_so() -> None:
    async def main() -> None:
        answers = answering(http(USER, *UNCOUNTED))
        async with RawServer(answers) as server, session_by("theirs", server.url, KEY) as session:
            with pytest.raises(m.TransportError, match="have more lines than are read") as caught:
                await session.enable_user("ada")
            assert "64 KiB" not in str(caught.value)
            assert not caught.value.transient

    run(main())


@every_way
@pieces
@pytest.mark.parametrize("headers", TOO_LONG)
def test_headers_beyond_64_kib_are_an_error_that_says_so(
    way: Way, headers: str, piece: int
) -> None:
    """The error is not retried, and no sign of an outage: the tenant did the operation."""
    answer = http(USER, *TOO_LONG[headers])
    says = "headers are longer than 64 KiB"
    if headers.startswith("20,000"):
        says += "|headers have more lines than are read"

    async def act(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if b"/ada/" in request:
                await in_pieces(peer, answer, piece)
            else:
                await peer.send(http(b'{"user_id":"bob"}'))

    async def main() -> None:
        async with RawServer(act) as server, session_by(way, server.url, KEY) as session:
            with pytest.raises(m.TransportError, match=says) as caught:
                await session.enable_user("ada")
            assert not caught.value.transient
            assert (caught.value.attempts, len(server.requests)) == (1, 1)
            report = await session.bulk_enable(["ada", "bob"] * 50, max_outage=1)
            assert (report.enabled, report.retries, session.pace.down) == (50, 0, False)

    run(main())
