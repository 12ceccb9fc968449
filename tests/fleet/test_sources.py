"""A process reads only what it may, and only the content that was planned."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from monocloud_async import ConfigurationError
from monocloud_async.fleet.id_file import IdFile, digest_of, inspect_file
from monocloud_async.fleet.sources import Sources


@pytest.mark.parametrize(
    ("allowed", "where"),
    [
        ("in", "in/ids.txt"),
        ("in/ids.txt", "in/ids.txt"),
        ("in", "in/deep/../ids.txt"),
        ("https://bucket/data", "https://bucket/data/ids.txt?Signature=a"),
        ("https://bucket/data/ids.txt", "https://bucket/data/ids.txt?Signature=a"),
        ("https://BUCKET/", "https://bucket/ids.txt"),
    ],
)
def test_what_is_below_an_allowed_place_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/ids.txt").touch()
    Sources([allowed]).check(where)


@pytest.mark.parametrize("allowed", ["missing", "loop", "ids.txt/x", "a\0b"])
def test_a_place_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigurationError, match=r"is not there, and this process may read ids on"):
        Sources([tmp_path, allowed])


@pytest.mark.parametrize(
    ("allowed", "where"),
    [
        ("in", "out.txt"),
        ("in", "in/../out.txt"),
        ("in", "in/link.txt"),
        ("in", "inside/ids.txt"),
        ("in", "https://bucket/ids.txt"),
        ("https://bucket/data", "https://bucket/database/ids.txt"),
        ("https://bucket/data", "https://bucket/data/../ids.txt"),
        ("https://bucket/data", "https://bucket/data/%2e%2e/ids.txt"),
        ("https://bucket/data", "https://bucket/data/%252e%252e%2Fids.txt"),
        ("https://bucket/data", "https://bucket/data/..\\ids.txt"),
        ("https://bucket/data", "https://bucket/data/..;/ids.txt"),
        ("https://bucket/data", "https://bucket/data/..;x=1/ids.txt"),
        ("https://bucket/data", "https://bucket/data/%2e%2e%3b/ids.txt"),
        ("https://bucket/data", "https://bucket/data/%2525252e%2525252e/ids.txt"),
        ("https://bucket/data", "https://bucket/data/%c0%ae%c0%ae/ids.txt"),
        ("https://bucket/data", "https://bucket/data/%u002e%u002e/ids.txt"),
        ("https://bucket/data", "https://bucket/data/..%00/ids.txt"),
        ("https://bucket/data", "https://bucket/data/ .. /ids.txt"),
        ("https://bucket/data", "https://bucket:8443/data/ids.txt"),
        ("https://bucket/data", "https://bucket.example/data/ids.txt"),
        ("https://bucket/data", "in/ids.txt"),
    ],
)
def test_what_is_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out.txt").write_text("secret\n")
    (tmp_path / "in/link.txt").symlink_to(tmp_path / "out.txt")
    with pytest.raises(ConfigurationError, match="is not below a folder or URL"):
        Sources([allowed]).check(where)


def test_the_working_directory_is_allowed_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Sources().check(str(tmp_path / "ids.txt"))
    with pytest.raises(ConfigurationError):
        Sources().check("/etc/passwd")


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def copied(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.fixture
async def source(tmp_path: Path) -> IdFile:
    (tmp_path / "ids.txt").write_text("ada\nbob\n")
    return await inspect_file(str(tmp_path / "ids.txt"))


@pytest.mark.parametrize("change", [touched, copied])
async def test_another_date_is_no_change(
    tmp_path: Path, source: IdFile, change: Callable[[Path], None]
) -> None:
    sources = Sources([tmp_path])
    assert await sources.read(source, 0, 8) == b"ada\nbob\n"
    change(tmp_path / "ids.txt")
    assert await sources.read(source, 0, 8) == b"ada\nbob\n"


async def test_other_content_with_the_same_date_and_size_is_a_change(
    tmp_path: Path, source: IdFile
) -> None:
    sources, path = Sources([tmp_path]), tmp_path / "ids.txt"
    await sources.read(source, 0, 4)
    before = path.stat()
    path.write_text("ada\neve\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for reader in (sources, Sources([tmp_path])):
        with pytest.raises(ConfigurationError, match="same size, but different content; restore"):
            await reader.read(source, 0, 4)
    path.write_text("ada\nbob\n")
    assert await sources.read(source, 0, 4) == b"ada\n"


async def test_an_appended_line_is_a_change(tmp_path: Path, source: IdFile) -> None:
    with (tmp_path / "ids.txt").open("a") as file:
        file.write("eve\n")
    with pytest.raises(ConfigurationError, match="it had 8 bytes, now it has 12"):
        await Sources([tmp_path]).read(source, 0, 4)


async def test_lines_with_the_digest_of_the_chunk_are_read_whatever_the_rest_is(
    tmp_path: Path, source: IdFile
) -> None:
    sources, path = Sources([tmp_path]), tmp_path / "ids.txt"
    path.write_text("ada\neve\n")
    assert await sources.read(source, 0, 4, digest_of(b"ada\n")) == b"ada\n"
    with pytest.raises(ConfigurationError, match="lines from byte 4 on are different"):
        await sources.read(source, 4, 8, digest_of(b"bob\n"))


async def test_a_plan_of_an_earlier_version_relies_on_the_date(
    tmp_path: Path, source: IdFile
) -> None:
    earlier = structs.replace(source, digest=None)
    assert await Sources([tmp_path]).read(earlier, 0, 4) == b"ada\n"
    touched(tmp_path / "ids.txt")
    with pytest.raises(ConfigurationError, match="changed since the run was planned"):
        await Sources([tmp_path]).read(earlier, 0, 4)
