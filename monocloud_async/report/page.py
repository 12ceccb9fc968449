"""The report as one self-contained HTML page, which opens from disk and needs no network."""

import base64
import hashlib
from itertools import islice
from pathlib import Path
from typing import Final

import jinja2

from monocloud_async.report.charts import charts
from monocloud_async.report.figures import FailureRow, Figures, failures, read, visible
from monocloud_async.sanitize import format_time
from monocloud_async.version import __version__

_HERE: Final = Path(__file__).parent
_ROOM: Final = 400_000  # bytes for the table of failures; the page stays under 1 MB
_MARKUP: Final = 160  # bytes of a row besides its text


def page(journal: Path) -> str:
    """Return the report as HTML.

    Raises:
        ConfigurationError: the file is not a journal, or cannot be read.
    """
    figures = read(journal)
    rows = _rows(journal)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,  # ids and server messages are untrusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "moment": _moment, "visible": visible}
    return environment.get_template("page.html").render(
        figures=figures,
        charts=charts(figures),
        rows=rows,
        not_done=_not_done(figures),
        kinds={said: str(n) for n, said in enumerate(sorted({row.message for row in rows}))},
        script=script,
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def _rows(journal: Path) -> list[FailureRow]:
    rows: list[FailureRow] = []
    room = _ROOM
    for failure in islice(failures(journal), _ROOM // _MARKUP):
        shown = visible(failure.user_id), failure.message, failure.trace_id
        room -= _MARKUP + sum(len(text.encode()) for text in shown)
        if room < 0:
            break
        rows.append(failure)
    return rows


def _not_done(figures: Figures) -> int:
    return figures.users - figures.outcomes.get(figures.done_status, 0)


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _moment(seconds: float) -> str:
    return f"{format_time(seconds)} UTC"
