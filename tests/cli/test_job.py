"""A run of the command line, for any operation: what it says, and its exit code."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from monocloud_async.cli import commands
from monocloud_async.cli.access import Access
from monocloud_async.endpoint import DISABLE
from monocloud_async.inputs.reader import open_ids
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=50) as sandbox:
        yield sandbox


def test_a_run_of_another_operation_says_so_everywhere(
    sandbox: Sandbox, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users, journal = tmp_path / "users.txt", tmp_path / "users.journal"
    access = Access(domain=sandbox.url, api_key=sandbox.api_key)

    def disable(ids: list[str]) -> tuple[str, str]:
        users.write_text("".join(f"{user_id}\n" for user_id in ids))
        with open_ids(users, None, None) as reader:
            plan = commands.Plan(access=access, ids=reader, operation=DISABLE, journal=journal)
            code = commands.bulk(plan)
        assert code == 0
        return capfd.readouterr()

    ids = sandbox.user_ids()
    out, err = disable(ids[:30])
    assert "30  disabled" in out
    assert f"Disabling {users} on {sandbox.url}" in err
    more, told = disable(ids)
    assert "20  disabled " in more
    assert "30  disabled before, according to the journal" in more
    assert "users disabled there are not sent again" in told
    assert "enabl" not in (out + err + more + told).lower()
    assert sandbox.stats().requests == 50
