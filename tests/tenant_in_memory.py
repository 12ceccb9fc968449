"""A tenant without HTTP, in virtual time: it has a limit, is down for a while, and fails some."""

import asyncio
from typing import TYPE_CHECKING, Any

from runs import Send
from tenants import Bucket

import monocloud_async as m
from monocloud_async import MonoCloudSession, User
from monocloud_async.endpoint import ENABLE, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def now() -> float:
    return asyncio.get_running_loop().time()


class Tenant:
    """A tenant in virtual time: a time for each request, a rate limit, and outages."""

    def __init__(self, limit: Bucket | None = None, *, down: tuple[float, float] = (0, 0)) -> None:
        self.limit = limit
        self.down = down
        self.sent: list[tuple[float, str]] = []
        self.retry_after: float | None = None  # what it asks for, whatever it needs
        self.latency = 0.02
        self.hangs = False
        self.failing: Callable[[str], bool] = lambda _user_id: False
        self.faults: Iterator[BaseException] = iter(())  # of the next requests

    async def send(self, user_id: str, seconds: float) -> User:
        self.sent.append((now(), user_id))
        if self.hangs or self.latency > seconds:
            await asyncio.sleep(seconds)
            raise m.RequestTimeoutError("no answer", user_id=user_id)
        await asyncio.sleep(self.latency)
        if self.down[0] <= now() < self.down[1]:
            raise m.TransportError("refused", user_id=user_id, sent=False)
        for fault in self.faults:
            raise fault
        if self.failing(user_id):
            raise m.ServerError(status=503, user_id=user_id, retry_after=self.retry_after)
        if self.limit is not None and (wait := self.limit.take(now())) is not None:
            wait = wait if self.retry_after is None else self.retry_after
            raise m.RateLimitedError(status=429, user_id=user_id, retry_after=wait)
        return User(user_id=user_id)

    def session(self, max_rate: float | None = None) -> MonoCloudSession:
        return Session(self.send, max_rate)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.sent]


class Session(MonoCloudSession):
    """Return a session whose requests go to a tenant in memory."""

    def __init__(self, answer: Send, max_rate: float | None) -> None:
        super().__init__("acme.eu.monocloud.com", "k", max_rate=max_rate)
        self._answer = answer
        self._http.send = self._send  # type: ignore[method-assign]  # no HTTP

    async def _send(
        self, operation: Operation[Any], target: str, timeout: float, time_slice: object = None
    ) -> Any:
        assert operation is ENABLE
        return await self._answer(target, timeout)


def users(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]
