"""Runs a command: prints a user's mistake as one line, and each exit code has a meaning."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import typer
from typer.core import TyperGroup

from monocloud_async.cli.app import COMPLETE, PROGRAM, app
from monocloud_async.cli.arguments import UsageError
from monocloud_async.cli.exit_codes import ALL_DONE, INTERRUPTED, STOPPED, USAGE
from monocloud_async.cli.streams import keep_out_of_inputs


def run(arguments: list[str]) -> int:
    """Run the command of these arguments and return its exit code; a user's error is one line."""
    from monocloud_async.errors import MonoCloudError  # noqa: PLC0415  help is quick
    from monocloud_async.sanitize import clean  # noqa: PLC0415  help is quick

    if os.environ.get(COMPLETE):  # Click ignores an empty value, too
        return _complete(arguments)
    above = list[str]()
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
    except UsageError as error:
        above, message = _explain(error)
    else:
        return code if isinstance(code, int) else ALL_DONE
    keep_out_of_inputs(arguments)
    for line in [*above, f"Error: {clean(message)}"] if message else above:
        typer.echo(line, err=True)
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
    except (UsageError, LookupError, OSError, ValueError):  # of variables that no shell sets
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


def _explain(error: Any) -> tuple[list[str], str]:
    """Return the usage or the help of the command, and what is wrong, unless that is nothing."""
    message: str = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        return [message], ""
    context = error.ctx
    if context is None:
        return [], message
    usage = [context.get_usage(), f"Try '{context.command_path} --help' for help."]
    if type(error).__name__ != "NoSuchOption":
        return usage, message
    if isinstance(context.command, TyperGroup):
        message += f"; options of a command go behind it: {context.command_path} COMMAND ..."
        message += f" {error.option_name}"
    else:
        message += "; an id or a file that begins with a dash goes after --, which ends the options"
    return usage, message
