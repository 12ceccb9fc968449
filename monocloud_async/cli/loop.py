"""Runs the event loop of the command line, with uvloop if installed, and handles signals."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import typer
from rich.console import Console

from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import INTERRUPTED, STOPPED
from monocloud_async.errors import ConfigurationError, InvalidUserIdError, MonoCloudError

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    """Run the coroutine on a new event loop and return its result; sets no global policy."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415  optional
    except ModuleNotFoundError:
        pass
    else:
        new_event_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


async def until_interrupted(work: Coroutine[object, object, T]) -> T:
    """Do the work; SIGINT and SIGTERM cancel it, and raise `CancelledError` here."""
    task = asyncio.ensure_future(work)

    def interrupt(_signal: signal.Signals) -> None:
        task.cancel()

    with signals(interrupt):
        return await task


def ask_tenant(work: Coroutine[object, object, object], err: Console) -> None:
    """Do work that only asks the tenant, on a new event loop.

    Raises:
        Exit: it was interrupted, or the tenant does not answer; an error of one line was printed.
        ConfigurationError, InvalidUserIdError: an error of usage.
    """
    try:
        run(until_interrupted(work))
    except (ConfigurationError, InvalidUserIdError):
        raise
    except asyncio.CancelledError:
        say(err, "Interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except MonoCloudError as error:
        say(err, f"Error: {error}")
        raise typer.Exit(STOPPED) from None


@contextmanager
def signals(interrupt: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call this function with each SIGINT, SIGTERM and SIGHUP; the third ends the process at once.

    A terminal that closes may send SIGHUP several times. It counts as the first signal or not at
    all, and not if it was ignored before, as under nohup.
    """
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = 0

    def hear(number: signal.Signals) -> None:
        nonlocal heard
        if number is hangup:
            before[number] = signal.SIG_IGN  # also after the work: it may come several times
            if heard:
                return
        heard += 1
        if heard > 1:  # cancelled: the next signal must end even a stuck process
            for each in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        interrupt(number)

    for number in numbers:
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
            loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(NotImplementedError):
                if loop.remove_signal_handler(number):  # it leaves Python's default
                    signal.signal(number, before[number])
