"""The pytest plugin does its work in other people's suites, and nothing where it is not wanted."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

Suite = Callable[..., str]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Runs a suite as its own project and answers what pytest printed."""
    installed = entry_points(group="pytest11", name="monocloud_async")
    plugin = [] if installed else ["-p", "monocloud_async.testing"]

    def run(test: str, *options: str) -> str:
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        (tmp_path / "test_mine.py").write_text(textwrap.dedent(test))
        process = subprocess.run(
            [sys.executable, "-m", "pytest", *plugin, *options, "--rootdir", tmp_path, tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
        return process.stdout + process.stderr

    return run


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_fixtures_work_in_both_modes_of_pytest_asyncio(suite: Suite, mode: str) -> None:
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    output = suite(
        f"""
        import pytest

        {mark}
        async def test_enable(monocloud_sandbox, monocloud_session):
            user_id = monocloud_sandbox.user_ids()[0]
            monocloud_sandbox.script(user_id, 503, "reset")
            user = await monocloud_session.enable_user(user_id)
            assert user.disabled is False
            assert monocloud_sandbox.stats().requests == 3

        {mark}
        async def test_fresh(monocloud_sandbox):
            assert monocloud_sandbox.stats().requests == 0
            assert monocloud_sandbox.stats().users == {{"enabled": 0, "disabled": 10}}
        """,
        f"--asyncio-mode={mode}",
    )
    assert "2 passed" in output, output


def test_a_suite_that_uses_no_fixture_never_imports_the_sandbox(suite: Suite) -> None:
    output = suite("""
        import sys

        def test_absent():
            assert "monocloud_async.testing" in sys.modules
            assert not {"aiohttp.web", "monocloud_async.sandbox"} & set(sys.modules)
    """)
    assert "1 passed" in output, output


def test_without_pytest_asyncio_only_tests_that_need_it_fail_and_say_why(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "pytest_asyncio.py").write_text("raise ImportError('as if not installed')")
    monkeypatch.setenv("PYTHONPATH", str(absent), prepend=os.pathsep)
    output = suite(
        """
        def test_one(monocloud_sandbox): ...
        def test_other(monocloud_session): ...
        def test_neither(): ...
        """,
        *["-p", "no:asyncio"],
    )
    assert "1 passed, 2 errors" in output, output
    assert "monocloud_sandbox needs pytest-asyncio: pip install pytest-asyncio" in output
    assert "monocloud_session needs pytest-asyncio: pip install pytest-asyncio" in output
