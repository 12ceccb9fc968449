"""A demonstration of the whole job, on a tenant in its own process: find, enable, a kill, verify.

Each step is a process of its own, with the command that it shows.
"""

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import aiohttp
from rich.console import Console
from rich.table import Table

from monocloud_async.cli import loop, streams
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED
from monocloud_async.config import API_KEY, DOMAIN
from monocloud_async.errors import ConfigurationError

KEY = "sandbox-key"
LOST, OTHERS = 3000, 2000
FLAKY = 30  # users whose first requests fail
RATE, BURST = 600, 300  # requests a second that the tenant grants
FAULTS = ([503], ["reset"], [502, 503], ["cut"], ["422:identity"] * 9)
KILL_AT = 1000  # users who are enabled by then

NAME = "monocloud-async"
PROGRAM = [sys.executable, "-m", "monocloud_async"]
ENABLE = ("bulk", "lost.csv", "--check", "--yes")


def demo() -> int:
    """Return 0 if the tenant's database confirms the results, 130 after Ctrl-C, else 1."""
    out = streams.out()
    folder = Path(tempfile.mkdtemp(prefix="monocloud-demo-"))
    db = folder / "tenant.db"
    with _tenant(db) as url:
        refused = loop.run(_make_flaky(url, _disabled(db)))
        before = len(_disabled(db))
        say(out, f"A MonoCloud tenant runs at {url}, in its own process.")
        say(out, f"It has {LOST + OTHERS:,} users, and grants {RATE} requests a second.")
        say(out, f"A script has disabled {LOST:,} users by mistake. You know when, not whom.")

        def is_far() -> bool:
            return len(_disabled(db)) <= before - KILL_AT

        steps: list[tuple[tuple[str, ...], str, Callable[[], bool] | None]] = [
            (
                ("users", "--disabled", "--changed-after", "2 hours ago", "-o", "lost.csv"),
                "Find them:",
                None,
            ),
            (ENABLE, "Enable them. Half-way, the demo kills the process (kill -9):", is_far),
            (ENABLE, "The same command goes on:", None),
            (("check", "lost.csv"), "Who is enabled now?", None),
            (("report", "lost.csv.journal"), "What happened:", None),
        ]
        for argv, title, is_over in steps:
            out.print(f"\n{title}")
            code = _step(out, folder, url, argv, is_over)
            if code == INTERRUPTED:
                return code
    return _show_proof(out, folder, url, refused=len(refused), others=before - LOST)


def _step(
    out: Console,
    folder: Path,
    url: str,
    argv: tuple[str, ...],
    is_over: Callable[[], bool] | None,
) -> int:
    """Run a command, and kill it once `is_over` says so; return its exit code."""
    shown = " ".join(f"'{part}'" if " " in part else part for part in argv)
    out.print(f"[bold]$ {NAME} {shown}[/]")
    streams.results().finish()  # before the other process writes
    # The package is found also where it is not installed.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    environment = {**os.environ, DOMAIN: url, API_KEY: KEY, "PYTHONPATH": path}
    with subprocess.Popen(  # noqa: S603  this program itself
        [*PROGRAM, *argv],
        cwd=folder,
        env=environment,
        start_new_session=True,  # Ctrl-C is passed on, once
    ) as process:
        try:
            while is_over is not None and process.poll() is None:
                time.sleep(0.05)
                if is_over():
                    process.kill()
                    say(out, "Killed.")
                    is_over = None
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            return INTERRUPTED


@contextmanager
def _tenant(db: Path) -> Iterator[str]:
    options = {
        "--port": 0,
        "--db": db,
        "--api-key": KEY,
        "--users": LOST,
        "--others": OTHERS,
        "--rate-limit": RATE,
        "--burst": BURST,
    }
    with subprocess.Popen(  # noqa: S603  this program itself
        [*PROGRAM, "sandbox", *(str(part) for option in options.items() for part in option)],
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


def _disabled(db: Path) -> list[str]:
    with closing(sqlite3.connect(db)) as sql:
        rows = sql.execute("SELECT user_id FROM users WHERE disabled ORDER BY last_updated DESC")
        return [row[0] for row in rows]


async def _make_flaky(url: str, ids: list[str]) -> set[str]:
    """Script faults for some of the lost users; return the ids of those who will stay disabled."""
    refused = set()
    async with aiohttp.ClientSession(headers={"X-API-KEY": KEY}, raise_for_status=True) as http:
        for place, user_id in enumerate(Random(1).sample(ids[:LOST], FLAKY)):  # noqa: S311  a demo
            script = FAULTS[place % len(FAULTS)]
            if "422:identity" in script:
                refused.add(user_id)
            members = {"last_updated": int(time.time()) - 60}
            body = {"script": script, "members": members}
            async with http.put(f"{url}/_sandbox/users/{user_id}", json=body):
                pass  # an error of the status was raised
    return refused


def _show_proof(out: Console, folder: Path, url: str, *, refused: int, others: int) -> int:
    """Show the tenant's own database, and what to try next.

    Args:
        out: stdout.
        folder: the folder with all files of the demo.
        url: the address that the tenant had.
        refused: how many users cannot be enabled.
        others: how many users were disabled long before.
    """
    with closing(sqlite3.connect(folder / "tenant.db")) as sql:
        enabled, disabled = sql.execute(
            "SELECT count(*) FILTER (WHERE NOT disabled), count(*) FILTER (WHERE disabled)"
            " FROM users"
        ).fetchone()
        latest = sql.execute(
            "SELECT user_id, datetime(last_updated, 'unixepoch') FROM users WHERE NOT disabled"
            " ORDER BY last_updated DESC LIMIT 3"
        ).fetchall()
    out.print("\nThe tenant's own database, now that its process has ended:")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("user_id", "disabled", "last_updated (UTC)"):
        table.add_column(name)
    for user_id, moment in latest:
        table.add_row(user_id, "0", moment)
    out.print(table)
    say(
        out,
        f"{enabled:,} users are enabled, {disabled:,} are not: {disabled - others:,} were refused"
        f" with 422, and {others:,} were disabled long before.",
    )
    _show_next(out, folder, url)
    if disabled != refused + others or enabled + disabled != LOST + OTHERS:
        say(out, "The demo expected other results: the run was not finished, or is wrong.")
        return SOME_FAILED
    return ALL_DONE


def _show_next(out: Console, folder: Path, url: str) -> None:
    """Show commands to try next, which this installation can run in any shell."""
    program, port = _program(), urlsplit(url).port
    has_pages = all(map(find_spec, ("jinja2", "vl_convert")))
    out.print(f"\nEverything is kept. Next, {'look at the run as a page, or ' * has_pages}undo it:")
    say(out, f"  cd {folder}")
    if has_pages:
        say(out, f"  {program} report lost.csv.journal -o run.html")
    say(out, f"  {program} sandbox --db tenant.db --port {port} &")
    say(out, f"  {DOMAIN}={url} {API_KEY}={KEY} {program} undo lost.csv.journal")


def _program() -> str:
    """Return this program as it was called, in a form that does not depend on the folder."""
    called = Path(sys.argv[0])
    if called.stem != NAME:
        return shlex.join(PROGRAM)
    found = shutil.which(NAME)
    is_on_path = found is not None and called.exists() and called.samefile(found)
    return NAME if is_on_path else shlex.quote(str(called.absolute()))
