"""The life of a session: who may use it, what is in progress, and when nothing is any more."""

import asyncio
import os
from enum import Enum, auto

from monocloud_async import config
from monocloud_async.errors import ConfigurationError, closed_error

_forks = 0  # that led to this process


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  there is one count for each process
    _forks += 1


if hasattr(os, "register_at_fork"):  # to ask for the process number would be a system call
    os.register_at_fork(after_in_child=_count_fork)


class SessionState(Enum):
    """OPEN ── close() ──▶ CLOSING ── all calls ended, or the time is over ──▶ CLOSED."""

    OPEN = auto()
    CLOSING = auto()  # no new calls and runs; those in progress may still send requests
    CLOSED = auto()


class Lifecycle:
    """The state of a session, and how much of it is in progress.

    Attributes:
        state: whether calls and runs may begin, or go on.
        loop: the event loop of the session, from its first call on.
        in_progress: how many single calls and runs are.
        idle: set once nothing is in progress, and nothing can begin.
    """

    def __init__(self) -> None:
        self.state = SessionState.OPEN
        self.loop: asyncio.AbstractEventLoop | None = None
        self.in_progress = 0
        self.idle = asyncio.Event()
        self._forks = 0  # before the first call

    def begin(self) -> asyncio.AbstractEventLoop:
        """Count a call or a run as in progress until `end`, and return the event loop.

        Raises:
            ConfigurationError: the session is closed, or belongs to another event loop or process,
                or this runs in no event loop of asyncio.
        """
        loop = config.event_loop()
        self.check_usable(loop)
        self.loop, self._forks = loop, _forks
        self.in_progress += 1
        return loop

    def end(self) -> None:
        """Note that a call or a run has ended."""
        self.in_progress -= 1
        self._note_idle()

    def check_usable(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Raise `ConfigurationError` if the session is closed, or belongs to somebody else."""
        if self.state is not SessionState.OPEN:
            raise closed_error()
        if self.is_forked:
            # Its connections are shared: one process would read the responses of another.
            raise ConfigurationError("this session belongs to another process; open one here")
        if loop is not None and self.loop is not None and self.loop is not loop:
            raise ConfigurationError("this session belongs to another event loop; open one here")

    @property
    def is_forked(self) -> bool:
        """Whether the session was used before this process was forked, and so in another one."""
        return self.loop is not None and self._forks != _forks

    def close(self) -> None:
        """Let nothing begin from now on; what is in progress may go on."""
        if self.state is SessionState.OPEN:
            self.state = SessionState.CLOSING
        self._note_idle()

    def _note_idle(self) -> None:
        if self.state is not SessionState.OPEN and not self.in_progress:
            self.idle.set()
