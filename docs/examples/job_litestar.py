"""A Litestar application with a background job.

Start it:  JOBS=/var/lib/access uvicorn job_litestar:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from job import Job, job_of
from litestar import Litestar, delete, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.params import JSONBody

from monocloud_async import MonoCloudSession


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    async with job_of(MonoCloudSession(), Path(os.environ["JOBS"])) as app.state.job:
        yield


@post("/job", status_code=202)
async def start(data: JSONBody[list[str]], state: State) -> dict[str, Any]:
    job: Job = state.job
    if not job.start(data):
        detail = "There is a job: wait until it has ended, or DELETE it."
        raise HTTPException(detail, status_code=409)
    return job.progress()


@get("/job")
async def progress(state: State) -> dict[str, Any]:
    job: Job = state.job
    return job.progress()


@delete("/job", status_code=200)
async def stop(state: State) -> dict[str, Any]:
    job: Job = state.job
    job.stop()
    return job.progress()


app = Litestar([start, progress, stop], lifespan=[lifespan])
