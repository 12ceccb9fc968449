"""A long run over TLS against a tenant with all faults, which is killed three times.

    python benchmarks/soak.py [--minutes 10]

The tenant is a process of its own over a database; each kill is a SIGKILL. At the end, its database
is compared with the journal of the run, user by user. Exit code 1: a limit was exceeded.
"""

import argparse
import asyncio
import gc
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import trustme
from soak_tenant import ERRORS, RATE

from monocloud_async import BulkReport, BulkRun, MonoCloudSession, RetryPolicy, __version__
from monocloud_async.sandbox import Sandbox

CONCURRENCY, TIMEOUT = 100, 2.0
EVERY = 100  # one user in this many has its own fault, in turn
SCRIPTS = (
    *("503", "reset", "cut", "hang", "408", "reset,cut,503"),
    *("html", "redirect", "404", "422:identity", "422:keyed"),
)
REPEATS = 8  # extra requests for one round of these scripts
KILLS = 3
KEY = {"X-API-KEY": "sandbox-key"}
CERTIFICATE = "server.pem"


class Tenant:
    """Run the sandbox as a process, over TLS."""

    def __init__(self, folder: Path, users: int) -> None:
        self.db, self._certificate = folder / "tenant.db", folder / CERTIFICATE
        self.user_ids = Sandbox(users=users, db=self.db).user_ids()
        self.url = self._start("0")

    def _start(self, port: str) -> str:
        program = Path(__file__).with_name("soak_tenant.py")
        self._process = subprocess.Popen(
            [sys.executable, program, self.db, self._certificate, port],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def again(self) -> None:
        self._start(self.url.rpartition(":")[2])

    async def script(self, user_ids: list[str], start: int) -> None:
        """Script faults for every hundredth user from this one on."""
        async with aiohttp.ClientSession(headers=KEY) as client:
            for place in range(start - start % EVERY, len(user_ids), EVERY):
                steps = SCRIPTS[place // EVERY % len(SCRIPTS)].split(",")
                url = f"{self.url}/_sandbox/users/{user_ids[place]}"
                async with client.put(url, json={"script": steps}) as response:
                    response.raise_for_status()


@dataclass
class Watch:
    """The process of the run, measured every second."""

    run: BulkRun
    lags: "array[float]" = field(default_factory=lambda: array("f"))  # small: memory is measured
    samples: list[tuple[int, float, int]] = field(default_factory=list)

    async def lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            self.lags.append(loop.time() - due)

    async def resources(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.samples.append((self.run.report.total, rss_mb(), descriptors()))

    @property
    def slope(self) -> float:
        """MB per 100,000 users in the second half, when pools and the list of failures are full."""
        users, memory, _ = zip(*self.samples[len(self.samples) // 2 :], strict=True)
        return statistics.linear_regression(users, memory).slope * 100_000


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


async def soak(tenant: Tenant, journal: Path, seconds: float) -> tuple[BulkReport, Watch]:
    user_ids = tenant.user_ids
    await tenant.script(user_ids, 0)
    began = time.monotonic()

    def until_time_is_up() -> Iterator[str]:
        for user_id in user_ids:
            if time.monotonic() - began > seconds:
                return
            yield user_id

    async def kills() -> None:
        for number in range(KILLS):
            await asyncio.sleep(began + seconds * (number + 1) / (KILLS + 1) - time.monotonic())
            await asyncio.to_thread(tenant.kill)
            await asyncio.sleep(3)
            await asyncio.to_thread(tenant.again)
            # The sandbox keeps scripts in memory: script the remaining users again.
            await tenant.script(user_ids, run.report.total + 5 * CONCURRENCY)

    gc.freeze()
    policy = RetryPolicy(wait_initial=0.1, wait_max=1.0)
    async with MonoCloudSession(
        tenant.url, "sandbox-key", retry=policy, timeout=TIMEOUT
    ) as session:
        run = session.bulk_enable(until_time_is_up(), concurrency=CONCURRENCY, journal=journal)
        watch = Watch(run)
        tasks = [asyncio.create_task(task) for task in (watch.lag(), watch.resources(), kills())]
        report = await run
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
    return report, watch


def differences(tenant: Path, journal: Path, total: int) -> dict[str, int]:
    """Return the users for whom the journal and the tenant's database differ.

    A user who failed or is unknown may have any state in the database; all others are compared.
    """
    with closing(sqlite3.connect(tenant)) as sql:
        sql.execute("ATTACH ? AS run", (str(journal),))
        recorded, unrequested, not_enabled = sql.execute(
            """
            SELECT count(*), sum(u.user_id IS NULL), sum(j.outcome = 'enabled' AND u.disabled)
            FROM run.users j LEFT JOIN users u USING (user_id)
            """
        ).fetchone()
    return {
        "users without an outcome": total - recorded,
        "users who were not in the input": unrequested,
        "users recorded as enabled who are not": not_enabled,
    }


def figures(report: BulkReport, watch: Watch, before: int) -> Iterator[tuple[str, str, bool]]:
    """Return each figure as text, and whether it is within its limit."""
    lags = sorted(watch.lags)
    repeats = report.requests - report.total - report.throttled
    # What the faults require, and for each kill the calls in flight and the probes.
    allowed = report.total / EVERY / len(SCRIPTS) * REPEATS + 1.5 * ERRORS * report.requests
    allowed += KILLS * 2 * CONCURRENCY
    middle = [descriptors for _, _, descriptors in watch.samples[5:]]
    p99 = lags[len(lags) * 99 // 100] * 1000
    yield "users", f"{report.total:,} in {report.seconds:.0f} s", report.exhausted
    yield "enabled", f"{report.enabled:,}", report.enabled > 0.99 * report.total
    yield "refused", f"{report.failed:,}", report.failed < 0.01 * report.total
    yield "unknown", f"{report.unknown:,}", report.unknown <= KILLS * CONCURRENCY
    yield "answered 429", f"{report.throttled:,}", report.throttled < 0.02 * report.requests
    yield "requests sent again", f"{repeats:,} (at most {allowed:,.0f})", repeats <= allowed
    # It rises and falls by 2 MB; a leak of 20 bytes per user would show.
    yield "memory", f"{watch.slope:+.2f} MB per 100,000 users", watch.slope < 2
    yield "descriptors", f"{min(middle)} to {max(middle)}", max(middle) < before + CONCURRENCY + 20
    yield "loop lag", f"p99 {p99:.1f} ms, most {lags[-1] * 1000:.0f} ms", p99 < 50


def certify(folder: Path) -> Path:
    """Write the server's certificate, and return the file of its authority."""
    authority, trusted = trustme.CA(), folder / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / CERTIFICATE)
    return trusted


def measure(folder: Path, seconds: float) -> int:
    """Run the soak test, and return the exit code."""
    journal, tenant = folder / "run.journal", Tenant(folder, int(seconds * RATE * 1.1))
    try:
        before = descriptors()
        report, watch = asyncio.run(soak(tenant, journal, seconds))
        lost = differences(tenant.db, journal, report.total)
    finally:
        tenant.kill()
    rows = list(figures(report, watch, before))
    rows += [(what, f"{count:,}", count == 0) for what, count in lost.items()]
    print(f"monocloud-async {__version__}, Python {platform.python_version()}, {KILLS} kills")
    for what, figure, within in rows:
        print(f"{what:36}{figure}{'' if within else '   OUT OF BOUNDS'}")
    return 0 if all(within for _, _, within in rows) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        return measure(options.folder, options.minutes * 60)
    with tempfile.TemporaryDirectory() as folder:
        # aiohttp reads the trusted authorities when it is imported: so in a process of its own.
        environment = os.environ | {"SSL_CERT_FILE": str(certify(Path(folder)))}
        command = [sys.executable, __file__, "--minutes", str(options.minutes), "--folder", folder]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
