"""The sandbox's HTTP server, and its public class."""

import asyncio
import ipaddress
import logging
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Self
from urllib.parse import unquote

import msgspec
from aiohttp import web

from monocloud_async.sandbox.answers import (
    LIMIT_HEADERS,
    REFUSALS,
    TokenBucket,
    checked_step,
    cut,
    json_answer,
    no_answer,
    page_answer,
    problem,
    reset,
    scripted,
)
from monocloud_async.sandbox.control import Disable, SandboxStats, SandboxUser
from monocloud_async.sandbox.thread import InAThread
from monocloud_async.sandbox.users import SORTABLE, Users

logger = logging.getLogger("monocloud_async.sandbox")

NO_USER = "The user was not found."
NO_GROUP = "The group was not found."
NO_ENDPOINT = "There is no such endpoint."
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 10, 50
POSITIVE = re.compile("0{0,9}[1-9][0-9]{0,8}")
GRACE = 0.05  # seconds that responses in progress get when the sandbox stops


class Sandbox(InAThread):
    """A simulated MonoCloud tenant on this machine, for tests, drills and demonstrations.

    `async with` runs it on the current event loop, and `with` in its own thread: for tests without
    an event loop, or whose client blocks it.

    Args:
        users: the number of disabled users to create, or their ids.
        db: a file that stores the users; users that are already in the file are kept instead.
        api_key: the required value of `X-API-KEY`.
        host: the address to listen on; anyone who can reach it can use the sandbox.
        port: 0 for any free port. A restarted sandbox keeps its port.
        latency: seconds added to every response.
        rate_limit: requests per second; more get 429. None or 0 for no limit.
        burst: requests at once before the rate limit applies; None for those of one second.
        retry_after: whether a 429 has a Retry-After header.
        limit_headers: whether responses say how many requests remain: "ratelimit" for the headers
            RateLimit and RateLimit-Policy, "x-ratelimit" for X-RateLimit-Remaining and -Reset.
        error_rate: share of requests, from 0 to 1, that get 500.
        seed: selects which users are created and which requests fail.
        others: how many other users to create: nine of ten are enabled, the rest was disabled long
            before.
        disabled_at: the `users` were disabled within the hour from this time on, in seconds since
            1970. Default: each at a time of its own.
        paging_header: whether a list has the header `x-pagination`.
        max_page_size: the largest page of a list; larger ones are cut.
        shift_pages: after each page of a list, one enabled user whom nobody has changed leaves the
            tenant, and another one signs up. So the same user may be on two pages, and another one
            on none.

    All of `latency`, `rate_limit`, `burst`, `retry_after`, `limit_headers`, `error_rate`,
    `paging_header`, `max_page_size` and `shift_pages` may be changed at any time.
    """

    def __init__(
        self,
        *,
        users: int | Iterable[str] = 0,
        db: str | Path = ":memory:",
        api_key: str = "sandbox-key",
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        rate_limit: float | None = None,
        burst: int | None = None,
        retry_after: bool = True,
        limit_headers: str | None = None,
        error_rate: float = 0.0,
        seed: int = 0,
        others: int = 0,
        disabled_at: float | None = None,
        paging_header: bool = True,
        max_page_size: int = MAX_PAGE_SIZE,
        shift_pages: bool = False,
    ) -> None:
        if limit_headers not in LIMIT_HEADERS:
            raise ValueError(f"limit_headers is one of {LIMIT_HEADERS}, not {limit_headers!r}")
        self.api_key = api_key
        self.host = host
        self.port = port
        self.latency = latency
        self.rate_limit = rate_limit
        self.burst = burst
        self.retry_after = retry_after
        self.limit_headers = limit_headers
        self.error_rate = error_rate
        self.paging_header = paging_header
        self.max_page_size = max_page_size
        self.shift_pages = shift_pages
        self._users = Users(db)
        self._users.seed(users, others, seed=seed, disabled_at=disabled_at)
        self._scripts: dict[str, deque[str]] = {}
        self._bucket = TokenBucket()
        self._random = Random(seed)  # noqa: S311 - repeatable, and not a secret
        self._by_status: Counter[str] = Counter()
        self._requests = self._in_flight = self._peak_in_flight = self._connections = 0
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<Sandbox {self.url if self._listener else 'stopped'} users={self._users.counts()}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start to listen."""
        if self._listener is not None:
            raise RuntimeError(f"the sandbox already runs at {self.url}")
        if not self.is_loopback:
            logger.warning(
                "the sandbox listens on %s: anyone who can reach it can use it, over plain HTTP",
                self.host,
            )
        # When a client disconnects, its request is cancelled, so a scripted hang ends.
        self._server = web.Server(self.answer, handler_cancellation=True, access_log=None)
        # The default backlog of 100 would drop connections when a run opens 500 at once.
        self._listener = await asyncio.get_running_loop().create_server(
            self._connect, self.host, self.port, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop to listen; requests in flight get a moment, then their connections close."""
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        self._server.pre_shutdown()
        await self._server.shutdown(GRACE)
        self._listener = self._server = None

    @property
    def url(self) -> str:
        """The address of the sandbox, to pass to `MonoCloudSession` as its domain."""
        if self._listener is None:
            raise RuntimeError("the sandbox has no address until it is started")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the sandbox."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a host name
            return self.host == "localhost"

    def user_ids(self) -> list[str]:
        """Return the ids of all users, in the order in which they were added."""
        return self._users.ids()

    def user(self, user_id: str) -> dict[str, Any] | None:
        """Return the JSON that the API has for this user, or None if the user does not exist."""
        return self._users.get(user_id)

    def is_disabled(self, user_id: str) -> bool:
        """Return whether the user is disabled; raises KeyError if the user does not exist."""
        user = self._users.get(user_id)
        if user is None:
            raise KeyError(user_id)
        return bool(user["disabled"])

    def add_user(self, user_id: str, *, disabled: bool = True, **members: Any) -> None:
        """Add a user; one that exists is reset, including its script.

        `members` replace those that the sandbox generates, for example `last_updated=1764000000`.
        """
        self._users.put(user_id, disabled=disabled, members=members)
        self._scripts.pop(user_id, None)

    def assign(self, group_id: str, user_ids: Iterable[str]) -> None:
        """Make these users, and no others, the members of a group."""
        self._users.assign(group_id, user_ids)

    def sessions_revoked(self, user_id: str) -> bool:
        """Return whether the user was disabled with `revoke_sessions`."""
        return self._users.sessions_revoked(user_id)

    def script(self, user_id: str, *steps: int | str) -> None:
        """Script the responses to the next enable requests of this user, one step for each request.

        The user is added if needed, and an earlier script is replaced. A step is 200, a status
        from 400 to 599, or one of the named faults of docs/testing.md. An unknown step raises
        ValueError and changes nothing.
        """
        checked = deque(checked_step(step) for step in steps)
        if self._users.get(user_id) is None:
            self._users.put(user_id, disabled=True, members={})
        self._scripts[user_id] = checked

    def stats(self) -> SandboxStats:
        """Return what the sandbox has received so far."""
        return SandboxStats(
            requests=self._requests,
            by_status=dict(sorted(self._by_status.items())),
            in_flight=self._in_flight,
            peak_in_flight=self._peak_in_flight,
            connections=self._connections,
            users=self._users.counts(),
        )

    def _connect(self) -> asyncio.Protocol:
        self._connections += 1
        assert self._server is not None  # noqa: S101 - set before the listener starts
        return self._server()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Return the response to a request, as the server sends it."""
        path = _decoded(request.rel_url.raw_path)
        if path[:1] == ["_sandbox"]:
            return self._unauthorized(request) or await self._control(request, path)
        self._requests += 1
        self._in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        status = "none"
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            response = (
                self._unauthorized(request) or self._refused() or await self._api(request, path)
            )
            status = str(response.status)
            if self.rate_limit and self.limit_headers:
                form, burst = self.limit_headers, self._burst(self.rate_limit)
                response.headers.update(
                    self._bucket.headers(form, rate=self.rate_limit, burst=burst)
                )
        finally:
            self._in_flight -= 1
            self._by_status[status] += 1
        return response

    def _unauthorized(self, request: web.BaseRequest) -> web.Response | None:
        return None if request.headers.get("X-API-KEY") == self.api_key else problem(401)

    def _refused(self) -> web.Response | None:
        """Return a 429 or 500 if the rate limit or the error rate requires it, else None."""
        if self.rate_limit:
            burst = self._burst(self.rate_limit)
            if wait := self._bucket.take(rate=self.rate_limit, burst=burst):
                return problem(
                    429,
                    detail="Too many requests.",
                    retry_after=math.ceil(wait) if self.retry_after else None,
                )
        if self.error_rate and self._random.random() < self.error_rate:
            return problem(500, detail="This is one of the requests that the error rate fails.")
        return None

    def _burst(self, rate_limit: float) -> int:
        return self.burst or math.ceil(rate_limit)

    async def _api(  # noqa: PLR0911 - a line for each route
        self, request: web.BaseRequest, path: list[str]
    ) -> web.Response:
        match request.method, path:
            case "POST", ["api", "users", user_id, "enable"]:
                return await self._enable(request, user_id)
            case "POST", ["api", "users", user_id, "disable"]:
                return self._disable(user_id, await request.read())
            case "POST", ["api", "users", user_id, "unblock"]:
                return _found(self._users.unblock(user_id))
            case "GET", ["api", "users"]:
                return self._list(request.rel_url.query, None)
            case "GET", ["api", "users", "groups", group_id, "assigned"]:
                return self._list(request.rel_url.query, group_id)
            case "GET", ["api", "users", user_id]:
                return _found(self._users.get(user_id))
            case _, ["api", "users", _, "enable" | "disable" | "unblock"]:
                return problem(405, allow="POST")
            case (
                _,
                ["api", "users"] | ["api", "users", _] | ["api", "users", "groups", _, "assigned"],
            ):
                return problem(405, allow="GET")
        return problem(404, detail=NO_ENDPOINT)

    async def _control(self, request: web.BaseRequest, path: list[str]) -> web.Response:
        match request.method, path:
            case "PUT", ["_sandbox", "users", user_id]:
                return self._put(user_id, await request.read())
            case "PUT", ["_sandbox", "groups", group_id]:
                return self._put_group(group_id, await request.read())
            case "GET", ["_sandbox", "stats"]:
                return json_answer(self.stats())
            case _, ["_sandbox", "users" | "groups", _]:
                return problem(405, allow="PUT")
            case _, ["_sandbox", "stats"]:
                return problem(405, allow="GET")
        return problem(404, detail=NO_ENDPOINT)

    async def _enable(self, request: web.BaseRequest, user_id: str) -> web.Response:
        script = self._scripts.get(user_id)
        step = script.popleft() if script else "200"
        if step == "reset" and request.transport is not None:
            reset(request.transport)
        if step in {"reset", "hang"}:
            return await no_answer()
        if step not in {"200", "cut"}:
            return scripted(step, retry_after=1 if self.retry_after else None)
        response = _found(self._users.switch(user_id, disabled=False))
        return cut(response) if step == "cut" else response

    def _disable(self, user_id: str, body: bytes) -> web.Response:
        try:
            wanted = msgspec.json.decode(body, type=Disable) if body else Disable()
        except msgspec.MsgspecError as exc:
            errors = {"revoke_sessions": [str(exc)]}
            return problem(422, **{**REFUSALS["keyed"], "errors": errors})
        return _found(
            self._users.switch(user_id, disabled=True, revoke_sessions=wanted.revoke_sessions)
        )

    def _list(self, query: Mapping[str, str], group: str | None) -> web.Response:
        if group is not None and not self._users.has_group(group):
            return problem(404, detail=NO_GROUP)
        number, size = query.get("page", "1"), query.get("size", str(DEFAULT_PAGE_SIZE))
        sort, _, way = query.get("sort", "creation_time:1").partition(":")
        errors = {}
        for name, value in (("page", number), ("size", size)):
            if not POSITIVE.fullmatch(value):
                errors[name] = [f"The value {value!r} is not a positive number."]
        if sort not in SORTABLE or way not in {"1", "-1"}:
            errors["sort"] = ["A sort is field:1 or field:-1, over one of the sortable fields."]
        if errors:
            return problem(422, **{**REFUSALS["keyed"], "errors": errors})
        granted = min(int(size), self.max_page_size)
        total, users = self._users.page(
            int(number),
            granted,
            sort=sort,
            descending=way == "-1",
            text=query.get("filter", ""),
            group=group,
        )
        if self.shift_pages:
            self._users.shift()
        return page_answer(
            users, total=total, size=granted, number=int(number), header=self.paging_header
        )

    def _put_group(self, group_id: str, body: bytes) -> web.Response:
        try:
            user_ids = msgspec.json.decode(body, type=list[str])
        except msgspec.MsgspecError as exc:
            return problem(400, detail=str(exc))
        self.assign(group_id, user_ids)
        return json_answer(user_ids)

    def _put(self, user_id: str, body: bytes) -> web.Response:
        try:
            wanted = msgspec.json.decode(body, type=SandboxUser)
            script = [checked_step(step) for step in wanted.script]
        except (msgspec.MsgspecError, ValueError) as exc:  # msgspec's messages name the member
            return problem(400, detail=str(exc))
        self.add_user(user_id, disabled=wanted.disabled, **wanted.members)
        self.script(user_id, *script)
        return _found(self._users.get(user_id))


def _decoded(raw_path: str) -> list[str]:
    """Split the path as it was sent, then decode each part once, so that `a%2Fb` is one part.

    aiohttp's router decodes before it splits, with exceptions, but any id must arrive unchanged.
    """
    try:
        parts = [unquote(part, errors="strict") for part in raw_path.split("/")[1:]]
    except UnicodeDecodeError:
        return []
    return parts if all(parts) else []  # an empty part is not valid


def _found(user: dict[str, Any] | None) -> web.Response:
    return problem(404, detail=NO_USER) if user is None else json_answer(user)
