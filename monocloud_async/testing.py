"""For your own tests: pytest fixtures that run the sandbox, and a session without sockets.

docs/testing.md shows both.

pytest loads this module wherever the package is installed, also for unrelated tests. So aiohttp and
the sandbox are imported only when a fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monocloud_async import MonoCloudSession
    from monocloud_async.fake import FakeMonoCloud
    from monocloud_async.sandbox import Sandbox

__all__ = ["FakeMonoCloud", "monocloud_sandbox", "monocloud_session"]


@pytest.fixture
def monocloud_sandbox() -> Iterator[Sandbox]:
    """A new sandbox for each test, with ten disabled users; it runs in its own thread."""
    from monocloud_async.sandbox import Sandbox  # noqa: PLC0415 - see the module's docstring

    with Sandbox(users=10) as sandbox:
        yield sandbox


@pytest.fixture
def monocloud_session(monocloud_sandbox: Sandbox) -> Iterator[MonoCloudSession]:
    """A session connected to the sandbox; its retries wait only hundredths of a second.

    It belongs to the event loop on which the test uses it, whichever plugin and scope that is of.
    """
    import asyncio  # noqa: PLC0415 - see the module's docstring

    from monocloud_async import MonoCloudSession  # noqa: PLC0415 - as above
    from monocloud_async.fake import QUICK  # noqa: PLC0415 - as above

    session = MonoCloudSession(monocloud_sandbox.url, monocloud_sandbox.api_key, retry=QUICK)
    yield session
    loop = asyncio.new_event_loop()
    loop.run_until_complete(session.close())
    loop.close()


if not TYPE_CHECKING:  # a type checker would then accept every name

    def __getattr__(name: str) -> Any:
        """Import `FakeMonoCloud` when it is first used."""
        if name != "FakeMonoCloud":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from monocloud_async.fake import FakeMonoCloud  # noqa: PLC0415 - see the docstring

        return FakeMonoCloud
