"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from monocloud_async.inputs import Format

Domain = Annotated[
    str | None,
    typer.Option(
        help="The tenant, such as acme.eu.monocloud.com. Default: the environment's"
        " MONOCLOUD_MANAGEMENT_DOMAIN.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with the API key. Default: the environment's MONOCLOUD_MANAGEMENT_API_KEY.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds for one request. Default: the environment's MONOCLOUD_MANAGEMENT_TIMEOUT"
        " (milliseconds), or 10.",
    ),
]
Attempts = Annotated[int, typer.Option(min=1, help="Requests for one user at most.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a line on stdout, the summary last.")
]
Column = Annotated[
    str | None,
    typer.Option(help="Where the ids are in csv or jsonl. Default: user_id or id."),
]
Form = Annotated[
    Format | None,
    typer.Option("--format", help="Default: what the name ends in; txt for stdin."),
]
