"""An aiohttp application that gives users their access back.

Start it:  python web_aiohttp.py
"""

import logging
import math
import os
import re
from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from monocloud_async import MonoCloudError, MonoCloudSession, RetryPolicy, errors

SESSION = web.AppKey("SESSION", MonoCloudSession)
USUAL, LONGEST = 10, 20  # seconds that a caller waits; a shutdown may take the longest
ON_THE_WAY = 0.1  # seconds of them, for our own answer
LATER = "Try again later: enabling twice is harmless."

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    async with MonoCloudSession() as session:
        app[SESSION] = session
        yield


def patience(prefer: str) -> RetryPolicy:
    """As long as the caller waits: `Prefer: wait=5`, in seconds (RFC 7240, section 4.3)."""
    found = re.search(r"(?:^|[\s,])wait=([0-9]{1,4})", prefer)
    seconds = min(max(int(found[1]), 1), LONGEST) if found else USUAL
    return RetryPolicy(total=seconds - ON_THE_WAY)


@routes.post("/users/{user_id}/enable")
async def enable(request: web.Request) -> web.Response:
    session, retry = request.app[SESSION], patience(request.headers.get("Prefer", ""))
    user = await session.enable_user(request.match_info["user_id"], retry=retry)
    # The rest of the user, `private_data` too, stays here.
    return web.json_response({"enabled": user.user_id})


@routes.get("/ready")
async def ready(request: web.Request) -> web.Response:
    session = request.app[SESSION]
    if wait := session.pace.pause_left:  # after a 429, or because the tenant is down
        return problem(503, LATER, wait)
    return web.json_response({"ready": True})


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MonoCloudError as error:
        return refused(error)


def refused(error: MonoCloudError) -> web.Response:
    match error:
        case errors.InvalidUserIdError():
            return problem(400, str(error))
        case errors.NotFoundError() | errors.ConflictError() | errors.UnprocessableError():
            return problem(error.status, str(error))
        case _:
            logger.error("%s", error)
    match error:
        case (
            errors.ConfigurationError()
            | errors.UnauthorizedError()
            | errors.PaymentRequiredError()
            | errors.ForbiddenError()
        ):
            return problem(500, "The log says why.")
        case errors.RateLimitedError() | errors.ServerError(retry_after=float()):
            return problem(503, LATER, error.retry_after or 1)  # not 429: it is not this caller
        case errors.RequestTimeoutError():
            return problem(504, LATER)
        case _:
            return problem(502, LATER)


def problem(status: int, detail: str, wait: float | None = None) -> web.Response:
    """An answer as RFC 9457 has it."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = None if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
    kind = "application/problem+json"
    return web.json_response(body, status=status, headers=headers, content_type=kind)


app = web.Application(middlewares=[refusals])
app.cleanup_ctx.append(lifespan)
app.add_routes(routes)

if __name__ == "__main__":
    # The default backlog of 128 lets some of 200 callers at once connect a second late.
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), backlog=1024)
