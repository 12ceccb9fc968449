"""The preview of a run: what it would do, and how much of that is certain."""

from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from monocloud_async.cli import loop
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import counted, say
from monocloud_async.cli.states import UserState, look_up
from monocloud_async.cli.times import iso
from monocloud_async.endpoint import ENABLE, BulkOperation
from monocloud_async.inputs.lines import Line
from monocloud_async.journal.file import JournalFile
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.sanitize import clean, format_rate, visible
from monocloud_async.user_list import IdSet

_SHOWN: Final = 20  # bad lines that are listed one by one
_SAMPLE: Final = 2  # ids from the start, and from the end
_AROUND: Final = "<>'\"= "  # what programs put around an id
_ASKED_ANYWAY: Final = {
    UserState.MISSING: "and the tenant does not know them",
    UserState.UNKNOWN: "and the tenant does not tell whether they are disabled",
}
_RATES: Final = (10, 100)  # users per second, where nobody knows the tenant's limit


class Preview(msgspec.Struct, kw_only=True):
    """What is known of a run before it begins.

    Attributes:
        tenant: the address of the tenant.
        input: the name of the input.
        found: what the input is: its format and its column.
        ids: how many ids it has.
        duplicates: how many of them are not the first of their kind.
        bad_lines: how many lines have no valid id.
        first, last: some ids from the start and from the end.
        cleaned: the first line that is an id and something around it, if there is one.
        journal: the path of the journal, or None.
        compared: whether its ids were compared with those of the input, as the run does it.
        done: for how many users it has been done, according to the journal.
        latest: when the last of these was recorded, or None.
        left: how many ids the run would send a request for, duplicates included.
        users: how many users would be changed, as far as is known: those who are disabled, if the
            tenant was asked. None if that is unknown: of duplicates that can be read only once.
        rate: the expected number of users per second: the limit, or that of earlier runs, if any.
        tried: whether the tenant was asked, and has taken the key.
        states: how many of the users whom the run would look at are in which state, if the tenant
            was asked.
    """

    tenant: str
    input: str
    found: str = ""
    ids: int = 0
    duplicates: int = 0
    bad_lines: int = 0
    first: list[str] = []
    cleaned: str = ""
    last: list[str] = []
    journal: str | None = None
    compared: bool = False
    done: int = 0
    latest: str | None = None
    left: int = 0
    users: int | None = 0
    rate: float | None = None
    tried: bool = False
    states: dict[str, int] | None = None

    def read(self, lines: Iterator[Line], err: Console | None) -> None:
        """Read all lines, and print the first bad ones if there is a console."""
        seen = IdSet()
        last = deque[str](maxlen=_SAMPLE)
        for line in lines:
            if line.user_id is None:
                self.bad_lines += 1
                if err is not None and self.bad_lines <= _SHOWN:
                    say(err, f"line {line.number} {line.problem}")
                continue
            self.ids += 1
            text = line.text.strip()
            # A row of a table has other cells, too.
            if not self.cleaned and text != line.user_id and text.strip(_AROUND) == line.user_id:
                self.cleaned = clean(text)
            self.duplicates += not seen.add(line.user_id)
            if self.ids <= _SAMPLE:
                self.first.append(line.user_id)
            else:
                last.append(line.user_id)
        self.last = list(last)

    def look_into(self, journal: JournalFile, path: Path, ids: Iterator[str] | None) -> None:
        """Add what the journal has; makes the same checks as a run, and writes nothing.

        Args:
            journal: the journal of the run.
            path: its path, for people.
            ids: the ids of the input, or None if they can be read only once.

        Raises:
            ConfigurationError: a run could not use this journal.
        """

        async def look() -> None:
            report, limiter = BulkReport(), RateLimiter()
            try:
                reached = await journal.open(report, limiter, iter(()) if ids is None else ids)
                if ids is not None:
                    position = 0
                    for position, user_id in enumerate(islice(ids, reached), 1):
                        await journal.enabled(position - 1, user_id)
                    journal.check_length(position)
            finally:
                await journal.close(report, limiter, "")

        loop.run(look())
        self.journal = visible(str(path))
        self.compared = ids is not None
        self.done = journal.users_done
        self.latest = iso(journal.latest) if journal.latest else None

    def ask(self, access: Access, ids: Iterator[str], err: Console) -> None:
        """Add the states of the users who are left; those who are enabled are then not left.

        Args:
            access: the options of the session.
            ids: the ids that are left.
            err: stderr.

        Raises:
            Exit: the tenant does not tell.
        """

        async def ask() -> None:
            states, seen = Counter[UserState](), IdSet()
            to_send = 0
            async with access.session() as session:
                async for looked in look_up(access, session, ids, self.left, err):
                    states[looked.state] += seen.add(looked.user_id)
                    to_send += looked.state not in {UserState.ENABLED, UserState.LOCKED}
            self.states = {state.value: states[state] for state in UserState}
            self.tried = self.tried or bool(self.left)
            self.left, self.users = to_send, states[UserState.DISABLED]

        loop.ask_tenant(ask(), err)

    def sent(self) -> str:
        """Return the sentence that tells whether anything was sent before the run."""
        return "Nothing was changed." if self.tried else "Nothing was sent."

    def in_short(self, operation: BulkOperation) -> list[str]:
        """Return three lines for people."""
        doubles = f", {self.duplicates:,} of them twice" if self.duplicates else ""
        sample = ", ".join(map(repr, self.first))
        if self.last:
            sample += f" ... {', '.join(map(repr, self.last))}"
        journal = (
            "" if not self.done else f"; {self.done:,} were {operation.done} before, by the journal"
        )
        return [
            f"{self.input}: {counted(self.ids, 'id')}{doubles}, {self._bad()} ({self.found})",
            f"The ids: {sample}{journal}",
            self._would(operation),
        ]

    def at_length(self, operation: BulkOperation) -> list[str]:
        """Return the lines of a dry run."""
        of_bulk = operation is ENABLE  # `undo` has fewer options
        lines = [
            f"{self.input}: {counted(self.ids, 'id')}, {self._bad()}. {self.sent()}",
            f"It is {self.found}.",
        ]
        if self.first:
            rest = f"; the last ones: {', '.join(map(repr, self.last))}" if self.last else ""
            lines.append(f"The first ids: {', '.join(map(repr, self.first))}{rest}.")
        if self.cleaned:
            lines.append(f"Ids are cleaned: the first of these lines is {self.cleaned!r}.")
        if self.duplicates:
            lines.append(f"{self.duplicates:,} of the ids are duplicates, which is harmless.")
        if self.done:
            lines.append(
                f"The journal {self.journal} has {self.done:,} {operation.done} users, who are not"
                f" sent again{' (--no-journal sends every id)' if of_bulk else ''}; the latest at"
                f" {self.latest}."
            )
        elif self.journal:
            lines.append(f"The journal {self.journal} has no {operation.done} users.")
        if self.journal and not self.compared:
            lines.append(
                "Only the run compares its ids with the input, which can be read only once."
            )
        key = "The key works" if self.tried else "Neither the key nor the tenant was tried"
        if self.states is None:
            advice = "; --check asks the tenant who is enabled already" if of_bulk else ""
            lines.append(f"{key}{advice}.")
        elif asked := sum(self.states.values()):
            different = "different " if self.duplicates else ""
            lines.append(
                f"{key}. Of the {counted(asked, f'{different}id')} to look at, by the tenant:"
            )
            lines += [f"  {count:,} {state}" for state, count in self.states.items() if count]
        else:
            lines.append(f"{key}: nobody is left to look at.")
        lines.append(f"{self._would(operation)}.")
        return [*lines, *self._asked_anyway()]

    def _would(self, operation: BulkOperation) -> str:
        """Return what the run would do."""
        if self.users is None:
            what = f"{counted(self.left, 'request')} would be sent to {self.tenant}"
        else:
            what = f"{self.users:,} would be {operation.done} on {self.tenant}"
            if self.left != self.users:
                what += f", with {counted(self.left, 'request')}"
        return what + self._duration()

    def _asked_anyway(self) -> Iterator[str]:
        """Yield who else would be asked for, by the tenant's own states."""
        for state, why in _ASKED_ANYWAY.items():
            if self.states and (count := self.states[state]):
                yield f"{count:,} would be asked for, {why}."

    def _bad(self) -> str:
        return counted(self.bad_lines, "bad line")

    def _duration(self) -> str:
        if not self.left:
            return ""
        if self.rate:
            time, rate = _time(self.left / self.rate), format_rate(self.rate)
            return f", in about {time} at {rate} a second"
        guesses = " or ".join(f"{_time(self.left / rate)} at {rate} a second" for rate in _RATES)
        return f"; how long that takes depends on the tenant's limit: {guesses}"


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{max(1, round(seconds))} s"
