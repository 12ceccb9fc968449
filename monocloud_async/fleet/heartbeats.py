"""Tells Temporal regularly that an activity is at work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity

from monocloud_async.fleet.workflow import BEAT


@asynccontextmanager
async def beating() -> AsyncIterator[None]:
    """Send heartbeats meanwhile: Temporal keeps the work here, and can tell of a cancellation."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT)
            activity.heartbeat()

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
