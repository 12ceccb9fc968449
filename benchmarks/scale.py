"""A million users through the command line, over TLS, with a journal: speed, memory, report.

    python benchmarks/scale.py [--users 1000000] [--concurrency 100]

The tenant grants everything, and answers in chunks, with the headers of a CDN.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from web_server import serving

from monocloud_async.config import API_KEY, DOMAIN

COMMAND: list[str | Path] = [sys.executable, "-m", "monocloud_async"]
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / 1e6


def run(folder: Path, url: str, users: int, concurrency: int) -> Iterator[tuple[str, str]]:
    """Yield each figure with its name."""
    ids, journal = folder / "ids.txt", folder / "run.journal"
    with ids.open("w", encoding="ascii") as file:
        file.writelines(f"user-{number:017}\n" for number in range(users))
    environment = os.environ | {
        DOMAIN: url,
        API_KEY: "key",
        "SSL_CERT_FILE": str(folder / "ca.pem"),
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    memory: list[tuple[float, float]] = []
    with (folder / "said.txt").open("w+", encoding="utf-8") as said:
        with subprocess.Popen(
            [*COMMAND, "bulk", ids, "--journal", journal, "--concurrency", str(concurrency)],
            env=environment,
            stdout=said,
            stderr=said,
        ) as process:
            while process.poll() is None:
                memory.append((time.monotonic() - began, resident_mb(process.pid)))
                time.sleep(0.2)
        seconds = time.monotonic() - began
        said.seek(0)
        text = said.read()
    assert process.returncode == 0, text
    assert f"{users:,}  enabled" in text, text
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    middle = [megabytes for when, megabytes in memory if when > seconds / 10]
    yield "users per second", f"{users / seconds:,.0f}, {seconds:.0f} s in all"
    yield "client CPU per user", f"{cpu / users * 1e6:.0f} us"
    yield "memory after a tenth, and at most", f"{middle[0]:.0f} MB, {max(middle):.0f} MB"
    yield "journal", f"{journal.stat().st_size / users:.1f} bytes a user"
    outputs: dict[str, list[str | Path]] = {
        "report": [],
        "report as a page": ["-o", folder / "run.html"],
    }
    for what, options in outputs.items():
        began = time.monotonic()
        subprocess.run(
            [*COMMAND, "report", journal, *options],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        yield what, f"{time.monotonic() - began:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as (urls, server):
        print(f"{options.users:,} users, {options.concurrency} at a time, TLS, {server}")
        url = urls["TLS/chunked"]
        for what, figure in run(Path(name), url, options.users, options.concurrency):
            print(f"{what:36}{figure}", flush=True)


if __name__ == "__main__":
    main()
