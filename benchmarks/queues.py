"""Single calls from the workers of job queues, against a tenant that limits: over real sockets.

python benchmarks/queues.py                     # all recipes, with four processes each
python benchmarks/queues.py saq                 # those whose names contain this
python benchmarks/queues.py --max-rate 22.5     # each process is told its share

The recipes of docs/examples, unchanged, with the queue's own worker processes and a real broker.
The tenant allows 100 calls a second, and 100 at once. So 2,500 jobs take at least 24 seconds.
"""

import argparse
import asyncio
import os
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from recipes import RECIPES, access, broker

from monocloud_async.sandbox import Sandbox

RATE = BURST = 100
JOBS = 2500
IDEAL = (JOBS - BURST) / RATE
PATIENCE = 300.0  # seconds


async def measure(name: str, processes: int, log: Path, share: dict[str, str]) -> str:
    recipe = RECIPES[name]
    with (
        TemporaryDirectory() as folder,
        broker(recipe.broker, Path(folder)) as variables,
        Sandbox(users=JOBS, rate_limit=RATE, burst=BURST, latency=0.02) as sandbox,
        ExitStack() as workers,
    ):
        os.environ.update(variables)
        async with recipe.opened() as send:
            for user_id in sandbox.user_ids():
                await send(user_id)
            for _ in range(processes):
                workers.enter_context(recipe.running(log, access(sandbox) | share))
            while not sandbox.stats().requests:  # noqa: ASYNC110  it sets no event
                await asyncio.sleep(0.02)
            began = time.monotonic()
            until = began + PATIENCE
            while sandbox.stats().users["enabled"] < JOBS and time.monotonic() < until:  # noqa: ASYNC110  it sets no event
                await asyncio.sleep(0.05)
        took, done = time.monotonic() - began, sandbox.stats()
    refused = done.by_status.get("429", 0)
    return (
        f"{name:<9}{done.users['enabled']:>5} enabled in {took:5.1f} s,"
        f" {took / IDEAL:.2f} of the ideal;"
        f" {refused:>4} answers 429, {refused / done.requests:.1%}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--max-rate", help="the share of each process, in calls a second")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the workers say")
    options = parser.parse_args()
    share = {"MAX_RATE": options.max_rate} if options.max_rate else {}
    for name in RECIPES:
        if options.name in name:
            print(await measure(name, options.processes, options.log, share), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
