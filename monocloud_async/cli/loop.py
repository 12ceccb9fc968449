"""The event loop of the command line: uvloop where it is installed."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    """What the coroutine returns. No policy is set: a loop is made for this call alone."""
    try:
        from uvloop import new_event_loop  # noqa: PLC0415  not on Windows, and never required
    except ModuleNotFoundError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
