"""Looks names up in threads for which nobody waits at the end of the process.

A look-up cannot be cancelled, and takes 20 seconds or more while the name servers are silent. The
threads of an event loop's own look-ups, asyncio's as well as uvloop's, are joined before the
process ends, so a command that has timed out or was interrupted would hang until then.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, cast

from aiohttp import ThreadedResolver


class Resolver(ThreadedResolver):
    """An `aiohttp.ThreadedResolver` whose threads end with the process."""

    def __init__(self) -> None:
        # These two methods are all that it uses of a loop.
        super().__init__(cast("asyncio.AbstractEventLoop", _LookUps))


class _LookUps:
    """The look-ups of an event loop."""

    @staticmethod
    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        return await _in_thread(lambda: socket.getaddrinfo(host, port, **options))

    @staticmethod
    async def getnameinfo(address: Any, flags: int) -> Any:
        return await _in_thread(lambda: socket.getnameinfo(address, flags))


def _in_thread(look_up: Callable[[], object]) -> asyncio.Future[object]:
    found = Future[object]()
    found.set_running_or_notify_cancel()  # it cannot be cancelled from here on

    def run() -> None:
        try:
            found.set_result(look_up())
        except BaseException as error:  # noqa: BLE001  whoever waits gets it
            found.set_exception(error)

    try:
        Thread(target=run, name="look-up", daemon=True).start()
    except RuntimeError:  # too many threads, for a moment
        raise OSError(errno.EAGAIN, "no thread for the look-up") from None
    return asyncio.wrap_future(found)
