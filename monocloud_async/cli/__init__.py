"""The command line: `monocloud-async` calls `main`."""

import sys
from collections.abc import Sequence

from monocloud_async.cli.exit_codes import INTERRUPTED, USAGE

__all__ = ["main"]

MISSING_EXTRA = "The command line needs its extra: pip install 'monocloud-async[cli]'\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of these arguments (default: `sys.argv`) and return its exit code."""
    try:
        import rich  # noqa: F401, PLC0415  optional for the library
        import typer  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        sys.stderr.write(MISSING_EXTRA)
        return USAGE
    from monocloud_async.cli.app import app  # noqa: PLC0415  it imports typer

    try:
        app(None if argv is None else list(argv), prog_name="monocloud-async")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
