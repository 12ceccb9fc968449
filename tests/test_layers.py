"""Imports follow the order of docs/design.md, without cycles."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "monocloud_async"
OUTSIDE = {
    "",
    "__main__",
    "fake",
    "sandbox",
    "testing",
}  # not parts of the client


def order() -> dict[str, int]:
    text = (ROOT / "docs/design.md").read_text()
    (line,) = re.findall(r"^Imports go one way: (.+)\.$", text, re.MULTILINE)
    return {
        name: level
        for level, part in enumerate(line.split(" < "))
        for name in re.findall(r"`(\w+)`", part)
    }


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """Return all imports, including those in functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("monocloud_async."):
            module = (node.module or "").removeprefix("monocloud_async").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in known else module


def test_every_part_has_its_place_in_the_order() -> None:
    parts = {name.partition(".")[0] for name in modules()} - OUTSIDE
    assert parts == set(order())


def test_no_import_goes_up() -> None:
    levels, known = order(), modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        if (part := name.partition(".")[0]) not in OUTSIDE
        for other in imports(path, set(known))
        if (theirs := other.partition(".")[0]) not in OUTSIDE
        and part != theirs
        and levels[part] <= levels[theirs]
    ]
    assert not wrong


def test_no_imports_are_a_circle() -> None:
    known = modules()
    graph = {name: {*imports(path, set(known))} - {name} for name, path in known.items() if name}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle
