"""A FastAPI application with a background job.

Start it:  JOBS=/var/lib/access uvicorn job_fastapi:app
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from job import Job, job_of

from monocloud_async import MonoCloudSession


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Job], None]:
    async with job_of(MonoCloudSession(), Path(os.environ["JOBS"])) as job:
        yield {"job": job}


app = FastAPI(lifespan=lifespan)


@app.post("/job", status_code=202)
async def start(ids: list[str], request: Request) -> dict[str, Any]:
    job: Job = request.state.job
    if not job.start(ids):
        raise HTTPException(409, "There is a job: wait until it has ended, or DELETE it.")
    return job.progress()


@app.get("/job")
async def progress(request: Request) -> dict[str, Any]:
    job: Job = request.state.job
    return job.progress()


@app.delete("/job")
async def stop(request: Request) -> dict[str, Any]:
    job: Job = request.state.job
    job.stop()
    return job.progress()
