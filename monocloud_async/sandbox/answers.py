"""The responses of the sandbox other than a user: problems, and scripted faults."""

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

# Newer servers send an `error_code` with these statuses, sometimes. Its values are not documented,
# and these are made up.
ERROR_CODES = {
    400: "bad_request",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
}

# Python 3.13 renamed this phrase; MonoCloud's clients show the title, so keep MonoCloud's.
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

# draft-ietf-httpapi-ratelimit-headers, and the older form, whose reset is in seconds since 1970.
LIMIT_HEADERS = (None, "ratelimit", "x-ratelimit")

JSON = {"Content-Type": "application/json; charset=utf-8"}
CAPTIVE_PORTAL = """<!doctype html>
<title>Guest network</title>
<h1>Welcome!</h1>
<p>Please accept our terms to go online.</p>
"""


def checked_step(step: int | str) -> str:
    """Return the step of a script as text; raises ValueError if the step is unknown."""
    if not STEP.fullmatch(str(step)):
        raise ValueError(f"unknown step {step!r}; the sandbox knows: {KNOWN_STEPS}")
    return str(step)


def json_answer(value: object) -> web.Response:
    """Return a 200 with this value as JSON."""
    return web.Response(body=msgspec.json.encode(value), headers=JSON)


def page_answer(
    users: list[dict[str, Any]], *, total: int, size: int, number: int, header: bool
) -> web.Response:
    """Return a page of a list, with or without the header that says where in the list it is."""
    answer = json_answer(users)
    if header:
        where = {
            "total_count": total,
            "page_size": size,
            "current_page": number,
            "has_next": number * size < total,
            "has_previous": number > 1,
        }
        answer.headers["X-Pagination"] = msgspec.json.encode(where).decode()
    return answer


async def no_answer() -> web.Response:
    """Wait until the client leaves or the sandbox stops, which cancels this coroutine."""
    answer: asyncio.Future[web.Response] = asyncio.get_running_loop().create_future()
    return await answer


def scripted(step: str, *, retry_after: int | None) -> web.Response:
    """Return the response for a step that neither changes a user nor breaks the connection."""
    if step == "html":
        return web.Response(text=CAPTIVE_PORTAL, content_type="text/html")
    if step == "redirect":
        # A reserved name that never resolves (RFC 6761), in case a client follows.
        location = "https://sign-in.invalid/login?return=monocloud"
        return web.Response(status=307, headers={"Location": location})
    status, _, more = step.partition(":")
    if more in REFUSALS:
        return problem(int(status), **REFUSALS[more])
    if more:
        retry_after = int(more)
    elif status != "429":
        retry_after = None
    code = ERROR_CODES.get(int(status))
    members = {} if code is None else {"error_code": code}
    detail = f"The script of this user says {step}."
    return problem(int(status), detail=detail, retry_after=retry_after, **members)


def problem(
    status: int, *, retry_after: int | None = None, allow: str | None = None, **members: Any
) -> web.Response:
    """Return a problem response as MonoCloud sends it, with these members added."""
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
        # Real servers use either spelling, so clients of the sandbox meet both.
        "trace_id" if status == HTTPStatus.UNAUTHORIZED else "traceId": _traceparent(),
    }
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


def cut(response: web.Response) -> web.Response:
    """Return the response cut in half, with the Content-Length of the whole body."""
    body = response.body
    if not isinstance(body, bytes):
        raise TypeError("only bytes can be cut")
    headers = {"Content-Type": response.headers["Content-Type"], "Content-Length": str(len(body))}
    half = web.Response(status=response.status, body=body[: len(body) // 2], headers=headers)
    half.force_close()
    return half


def reset(transport: asyncio.WriteTransport) -> None:
    """Abort the connection with a TCP RST instead of a FIN."""
    # SO_LINGER with a time of zero makes close() send an RST.
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


class TokenBucket:
    """A token bucket: allows `burst` requests at once, then `rate` requests per second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._filled = clock()
        self._tokens = math.inf  # full, for any burst

    def take(self, *, rate: float, burst: int) -> float:
        """Take a token and return 0.0, or return the seconds until there is one."""
        self._fill(rate, burst)
        if self._tokens < 1:
            return (1 - self._tokens) / rate
        self._tokens -= 1
        return 0.0

    def headers(self, form: str, *, rate: float, burst: int) -> dict[str, str]:
        """Return the headers that say how many tokens there are, and when it will be full.

        The form is one of `LIMIT_HEADERS`.
        """
        self._fill(rate, burst)
        tokens, full = int(self._tokens), math.ceil((burst - self._tokens) / rate)
        if form == "ratelimit":
            seconds = max(1, math.ceil(burst / rate))
            return {
                "RateLimit-Policy": f'"default";q={burst};w={seconds}',
                "RateLimit": f'"default";r={tokens};t={full}',
            }
        return {
            "X-RateLimit-Limit": str(burst),
            "X-RateLimit-Remaining": str(tokens),
            "X-RateLimit-Reset": str(math.ceil(time.time()) + full),
        }

    def _fill(self, rate: float, burst: int) -> None:
        now = self._clock()
        self._tokens = min(burst, self._tokens + (now - self._filled) * rate)
        self._filled = now


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # proxies send unregistered ones such as 520
        return "Unknown Error"


def _traceparent() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
