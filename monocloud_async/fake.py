"""A session whose tenant is in memory, for tests that need no sockets; see docs/testing.md."""

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from monocloud_async.config import Credentials
from monocloud_async.endpoint import Operation
from monocloud_async.response import Response
from monocloud_async.retry import RetryPolicy
from monocloud_async.sandbox import Sandbox
from monocloud_async.session import MonoCloudSession
from monocloud_async.transport.standard import Deadlines
from monocloud_async.transport.time_slice import TimeSlice

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK: Final = RetryPolicy(wait_initial=0.01, wait_max=0.05)


class FakeMonoCloud(MonoCloudSession):
    """A `MonoCloudSession` whose tenant is in memory: no server, no sockets, no thread.

    All of the session is the real one: retries, runs, journals and errors. The tenant is a
    `Sandbox` that was not started, with its users, scripts and statistics.

    ```python
    async with FakeMonoCloud(Sandbox(users=["ada", "bob"])) as session:
        session.sandbox.script("ada", 503, 200)
        await my_service.enable(session, "ada")
        assert not session.sandbox.is_disabled("ada")
    ```

    Args:
        sandbox: the tenant. Default: one with ten disabled users.
        retry: the limits for retries. Default: waits of hundredths of a second.
        options: the other options of `MonoCloudSession`.
    """

    def __init__(
        self, sandbox: Sandbox | None = None, *, retry: RetryPolicy = QUICK, **options: Any
    ) -> None:
        self.sandbox = Sandbox(users=10) if sandbox is None else sandbox
        super().__init__("fake.monocloud.invalid", self.sandbox.api_key, retry=retry, **options)

    def _transport_in_place(self) -> "_Transport":
        return _Transport(self.sandbox, self._credentials)


class _Transport:
    """Hands requests to a sandbox, and its responses back."""

    def __init__(self, sandbox: Sandbox, credentials: Credentials) -> None:
        self._sandbox = sandbox
        self._credentials = credentials
        self._deadlines = Deadlines()

    async def send(
        self,
        operation: Operation[object],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> Response:
        """The response to this operation on this target; errors are aiohttp's."""
        del time_slice
        connection = _Connection()
        request = _request(operation, operation.path(target), self._credentials, connection)
        serving = asyncio.ensure_future(self._sandbox.answer(request))
        connection.on_abort = serving.cancel
        if connection.aborted:  # by an eager task, which has run already
            serving.cancel()
        try:
            async with self._deadlines.at(asyncio.get_running_loop().time() + timeout):
                await asyncio.wait([serving])
        finally:
            serving.cancel()
        if connection.aborted:
            raise aiohttp.ServerDisconnectedError
        answer = serving.result()
        body = answer.body if isinstance(answer.body, bytes) else b""
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) > len(body):
            raise aiohttp.ClientPayloadError
        return Response(answer.status, answer.headers, body, connection.abort)

    def close(self) -> None:
        """End the requests in flight."""
        self._deadlines.close()


class _Connection:
    """What a request of aiohttp's server wants to know of its connection; it is its own socket."""

    peername = sockname = ssl_context = None

    def __init__(self) -> None:
        self.transport = self
        self.aborted = False
        self.on_abort: Callable[[], object] = bool

    def get_extra_info(self, _name: str) -> "_Connection":
        return self

    def setsockopt(self, *_option: object) -> None: ...

    def abort(self) -> None:
        self.aborted = True
        self.on_abort()


def _request(
    operation: Operation[object], path: str, credentials: Credentials, connection: _Connection
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    body = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    if operation.body:
        body.feed_data(operation.body.encode())
    body.feed_eof()
    headers = CIMultiDictProxy(CIMultiDict(credentials.headers))
    message = RawRequestMessage(
        *(operation.method, path, HttpVersion11, headers, ()),
        *(False, None, False, False, URL(path, encoded=True)),
    )
    nobody = cast("Any", connection)
    return web.BaseRequest(message, body, nobody, nobody, nobody, loop)
