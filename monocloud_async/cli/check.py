"""Implements `check`: tells who is enabled now, of a file of ids or of a journal."""

import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import typer

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import counted, say
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED
from monocloud_async.cli.files import written
from monocloud_async.cli.options import TableFormat
from monocloud_async.cli.states import Looked, UserState, look_up
from monocloud_async.cli.tables import Row, open_table
from monocloud_async.cli.times import iso
from monocloud_async.config import tenant_name
from monocloud_async.endpoint import DISABLE, ENABLE
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.reader import IdReader
from monocloud_async.journal.before import Record, read_head, recorded
from monocloud_async.report import figures

_COLUMNS: Final = ("user_id", "state", "block_until", "recorded")
_IN_MEMORY: Final = 1 << 20  # bytes
_SHOWN: Final = 10  # users that are listed one by one
_WORDS: Final = {
    UserState.ENABLED: "enabled",
    UserState.LOCKED: "enabled, but locked out after failed sign-ins, which an enable does not end",
    UserState.DISABLED: "disabled",
    UserState.MISSING: "missing from the tenant",
    UserState.UNKNOWN: "in a state that the tenant does not tell",
}
_RUN: Final = {
    figures.JournalState.AT_WORK: "is at work",
    figures.JournalState.ENDED: "ended early",
    figures.JournalState.KILLED: "was killed",
    figures.JournalState.UNKNOWN: "was killed, or is at work",
}
_DONE: Final = {"enabled", "disabled", "already_enabled", "already_disabled"}


def check_journal(
    access: Access, journal: Path, *, output: Path | None, form: TableFormat, json: bool
) -> int:
    """Compare what the journal has with what is, and return the exit code."""
    head = read_head(journal)
    if tenant_name(head.tenant) != tenant_name(access.tenant):
        raise ConfigurationError(
            f"the journal {journal} belongs to the tenant {head.tenant}, not to {access.tenant}"
        )
    wanted = {UserState.DISABLED}
    if head.operation.endpoint == ENABLE.endpoint:
        wanted = {UserState.ENABLED, UserState.LOCKED}
    run = figures.read(journal)
    with recorded(journal) as (count, users):
        checking = _Check(access, str(journal), wanted, json=json, run=run)
        return checking.run(users, count, output=output, form=form)


def check_file(
    access: Access, reader: IdReader, *, output: Path | None, form: TableFormat, json: bool
) -> int:
    """Tell for each id of the file what is, and return the exit code."""
    err = streams.err()
    count = bad = 0
    # The ids are counted first, and a pipe can be read only once.
    with (
        written("a temporary file (TMPDIR names its folder)"),
        tempfile.SpooledTemporaryFile(_IN_MEMORY) as ids,
    ):
        for line in reader:
            if line.user_id is not None:
                count += 1
                ids.write(msgspec.json.encode(line.user_id) + b"\n")
                continue
            bad += 1
            if bad <= _SHOWN:
                say(err, f"line {line.number} {line.problem}")
        for note in reader.notes:
            say(err, note)

        ids.seek(0)
        users = (Record(msgspec.json.decode(user_id, type=str), "") for user_id in ids)
        wanted = {UserState.ENABLED, UserState.LOCKED}
        checking = _Check(access, reader.name, wanted, json=json, bad_lines=bad)
        return checking.run(users, count, output=output, form=form)


class _Check:
    """One check and what it found.

    Args:
        access: the options of the session.
        name: the name of the input.
        wanted: the states of users with whom all is well.
        json: whether to write JSON lines.
        bad_lines: lines of the input without an id.
        run: the figures of the run whose journal it is, if it is one.
    """

    def __init__(
        self,
        access: Access,
        name: str,
        wanted: set[UserState],
        *,
        json: bool,
        bad_lines: int = 0,
        run: figures.Figures | None = None,
    ) -> None:
        self._access = access
        self._name = name
        self._wanted = wanted
        self._json = json
        self._bad_lines = bad_lines if run is None else run.bad_lines or 0
        self._run = run
        self._states = Counter[UserState]()
        self._lost = 0  # done by the journal, and not so any more
        self._mended = 0  # not done by the journal, and so now
        self._unsaid = 0  # not in the table
        self._err = streams.err()

    def run(
        self,
        users: Iterable[Record],
        count: int,
        *,
        output: Path | None,
        form: TableFormat,
    ) -> int:
        """Look everybody up, tell the result, and return the exit code."""
        self._access.check()
        if not count and not self._bad_lines and self._is_finished:
            raise ConfigurationError(f"there are no ids in {self._name}")
        say(self._err, f"Looking up {count:,} users of {self._name} on {self._access.tenant}")
        if output is not None:
            with open_table(output, form, _COLUMNS) as row:
                loop.ask_tenant(self._look(users, count, row), self._err)
                self._sum_up()  # even if the file cannot be written in the end
            left_out = f", but {self._unsaid:,} whose ids a file cannot say" if self._unsaid else ""
            say(self._err, f"{output} has the state of each{left_out}")
        elif self._json:
            with open_table(None, TableFormat.JSONL, _COLUMNS) as row:
                loop.ask_tenant(self._look(users, count, row), self._err)
            self._sum_up()
        else:
            loop.ask_tenant(self._look(users, count, None), self._err)
            self._sum_up()
        is_well = not (self._bad_lines or self._states.keys() - self._wanted)
        return ALL_DONE if is_well and self._is_finished else SOME_FAILED

    @property
    def _is_finished(self) -> bool:
        """Whether the input has nobody but those who are looked up."""
        return self._run is None or self._run.is_finished

    async def _look(self, users: Iterable[Record], count: int, row: Row | None) -> None:
        outcomes = deque[str]()  # of users who are being looked up

        def names() -> Iterator[str]:
            for user in users:
                outcomes.append(user.outcome)
                yield user.user_id

        async with self._access.session() as session:
            async for found in look_up(self._access, session, names(), count, self._err):
                outcome = outcomes.popleft()
                self._count(found, outcome)
                if row is not None:
                    cells = found.user_id, found.state, iso(found.block_until), outcome or None
                    self._unsaid += not row(cells)

    def _count(self, found: Looked, outcome: str) -> None:
        self._states[found.state] += 1
        is_well = found.state in self._wanted
        if outcome in _DONE and not is_well:
            self._lost += 1
        if outcome and outcome not in _DONE and is_well:
            self._mended += 1
        others = self._states.total() - sum(self._states[state] for state in self._wanted)
        if not is_well and others <= _SHOWN and not self._json:
            say(self._err, f"user {found.user_id!r} is {_WORDS[found.state]}")

    def _sum_up(self) -> None:
        if self._json:
            summary = {state.value: self._states[state] for state in UserState}
            summary["bad_lines"] = self._bad_lines
            members: dict[str, object] = {**summary}
            if self._run is not None:
                members |= {"run": self._run.state, "left": self._left()}
            typer.echo(msgspec.json.encode({"summary": members}))
            return
        out = streams.out()
        for state in UserState:
            if self._states[state] or state is UserState.ENABLED:
                say(out, f"{self._states[state]:,} {_WORDS[state]}")
        if self._bad_lines:
            say(out, counted(self._bad_lines, "bad line"))
        done = (DISABLE if UserState.DISABLED in self._wanted else ENABLE).done
        if self._lost:
            say(out, f"{self._lost:,} of them were {done} by the journal, and are not any more")
        if self._mended:
            say(out, f"{self._mended:,} of them are {done} now, although the run failed for them")
        if self._run is not None and not self._run.is_finished:
            say(out, f"The run {_RUN[self._run.state]}: {self._rest()}")
            if self._run.state is not figures.JournalState.AT_WORK:
                say(out, "The command that started the run resumes it")

    def _left(self) -> int | None:
        """Return how many users of the input are not in the journal, if that is known."""
        if self._run is None or self._run.total is None:
            return None
        return max(0, self._run.total - self._states.total())

    def _rest(self) -> str:
        """Return who was not looked up."""
        left = self._left()
        if left is None or self._run is None:
            return "its input was not read to its end, and the rest of it was not looked up"
        if not left:
            return "all users of its input were looked up"
        about = "" if self._run.ids is not None else "about "
        are, were = ("is", "was") if left == 1 else ("are", "were")
        users = counted(left, "user")
        return f"{about}{users} of its input {are} not in the journal, and {were} not looked up"
