"""A journal is told from any other file, which is left alone."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"user_id\nada\n" * 100, "is not a journal of this program; name another file"),
        (b"ada\n", "is not a journal of this program"),  # SQLite would take it for empty
        (b"SQLite format 3\0".ljust(511, b"\0"), "is not a journal of this program"),
    ],
)
async def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    session: MonoCloudSession, path: Path, content: bytes, why: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=why):
        await session.bulk_enable(["ada"], journal=path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_somebody_elses_database_is_refused_and_left_alone(
    session: MonoCloudSession, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE users (position INTEGER)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is not a journal of this program"):
        await session.bulk_enable(["ada"], journal=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("page_size", [512, 4096])
async def test_a_journal_whose_maker_was_killed_before_the_first_transaction_is_empty(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, page_size: int
) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(f"PRAGMA page_size = {page_size}")
        sql.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size == page_size
    assert (await session.bulk_enable(sandbox.user_ids(), journal=path)).enabled == 20
    assert (await session.bulk_enable(sandbox.user_ids(), journal=path)).already_enabled == 20


async def test_a_newer_format_is_refused(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA user_version = 3")
    with pytest.raises(ConfigurationError, match=r"newer version \(format 3, this one reads 2\)"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)


async def test_a_torn_journal_is_refused_in_words(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=path)
    whole = path.read_bytes()
    for size in (17, 100, 511, 1000, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigurationError, match="journal"):
            await session.bulk_enable(sandbox.user_ids(), journal=path)
        assert path.read_bytes() == whole[:size]


async def test_a_named_pipe_is_no_journal(session: MonoCloudSession, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="is not a journal of this program"):
        await session.bulk_enable(["ada"], journal=path)
