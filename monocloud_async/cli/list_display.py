"""Shows how far a list of users is read: live on a terminal, plain lines elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

from rich.console import Console

from monocloud_async.bulk import MAX_OUTAGE
from monocloud_async.cli.display import PLAIN_TICK, TICK, LiveBar, limiter_status, say
from monocloud_async.cli.estimate import Estimate
from monocloud_async.cli.streams import is_live
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.user_list import UserList


@asynccontextmanager
async def failures_told(console: Console, pace: RateLimiter) -> AsyncIterator[None]:
    """Tell why the tenant does not answer, while the context is open and requests are repeated."""

    async def tick() -> None:
        told_at = -inf
        while True:
            await asyncio.sleep(TICK)
            now = asyncio.get_running_loop().time()
            if pace.failure and now - told_at >= PLAIN_TICK:
                told_at = now
                say(console, f"{pace.failure}; trying again, for at most {MAX_OUTAGE:.0f} s")

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


@asynccontextmanager
async def shown(console: Console, users: UserList, pace: RateLimiter) -> AsyncIterator[None]:
    """Show the progress over the pages of the list while the context is open."""

    def status() -> list[str]:
        total = "" if users.total is None else f" of {users.total:,}"
        parts = [f"{users.returned:,}{total} users read"]
        if users.passes:
            parts.append("reading the list again, as someone may be missing")
        return [*parts, *filter(None, [limiter_status(pace)])]

    live = is_live(console)
    clock = asyncio.get_running_loop().time
    estimate = Estimate(pace)
    estimate.update(clock(), 0)
    bar = LiveBar(console, status, estimate, amounts_of="pages")

    def refresh() -> None:
        pages = users.pages
        read = users.pages_read if pages is None else min(users.pages_read, pages)
        now = clock()
        estimate.update(now, read)
        bar.show(now, read, pages)

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK if live else PLAIN_TICK)
            if live:
                refresh()
            else:
                pages = "" if users.pages is None else f" of {users.pages:,}"
                say(console, " | ".join([f"{users.pages_read:,}{pages} pages", *status()]))

    if live:
        bar.start()
    ticking = asyncio.create_task(tick())
    try:
        async with failures_told(console, pace):
            yield
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        if live:
            refresh()
            bar.stop()
