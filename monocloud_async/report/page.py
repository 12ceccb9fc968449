"""The report as one self-contained HTML page, which opens from disk and needs no network."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import jinja2

from monocloud_async.report.charts import charts
from monocloud_async.report.figures import Figures, ended, read
from monocloud_async.report.rows import UserRow, bad_lines, failures, users
from monocloud_async.sanitize import format_rate, format_time, visible
from monocloud_async.version import __version__

_HERE: Final = Path(__file__).parent
# Bytes for the table of failures, and for the other users; the page stays under 1 MB.
_ROOM: Final = 350_000
_BAD_LINES: Final = 100  # that are listed
_MARKUP: Final = 160  # bytes of a row besides its text


def page(
    journal: Path,
    figures: Figures | None = None,
    *,
    headline: str = "",
    since: str = "",
    everybody: Callable[[], Iterator[UserRow]] | None = None,
    lacking: str = "",
) -> str:
    """Return the report as HTML.

    Args:
        journal: the path of the journal.
        figures: its figures, if they were read.
        headline: whether the run is finished. Default: as the journal says.
        since: when the journal was last written.
        everybody: yields every user of the run. Default: those who have an outcome.
        lacking: why it does not yield the users who were never asked for, if so.

    Raises:
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    figures = figures or read(journal)
    rows = _failures(journal)
    others = _others(figures, everybody or (lambda: users(journal)))
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,  # ids and server messages are untrusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "rate": format_rate,
        "moment": _moment,
        "visible": visible,
    }
    return environment.get_template("page.html").render(
        figures=figures,
        headline=headline or figures.headline(),
        since=since,
        lacking=lacking,
        charts=charts(figures),
        rows=rows,
        not_done=figures.users - figures.done,
        others=others,
        other_users=figures.done + (0 if lacking else _never_asked(figures)),
        bad_lines=list(islice(bad_lines(journal), _BAD_LINES)),
        ended=ended,
        kinds={said: str(n) for n, said in enumerate(sorted({row.message for row in rows}))},
        script=script,
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def _failures(journal: Path) -> list[UserRow]:
    rows: list[UserRow] = []
    room = _ROOM
    for row in islice(failures(journal), _ROOM // _MARKUP):
        shown = visible(row.user_id), row.message, row.trace_id
        room -= _MARKUP + sum(len(text.encode()) for text in shown)
        if room < 0:
            break
        rows.append(row)
    return rows


def _others(
    figures: Figures, everybody: Callable[[], Iterator[UserRow]]
) -> list[tuple[str, int, int]]:
    """Return the users who are not in the table: id, what became of them, and when.

    The second value is 0 for done, 1 for not asked for, and 2 for in flight when a run was cut off;
    the third one the seconds since the journal began.
    """
    others: list[tuple[str, int, int]] = []
    room = _ROOM
    for row in everybody():
        if figures.is_done(row):
            other = (visible(row.user_id), 0, round(row.at - figures.created))
        elif not row.at:
            other = (visible(row.user_id), 1 if row.outcome == "not_attempted" else 2, 0)
        else:
            continue
        room -= len(json.dumps(other)) + 1
        if room < 0:
            break
        others.append(other)
    return others


def _never_asked(figures: Figures) -> int:
    return max(0, (figures.total or 0) - figures.users)


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _moment(seconds: float) -> str:
    return f"{format_time(seconds)} UTC"
