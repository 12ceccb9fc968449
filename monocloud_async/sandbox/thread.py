"""An event loop in a thread of its own, for a server that others wait for without one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

_Work = Callable[[], Coroutine[object, object, None]]


@contextmanager
def in_a_thread(start: _Work, stop: _Work) -> Iterator[None]:
    """What `start` begins goes on in another thread until `stop` has ended it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="sandbox")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
