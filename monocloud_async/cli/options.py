"""Options that several commands share."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from monocloud_async.inputs import By, Format

PROFILE = "--profile"  # of all commands; see `cli.profile`
CHECK = "--check"  # of `bulk`


class TableFormat(StrEnum):
    """The format of a table of users."""

    CSV = "csv"
    JSONL = "jsonl"


def _above_zero(value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter("must be a number above 0")
    return value


Domain = Annotated[
    str | None,
    typer.Option(
        help="The tenant, for example acme.eu.monocloud.com. Default: MONOCLOUD_MANAGEMENT_DOMAIN"
        " in the environment.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with the API key. Default: MONOCLOUD_MANAGEMENT_API_KEY in the environment.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds for one request. Default: MONOCLOUD_MANAGEMENT_TIMEOUT in the environment (in"
        " milliseconds), or 10.",
        callback=_above_zero,
    ),
]
Attempts = Annotated[int, typer.Option(min=1, help="Maximum requests for one user.")]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object per line to stdout, the summary last.")
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Do not ask before requests are sent, as for scripts."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show what the run would do, and make its checks; nobody is changed.",
    ),
]
ByWhat = Annotated[
    By,
    typer.Option(
        "--by",
        help="What the input names users by. E-mail addresses are looked up in the list of all"
        " users, and must each be those of exactly one user.",
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Maximum requests in flight.")]
MaxRate = Annotated[
    float | None,
    typer.Option(
        help="Maximum requests per second. Default: the limit that the tenant enforces.",
        callback=_above_zero,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Only the first N users who are left."),
]
MaxSameFailures = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Stop if the first N users all fail in the same way; 0 for never.",
    ),
]
Note = Annotated[str, typer.Option(help="A note for the journal and its report, such as a ticket.")]
Column = Annotated[
    str | None,
    typer.Option(
        help="The column or JSON member that has the ids, by name, or by number from 1. Default:"
        " user_id or id.",
    ),
]
Form = Annotated[
    Format | None,
    typer.Option("--format", help="The format. Default: from the file; txt for stdin."),
]
Sheet = Annotated[
    str | None, typer.Option(help="The sheet of a workbook. Default: the only visible one.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the table to this file, which appears when it is complete.",
    ),
]
Table = Annotated[
    TableFormat | None,
    typer.Option("--format", help="The format of the table. Default: from the file name, or csv."),
]
