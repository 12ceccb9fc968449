"""Pytest fixtures that run the sandbox for your own tests; see docs/testing.md.

pytest loads this module wherever the package is installed, also for unrelated tests. So aiohttp and
the sandbox are imported only when a fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from monocloud_async import MonoCloudSession
    from monocloud_async.sandbox import Sandbox


def _fixture(function: Callable[..., AsyncIterator[Any]]) -> Any:
    """Return an async fixture; without pytest-asyncio, one that fails the test with advice."""
    try:
        import pytest_asyncio  # noqa: PLC0415 - an optional dependency
    except ImportError:

        def missing() -> None:
            pytest.fail(
                f"{function.__name__} needs pytest-asyncio: pip install pytest-asyncio",
                pytrace=False,
            )

        return pytest.fixture(name=function.__name__)(missing)
    return pytest_asyncio.fixture(function)


@pytest.fixture
def monocloud_sandbox() -> Iterator[Sandbox]:
    """A new sandbox for each test, with ten disabled users; it runs in its own thread."""
    from monocloud_async.sandbox import Sandbox  # noqa: PLC0415 - see the module's docstring

    with Sandbox(users=10) as sandbox:
        yield sandbox


@_fixture
async def monocloud_session(monocloud_sandbox: Sandbox) -> AsyncIterator[MonoCloudSession]:
    """A session connected to the sandbox; its retries wait only hundredths of a second."""
    from monocloud_async import MonoCloudSession, RetryPolicy  # noqa: PLC0415 - as above

    retry = RetryPolicy(wait_initial=0.01, wait_max=0.05)
    async with MonoCloudSession(
        monocloud_sandbox.url, monocloud_sandbox.api_key, retry=retry
    ) as session:
        yield session
