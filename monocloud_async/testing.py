"""Pytest fixtures that run the sandbox for your own tests; docs/testing.md shows them at work.

pytest loads this module into every run on a machine that has the package installed,
so it imports neither aiohttp nor the sandbox until a fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from monocloud_async import MonoCloudSession
    from monocloud_async.sandbox import Sandbox


def _fixture(function: Callable[..., AsyncIterator[Any]]) -> Any:
    """An async fixture; without pytest-asyncio, one that tells the test that wanted it."""
    try:
        import pytest_asyncio  # noqa: PLC0415 - not everybody who has this package has it
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
    """A running tenant, fresh for each test, with ten disabled users; in a thread of its own."""
    from monocloud_async.sandbox import Sandbox  # noqa: PLC0415 - see the module's docstring

    with Sandbox(users=10) as sandbox:
        yield sandbox


@_fixture
async def monocloud_session(monocloud_sandbox: Sandbox) -> AsyncIterator[MonoCloudSession]:
    """A session on that tenant whose retries wait for hundredths of a second."""
    from monocloud_async import MonoCloudSession, RetryPolicy  # noqa: PLC0415 - as above

    retry = RetryPolicy(wait_initial=0.01, wait_max=0.05)
    async with MonoCloudSession(
        monocloud_sandbox.url, monocloud_sandbox.api_key, retry=retry
    ) as session:
        yield session
