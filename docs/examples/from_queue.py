"""Enable users as their ids arrive, without end, until SIGTERM.

Start it:  tail -f ids.txt | python from_queue.py > again.txt
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator

from monocloud_async import (
    InvalidUserIdError,
    MonoCloudSession,
    NotFoundError,
    RunStoppedError,
    UnprocessableError,
)

Queue = asyncio.Queue[str | None]  # None: no more ids
REFUSED = (InvalidUserIdError, NotFoundError, UnprocessableError)  # would be refused again

log = logging.getLogger("from_queue")


async def feed(queue: Queue) -> None:
    """Replace this with your broker's client, or any other source of ids."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async for line in lines:
        await queue.put(line.decode().strip())
    await queue.put(None)


async def stream(queue: Queue) -> AsyncIterator[str]:
    while (user_id := await queue.get()) is not None:
        yield user_id


async def enable(session: MonoCloudSession, queue: Queue) -> None:
    async with session.bulk_enable(stream(queue)) as run:
        # The calls in flight finish, and no more ids are taken from the queue.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.drain)
        async for outcome in run:
            log.info("%s: %s", outcome.user_id, outcome.error or outcome.status)
            if outcome.status == "enabled" or isinstance(outcome.error, REFUSED):
                continue  # acknowledge it here, not before
            print(outcome.user_id, flush=True)  # not acknowledged: send it again
    log.info("Done: %d of %d enabled", run.report.enabled, run.report.total)


async def main() -> str | None:
    queue = Queue(maxsize=1000)
    # A group, so that the run does not wait forever if `feed` fails.
    async with asyncio.TaskGroup() as tasks, MonoCloudSession() as session:
        feeding = tasks.create_task(feed(queue))
        try:
            await enable(session, queue)
        except RunStoppedError as error:
            return str(error)
        finally:
            feeding.cancel()
    return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    sys.exit(asyncio.run(main()))
