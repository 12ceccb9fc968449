"""Runs an async server in its own thread, for callers without an event loop."""

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Self


class InAThread(ABC):
    """A context manager that runs `start` and `stop` on an event loop in another thread."""

    _loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    async def start(self) -> None:
        """Start the server."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop the server."""

    def __enter__(self) -> Self:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True, name="sandbox")
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.start(), loop).result()
        except BaseException:
            _end(loop, thread)
            raise
        self._loop, self._thread = loop, thread  # not before: it may run in another one already
        return self

    def __exit__(self, *_: object) -> None:
        loop, self._loop = self._loop, None
        assert loop is not None  # noqa: S101  it was entered
        try:
            asyncio.run_coroutine_threadsafe(self.stop(), loop).result()
        finally:
            _end(loop, self._thread)


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
