"""Measures a journal: CPU per record, loop lag, bytes, a run without it, and a resume.

    python benchmarks/journal.py [--records 10000000] [--rounds 5]

Figures are medians; a ratio is of one round. Everything runs in its own process, on loopback.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from monocloud_async import MonoCloudSession, Outcome, User, __version__
from monocloud_async.config import API_KEY, DOMAIN
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import InputInfo, JournalStore, Rows
from monocloud_async.journal.writer import JournalWriter
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.limiter import RateLimiter

TENANT = "http://127.0.0.1:9"
GROUP = 50  # records, as in a run of 1,000 to 2,500 users/s
USERS = 20_000


def ids(count: int) -> Iterator[str]:
    return (f"user-{number:017}" for number in range(count))


def outcome(position: int, user_id: str) -> Outcome:
    return Outcome(
        user_id=user_id,
        position=position,
        status="enabled",
        user=User(user_id=user_id),
        attempts=1,
        seconds=0.0314,
    )


def rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make(path: Path, count: int) -> None:
    """Write a journal with all users enabled, as runs do, but in larger groups."""
    records = JournalStore(path, TENANT, ENABLE, InputInfo())
    records.open()
    source = enumerate(ids(count))
    while group := [outcome(*next(source)) for _ in range(min(5000, count))]:
        records.write(Rows.of(group, 0), 0)
        count -= len(group)
    records.close()


async def record(path: Path, count: int, rate: int) -> dict[str, float]:
    """Measure CPU per record and loop lag, for `count` records at `rate` per second."""
    journal = JournalFile(path, TENANT)
    report = BulkReport()
    recorder = JournalWriter(journal, report, RateLimiter(), lambda: None)
    await recorder.open([])
    outcomes = [outcome(*each) for each in enumerate(ids(count))]
    loop, lags, stop = asyncio.get_running_loop(), [], False

    async def watch() -> None:
        while not stop:
            due = loop.time() + 0.002
            await asyncio.sleep(0.002)
            lags.append(loop.time() - due)

    async def feed(add: Any) -> float:
        cpu, tick = time.process_time(), rate // 500
        for start in range(0, count, tick):
            for each in outcomes[start : start + tick]:
                add(each)
            await asyncio.sleep(0.002)
        return time.process_time() - cpu

    watching = asyncio.create_task(watch())
    without = await feed(lambda _: None)
    alone, lags[:] = sorted(lags), []
    used = await feed(recorder.add)
    stop = True
    await watching
    report.total = 1
    await recorder.close("finished")
    assert recorder.error is None
    lags.sort()
    return {
        "cpu_us": (used - without) / count * 1e6,
        "lag_p99_ms": lags[len(lags) * 99 // 100] * 1000,
        "lag_p99_ms_without": alone[len(alone) * 99 // 100] * 1000,
        "bytes": path.stat().st_size / count,
    }


async def bulk(url: str, key: str, path: Path | None) -> float:
    """Measure client CPU per user, in microseconds."""
    async with MonoCloudSession(url, key) as session:
        cpu = time.process_time()
        report = await session.bulk_enable(user_ids(url), journal=path)
        assert report.enabled == USERS, report
        return (time.process_time() - cpu) / USERS * 1e6


def user_ids(_url: str) -> Iterator[str]:
    return iter(Path(os.environ["BENCH_IDS"]).read_text(encoding="utf-8").split())


async def resume(path: Path, count: int) -> dict[str, float]:
    """Measure seconds and memory of a run over a finished journal."""
    before = rss_mib()
    async with MonoCloudSession(TENANT, "key") as session:
        began, cpu = time.perf_counter(), time.process_time()
        report = await session.bulk_enable(ids(count), journal=path)
        assert report.already_enabled == report.total == count
        took = time.perf_counter() - began
    return {"s": took, "cpu_s": time.process_time() - cpu, "mib": rss_mib() - before}


def from_command_line(path: Path, count: int) -> dict[str, float]:
    """Measure seconds and memory of the command line over a finished journal, start-up included."""
    listed = path.with_suffix(".txt")
    with listed.open("w", encoding="ascii") as file:
        file.writelines(f"{user_id}\n" for user_id in ids(count))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "monocloud_async", "bulk", listed, "--journal", path],
        env={**os.environ, DOMAIN: TENANT, API_KEY: "key"},
        check=True,
        capture_output=True,
        text=True,
    )
    took = time.perf_counter() - began
    assert f"{count:,}  enabled before" in done.stdout + done.stderr, done
    return {"s": took, "mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def child(*argv: object, env: dict[str, str] | None = None) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, argv)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return json.loads(done.stdout)


def measure_bulk(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Return medians without and with a journal, and of the ratio of each round."""
    listed = folder / "ids.txt"
    pairs = []
    for number in range(rounds):
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "monocloud_async",
                "sandbox",
                "--port",
                "0",
                "--users",
                str(USERS),
                "--ids",
                str(listed),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            env = {"BENCH_IDS": str(listed)}
            pair = {}
            for kept in (False, True) if number % 2 else (True, False):
                path = folder / f"bulk-{number}.journal" if kept else ""
                pair[kept] = child("--child", "bulk", url, path, env=env)
            pairs.append((pair[False], pair[True]))
            process.terminate()
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def run_child(kind: str, rest: list[str]) -> Any:
    match kind:
        case "make":
            make(Path(rest[0]), int(rest[1]))
            return None
        case "record":
            return asyncio.run(record(Path(rest[0]), int(rest[1]), int(rest[2])))
        case "bulk":
            return asyncio.run(bulk(rest[0], "sandbox-key", Path(rest[1]) if rest[1] else None))
        case "command":
            return from_command_line(Path(rest[0]), int(rest[1]))
        case _:
            return asyncio.run(resume(Path(rest[0]), int(rest[1])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(options.child[0], options.child[1:])))
        return
    print(
        f"monocloud-async {__version__}, Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}, msgspec {msgspec.__version__}, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [
            child("--child", "record", folder / f"record-{number}", 100_000, 10_000)
            for number in range(options.rounds)
        ]
        for key, what in [
            ("cpu_us", "us of CPU a record, both threads"),
            ("lag_p99_ms", "ms of event loop lag, p99, at 10,000 records/s"),
            ("lag_p99_ms_without", "ms, the same loop without the journal"),
            ("bytes", "bytes a record"),
        ]:
            print(f"{statistics.median(result[key] for result in results):10.2f}  {what}")
        without, kept, ratio = measure_bulk(folder, options.rounds)
        print(f"{without:10.1f}  us of client CPU per user of a bulk run, without a journal")
        print(f"{kept:10.1f}  us with one; the median ratio of the rounds: {ratio:.3f}")
        path = folder / "resume.journal"
        child("--child", "make", path, options.records)
        found = [child("--child", "resume", path, options.records) for _ in range(3)]
        print(f"{statistics.median(f['s'] for f in found):10.1f}  s to resume {options.records:,}")
        print(f"{statistics.median(f['mib'] for f in found):10.1f}  MiB that it took at most")
        found = [child("--child", "command", path, options.records) for _ in range(3)]
        print(f"{statistics.median(f['s'] for f in found):10.1f}  s from the command line")
        print(f"{statistics.median(f['mib'] for f in found):10.1f}  MiB of that process at most")
        print(f"{path.stat().st_size / (1 << 20):10.0f}  MiB on disk")


if __name__ == "__main__":
    main()
