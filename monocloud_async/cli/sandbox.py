"""Implements `sandbox`: runs the sandbox until Ctrl-C."""

import asyncio
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monocloud_async.cli import loop
from monocloud_async.cli.files import opened
from monocloud_async.config import API_KEY, DOMAIN
from monocloud_async.errors import ConfigurationError
from monocloud_async.sandbox import Sandbox
from monocloud_async.sanitize import clean

__all__ = ["Sandbox", "an_hour_ago", "parse_script", "serve", "usage_errors"]

_HOUR = 3600


def an_hour_ago() -> float:
    """Return the time from which on the users of a new sandbox were disabled."""
    return time.time() - _HOUR


@contextmanager
def usage_errors(db: Path | None) -> Iterator[None]:
    """Turn errors of the sandbox's options into a `ConfigurationError`."""
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(clean(str(error))) from None
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"--db {clean(str(db))}: {clean(str(error))}; name a database of the sandbox, or a new"
            " file in a folder that is there"
        ) from None


def parse_script(text: str) -> tuple[str, ...]:
    """Split `id=503,503,200` into the id and the steps, at the last `=`."""
    user_id, equals, steps = text.rpartition("=")
    if not equals or not user_id or not steps:
        raise ConfigurationError(f"--script {clean(text)!r} is not like ada=503,503,200")
    return user_id, *steps.split(",")


def serve(sandbox: Sandbox, ids: Path | None) -> int:
    """Serve until Ctrl-C, and return the exit code. The first line on stdout is the address."""
    if ids is not None:
        try:
            with open(ids, "w", opener=opened) as file:
                file.writelines(f"{user_id}\n" for user_id in sandbox.user_ids())
        except OSError as error:
            raise ConfigurationError(f"cannot write {ids}: {error.strerror}") from None
    return loop.run(_serve(sandbox))


async def _serve(sandbox: Sandbox) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await sandbox.start()
    except (OSError, UnicodeError) as error:  # the latter of a host that is no name of one
        why = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise ConfigurationError(
            f"cannot listen on {clean(sandbox.host)} port {sandbox.port}: {why}"
        ) from None
    users = sandbox.stats().users
    print(sandbox.url)  # noqa: T201  the output of a program
    print(  # noqa: T201  as well
        f"{users['disabled']:,} disabled users, {users['enabled']:,} enabled; Ctrl-C ends it\n"
        f"export {DOMAIN}={sandbox.url} {API_KEY}={sandbox.api_key}",
        flush=True,
    )
    await stopped.wait()
    stats = sandbox.stats()
    await sandbox.stop()
    counts = ", ".join(f"{count:,} answered {status}" for status, count in stats.by_status.items())
    sys.stderr.write(f"{stats.requests:,} requests{': ' if counts else ''}{counts}\n")
    return 0
