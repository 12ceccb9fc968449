"""Searches everything that people and programs look at after a failure for a known key."""

import io
import pickle
import traceback
from collections.abc import Iterator

from rich.console import Console
from rich.traceback import Traceback

PLANTED = "sentinel-key-4711"
KEY = PLANTED + "-x" * 100  # tools that shorten long text split it first


class PlainTraceback(Traceback):
    """Rich's traceback without colours: to find them, it would parse each frame's whole file."""

    LEXERS = {".py": "text"}  # noqa: RUF012  as in its base class


def is_not_in(*texts: object) -> None:
    """Check that none of these values shows the key: as text, as `repr`, in their contents."""
    for text in texts:
        for shown in (text, repr(text)):
            assert PLANTED not in str(shown), shown
        try:
            assert PLANTED.encode() not in pickle.dumps(text)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue  # what cannot be pickled cannot leak in a pickle


def is_not_told_by(error: BaseException) -> None:
    """Check that the error and its chain do not show the key in any form of output."""
    for each in chain(error):
        is_not_in(each, each.args, vars(each), getattr(each, "__notes__", ()))
        is_not_in("".join(traceback.format_exception(each)))
        with_locals = traceback.TracebackException.from_exception(each, capture_locals=True)
        is_not_in("".join(with_locals.format()))
        if each.__traceback__ is None:
            continue
        console = Console(file=io.StringIO(), width=300)
        console.print(
            PlainTraceback.from_exception(
                type(each), each, each.__traceback__, show_locals=True, extra_lines=0
            )
        )
        assert isinstance(console.file, io.StringIO)
        is_not_in(console.file.getvalue())


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return the error and all its causes and contexts."""
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
