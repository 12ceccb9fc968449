"""Measures client CPU per user, for this package and other clients that make the same calls.

    python benchmarks/speed.py                      the table of docs/performance.md, and start-up
    python benchmarks/speed.py --rounds 1 --only "bulk,by hand" --columns TLS/chunked/asyncio
    python benchmarks/speed.py --memory [USERS]     a million users, and the memory of that
    python benchmarks/speed.py --startup            how long until a program can begin

Every client runs in a process of its own, once in each round, so that a machine that is busy for a
while is busy for all of them. A ratio compares clients of the same round and column; the printed
values are medians over the rounds. Clients that are not installed are left out, and a line says so.
"""

import argparse
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS
from figures import BASE, COLUMNS, Round, Rounds, aims, beginnings, growth, table
from startup import startup
from web_server import serving

HERE = Path(__file__).parent
NODE = ("node fetch", "undici")
AT_MOST = {"httpx": 1_000}  # it takes twenty times as long
PACKAGES = ("monocloud-async", "aiohttp", "msgspec", "uvloop", "httpx", "pyreqwest")
UNDICI = ("undici@latest", "undici@7", "undici@6")  # the newest that this node supports


class FailedError(Exception):
    """A client failed, so it has no figures."""


class Field:
    """The clients, and how to start each."""

    def __init__(self, scratch: Path, wanted: list[str], columns: list[str]) -> None:
        self.left_out: list[str] = []
        self.names: list[str] = []
        self.columns = [c for c in columns if not self._missing("uvloop", c.endswith("uvloop"), c)]
        self.undici = ""
        self._scratch = scratch
        for name in wanted or [*CONTESTANTS, *NODE]:
            if name in NODE:
                if self._has_node(name):
                    self.names.append(name)
            elif not self._missing(name, name in {"httpx", "pyreqwest"}, name):
                self.names.append(name)
        proxies = {"http_proxy", "https_proxy", "all_proxy"}
        self._environment = {k: v for k, v in os.environ.items() if k.lower() not in proxies} | {
            "SSL_CERT_FILE": str(scratch / "ca.pem"),
            "NODE_EXTRA_CA_CERTS": str(scratch / "ca.pem"),
            "NODE_MODULES": str(scratch / "node_modules"),
            "PYTHONOPTIMIZE": "",  # the clients check responses with assert
        }

    def _missing(self, package: str, needed: bool, what: str) -> bool:
        if not needed or find_spec(package) is not None:
            return False
        self.left_out.append(f"{what}: pip install {package}")
        return True

    def _has_node(self, name: str) -> bool:
        if shutil.which("node") is None:
            self.left_out.append(f"{name}: there is no node here")
        elif name == "node fetch" or self._installed():
            return True
        return False

    def _installed(self) -> bool:
        """Return whether npm can install undici into the scratch folder."""
        why = "there is no npm here"
        if shutil.which("npm") is not None:
            options = ["--engine-strict", "--no-audit", "--no-fund", "--fetch-retries=0"]
            for package in UNDICI:
                command = ["npm", "install", *options, "--prefix", str(self._scratch), package]
                if not subprocess.run(command, check=False, capture_output=True).returncode:
                    found = self._scratch / "node_modules" / "undici" / "package.json"
                    self.undici = json.loads(found.read_text(encoding="utf-8"))["version"]
                    return True
            why = "npm could not install it"
        self.left_out.append(f"undici: {why}")
        return False

    def plays(self, name: str, column: str) -> bool:
        """Return whether the client has a place in this column.

        Node has one event loop, whose figures are in the columns of asyncio. The bare protocol
        reads only answers with a length.
        """
        if name == "bare protocol":
            return "chunked" not in column
        return name not in NODE or not column.endswith("uvloop")

    def run(self, name: str, url: str, users: int, loop: str, step: int = 0) -> dict[str, Any]:
        """Run a client, and return its figures."""
        program = (
            ["node", str(HERE / "contestants.mjs"), name, url, str(users)]
            if name in NODE
            else [sys.executable, str(HERE / "contestants.py"), name, url, str(users), loop]
            + [str(step)] * bool(step)
        )
        try:
            done = subprocess.run(
                program,
                env=self._environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=120 + users / 50,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise FailedError(str(error)) from None
        said: dict[str, Any] = json.loads(done.stdout)
        return said


def measure(field: Field, urls: dict[str, str], users: int, rounds: int) -> Rounds:
    """Run all clients in all columns, in rounds."""
    results: Rounds = defaultdict(list)
    failed: set[tuple[str, str]] = set()
    for number in range(1, rounds + 1):
        for column in field.columns:
            shape, _, loop = column.rpartition("/")
            for name in field.names:
                if not field.plays(name, column) or (column, name) in failed:
                    continue
                progress(f"round {number} of {rounds}: {column}: {name}")
                users_now = min(users, AT_MOST.get(name, users))
                try:
                    said = field.run(name, urls[shape], users_now, loop)
                except FailedError as error:
                    failed.add((column, name))
                    field.left_out.append(f"{name} in {column} failed: {error}")
                    continue
                results[column, name].append(
                    Round(
                        said["cpu"] / users_now * 1e6,
                        users_now / said["seconds"],
                        said["megabytes"],
                    )
                )
    progress("")
    return results


def memory(field: Field, urls: dict[str, str], users: int) -> list[str]:
    """Measure the memory of `bulk` after every tenth of the users."""
    found: dict[str, tuple[list[float], float]] = {}
    for security in ("plain", "TLS"):
        progress(f"{users:,} users, {security}")
        said = field.run("bulk", urls[f"{security}/chunked"], users, "asyncio", users // 10)
        found[security] = said["memory"], max(said["megabytes"], *said["memory"])
    progress("")
    return growth(found, users // 10)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:70}\r", end="", file=sys.stderr, flush=True)


def versions(field: Field, server: str) -> str:
    """Return the line of versions for the figures."""
    parts = [f"Python {platform.python_version()}", " ".join(ssl.OPENSSL_VERSION.split()[:2])]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if shutil.which("node") is not None:
        said = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)
        parts.append(f"node {said.stdout.strip().removeprefix('v')}")
    if field.undici:
        parts.append(f"undici {field.undici}")
    today, cores = datetime.now(UTC).date(), os.cpu_count()
    return f"{today}, {cores} cores, {platform.system()}; {', '.join([*parts, server])}."


def several(known: list[str]) -> Any:
    """An argparse type: some of the known names, with commas between them."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"no {', '.join(sorted(unknown))}; there are: {', '.join(known)}"
            )
        return names

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call costs, beside other ways to make it.")
    names, columns = several([*CONTESTANTS, *NODE]), several(list(COLUMNS))
    parser.add_argument("--users", type=int, default=20_000, help="in each round, after a warm-up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=names, default=[], metavar="NAME[,NAME]")
    parser.add_argument("--columns", type=columns, default=list(COLUMNS), metavar="NAME[,NAME]")
    parser.add_argument("--memory", type=int, nargs="?", const=1_000_000, metavar="USERS")
    parser.add_argument("--startup", action="store_true", help="nothing but start-up times")
    options = parser.parse_args()
    alone = bool(options.memory or options.startup)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (urls, server):
        field = Field(Path(folder), ["bulk"] if alone else options.only, options.columns)
        lines = [versions(field, server), ""]
        if options.memory:
            lines += memory(field, urls, options.memory)
        elif options.startup:
            took = startup(Path(folder), progress)
            lines += [*beginnings(took), "", *aims({}, took)]
        else:
            results = measure(field, urls, options.users, options.rounds)
            took = startup(Path(folder), progress)
            lines += [
                f"{options.users:,} users a round, {options.rounds} rounds, 100 at a time.",
                f"CPU per user in µs, in brackets the ratio to `{BASE}`:\n",
                *table(field.names, field.columns, results),
                "",
                *beginnings(took),
                "",
                *aims(results, took),
            ]
        lines += ["", *(f"Left out: {why}." for why in field.left_out)]
        print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main()
