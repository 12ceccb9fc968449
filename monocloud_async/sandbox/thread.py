"""A server on an event loop in a thread of its own, for those who wait for it without one."""

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Self


class InAThread(ABC):
    """What `start` begins goes on in another thread, from the `with` to its end."""

    _loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    async def start(self) -> None:
        """Begin."""

    @abstractmethod
    async def stop(self) -> None:
        """End."""

    def __enter__(self) -> Self:
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, daemon=True, name="sandbox")
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.start(), loop).result()
        except BaseException:
            self._end(loop)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        loop, self._loop = self._loop, None
        assert loop is not None  # noqa: S101  it was entered
        try:
            asyncio.run_coroutine_threadsafe(self.stop(), loop).result()
        finally:
            self._end(loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()
