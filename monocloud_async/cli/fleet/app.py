"""The `fleet` commands and their options."""

from typing import Annotated

import typer

from monocloud_async.cli.options import Attempts, Column, Domain, Form, Json, KeyFile, Timeout

app = typer.Typer(
    help="Run over many machines, with Temporal. Needs the extra `temporal`.",
    epilog="The connection to Temporal comes from TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE,"
    " TEMPORAL_API_KEY and TEMPORAL_TLS_*, or from a Temporal profile. Default: localhost:7233.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than all the rest
)

Ids = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The ids: a path that all machines share, or an https URL with range requests.",
    ),
]
MaxRate = Annotated[
    float | None,
    typer.Option(
        help="Requests per second at most, over the whole fleet. Default: what the tenant grants.",
    ),
]
JournalName = Annotated[
    str | None,
    typer.Option(
        help="The name of the journal, in the coordinator's folder; with the journal of an earlier"
        " run, the new run does the rest. Default: FILE.journal.",
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER_OR_URL",
        help="Read ids only below this folder or URL; may be repeated. Default: this folder.",
    ),
]
Health = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Answer health checks here: /livez, and /readyz while Temporal answers.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT_OR_URL",
        help="Serve metrics here for Prometheus, at /metrics, or send them to this OpenTelemetry"
        " collector.",
    ),
]
JsonLogs = Annotated[
    bool, typer.Option("--json-logs", help="Write log lines as JSON, one object in a line.")
]
MaxOutage = Annotated[
    float, typer.Option(help="Seconds to wait for a tenant that is down, before the run pauses.")
]


@app.command()
def dev(
    file: Ids,
    *,
    max_rate: MaxRate = None,
    column: Column = None,
    form: Form = None,
    journal: Annotated[
        str | None,
        typer.Option(help="The journal file. Default: FILE.journal, next to the file."),
    ] = None,
    domain: Domain = None,
    api_key_file: KeyFile = None,
) -> None:
    """Try a whole fleet on this machine, with Temporal's development server.

    Ctrl-C cancels the run; the same command resumes it.
    """
    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.fleet import dev as development  # noqa: PLC0415  help is quick

    access = commands.access(domain, api_key_file, None, 4)
    raise typer.Exit(
        development.dev(file, access, max_rate=max_rate, form=form, column=column, journal=journal)
    )


@app.command()
def coordinator(
    *,
    source: Source = None,
    domain: Domain = None,
    health: Health = None,
    metrics: Metrics = None,
    json_logs: JsonLogs = False,
) -> None:
    """Host the runs of a tenant and write their journals here. Needs no API key.

    Start one per tenant, on a machine with a persistent disk.
    """
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    service = fleet_commands.Service(health, metrics, json_logs)
    raise typer.Exit(fleet_commands.coordinator(domain, source or [], service))


@app.command()
def worker(
    *,
    source: Source = None,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
    health: Health = None,
    metrics: Metrics = None,
    json_logs: JsonLogs = False,
) -> None:
    """Make the calls of the tenant's runs; start workers on any number of machines.

    The first Ctrl-C or SIGTERM lets the calls in flight finish and hands the rest back.
    """
    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.fleet import logs  # noqa: PLC0415  help is quick

    warn = logs.set_up(json=json_logs).warning
    access = commands.access(domain, api_key_file, timeout, attempts, warn=warn)
    service = fleet_commands.Service(health, metrics, json_logs)
    raise typer.Exit(fleet_commands.worker(access, source or [], service))


@app.command()
def start(
    file: Ids,
    *,
    max_rate: MaxRate = None,
    column: Column = None,
    form: Form = None,
    journal: JournalName = None,
    max_outage: MaxOutage = 300.0,
    domain: Domain = None,
) -> None:
    """Start a run of the tenant, for the fleet to do."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

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
def doctor(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="The ids of the run. Default: no file is checked."),
    ] = None,
    *,
    column: Column = None,
    form: Form = None,
    journal: JournalName = None,
    domain: Domain = None,
    json: Json = False,
) -> None:
    """Try everything that a run needs, before the first user.

    Asks Temporal, and every worker and coordinator: the tenant and the key, the file and its
    content, the journal, the clocks and the versions. No user is changed. The exit code is 0 if
    all is fine, and 1 otherwise.
    """
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    raise typer.Exit(
        fleet_commands.doctor(
            file, form=form, column=column, journal=journal, domain=domain, json=json
        )
    )


@app.command()
def status(
    *,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Watch the run to its end; Ctrl-C stops watching."),
    ] = False,
    domain: Domain = None,
    json: Json = False,
) -> None:
    """Show the progress of the tenant's run."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    raise typer.Exit(fleet_commands.status(domain, follow=follow, json=json))


@app.command()
def pause(
    *,
    why: Annotated[str, typer.Option(help="The reason, shown with the status.")] = "paused by hand",
    domain: Domain = None,
) -> None:
    """Pause the run: the calls in flight finish, and no more are made."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    fleet_commands.steer(
        domain,
        lambda run: run.pause(why),
        lambda before: (
            "The run is pausing"
            if before.paused is None
            else f"The run was already paused: {before.paused}"
        ),
    )


@app.command()
def resume(*, domain: Domain = None) -> None:
    """Resume a paused run."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    fleet_commands.steer(
        domain,
        lambda run: run.resume(),
        lambda before: (
            "The run resumes"
            if before.paused is not None or before.away
            else "The run was not paused"
        ),
    )


@app.command()
def rate(
    max_rate: Annotated[
        float | None,
        typer.Argument(
            help="Requests per second at most, over the whole fleet."
            " Default: what the tenant grants.",
        ),
    ] = None,
    *,
    domain: Domain = None,
) -> None:
    """Change the highest rate of the run, or let the tenant alone decide."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    limit = fleet_commands.at_most(max_rate)
    fleet_commands.steer(
        domain,
        lambda run: run.set_rate(max_rate),
        lambda before: (
            f"The run continues, {limit}"
            if before.paused is None
            else f"The run is paused; with a resume, it continues {limit}"
        ),
    )


@app.command()
def cancel(*, domain: Domain = None) -> None:
    """Cancel the run; its results are recorded, and a new run can do the rest."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    fleet_commands.steer(
        domain,
        lambda run: run.cancel(),
        lambda _: (
            "The run is ending; see status --follow. A start with the same journal does the rest"
        ),
    )


@app.command()
def failures(*, domain: Domain = None, json: Json = False) -> None:
    """Show the first thousand users who failed or are unknown; `report` shows all of them."""
    from monocloud_async.cli.fleet import commands as fleet_commands  # noqa: PLC0415  help is quick

    fleet_commands.failures(domain, json=json)
