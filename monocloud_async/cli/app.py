"""The commands and their options. Each command imports its code when it runs: help is quick."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from monocloud_async.cli.arguments import ARGUMENTS, Commands, TakesIds, options_given
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED
from monocloud_async.cli.fleet.app import app as fleet_app
from monocloud_async.cli.options import (
    CHECK,
    Attempts,
    ByWhat,
    Column,
    Concurrency,
    Domain,
    DryRun,
    Form,
    Json,
    KeyFile,
    Limit,
    MaxRate,
    MaxSameFailures,
    Note,
    Output,
    Sheet,
    Table,
    Timeout,
    Yes,
)
from monocloud_async.inputs import By
from monocloud_async.version import __version__

PROGRAM = "monocloud-async"
COMPLETE = "_MONOCLOUD_ASYNC_COMPLETE"  # a shell sets this variable to ask for completions

app = typer.Typer(
    cls=Commands,
    help="Enable MonoCloud users.",
    epilog="The tenant and its key come from MONOCLOUD_MANAGEMENT_DOMAIN and"
    " MONOCLOUD_MANAGEMENT_API_KEY, or from --domain and --api-key-file, or from --profile NAME:"
    " the file ~/.config/monocloud-async/NAME.toml, of mode 600, with domain and api_key_file. Exit"
    " codes: 0 all enabled, 1 some failed, 2 usage or configuration, 3 the run was"
    " stopped, or its results could not be written, 70 a fault of this program, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,  # typer's options know only the shell that they run in
    rich_markup_mode=None,  # rich takes longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
    # A traceback with locals would show the key.
    pretty_exceptions_enable=False,
)

app.add_typer(fleet_app, name="fleet")


def _version(wanted: bool) -> None:  # noqa: FBT001  typer calls it so
    if wanted:
        typer.echo(f"monocloud-async {__version__}")
        raise typer.Exit


class Shell(StrEnum):
    """A shell that completes the words of a command."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def _completion(shell: Shell | None) -> None:
    if shell is not None:
        from typer._completion_shared import get_completion_script  # noqa: PLC0415  help is quick

        script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE, shell=shell)
        typer.echo(script)
        raise typer.Exit


@app.callback()
def _main(
    *,
    show_completion: Annotated[
        Shell | None,
        typer.Option(
            metavar="SHELL",
            help="Show what makes this shell complete commands: bash, zsh, fish or powershell. Add"
            " it to the files that the shell reads at its start.",
            callback=_completion,
            is_eager=True,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Enable MonoCloud users."""


@app.command(
    cls=TakesIds,
    epilog="Example: monocloud-async enable UOtBaOybB6dTpIJNrnkRw. Ids that begin with a dash go"
    " after --, behind all options.",
)
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
    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick

    access = commands.access(domain, api_key_file, timeout, attempts)
    raise typer.Exit(commands.enable(access, user_ids, json=json))


@app.command(
    epilog="Example: monocloud-async users --disabled --changed-after 2026-01-31T14:00Z"
    " --changed-before 2026-01-31T15:00Z -o lost.csv. Exit codes: 0 the list is complete, 1 someone"
    " may be missing, as stderr says, 2 usage or configuration, 3 the list could not be read."
    " A tenant that is down is waited for, up to five minutes."
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

    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import table_format  # noqa: PLC0415  help is quick
    from monocloud_async.cli.times import read_time  # noqa: PLC0415  help is quick
    from monocloud_async.cli.users import (  # noqa: PLC0415  help is quick
        Selection,
        read_emails,
        write_users,
    )

    if disabled and enabled:
        raise typer.BadParameter("--disabled and --enabled contradict each other")
    files = commands.kept(by_email, api_key_file, None, ids_are="the file of --by-email")
    files.check("--output", output)
    now = time.time()
    emails, bad_lines = (None, 0) if by_email is None else read_emails(by_email)
    selection = Selection(
        disabled=True if disabled else False if enabled else None,
        after=read_time(changed_after, "--changed-after", now),
        before=read_time(changed_before, "--changed-before", now),
        emails=emails,
    )
    code = write_users(
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
    by: ByWhat = By.ID,
    check: Annotated[
        bool,
        typer.Option(
            CHECK,
            help="Look first, also in a dry run, and leave out who is enabled already. The journal"
            " of a run then records what was before, which `undo` needs.",
        ),
    ] = False,
    limit: Limit = None,
    max_same_failures: MaxSameFailures = 100,
    concurrency: Concurrency = 100,
    max_rate: MaxRate = None,
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
    note: Note = "",
    dry_run: DryRun = False,
    yes: Yes = False,
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
    from monocloud_async.cli import commands, emails  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import check_is_text  # noqa: PLC0415  help is quick

    if journal is not None and no_journal:
        raise typer.BadParameter("--journal and --no-journal contradict each other")
    check_is_text("--failures", failures)
    files = commands.kept(file, api_key_file, None)
    access = commands.access(domain, api_key_file, timeout, attempts)
    with commands.open_ids(file, form, column, sheet=sheet, by=by) as reader:
        place = commands.journal_path(reader, journal, wanted=not no_journal)
        files.add_journal(place)
        files.check("--failures", failures)
        emails.refuse_addresses(reader)
        plan = commands.Plan(
            access=access,
            ids=reader,
            limits=commands.Limits(
                concurrency=concurrency,
                max_rate=max_rate,
                max_same_failures=max_same_failures or None,
                check=check,
                limit=limit,
            ),
            journal=place,
            caller=commands.caller(access, ctx.meta[ARGUMENTS], note),
            json=json,
        )
        if by is By.EMAIL:
            emails.resolve(access, reader)
        if dry_run:
            raise typer.Exit(commands.dry_run(plan))
        with commands.open_failures(failures) as kept:
            raise typer.Exit(commands.bulk(plan, failures=kept, ask=not yes))


@app.command(
    short_help="Tell who is enabled now.",
    epilog="Example: monocloud-async check users.csv. Exit codes: 0 all are enabled (for a journal"
    " of `undo`: disabled), 1 someone is not, a line is bad or the run is not finished, 2 usage"
    " or configuration, 3 the tenant cannot tell. A tenant that is down is waited for, up"
    " to five minutes.",
)
def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|JOURNAL",
            help="A file of user ids as for `bulk`, - for stdin, or the journal of a run.",
            allow_dash=True,
        ),
    ],
    *,
    column: Column = None,
    form: Form = None,
    sheet: Sheet = None,
    by: ByWhat = By.ID,
    output: Output = None,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
    json: Json = False,
) -> None:
    """Tell who is enabled now: before a run as a preview, after it as a proof.

    Users are disabled, enabled, locked out for a while (which an enable does not end), or missing
    from the tenant. With a journal, what was recorded is compared with what is.
    """
    from monocloud_async.cli import commands, emails  # noqa: PLC0415  help is quick
    from monocloud_async.cli.check import (  # noqa: PLC0415  help is quick
        check_file,
        check_journal,
    )
    from monocloud_async.cli.tables import table_format  # noqa: PLC0415  help is quick
    from monocloud_async.journal.before import is_journal  # noqa: PLC0415  help is quick
    from monocloud_async.report.figures import input_file  # noqa: PLC0415  help is quick

    of_journal = is_journal(file)
    ids, journal = (None, file) if of_journal else (file, None)
    files = commands.kept(ids, api_key_file, journal)
    access = commands.access(domain, api_key_file, timeout, attempts)
    if of_journal:
        files.add_inputs(input_file(file).paths)
    files.check("--output", output)
    table = table_format(output, None)
    if of_journal:
        code = check_journal(access, file, output=output, form=table, json=json)
        raise typer.Exit(code)
    with commands.open_ids(file, form, column, sheet=sheet, by=by) as reader:
        emails.refuse_addresses(reader)
        if by is By.EMAIL:
            emails.resolve(access, reader)
        code = check_file(access, reader, output=output, form=table, json=json)
        raise typer.Exit(code)


@app.command(
    short_help="Disable again whom a run has enabled.",
    epilog="Example: monocloud-async undo users.csv.journal --dry-run",
)
def undo(
    ctx: typer.Context,
    journal: Annotated[
        Path, typer.Argument(metavar="JOURNAL", help="The journal of a `bulk --check`.")
    ],
    *,
    limit: Limit = None,
    max_same_failures: MaxSameFailures = 100,
    concurrency: Concurrency = 100,
    max_rate: MaxRate = None,
    note: Note = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
    json: Json = False,
) -> None:
    """Disable again whom a run has enabled, and who was disabled before it.

    This is a run like any other, with a journal of its own, JOURNAL.undo, and `report` shows it.
    Users of whom the journal does not know what was before stay enabled.
    """
    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.undo import UndoIds, locked  # noqa: PLC0415  help is quick
    from monocloud_async.endpoint import DISABLE  # noqa: PLC0415  help is quick
    from monocloud_async.journal.paths import undo_path  # noqa: PLC0415  help is quick

    files = commands.kept(None, api_key_file, journal)
    files.add_journal(undo_path(journal))
    access = commands.access(domain, api_key_file, timeout, attempts)
    with locked(journal):
        ids = UndoIds(journal, access.tenant)
        plan = commands.Plan(
            access=access,
            ids=ids,
            operation=DISABLE,
            limits=commands.Limits(
                concurrency=concurrency,
                max_rate=max_rate,
                max_same_failures=max_same_failures or None,
                limit=limit,
            ),
            journal=undo_path(journal),
            caller=commands.caller(access, ctx.meta[ARGUMENTS], note),
            json=json,
        )
        code = commands.dry_run(plan) if dry_run else commands.bulk(plan, ask=not yes)
    raise typer.Exit(code or (SOME_FAILED if ids.unknown else ALL_DONE))


@app.command(short_help="Show the results of a run.")
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
    from monocloud_async.cli.report import Report  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import check_is_text  # noqa: PLC0415  help is quick

    if csv and json:
        raise typer.BadParameter("--csv and --json contradict each other")
    check_is_text("--failures", failures)
    check_is_text("--output", output, ".html")
    shown = Report(journal, partial(options_given, app), quiet=csv or json)
    files = shown.kept()
    files.check("--failures", failures)
    files.check("--output", output)
    if csv:
        shown.write_csv(user)
    elif json:
        shown.write_json(user)
    elif user is not None:
        shown.show_user(user)
    else:
        shown.show()
    if failures is not None:
        shown.write_failures(failures)
    if output is not None:
        shown.write_page(output)
    raise typer.Exit(shown.exit_code if exit_code else 0)


@app.command(
    epilog="Exit codes: 0 the key works, 2 usage or configuration, 3 the key is refused, or the"
    " tenant does not answer."
)
def whoami(
    *,
    domain: Domain = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = None,
    attempts: Attempts = 4,
) -> None:
    """Show which tenant and key a command would use, and whether they work."""
    from monocloud_async.cli import commands  # noqa: PLC0415  help is quick
    from monocloud_async.cli.whoami import show_tenant  # noqa: PLC0415  help is quick

    access = commands.access(domain, api_key_file, timeout, attempts)
    raise typer.Exit(show_tenant(access, api_key_file))


@app.command()
def demo() -> None:
    """Show a bulk run on a temporary tenant on this machine."""
    from monocloud_async.cli import demo as show  # noqa: PLC0415  help is quick

    raise typer.Exit(show.demo())


@app.command(short_help="Run a simulated tenant on this machine.")
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
    from monocloud_async.cli import sandbox as server  # noqa: PLC0415  help is quick
    from monocloud_async.cli.files import Kept  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import check_is_text  # noqa: PLC0415  help is quick
    from monocloud_async.journal.paths import files_of  # noqa: PLC0415  help is quick

    files = Kept()
    for file in () if db is None else files_of(db):  # SQLite's, as those of a journal
        files.add("a file of the database", file)
    files.check("--ids", ids)
    check_is_text("--ids", ids, ".txt")
    with server.usage_errors(db):
        tenant = server.Sandbox(
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
            disabled_at=server.an_hour_ago(),
            max_page_size=max_page_size,
            paging_header=not no_paging_header,
            shift_pages=shift_pages,
        )
        for text in script or []:
            tenant.script(*server.parse_script(text))
    raise typer.Exit(server.serve(tenant, ids))
