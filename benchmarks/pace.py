"""How well the pace holds a limit that nobody told it, beside what others do.

python benchmarks/pace.py              # 20,000 users, every scenario, four ways
python benchmarks/pace.py --long       # 900 seconds' worth of users, ours alone
python benchmarks/pace.py --calls      # single calls: bursts, overload, beside a run
python benchmarks/pace.py --sharing    # several sessions on one tenant, beside what others do
python benchmarks/pace.py --hints      # tenants that say what remains: the truth, or lies
python benchmarks/pace.py --real       # against the sandbox, over real connections
python benchmarks/pace.py --open       # what the pace costs where there is no limit
python benchmarks/pace.py --picture docs/pace.svg
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import call_families
import hint_families
from limiters import LIMITERS, Ours
from scenarios import scenarios
from sharing import COUNTS, TENANTS, WAYS, Family, figures
from tenants import Result, simulate

from monocloud_async import BulkReport, MonoCloudSession, __version__
from monocloud_async.ratelimit.limiter import RateLimiter


def run(job: tuple[int, str, bool]) -> tuple[float, Result]:
    """Time over the ideal, and the rest, of one scenario with one limiter."""
    number, limiter, long = job
    scenario = list(scenarios())[number]
    result = simulate(
        LIMITERS[limiter](),
        scenario.make(scenario.middle(long=long)),
        users=scenario.users(long=long),
        concurrency=scenario.concurrency,
        latency=scenario.latency,
    )
    return result.seconds / scenario.ideal(long=long), result


def table(*, long: bool) -> None:
    names = ["ours"] if long else list(LIMITERS)
    every = list(scenarios())
    print(f"monocloud-async {__version__}, Python {sys.version.split()[0]}, virtual time, seed 1")
    print("time over the ideal / % of requests answered 429 / users lost / worst attempts\n")
    print(f"{'':54}" + "".join(f"{name:>26}" for name in names))
    with Pool() as pool:
        jobs = [(i, name, long) for i in range(len(every)) for name in names]
        outcomes = dict(zip(jobs, pool.map(run, jobs, chunksize=4), strict=True))
    for number, scenario in enumerate(every):
        cells = [outcomes[number, name, long] for name in names]
        print(
            f"{scenario.name:54}"
            + "".join(
                f"{over:8.3f} {100 * r.refused / r.requests:6.2f}% {r.lost:5} {r.worst:4}"
                for over, r in cells
            ),
            flush=True,
        )
    for name in names:
        mine = [(every[i], *outcomes[i, n, long]) for i, n, _ in jobs if n == name]
        waste = [100 * r.refused / r.requests for _, _, r in mine]
        outside = [
            100 * r.refused / r.requests for s, _, r in mine if not s.family.startswith("bucket 5/")
        ]
        overs = [over for _, over, _ in mine]
        print(
            f"{name}: goodput median {100 / statistics.median(overs):.1f} %, worst"
            f" {100 / max(overs):.1f} % (time over ideal {max(overs):.3f}); waste median"
            f" {statistics.median(waste):.2f} %, worst {max(waste):.2f} %, outside the 5/s buckets"
            f" {max(outside):.2f} %; users lost {sum(r.lost for _, _, r in mine):,}"
        )


def shared(job: tuple[Family, str, int]) -> dict[str, float]:
    family, limiter, seed = job
    return figures(family, LIMITERS[limiter], seed)


def sharing(seeds: int) -> None:
    """Median and worst of the families by how sessions come and go, and of those by number."""
    names = ("ours", "adaptive", "backoff")
    families = [
        Family(tenant, count, tells, way)
        for way in WAYS
        for tenant in TENANTS
        for count in COUNTS
        for tells in (True, False)
    ]
    print("median / worst, virtual time; * was not looked at while the constants were chosen")
    with Pool() as pool:
        for way in WAYS:
            print(way)
            for name in names:
                jobs = [(f, name, 20 + s) for f in families if f.way == way for s in range(seeds)]
                found = list(zip(jobs, pool.map(shared, jobs, chunksize=4), strict=True))
                print(_row(name, [figure for _, figure in found]), flush=True)
                if name == "ours":
                    for of in (*COUNTS, *TENANTS):
                        some = [v for (f, _, _), v in found if of in {f.count, f.tenant}]
                        print(_row(f"  {of}", some), flush=True)


def _row(name: str, found: list[dict[str, float]]) -> str:
    cells = []
    for key in found[0]:
        values = [figure[key] for figure in found]
        worst = (
            max(values)
            if key in {"waste", "p99 wait, s", "429s then, of a second's requests"}
            else min(values)
        )
        cells.append(f"{key} {statistics.median(values):.3f} / {worst:.3f}")
    return f"  {name:28}" + "; ".join(cells)


REAL = [(200, 200, 6000), (200, 20, 6000), (400, 40, 8000), (50, 5, 2000)]


async def enable(url: str, ids: list[str]) -> BulkReport:
    async with MonoCloudSession(url, "sandbox-key") as session:
        return await session.bulk_enable(ids, concurrency=100)


def real() -> None:
    print("the sandbox, 100 connections: time over the ideal, share of requests answered 429")
    for rate, burst, users in REAL:
        command = f"sandbox --port 0 --users {users} --rate-limit {rate} --burst {burst}".split()
        with subprocess.Popen(
            [sys.executable, "-m", "monocloud_async", *command, "--ids", "/dev/stderr"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            ids = [process.stderr.readline().strip() for _ in range(users)]
            url = process.stdout.readline().strip()
            report = asyncio.run(enable(url, ids))
            process.terminate()
        assert report.enabled == users
        over = report.seconds / (users / rate)
        print(
            f"  {rate}/s burst {burst}, {users:,} users: {over:.2f} x,"
            f" {100 * report.throttled / report.requests:.2f} %",
            flush=True,
        )


def cost(calls: int = 200_000) -> None:
    """Microseconds a call that an open pace costs, median of seven, and a loop's own."""
    pace = RateLimiter()

    def once(*, paced: bool) -> float:
        began = time.process_time()
        for number in range(calls):
            if paced:
                pace.delay(number)
                pace.granted(pace.send(number), number)
        return (time.process_time() - began) / calls * 1e6

    found = [once(paced=True) - once(paced=False) for _ in range(7)]
    print(f"open: {statistics.median(found):.2f} us a call ({min(found):.2f} to {max(found):.2f})")


PICTURES = (
    "bucket 200/s burst 0.1 s",
    "window 1000 per 10 s",
    "bucket 200/s, then 100/s",
    "bucket 100/s, then 200/s",
)


def picture(path: Path) -> None:
    """Granted requests by the second, against the limit: four scenarios, one below the other."""
    width, height, gap = 760, 120, 46
    chosen = [s for f in PICTURES for s in scenarios() if s.family == f][::8]
    parts = []
    for place, scenario in enumerate(chosen):
        middle = 150.0
        limiter, tenant = Ours(), scenario.make(middle)
        users = int(scenario.granted(300.0, middle))
        result = simulate(limiter, tenant, users=users, concurrency=50, latency=0.02)
        seconds = range(300)
        smooth = 10 if scenario.family.startswith("window") else 1
        granted = [
            sum(result.grants[max(0, s - smooth + 1) : s + 1]) / min(smooth, s + 1) for s in seconds
        ]
        limit = [scenario.rate(s, middle) for s in seconds]
        top = 1.25 * max(limit)
        y0 = place * (height + gap) + 26

        def line(values: list[float], y0: float = y0, top: float = top) -> str:
            return " ".join(
                f"{40 + s * (width - 50) / 300:.1f},{y0 + height - min(v, top) * height / top:.1f}"
                for s, v in enumerate(values)
            )

        parts += [
            f'<text x="40" y="{y0 - 8}">{scenario.family}</text>',
            f'<path d="M40 {y0}V{y0 + height}H{width - 10}" fill="none" stroke="#888"/>',
            f'<text x="6" y="{y0 + 0.2 * height + 4:.0f}">{max(limit):.0f}</text>',
            f'<polyline points="{line(limit)}" fill="none" stroke="#c33" stroke-dasharray="5 4"/>',
            f'<polyline points="{line(granted)}" fill="none" stroke="#26c" stroke-width="1.3"/>',
        ]
    bottom = len(chosen) * (height + gap) + 10
    parts.append(
        f'<text x="40" y="{bottom}">granted requests a second (blue) and the limit (red), 300 s;'
        " the window's over its last 10 s</text>"
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 14}"'
        ' font-family="sans-serif" font-size="12" fill="#666">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{chr(10).join(parts)}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How well the pace holds a limit that nobody told it."
    )
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--sharing", action="store_true")
    parser.add_argument("--seeds", type=int, default=8, help="of --sharing and --hints")
    parser.add_argument("--hints", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
    elif options.calls:
        call_families.table()
    elif options.open:
        cost()
    elif options.hints:
        hint_families.table(options.seeds)
    elif options.sharing:
        sharing(options.seeds)
    elif options.real:
        real()
    else:
        table(long=options.long)


if __name__ == "__main__":
    main()
