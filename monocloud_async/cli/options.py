"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from monocloud_async.inputs import Format


class TableFormat(StrEnum):
    """The format of a table of users."""

    CSV = "csv"
    JSONL = "jsonl"


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
    ),
]
Attempts = Annotated[int, typer.Option(min=1, help="Maximum requests for one user.")]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object per line to stdout, the summary last.")
]
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
