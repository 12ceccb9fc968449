from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings
from ways import hooked

from monocloud_async import MonoCloudSession, RetryPolicy, config
from monocloud_async.sandbox import Sandbox

# By hand: pytest tests/hostile --hypothesis-profile=long
settings.register_profile("long", max_examples=20_000, deadline=None)

QUICK = RetryPolicy(wait_initial=0.001, wait_max=0.002)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hooked",
        action="store_true",
        help="hook ClientSession, as tracers do: all calls of this"
        " process go the standard path then",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("hypothesis_profile") == "long":
        config.option.timeout = 0  # a person can interrupt a long run


@pytest.fixture(autouse=True, scope="session")
def _hooked(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("hooked"):
        yield
        return
    with hooked():
        yield


@pytest.fixture(scope="session")
def by_hand() -> bool:
    """Whether to run everything, also what is too slow for CI: the profile `long`."""
    return settings.get_current_profile_name() == "long"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (config.DOMAIN, config.API_KEY, config.TIMEOUT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=20) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox: Sandbox) -> AsyncIterator[MonoCloudSession]:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        yield session
