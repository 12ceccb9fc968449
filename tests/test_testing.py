"""The pytest plugin works in users' test suites, and does nothing unless a fixture is used."""

from pathlib import Path

import pytest
from suites import run_suite

pytestmark = pytest.mark.process


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_fixtures_work_in_both_modes_of_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    output = run_suite(
        tmp_path,
        f"""
        import time

        import pytest

        {mark}
        async def test_enable(monocloud_sandbox, monocloud_session):
            user_id = monocloud_sandbox.user_ids()[0]
            monocloud_sandbox.script(user_id, 503, "reset", 500)
            started = time.monotonic()
            user = await monocloud_session.enable_user(user_id)
            assert time.monotonic() - started < 1  # the usual waits would add up to more
            assert user.disabled is False
            assert monocloud_sandbox.stats().requests == 4

        {mark}
        async def test_fresh(monocloud_sandbox):
            assert monocloud_sandbox.stats().requests == 0
            assert monocloud_sandbox.stats().users == {{"enabled": 0, "disabled": 10}}
        """,
        f"--asyncio-mode={mode}",
    )
    assert "2 passed" in output, output


def test_a_suite_that_uses_no_fixture_never_imports_the_sandbox(tmp_path: Path) -> None:
    output = run_suite(
        tmp_path,
        """
        import sys

        def test_absent():
            assert "monocloud_async.testing" in sys.modules
            assert not {"aiohttp.web", "monocloud_async.sandbox"} & set(sys.modules)
    """,
    )
    assert "1 passed" in output, output


@pytest.mark.parametrize("tests", ["function", "module", "session"])
@pytest.mark.parametrize("fixtures", ["function", "session"])
def test_the_fixtures_work_with_every_scope_of_event_loops(
    tmp_path: Path, fixtures: str, tests: str
) -> None:
    output = run_suite(
        tmp_path,
        """
        import pytest_asyncio

        @pytest_asyncio.fixture
        async def ada(monocloud_sandbox):
            return monocloud_sandbox.user_ids()[0]

        async def test_one(ada, monocloud_session):
            assert (await monocloud_session.enable_user(ada)).disabled is False

        async def test_many(monocloud_sandbox, monocloud_session):
            report = await monocloud_session.bulk_enable(monocloud_sandbox.user_ids())
            assert report.enabled == 10
        """,
        "--asyncio-mode=auto",
        *["-o", f"asyncio_default_fixture_loop_scope={fixtures}"],
        *["-o", f"asyncio_default_test_loop_scope={tests}"],
    )
    assert "2 passed" in output, output


def test_the_fixtures_work_with_the_plugin_of_anyio(tmp_path: Path) -> None:
    output = run_suite(
        tmp_path,
        """
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.anyio
        async def test_one(monocloud_sandbox, monocloud_session):
            await monocloud_session.enable_user(monocloud_sandbox.user_ids()[0])

        def test_other(monocloud_session):
            assert "127.0.0.1" in monocloud_session.tenant
        """,
        *["-p", "no:asyncio"],
    )
    assert "2 passed" in output, output


def test_the_fixtures_work_in_several_processes(tmp_path: Path) -> None:
    output = run_suite(
        tmp_path,
        """
        import pytest

        @pytest.mark.parametrize("turn", range(4))
        async def test_one(turn, monocloud_sandbox, monocloud_session):
            report = await monocloud_session.bulk_enable(monocloud_sandbox.user_ids())
            assert report.enabled == monocloud_sandbox.stats().requests == 10
        """,
        *["--asyncio-mode=auto", "-n", "2"],
    )
    assert "4 passed" in output, output
