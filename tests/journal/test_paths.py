"""A run uses no file of a journal that somebody else may have laid there."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.journal.paths import files_of
from monocloud_async.report.figures import read
from monocloud_async.sandbox import Sandbox

ENDS = ("", "-wal", "-shm", "-journal", "-lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.mark.parametrize("end", ENDS)
async def test_a_link_is_not_followed(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, end: str
) -> None:
    target = path.with_name("profile")
    Path(f"{path}{end}").symlink_to(target)
    with pytest.raises(ConfigurationError, match=f"run.journal{end} is a link to {target}; remove"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert not target.exists()
    assert sandbox.stats().requests == 0


@pytest.mark.parametrize("end", ENDS)
async def test_a_file_with_a_second_name_is_not_written_to(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, end: str
) -> None:
    target = path.with_name("profile")
    target.touch()
    os.link(target, f"{path}{end}")
    with pytest.raises(ConfigurationError, match=f"run.journal{end} has another name as well"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert target.read_bytes() == b""


@pytest.mark.parametrize("end", ENDS)
async def test_a_pipe_is_not_waited_for(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, end: str
) -> None:
    os.mkfifo(f"{path}{end}")
    with pytest.raises(ConfigurationError, match=f"run.journal{end} is not a journal"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("end", ENDS)
async def test_another_users_file_is_left_alone(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, end: str
) -> None:
    file = Path(f"{path}{end}")
    file.touch()
    file.chmod(0o666)
    os.chown(file, 12001, 12001)
    with pytest.raises(ConfigurationError, match=r"belongs to another user \(user 12001\); run as"):
        await session.bulk_enable(sandbox.user_ids(), journal=path)
    assert sandbox.stats().requests == 0
    assert file.stat().st_size == 0


@pytest.mark.parametrize("earlier", [False, True])
async def test_a_file_that_was_open_to_others_is_closed_to_them_before_it_is_written(
    sandbox: Sandbox, session: MonoCloudSession, path: Path, *, earlier: bool
) -> None:
    ids = sandbox.user_ids()
    if earlier:
        await session.bulk_enable(ids[:5], journal=path)
    else:
        path.touch()
    path.chmod(0o666)
    modes: set[int] = set()
    async with session.bulk_enable(ids, journal=path) as run:
        async for _ in run:
            for file in files_of(path):
                with suppress(FileNotFoundError):  # SQLite removes some of them at any time
                    modes.add(stat.S_IMODE(file.stat().st_mode))
    assert modes == {0o600}


async def test_somebody_elses_database_keeps_its_mode(
    session: MonoCloudSession, path: Path
) -> None:
    path.write_text("a list of ids\n")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="is not a journal"):
        await session.bulk_enable(["ada"], journal=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_what_is_no_path_is_told(session: MonoCloudSession, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    refused: list[tuple[str | Path, str]] = [
        ("a\0b", r"'a b' is not a path: it has a NUL byte"),
        ("a\0/b", r"'a /b' is not a path"),
        (link, f"{link} is a link to {link}"),
        (link / "b", "Too many levels of symbolic links"),
    ]
    for path, told in refused:
        with pytest.raises(ConfigurationError, match=told):
            await session.bulk_enable(["ada"], journal=path)
        with pytest.raises(ConfigurationError):
            read(Path(path))


async def test_a_relative_path_in_a_folder_that_was_removed_is_told(
    session: MonoCloudSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match=r"^j: this process is in a folder that was rem"):
        await session.bulk_enable(["ada"], journal="j")
