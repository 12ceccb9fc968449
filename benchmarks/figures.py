"""Tables and results from the measurements of `speed`, as pure functions of numbers."""

import statistics
from typing import NamedTuple

from startup import AIOHTTP, HELP, OURS

BASE = "by hand"
FLAT = 0.5  # MB per step of a run: less than that is noise


class Round(NamedTuple):
    """The figures of one client in one round."""

    cpu: float  # microseconds per user
    rate: float  # users per second
    megabytes: float


Rounds = dict[tuple[str, str], list[Round]]  # by column and client

COLUMNS = (
    "TLS/chunked/asyncio",
    "TLS/chunked in two/asyncio",
    "TLS/gzip/asyncio",
    "TLS/gzip chunked/asyncio",
    "TLS/length/asyncio",
    "TLS/length/uvloop",
    "plain/chunked/asyncio",
    "plain/length/asyncio",
)
AIMS = [  # maximum ratio of the CPU time of two clients
    *((column, name, BASE, 0.35) for column in COLUMNS[:4] for name in ("bulk", "single")),
    *((column, name, BASE, 0.30) for column in COLUMNS[4:] for name in ("bulk", "single")),
    *((column, "bulk", other, 1.0) for column in COLUMNS[:5] for other in ("undici", "pyreqwest")),
    *((column, "bulk + journal", "bulk", 1.06) for column in COLUMNS if column.startswith("TLS")),
]


def ratio(results: Rounds, column: str, name: str, base: str) -> float | None:
    """Return the median of the ratios of all rounds, or None if one of the two did not run."""
    mine, theirs = results.get((column, name)), results.get((column, base))
    if not mine or not theirs:
        return None
    return statistics.median(a.cpu / b.cpu for a, b in zip(mine, theirs, strict=False))


def table(names: list[str], columns: list[str], results: Rounds) -> list[str]:
    """Return two tables: CPU and its ratio to the loop by hand, and speed with memory."""
    lines = _head("CPU", columns)
    for name in names:
        cells = []
        for column in columns:
            rounds, share = results.get((column, name)), ratio(results, column, name, BASE)
            text = "" if rounds is None else f"{statistics.median(t.cpu for t in rounds):.0f}"
            cells.append(text if share is None else f"{text} ({share:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *_head("Users per second, peak memory", columns)]
    for name in names:
        cells = []
        for column in columns:
            rounds = results.get((column, name), [])
            rate, most = (
                statistics.median(values)
                for values in ([t[i] for t in rounds] or [0] for i in (1, 2))
            )
            cells.append(f"{rate:,.0f}, {most:.0f} MB" if rounds else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _head(title: str, columns: list[str]) -> list[str]:
    return [f"| {title} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]


def beginnings(took: dict[str, float]) -> list[str]:
    return [
        *_head("Start-up", ["ms"]),
        *(f"| `{name}` | {milliseconds:.0f} |" for name, milliseconds in took.items()),
    ]


def growth(found: dict[str, tuple[list[float], float]], step: int) -> list[str]:
    """Return the memory after every step, its peak, and whether it grows after the first."""
    points = len(next(iter(found.values()))[0])
    lines = _head("Memory of `bulk` in MB", list(found))
    for number in range(points):
        cells = " | ".join(f"{memory[number]:.1f}" for memory, _ in found.values())
        lines.append(f"| after {(number + 1) * step:,} users | {cells} |")
    lines.append(f"| most | {' | '.join(f'{most:.1f}' for _, most in found.values())} |\n")
    for name, (memory, _) in found.items():
        slope = statistics.linear_regression(range(points), memory).slope
        slope *= 100_000 / step
        result = "flat" if slope < FLAT else "NOT flat"
        lines.append(f"- {name}: {slope:+.3f} MB per 100,000 users after the first: {result}")
    return lines


def aims(results: Rounds, took: dict[str, float]) -> list[str]:
    """Return each aim, and whether it was met."""
    lines = []
    for column, name, base, most in AIMS:
        share = ratio(results, column, name, base)
        if share is not None:
            lines.append(_compare(f"{column}, {name} / {base}", share, most))
    lines.append(_compare(f"ms of {HELP}", took[HELP], 120))
    lines.append(_compare(f"ms of {OURS} beyond {AIOHTTP}", took[OURS] - took[AIOHTTP], 15))
    return lines


def _compare(what: str, figure: float, most: float) -> str:
    digits = 2 if most < 10 else 0
    result = "met" if figure <= most else "missed"
    return f"- {result}: {what}: {figure:.{digits}f}, aim {most:.{digits}f}"
