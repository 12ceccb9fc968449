"""The event loop of the command line, uvloop where it is installed, and the signals that end it."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    """What the coroutine returns. No policy is set: a loop is made for this call alone."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415  not on Windows, and never required
    except ModuleNotFoundError:
        pass
    else:
        new_event_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


@contextmanager
def signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, and what a supervisor sends, call this; the third one ends the process at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1
        if heard > 1:  # drained, now cancelled: what is left is to end, whatever is stuck
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
        interrupt()

    for number in numbers:
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
            loop.add_signal_handler(number, hear)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
