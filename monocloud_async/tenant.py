"""Which tenant, with which key: what the caller or the environment said, checked before any I/O."""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from multidict import CIMultiDict, CIMultiDictProxy

from monocloud_async.errors import ConfigurationError
from monocloud_async.wire import ACCEPT, USER_AGENT

DOMAIN = "MONOCLOUD_MANAGEMENT_DOMAIN"
API_KEY = "MONOCLOUD_MANAGEMENT_API_KEY"
TIMEOUT = "MONOCLOUD_MANAGEMENT_TIMEOUT"  # milliseconds, as the official clients have it

_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_HOST = re.compile(r"[A-Za-z0-9.\-_\[\]:]+")


class _Masked(str):
    """A header's value that does not show itself in the `repr` of what holds it.

    aiohttp's frames hold the headers as locals, which a traceback with locals prints.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'****'"


class Credentials:
    """The headers of every request, the key among them, in a form that does not print or pickle."""

    __slots__ = ("headers",)

    headers: Mapping[str, str]

    def __init__(self, api_key: str) -> None:
        self.headers = CIMultiDictProxy(
            CIMultiDict({"X-API-KEY": _Masked(api_key), "Accept": ACCEPT, "User-Agent": USER_AGENT})
        )

    def __repr__(self) -> str:
        return "<credentials>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled: give the key to the new process itself")


def credentials(api_key: str | None) -> Credentials:
    """The headers for this key, or for the one of the environment.

    Raises:
        ConfigurationError: no key, or one that no header can hold; it never quotes the key.
    """
    key = (os.environ.get(API_KEY) or None) if api_key is None else api_key
    if key is None:
        raise ConfigurationError(f"no API key: pass api_key, or set {API_KEY}")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ConfigurationError(
            "the API key is empty, too long, or has characters other than visible ASCII;"
            " look for a stray space or line break"
        )
    return Credentials(key)


def base_url(domain: str | None) -> str:
    """The tenant's `https://host[:port]`, from a domain with or without scheme and final slash.

    Raises:
        ConfigurationError: no domain, or one with a path, a query or credentials in it, or plain
            `http://` to anything but this machine.
    """
    named = (os.environ.get(DOMAIN) or None) if domain is None else domain
    if named is None:
        raise ConfigurationError(f"no domain: pass domain, or set {DOMAIN}")
    text = named if "://" in named else f"https://{named}"
    parts, host, port = _split(text.removesuffix("/"))
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the domain has credentials in it; pass the API key as api_key")
    if parts.path or parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ConfigurationError(
            f"the domain {_shown(host)} has a path or a query after it; leave it out"
        )
    if parts.scheme not in {"https", "http"}:
        raise ConfigurationError(f"the domain {_shown(host)} must be https://")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"http:// would send the API key to {_shown(host)} in clear text; use https://"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}{'' if port is None else f':{port}'}"


def timeout(seconds: float | None) -> float:
    """The timeout in seconds: the one given, or the environment's (milliseconds), or 10.

    Raises:
        ConfigurationError: not a positive, finite number.
    """
    if seconds is not None:
        return positive("timeout", seconds)
    milliseconds = os.environ.get(TIMEOUT)
    if not milliseconds:
        return 10.0
    try:
        return positive(TIMEOUT, float(milliseconds) / 1000)
    except ValueError:
        pass
    raise ConfigurationError(f"{TIMEOUT} must be a number of milliseconds above 0")


def positive(name: str, value: float) -> float:
    """The value, if it is above 0 and finite; else raises `ConfigurationError`."""
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a number above 0, not {value!r}")
    return value


def _split(text: str) -> tuple[SplitResult, str, int | None]:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        if host and _HOST.fullmatch(host) and not any(map(str.isspace, text)):
            return parts, host, port
    except ValueError:
        pass
    raise ConfigurationError(
        "the domain is not a host name; it looks like <slug>.<region>.monocloud.com"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    return repr(host[:253])
