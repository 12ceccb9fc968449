"""The pytest plugin works in users' test suites, and does nothing unless a fixture is used."""

import os
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


def test_without_pytest_asyncio_only_tests_that_need_it_fail_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "pytest_asyncio.py").write_text("raise ImportError('as if not installed')")
    monkeypatch.setenv("PYTHONPATH", str(absent), prepend=os.pathsep)
    output = run_suite(
        tmp_path,
        """
        def test_one(monocloud_sandbox): ...
        def test_other(monocloud_session): ...
        def test_neither(): ...
        """,
        *["-p", "no:asyncio"],
    )
    assert "2 passed, 1 error" in output, output
    assert "monocloud_session needs pytest-asyncio: pip install pytest-asyncio" in output
