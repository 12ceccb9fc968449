"""Reads the arguments of the command line: profiles, and ids that begin with a dash."""

import copy
import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from monocloud_async.cli.options import PROFILE

ARGUMENTS: Final = "monocloud_async.arguments"  # of the context's `meta`

# Typer exports one of its errors of usage. This is what they have in common.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """The group of all commands; it also handles `--profile` and `disable`."""

    def __init__(self, **attributes: Any) -> None:
        """Add `--profile` for help and completion; `parse_args` replaces it."""
        super().__init__(**attributes)
        self.params += _add_profile(self)[:1]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Store the arguments for the journal of a run, and replace `--profile`."""
        ctx.meta[ARGUMENTS] = list(args)
        if any(arg.startswith(PROFILE) for arg in args):
            args = self._with_profile(args, resolve=not ctx.resilient_parsing)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; for `disable`, raise an error that does not suggest `enable`."""
        if args[0] == "disable" and not ctx.resilient_parsing:
            raise UsageError(
                "No such command 'disable': `undo JOURNAL` disables again whom a run has enabled;"
                " in Python, disable_user and bulk_disable disable anybody",
                ctx,
            )
        return super().resolve_command(ctx, args)

    def _with_profile(self, args: list[str], *, resolve: bool) -> list[str]:
        """Return the arguments with the options of the profile instead of `--profile`.

        For completion, `resolve` is False: `--profile` is only left out, and no profile is read.
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
        if profile is None or not resolve or command is None or hasattr(command, "get_command"):
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
            option._custom_shell_complete = _profile_names  # noqa: SLF001  a copy has no other way
            command.params.insert(place, option)
            return [*added, option]
    return added


def _profile_names(_ctx: Any, _option: Any, incomplete: str) -> list[str]:
    """Return the names of profiles that begin so."""
    from monocloud_async.cli.profile import is_name, profiles  # noqa: PLC0415  help is quick

    names = sorted(path.stem for path in profiles())
    return [name for name in names if name.startswith(incomplete) and is_name(name)]


class _Piece(NamedTuple):
    """One argument: a word, or an option with its value.

    Attributes:
        command: the command that the arguments up to this one name.
        option: the name of the option; empty for a word that is no option.
        value: the value of the option, or an empty string.
        words: the piece as it was written.
    """

    command: Any
    option: str
    value: str
    words: list[str]


def _pieces(command: Any, args: Iterable[str]) -> Iterator[_Piece]:
    """Yield the arguments piece by piece; everything from `--` on is one piece."""
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


def options_given(app: typer.Typer, command: str) -> dict[str, str]:
    """Return the options of a recorded command line, and their values."""
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


class TakesIds(TyperCommand):
    """A command whose arguments are ids; one id in 64 begins with a dash."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse unknown options, and tell how to write an id that begins with a dash."""
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

    return UsageError(
        f"No such option: {clean(arg)}; if it is an id, write it after --:"
        f" {ctx.command_path} -- {clean(arg)}",
        ctx,
    )
