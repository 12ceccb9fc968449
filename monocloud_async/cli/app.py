"""The commands and their options. Each command imports its code when it runs: help is quick."""

import copy
import io
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, SOME_FAILED, STOPPED, USAGE
from monocloud_async.cli.fleet.app import app as fleet_app
from monocloud_async.cli.options import (
    PROFILE,
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

ARGUMENTS = "monocloud_async.arguments"  # of the context's `meta`
PROGRAM = "monocloud-async"
_COMPLETE = "_MONOCLOUD_ASYNC_COMPLETE"  # a shell sets this variable to ask for completions

# Typer exports one of its errors of usage. This is what they have in common.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Commands(TyperGroup):
    """The commands, which know all arguments."""

    def __init__(self, **attributes: Any) -> None:
        """Let help and completion know the option that `parse_args` replaces."""
        super().__init__(**attributes)
        self.params += _add_profile(self)[:1]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, which the journal of a run records, and apply a profile."""
        ctx.meta[ARGUMENTS] = list(args)
        if any(arg.startswith(PROFILE) for arg in args):
            args = self._with_profile(args, is_known=not ctx.resilient_parsing)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; for `disable`, say what there is, and never suggest the opposite."""
        if args[0] == "disable" and not ctx.resilient_parsing:
            raise _UsageError(
                "No such command 'disable': `undo JOURNAL` disables again whom a run has enabled;"
                " in Python, disable_user and bulk_disable disable anybody",
                ctx,
            )
        return super().resolve_command(ctx, args)

    def _with_profile(self, args: list[str], *, is_known: bool) -> list[str]:
        """Replace the name of a profile by the options that it stands for.

        For completion, `is_known` is False: nobody asks then what the profile has.
        """
        from monocloud_async.cli.profile import options_of  # noqa: PLC0415  help is quick

        profile, rest, words = None, list[str](), 0  # words of the command, such as "fleet start"
        command: Any = self
        for piece in _pieces(self, args):
            if piece.option == PROFILE:
                profile = piece.value
                continue
            rest += piece.words
            if piece.command is not command:
                command, words = piece.command, len(rest)
        if profile is None or not is_known or command is None or hasattr(command, "get_command"):
            return rest
        return [*rest[:words], *options_of(profile, _flags(command)), *rest[words:]]


def _add_profile(command: Any) -> list[Any]:
    """Add the option --profile to each command that has --domain; return these options."""
    added = [
        option
        for subcommand in getattr(command, "commands", {}).values()
        for option in _add_profile(subcommand)
    ]
    for place, param in enumerate(command.params):
        if "--domain" in param.opts:
            option = copy.copy(param)
            option.name, option.opts, option.metavar = "profile", [PROFILE], "NAME"
            option.help = "The profile that names the tenant and the file of its key."
            option.expose_value = False  # for the functions, `parse_args` has replaced it
            command.params.insert(place, option)
            return [*added, option]
    return added


class _Piece(NamedTuple):
    """An argument, with its value if it is an option that has one, and the command up to here.

    `option` is empty for a word that is no option.
    """

    command: Any
    option: str
    value: str
    words: list[str]


def _pieces(command: Any, args: Iterable[str]) -> Iterator[_Piece]:
    """Yield the arguments of this command and its subcommands; what is behind `--` as one piece."""
    left = iter(args)
    for arg in left:
        if arg == "--":
            yield _Piece(command, arg, "", [arg, *left])
        elif not arg.startswith("-"):
            if hasattr(command, "get_command"):
                command = command.get_command(None, arg)
            yield _Piece(command, "", "", [arg])
        else:
            option, equals, value = arg.partition("=")
            words = [arg]
            if not equals and (option == PROFILE or not _flags(command).get(option, True)):
                words += islice(left, 1)  # the option's value, whatever it looks like
                value = "".join(words[1:])
            yield _Piece(command, option, value, words)


def options_given(command: str) -> dict[str, str]:
    """Return the options of a command that the journal of a run has recorded, and their values."""
    try:
        _, *args = shlex.split(command)
    except ValueError:  # it is empty, or only its start was recorded
        return {}
    pieces = _pieces(get_command(app), args)
    return {piece.option: piece.value for piece in pieces if piece.option}


def _flags(command: Any) -> dict[str, bool]:
    """Return the options of a command, and whether each is a flag, which has no value."""
    params = [] if command is None else command.params
    return {name: getattr(param, "is_flag", False) for param in params for name in param.opts}


class _TakesIds(TyperCommand):
    """A command whose arguments may begin with a dash, as one in 64 ids does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is no option of the command, and say how an id is written."""
        flags = _flags(self)
        rest = iter(() if ctx.resilient_parsing else args)  # completion refuses nothing
        for arg in rest:
            if arg == "--":
                break
            name, equals, _ = arg.partition("=")
            if name in flags:
                if not flags[name] and not equals:
                    next(rest, None)
            elif arg.startswith("-") and arg != "-" and arg not in ctx.help_option_names:
                raise _no_option(ctx, arg)
        return super().parse_args(ctx, args)


def _no_option(ctx: Any, arg: str) -> Exception:
    from monocloud_async.sanitize import clean  # noqa: PLC0415  help is quick

    return _UsageError(
        f"No such option: {clean(arg)}; if it is an id, write it after --:"
        f" {ctx.command_path} -- {clean(arg)}",
        ctx,
    )


app = typer.Typer(
    cls=_Commands,
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


def run(arguments: list[str]) -> int:
    """Run the command of these arguments and return its exit code; a user's error is one line."""
    from monocloud_async.errors import MonoCloudError  # noqa: PLC0415  help is quick
    from monocloud_async.sanitize import clean  # noqa: PLC0415  help is quick

    if _COMPLETE in os.environ:
        return _complete(arguments)
    try:
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False)
    except typer.Abort as error:
        return INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else STOPPED
    except MonoCloudError as error:
        message = str(error)
    except FileNotFoundError:
        if _has_folder():
            raise
        message = "this folder was removed; go to another one, or give the whole path of each file"
    except _UsageError as error:
        message = _explain(error)
        if not message:  # the help was shown
            return USAGE
    else:
        return code if isinstance(code, int) else ALL_DONE
    typer.echo(f"Error: {clean(message)}", err=True)
    return USAGE


def _complete(arguments: list[str]) -> int:
    """Print how a shell may complete its line; an error would be in the middle of that line."""
    from typer._completion_classes import completion_init  # noqa: PLC0415  only for a shell

    completion_init()
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(io.StringIO()):
            app(arguments, prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as end:
        if end.code:  # for an unknown shell
            return USAGE
    except (_UsageError, LookupError, OSError, ValueError):  # of variables that no shell sets
        return USAGE
    typer.echo(said.getvalue(), nl=False)
    return ALL_DONE


def _has_folder() -> bool:
    """Return whether the working directory is there."""
    try:
        os.getcwd()  # noqa: PTH109  only whether it fails matters
    except FileNotFoundError:
        return False
    return True


def _explain(error: Any) -> str:
    """Print the usage of the command; return what is wrong."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return ""
    context = error.ctx
    message: str = error.format_message()
    if context is None:
        return message
    typer.echo(context.get_usage(), err=True)
    typer.echo(f"Try '{context.command_path} --help' for help.", err=True)
    if type(error).__name__ != "NoSuchOption":
        return message
    if isinstance(context.command, TyperGroup):
        message += f"; options of a command go behind it: {context.command_path} COMMAND ..."
        message += f" {error.option_name}"
    else:
        message += "; an id or a file that begins with a dash goes after --, which ends the options"
    return message


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

        script = get_completion_script(prog_name=PROGRAM, complete_var=_COMPLETE, shell=shell)
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
    cls=_TakesIds,
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
    from monocloud_async.cli import users as finder  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import table_format  # noqa: PLC0415  help is quick
    from monocloud_async.cli.times import read_time  # noqa: PLC0415  help is quick

    if disabled and enabled:
        raise typer.BadParameter("--disabled and --enabled contradict each other")
    files = commands.kept(by_email, api_key_file, None, ids_are="the file of --by-email")
    files.check("--output", output)
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
    by: ByWhat = By.ID,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
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
    access = commands.access(domain, api_key_file, timeout, attempts)
    with commands.open_ids(file, form, column, sheet=sheet, by=by) as reader:
        place = commands.journal_path(reader, journal, wanted=not no_journal)
        files = commands.kept(file, api_key_file, place)
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
    from monocloud_async.cli import check as checker  # noqa: PLC0415  help is quick
    from monocloud_async.cli import commands, emails  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import table_format  # noqa: PLC0415  help is quick
    from monocloud_async.journal.before import is_journal  # noqa: PLC0415  help is quick
    from monocloud_async.report.figures import input_file  # noqa: PLC0415  help is quick

    access = commands.access(domain, api_key_file, timeout, attempts)
    of_journal = is_journal(file)
    ids, journal = (None, file) if of_journal else (file, None)
    files = commands.kept(ids, api_key_file, journal)
    if of_journal:
        files.add_inputs(input_file(file).paths)
    files.check("--output", output)
    table = table_format(output, None)
    if of_journal:
        code = checker.check_journal(access, file, output=output, form=table, json=json)
        raise typer.Exit(code)
    with commands.open_ids(file, form, column, sheet=sheet, by=by) as reader:
        emails.refuse_addresses(reader)
        if by is By.EMAIL:
            emails.resolve(access, reader)
        code = checker.check_file(access, reader, output=output, form=table, json=json)
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

    access = commands.access(domain, api_key_file, timeout, attempts)
    files = commands.kept(None, api_key_file, journal)
    files.add_journal(undo_path(journal))
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
    from monocloud_async.cli import report as terminal  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import check_is_text  # noqa: PLC0415  help is quick

    if csv and json:
        raise typer.BadParameter("--csv and --json contradict each other")
    check_is_text("--failures", failures)
    check_is_text("--output", output, ".html")
    told = terminal.Report(journal, options_given, quiet=csv or json)
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
    from monocloud_async.cli import whoami as terminal  # noqa: PLC0415  help is quick

    access = commands.access(domain, api_key_file, timeout, attempts)
    raise typer.Exit(terminal.whoami(access, api_key_file))


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
    from monocloud_async.cli import sandbox as terminal  # noqa: PLC0415  help is quick
    from monocloud_async.cli.tables import check_is_text  # noqa: PLC0415  help is quick

    check_is_text("--ids", ids, ".txt")
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
