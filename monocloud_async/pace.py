"""The tenant's pace, shared by every call of a session: when it says 429, everyone waits once."""

import asyncio

from monocloud_async.errors import RateLimitedError

MAX_PAUSE = 900.0  # seconds; a run that the tenant holds longer than this is stopped

_FIRST_PAUSE = 0.5
_LONGEST_GUESS = 30.0


class Pace:
    """Holds calls back while the tenant asks for a pause; costs nothing while it does not."""

    def __init__(self) -> None:
        self._until = 0.0
        self._guess = _FIRST_PAUSE
        self._refused_since: float | None = None

    def __repr__(self) -> str:
        return f"<Pace {'paused' if self._until else 'open'}>"

    def pause_left(self, now: float) -> float:
        """Seconds until the next request may go out; 0.0 when it may go now."""
        return max(0.0, self._until - now)

    def granted(self) -> None:
        """The tenant let a request in."""
        if self._refused_since is not None:
            self._guess, self._refused_since = _FIRST_PAUSE, None

    def throttled(self, error: RateLimitedError, sent_at: float, now: float) -> bool:
        """Pause after a 429; False when the tenant has held us off too long to go on waiting."""
        if self._refused_since is None:
            self._refused_since = now
        wait = error.retry_after
        if wait is None:
            if sent_at < self._until:
                return True  # sent before the last pause ended: old news
            wait, self._guess = self._guess, min(self._guess * 2, _LONGEST_GUESS)
        self._until = max(self._until, now + wait)
        return self._until - self._refused_since <= MAX_PAUSE

    async def ready(self) -> None:
        """Returns when a request may go out."""
        clock = asyncio.get_running_loop().time
        # A 429 that arrives meanwhile moves the moment: look again.
        while (left := self._until - clock()) > 0:  # noqa: ASYNC110  nobody else knows the moment
            await asyncio.sleep(left)
