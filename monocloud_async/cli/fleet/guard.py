"""A process that ends the parts of `fleet dev` if that is killed and cannot do it itself.

It reads process ids from a pipe, one in a line, and with a minus those that have ended. The pipe's
end is the end of `fleet dev`, however it came about.
"""

import os
import signal
import sys
import time
from contextlib import suppress

_END = 70.0  # seconds that a process may take to end before it is killed


def main() -> None:
    """Wait for the end of the pipe, and end the processes: the first one, Temporal, as the last."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parts: list[int] = []
    for line in sys.stdin:
        number = int(line)
        if number > 0:
            parts.append(number)
        else:
            parts.remove(-number)
    _end(parts[1:])
    _end(parts[:1])


def _end(parts: list[int]) -> None:
    deadline = time.monotonic() + _END
    left = _told(parts, signal.SIGTERM)
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = _told(left, 0)
    _told(left, signal.SIGKILL)


def _told(parts: list[int], number: int) -> list[int]:
    """Send a signal to these processes, and return those that are still there."""
    there = []
    for part in parts:
        with suppress(ProcessLookupError):
            os.kill(part, number)
            there.append(part)
    return there


if __name__ == "__main__":
    main()
