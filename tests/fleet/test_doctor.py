"""`fleet doctor`: with a real Temporal and real processes, and what it says of what it is told."""

import asyncio
import errno
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fleets import Fleet, Part, Temporal, fleet, temporal
from raw_server import RawServer, answering, http

from monocloud_async import ConfigurationError, MonoCloudSession
from monocloud_async.fleet import Finding, check_fleet, checks, doctor
from monocloud_async.fleet.messages import WorkerProgress
from monocloud_async.version import __version__

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    with temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def parts(tmp_path: Path, server: Temporal) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, server, 20) as parts:
        yield parts


async def asked(parts: Fleet, members: int) -> list[Finding]:
    """Ask when so many processes can be asked."""
    async with asyncio.timeout(150):
        while True:
            found = await check_fleet(
                parts.ids, domain=parts.sandbox.url, client=await parts.server.client()
            )
            if sum(" 0." in each.what or "@" in each.what for each in found) >= members:
                return found
            await asyncio.sleep(0.1)


def lines(found: list[Finding], *, ok: bool) -> list[str]:
    return [f"{each.what}: {each.said}" for each in found if each.ok == ok]


def name(part: Part) -> str:
    return f" {part.pid}@"


async def test_all_is_fine_and_nobody_is_changed(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    found = await asked(parts, 2)
    assert lines(found, ok=False) == []
    one, two, coordinator, worker, versions = lines(found, ok=True)
    assert one.startswith("Temporal: 127.0.0.1:")
    assert two == f"File: {parts.ids}: txt, about 20 ids"
    assert coordinator.endswith(": the file, journal ids.txt.journal, a new one, clock")
    assert worker.endswith(": the file, tenant and key, clock")
    assert versions == f"Versions: {__version__} everywhere"
    assert parts.sandbox.stats().users == {"enabled": 0, "disabled": 20}
    assert not parts.journal.exists()


async def test_each_process_says_its_own_problem(parts: Fleet, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    parts.journal.write_text("notes")
    coordinator = parts.part("coordinator")
    refused = parts.part("worker", key="an-old-key")
    fine = parts.part("worker")
    found = await asked(parts, 3)
    problems = lines(found, ok=False)
    assert len(problems) == 2
    assert any(name(coordinator) in each and "is not a journal" in each for each in problems)
    assert any(name(refused) in each and "401 Unauthorized" in each for each in problems)
    assert any(name(fine) in each for each in lines(found, ok=True))
    assert parts.journal.read_text() == "notes"
    assert not [each for each in problems if parts.sandbox.api_key in each or "old-key" in each]


async def test_without_processes_it_is_said_what_to_start(parts: Fleet) -> None:
    found = await asked(parts, 0)
    assert [each.what for each in found if not each.ok] == ["Coordinator", "Worker"]
    assert "fleet coordinator" in found[2].said
    assert "fleet worker" in found[3].said


async def test_a_temporal_that_is_not_there_is_one_problem(
    parts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    first, file = await check_fleet(parts.ids, domain=parts.sandbox.url)
    assert "cannot reach Temporal at 127.0.0.1:1" in first.said
    assert (first.ok, file.ok) == (False, True)


async def test_a_file_that_is_not_here_is_a_problem(parts: Fleet) -> None:
    client = await parts.server.client()
    found = await check_fleet("nothing.txt", domain=parts.sandbox.url, client=client)
    assert "cannot read" in found[1].said
    assert not found[1].ok


def test_a_wrong_clock_is_told_with_its_direction() -> None:
    now = time.time()
    assert doctor._clock(now, now + 1, now + 2) == []
    assert doctor._clock(now, now - 4, now + 2) == []
    (ahead,) = doctor._clock(now, now + 3602, now + 2)
    assert ahead.startswith("its clock is 3,600 s ahead of this machine's")
    (behind,) = doctor._clock(now, now - 60, now + 2)
    assert behind.startswith("its clock is 60 s behind this machine's")


def test_other_versions_are_told() -> None:
    member = WorkerProgress(name="7@host 0.0.9", role="worker", seconds=1.0)
    (finding,) = doctor._versions([member])
    assert not finding.ok
    assert "0.0.9" in finding.said
    assert __version__ in finding.said


def test_two_coordinators_that_can_both_write_are_one_too_many() -> None:
    members = [
        WorkerProgress(name=f"{number}@host 0.1.0", role="coordinator", seconds=1.0)
        for number in (7, 8)
    ]
    many, _ = doctor._missing(members, [Finding(what="", said="")])
    assert many.said == "there are 2, and a run needs one: end the others"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    checks.folder_check(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot write a journal to "):
        checks.folder_check(tmp_path / "nowhere")


def test_a_folder_where_nothing_can_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ConfigurationError, match="Read-only file system; make room"):
        checks.folder_check(tmp_path)


@pytest.mark.parametrize("status", [404, 400, 422])
async def test_a_key_is_fine_whatever_is_said_of_a_user_who_does_not_exist(status: int) -> None:
    async with (
        RawServer(answering(http(status=status))) as server,
        MonoCloudSession(server.url, "key") as session,
    ):
        check = checks.key_check(session)
        assert await check(checks.Question()) == "tenant and key"
    (request,) = server.requests
    assert request.startswith(b"GET /api/users/doctor")


async def test_who_answers_is_there_whatever_the_clock_of_this_machine_shows(
    parts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.part("coordinator")
    parts.part("worker")
    await asked(parts, 2)
    gone, clock = parts.part("worker"), time.time
    await asked(parts, 3)
    gone.kill()
    monkeypatch.setattr(time, "time", lambda: clock() + 200)
    coordinator, worker = lines(await asked(parts, 2), ok=False)
    for said, what in ((coordinator, "Coordinator"), (worker, "Worker")):
        assert re.match(rf"{what} .*: its clock is (199|2..) s behind this machine's", said), said
