"""Implements `report`: shows a run from its journal, in the terminal and in files."""

import csv
import io
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monocloud_async.cli.display import say
from monocloud_async.cli.files import Kept, whole
from monocloud_async.cli.tables import no_formula
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import Format
from monocloud_async.inputs.lines import line_parser
from monocloud_async.report.figures import Figures, Group, failures, inputs, read
from monocloud_async.sanitize import format_time

MISSING_EXTRA = "the page needs its extra: pip install 'monocloud-async[report]'"

_GROUPS = 10
_FORMS = {Format.CSV, Format.JSONL}
_NOT_SENT = "InvalidUserIdError"
_NAMES = {
    "already_enabled": "enabled before, as the run saw when it looked",
    "already_disabled": "disabled before, as the run saw when it looked",
    "failed": "failed",
    "unknown": "unknown: a request was sent, but no response arrived",
    "not_attempted": "not attempted",
}


def kept(journal: Path) -> Kept:
    """Return the files that no output of a report may replace."""
    files = Kept()
    for place in inputs(journal):
        files.add("the input of the run", place)
    files.add_journal(journal)
    return files


def show(journal: Path) -> None:
    """Print the summary."""
    figures = read(journal)
    out = Console(highlight=False)
    name = figures.source or "A run"
    say(out, f"{name} on {figures.tenant}, from the journal {figures.journal}")
    out.print(_outcomes(figures))
    say(out, f"{figures.seconds:,.1f} s of work, {figures.rate:,.0f} users a second")
    say(out, _requests(figures))
    if figures.percentiles:
        times = figures.percentiles
        say(
            out,
            f"Half were {figures.done_status} within {times[50]:,} ms,"
            f" 90 % within {times[90]:,} ms, 99 % within {times[99]:,} ms,"
            f" all within {times[100]:,} ms",
        )
    _show_table(out, "Runs", _runs(figures))
    if figures.groups:
        _show_table(out, "Failures", _groups(figures.groups))
    if len(figures.groups) > _GROUPS:
        say(out, f"and {len(figures.groups) - _GROUPS:,} other kinds")


def write_failures(journal: Path, path: Path) -> None:
    """Write every user who is not enabled to a file that `bulk` can read."""
    figures = read(journal)
    form = Format(figures.form) if figures.form in _FORMS else Format.TXT
    column = figures.column or "user_id"
    header = _row(column) if form is Format.CSV else ""
    parse = line_parser(form, column, str(path), header)
    count = left_out = 0
    with whole(path) as file:
        file.write(header)
        for failure in failures(journal):
            text = _line(form, column, failure.user_id)
            # What was refused is recorded in a form that could be another user's id.
            if failure.kind == _NOT_SENT or parse(1, text).user_id != failure.user_id:
                left_out += 1
            else:
                file.write(text)
                count += 1
    out = Console(highlight=False)
    say(out, f"{count:,} users to retry: {path}")
    if left_out:
        say(out, f"{left_out:,} ids are left out, because a file cannot say them")


def write_page(journal: Path, path: Path) -> None:
    """Write the report as an HTML page."""
    try:
        from monocloud_async.report.page import page  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise ConfigurationError(MISSING_EXTRA) from None
    text = page(journal)
    with whole(path) as file:
        file.write(text)
    say(Console(highlight=False), f"The report as a page: {path}")


def _outcomes(figures: Figures) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for outcome, name in {figures.done_status: figures.done_status, **_NAMES}.items():
        count = figures.outcomes.get(outcome, 0)
        if count or outcome == figures.done_status:
            table.add_row(f"{count:,}", name)
    if figures.unrecorded:
        table.add_row(f"{figures.unrecorded:,}", "in flight when a run was killed: unknown")
    return table


def _requests(figures: Figures) -> str:
    requests, retries, throttled = (
        sum(getattr(run, name) for run in figures.runs)
        for name in ("requests", "retries", "throttled")
    )
    paused = sum(run.paused for run in figures.runs)
    outage = sum(halt.end - halt.start for halt in figures.halts if halt.what == "outage")
    return (
        f"{requests:,} requests, {retries:,} of them retries, {throttled:,} answered 429"
        + (f"; paused for {paused:,.1f} s" if paused else "")
        + (f", of which the tenant was down for {outage:,.0f} s" if outage else "")
    )


def _runs(figures: Figures) -> Table:
    table = _table("started (UTC)", "lasted", "requests", "ended")
    for run in figures.runs:
        how = run.how or f"killed, or still running: {run.process}"
        table.add_row(
            format_time(run.began), f"{run.seconds:,.1f} s", f"{run.requests:,}", Text(how)
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
            return _row(no_formula(user_id))
        case Format.JSONL:
            return msgspec.json.encode({column: user_id}).decode() + "\n"
        case _:
            return f"{user_id}\n"


def _row(cell: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([cell])
    return text.getvalue()
