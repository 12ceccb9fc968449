"""Tells Kubernetes and systemd whether a process of the fleet is alive.

A process that is alive is not restarted while Temporal is down, as that would not help.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

from aiohttp import web
from temporalio.client import Client
from temporalio.service import RPCError

from monocloud_async.errors import ConfigurationError

_ANSWER: Final = 3.0  # seconds that Temporal has to answer
_WATCHDOG: Final = 3  # signs of life in the time that systemd waits for one


@asynccontextmanager
async def watched(client: Client, address: str | None = None) -> AsyncIterator[None]:
    """Give signs of life meanwhile.

    Args:
        client: the Temporal client.
        address: HOST:PORT on which /livez answers 200, and /readyz 200 while Temporal answers and
            503 otherwise. Default: none. systemd is told if it has started the process.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    async with AsyncExitStack() as stack:
        if address is not None:
            await stack.enter_async_context(_served(client, address))
        notifying = asyncio.create_task(_notify_regularly())
        stack.callback(notifying.cancel)
        _notify("READY=1")
        yield


def tell_stopping() -> None:
    """Tell systemd that the process stops; the calls in flight may still take their time."""
    _notify("STOPPING=1")


@asynccontextmanager
async def _served(client: Client, address: str) -> AsyncIterator[None]:
    async def live(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def ready(_: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_ANSWER):
                await client.service_client.check_health(timeout=timedelta(seconds=_ANSWER))
        except (RPCError, RuntimeError, TimeoutError):
            return web.Response(text="Temporal does not answer\n", status=503)
        return web.Response(text="ready\n")

    app = web.Application()
    app.add_routes([web.get("/livez", live), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, port = host_and_port(address)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot answer health checks at {address}: {error.strerror}"
            ) from None
        yield
    finally:
        await runner.cleanup()


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT; raises `ConfigurationError` if it is something else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigurationError(f"{address!r} is not HOST:PORT, such as 0.0.0.0:8080")
    return host.strip("[]"), int(port)


async def _notify_regularly() -> None:
    """Tell systemd that the event loop turns, if it asks for that (sd_watchdog_enabled(3))."""
    given = os.environ.get("WATCHDOG_USEC", "")
    microseconds = int(given) if given.isdecimal() else 0
    while microseconds:
        _notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 1_000_000 / _WATCHDOG)


def _notify(message: str) -> None:
    """Tell systemd, if it has started this process and listens (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    # Another process may have left the variable, or systemd may be busy; then it acts by itself.
    with there, suppress(OSError):
        there.settimeout(0)
        there.sendto(message.encode(), f"\0{path[1:]}" if path.startswith("@") else path)
