"""Sends one request and returns its response: through `ClientSession`, or faster without it."""

from typing import Protocol

from monocloud_async.endpoint import Operation
from monocloud_async.response import Response
from monocloud_async.transport.time_slice import TimeSlice


class Transport(Protocol):
    """One way to send requests to a tenant; callers can tell them apart only by their cost."""

    async def send(
        self,
        operation: Operation[object],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> Response:
        """Return the response to this operation on this target; errors are aiohttp's.

        Args:
            operation: what is done.
            target: to whom.
            timeout: seconds, until the response is complete.
            time_slice: hands the response over, if the call is one of a run.
        """
        ...

    def close(self) -> None:
        """End the requests in flight."""
        ...
