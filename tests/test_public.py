import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator

import pytest

import monocloud_async
from monocloud_async.journal import Journal
from monocloud_async.sandbox import Sandbox
from monocloud_async.testing import FakeMonoCloud


def test_the_public_names_are_sorted_and_exist() -> None:
    assert monocloud_async.__all__ == sorted(monocloud_async.__all__)
    assert all(hasattr(monocloud_async, name) for name in monocloud_async.__all__)


def callables() -> Iterator[tuple[str, Callable[..., object]]]:
    """Return the public classes, and their methods."""
    kinds = {name: getattr(monocloud_async, name) for name in monocloud_async.__all__}
    kinds |= {"Sandbox": Sandbox, "FakeMonoCloud": FakeMonoCloud, "Journal": Journal}
    for name, kind in kinds.items():
        if not inspect.isclass(kind):
            continue
        yield name, kind
        for own, _ in inspect.getmembers(kind, inspect.isfunction):
            if not own.startswith("_") or own in {"__init__", "__aenter__", "__aexit__"}:
                yield f"{name}.{own}", getattr(kind, own)


@pytest.mark.parametrize("named", [pytest.param(named, id=name) for name, named in callables()])
def test_the_types_of_public_names_can_be_read_at_run_time(named: Callable[..., object]) -> None:
    hints = typing.get_type_hints(named)
    assert not [hint for hint in hints.values() if isinstance(hint, str)]


IMPORTS = """
import sys
import aiohttp, msgspec, tenacity
before = {name.partition(".")[0] for name in sys.modules}
from monocloud_async import MonoCloudSession
print(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""


@pytest.mark.process
def test_the_import_brings_in_nothing_beyond_its_three_dependencies() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['monocloud_async']"


LATER = (
    "tenacity monocloud_async.bulk.run monocloud_async.lenient_json monocloud_async.transport.fast"
)


@pytest.mark.process
def test_what_not_every_program_needs_is_not_imported_with_the_session() -> None:
    told = f"print(len(set('{LATER}'.split()) & set(sys.modules)))"
    program = (
        f"import sys; from monocloud_async import MonoCloudSession\n{told}\n"
        # At a fault, there may be no descriptor left to read a module with.
        f"MonoCloudSession('http://127.0.0.1:1', 'key')\n{told}"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout.split() == [b"0", b"4"]
