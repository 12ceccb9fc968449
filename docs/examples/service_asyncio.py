"""A service on bare asyncio that gives users their access back: a JSON line in, one out.

Start it:  python service_asyncio.py
Ask it:    {"user_id": "UOtBaOybB6dTpIJNrnkRw", "wait": 5}   or, whether it is ready:   {}
"""

import asyncio
import logging
import math
import os
import signal
from contextlib import closing, suppress
from http import HTTPStatus

import msgspec

from monocloud_async import MonoCloudError, MonoCloudSession, RetryPolicy, errors

USUAL, LONGEST = 10, 20  # seconds that a caller waits; a shutdown may take the longest
ON_THE_WAY = 0.1  # seconds of them, for our own answer
LATER = "Try again later: enabling twice is harmless."

logger = logging.getLogger(__name__)
Answer = dict[str, str | int | bool]


class Question(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | None = None
    wait: float = USUAL  # seconds


class Service:
    def __init__(self, session: MonoCloudSession) -> None:
        self.session = session
        self.stopping = False
        self.callers: set[asyncio.Task[None]] = set()
        self.idle: set[asyncio.Task[None] | None] = set()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = asyncio.create_task(self.serve(reader, writer))
        self.callers.add(caller)
        caller.add_done_callback(self.callers.discard)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = asyncio.current_task()
        # The caller has gone, or sent a line without end.
        with closing(writer), suppress(OSError, ValueError):
            while not self.stopping:
                self.idle.add(caller)
                line = await reader.readline()
                self.idle.discard(caller)
                if not line:
                    break
                writer.write(msgspec.json.encode(await self.answer(line)) + b"\n")
                await writer.drain()

    async def stop(self) -> None:
        """Requests in flight finish, in their time; connections without one end now."""
        self.stopping = True
        for caller in self.callers & self.idle:
            caller.cancel()
        if self.callers:
            await asyncio.wait(self.callers, timeout=LONGEST)

    async def answer(self, line: bytes) -> Answer:
        try:
            asked = msgspec.json.decode(line, type=Question)
            if asked.user_id is None:
                return await ready(self.session)
            retry = RetryPolicy(total=min(max(asked.wait, 1), LONGEST) - ON_THE_WAY)
            user = await self.session.enable_user(asked.user_id, retry=retry)
        except msgspec.MsgspecError as error:
            return problem(400, str(error))
        except MonoCloudError as error:
            return refused(error)
        return {"status": 200, "enabled": user.user_id}  # the rest of the user stays here


async def ready(session: MonoCloudSession) -> Answer:
    if wait := session.pace.pause_left:  # after a 429, or because the tenant is down
        return problem(503, LATER, wait)
    return {"status": 200, "ready": True}


def refused(error: MonoCloudError) -> Answer:
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


def problem(status: int, detail: str, wait: float | None = None) -> Answer:
    body: Answer = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return body if wait is None else body | {"retry_after": max(1, math.ceil(wait))}


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with MonoCloudSession() as session:
        service, port = Service(session), int(os.environ.get("PORT", "8000"))
        server = await asyncio.start_server(service.connected, "127.0.0.1", port, backlog=1024)
        await stop.wait()
        server.close()
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
