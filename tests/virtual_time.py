"""An event loop whose clock jumps over waits: pauses of minutes pass in milliseconds.

Sockets stay real: the clock only jumps when no socket has had anything to say for a moment.
"""

import asyncio
import selectors
import struct
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 0.02  # real seconds within which a local server certainly responds
# So often the clock waits once more for what is on its way: a busy Linux may deliver even
# loopback's packets later. What nobody reads is on its way for good.
PATIENCE = 15


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0
    grace = GRACE

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        events = super().select(min(timeout, self.grace) if timeout > 0 else 0)
        if events or timeout <= 0:
            return events
        for _ in range(PATIENCE):
            if not any(_on_its_way(key.fd) for key in self.get_map().values()):
                break
            events = super().select(self.grace)
            if events:
                return events
        self.now += timeout
        return []


def _on_its_way(descriptor: int) -> bool:
    """Whether something was sent from here that has not arrived yet."""
    if sys.platform != "linux":
        return False
    from fcntl import ioctl  # noqa: PLC0415  Windows has none
    from termios import TIOCOUTQ  # noqa: PLC0415  the same

    with suppress(OSError):  # what is no connection
        return struct.unpack("i", ioctl(descriptor, TIOCOUTQ, bytes(4))) != (0,)
    return False


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(main: Coroutine[Any, Any, T], *, sockets: bool = True, grace: float = GRACE) -> T:
    """Run the coroutine and return its result; without sockets, this takes no real time."""

    def new_loop() -> VirtualLoop:
        loop = VirtualLoop()
        loop._virtual.grace = grace if sockets else 0.0
        return loop

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)
