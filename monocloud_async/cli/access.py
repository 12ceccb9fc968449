"""From the options of a command to a session: domain, key, how hard to try, and the way there."""

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from monocloud_async.config import base_url, mask_key, proxy_of_environment
from monocloud_async.connector import Connector
from monocloud_async.errors import ConfigurationError
from monocloud_async.retry import RetryPolicy
from monocloud_async.session import MonoCloudSession

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

    @property
    def proxy(self) -> str | None:
        """The proxy that the system has for the tenant; see `tenant.proxy_of_environment`."""
        return proxy_of_environment(self.tenant)

    def check(self) -> None:
        """Nothing, or a `ConfigurationError` that tells what is wrong, before anything is sent."""
        self._session(None)
        _ = self.proxy

    @asynccontextmanager
    async def session(self) -> AsyncIterator[MonoCloudSession]:
        """A session, checked before anything is sent; `ConfigurationError` tells what is wrong."""
        if self.proxy is None:
            async with self._session(None) as session:
                yield session
            return
        async with (
            aiohttp.ClientSession(connector=Connector(), proxy=self.proxy) as client,
            self._session(client) as session,
        ):
            yield session

    def _session(self, client: aiohttp.ClientSession | None) -> MonoCloudSession:
        return MonoCloudSession(
            self.domain,
            self.api_key,
            timeout=self.timeout,
            retry=RetryPolicy(attempts=self.attempts),
            client_session=client,
        )


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
    if not content.strip():
        raise ConfigurationError(f"the key file {path} is empty")
    # systemd's own are for the service alone, by an access list that looks like the group's.
    systemds = os.environ.get("CREDENTIALS_DIRECTORY")
    if systemds is not None and path.is_relative_to(systemds):
        mode = 0
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"Others on this machine can read the key: chmod 600 {path}")
    # Latin-1 maps every byte, so that what is wrong with the key is told in one place: the session.
    return mask_key(content.decode("latin-1").removesuffix("\n").removesuffix("\r"))
