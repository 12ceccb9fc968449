"""Checks the configuration from the caller or the environment, before anything is sent."""

import asyncio
import ipaddress
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, SupportsIndex
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from monocloud_async.endpoint import ACCEPT, USER_AGENT
from monocloud_async.errors import ConfigurationError

if TYPE_CHECKING:
    import aiohttp

DOMAIN = "MONOCLOUD_MANAGEMENT_DOMAIN"
API_KEY = "MONOCLOUD_MANAGEMENT_API_KEY"
TIMEOUT = "MONOCLOUD_MANAGEMENT_TIMEOUT"  # milliseconds, as in the official clients
HIDDEN: Final = "****"  # in the place of a secret

_READ_BY_AIOHTTP: Final = {"http", "https", "ws", "wss"}  # the schemes whose proxies aiohttp reads
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_NOT_PICKLED = "credentials are not pickled: give the key to the new process itself"
# A label has at most 63 characters, and a name 253 (RFC 1035, section 2.3.4).
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")


class MaskedKey(str):
    """A key whose `repr` is masked, also in containers, and also for parts of the key.

    A traceback with locals prints the variables of all frames: ours have the key, and aiohttp's
    have the headers.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{HIDDEN}'"

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NOT_PICKLED)

    def __copy__(self) -> "MaskedKey":
        return self

    def __deepcopy__(self, _memo: object) -> "MaskedKey":
        return self  # recorders such as VCR.py copy a request before they remove the key

    def __getitem__(self, part: SupportsIndex | slice) -> "MaskedKey":
        return MaskedKey(super().__getitem__(part))  # rich slices a string before printing it


class Credentials:
    """The headers of every request, including the key; they cannot be printed or pickled."""

    __slots__ = ("headers",)

    headers: Mapping[str, str]

    def __init__(self, api_key: MaskedKey, *, compression: bool) -> None:
        self.headers = CIMultiDictProxy(
            CIMultiDict(
                {
                    "X-API-KEY": api_key,
                    "Accept": ACCEPT,
                    "Accept-Encoding": "gzip" if compression else "identity",
                    "User-Agent": USER_AGENT,
                }
            )
        )

    def __repr__(self) -> str:
        return "<credentials>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NOT_PICKLED)


def mask_key(api_key: str | None) -> MaskedKey:
    """Mask this key, or that of the environment, or an empty one, without checking it."""
    if api_key is None:
        return MaskedKey(os.environ.get(API_KEY, ""))
    # A value of another type is not valid, but must not appear in tracebacks either.
    return MaskedKey(api_key) if isinstance(api_key, str) else MaskedKey(" ")


def exposure(key_file: Path) -> str | None:
    """Return a warning if other users of this machine can read this key file.

    The file of another user may be open to a group, because this process needs that to read it: so
    Kubernetes gives a secret to a pod.
    """
    # systemd protects credentials with an access list, which looks like group permissions.
    systemds = os.environ.get("CREDENTIALS_DIRECTORY")
    found = key_file.stat()
    if not stat.S_ISREG(found.st_mode) or (systemds and key_file.is_relative_to(systemds)):
        return None
    ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    if not found.st_mode & (stat.S_IROTH | (stat.S_IRGRP if ours else 0)):
        return None
    return f"Others on this machine can read the key: chmod {'600' if ours else 'o-r'} {key_file}"


def credentials(api_key: MaskedKey, *, compression: bool = False) -> Credentials:
    """Return the headers for this key.

    Raises:
        ConfigurationError: there is no key, or it is not valid in a header. Never quotes the key.
    """
    if not api_key:
        raise ConfigurationError(
            f"no API key: pass api_key (--api-key-file on the command line), or set {API_KEY}"
        )
    check_key(api_key)
    return Credentials(api_key, compression=compression)


def check_key(api_key: MaskedKey, named: str = "the API key") -> None:
    """Raise `ConfigurationError` if this key is not valid in a header. Never quotes the key."""
    if not _KEY.fullmatch(api_key):
        raise ConfigurationError(
            f"{named} is no text, too long, or has characters other than visible ASCII;"
            " look for a stray space or line break"
        )


def base_url(domain: str | None) -> str:
    """Return the tenant's `https://host[:port]`, from a domain with or without scheme and slash.

    Raises:
        ConfigurationError: there is no domain, or it has a path, a query or credentials, or is
            plain `http://` to another machine.
    """
    named = (os.environ.get(DOMAIN) or None) if domain is None else domain
    if named is None:
        raise ConfigurationError(
            f"no domain: pass domain (--domain or --profile on the command line), or set {DOMAIN}"
        )
    if not isinstance(named, str):  # not shown, because it may be the key, passed as the domain
        raise ConfigurationError(f"the domain is a str, not {type(named).__name__}")
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
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(
            f"http:// would send the API key to {_shown(host)} in clear text; use https://"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}{'' if port is None else f':{port}'}"


def proxy_of_environment(base_url: str) -> str | None:
    """Return the system's proxy for this tenant, as curl and pip use it, or None.

    On Linux, this is `HTTPS_PROXY`, unless `NO_PROXY` excludes the tenant. The proxy gets only
    CONNECT, so it never sees the key. A tenant at plain HTTP, on this machine, has no proxy.

    Raises:
        ConfigurationError: the address of the proxy is not valid.
    """
    parts = urlsplit(base_url)
    proxy = getproxies().get("https") if parts.scheme == "https" else None
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return _checked_proxy(proxy if "://" in proxy else f"http://{proxy}", _variable("https"))


def check_proxy(client: "aiohttp.ClientSession", base_url: str) -> None:
    """Check that a proxy of this client, if any, cannot see the key.

    Raises:
        ConfigurationError: the address of the proxy is not valid, or the proxy would get the key in
            clear text, because the tenant is at a plain `http://` address.
    """
    # aiohttp has no public attribute for the proxy of a session.
    proxy, named = getattr(client, "_default_proxy", None), "the proxy of the client_session"
    tenant_scheme, _, host = base_url.partition("://")
    if proxy is None and client.trust_env and not proxy_bypass(urlsplit(base_url).hostname or host):
        proxies = getproxies()
        for scheme in _READ_BY_AIOHTTP & proxies.keys():
            _checked_url(proxies[scheme], _variable(scheme))
        proxy, named = proxies.get(tenant_scheme), _variable(tenant_scheme)
    if proxy is None:
        return
    _checked_proxy(str(proxy), named)
    if tenant_scheme == "http":
        raise ConfigurationError(
            f"{named} would get the API key in clear text, because {base_url} is not https://;"
            " take a client_session without a proxy"
        )


def _checked_proxy(address: str, named: str) -> str:
    """Return the address of a proxy if it is valid. No error shows it: it may have a password."""
    _checked_url(address, named)
    parts = urlsplit(address)
    if (
        parts.scheme in {"http", "https"}
        and _is_host((parts.hostname or "").removesuffix(".").encode("idna").decode())
        and parts.port != 0
        and parts.path in {"", "/"}
        and not parts.query + parts.fragment
        and address.isprintable()
        and " " not in address
    ):
        if _can_sign_in(address):
            return address
        raise ConfigurationError(
            f"{named} has a user or a password that cannot be sent: the user may have no colon,"
            " and both only characters of Latin-1"
        )
    raise _no_proxy(named)


def _can_sign_in(proxy: str) -> bool:
    """Return whether aiohttp can send the user and the password of this proxy, if it has any."""
    from aiohttp import BasicAuth  # noqa: PLC0415  slow to import, and few have a proxy

    try:
        if (auth := BasicAuth.from_url(URL(proxy))) is not None:
            auth.encode()
    except ValueError:
        return False
    return True


def _checked_url(address: str, named: str) -> None:
    try:
        URL(address)  # aiohttp parses it like this
        _ = urlsplit(address).port
        (urlsplit(address).hostname or "").removesuffix(".").encode("idna")
    except ValueError:
        invalid = _no_proxy(named)
    else:
        return
    raise invalid  # outside the `except`, because the parser's error contains the address


def _no_proxy(named: str) -> ConfigurationError:
    return ConfigurationError(f"{named} must be an address such as http://proxy:3128")


def _variable(scheme: str) -> str:
    """Return the environment variable that has the proxy for this scheme; lower case wins."""
    name = f"{scheme}_proxy"
    return name if os.environ.get(name) else name.upper()


def timeout(seconds: float | None) -> float:
    """Return the timeout in seconds: as given, or from the environment (milliseconds), or 10.

    Raises:
        ConfigurationError: the timeout is not a positive, finite number.
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
    """Return the value; raises `ConfigurationError` unless it is above 0 and finite."""
    if not (_is_finite(value) and value > 0):
        raise ConfigurationError(f"{name} must be a number above 0, not {_shown_value(value)}")
    return value


def not_negative(name: str, value: float) -> float:
    """Return the value; raises `ConfigurationError` unless it is 0 or more, and finite."""
    if not (_is_finite(value) and value >= 0):
        raise ConfigurationError(f"{name} must be a number, 0 or more, not {_shown_value(value)}")
    return value


def _is_finite(value: object) -> bool:
    # Python's integers may be larger than any float, and are in no calculation with one.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _shown_value(value: object) -> str:
    is_huge = isinstance(value, int) and not _is_finite(value)
    return "one that large" if is_huge else repr(value)  # Python refuses to print huge integers


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        ConfigurationError: there is none, because this is called from something else than asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    raise ConfigurationError("this needs a running event loop of asyncio; trio has none")


def _split(text: str) -> tuple[SplitResult, str, int | None]:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        named = "." in host or ":" in host or host == "localhost"
        if named and _is_host(host) and not any(map(str.isspace, text)):
            return parts, host, port
    except ValueError:
        pass
    # Not shown, because it may be the key, passed as the domain.
    raise ConfigurationError(
        "the domain is not a tenant's host name, which looks like <slug>.<region>.monocloud.com"
    )


def _is_host(host: str) -> bool:
    """Return whether this is a host name or an IP address; names do not end in a number."""
    if ":" in host or host.rpartition(".")[2].isdigit():
        return _address(host) is not None
    return _NAME.fullmatch(host) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether this host is this machine."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def tenant_name(tenant: str) -> str:
    """Return the address by which tenants are compared: localhost is 127.0.0.1."""
    scheme, separator, host = tenant.partition("://")
    name, colon, port = host.partition(":")
    return f"{scheme}{separator}127.0.0.1{colon}{port}" if name == "localhost" else tenant


def _shown(host: str) -> str:
    return repr(host[:253])
