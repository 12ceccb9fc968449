"""Runs a user's test suite in its own process and project."""

import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

# pytest-asyncio warns projects that do not set this option.
CONFIG = """
[pytest]
filterwarnings =
    error
    ignore:The configuration option "asyncio_default_fixture_loop_scope" is unset
"""


def run_suite(folder: Path, test: str, *options: str) -> str:
    """Return what pytest prints for this test file."""
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / "test_mine.py").write_text(textwrap.dedent(test), encoding="utf-8")
    # A checkout that is not installed has no entry point yet.
    installed = entry_points(group="pytest11", name="monocloud_async")
    plugin = [] if installed else ["-p", "monocloud_async.testing"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *options, "--rootdir", folder, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    return process.stdout + process.stderr
