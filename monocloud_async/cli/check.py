"""Implements `check`: tells who is enabled now, of a file of ids or of a journal."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import typer

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import counted, say
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED
from monocloud_async.cli.options import TableFormat
from monocloud_async.cli.states import Looked, State, look_up
from monocloud_async.cli.tables import Row, open_table
from monocloud_async.cli.times import iso
from monocloud_async.config import tenant_name
from monocloud_async.endpoint import DISABLE, ENABLE
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.reader import IdReader
from monocloud_async.journal.before import Record, read_head, records

_COLUMNS: Final = ("user_id", "state", "block_until", "recorded")
_SHOWN: Final = 10  # users that are listed one by one
_WORDS: Final = {
    State.ENABLED: "enabled",
    State.LOCKED: "enabled, but locked out after failed sign-ins, which an enable does not end",
    State.DISABLED: "disabled",
    State.MISSING: "unknown to the tenant",
    State.UNKNOWN: "in a state that the tenant does not tell",
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
    wanted = {State.DISABLED}
    if head.operation.endpoint == ENABLE.endpoint:
        wanted = {State.ENABLED, State.LOCKED}
    checking = _Check(access, str(journal), wanted, json=json)
    return checking.run(lambda: records(journal), head.users, output=output, form=form)


def check_file(
    access: Access, reader: IdReader, *, output: Path | None, form: TableFormat, json: bool
) -> int:
    """Tell for each id of the file what is, and return the exit code."""
    err = streams.err()
    lines = list(reader) if reader.path is None else None  # a pipe can be read only once
    count = bad = 0
    for line in reader if lines is None else lines:
        if line.user_id is not None:
            count += 1
            continue
        bad += 1
        if bad <= _SHOWN:
            say(err, f"line {line.number} {line.problem}")
    for note in reader.notes:
        say(err, note)

    def ids() -> Iterator[Record]:
        again = (reader.lines_again() if lines is None else lines) or ()
        return (Record(line.user_id, "") for line in again if line.user_id is not None)

    checking = _Check(access, reader.name, {State.ENABLED, State.LOCKED}, json=json, bad_lines=bad)
    return checking.run(ids, count, output=output, form=form)


class _Check:
    """One check and what it found.

    Args:
        access: the options of the session.
        name: the name of the input.
        wanted: the states of users with whom all is well.
        json: whether to write JSON lines.
        bad_lines: lines of the input without an id.
    """

    def __init__(
        self, access: Access, name: str, wanted: set[State], *, json: bool, bad_lines: int = 0
    ) -> None:
        self._access = access
        self._name = name
        self._wanted = wanted
        self._json = json
        self._bad_lines = bad_lines
        self._states = Counter[State]()
        self._lost = 0  # done by the journal, and not so any more
        self._mended = 0  # not done by the journal, and so now
        self._err = streams.err()

    def run(
        self,
        ids: Callable[[], Iterable[Record]],
        count: int,
        *,
        output: Path | None,
        form: TableFormat,
    ) -> int:
        """Look everybody up, tell the result, and return the exit code."""
        self._access.check()
        if not count and not self._bad_lines:
            raise ConfigurationError(f"there are no ids in {self._name}")
        say(self._err, f"Looking up {count:,} users of {self._name} on {self._access.tenant}")
        if output is None and not self._json:
            loop.ask_tenant(self._look(ids, count, None), self._err)
        else:
            form = TableFormat.JSONL if output is None else form
            with open_table(output, form, _COLUMNS) as row:
                loop.ask_tenant(self._look(ids, count, row), self._err)
        self._sum_up(output)
        is_well = not (self._bad_lines or self._states.keys() - self._wanted)
        return ALL_DONE if is_well else SOME_FAILED

    async def _look(self, ids: Callable[[], Iterable[Record]], count: int, row: Row | None) -> None:
        async with self._access.session() as session:
            recorded = iter(ids())
            names = (record.user_id for record in ids())
            async for found in look_up(self._access, session, names, count, self._err):
                outcome = next(recorded).outcome
                self._count(found, outcome)
                if row is not None:
                    row((found.user_id, found.state, iso(found.block_until), outcome or None))

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

    def _sum_up(self, output: Path | None) -> None:
        if self._json:
            summary = {state.value: self._states[state] for state in State}
            summary["bad_lines"] = self._bad_lines
            typer.echo(msgspec.json.encode({"summary": summary}))
            return
        out = streams.out()
        for state in State:
            if self._states[state] or state is State.ENABLED:
                say(out, f"{self._states[state]:,} {_WORDS[state]}")
        if self._bad_lines:
            say(out, counted(self._bad_lines, "bad line"))
        done = (DISABLE if State.DISABLED in self._wanted else ENABLE).done
        if self._lost:
            say(out, f"{self._lost:,} of them were {done} by the journal, and are not any more")
        if self._mended:
            say(out, f"{self._mended:,} of them are {done} now, although the run failed for them")
        if output is not None:
            say(self._err, f"{output} has the state of each")
