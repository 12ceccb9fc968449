"""Measures the start-up time of programs; `speed` prints it."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TIMES = 15
NOTHING, AIOHTTP, OURS, HELP = (
    "python -c pass",
    "import aiohttp",
    "from monocloud_async import MonoCloudSession",
    "monocloud-async --help",
)
PROGRAMS = {
    NOTHING: ["-c", "pass"],
    AIOHTTP: ["-c", AIOHTTP],
    "import monocloud_async": ["-c", "import monocloud_async"],
    OURS: ["-c", OURS],
    HELP: ["-m", "monocloud_async", "--help"],
}


def startup(scratch: Path, progress: Callable[[str], None]) -> dict[str, float]:
    """Return the median milliseconds of wall time of a new process, by what it does.

    With the byte code of all modules on disk, as after an installation, whatever the environment
    says about writing it.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
    took: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for start in range(TIMES + 1):
        progress(f"start-up {start} of {TIMES}")
        for name, arguments in PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            if start:  # the first one writes the byte code
                took[name].append((time.perf_counter() - began) * 1e3)
    progress("")
    return {name: statistics.median(each) for name, each in took.items()}
