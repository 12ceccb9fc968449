"""What asks a sandbox and knows nothing of this package."""

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from monocloud_async.sandbox import Sandbox

SAMPLES = Path(__file__).parent / "samples"


TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01")


PROBLEM = "application/problem+json"


class PlainClient:
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


def without_trace(problem: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in problem.items() if key not in {"traceId", "trace_id"}}


def sample(name: str) -> dict[str, Any]:
    return dict(json.loads((SAMPLES / name).read_bytes()))


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
