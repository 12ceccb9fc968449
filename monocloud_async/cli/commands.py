"""Implements `enable` and `bulk`: builds a run from the options and the input."""

import os
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from rich.console import Console

from monocloud_async.cli import loop
from monocloud_async.cli.access import Access, read_key
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED
from monocloud_async.cli.files import Kept
from monocloud_async.cli.job import Job
from monocloud_async.cli.outputs import FailuresFile, JsonLines, open_failures
from monocloud_async.config import API_KEY
from monocloud_async.endpoint import ENABLE, BulkOperation, check_user_id
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import STDIN, IdReader, open_ids
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import Caller, InputInfo
from monocloud_async.models import User
from monocloud_async.sanitize import format_time

__all__ = [
    "access",
    "bulk",
    "caller",
    "dry_run",
    "enable",
    "journal_path",
    "kept",
    "open_failures",
    "open_ids",
]

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")  # of an address
_SHOWN = 20  # bad lines that a dry run lists one by one


def access(
    domain: str | None, api_key_file: Path | None, timeout: float | None, attempts: int
) -> Access:
    """Return the `Access` for these options."""
    warn = Console(stderr=True, highlight=False)
    key = None if api_key_file is None else read_key(api_key_file, lambda text: say(warn, text))
    return Access(domain=domain, api_key=key, timeout=timeout, attempts=attempts)


def enable(access: Access, user_ids: Sequence[str], *, json: bool) -> int:
    """Enable the users, print one line for each, and return the exit code."""
    for user_id in user_ids:
        check_user_id(user_id)
    lines = [Line(place, "", user_id) for place, user_id in enumerate(user_ids, 1)]
    job = Job(ENABLE, "the users named", lines, expected=len(lines), quiet=True)
    if json:
        job.json = JsonLines(job.stop)
    else:
        job.each_user = lambda user: say(job.out, _told(user))
    return loop.run(job.run(access, concurrency=10))


def _told(user: User) -> str:
    parts = [f"{user.user_id}: {ENABLE.done}"]
    if ENABLE.contradicted_by(user):
        parts.append("the response still said disabled, so look the user up")
    if user.block_until and user.block_until > datetime.now(UTC).timestamp():
        until = format_time(user.block_until)
        parts.append(f"locked out until {until} UTC, which enabling does not end")
    return "; ".join(parts)


def bulk(
    access: Access,
    reader: IdReader,
    *,
    operation: BulkOperation = ENABLE,
    concurrency: int,
    max_rate: float | None = None,
    failures: FileIO | None = None,
    journal: Path | None = None,
    caller: Caller | None = None,
    json: bool = False,
) -> int:
    """Run over the input, print a summary, and return the exit code."""
    about = reader.expected()
    job = Job(
        operation,
        reader.name,
        reader,
        expected=about,
        blocking=reader.size is None,
        notes=reader.notes,
    )
    if journal is not None:
        whole = "" if reader.path is None else str(reader.path.absolute())
        origin = InputInfo(
            reader.name, reader.form, reader.column, reader.reread(), whole, about, reader.sheet
        )
        file = JournalFile(
            journal, access.tenant, operation=operation, input_info=origin, caller=caller
        )
        job.keep(file, journal)
    if json:
        job.json = JsonLines(job.stop)
    if failures is not None:
        job.failures = FailuresFile(failures, reader, job.stop)
    return loop.run(job.run(access, concurrency, max_rate))


def caller(access: Access, arguments: Sequence[str], note: str) -> Caller:
    """Return what the journal records of a command: its arguments without secrets, and the note."""
    secrets = [key for key in (access.api_key, os.environ.get(API_KEY)) if key]
    shown = list(arguments)
    for secret in secrets:
        shown = [argument.replace(secret, "****") for argument in shown]
        note = note.replace(secret, "****")
    shown = [_PASSWORD.sub("****@", argument) for argument in shown]
    return Caller(shlex.join(["monocloud-async", *shown]), note)


def journal_path(reader: IdReader, named: Path | None, *, wanted: bool) -> Path | None:
    """Return the path of the journal: the named one, or by default one next to the input."""
    if named is not None or not wanted or reader.path is None:
        return named
    return reader.path.with_name(f"{reader.path.name}.journal")


def kept(ids: Path, api_key_file: Path | None, journal: Path | None) -> Kept:
    """Return the files of a run, which none of its outputs may replace.

    Raises:
        ConfigurationError: the journal is one of the others.
    """
    files = Kept()
    files.add("the input", 0 if ids == STDIN else ids)
    files.add("the file of the API key", api_key_file)
    files.add_journal(journal)
    return files


def dry_run(
    access: Access, reader: IdReader, journal: Path | None, operation: BulkOperation = ENABLE
) -> int:
    """Check every line, send nothing, and return the exit code."""
    from monocloud_async.report.figures import users_done  # noqa: PLC0415  only if there is a journal

    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    good = bad = 0
    for line in reader:
        if line.user_id is not None:
            good += 1
            continue
        bad += 1
        if bad <= _SHOWN:
            say(err, f"line {line.number} {line.problem}")
    for note in reader.notes:
        say(err, note)
    say(out, f"{reader.name}: {good:,} ids, {bad:,} bad lines. Nothing was sent.")
    access.check()
    if journal is not None and journal.exists() and journal.stat().st_size:
        known, latest = users_done(journal)
        when = f" (as of {format_time(latest)} UTC)" if known else ""
        say(
            out,
            f"The journal {journal} has {known:,} {operation.done} users{when}, who are not sent"
            " again; --no-journal sends every id.",
        )
        good = max(0, good - known)
    say(out, f"{good:,} would be {operation.done} on {access.tenant}.")
    return SOME_FAILED if bad else ALL_DONE
