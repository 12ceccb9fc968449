"""Steps of the workflow, without Temporal."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import temporalio.workflow
from plans import plan
from temporalio.exceptions import ActivityError, ApplicationError

from monocloud_async.fleet import workflow
from monocloud_async.fleet.messages import Chunk, ChunkResult, Plan, Span, new_state
from monocloud_async.fleet.workflow import RunWorkflow
from monocloud_async.journal.store import Rows


async def met(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  as Temporal does
        await asyncio.sleep(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> RunWorkflow:
    monkeypatch.setattr(temporalio.workflow, "wait_condition", met)
    return RunWorkflow(new_state(plan()))


async def test_a_worker_with_another_key_that_goes_on_pauses_the_run(
    run: RunWorkflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.extend([seconds] if seconds else [])
        await sleep(0)

    async def begin(chunk: Chunk) -> Chunk:
        assert len(slept) < 20, "it is asked again and again"
        return chunk

    def refuses(_: Chunk) -> asyncio.Future[ChunkResult]:
        error = ActivityError(
            "failed",
            scheduled_event_id=1,
            started_event_id=2,
            identity="one",
            activity_type="enable_chunk",
            activity_id="1",
            retry_state=None,
        )
        error.__cause__ = ApplicationError("cannot decode")
        error.__cause__.__cause__ = ApplicationError("no key", type="PayloadRefusedError")
        call = asyncio.get_running_loop().create_future()
        call.set_exception(error)
        return call

    monkeypatch.setattr(asyncio, "sleep", counted)
    monkeypatch.setattr(run, "_begin", begin)
    monkeypatch.setattr(run, "_call_worker", refuses)
    lane = asyncio.create_task(run._lane(Chunk(span=Span(0, 10))))
    run._lanes.add(lane)
    async with asyncio.timeout(30):
        await lane
    progress = run._state.progress
    assert progress.away == {"one": "no key"}
    assert progress.paused == "a chunk failed repeatedly: no key (worker one)"
    assert slept == [workflow._FENCE] * workflow._FAILED  # as the version before did


async def test_a_cancelled_run_records_results_in_an_older_copy_and_is_not_paused(
    run: RunWorkflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def journal(_name: str, given: Plan, *_: object, **_options: Any) -> asyncio.Future[Any]:
        plans.append(given)
        call = asyncio.get_running_loop().create_future()
        call.set_result([])
        return call

    monkeypatch.setattr(workflow, "_journal", journal)
    run._state.progress.done = 7
    run._cancelled = run._draining = True
    run.pause("an older copy")
    assert run._state.progress.paused is None
    result = ChunkResult(rows=Rows([0, "", 0, 0, 0], []))
    await run._record(Chunk(span=Span(0, 10)), result, attempts=3)
    await run._record(Chunk(span=Span(0, 10)), result)
    assert [each.recorded for each in plans] == [0, 7]
