"""The command line: `monocloud-async` calls `main`."""

import sys
from collections.abc import Sequence

from monocloud_async.cli.exit_codes import FAULT, INTERRUPTED, USAGE

__all__ = ["main"]

MISSING_EXTRA = "The command line needs its extra: pip install 'monocloud-async[cli]'\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of these arguments (default: `sys.argv`) and return its exit code."""
    try:
        # Not above: nothing catches a Ctrl-C there, and the imports take a while.
        from monocloud_async.cli.streams import own_streams  # noqa: PLC0415  see above

        with own_streams() as finish:
            return finish(_run(sys.argv[1:] if argv is None else list(argv)))
    except KeyboardInterrupt:  # or while the output waited for its reader
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401, PLC0415  optional for the library
        import typer  # noqa: F401, PLC0415  as well
    except ModuleNotFoundError:
        from monocloud_async.cli.streams import keep_out_of_inputs  # noqa: PLC0415  see above

        keep_out_of_inputs(arguments)
        sys.stderr.write(MISSING_EXTRA)
        return USAGE
    try:
        from monocloud_async.cli.run import run  # noqa: PLC0415  it imports typer

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001  a fault of this program: Python would end with 1
        _show_fault(error)
        return FAULT


def _show_fault(error: BaseException) -> None:
    import re  # noqa: PLC0415  nobody needs this
    import traceback  # noqa: PLC0415  nor this

    from monocloud_async.sanitize import UNSAFE  # noqa: PLC0415  nor this

    for line in "".join(traceback.format_exception(error)).splitlines():
        sys.stderr.write(re.sub(UNSAFE, " ", line) + "\n")
    sys.stderr.write("This is a fault of monocloud-async; please report it with the lines above\n")
