import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from monocloud_async import ConfigurationError, MonoCloudSession, config

KEY = "sentinel-key-4711"


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("acme.eu.monocloud.com", "https://acme.eu.monocloud.com"),
        ("https://acme.eu.monocloud.com", "https://acme.eu.monocloud.com"),
        ("https://acme.eu.monocloud.com/", "https://acme.eu.monocloud.com"),
        ("acme.eu.monocloud.com:8443/", "https://acme.eu.monocloud.com:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost", "http://localhost"),
        ("http://[::1]:80/", "http://[::1]:80"),
        ("https://10.0.0.1", "https://10.0.0.1"),
        ("xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        (f"{'a' * 63}.my_host.com", f"https://{'a' * 63}.my_host.com"),
    ],
)
def test_a_domain_comes_with_or_without_scheme_and_slash(domain: str, url: str) -> None:
    assert config.base_url(domain) == url


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        ("", "host name"),
        ("https://", "host name"),
        ("acme .com", "host name"),
        ("acme\n.com", "host name"),
        ("acme.com:99999", "host name"),
        ("acme..com", "host name"),
        (".", "host name"),
        ("acme.com.", "host name"),
        ("-acme.com", "host name"),
        (f"{'a' * 64}.com", "host name"),
        (f"{'a.' * 127}com", "host name"),
        ("127.1:80", "host name"),
        ("1.2.3.4.5", "host name"),
        ("http://127.0.0.1.:80", "host name"),
        ("http://[fe80::1%25eth0]", "host name"),
        ("http://[::1", "host name"),
        ("[bad", "host name"),
        ("acme.com/api", "path"),
        ("https://acme.com//", "path"),
        ("acme.com?x=1", "path"),
        ("acme.com?", "path"),
        ("acme.com#x", "path"),
        ("https://user:hunter2@acme.com", "credentials"),
        ("http://acme.com", "clear text"),
        ("http://127.0.0.1.evil.com", "clear text"),
        ("ftp://acme.com", "https"),
    ],
)
def test_a_domain_that_would_send_the_key_elsewhere_is_refused(domain: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        MonoCloudSession(domain, KEY)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "domain", [b"acme.eu.monocloud.com", 5, URL("https://acme.eu.monocloud.com")]
)
def test_a_domain_that_is_no_string_is_refused_and_not_shown(domain: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"not {type(domain).__name__}") as caught:
        MonoCloudSession(domain, KEY)
    assert "acme" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["", " ", f"{KEY}\n", f" {KEY}", f"{KEY}é", f"{KEY}\x00", KEY * 1000, KEY.encode()]
)
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MonoCloudSession("acme.com", key)
    assert KEY not in str(caught.value)


def test_domain_key_and_timeout_default_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(config.DOMAIN, "acme.com")
    monkeypatch.setenv(config.API_KEY, KEY)
    monkeypatch.setenv(config.TIMEOUT, "2500")
    session = MonoCloudSession()
    assert repr(session) == "<MonoCloudSession https://acme.com>"
    assert session._credentials.headers["X-API-KEY"] == KEY
    assert session._timeout == 2.5
    assert MonoCloudSession("other.com", timeout=3)._timeout == 3


@pytest.mark.parametrize("variable", [config.DOMAIN, config.API_KEY])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(config.DOMAIN, "acme.com")
    monkeypatch.setenv(config.API_KEY, KEY)
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError, match=variable):
        MonoCloudSession()


@pytest.mark.parametrize("value", ["ten", "0", "-5", "nan", "inf"])
def test_a_timeout_of_the_environment_that_is_no_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(config.TIMEOUT, value)
    with pytest.raises(ConfigurationError, match="TIMEOUT"):
        MonoCloudSession("acme.com", KEY)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        MonoCloudSession("acme.com", KEY, timeout=seconds)


def test_an_empty_timeout_of_the_environment_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(config.TIMEOUT, "")
    assert MonoCloudSession("acme.com", KEY)._timeout == 10.0


def test_a_recorder_may_copy_the_headers_with_the_key_but_not_pickle_them() -> None:
    headers = {"X-API-KEY": config.mask_key("sentinel-key-4711")}
    copied = copy.deepcopy(headers)
    assert copied == headers
    assert repr(copy.copy(copied["X-API-KEY"])) == "'****'"
    with pytest.raises(TypeError, match="credentials are not pickled"):
        pickle.dumps(copied)


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("http://localhost", "http://127.0.0.1"),
        ("http://localhost:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://localhost.example", "https://localhost.example"),
    ],
)
def test_localhost_is_the_name_of_its_address(tenant: str, name: str) -> None:
    assert config.tenant_name(tenant) == name


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
@pytest.mark.parametrize(
    ("mode", "ours", "advice"),
    [
        (0o600, True, None),
        (0o640, True, "chmod 600"),
        (0o604, True, "chmod 600"),
        (0o440, False, None),
        (0o444, False, "chmod o-r"),
    ],
)
def test_a_key_file_that_others_can_read_is_told_with_advice_that_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mode: int, ours: bool, advice: str | None
) -> None:
    key = tmp_path / "key"
    key.touch()
    key.chmod(mode)
    if not ours:
        monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1)
    warning = None if advice is None else f"Others on this machine can read the key: {advice} {key}"
    assert config.exposure(key) == warning
