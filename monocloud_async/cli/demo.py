"""A demonstration: a sandbox in its own process, a csv, a bulk run, and a check of the results.

The run uses the code and the display of `monocloud-async bulk`.
"""

import asyncio
import csv
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import aiohttp
from rich.console import Console
from rich.table import Table

from monocloud_async.cli import commands, loop
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import INTERRUPTED
from monocloud_async.errors import ConfigurationError

KEY = "sandbox-key"
USERS = 5000
MISSING = 12  # ids in the csv that the tenant does not have
FLAKY = 30  # users whose first requests fail
RATE, BURST = 600, 300  # requests a second that the tenant grants
FAULTS = ([503], ["reset"], [502, 503], ["cut"], ["422:identity"])


def demo() -> int:
    """Return 0 if the tenant's database confirms the results, 130 after Ctrl-C, else 1."""
    out = Console(highlight=False)
    with TemporaryDirectory(prefix="monocloud-demo-") as folder:
        db, users, failed = (
            Path(folder) / name for name in ("tenant.db", "users.csv", "failed.csv")
        )
        with _tenant(db) as url:
            ids = _ids(db)
            refused = loop.run(_make_flaky(url, ids))
            missing = _write_csv(users, ids)
            say(out, f"A MonoCloud tenant runs at {url}, in its own process.")
            say(out, f"It has {USERS:,} disabled users, {FLAKY} of them flaky, and grants at most")
            say(out, f"{RATE} requests a second. {MISSING} ids of the csv do not exist.")
            out.print("\n[bold]$ monocloud-async bulk users.csv --failures failed.csv[/]\n")
            with (
                commands.open_ids(users, None, None) as reader,
                commands.open_failures(failed) as kept,
            ):
                plan = commands.Plan(
                    access=Access(domain=url, api_key=KEY),
                    ids=reader,
                    journal=commands.journal_path(reader, None, wanted=True),
                )
                code = commands.bulk(plan, failures=kept)
        if code == INTERRUPTED:
            return code
        return _show_proof(out, db, failed, expected=missing | refused)


@contextmanager
def _tenant(db: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "monocloud_async", "sandbox", "--port", "0", "--db", str(db)]
    options = {"--users": USERS, "--rate-limit": RATE, "--burst": BURST, "--api-key": KEY}
    with subprocess.Popen(  # noqa: S603  this program itself
        [*command, *(str(part) for option in options.items() for part in option)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Ctrl-C in the terminal must not reach the tenant, which the run needs while it drains.
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101  it is a pipe
            url = process.stdout.readline().strip()
            if not url:
                raise ConfigurationError("the sandbox did not start; see monocloud-async sandbox")
            yield url
        finally:
            process.terminate()


def _ids(db: Path) -> list[str]:
    with closing(sqlite3.connect(db)) as sql:
        return [row[0] for row in sql.execute("SELECT user_id FROM users ORDER BY position")]


async def _make_flaky(url: str, ids: list[str]) -> set[str]:
    """Script faults for some users; return the ids of those who will stay disabled."""
    refused = set()
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, raise_for_status=True) as http:
        for place, user_id in enumerate(Random(1).sample(ids, FLAKY)):  # noqa: S311  a demo
            script = FAULTS[place % len(FAULTS)]
            if "422:identity" in script:
                refused.add(user_id)
            async with http.put(f"{url}/_sandbox/users/{user_id}", json={"script": script}):
                await asyncio.sleep(0)
    return refused


def _write_csv(path: Path, ids: list[str]) -> set[str]:
    rng = Random(2)  # noqa: S311  a demo
    missing = {f"nobody{number:02}" for number in range(MISSING)}
    rows = ids + sorted(missing)
    rng.shuffle(rows)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "ticket"])
        table.writerows((user_id, f"HELP-{place}") for place, user_id in enumerate(rows, 1000))
    return missing


def _show_proof(out: Console, db: Path, failed: Path, *, expected: set[str]) -> int:
    with closing(sqlite3.connect(db)) as sql:
        enabled, disabled = sql.execute(
            "SELECT count(*) FILTER (WHERE NOT disabled), count(*) FILTER (WHERE disabled)"
            " FROM users"
        ).fetchone()
        latest = sql.execute(
            "SELECT user_id, datetime(last_updated, 'unixepoch') FROM users WHERE NOT disabled"
            " ORDER BY last_updated DESC LIMIT 3"
        ).fetchall()
    with failed.open(newline="") as file:
        fed_back = {row["user_id"] for row in csv.DictReader(file)}
    out.print("\nThe tenant's own database, now that its process has ended:")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("user_id", "disabled", "last_updated (UTC)"):
        table.add_column(name)
    for user_id, moment in latest:
        table.add_row(user_id, "0", moment)
    out.print(table)
    say(out, f"{enabled:,} users are enabled, {disabled} are not: refused with 422.")
    say(out, f"failed.csv had these and the {MISSING} that do not exist; it is deleted now.")
    if fed_back != expected or enabled + disabled != USERS:
        say(out, "The demo expected other results: the run was not finished, or is wrong.")
        return 1
    say(out, "Try it yourself: monocloud-async sandbox --ids users.txt; see also --help.")
    return 0
