"""One request and its answer through `aiohttp.ClientSession`: the ordinary path of every call."""

import math
from typing import Final

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from monocloud_async.tenant import Credentials
from monocloud_async.wire import longest

CONNECTING: Final = 0.9  # of the time of a request
# aiohttp would call an empty body an octet-stream.
SKIPPED_HEADERS: Final = ("Content-Type",)

Answer = tuple[int, CIMultiDictProxy[str], bytes]


async def exchange(
    client: aiohttp.ClientSession, url: str, credentials: Credentials, timeout: float
) -> Answer:
    """The answer: its status, its headers, and as much of its body as is worth reading."""
    async with client.post(
        URL(url, encoded=True),
        headers=credentials.headers,
        skip_auto_headers=SKIPPED_HEADERS,
        # aiohttp sends custom headers, the key among them, wherever a redirect points.
        allow_redirects=False,
        raise_for_status=False,
        timeout=limits(timeout),
    ) as response:
        status = response.status
        body, whole = await read_body(response.content, status)
        if not whole:
            response.close()  # the rest is not worth its bytes
        return status, response.headers, body


def limits(timeout: float) -> aiohttp.ClientTimeout:
    """What aiohttp has to know of a timeout in seconds."""
    return aiohttp.ClientTimeout(
        total=timeout,
        # Whoever has no connection by then would have no answer either, and this one tells that
        # nothing was sent.
        connect=CONNECTING * timeout,
        # aiohttp rounds timeouts from this threshold on up to whole seconds.
        ceil_threshold=math.inf,
    )


async def read_body(content: aiohttp.StreamReader, status: int) -> tuple[bytes, bool]:
    """The body, decompressed, at most one chunk more than is worth reading; is it all of it?

    `response.read()` has no bound: a gzip of 1 MiB made it spend 2 GiB.
    """
    chunks: list[bytes] = []
    size, most = 0, longest(status)
    try:
        while size <= most and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    except aiohttp.ClientPayloadError:
        if status == 200:  # noqa: PLR2004  a user that was cut short is no user
            raise
        return b"", True  # the status says enough
    return b"".join(chunks), size <= most
