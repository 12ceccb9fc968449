"""Runs a user's test suite in its own process and project."""

import os
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

# Those of other packages that happen to be here, and take longer to import than a suite to run.
PLUGINS = {"asyncio", "anyio", "monocloud_async", "xdist"}


def run_suite(folder: Path, test: str, *options: str) -> str:
    """Return what pytest prints for this test file."""
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / "test_mine.py").write_text(textwrap.dedent(test), encoding="utf-8")
    found = entry_points(group="pytest11").names
    # A checkout that is not installed has no entry point yet.
    plugins = [] if "monocloud_async" in found else ["-p", "monocloud_async.testing"]
    for other in found - PLUGINS:
        plugins += ["-p", f"no:{other}"]
    # Nor does it get the options of this run, such as a number of processes.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *options, "--rootdir", folder, folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.stdout + process.stderr
