"""The job of docs/examples/job.py, with several workers of a service in one folder."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import EXAMPLES
from tenant_in_memory import Session, users

from monocloud_async import UnauthorizedError, User

if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import job
from job import Job, job_of


class Tenant:
    """A tenant that answers the first request, and the others once it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.refuses = False

    async def send(self, user_id: str, _seconds: float) -> User:
        self.asked.append(user_id)
        if self.refuses:
            raise UnauthorizedError(status=401, user_id=user_id)
        if len(self.asked) > 1:
            await self.answers.wait()
            await asyncio.sleep(0.01)
        return User(user_id=user_id)

    def session(self) -> Session:
        return Session(self.send, None)


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110  a folder has no events
            await asyncio.sleep(0.01)


async def enabled(worker: Job, count: int) -> bool:
    """Whether the last job of this worker, once ended, has enabled so many."""
    await until(lambda: worker.progress()["state"] == "ended")
    return bool(worker.progress()["enabled"] == count)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "LOOK", 0.01)


async def test_a_job_starts_only_after_the_last_call_of_the_one_before(tmp_path: Path) -> None:
    tenant, ids = Tenant(), users(15)
    async with job_of(tenant.session(), tmp_path) as worker:
        assert worker.start(ids[:10])
        await until(lambda: len(tenant.asked) == 10)  # the last calls are in flight
        worker.stop()
        for _ in range(5):
            assert not worker.start(ids[10:])
            await asyncio.sleep(0.01)
        tenant.answers.set()
        assert await enabled(worker, 10)
        assert worker.start(ids[10:])
        assert worker.progress() == {"state": "accepted"}  # not the figures of the last job
        assert await enabled(worker, 5)
    assert tenant.asked == ids


async def test_any_worker_starts_and_stops_a_job(tmp_path: Path) -> None:
    tenant, ids = Tenant(), users(2000)
    async with (
        job_of(tenant.session(), tmp_path) as one,
        job_of(tenant.session(), tmp_path) as other,
    ):
        await until((tmp_path / "job.lock").exists)  # one of them has the lock
        assert other.start(ids)
        assert not one.start(ids)
        await until(lambda: len(tenant.asked) > 1)
        does, idle = (one, other) if one.progress()["state"] == "running" else (other, one)
        assert idle.progress() == {"state": "accepted"}
        idle.stop()
        tenant.answers.set()
        await until(lambda: does.progress()["state"] == "ended")
        assert idle.progress() == {"state": "none"}
        done = len(tenant.asked)
        assert does.progress()["enabled"] == done < 2000
        assert idle.start(ids[-3:])
        await until(lambda: len(tenant.asked) == done + 3)
        assert await enabled(does, 3)


async def test_a_worker_goes_on_when_the_one_with_the_job_has_ended(tmp_path: Path) -> None:
    tenant, ids = Tenant(), users(60)
    async with job_of(tenant.session(), tmp_path) as old:
        assert old.start(ids)
        await until(lambda: len(tenant.asked) > 1)
        after_deploy = job_of(tenant.session(), tmp_path)
        new = await after_deploy.__aenter__()
        assert new.progress() == {"state": "accepted"}
        asyncio.get_running_loop().call_later(0.1, tenant.answers.set)
    assert len(tenant.asked) < 60
    assert new.progress()["state"] != "none"
    assert await enabled(new, 60)
    await after_deploy.__aexit__(None, None, None)
    assert sorted(tenant.asked) == sorted(ids)  # nobody was asked for twice


async def test_an_interrupted_job_goes_on_whatever_its_ids_are(tmp_path: Path) -> None:
    tenant, ids = Tenant(), users(60)
    async with job_of(tenant.session(), tmp_path) as worker:
        assert worker.start(["a\rb", "a\nb", "\ud800", "", *ids])
        await until(lambda: len(tenant.asked) > 1)
        asyncio.get_running_loop().call_later(0.1, tenant.answers.set)
    assert len(tenant.asked) < 60
    async with job_of(tenant.session(), tmp_path) as worker:
        assert await enabled(worker, 60)
        assert worker.progress()["failed"] == 4
    assert sorted(tenant.asked) == sorted(ids)


async def test_a_job_that_failed_tells_why_until_it_is_stopped(tmp_path: Path) -> None:
    tenant = Tenant()
    tenant.refuses = True
    for restarted in (False, True):
        async with job_of(tenant.session(), tmp_path) as worker:
            assert worker.start(users(3)) is not restarted
            await until(lambda: worker.progress()["state"] == "stopped")
            assert "401" in worker.progress()["why"]
    async with job_of(tenant.session(), tmp_path) as worker:
        await until(lambda: worker.progress()["state"] == "stopped")
        worker.stop()
        assert await enabled(worker, 0)
        tenant.refuses = False
        tenant.answers.set()
        assert worker.start(users(3))
        assert await enabled(worker, 3)


async def test_a_job_that_is_stopped_before_it_begins_asks_for_nobody(tmp_path: Path) -> None:
    tenant = Tenant()
    async with job_of(tenant.session(), tmp_path) as worker:
        assert worker.start(users(3))
        worker.stop()
        await until(lambda: worker.progress() == {"state": "none"})
        assert worker.start([])
        assert await enabled(worker, 0)
    assert not tenant.asked
    assert not [*tmp_path.glob("*.json")]


async def test_a_file_that_somebody_removes_stops_the_job(tmp_path: Path) -> None:
    tenant, ids = Tenant(), users(2000)
    async with job_of(tenant.session(), tmp_path) as worker:
        assert worker.start(ids)
        await until(lambda: len(tenant.asked) > 1)
        (tmp_path / "job.json").unlink()
        tenant.answers.set()
        await until(lambda: worker.progress()["state"] == "ended")
        assert worker.progress()["enabled"] == len(tenant.asked) < 2000
        assert worker.start(ids[-3:])
        assert await enabled(worker, 3)


async def test_a_job_that_comes_while_the_application_ends_is_left_to_the_next_one(
    tmp_path: Path,
) -> None:
    tenant, ids = Tenant(), users(4)
    session = tenant.session()
    async with job_of(session, tmp_path) as worker:
        await session.enable_user(ids[0])
        call = asyncio.create_task(session.enable_user(ids[1]))  # in flight until the end
        await until(lambda: len(tenant.asked) == 2)
        assert worker.start(ids[2:])
        asyncio.get_running_loop().call_later(0.1, tenant.answers.set)
    assert (await call).user_id == ids[1]
    assert tenant.asked == ids[:2]
    async with job_of(tenant.session(), tmp_path) as worker:
        assert await enabled(worker, 2)


async def test_a_worker_that_can_do_no_jobs_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "job.json").write_text("not JSON")
    with pytest.raises(ValueError, match="Expecting value"):
        async with job_of(Tenant().session(), tmp_path):
            await until(lambda: caplog.messages)
    assert caplog.messages == ["this worker does no more jobs"]
    assert (tmp_path / "job.json").exists()
