"""An event loop whose clock jumps over waits: pauses of minutes pass in milliseconds.

Sockets stay real: the clock only jumps when no socket has had anything to say for a moment.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 0.02  # real seconds within which a local server certainly responds


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0
    grace = GRACE

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        events = super().select(min(timeout, self.grace) if timeout > 0 else 0)
        if not events and timeout > 0:
            self.now += timeout
        return events


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
