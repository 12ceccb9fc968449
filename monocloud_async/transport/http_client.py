"""The HTTP client of a session: chooses the transport of each request, and reads the response."""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from aiohttp.http import HttpProcessingError

from monocloud_async import config
from monocloud_async.endpoint import Operation
from monocloud_async.errors import (
    ConfigurationError,
    InvalidResponseError,
    MonoCloudError,
    closed_error,
)
from monocloud_async.lifecycle import Lifecycle, SessionState
from monocloud_async.response import Response
from monocloud_async.transport import Transport
from monocloud_async.transport.error_translation import (
    expired_error,
    timeout_error,
    transport_error,
    unusable_client_error,
)
from monocloud_async.transport.standard import (
    ClosedBeforeSentError,
    ClosedError,
    StandardTransport,
)
from monocloud_async.transport.time_slice import TimeSlice

if TYPE_CHECKING:  # loaded with the first session
    from monocloud_async.transport.fast import FastTransport

T = TypeVar("T")


class HttpClient:
    """Sends the requests of a session to its tenant.

    Args:
        base_url: the address of the tenant.
        credentials: the headers with the key.
        borrowed: the `aiohttp.ClientSession` to use, which is never closed here. Default: own
            connections, from the first request on.
        lifecycle: that of the session; nothing is sent once it is closed.
        on_response: called with each response before it is read.
        in_place: the transport to use in place of either.
    """

    def __init__(
        self,
        base_url: str,
        credentials: config.Credentials,
        borrowed: aiohttp.ClientSession | None,
        lifecycle: Lifecycle,
        *,
        on_response: Callable[[Response], None],
        in_place: Transport | None = None,
    ) -> None:
        self._base_url = base_url
        self._credentials = credentials
        self._borrowed = borrowed
        self._on_response = on_response
        self._in_place = in_place
        self._proxy_checked = False
        self._lifecycle = lifecycle
        self._standard: StandardTransport | None = None  # until the first request
        self._fast: FastTransport | None = None
        self._connections: AsyncGenerator[None, None] | None = None  # closes them

    @property
    def has_connections(self) -> bool:
        """Whether it may have connections of its own, which `close` has to close."""
        return self._connections is not None

    def most_connections(self, wanted: int) -> int:
        """Return how many concurrent requests there may be, if so many are wanted."""
        connector = None if self._borrowed is None else self._borrowed.connector
        limits = [] if connector is None else [connector.limit, connector.limit_per_host]
        return min([wanted, *filter(None, limits)])

    async def send(
        self,
        operation: Operation[T],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> T:
        """Send one request, and return its result; the only place where errors are translated.

        Args:
            operation: what is done.
            target: to whom.
            timeout: seconds, until the response is complete.
            time_slice: hands the response over, if the call is one of a run.

        Raises:
            MonoCloudError: it failed, or the session is closed.
        """
        transport = self.transport()
        if timeout <= 0:  # aiohttp would treat this as no timeout
            raise expired_error(target)
        try:
            response = await transport.send(operation, target, timeout, time_slice)
        except TimeoutError as error:
            fault: MonoCloudError = timeout_error(error, target, timeout)
        except ClosedBeforeSentError:
            fault = closed_error()
        except aiohttp.InvalidURL as error:
            fault = unusable_client_error(error, target, borrowed=self._borrowed is not None)
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            closed = self._borrowed is not None and self._borrowed.closed
            fault = transport_error(ClosedError() if closed else error, target)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            # aiohttp's assertion that it found a way to connect is a TypeError under `python -O`.
            fault = unusable_client_error(error, target, borrowed=self._borrowed is not None)
        else:
            self._on_response(response)
            try:
                return operation.read(target, response)
            except InvalidResponseError:
                response.end()  # it may be another request's response, and so may the next one
                raise
        # Outside the `except`, and not chained: aiohttp's errors hold the request's headers.
        try:
            raise fault
        finally:
            del fault  # or its traceback would keep it, and all callers, until a garbage collection

    def transport(self) -> Transport:
        """Return the transport to use now.

        Raises:
            ConfigurationError: the session or the borrowed client is closed, or its proxy would see
                the key.
        """
        if self._lifecycle.state is SessionState.CLOSED:
            raise closed_error()
        if self._in_place is not None:
            return self._in_place
        if self._borrowed is not None:
            return self._through(self._borrowed)
        if self._standard is None:
            self._standard = self._open()
        fast = self._fast
        return fast if fast is not None and fast.is_usable() else self._standard

    def end_requests(self) -> None:
        """End the requests in flight."""
        for transport in (self._standard, self._fast, self._in_place):
            if transport is not None:
                transport.close()

    async def close(self) -> None:
        """Close its own connections."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    def _through(self, borrowed: aiohttp.ClientSession) -> StandardTransport:
        if borrowed.closed:
            raise ConfigurationError("the borrowed client_session is closed")
        # The environment may change, and plain HTTP would expose the key to a new proxy.
        if not self._proxy_checked or self._base_url.startswith("http://"):
            config.check_proxy(borrowed, self._base_url)
            self._proxy_checked = True
        if self._standard is None:
            self._standard = StandardTransport(borrowed, self._base_url, self._credentials)
        return self._standard

    def _open(self) -> StandardTransport:
        """Make the session's own connections possible; none is opened yet."""
        from monocloud_async.transport.fast import (  # noqa: PLC0415  loaded with the first session
            FastConnector,
            FastTransport,
        )

        client = aiohttp.ClientSession(
            connector=FastConnector(tls=self._base_url.startswith("https")),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        standard = StandardTransport(client, self._base_url, self._credentials)
        self._fast = FastTransport.for_client(client, self._base_url, self._credentials)
        self._connections = _close_at_end(client, standard, self._fast)
        with suppress(StopIteration):
            self._connections.__anext__().send(None)  # now the event loop knows it
        return standard


async def _close_at_end(
    client: aiohttp.ClientSession, *transports: "StandardTransport | FastTransport | None"
) -> AsyncGenerator[None, None]:
    """Close these on their own event loop, at the latest when it shuts down.

    Event loops close their async generators before they end, and when nobody has them any more.
    """
    try:
        yield
    finally:
        for transport in transports:
            if transport is not None:
                transport.close()
        await client.close()
