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
    """Wait for the end of the pipe, and end the processes, the last one first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parts: list[int] = []
    for line in sys.stdin:
        number = int(line)
        if number > 0:
            parts.append(number)
        else:
            parts.remove(-number)
    for part in reversed(parts):
        _end(part)


def _end(part: int) -> None:
    deadline = time.monotonic() + _END
    with suppress(ProcessLookupError):
        os.kill(part, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(part, 0)  # raises when it has ended
            time.sleep(0.05)
        os.kill(part, signal.SIGKILL)


if __name__ == "__main__":
    main()
