"""The commands of a fleet and their options."""

from typing import Annotated

import typer

from monocloud_async.cli.options import Attempts, Column, Domain, Form, Json, KeyFile, Timeout

app = typer.Typer(
    help="A run over many machines, on Temporal. Needs the extra `temporal`.",
    epilog="Temporal is found by TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY and"
    " TEMPORAL_TLS_*, or a profile of Temporal's own; localhost:7233 without them.",
    no_args_is_help=True,
)

Ids = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The ids: a path that all machines have, or an http(s) URL that serves ranges.",
    ),
]
MaxRate = Annotated[float, typer.Option(help="Requests a second, over the whole fleet.")]
Journal = Annotated[
    str | None,
    typer.Option(
        help="The coordinator's record, on its own disk; a run on the journal of an earlier one"
        " does what that one left. Default: FILE.journal in the coordinator's folder.",
    ),
]
MaxOutage = Annotated[
    float, typer.Option(help="Seconds to wait for a tenant that is down; then the run pauses.")
]


@app.command()
def dev(
    file: Ids,
    *,
    max_rate: MaxRate,
    column: Column = None,
    form: Form = None,
    journal: Journal = None,
    domain: Domain = None,
    api_key_file: KeyFile = None,
) -> None:
    """A first look: a whole fleet on this machine, with Temporal's own development server.

    Ctrl-C cancels the run; the same command goes on where it ended.
    """
    from monocloud_async.cli import commands, fleet_dev  # noqa: PLC0415

    access = commands.access(domain, api_key_file, None, 4)
    raise typer.Exit(
        fleet_dev.dev(file, access, max_rate=max_rate, form=form, column=column, journal=journal)
    )


@app.command()
def coordinator(*, domain: Domain = None) -> None:
    """Host the tenant's runs and write their journals here. Needs no API key.

    One for a tenant, and on a disk that lasts.
    """
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    raise typer.Exit(fleet_commands.coordinator(domain))


@app.command()
def worker(
    *,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
) -> None:
    """Make calls for the tenant's runs, on as many machines as wanted.

    The first Ctrl-C or SIGTERM lets the calls in flight finish and hands the rest back.
    """
    from monocloud_async.cli import commands, fleet_commands  # noqa: PLC0415

    access = commands.access(domain, api_key_file, timeout, attempts)
    raise typer.Exit(fleet_commands.worker(access))


@app.command()
def start(
    file: Ids,
    *,
    max_rate: MaxRate,
    column: Column = None,
    form: Form = None,
    journal: Journal = None,
    max_outage: MaxOutage = 300.0,
    domain: Domain = None,
) -> None:
    """Start the tenant's run, and leave it to the fleet."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.start(
        file,
        max_rate=max_rate,
        form=form,
        column=column,
        journal=journal,
        max_outage=max_outage,
        domain=domain,
    )


@app.command()
def status(
    *,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Watch it to its end; Ctrl-C only ends the watching."),
    ] = False,
    domain: Domain = None,
    json: Json = False,
) -> None:
    """Show how the tenant's run stands."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    raise typer.Exit(fleet_commands.status(domain, follow=follow, json=json))


@app.command()
def pause(
    *,
    why: Annotated[str, typer.Option(help="For whoever looks at the run.")] = "paused by hand",
    domain: Domain = None,
) -> None:
    """Let the calls in flight finish, and make no more."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.steer(domain, lambda run: run.pause(why), "The run pauses")


@app.command()
def resume(*, domain: Domain = None) -> None:
    """Go on with a run that is paused."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.steer(domain, lambda run: run.resume(), "The run goes on")


@app.command()
def rate(
    max_rate: Annotated[float, typer.Argument(help="Requests a second, over the whole fleet.")],
    *,
    domain: Domain = None,
) -> None:
    """Go on at another rate."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.steer(
        domain, lambda run: run.set_rate(max_rate), f"The run goes on at {max_rate:g} a second"
    )


@app.command()
def cancel(*, domain: Domain = None) -> None:
    """End the run; what was done is recorded, and a new run can do the rest."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.steer(
        domain,
        lambda run: run.cancel(),
        "The run ends; see status --follow. A start with the same journal does the rest",
    )


@app.command()
def failures(*, domain: Domain = None, json: Json = False) -> None:
    """Show the first thousand users who are not enabled; `report` has all, from the journal."""
    from monocloud_async.cli import fleet_commands  # noqa: PLC0415

    fleet_commands.failures(domain, json=json)
