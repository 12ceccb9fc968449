"""From the options of a command to a session: the domain, the key, and how hard to try."""

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from monocloud_async.errors import ConfigurationError
from monocloud_async.retry import RetryPolicy
from monocloud_async.session import MonoCloudSession
from monocloud_async.tenant import base_url, masked

MAX_KEY = 8192  # bytes; what is longer was not meant as a key

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Which tenant, with which key. What is None comes from the environment."""

    domain: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None = None
    attempts: int = 4

    @property
    def tenant(self) -> str:
        """The tenant's address, as people may see it."""
        return base_url(self.domain)

    def session(self) -> MonoCloudSession:
        """A session, checked before anything is sent; `ConfigurationError` tells what is wrong."""
        retry = RetryPolicy(attempts=self.attempts)
        return MonoCloudSession(self.domain, self.api_key, timeout=self.timeout, retry=retry)


def read_key(path: Path, warn: Say) -> str:
    """The key in this file, less one line end; warns when others on this machine can read it.

    Raises:
        ConfigurationError: no such file, or no key in it. It never quotes what is in the file.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            content = file.read(MAX_KEY)
    except OSError as error:
        raise ConfigurationError(f"cannot read the key file {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"Others on this machine can read the key: chmod 600 {path}")
    # Latin-1 maps every byte, so that what is wrong with the key is told in one place: the session.
    return masked(content.decode("latin-1").removesuffix("\n").removesuffix("\r"))
