"""Tenants whose answers say what remains: the truth, or something else; and tenants that do not."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from random import Random

from limiters import Ours
from sharing import Client, jain, share
from tenants import Bucket, Counter, Hinting, SlidingWindow, Window, simulate

from monocloud_async.ratelimit.hints import Hint

SECONDS = 100.0  # of a run alone, at the tenant's rate

TENANTS: dict[str, tuple[Callable[[bool], Counter], float]] = {
    "bucket 200/s burst 20": (lambda tells: Bucket(200, 20, tells=tells), 200),
    "bucket 50/s burst 50": (lambda tells: Bucket(50, 50, tells=tells), 50),
    "window 100 per 1 s": (lambda tells: Window(100, 1, tells=tells), 100),
    "window 300 per 2 s": (lambda tells: Window(300, 2, tells=tells), 150),
    "window 1000 per 10 s": (lambda tells: Window(1000, 10, tells=tells), 100),
    "window 6000 per 60 s": (lambda tells: Window(6000, 60, tells=tells), 100),
    # Not looked at while the constants were chosen:
    "bucket 100/s burst 100 *": (lambda tells: Bucket(100, 100, tells=tells), 100),
    "window 500 per 5 s *": (lambda tells: Window(500, 5, tells=tells), 100),
    "sliding 200 per 4 s *": (lambda tells: SlidingWindow(200, 4, tells=tells), 50),
}
Say = Callable[[int, float], Hint]
SAYINGS: dict[str, Callable[[Random], Say | None]] = {
    "the truth": lambda _: None,
    "nothing remains": lambda _: lambda _r, _t: Hint(0, 60.0),
    "anything": lambda random: lambda _r, _t: Hint(random.randrange(300), 1.0),
    "twice too little": lambda _: lambda r, t: Hint(r // 2, float(math.ceil(t))),
    "reset in half an hour": lambda _: lambda r, _t: Hint(r, 1800.0),
    "reset rounded down *": lambda _: lambda r, t: Hint(r, float(int(t))),
    "plenty remains *": lambda _: lambda r, t: Hint(r + 1000, float(math.ceil(t))),
}


@dataclass(frozen=True)
class Case:
    """One tenant; `saying` is one of `SAYINGS`, or None for a tenant that says nothing."""

    tenant: str
    saying: str | None
    tells: bool
    latency: float
    concurrency: int
    sessions: int
    seed: int


def cases(saying: str | None, sessions: int, seeds: int) -> Iterator[Case]:
    for tenant in TENANTS:
        for tells in (True, False):
            for latency, concurrency in ((0.02, 50), (0.2, 50), (0.2, 300)):
                for seed in range(seeds):
                    yield Case(tenant, saying, tells, latency, concurrency, sessions, seed)


def figures(case: Case) -> tuple[float, float, float]:
    """The time over the ideal, or the ideal goodput over the goodput; the waste; Jain's index."""
    make, rate = TENANTS[case.tenant]
    tenant = make(case.tells)
    said = None if case.saying is None else SAYINGS[case.saying](Random(case.seed))
    hinting = tenant if case.saying is None else Hinting(tenant, said)
    if case.sessions == 1:
        users = int(rate * SECONDS)
        result = simulate(
            Ours(case.seed),
            hinting,
            users=users,
            concurrency=case.concurrency,
            latency=case.latency,
            seed=case.seed,
        )
        return result.seconds * rate / users, result.refused / result.requests, 1.0
    clients = [Client(Ours, concurrency=case.concurrency) for _ in range(case.sessions)]
    found = share(hinting, clients, seconds=SECONDS, latency=case.latency, seed=case.seed)
    granted = [float(sum(each.granted)) for each in found]
    refused = sum(sum(each.refused) for each in found)
    late = [float(sum(each.granted[int(SECONDS / 2) :])) for each in found]
    goodput = sum(late) / (rate * SECONDS / 2)
    return 1 / max(goodput, 1e-9), refused / (sum(granted) + refused), jain(late)


def table(seeds: int) -> None:
    """Print the median and the worst of all cases, and the median of each tenant."""
    print("time over the ideal, % answered 429, Jain's index: median / worst, virtual time;")
    print("* was not looked at while the constants were chosen")
    with Pool() as pool:
        for sessions, sayings in ((1, (None, *SAYINGS)), (4, (None, *list(SAYINGS)[:1]))):
            for saying in sayings:
                jobs = list(cases(saying, sessions, seeds))
                found = list(zip(jobs, pool.map(figures, jobs, chunksize=2), strict=True))
                name = f"{sessions} session{'s' * (sessions > 1)}, {saying or 'no hints'}"
                print(_row(name, [each for _, each in found]), flush=True)
                if saying in {None, "the truth"}:
                    for tenant in TENANTS:
                        some = [each for case, each in found if case.tenant == tenant]
                        print(_row(f"  {tenant}", some), flush=True)


def _row(name: str, found: list[tuple[float, float, float]]) -> str:
    over, waste, fair = zip(*found, strict=True)
    return (
        f"{name:40} {statistics.median(over):.3f} / {max(over):.3f};"
        f" {100 * statistics.median(waste):.2f} / {100 * max(waste):.2f} %;"
        f" {statistics.median(fair):.3f} / {min(fair):.3f}"
    )
