"""Makes a session from the options of a command: domain, key, timeout, retries and proxy."""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from monocloud_async.config import base_url, check_key, exposure, mask_key, proxy_of_environment
from monocloud_async.connector import Connector
from monocloud_async.errors import ConfigurationError
from monocloud_async.retry import RetryPolicy
from monocloud_async.session import MonoCloudSession

MAX_KEY = 8192  # bytes; a longer file is not a key

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """The tenant, the key and the limits of a session; None means: from the environment."""

    domain: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None = None
    attempts: int = 4

    @property
    def tenant(self) -> str:
        """The address of the tenant, safe to display."""
        return base_url(self.domain)

    @property
    def proxy(self) -> str | None:
        """The system's proxy for the tenant; see `config.proxy_of_environment`."""
        return proxy_of_environment(self.tenant)

    def check(self) -> None:
        """Raise `ConfigurationError` if the options cannot be used; sends nothing."""
        self._session(None)
        _ = self.proxy

    @asynccontextmanager
    async def session(self) -> AsyncIterator[MonoCloudSession]:
        """Open a session; raises `ConfigurationError` if the options cannot be used."""
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
    """Return the key in this file, without its line end; warns if other users can read the file.

    Raises:
        ConfigurationError: the file cannot be read, or has no key, or more than a key. The message
            never quotes the file.
    """
    try:
        with path.open("rb") as file:
            warning = exposure(path)
            content = file.read(MAX_KEY)
    except OSError as error:
        raise ConfigurationError(f"cannot read the key file {path}: {error.strerror}") from None
    content = content.removeprefix(BOM_UTF8)  # some editors on Windows write it
    if not content.strip():
        raise ConfigurationError(f"the key file {path} is empty")
    # Latin-1 decodes any bytes, so only `check_key` decides what a key is.
    key = mask_key(content.decode("latin-1").removesuffix("\n").removesuffix("\r"))
    del content  # or a traceback with locals would show the key
    check_key(key, f"the API key in {path}")
    if warning is not None:
        warn(warning)
    return key
