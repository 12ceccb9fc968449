"""Implements `report`: shows a run from its journal, in the terminal and in files."""

import csv
import io
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monocloud_async.cli import streams
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED, STOPPED
from monocloud_async.cli.files import Kept, whole
from monocloud_async.cli.options import CHECK, PROFILE
from monocloud_async.cli.profile import is_name
from monocloud_async.config import HIDDEN
from monocloud_async.endpoint import ENABLE
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By, Format
from monocloud_async.inputs.lines import line_parser
from monocloud_async.inputs.reader import is_header, named_format, open_ids
from monocloud_async.journal.before import is_journal, undoable
from monocloud_async.journal.paths import undo_path
from monocloud_async.journal.schema import COORDINATOR_ENDED
from monocloud_async.journal.store import LONGEST_COMMAND
from monocloud_async.report.figures import (
    Figures,
    Group,
    InputFile,
    JournalState,
    Run,
    ended,
    input_file,
    read,
)
from monocloud_async.report.rows import (
    Found,
    InputChangedError,
    NobodyRecordedError,
    UserRow,
    bad_lines,
    everybody,
    find,
    recorded_as,
    users,
)
from monocloud_async.sanitize import UNSAFE, clean, format_rate, format_time, no_formula, visible

MISSING_EXTRA = "the page needs its extra: pip install 'monocloud-async[report]'"

_GROUPS = 10
_LINES = 10  # bad lines whose numbers are shown
_FORMS = {Format.CSV, Format.JSONL}
_NOT_SENT = "InvalidUserIdError"
_NAMES = {
    "already_enabled": "enabled before, as the run saw when it looked",
    "already_disabled": "disabled before, as the run saw when it looked",
    "failed": "failed",
    "unknown": "unknown: a request was sent, but no response arrived",
    "not_attempted": "not attempted",
}
_IN_FLIGHT = {
    JournalState.AT_WORK: "in flight",
    JournalState.UNKNOWN: "in flight, or were when a run was cut off: unknown",
}
_CSV = (
    "number", "user_id", "status", "http_status", "attempts", "seconds", "at", "error", "message",
    "trace_id",
)  # fmt: skip


OptionsGiven = Callable[[str], Mapping[str, str]]


class Report:
    """The report on one journal.

    Args:
        journal: the path of the journal.
        options_given: returns the options of a recorded command, and their values.
        quiet: whether stdout is for programs, and messages go to stderr.
    """

    def __init__(self, journal: Path, options_given: OptionsGiven, *, quiet: bool) -> None:
        self._files = Kept()
        self._files.add_journal(journal)
        self.figures = read(journal)
        self._journal = journal
        self._input = input_file(journal)
        self._options_given = options_given
        self._out = streams.err() if quiet else streams.out()

    def kept(self) -> Kept:
        """Return the files that no output of the report may replace."""
        self._files.add_inputs(self._input.paths)
        return self._files

    @property
    def exit_code(self) -> int:
        """0 if everybody is done, 1 if somebody is not, and 3 if the run is not finished."""
        figures = self.figures
        if not figures.is_finished:
            return STOPPED
        return ALL_DONE if figures.done == figures.users and not figures.bad_lines else SOME_FAILED

    def headline(self) -> str:
        """Return whether the run is finished, and if not, what goes on with it."""
        text = self.figures.headline()
        if self.figures.is_finished or self.figures.state is JournalState.AT_WORK:
            return text
        return f"{text}; go on with: {self._go_on()}"

    def show(self) -> None:
        """Print the summary."""
        figures, out = self.figures, self._out
        say(out, self.headline())
        name = figures.source or "A run"
        say(out, f"{name} on {figures.tenant}, from the journal {figures.journal}")
        out.print(_outcomes(figures))
        self._show_bad_lines()
        say(out, f"{figures.seconds:,.1f} s of work{_rate(figures)}")
        say(out, _requests(figures))
        if figures.percentiles:
            times = figures.percentiles
            say(
                out,
                f"Half were {figures.done_status} within {times[50]:,} ms, 90 % within"
                f" {times[90]:,} ms, 99 % within {times[99]:,} ms, all within {times[100]:,} ms",
            )
        _show_table(out, "Runs", _runs(figures))
        if figures.groups:
            _show_table(out, "Failures", _groups(figures.groups))
        if figures.kinds > _GROUPS:
            say(out, f"and {figures.kinds - _GROUPS:,} other kinds")
        if figures.is_finished:
            say(out, self._since())

    def show_user(self, user_id: str) -> None:
        """Print what became of this user.

        Raises:
            ConfigurationError: the user is not in the run, as far as is known.
        """
        latest, earlier = self._find(user_id)
        for row in earlier:
            say(self._out, f"before: {_told(row)}")
        for row in latest:
            say(self._out, _told(row))

    def write_failures(self, path: Path) -> None:
        """Write every user who is not done to a file that `bulk` can read.

        Raises:
            ConfigurationError: the run is not finished, and its input cannot be read again.
        """
        rows, why = self._everybody
        if why:
            raise ConfigurationError(
                f"--failures cannot have everybody: {self.figures.headline()}, and {why}."
                f" Finish the run first: {self._go_on()}"
            )
        form = Format(self.figures.form) if self.figures.form in _FORMS else Format.TXT
        if self.figures.form == Format.WORKBOOK:
            form = Format.CSV
        column = self.figures.column or "user_id"
        if column.isdecimal() or self._input.by == By.EMAIL:  # a number, or not the name of ids
            column = "user_id"
        header = _csv_row([column]) if form is Format.CSV else ""
        parse = line_parser(form, column, str(path), header)
        count = left_out = never = 0
        with whole(path) as file:
            file.write(header)
            for row in rows():
                if self.figures.is_done(row):
                    continue
                text = _line(form, column, row.user_id)
                # What was refused is recorded in a form that could be another user's id.
                passed_over = form is Format.TXT and _is_passed_over(str(path), text)
                is_read = not passed_over and parse(1, text).user_id == row.user_id
                if row.kind == _NOT_SENT or not is_read:
                    left_out += 1
                else:
                    file.write(text)
                    count += 1
                    never += row.outcome == "not_attempted"
        which = f", {never:,} of them never asked for" if never else ""
        what = "user" if count == 1 else "users"
        # `bulk` would enable those whom an undo has left.
        done = self.figures.done_status
        what += " to retry" if done == ENABLE.done else f" not {done}"
        say(self._out, f"{count:,} {what}{which}: {path}")
        if left_out:
            ids = "id is" if left_out == 1 else "ids are"
            say(self._out, f"{left_out:,} {ids} left out, because a file cannot say them")

    def write_page(self, path: Path) -> None:
        """Write the report as an HTML page."""
        try:
            from monocloud_async.report.page import page  # noqa: PLC0415  an extra
        except ModuleNotFoundError:
            raise ConfigurationError(MISSING_EXTRA) from None
        rows, why = self._everybody
        text = page(
            self._journal,
            self.figures,
            headline=self.headline(),
            since=self._since() if self.figures.is_finished else "",
            everybody=rows,
            lacking=why,
        )
        with whole(path) as file:
            file.write(text)
        say(self._out, f"The report as a page: {path}")

    def write_json(self, user_id: str | None) -> None:
        """Write every outcome, or a user's, to stdout as a JSON line, and a summary at the end.

        Raises:
            ConfigurationError: the user is not in the run, as far as is known.
        """
        if user_id is not None:
            self._find(user_id)
        rows, why = self._everybody
        counts: Counter[str] = Counter()

        def lines() -> Iterator[str]:
            for row in rows():
                counts[row.outcome] += 1
                if user_id is None or row.user_id in recorded_as(user_id):
                    yield _encoded(_members(row))
            for line, problem in () if user_id is not None else bad_lines(self._journal):
                error = {"type": _NOT_SENT, "message": f"line {line} {problem}"}
                yield _encoded({"line": line, "user_id": None, "status": "failed", "error": error})
            yield _encoded({"summary": self._summary(counts, is_complete=not why)})

        self._warn(why)
        _write(lines())

    def write_csv(self, user_id: str | None) -> None:
        """Write every outcome, or a user's, to stdout as csv.

        Raises:
            ConfigurationError: the user is not in the run, as far as is known.
        """
        if user_id is not None:
            self._find(user_id)
        rows, why = self._everybody

        def lines() -> Iterator[str]:
            yield _csv_row(_CSV)
            for row in rows():
                if user_id is None or row.user_id in recorded_as(user_id):
                    yield _csv_row(_cells(row))

        say(self._out, self.headline())
        self._warn(why)
        _write(lines())

    def _warn(self, why: str) -> None:
        if why:
            say(self._out, f"Users who were never asked for are not listed: {why}")

    def _summary(self, counts: Counter[str], *, is_complete: bool) -> dict[str, Any]:
        figures = self.figures
        ids = counts.total() if is_complete else figures.ids
        named = (figures.done_status, figures.done_before_status, *_NAMES)
        return {
            "state": figures.state,
            "finished": figures.is_finished,
            "complete": is_complete,
            "total": ids,
            **{name: counts[name] for name in named},
            "left": None if ids is None else ids - figures.asked,
            "bad_lines": figures.bad_lines,
            "tenant": figures.tenant,
            "input": figures.source,
            "latest": _moment(figures.latest),
            "go_on": None if figures.is_finished else self._go_on(),
            "runs": [_run_members(run) for run in figures.runs],
        }

    @cached_property
    def _everybody(self) -> tuple[Callable[[], Iterator[UserRow]], str]:
        """Return a function that yields every user of the run, and who is missing, if anybody."""
        if self.figures.is_finished and not self.figures.unrecorded:
            return lambda: users(self._journal), ""
        why = (
            f"the input {visible(self._input.name)} is not there"
            if self._input.name
            else ("the journal does not know the file of its input")
        )
        if self._is_from_stdin:
            why = "its ids came from stdin, which cannot be read again"
        for path in self._input.paths:
            try:
                for _ in everybody(self._journal, _ids(path, self._input)):
                    pass
            except InputChangedError as error:
                why = f"the input {path} has changed: {error}"
            except NobodyRecordedError as error:
                why = f"the input {path} may have changed: {error}"
            except (ConfigurationError, OSError) as error:
                why = f"the input {path} cannot be read: {error}"
            else:
                return lambda: everybody(self._journal, _ids(path, self._input)), ""  # noqa: B023  returns
        return lambda: users(self._journal), why

    @property
    def _is_from_stdin(self) -> bool:
        return self._input.name == "stdin" and not self._input.paths

    def _find(self, user_id: str) -> Found:
        found = find(self._journal, user_id)
        if found.latest:
            return found
        rows, why = self._everybody
        where = f"the journal {self._journal}"
        if why:
            raise ConfigurationError(
                f"{user_id!r} is not in {where}: the run has not come to this user, or the user is"
                f" not in its input ({why})"
            )
        latest = [row for row in rows() if row.user_id == user_id]
        if not latest:
            raise ConfigurationError(f"{user_id!r} is not in {where} and not in its input")
        return Found(latest, found.earlier)

    def _show_bad_lines(self) -> None:
        count = self.figures.bad_lines
        if count is None:
            say(self._out, "Whether lines had no valid id is not known: the journal is an old one")
        elif count:
            numbers = [f"{line:,}" for line, _ in islice(bad_lines(self._journal), _LINES)]
            more = ", ..." if count > len(numbers) else ""
            where = f" ({', '.join(numbers)}{more})" if numbers else ""
            lines = "line" if count == 1 else "lines"
            say(
                self._out,
                f"{count:,} bad {lines} without a valid id{where}, in no file of the report;"
                " `bulk --failures` keeps them",
            )

    def _since(self) -> str:
        """Return when the journal was last written, and how to ask again."""
        if not self.figures.latest:
            return f"Nobody was asked for; to ask: {self._go_on(again=True)}"
        return (
            f"The journal knows the tenant as it was at {format_time(self.figures.latest)} UTC;"
            f" to ask again: {self._go_on(again=True)}"
        )

    def _go_on(self, *, again: bool = False) -> str:
        """Return the command that goes on with the run, or does all of it again.

        Only what is needed is taken from the journal, and quoted: it may be anybody's.
        """
        given, figures = self._input, self.figures
        if figures.is_fleet:
            return _go_on_fleet(figures, again=again)
        path = given.paths[0] if given.paths else Path(given.name)
        word = given.name if _is_same(Path(given.name), path) else str(path)
        word = f"./{word}" if word.startswith("-") and word != "-" else word
        if is_journal(path) and _is_same(undo_path(path), self._journal):
            words = ["monocloud-async", "undo", word, *self._limits(), *self._access()]
            without = f", without the file {self.figures.journal}" if again else ""
            return self._whole(words, "") + without
        if not given.name or figures.done_status != ENABLE.done:
            return "the same call" + (" without the journal" if again else "")
        words = ["monocloud-async", "bulk", word]
        if self._is_from_stdin or streams.is_open_file(path):
            words[-1] = "-"
        words += _options(given)
        # A run that was interrupted while it read the list has looked at nobody yet.
        if given.looked or CHECK in self._options_given(given.command):
            words.append(CHECK)
        if words[2] == "-" or _named_format(path) != given.form:
            words += ["--format", given.form]
        if again:
            words.append("--no-journal")
        elif not _is_same(Path(f"{path}.journal"), self._journal):
            words += ["--journal", str(self._journal)]
        words += [*self._limits(), *self._access()]
        return self._whole(words, " with another --journal" if again else "")

    def _whole(self, words: Iterable[str], otherwise: str) -> str:
        """Return the command of these words, if the journal has all that it takes.

        Of a long command, only the start was recorded: an option may be missing, or its end.
        """
        if len(self._input.command) >= LONGEST_COMMAND:
            return f"the same command{otherwise}"
        return " ".join(map(_quoted, words))

    def _limits(self) -> Iterator[str]:
        """Yield the options without which the run would be faster, or stop again."""
        options = self._options_given(self._input.command)
        for name in ("--max-rate", "--max-same-failures"):
            value = options.get(name, "")
            with suppress(ValueError):  # it is no number
                if 0 <= float(value) < math.inf:
                    yield from (name, value.strip())

    def _access(self) -> Iterator[str]:
        """Yield the options of the last run that name its tenant and its key."""
        given = self._input
        options = self._options_given(given.command)
        for name in (PROFILE, "--domain", "--api-key-file"):
            value = options.get(name, "")
            if not value or HIDDEN in value or (name == PROFILE and not is_name(value)):
                continue
            if name == "--api-key-file":
                path = Path(given.folder, value)  # it is relative to that folder
                # Not `Path.is_file`, which raises for a long name, and for a closed folder.
                if streams.is_open_file(path) or not os.path.isfile(path):  # noqa: PTH113
                    continue  # such as that of `<(pass key)`, which only the run could read
                value = value if _is_same(Path(value), path) else str(path)
            yield from (name, value)


def _quoted(word: str) -> str:
    """Return the word as a shell reads it, without what would move or turn a terminal's text."""
    if not re.search(UNSAFE, word):
        return shlex.quote(word)
    text = word.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{re.sub(UNSAFE, _bytes, text)}'"


def _bytes(found: re.Match[str]) -> str:
    """Return escapes of the bytes, which mean the same in every locale."""
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode(errors="surrogateescape"))


def _go_on_fleet(figures: Figures, *, again: bool) -> str:
    """Return what goes on with the run of a fleet, or does all of it again."""
    if again:
        return "the same `fleet start` with another --journal"
    last = figures.runs[-1] if figures.runs else None
    if last is None or (last.ended is not None and last.how != COORDINATOR_ENDED):
        return "the same `fleet start`"
    return (
        "`fleet coordinator` in the folder of the journal, or if there is no such run any more, the"
        " same `fleet start`"
    )


def _options(given: InputFile) -> Iterator[str]:
    """Yield the options that tell how the input was read."""
    if given.column is not None:
        yield from ("--column", given.column)
    if given.sheet is not None:
        yield from ("--sheet", given.sheet)
    if given.by == By.EMAIL:
        yield from ("--by", By.EMAIL)


def _ids(path: Path, given: InputFile) -> Iterator[str]:
    if given.by == By.EMAIL:
        raise ConfigurationError("it has e-mail addresses, whose users only the tenant knows")
    if is_journal(path):
        yield from undoable(path)
        return
    form = Format(given.form) if given.form in set(Format) else None
    with open_ids(path, form, given.column, sheet=given.sheet) as reader:
        yield from (line.user_id for line in reader if line.user_id is not None)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # a journal may name anything, even a path with a NUL byte
        return False


def _named_format(path: Path) -> str | None:
    try:
        return named_format(path, None, None)
    except ConfigurationError:
        return None


def _is_passed_over(name: str, text: str) -> bool:
    """Return whether the reader takes this line of a txt file for a comment or a header."""
    try:
        return text.startswith("#") or is_header(name, text)
    except ConfigurationError:
        return True


def _told(row: UserRow) -> str:
    parts = [f"{row.user_id!r}: {row.outcome.replace('_', ' ')}"]
    if row.at:
        requests = f"{row.attempts:,} request" + ("" if row.attempts == 1 else "s")
        parts[0] += f" at {format_time(row.at)} UTC, after {requests}, {row.milliseconds:,} ms"
    if row.message:
        parts.append(row.message)
    if row.trace_id:
        parts.append(f"trace {row.trace_id}")
    return "; ".join([*parts, f"number {row.position + 1:,} of the input"])


def _members(row: UserRow) -> dict[str, Any]:
    members: dict[str, Any] = {
        "number": row.position + 1,
        "user_id": row.user_id,
        "status": row.outcome,
        "attempts": row.attempts,
        "seconds": row.milliseconds / 1000,
        "at": _moment(row.at),
    }
    if row.kind:
        members["error"] = {"type": row.kind, "message": row.message}
        members["error"] |= {"status": row.status, "trace_id": row.trace_id or None}
    elif row.message:
        members["reason"] = row.message
    return members


def _run_members(run: Run) -> dict[str, Any]:
    return {
        "began": _moment(run.began),
        "ended": None if run.ended is None else _moment(run.ended),
        "how": run.how or None,
        "process": run.process,
        "login": run.login,
        "command": run.command,
        "note": run.note,
        "requests": run.requests,
    }


def _cells(row: UserRow) -> Iterable[str]:
    cells = (
        row.position + 1, row.user_id, row.outcome, row.status or "", row.attempts,
        row.milliseconds / 1000, _moment(row.at) or "", row.kind, row.message, row.trace_id,
    )  # fmt: skip
    return (no_formula(str(cell)) for cell in cells)


def _moment(seconds: float) -> str | None:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds else None


def _encoded(members: dict[str, Any]) -> str:
    return msgspec.json.encode(members).decode() + "\n"


def _write(lines: Iterable[str]) -> None:
    """Write the lines to stdout, in UTF-8."""
    output = streams.results()
    for line in lines:
        output.write(line.encode(errors="replace"))


def _rate(figures: Figures) -> str:
    """Return the speed, over a time that is long enough to measure one."""
    if figures.seconds - figures.idle < 0.1:  # noqa: PLR2004  seconds
        return ""
    when = " while requests were let through" if figures.idle else ""
    return f", {format_rate(figures.rate)} users a second{when}"


def _outcomes(figures: Figures) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", overflow="fold")
    table.add_column(overflow="fold")
    before = {figures.done_before_status: f"{figures.done_status} before, as the tenant said"}
    for outcome, name in ({figures.done_status: figures.done_status} | before | _NAMES).items():
        count = figures.outcomes.get(outcome, 0)
        if count or outcome == figures.done_status:
            table.add_row(f"{count:,}", name)
    if figures.unrecorded:
        what = _IN_FLIGHT.get(figures.state, "in flight when a run was cut off: unknown")
        table.add_row(f"{figures.unrecorded:,}", what)
    if never := (figures.left or 0) - figures.unrecorded - figures.outcomes.get("not_attempted", 0):
        about = "" if figures.ids is not None else "about "
        table.add_row(f"{about}{never:,}", "not asked for yet")
    return table


def _requests(figures: Figures) -> str:
    requests, retries, throttled = (
        sum(getattr(run, name) for run in figures.runs)
        for name in ("requests", "retries", "throttled")
    )
    paused = sum(run.paused for run in figures.runs)
    outage = sum(halt.seconds for halt in figures.halts if halt.what == "outage")
    # A run has a sample of its counts for each second, and one at its end.
    least = "at least " if any(run.ended is None for run in figures.runs) else ""
    return (
        f"{least}{requests:,} requests, {retries:,} of them retries, {throttled:,} answered 429"
        + (f"; paused for {paused:,.1f} s" if paused else "")
        + (f", of which the tenant was down for {outage:,.0f} s" if outage else "")
    )


def _runs(figures: Figures) -> Table:
    table = _table("started (UTC)", "lasted", "requests", "ended", "by")
    for run in figures.runs:
        by = ", ".join(part for part in (run.login, clean(run.note)) if part)
        table.add_row(
            format_time(run.began),
            f"{run.seconds:,.1f} s",
            f"{run.requests:,}",
            Text(ended(figures, run)),
            Text(by),
        )
    return table


def _groups(groups: list[Group]) -> Table:
    table = _table("users", "message", "examples")
    for group in groups[:_GROUPS]:
        examples = ", ".join(repr(user_id) for user_id in group.examples)
        table.add_row(f"{group.count:,}", Text(group.message), Text(examples))
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        number = name in {"lasted", "requests", "users"}
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _show_table(out: Console, title: str, table: Table) -> None:
    out.print(f"\n[bold]{title}[/]")
    out.print(table)


def _line(form: Format, column: str, user_id: str) -> str:
    """Return the line of one id in the format of the input."""
    match form:
        case Format.CSV:
            return _csv_row([no_formula(user_id)])
        case Format.JSONL:
            return msgspec.json.encode({column: user_id}).decode() + "\n"
        case _:
            return f"{user_id}\n"


def _csv_row(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
