"""A Litestar application that gives users their access back.

Start it:  uvicorn web_litestar:app
"""

import logging
import math
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus

from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromHeader, FromPath
from litestar.plugins import problem_details

from monocloud_async import MonoCloudError, MonoCloudSession, RetryPolicy, errors

USUAL, LONGEST = 10, 20  # seconds that a caller waits; a shutdown may take the longest
ON_THE_WAY = 0.1  # seconds of them, for our own answer
LATER = "Try again later: enabling twice is harmless."

logger = logging.getLogger(__name__)
Session = NamedDependency[MonoCloudSession]
Problem = problem_details.ProblemDetailsException


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    async with MonoCloudSession() as session:
        app.state.session = session
        yield


async def opened(state: State) -> MonoCloudSession:
    session: MonoCloudSession = state.session
    return session


async def patience(prefer: FromHeader[str] = "") -> RetryPolicy:
    """As long as the caller waits: `Prefer: wait=5`, in seconds (RFC 7240, section 4.3)."""
    found = re.search(r"(?:^|[\s,])wait=([0-9]{1,4})", prefer)
    seconds = min(max(int(found[1]), 1), LONGEST) if found else USUAL
    return RetryPolicy(total=seconds - ON_THE_WAY)


@post("/users/{user_id:str}/enable", status_code=200)
async def enable(
    user_id: FromPath[str], session: Session, patience: NamedDependency[RetryPolicy]
) -> dict[str, str]:
    user = await session.enable_user(user_id, retry=patience)
    return {"enabled": user.user_id}  # the rest of the user, `private_data` too, stays here


@get("/ready")
async def ready(session: Session) -> dict[str, bool]:
    if wait := session.pace.pause_left:  # after a 429, or because the tenant is down
        raise problem(503, LATER, wait)
    return {"ready": True}


def refused(error: MonoCloudError) -> Problem:
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


def problem(status: int, detail: str, wait: float | None = None) -> Problem:
    """An answer as RFC 9457 has it."""
    headers = None if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
    title = HTTPStatus(status).phrase
    return Problem(status_code=status, title=title, detail=detail, headers=headers)


problems = problem_details.ProblemDetailsConfig(
    enable_for_all_http_exceptions=True, exception_to_problem_detail_map={MonoCloudError: refused}
)
app = Litestar(
    [enable, ready],
    lifespan=[lifespan],
    dependencies={"session": Provide(opened), "patience": Provide(patience)},
    plugins=[problem_details.ProblemDetailsPlugin(problems)],
)
