"""A FastAPI application that gives users their access back.

Start it:  uvicorn web_fastapi:app
"""

import logging
import math
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse

from monocloud_async import MonoCloudError, MonoCloudSession, RetryPolicy, errors

USUAL, LONGEST = 10, 20  # seconds that a caller waits; a shutdown may take the longest
ON_THE_WAY = 0.1  # seconds of them, for our own answer
LATER = "Try again later: enabling twice is harmless."

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, MonoCloudSession], None]:
    async with MonoCloudSession() as session:
        yield {"session": session}


async def opened(request: Request) -> MonoCloudSession:  # async, or it would run in a thread
    session: MonoCloudSession = request.state.session
    return session


async def patience(prefer: Annotated[str, Header()] = "") -> RetryPolicy:
    """As long as the caller waits: `Prefer: wait=5`, in seconds (RFC 7240, section 4.3)."""
    found = re.search(r"(?:^|[\s,])wait=([0-9]{1,4})", prefer)
    seconds = min(max(int(found[1]), 1), LONGEST) if found else USUAL
    return RetryPolicy(total=seconds - ON_THE_WAY)


Session = Annotated[MonoCloudSession, Depends(opened)]
Patience = Annotated[RetryPolicy, Depends(patience)]

app = FastAPI(lifespan=lifespan)


@app.post("/users/{user_id}/enable")
async def enable(user_id: str, session: Session, patience: Patience) -> dict[str, str]:
    user = await session.enable_user(user_id, retry=patience)
    return {"enabled": user.user_id}  # the rest of the user, `private_data` too, stays here


@app.get("/ready")
async def ready(session: Session) -> JSONResponse:
    if wait := session.pace.pause_left:  # after a 429, or because the tenant is down
        return problem(503, LATER, wait)
    return JSONResponse({"ready": True})


@app.exception_handler(MonoCloudError)
async def refused(_: Request, error: MonoCloudError) -> JSONResponse:
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


def problem(status: int, detail: str, wait: float | None = None) -> JSONResponse:
    """An answer as RFC 9457 has it."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = None if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
