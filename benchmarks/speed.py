"""What a call costs: client CPU per user, beside the other ways to make the same calls.

    python benchmarks/speed.py              the table of docs/performance.md, about 15 minutes
    python benchmarks/speed.py --memory     a million users, and the memory of that

Every client runs in a process of its own, turn by turn, so that a machine that is busy for a while
is busy for all of them; a ratio is to the hand-written loop of the same turn, and what is printed
are medians. What is not installed is left out, and the table says so.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from contestants import CONTESTANTS
from web_server import serving

HERE = Path(__file__).parent
BASE = "by hand"
NODE = ("undici", "node fetch")
SLOW = {"httpx": 10, "node fetch": 2}  # so many times fewer users
UNDICI = "undici@7"  # the last one for Node.js 20
COLUMNS = ("plain, asyncio", "plain, uvloop", "TLS, asyncio", "TLS, uvloop")
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import aiohttp": ["-c", "import aiohttp"],
    "import monocloud_async": ["-c", "import monocloud_async"],
    "from monocloud_async import MonoCloudSession": [
        "-c",
        "from monocloud_async import MonoCloudSession",
    ],
    "monocloud-async --help": ["-m", "monocloud_async", "--help"],
}


class Turn(NamedTuple):
    """What one client did in one turn."""

    cpu: float  # microseconds a user
    rate: float  # users a second
    megabytes: float


Turns = dict[tuple[str, str], list[Turn]]  # by column and client


class Field:
    """Who takes part, and how to start each."""

    def __init__(self, scratch: Path, only: set[str]) -> None:
        self.versions: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self._scratch = scratch
        python = [name for name in CONTESTANTS if name != name.lower() or not self._missing(name)]
        self.names = [name for name in (*python, *self._of_node()) if not only or name in only]
        self._environment = os.environ | {
            "SSL_CERT_FILE": str(scratch / "ca.pem"),
            "NODE_EXTRA_CA_CERTS": str(scratch / "ca.pem"),
            "NODE_MODULES": str(scratch / "node_modules"),
        }

    def _missing(self, name: str) -> bool:
        if name in {"httpx", "pyreqwest"} and find_spec(name) is None:
            self.absent[name] = "pip install '.[bench]'"
        return name in self.absent

    def _of_node(self) -> list[str]:
        if shutil.which("node") is None or shutil.which("npm") is None:
            self.absent |= dict.fromkeys(NODE, "there is no node with npm")
            return []
        command = ["npm", "install", "--silent", "--prefix", str(self._scratch), UNDICI]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            self.absent["undici"] = f"npm could not install {UNDICI}"
            return ["node fetch"]
        return list(NODE)

    def run(self, name: str, url: str, users: int, loop: str) -> Turn:
        users //= SLOW.get(name, 1)
        program = (
            ["node", str(HERE / "contestants.mjs"), name, url, str(users)]
            if name in NODE
            else [sys.executable, str(HERE / "contestants.py"), name, url, str(users), loop]
        )
        done = subprocess.run(
            program, env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        )
        said = json.loads(done.stdout)
        self.versions |= said["versions"]
        return Turn(said["cpu"] / users * 1e6, users / said["seconds"], said["megabytes"])


def measure(
    field: Field, urls: dict[str, str], columns: list[str], users: int, turns: int
) -> Turns:
    """All clients in all columns, turn by turn."""
    results: Turns = defaultdict(list)
    for turn in range(turns):
        for column in columns:
            security, loop = column.split(", ")
            for name in field.names:
                if name in NODE and loop == "uvloop":
                    continue
                print(f"\rturn {turn + 1}: {column}: {name:30}", end="", file=sys.stderr)
                results[column, name].append(field.run(name, urls[security], users, loop))
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return results


def ratio(results: Turns, column: str, name: str, base: str = BASE) -> float | None:
    """The median of the ratios turn by turn, or None where one of them did not run."""
    pairs = zip(results.get((column, name), ()), results.get((column, base), ()), strict=False)
    ratios = [ours.cpu / theirs.cpu for ours, theirs in pairs]
    return statistics.median(ratios) if ratios else None


def table(field: Field, results: Turns, columns: list[str]) -> list[str]:
    lines = [
        "| CPU per user in µs, and its ratio to the loop by hand | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in field.names:
        cells = []
        for column in columns:
            mine, share = results.get((column, name)), ratio(results, column, name)
            text = "" if mine is None else f"{statistics.median(t.cpu for t in mine):.0f}"
            cells.append(text if share is None else f"{text} ({share:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| Users a second, and most memory | " + " | ".join(columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name in field.names:
        cells = []
        for column in columns:
            mine = results.get((column, name), [])
            rate, most = (
                (statistics.median(t.rate for t in mine), max(t.megabytes for t in mine))
                if mine
                else (0, 0)
            )
            cells.append(f"{rate:,.0f} ({most:.0f} MB)" if mine else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def aims(results: Turns) -> list[str]:
    """What was to be reached, and what was."""
    wanted = [
        *((column, "bulk", BASE, 0.50) for column in COLUMNS),
        *((column, "single calls", BASE, 0.95) for column in COLUMNS),
        ("plain, asyncio", "bulk", "bare protocol", 1.8),
        ("TLS, asyncio", "bulk", "bare protocol", 1.8),
        ("TLS, asyncio", "bulk", "undici", 1.0),
        ("TLS, asyncio", "bulk", "pyreqwest", 1.0),
        ("plain, asyncio", "bulk with a journal", "bulk", 1.10),
        ("TLS, asyncio", "bulk with a journal", "bulk", 1.10),
    ]
    lines = []
    for column, name, base, most in wanted:
        share = ratio(results, column, name, base)
        if share is not None:
            verdict = "met" if share <= most else "MISSED"
            lines.append(f"- {column}: {name} / {base}: {share:.2f}, at most {most}: {verdict}")
    return lines


def starts(times: int) -> list[str]:
    """How long it takes until a program can begin, in milliseconds."""
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(times):
        for name, arguments in STARTS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            took[name].append((time.perf_counter() - began) * 1e3)
    lines = ["| Start-up | ms |", "|---|---|"]
    lines += [f"| `{name}` | {statistics.median(each):.0f} |" for name, each in took.items()]
    return lines


def memory(field: Field, urls: dict[str, str], users: int) -> list[str]:
    """The most memory of a run, after a tenth of the users and after all of them."""
    lines = ["| Most memory in MB | a tenth of the users | all of them |", "|---|---|---|"]
    for security in ("plain", "TLS"):
        few, all_ = (field.run("bulk", urls[security], n, "asyncio") for n in (users // 10, users))
        lines.append(
            f"| {security}, {users:,} users | {few.megabytes:.1f} | {all_.megabytes:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call costs, beside other ways to make it")
    parser.add_argument("--users", type=int, default=20_000, help="in each turn, after a warm-up")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--only", nargs="+", default=[], metavar="CLIENT")
    parser.add_argument("--memory", action="store_true", help="a million users, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (plain, tls, server):
        field = Field(Path(folder), set(options.only))
        urls = {"plain": plain, "TLS": tls}
        if options.memory:
            lines = memory(field, urls, 1_000_000)
        else:
            results = measure(field, urls, options.columns, options.users, options.turns)
            lines = [*table(field, results, options.columns), "", *starts(3 * options.turns)]
            lines += ["", *aims(results)]
        used = ", ".join(f"{name} {number}" for name, number in sorted(field.versions.items()))
        today = datetime.now(UTC).date()
        print(f"{today}, {os.cpu_count()} cores, {platform.system()}, server {server}; {used}\n")
        print("\n".join(lines))
        for name, why in field.absent.items():
            print(f"\nleft out: {name} ({why})")


if __name__ == "__main__":
    main()
