"""Who is in a sandbox, and the file that keeps them."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from plain_client import PlainClient

from monocloud_async.sandbox import Sandbox


def test_given_ids_keep_their_order_and_come_once() -> None:
    assert Sandbox(users=["bob", "ada", "bob"]).user_ids() == ["bob", "ada"]


def test_is_disabled_of_nobody_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        Sandbox().is_disabled("nobody")


async def test_another_process_s_connection_sees_who_is_enabled(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    db = tmp_path / "tenant.db"
    async with Sandbox(users=["ada", "bob"], db=db) as sandbox:
        await PlainClient(sandbox, http).enable("ada")
        with contextlib.closing(sqlite3.connect(db)) as other:
            rows = other.execute("SELECT user_id, disabled FROM users ORDER BY position").fetchall()
    assert rows == [("ada", 0), ("bob", 1)]


async def test_a_file_with_users_keeps_them(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    db = str(tmp_path / "tenant.db")
    async with Sandbox(users=["ada"], db=db) as sandbox:
        await PlainClient(sandbox, http).enable("ada")
        enabled = sandbox.user("ada")
    async with Sandbox(users=100, db=db) as sandbox:
        assert sandbox.user_ids() == ["ada"]
        assert sandbox.user("ada") == enabled


def test_a_seed_that_breaks_off_leaves_the_file_empty(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "ada"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        Sandbox(users=broken(), db=tmp_path / "tenant.db")
    assert Sandbox(db=tmp_path / "tenant.db").user_ids() == []
