"""Looks for a planted key wherever people and programs look when something went wrong."""

import io
import pickle
import traceback
from collections.abc import Iterator

from rich.console import Console
from rich.traceback import Traceback

PLANTED = "sentinel-key-4711"
KEY = PLANTED + "-x" * 100  # tools that shorten long texts take them apart first


def is_not_in(*texts: object) -> None:
    """None of these shows the key, whatever they are: as text, as `repr`, in what they hold."""
    for text in texts:
        for shown in (text, repr(text)):
            assert PLANTED not in str(shown), shown
        try:
            assert PLANTED.encode() not in pickle.dumps(text)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue  # what cannot be pickled cannot leak so


def is_not_told_by(error: BaseException) -> None:
    """Neither the error nor any error behind it shows the key, however it is printed."""
    for each in chain(error):
        is_not_in(each, each.args, vars(each), getattr(each, "__notes__", ()))
        is_not_in("".join(traceback.format_exception(each)))
        with_locals = traceback.TracebackException.from_exception(each, capture_locals=True)
        is_not_in("".join(with_locals.format()))
        if each.__traceback__ is None:
            continue
        console = Console(file=io.StringIO(), width=300)
        console.print(
            Traceback.from_exception(
                type(each), each, each.__traceback__, show_locals=True, extra_lines=0
            )
        )
        assert isinstance(console.file, io.StringIO)
        is_not_in(console.file.getvalue())


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and all that hang on it as cause or context."""
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__cause__, each.__context__]
        left += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
