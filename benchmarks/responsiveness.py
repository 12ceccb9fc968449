"""How long a run keeps everything else on its event loop waiting, as web requests beside it.

    python benchmarks/responsiveness.py [--users N] [--size BYTES] [--tls] [--rounds N]

A probe sleeps a millisecond, again and again, and measures how much later than that it goes on. The
run works against a server in another process. `work` is the CPU time of this process meanwhile: on
a machine that is busy with other things, the lag is longer than that, so the aim is for the work.
Each figure is the median of the rounds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from contestants import KEY, ids
from web_server import serving

PROBE = 0.001  # seconds between two looks
AIM = 20.0  # milliseconds, at the 99th percentile


class Figures(NamedTuple):
    """Of one run: lags in milliseconds, users per second, and CPU microseconds per user."""

    median: float
    p99: float
    most: float
    work: float  # at the 99th percentile
    rate: float
    cpu: float


async def measure(url: str, users: int, concurrency: int) -> Figures:
    from monocloud_async import MonoCloudSession

    lags, work = list[float](), list[float]()
    clock = asyncio.get_running_loop().time

    async def probe() -> None:
        while True:
            before, worked = clock(), time.thread_time()
            await asyncio.sleep(PROBE)
            work.append(1e3 * (time.thread_time() - worked))
            lags.append(1e3 * (clock() - before - PROBE))

    async with MonoCloudSession(url, KEY) as session:
        await session.bulk_enable(ids(2 * concurrency), concurrency=concurrency)
        probing = asyncio.ensure_future(probe())
        began, cpu = clock(), time.process_time()
        report = await session.bulk_enable(ids(users), concurrency=concurrency)
        seconds, cpu = clock() - began, time.process_time() - cpu
        probing.cancel()
    assert report.enabled == users
    lags.sort()
    p99, work99 = lags[int(0.99 * len(lags))], sorted(work)[int(0.99 * len(work))]
    middle = statistics.median(lags)
    return Figures(middle, p99, lags[-1], work99, users / seconds, 1e6 * cpu / users)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=0, help="bytes of private_data of each user")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("URL", "CONCURRENCY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        url, concurrency = options.one
        print(json.dumps(asyncio.run(measure(url, options.users, int(concurrency)))))
        return 0
    worst = 0.0
    with (
        tempfile.TemporaryDirectory() as name,
        serving(Path(name), options.size) as (addresses, server),
    ):
        print(
            "| at once | median lag, ms | p99 | maximum | p99 of work | users/s | CPU us |",
            f"({server})",
        )
        environment = os.environ | {"SSL_CERT_FILE": str(Path(name, "ca.pem"))}
        for concurrency in (20, 100, 500):
            rounds = [
                Figures(
                    *json.loads(
                        subprocess.run(
                            [
                                *(sys.executable, __file__, "--users", str(options.users)),
                                *(
                                    "--one",
                                    addresses["TLS/length" if options.tls else "plain/length"],
                                    str(concurrency),
                                ),
                            ],
                            env=environment,
                            check=True,
                            capture_output=True,
                        ).stdout
                    )
                )
                for _ in range(options.rounds)
            ]
            middle = Figures(*map(statistics.median, zip(*rounds, strict=True)))
            worst = max(worst, middle.work)
            cells = " | ".join(
                f"{figure:.{digits}f}"
                for figure, digits in zip(middle, (1, 1, 1, 1, 0, 0), strict=True)
            )
            print(f"| {concurrency} | {cells} |", flush=True)
    print(f"{'met' if worst <= AIM else 'missed'}: p99 of work {worst:.1f} ms, aim {AIM:.0f}")
    return worst > AIM


if __name__ == "__main__":
    sys.exit(main())
