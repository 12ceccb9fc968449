"""The commands and their options. Each command imports its code when it runs: help is quick."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from monocloud_async.cli import fleet
from monocloud_async.cli.exit_codes import USAGE
from monocloud_async.cli.options import (
    Attempts,
    Column,
    Domain,
    Form,
    Json,
    KeyFile,
    Output,
    Sheet,
    Table,
    Timeout,
)
from monocloud_async.version import __version__

ARGUMENTS = "monocloud_async.arguments"  # of the context's `meta`


class _Commands(TyperGroup):
    """Commands that end with one line when the library raises an error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, which the journal of a run records."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from monocloud_async.errors import MonoCloudError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except MonoCloudError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(USAGE) from None


app = typer.Typer(
    cls=_Commands,
    help="Enable MonoCloud users.",
    epilog="The tenant and its key come from MONOCLOUD_MANAGEMENT_DOMAIN and"
    " MONOCLOUD_MANAGEMENT_API_KEY, or from --domain and --api-key-file. Exit codes: 0 all enabled,"
    " 1 some failed, 2 usage or configuration, 3 the run was stopped, 130 interrupted.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # A traceback with locals would show the key.
    pretty_exceptions_enable=False,
)

app.add_typer(fleet.app, name="fleet")


def _version(wanted: bool) -> None:  # noqa: FBT001  typer calls it so
    if wanted:
        typer.echo(f"monocloud-async {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Enable MonoCloud users."""


@app.command(epilog="Example: monocloud-async enable UOtBaOybB6dTpIJNrnkRw")
def enable(
    user_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="User ids to enable.")],
    *,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
    json: Json = False,
) -> None:
    """Enable these users."""
    from monocloud_async.cli import commands  # noqa: PLC0415

    access = commands.access(domain, api_key_file, timeout, attempts)
    raise typer.Exit(commands.enable(access, user_ids, json=json))


@app.command(
    epilog="Example: monocloud-async users --disabled --changed-after 2026-01-31T14:00Z"
    " --changed-before 2026-01-31T15:00Z -o lost.csv. Exit codes: 0 the list is complete, 1 someone"
    " may be missing, as stderr says, 2 usage or configuration, 3 the list could not be read."
)
def users(
    *,
    disabled: Annotated[bool, typer.Option("--disabled", help="Only disabled users.")] = False,
    enabled: Annotated[bool, typer.Option("--enabled", help="Only enabled users.")] = False,
    changed_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only users whose last change is at this time or later: 2026-01-31T14:00Z, or"
            " '2 hours ago'.",
        ),
    ] = None,
    changed_before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only users whose last change is before this time."),
    ] = None,
    by_email: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only users with the e-mail addresses of this txt, csv or jsonl file.",
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="EXPR",
            help="A filter of MonoCloud's API, sent as it is. Its language is not documented.",
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="ID", help="Only the members of this group.")
    ] = None,
    output: Output = None,
    form: Table = None,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
) -> None:
    """Find users, and write a table that `bulk` can read."""
    import time  # noqa: PLC0415  help is quick

    from monocloud_async.cli import commands  # noqa: PLC0415
    from monocloud_async.cli import users as finder  # noqa: PLC0415
    from monocloud_async.cli.files import Kept  # noqa: PLC0415
    from monocloud_async.cli.tables import table_format  # noqa: PLC0415
    from monocloud_async.cli.times import read_time  # noqa: PLC0415

    if disabled and enabled:
        raise typer.BadParameter("--disabled and --enabled contradict each other")
    kept = Kept()
    kept.add("the file of --by-email", by_email)
    kept.check("--output", output)
    now = time.time()
    emails, bad_lines = (None, 0) if by_email is None else finder.read_emails(by_email)
    selection = finder.Selection(
        disabled=True if disabled else False if enabled else None,
        after=read_time(changed_after, "--changed-after", now),
        before=read_time(changed_before, "--changed-before", now),
        emails=emails,
    )
    code = finder.users(
        commands.access(domain, api_key_file, timeout, attempts),
        selection,
        query=query,
        group=group,
        output=output,
        form=table_format(output, form),
        bad_lines=bad_lines,
    )
    raise typer.Exit(code)


@app.command(epilog="Example: monocloud-async bulk users.csv --column id --failures failed.csv")
def bulk(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A file of user ids: txt, csv, JSON, a workbook, or one of these in gzip; or - for"
            " stdin.",
            allow_dash=True,
        ),
    ],
    *,
    column: Column = None,
    form: Form = None,
    sheet: Sheet = None,
    failures: Annotated[
        Path | None,
        typer.Option(help="Write the lines that failed to this file, to run them again."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum requests in flight.")] = 100,
    max_rate: Annotated[
        float | None,
        typer.Option(
            help="Maximum requests per second. Default: the limit that the tenant enforces."
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="The file that records the run, so that the same command can resume it."
            " Default: FILE.journal, next to the input; none for stdin."
        ),
    ] = None,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Keep no journal, and send every id.")
    ] = False,
    note: Annotated[
        str, typer.Option(help="A note for the journal and its report, such as a ticket.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input and the options, and send nothing.")
    ] = False,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
    json: Json = False,
) -> None:
    """Enable all users of a file.

    The first Ctrl-C lets the calls in flight finish, the second cancels them.
    After an interrupted or killed run, the same command resumes it.
    One process is faster than the rate limit of nearly any tenant.
    """
    from monocloud_async.cli import commands  # noqa: PLC0415

    if journal is not None and no_journal:
        raise typer.BadParameter("--journal and --no-journal contradict each other")
    access = commands.access(domain, api_key_file, timeout, attempts)
    with commands.open_ids(file, form, column, sheet=sheet) as reader:
        place = commands.journal_path(reader, journal, wanted=not no_journal)
        files = commands.kept(file, api_key_file, place)
        files.check("--failures", failures)
        if dry_run:
            raise typer.Exit(commands.dry_run(access, reader, place))
        with commands.open_failures(failures) as kept:
            code = commands.bulk(
                access,
                reader,
                concurrency=concurrency,
                max_rate=max_rate,
                failures=kept,
                journal=place,
                caller=commands.caller(access, ctx.meta[ARGUMENTS], note),
                json=json,
            )
            raise typer.Exit(code)


@app.command()
def report(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="The journal of a bulk run.")],
    *,
    failures: Annotated[
        Path | None,
        typer.Option(
            help="Write every user who is not enabled to this file, in the format of the input, to"
            " run them again. Of a run that is not finished, this needs the input.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the report to this file, as one HTML page."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Show what became of this user.")
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Write the outcome of every user to stdout, as csv.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Write the outcome of every user to stdout, one JSON object per line, the summary"
            " last.",
        ),
    ] = False,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="Exit with 1 if somebody is not enabled or a line was bad, and with 3 if the run"
            " is not finished.",
        ),
    ] = False,
) -> None:
    """Show the results of a run, from its journal; also during the run.

    The first line tells whether the run is finished, and if not, how many users are left and which
    command goes on with it.
    """
    from monocloud_async.cli import report as terminal  # noqa: PLC0415

    if csv and json:
        raise typer.BadParameter("--csv and --json contradict each other")
    told = terminal.Report(journal, quiet=csv or json)
    files = told.kept()
    files.check("--failures", failures)
    files.check("--output", output)
    if csv:
        told.write_csv(user)
    elif json:
        told.write_json(user)
    elif user is not None:
        told.show_user(user)
    else:
        told.show()
    if failures is not None:
        told.write_failures(failures)
    if output is not None:
        told.write_page(output)
    raise typer.Exit(told.exit_code if exit_code else 0)


@app.command()
def demo() -> None:
    """Show a bulk run on a temporary tenant on this machine."""
    from monocloud_async.cli import demo as show  # noqa: PLC0415

    raise typer.Exit(show.demo())


@app.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 8080,
    host: Annotated[
        str, typer.Option(help="The address to listen on; only loopback is private.")
    ] = "127.0.0.1",
    users: Annotated[
        int,
        typer.Option(min=0, help="How many users to create who were disabled in the last hour."),
    ] = 100,
    others: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many other users to create: nine of ten are enabled, the rest was disabled"
            " long before.",
        ),
    ] = 0,
    ids: Annotated[
        Path | None, typer.Option(help="Write the ids of the users to this file, one per line.")
    ] = None,
    db: Annotated[
        Path | None,
        typer.Option(help="A SQLite file for the users. Default: in memory."),
    ] = None,
    api_key: Annotated[str, typer.Option(help="The API key that the sandbox accepts.")] = (
        "sandbox-key"
    ),
    latency: Annotated[float, typer.Option(min=0, help="Seconds added to every response.")] = 0.0,
    rate_limit: Annotated[
        float | None, typer.Option(min=0, help="Requests per second; more get 429.")
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(min=1, help="Requests at once before the rate limit applies."),
    ] = None,
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that get 500.")
    ] = 0.0,
    max_page_size: Annotated[
        int, typer.Option(min=1, help="The largest page of a list; larger ones are cut.")
    ] = 50,
    no_paging_header: Annotated[
        bool, typer.Option("--no-paging-header", help="Send lists without their paging header.")
    ] = False,
    shift_pages: Annotated[
        bool,
        typer.Option(
            "--shift-pages",
            help="After each page of a list, one enabled user leaves, and another one signs up.",
        ),
    ] = False,
    script: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=STEP,STEP...",
            help="How the next requests for this user are answered, for example ada=503,reset,200;"
            " may be repeated.",
        ),
    ] = None,
) -> None:
    """Run a simulated MonoCloud tenant on this machine, with faults on demand."""
    from monocloud_async.cli import sandbox as terminal  # noqa: PLC0415

    with terminal.usage_errors():
        tenant = terminal.Sandbox(
            users=users,
            db=db or ":memory:",
            api_key=api_key,
            host=host,
            port=port,
            latency=latency,
            rate_limit=rate_limit,
            burst=burst,
            error_rate=error_rate,
            others=others,
            disabled_at=terminal.an_hour_ago(),
            max_page_size=max_page_size,
            paging_header=not no_paging_header,
            shift_pages=shift_pages,
        )
        for text in script or []:
            tenant.script(*terminal.parse_script(text))
    raise typer.Exit(terminal.serve(tenant, ids))
