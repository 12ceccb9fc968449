"""Implements `enable` and `bulk`: builds a run from the options and the input."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access, Say, read_key
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED
from monocloud_async.cli.files import Kept
from monocloud_async.cli.job import DEFAULT_LIMITS, Job, Limits
from monocloud_async.cli.outputs import FailuresFile, JsonLines, open_failures
from monocloud_async.cli.preview import Preview
from monocloud_async.config import API_KEY, HIDDEN, is_loopback
from monocloud_async.endpoint import ENABLE, BulkOperation
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import STDIN, open_ids
from monocloud_async.journal.before import left
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import Caller, InputInfo
from monocloud_async.models import User
from monocloud_async.report import figures
from monocloud_async.sanitize import format_time
from monocloud_async.user_id import check_user_id
from monocloud_async.user_list import IdSet

__all__ = [
    "Limits",
    "Plan",
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
_KEY_FILE = "the file of the API key"
_FEW = 10  # users, for whom nobody is asked


def access(
    domain: str | None,
    api_key_file: Path | None,
    timeout: float | None,
    attempts: int,
    *,
    warn: Say | None = None,
) -> Access:
    """Return the `Access` for these options; warnings go to stderr by default.

    Raises:
        ConfigurationError: the key file cannot be used, or stdout or stderr is written to it.
    """
    if api_key_file is not None:
        streams.check_streams(_KEY_FILE, api_key_file)
    warn = warn or partial(say, streams.err())
    key = None if api_key_file is None else read_key(api_key_file, warn)
    return Access(domain=domain, api_key=key, timeout=timeout, attempts=attempts)


def enable(access: Access, user_ids: Sequence[str], *, json: bool) -> int:
    """Enable the users, print one line for each, and return the exit code."""
    for user_id in user_ids:
        check_user_id(user_id)
    lines = [Line(place, "", user_id) for place, user_id in enumerate(user_ids, 1)]
    job = Job(ENABLE, "the users named", lines, expected=len(lines), quiet=True)
    if json:
        job.json = JsonLines(job.stdout)
    else:
        job.each_user = lambda user: say(job.out, _told(user))
    return loop.run(job.run(access, Limits(concurrency=10)))


def _told(user: User) -> str:
    parts = [f"{user.user_id}: {ENABLE.done}"]
    if ENABLE.contradicted_by(user):
        parts.append("the response still said disabled, so look the user up")
    if user.block_until and user.block_until > datetime.now(UTC).timestamp():
        until = format_time(user.block_until)
        parts.append(f"locked out until {until} UTC, which enabling does not end")
    return "; ".join(parts)


class Ids(Protocol):
    """The input of a run: a file, a pipe, or a journal; see `IdReader`."""

    name: str
    found: str
    notes: list[str]
    if_changed: str | None

    @property
    def form(self) -> Format: ...
    @property
    def column(self) -> str | None: ...
    @property
    def sheet(self) -> str | None: ...
    @property
    def by(self) -> By: ...
    @property
    def header(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def size(self) -> int | None: ...
    def expected(self) -> int | None: ...
    def reread(self) -> Iterator[str] | None: ...
    def lines_again(self) -> Iterator[Line] | None: ...
    def __iter__(self) -> Iterator[Line]: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, as the options of a command describe it.

    Attributes:
        access: the tenant, the key and the limits of a session.
        ids: the input.
        operation: what to do for each user.
        limits: how fast, and how far.
        journal: the path of the journal, or None.
        caller: what the user ran, for the journal.
        json: whether to write JSON lines.
    """

    access: Access
    ids: Ids
    operation: BulkOperation = ENABLE
    limits: Limits = DEFAULT_LIMITS
    journal: Path | None = None
    caller: Caller | None = None
    json: bool = False

    def journal_file(self) -> JournalFile | None:
        """Return the journal, or None without one."""
        if self.journal is None:
            return None
        ids = self.ids
        origin = InputInfo(
            ids.name,
            ids.form,
            ids.column,
            ids.reread(),
            path="" if ids.path is None else str(ids.path.absolute()),
            about=ids.expected(),
            sheet=ids.sheet,
            by=ids.by,
        )
        if ids.if_changed is not None:
            origin = origin._replace(if_changed=ids.if_changed)
        return JournalFile(
            self.journal,
            self.access.tenant,
            operation=self.operation,
            input_info=origin,
            caller=self.caller,
        )

    def preview(self, err: Console | None) -> Preview:
        """Return what is known of the run; sends nothing, and prints bad lines on the console.

        Raises:
            ConfigurationError: the run could not begin.
        """
        self.access.check()
        # E-mail addresses were looked up already.
        tried = self.ids.by is By.EMAIL
        seen = Preview(tenant=self.access.tenant, input=self.ids.name, tried=tried)
        lines = self.ids.lines_again() if err is None else None
        seen.read(iter(self.ids) if lines is None else lines, err)
        seen.found = self.ids.found
        seen.rate = self.limits.max_rate
        if self.journal is not None and (file := self.journal_file()) is not None:
            seen.look_into(file, self.journal, self.ids.reread())
            if seen.rate is None and seen.done:
                seen.rate = figures.read(self.journal).rate
        seen.left = max(0, seen.ids - seen.done)
        if self.limits.limit is not None:
            seen.left = min(seen.left, self.limits.limit)
        seen.users = seen.left
        if seen.duplicates:
            with self.left_ids(seen) as ids:
                different = IdSet()
                seen.users = None if ids is None else sum(map(different.add, ids))
        return seen

    @contextmanager
    def left_ids(self, seen: Preview) -> Iterator[Iterator[str] | None]:
        """Yield the ids that the run would look at, or None if they can be read only once."""
        ids = self.ids.reread()
        with ExitStack() as opened:  # what is left open is closed in whichever thread collects it
            if ids is not None and seen.done and self.journal is not None:
                ids = opened.enter_context(closing(left(self.journal, ids, self.operation)))
            yield None if ids is None else islice(ids, seen.left)


def bulk(plan: Plan, *, failures: FileIO | None = None, ask: bool = False) -> int:
    """Run over the input, print a summary, and return the exit code.

    Args:
        plan: the run.
        failures: a file for the lines that fail.
        ask: whether to ask a person first, if there is one and it is about more than a few users.
    """
    ids = plan.ids
    if ask and not _is_agreed(plan):
        return INTERRUPTED
    job = Job(
        plan.operation,
        ids.name,
        ids,
        expected=ids.expected(),
        blocking=ids.size is None,
        notes=ids.notes,
    )
    if plan.journal is not None and (file := plan.journal_file()) is not None:
        job.keep(file, plan.journal)
    if plan.json:
        job.json = JsonLines(job.stdout)
    if failures is not None:
        job.failures = FailuresFile(failures, ids)
    return loop.run(job.run(plan.access, plan.limits))


def _is_agreed(plan: Plan) -> bool:
    """Ask on a terminal before requests for more than a few users leave this machine."""
    is_near = is_loopback(urlsplit(plan.access.tenant).hostname or "")
    if is_near or plan.ids.size is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    seen = plan.preview(None)
    if seen.left <= _FEW:
        return True
    err = streams.err()
    for line in seen.in_short(plan.operation):
        say(err, line)
    try:
        if typer.confirm("Go on?", err=True):
            return True
    except typer.Abort:
        typer.echo(err=True)
    say(err, f"{seen.sent()} --yes goes on without this question.")
    return False


def dry_run(plan: Plan) -> int:
    """Show what a run would do, send nothing that changes a user, and return the exit code."""
    out, err = streams.out(), streams.err()
    seen = plan.preview(err)
    for note in plan.ids.notes:
        say(err, note)
    if not seen.ids and not seen.bad_lines:
        raise ConfigurationError(f"there are no ids in {plan.ids.name}")
    if plan.limits.check:
        with plan.left_ids(seen) as ids:
            if ids is None:
                raise ConfigurationError("--check needs a file for a dry run, not a pipe")
            seen.ask(plan.access, ids, err)
    if plan.json:
        typer.echo(msgspec.json.encode(seen))
    else:
        for line in seen.at_length(plan.operation):
            say(out, line)
    return SOME_FAILED if seen.bad_lines else ALL_DONE


def caller(access: Access, arguments: Sequence[str], note: str) -> Caller:
    """Return what the journal records of a command: its arguments without secrets, and the note."""
    secrets = [key for key in (access.api_key, os.environ.get(API_KEY)) if key]
    shown = list(arguments)
    for secret in secrets:
        shown = [argument.replace(secret, HIDDEN) for argument in shown]
        note = note.replace(secret, HIDDEN)
    shown = [_PASSWORD.sub(f"{HIDDEN}@", argument) for argument in shown]
    return Caller(shlex.join(["monocloud-async", *shown]), note)


def journal_path(reader: Ids, named: Path | None, *, wanted: bool) -> Path | None:
    """Return the path of the journal: the named one, or by default one next to the input."""
    if named is not None or not wanted or reader.path is None:
        return named
    return reader.path.with_name(f"{reader.path.name}.journal")


def kept(
    ids: Path | None,
    api_key_file: Path | None,
    journal: Path | None,
    *,
    ids_are: str = "the input",
) -> Kept:
    """Return the files of a command, which none of its outputs may replace.

    Args:
        ids: the input, or None without one.
        api_key_file: the file of the API key, or None.
        journal: the journal, or None.
        ids_are: what messages call the input.

    Raises:
        ConfigurationError: the journal is one of the others, or stdout or stderr is one of them.
    """
    files = Kept()
    files.add(ids_are, 0 if ids == STDIN else ids)
    files.add(_KEY_FILE, api_key_file)
    files.add_journal(journal)
    return files
