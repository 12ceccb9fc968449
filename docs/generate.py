"""Write the pages of docs/reference that the code itself tells: python docs/generate.py"""

import html
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from monocloud_async import MonoCloudError, RetryPolicy, ServerError, StatusError, errors, outcome

REFERENCE = Path(__file__).parent / "reference"


def pages() -> dict[Path, str]:
    """What each generated page has to be."""
    return {REFERENCE / "cli.md": commands(), REFERENCE / "errors.md": error_tree()}


def commands() -> str:
    """The command line's help, every command of it."""
    typer = [sys.executable, "-m", "typer", "monocloud_async.cli.app", "utils", "docs"]
    names = ["--name", "monocloud-async", "--title", "Command line"]
    made = subprocess.run([*typer, *names], check=True, stdout=subprocess.PIPE, text=True)
    return html.unescape(made.stdout).rstrip() + "\n"


def error_tree() -> str:
    """The tree as the module draws it, and each class with what it says to do."""
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

`str(error)` is one line: which user, what happened, what the server said, and the last column.
What is tried again is tried `attempts` times by the session's `RetryPolicy`, before you see it;
[errors and retries](../errors.md) says how to deal with what is left.

| Class | Status | Tried again | When | What to do |
|---|---|---|---|---|
{rows}

```{{eval-rst}}
{details}
.. autoclass:: monocloud_async.IdentityFault
   :members:
```
"""


def row(error: type[MonoCloudError]) -> str:
    """What is to know about a class."""
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
    """This class, and all below it, in the order of the source."""
    yield error
    for below in error.__subclasses__():
        if below.__module__ in {errors.__name__, outcome.__name__}:
            yield from classes(below)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
