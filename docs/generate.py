"""Generate pages of docs/reference from the code: python docs/generate.py"""

import html
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from monocloud_async import (
    MonoCloudError,
    RetryPolicy,
    ServerError,
    StatusError,
    __version__,
    errors,
    outcome,
)

REFERENCE = Path(__file__).parent / "reference"


def pages() -> dict[Path, str]:
    """Return the text of each generated page."""
    markdown = commands()
    return {
        REFERENCE / "cli.md": markdown,
        REFERENCE / "monocloud-async.1": manual(markdown),
        REFERENCE / "errors.md": error_tree(),
    }


def commands() -> str:
    """Return the help of every command."""
    typer = [sys.executable, "-m", "typer", "monocloud_async.cli.app", "utils", "docs"]
    names = ["--name", "monocloud-async", "--title", "Command line"]
    made = subprocess.run([*typer, *names], check=True, stdout=subprocess.PIPE, text=True)
    return html.unescape(made.stdout).rstrip() + "\n"


def manual(markdown: str) -> str:
    """Return the help of every command as a page for man."""
    _title, _, tagline, *lines = markdown.split("\n")
    what = tagline.removesuffix(".")
    made = [
        f'.TH MONOCLOUD-ASYNC 1 "" "monocloud-async {__version__}"',
        *(".SH NAME", rf"monocloud\-async \- {what[0].lower()}{what[1:]}"),
        *(".SH DESCRIPTION", ".nh", ".ad l"),
    ]
    for before, line in pairwise(lines):
        if heading := re.fullmatch(r"#+ `(.+)`", line):
            made += [f".SH {roff(heading[1].removeprefix('monocloud-async ')).upper()}"]
        elif entry := re.fullmatch(r"\* `(.+?)`: (.+)", line):
            made += [".TP", rf"\fB{roff(entry[1])}\fR", roff(entry[2])]
        elif usage := re.fullmatch(r"\$ (.+)", line):
            made += [".P", rf"\fB{roff(usage[1])}\fR"]
        elif part := re.fullmatch(r"\*\*(.+)\*\*:", line):
            made += [] if part[1] == "Usage" else [f".SS {part[1]}"]
        elif line and not line.startswith("```"):
            made += [roff(line)] if before else [".P", roff(line)]
    return "\n".join(made) + "\n"


def roff(text: str) -> str:
    """Return a line of text for man, where it means what it says."""
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", r"\e").replace("-", r"\-"))


def error_tree() -> str:
    """Return the error tree as the module draws it, and each class with its advice."""
    drawing = inspect.getdoc(errors) or ""
    rows = "\n".join(row(error) for error in classes(MonoCloudError))
    details = "\n".join(
        f".. autoexception:: monocloud_async.{error.__name__}\n   :members:\n"
        for error in classes(MonoCloudError)
    )
    return f"""# Errors

```text
{drawing.split(chr(10) * 2)[1]}
```

`str(error)` is one line: which user, what happened, what the server said, and the last column here.
The session retries an error up to `attempts` times (see `RetryPolicy`) before it raises the error;
[errors and retries](../errors.md) says how to handle errors.

| Class | Status | Retried | When | What to do |
|---|---|---|---|---|
{rows}

```{{eval-rst}}
{details}
.. autoclass:: monocloud_async.IdentityFault
   :members:
```
"""


def row(error: type[MonoCloudError]) -> str:
    """Return the table row of a class."""
    codes = [code for code in range(400, 501) if errors.status_class(code) is error]
    sample = error(status=422) if issubclass(error, StatusError) else error("")
    match codes:
        case []:
            status = ""
        case [code]:
            status = "5xx" if error is ServerError else str(code)
        case _:
            status = "other 4xx"
    again = "yes" if RetryPolicy().allows(sample) else ""
    when = (inspect.getdoc(error) or "").partition("\n")[0].removeprefix(f"{status}: ")
    cells = [f"`{error.__name__}`", status, again, when[0].upper() + when[1:], error.advice]
    return f"| {' | '.join(cells)} |"


def classes(error: type[MonoCloudError]) -> Iterator[type[MonoCloudError]]:
    """Yield this class and all its subclasses, in the order of the source."""
    yield error
    for below in error.__subclasses__():
        if below.__module__ in {errors.__name__, outcome.__name__}:
            yield from classes(below)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
