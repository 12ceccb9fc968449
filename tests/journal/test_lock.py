"""One process at a time has a journal, and no other file suffers by that."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.journal import lock
from monocloud_async.journal.lock import JournalInUseError, Lock
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def test_a_journal_has_one_run_at_a_time(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    ids = sandbox.user_ids()
    sandbox.script(ids[0], "hang")
    async with session.bulk_enable(ids, journal=path) as run:
        while not sandbox.stats().in_flight:  # noqa: ASYNC110  a count has no event
            await asyncio.sleep(0.001)
        with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()} on "):
            await session.bulk_enable(ids, journal=path)
        assert run.in_flight == 1
    report = await session.bulk_enable(ids, journal=path)
    assert report.enabled == 20


async def test_a_journal_behind_a_linked_folder_is_that_journal(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    ids = sandbox.user_ids()
    sandbox.script(ids[0], "hang")
    async with session.bulk_enable(ids, journal=path):
        while not sandbox.stats().in_flight:  # noqa: ASYNC110  a count has no event
            await asyncio.sleep(0.001)
        with pytest.raises(ConfigurationError, match="in use by process"):
            await session.bulk_enable(ids, journal=link / path.name)


async def test_the_lock_destroys_no_file_of_its_name(
    sandbox: Sandbox, session: MonoCloudSession, path: Path
) -> None:
    place = path.with_name(f"{path.name}-lock")
    victim = path.with_name("victim")
    victim.write_text("precious")
    place.write_text("precious")
    with pytest.raises(ConfigurationError, match="is not a lock file"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert place.read_text() == "precious"
    place.unlink()
    place.symlink_to(victim)
    with pytest.raises(ConfigurationError, match=r"journal-lock is a link to .*victim; remove it"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert victim.read_text() == "precious"
    assert sandbox.stats().requests == 0


def test_the_lock_says_who_holds_it_and_is_gone_afterwards(path: Path) -> None:
    path.write_text("process 1234567890 on a-host-with-a-long-name.example")  # as a kill leaves it
    held, other = Lock(path, "the journal"), Lock(path, "the journal")
    held.take()
    assert held.held
    assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(JournalInUseError, match=f"the journal is in use by process {os.getpid()}"):
        other.take()
    assert not other.held
    held.release()
    assert not path.exists()
    other.take()
    other.release()


def test_a_lock_whose_file_goes_away_meanwhile_is_taken_on_the_one_that_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held it before removed it after it was opened here; a third one would make another."""
    take = lock._take

    def late(descriptor: int) -> None:
        take(descriptor)
        monkeypatch.setattr(lock, "_take", take)
        path.unlink()

    monkeypatch.setattr(lock, "_take", late)
    held = Lock(path, "the journal")
    held.take()
    with pytest.raises(JournalInUseError):
        Lock(path, "the journal").take()
    held.release()
