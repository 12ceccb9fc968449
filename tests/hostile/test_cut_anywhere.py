"""A response that ends, breaks or stalls at any byte gives the user or one of our errors."""

import asyncio

import pytest
from clients import nothing_left_behind, run
from faults import USER, chunked
from invariants import is_alone
from raw_server import Peer, RawServer, http
from secrets_search import KEY

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy

ANSWERS = {
    "with a length": http(USER),
    "in chunks": chunked(USER[:5], USER[5:]),
    "without a length": http(USER, length=False),
    "a refusal": http(b'{"title":"No"}', status=404),
}


def expected_error(framing: str, end: str, upto: int) -> type[m.MonoCloudError] | None:
    """Return the expected result if only this many bytes of the response arrive."""
    answer = ANSWERS[framing]
    body_at, whole = answer.index(b"\r\n\r\n") + 4, upto == len(answer)
    late = m.RequestTimeoutError if end == "stall" else m.TransportError
    match framing:
        case _ if upto < body_at:
            return late
        case "a refusal":  # its status is valid even without its body
            return late if end == "stall" and not whole else m.NotFoundError
        case "without a length" if end == "stall":
            return late  # only the end of the connection ends this response
        case "without a length" if upto == body_at:
            return m.InvalidResponseError  # it looks like an empty foreign page
    return None if whole else late


@pytest.mark.parametrize("end", ["close", "reset", "stall"])
@pytest.mark.parametrize("framing", ANSWERS)
def test_an_answer_that_ends_at_any_byte(framing: str, end: str) -> None:
    answer = ANSWERS[framing]
    upto = 0

    async def act(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer[:upto])
        if end == "reset":
            # The data must arrive first, because an RST discards data on its way.
            await asyncio.sleep(0.01)
            peer.reset()
        if end == "stall":
            await peer.silence()

    async def main() -> None:
        nonlocal upto
        policy = RetryPolicy(attempts=1)
        async with nothing_left_behind(), RawServer(act) as server:
            async with MonoCloudSession(server.url, KEY, retry=policy, timeout=1.0) as session:
                for upto in range(len(answer) + 1):
                    error = None
                    try:
                        assert (await session.enable_user("ada")).user_id == "ada"
                    except m.MonoCloudError as caught:
                        error = caught
                        is_alone(error)
                    expected = expected_error(framing, end, upto)
                    assert error is None if expected is None else type(error) is expected, upto
            assert len(server.requests) == len(answer) + 1

    run(main())
