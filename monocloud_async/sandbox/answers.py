"""What the sandbox answers when it does not answer with a user, and when it is told to."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import socket
import struct
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN_STEPS = (
    "200, a status from 400 to 599, such a status with a Retry-After in seconds (429:2), "
    "422:identity, 422:keyed, reset, cut, hang, html, redirect"
)
STEP = re.compile(
    r"200|[45][0-9]{2}(:[0-9]{1,9})?|422:(identity|keyed)|reset|cut|hang|html|redirect"
)

# Python 3.13 renamed this one; MonoCloud's clients show the title, so it stays what MonoCloud says.
TITLES = {422: "Unprocessable Entity"}

REFUSALS: dict[str, dict[str, Any]] = {
    "identity": {
        "type": "https://httpstatuses.io/422#identity-validation-error",
        "errors": [{"code": "UserLocked", "description": "The user is locked."}],
    },
    "keyed": {
        "type": "https://httpstatuses.io/422#validation-error",
        "errors": {"user_id": ["The user id is malformed."]},
    },
}

JSON = {"Content-Type": "application/json; charset=utf-8"}
CAPTIVE_PORTAL = """<!doctype html>
<title>Guest network</title>
<h1>Welcome!</h1>
<p>Please accept our terms to go online.</p>
"""


def checked_step(step: int | str) -> str:
    """The step of a script as text; ValueError when the sandbox does not know it."""
    if not STEP.fullmatch(str(step)):
        raise ValueError(f"unknown step {step!r}; the sandbox knows: {KNOWN_STEPS}")
    return str(step)


def json_answer(value: object) -> web.Response:
    """A 200 with this value."""
    return web.Response(body=msgspec.json.encode(value), headers=JSON)


async def no_answer() -> web.Response:
    """Never returns: the client leaves, or the sandbox stops, and either cancels it."""
    answer: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()
    return await answer


def scripted(step: str, *, retry_after: int | None) -> web.Response:
    """The answer to a step that neither writes nor breaks the connection."""
    if step == "html":
        return web.Response(text=CAPTIVE_PORTAL, content_type="text/html")
    if step == "redirect":
        # A name that no resolver knows (RFC 6761): a client that follows goes nowhere.
        location = "https://sign-in.invalid/login?return=monocloud"
        return web.Response(status=307, headers={"Location": location})
    status, _, more = step.partition(":")
    if more in REFUSALS:
        return problem(int(status), **REFUSALS[more])
    if more:
        retry_after = int(more)
    elif status != "429":
        retry_after = None
    return problem(
        int(status), detail=f"The script of this user says {step}.", retry_after=retry_after
    )


def problem(
    status: int, *, retry_after: int | None = None, allow: str | None = None, **members: Any
) -> web.Response:
    """A problem body as MonoCloud sends it, `members` added to the usual ones."""
    headers = {"Content-Type": "application/problem+json"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if allow is not None:
        headers["Allow"] = allow
    body = {
        "type": f"https://httpstatuses.io/{status}",
        "title": TITLES.get(status) or _phrase(status),
        "status": status,
        **members,
        # Servers in the field spell it both ways; this one shows its clients both.
        "trace_id" if status == HTTPStatus.UNAUTHORIZED else "traceId": _traceparent(),
    }
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


def cut(response: web.Response) -> web.Response:
    """The same answer, broken off half-way: its length promises more than is sent."""
    body = response.body
    if not isinstance(body, bytes):
        raise TypeError("only bytes can be cut")
    headers = {"Content-Type": response.headers["Content-Type"], "Content-Length": str(len(body))}
    half = web.Response(status=response.status, body=body[: len(body) // 2], headers=headers)
    half.force_close()
    return half


def reset(transport: asyncio.WriteTransport) -> None:
    """The connection dies at once, with an RST in place of a FIN."""
    # Linger on with a time of zero is how a socket is told to forget its peer.
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


class TokenBucket:
    """A rate limit as services have it: `burst` requests at once, then `rate` a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._filled = clock()
        self._tokens = math.inf  # full, whatever burst the first request brings

    def take(self, *, rate: float, burst: int) -> float:
        """The seconds until there is a token: 0.0 when there was one, and it is taken."""
        now = self._clock()
        self._tokens = min(burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / rate
        self._tokens -= 1
        return 0.0


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 520 and its like are sent by proxies and registered nowhere
        return "Unknown Error"


def _traceparent() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
