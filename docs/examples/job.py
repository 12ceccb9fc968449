"""One bulk run at a time, in the background of a web service.

A run needs minutes or hours: the request that starts it is answered at once. What was done is in
the journal, so a job that a deploy or a crash interrupted is started again with the same ids.
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from monocloud_async import BulkRun, MonoCloudError, MonoCloudSession

logger = logging.getLogger(__name__)


class Job:
    """The job of a tenant, in a folder of its own that all workers of the service share.

    The file of ids is there from the start of a job to its end: while it is, no other job starts.
    The journal is locked by the worker that does the job; only that one knows its progress.
    """

    def __init__(self, session: MonoCloudSession, folder: Path) -> None:
        self._session = session
        self._ids, self._journal = folder / "job.txt", folder / "job.journal"
        self._run: BulkRun | None = None
        self._task: asyncio.Task[None] | None = None
        self._why = ""

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, ids: list[str]) -> bool:
        """Start a job with these ids; False if there is one, in any worker."""
        whole = self._ids.with_suffix(f".{os.getpid()}")
        whole.write_text("\n".join(ids), encoding="utf-8")
        try:
            self._ids.hardlink_to(whole)  # one of several workers can; the file is never half
        except FileExistsError:
            return False
        finally:
            whole.unlink()
        self._journal.unlink(missing_ok=True)  # of the last job
        self._begin(ids)
        return True

    def resume(self) -> None:
        """Go on with a job that a restart interrupted; call this when the application starts."""
        if self._ids.exists():
            self._begin(self._ids.read_text(encoding="utf-8").split("\n"))

    def stop(self) -> None:
        """Let the calls in flight finish, and start no more; the rest is not done any more."""
        self._ids.unlink(missing_ok=True)
        if self._run is not None:
            self._run.drain()

    def progress(self) -> dict[str, Any]:
        if self._run is None:
            return {"state": "none"}
        report = self._run.report
        return {
            "state": "running" if self.is_running else "ended",
            "enabled": report.enabled + report.already_enabled,
            "failed": report.failed,
            "unknown": report.unknown,
            "why": self._why,
        }

    async def ended(self) -> None:
        """Wait for the end of the job; `session.close(drain=...)` ends it before."""
        if self._task is not None:
            await self._task

    def _begin(self, ids: list[str]) -> None:
        self._why = ""
        # Not all of the tenant's limit: the requests of the service need it, too.
        self._run = self._session.bulk_enable(ids, concurrency=20, journal=self._journal)
        self._task = asyncio.create_task(self._work(self._run))

    async def _work(self, run: BulkRun) -> None:
        try:
            report = await run
        except MonoCloudError as error:  # the key, the tenant, the journal, or a shutdown
            self._why = str(error)
            logger.error("the job was stopped: %s", error)  # noqa: TRY400  it says all
        else:
            logger.info("the job has ended: %s", report)
            if report.exhausted:
                with suppress(FileNotFoundError):
                    self._ids.unlink()  # nothing to go on with after a restart
