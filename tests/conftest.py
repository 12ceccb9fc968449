from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from monocloud_async import MonoCloudSession, RetryPolicy, tenant
from monocloud_async.sandbox import Sandbox

# By hand: pytest tests/hostile/test_fuzz.py --hypothesis-profile=long
settings.register_profile("long", max_examples=20_000, deadline=None)

QUICK = RetryPolicy(wait_initial=0.001, wait_max=0.002)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tenant.DOMAIN, tenant.API_KEY, tenant.TIMEOUT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=20) as sandbox:
        yield sandbox


@pytest.fixture
async def session(sandbox: Sandbox) -> AsyncIterator[MonoCloudSession]:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=QUICK) as session:
        yield session
