"""The express path: a call over the session's own connections, without what `ClientSession` adds.

For each call `ClientSession` builds a request, a response, a timer and several copies of the same
headers: more than half of a client's CPU time (docs/performance.md). Here aiohttp still makes the
connections and reads the answers. What lies between is the same for every call and done once, and
an answer that is plainly the user that was asked for, whole and in one piece, is taken as it is.

Whoever hooks `ClientSession` gets the ordinary path (`HOOKS`), and so does everybody with an
aiohttp that has not got what this leans on (`LEANS_ON`).

To do without: delete this file, `line`, the lines of `session` that name them, and
tests/test_express.py.
"""

import asyncio
import logging
from functools import cache
from operator import attrgetter
from types import FunctionType
from typing import Final

import aiohttp
from aiohttp import ClientRequest, ClientResponse, ClientSession
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from monocloud_async.connector import is_informational, is_silent
from monocloud_async.exchange import (
    SKIPPED_HEADERS,
    Answer,
    ClosedError,
    Deadlines,
    check_length,
    limits,
    read_body,
)
from monocloud_async.line import Line, Lines
from monocloud_async.models import User
from monocloud_async.tenant import Credentials, Masked
from monocloud_async.wire import enable_path, plainly_user

# What is not public in aiohttp, or may change; the tests have a case for each.
LEANS_ON: Final[tuple[tuple[type, str], ...]] = (
    (ResponseHandler, "set_response_params"),
    (ResponseHandler, "data_received"),
    (ResponseHandler, "connection_lost"),
    (ResponseHandler, "read"),
    (ResponseHandler, "should_close"),
    (ClientRequest, "connection_key"),
    (aiohttp.TCPConnector, "connect"),
    (Connection, "protocol"),
    (Connection, "release"),
    (Connection, "close"),
)
# Where tests, recorders and tracers put themselves between a caller and the network.
HOOKS: Final[tuple[tuple[type, str], ...]] = (
    (ClientSession, "__init__"),
    (ClientSession, "_request"),
    (ClientSession, "post"),
    (ClientRequest, "send"),
    (ClientResponse, "start"),
)
_KEEP_ALIVE: Final = 15.0  # seconds that a connection waits at most for its next call

_of_session = attrgetter(*(name for kind, name in HOOKS if kind is ClientSession))

logger = logging.getLogger("monocloud_async")


class Express:
    """Calls to one tenant over connections of the session's own.

    Args:
        client: the session's own client, over `Lines`.
        base_url: the tenant's.
        credentials: the headers of every request.
    """

    def __init__(
        self, client: aiohttp.ClientSession, base_url: str, credentials: Credentials
    ) -> None:
        assert isinstance(client.connector, Lines)  # noqa: S101  for the type checkers
        self._loop = asyncio.get_running_loop()
        self._lines = client.connector
        # It knows where to connect and all the headers, and is never sent.
        self._model = aiohttp.ClientRequest(
            "POST",
            URL(base_url),
            headers=credentials.headers,
            skip_auto_headers=SKIPPED_HEADERS,
            loop=self._loop,
        )
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._model.headers.items())
        self._rest = Masked(f"{headers}\r\n")
        self._kept: list[tuple[Connection, Line]] = []  # the last one is used next
        self._unused = 0  # so many of them, from the first one on, since the last tidying
        self._tidying: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines()  # of what waits for anything but a plain answer
        self._due: dict[Line, float] = {}
        self._timer: asyncio.TimerHandle | None = None  # one, for whoever is due first
        self._hooks: object = None
        self._unhooked = True

    @classmethod
    def over(
        cls, client: ClientSession, base_url: str, credentials: Credentials
    ) -> "Express | None":
        """The express path of this client, or None where it has to be the ordinary one."""
        missing = [f"{kind.__name__}.{name}" for kind, name in LEANS_ON if not hasattr(kind, name)]
        if missing:
            _warn_once(f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}")
        elif type(client) is ClientSession and _is_aiohttps_own(ClientSession.__init__):
            return cls(client, base_url, credentials)
        return None  # whoever made this client gave it traces, middlewares or more

    def serves(self) -> bool:
        """Whether nobody hooks `ClientSession` now, as tests and recorders do for a while."""
        hooks = _of_session(ClientSession), ClientRequest.send, ClientResponse.start
        if hooks != self._hooks:
            self._hooks = hooks
            self._unhooked = all(_is_aiohttps_own(getattr(kind, name)) for kind, name in HOOKS)
        return self._unhooked

    async def exchange(self, user_id: str, timeout: float) -> User | Answer:
        """The user, where the answer is plainly that, or else the answer; errors are aiohttp's."""
        path, due = enable_path(user_id), self._loop.time() + timeout
        taken = self._take()
        while True:
            connection, line = taken or await self._connect(timeout, due)
            self._watch(line, due)
            keep = False
            try:
                try:
                    whole, start = await line.ask(path, self._rest)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if taken is None:
                        raise
                    # A server may end a connection that it holds for idle just as it is used
                    # again. That is no news of the tenant, as a connection that is new will tell.
                    taken = None
                    continue
                if start:
                    user = plainly_user(user_id, whole[start:])
                    if user is not None:
                        keep = True
                        return user
                    line.leave_to_aiohttp(whole)  # which has read none of it yet
                if line.is_whole:
                    answer, complete = await _read(line)
                else:
                    async with self._deadlines.at(due):
                        answer, complete = await _read(line)
                keep = complete and is_silent(line)
                return answer
            finally:
                self._done(connection, line, keep=keep)

    def close(self) -> None:
        """End the calls in flight, and give the connections back to their connector."""
        for timer in (self._timer, self._tidying):
            if timer is not None:
                timer.cancel()
        self._deadlines.close()
        for line in self._due:
            line.give_up(ClosedError())
        while self._kept:
            self._kept.pop()[0].release()

    def _take(self) -> tuple[Connection, Line] | None:
        kept = self._kept
        while kept:
            taken = connection, line = kept.pop()
            self._unused = min(self._unused, len(kept))
            if not line.heard():
                line.idle = False
                return taken
            connection.close()
        return None

    async def _connect(self, timeout: float, due: float) -> tuple[Connection, Line]:
        try:
            async with self._deadlines.at(due):
                connection = await self._lines.connect(self._model, [], limits(timeout))
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None
        line = connection.protocol
        assert isinstance(line, Line)  # noqa: S101  for the type checkers
        return connection, line

    def _watch(self, line: Line, due: float) -> None:
        self._due[line] = due
        if self._timer is not None and due < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._give_up, due)

    def _give_up(self, now: float) -> None:
        """End the waiting of those whose time is over."""
        self._timer = None
        for line, due in self._due.items():
            if due <= now:
                line.give_up(TimeoutError())
        if left := [due for due in self._due.values() if due > now]:
            self._timer = self._loop.call_at(min(left), self._give_up, min(left))

    def _done(self, connection: Connection, line: Line, *, keep: bool) -> None:
        del self._due[line]
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not keep or self._lines.closed:
            line.abort()  # also where it would wait for the server to say goodbye
            connection.close()
            return
        line.idle = True
        self._kept.append((connection, line))
        if self._tidying is None:
            self._tidying = self._loop.call_later(_KEEP_ALIVE / 2, self._tidy)

    def _tidy(self) -> None:
        """Close what nobody has used since the last time."""
        old, self._kept = self._kept[: self._unused], self._kept[self._unused :]
        self._unused = len(self._kept)
        for connection, _line in old:
            connection.close()
        more = self._kept or self._due
        self._tidying = self._loop.call_later(_KEEP_ALIVE / 2, self._tidy) if more else None


async def _read(line: Line) -> tuple[Answer, bool]:
    """The answer as aiohttp reads it, and whether that is all of it."""
    while True:
        message, content = await line.read()
        check_length(message.raw_headers)
        if not is_informational(message.code):
            break
    body, complete = await read_body(content, message.code)
    return Answer(message.code, message.headers, body, line.abort), complete


def _is_aiohttps_own(function: object) -> bool:
    # Wrappers copy names and modules, but not the globals that they run in.
    return type(function) is FunctionType and str(function.__globals__.get("__name__")).startswith(
        "aiohttp."
    )


@cache
def _warn_once(what: str) -> None:
    logger.warning("%s, so calls cost more CPU time than they could", what)
