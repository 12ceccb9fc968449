"""One bulk run at a time, in the background of a web service.

A run needs minutes or hours, so the request that starts it is answered at once. What was done is in
the journal, so a job that a deploy or a crash interrupted goes on where it was.
"""

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from monocloud_async import BulkRun, MonoCloudError, MonoCloudSession

SHUTDOWN = 20  # seconds for the calls in flight, of the 30 that Kubernetes grants
LOOK = 0.2  # seconds between two looks at the file

logger = logging.getLogger(__name__)


class Job:
    """The job of a tenant, in a folder that all workers of the service share.

    The file is there from the start of a job to its end: while it is, no other job starts. Emptied,
    it tells the job to stop. The worker that has the lock does all jobs, and only it removes files;
    if it ends, the next worker gets the lock, and goes on.
    """

    def __init__(self, session: MonoCloudSession, folder: Path) -> None:
        self._session = session
        self._folder, self._file = folder, folder / "job.json"
        self._run: BulkRun | None = None
        self._why = ""
        self._last: dict[str, Any] = {"state": "none"}
        self.leaves = False  # the application ends, and begins no other job

    def start(self, ids: list[str]) -> bool:
        """Start a job with these ids; False if there is one, in any worker."""
        name = f"job-{uuid4()}"
        whole = self._folder / f"{name}.json"
        try:
            with whole.open("w") as file:
                json.dump({"journal": f"{name}.journal", "ids": ids}, file)
                file.flush()
                os.fsync(file.fileno())
            self._file.hardlink_to(whole)  # only one of several callers can; it is never half
        except FileExistsError:
            return False
        finally:
            whole.unlink(missing_ok=True)
        return True

    def stop(self) -> None:
        """Let the calls in flight finish, and start no more; the rest is not done any more."""
        with suppress(FileNotFoundError):
            os.truncate(self._file, 0)

    def progress(self) -> dict[str, Any]:
        """The figures of the job that this worker does, or did last."""
        if self._run is not None:
            return self._figures(self._run, "stopped" if self._why else "running")
        # A job without figures is another worker's, or about to begin.
        return {"state": "accepted"} if self._file.exists() else self._last

    async def work(self) -> None:
        """Wait for the lock, then do one job after the other."""
        with (self._folder / "job.lock").open("w") as lock:
            while not _taken(lock.fileno()):  # noqa: ASYNC110  a lock of processes has no events
                await asyncio.sleep(LOOK)
            while not self.leaves:
                if self._file.exists():
                    try:
                        await self._do()
                    finally:
                        self._run, self._why = None, ""
                await asyncio.sleep(LOOK)

    async def _do(self) -> None:
        text = self._file.read_text()
        if not text:  # stopped before it began
            self._file.unlink()
            return
        job = json.loads(text)
        # Not all of the tenant's limit: the requests of the service need it, too.
        self._run = run = self._session.bulk_enable(
            job["ids"], concurrency=20, journal=self._folder / job["journal"]
        )
        async with asyncio.TaskGroup() as tasks:
            emptied = tasks.create_task(self._drain_when_emptied(run))
            try:
                logger.info("the job has ended: %s", await run)
            except MonoCloudError as error:  # the key, the tenant, the journal, or a shutdown
                self._why = str(error)
                logger.error("the job was stopped: %s", error)  # noqa: TRY400  it says all
                await emptied  # it goes on after a restart, unless somebody ends it
            emptied.cancel()
        self._last = self._figures(run, "ended")
        self._file.unlink(missing_ok=True)  # last: from here on, another job may start

    async def _drain_when_emptied(self, run: BulkRun) -> None:
        while self._is_wanted():  # noqa: ASYNC110  a file has no events
            await asyncio.sleep(LOOK)
        run.drain()

    def _is_wanted(self) -> bool:
        try:
            return self._file.stat().st_size > 0
        except FileNotFoundError:  # somebody removed it, in place of emptying it
            return False

    def _figures(self, run: BulkRun, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "enabled": run.report.enabled + run.report.already_enabled,
            "failed": run.report.failed,
            "unknown": run.report.unknown,
            "why": self._why,
        }


def _taken(lock: int) -> bool:
    """Take this lock, which lasts until the file is closed; False if another worker has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log_error(work: asyncio.Task[None]) -> None:
    """Tell at once that this worker does no more jobs."""
    if not work.cancelled() and (error := work.exception()) is not None:
        logger.error("this worker does no more jobs", exc_info=error)


@asynccontextmanager
async def job_of(session: MonoCloudSession, folder: Path) -> AsyncGenerator[Job, None]:
    """The job in this folder, for as long as the application runs; closes the session."""
    job = Job(session, folder)
    work = asyncio.create_task(job.work())
    work.add_done_callback(_log_error)
    try:
        yield job
    finally:
        job.leaves = True
        await session.close(drain=SHUTDOWN)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
