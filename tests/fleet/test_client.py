"""Starting, watching and steering a run over a fleet, from Python."""

import ast
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fleets import Fleet, Temporal, fleet, temporal
from msgspec import structs
from plans import plan
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueResponse,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryResponse,
    GetWorkflowExecutionHistoryReverseResponse,
)
from temporalio.client import WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.converter import DataConverter
from temporalio.service import RPCError, RPCStatusCode

from monocloud_async import ConfigurationError, config
from monocloud_async.fleet import FleetError, FleetReport, FleetRun, Progress
from monocloud_async.fleet import client as fleet_client
from monocloud_async.fleet.messages import ChunkResult, Sign, new_state
from monocloud_async.fleet.temporal import REFUSALS, converter, to_fleet_error
from monocloud_async.fleet.workflow import CHUNK_ACTIVITY
from monocloud_async.journal.store import Rows

pytestmark = pytest.mark.process

USERS = 500
RATE = 300.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    with temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def parts(tmp_path: Path, server: Temporal) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, server, USERS) as parts:
        yield parts


async def test_one_run_a_tenant(parts: Fleet) -> None:
    run = await parts.start(RATE)
    with pytest.raises(FleetError, match="already has a run"):
        await parts.start(RATE)
    await run.cancel()


async def test_what_cannot_be_a_run_is_refused_before_it(parts: Fleet) -> None:
    with pytest.raises(ConfigurationError, match="max_rate must be a number above 0"):
        await parts.start(0)
    with pytest.raises(ConfigurationError, match="operation must be one of enable, disable, "):
        await parts.start(RATE, operation="delete")
    client = await parts.server.client()
    nobody = await FleetRun.attach("nobody.eu.monocloud.com", client=client)
    with pytest.raises(FleetError, match="no run is in progress for https://nobody"):
        await nobody.progress()


async def test_the_page_shows_a_run_from_python(
    parts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    block, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for name, value in {config.DOMAIN: parts.sandbox.url, **parts.server.environment}.items():
        monkeypatch.setenv(name, value)
    parts.part("coordinator")
    parts.part("worker")
    await parts.until_hosted()
    names: dict[str, Any] = {}
    code = compile(
        block.replace("/shared/users.csv", str(parts.ids)),
        "fleet.md",
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    await eval(code, names)  # noqa: S307  our own page
    assert names["report"].enabled == USERS
    assert names["progress"].expected == USERS


async def test_a_run_that_is_over_can_be_asked_for_its_end_again(parts: Fleet) -> None:
    run = await parts.start(RATE)
    assert not await run.over()
    await run.cancel()
    parts.part("coordinator")
    report = await run.result()
    assert await run.over()
    again = await FleetRun.attach(parts.sandbox.url, client=await parts.server.client())
    assert await again.result() == report
    assert (report.how, report.enabled) == ("cancelled", 0)
    for order in (again.cancel, again.pause, again.resume):
        with pytest.raises(FleetError, match="no run is in progress"):
            await order()
    assert repr(again) == f"<FleetRun {parts.sandbox.url}>"


async def test_a_rate_is_checked_before_it_is_sent(parts: Fleet) -> None:
    run = await parts.start(RATE)
    with pytest.raises(ConfigurationError, match="max_rate must be a number above 0"):
        await run.set_rate(-1)
    await run.cancel()


class BrokenRun:
    """Temporal's client, and the handle of a run that answers no query."""

    namespace = "default"
    status = WorkflowExecutionStatus.RUNNING
    data_converter = DataConverter.default

    def __init__(self, attempt: int) -> None:
        self.raw_description = DescribeWorkflowExecutionResponse()
        self.raw_description.pending_workflow_task.attempt = attempt
        self.workflow_service = self

    def get_workflow_handle_for(self, *_: object) -> "BrokenRun":
        return self

    get_workflow_handle = get_workflow_handle_for

    async def get_workflow_execution_history(
        self, _: object
    ) -> GetWorkflowExecutionHistoryResponse:
        return GetWorkflowExecutionHistoryResponse()  # without a message that needs a key

    async def query(self, *_: object, **_options: object) -> object:
        raise WorkflowQueryFailedError("no such query")

    async def signal(self, *_: object, **_options: object) -> None:
        """Accept the order, as Temporal does while no coordinator runs."""

    async def cancel(self) -> None:
        """Accept it, too."""

    async def describe(self) -> "BrokenRun":
        return self

    async def get_workflow_execution_history_reverse(
        self, _: object
    ) -> GetWorkflowExecutionHistoryReverseResponse:
        answer = GetWorkflowExecutionHistoryReverseResponse()
        failed = answer.history.events.add().workflow_task_failed_event_attributes
        failed.failure.message = "nondeterminism"
        return answer


class BusyRun(BrokenRun):
    """A run in which a chunk of a hundred users comes back between two questions."""

    data_converter = converter()

    def __init__(self) -> None:
        super().__init__(attempt=1)
        self._progress = new_state(plan()).progress
        self._progress.chunks = 1
        self.chunk = chunk = self.raw_description.pending_activities.add()
        chunk.activity_type.name = CHUNK_ACTIVITY
        chunk.state = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        chunk.last_worker_identity = "one"
        chunk.last_heartbeat_time.GetCurrentTime()
        sign = Sign(users=200, worker="one", rate=50.0, seconds=5.0)
        done: list[object] = [value for position in range(100) for value in (position, "", 0, 0, 0)]
        told = ChunkResult(rows=Rows(done, []), sign=sign)
        chunk.heartbeat_details.payloads.extend(
            self.data_converter.payload_converter.to_payloads([told])
        )
        self.ends = False  # before the next look at the chunks that are out

    async def query(self, *_: object, **_options: object) -> Progress:
        return structs.replace(self._progress)

    async def describe(self) -> "BusyRun":
        if self.ends:
            self.ends = False
            self.raw_description.pending_activities.pop()
            self._progress.enabled += 100
            self._progress.results += 1
            moment = time.time() - 2.5
            self._progress.signs = [
                Sign(users=200, worker="one", rate=60.0, seconds=5.0, moment=moment)
            ]
        return self

    def pauses(self) -> None:
        self._progress.chunks = 0

    async def describe_task_queue(self, _: object) -> DescribeTaskQueueResponse:
        return DescribeTaskQueueResponse()


async def test_a_chunk_that_comes_back_between_two_questions_is_counted_once() -> None:
    busy = BusyRun()
    client: Any = busy
    run = FleetRun(client, "https://t")
    before = await run.progress()
    assert (before.enabled, before.rate, before.under_way) == (100, 50, 100)
    busy.ends = True
    after = await run.progress()
    assert (after.enabled, after.under_way) == (100, 0)
    assert after.rate == pytest.approx(30, rel=0.2)  # of half of the last five seconds
    busy.pauses()
    assert (await run.progress()).rate == 0


async def test_a_worker_that_takes_over_from_another_one_doubles_no_rate() -> None:
    busy = BusyRun()
    client: Any = busy
    moment = time.time() - 1
    ended = Sign(users=0, worker="two", rate=100.0, seconds=5.0, moment=moment)
    begun = Sign(users=200, worker="one", rate=100.0, seconds=1.0)
    busy._progress.signs = [ended]
    busy.chunk.heartbeat_details.payloads.pop()
    busy.chunk.heartbeat_details.payloads.extend(
        busy.data_converter.payload_converter.to_payloads([ChunkResult(sign=begun)])
    )
    run = FleetRun(client, "https://t")
    assert (await run.progress()).rate == pytest.approx(100, rel=0.1)
    busy._progress.signs = []
    assert (await run.progress()).rate == 100  # all workers have only begun


async def test_a_worker_of_which_nothing_is_heard_has_no_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_client, "_NEXT_BEAT", 0.0)
    busy = BusyRun()
    client: Any = busy
    run = FleetRun(client, "https://t")
    busy.chunk.last_heartbeat_time.FromSeconds(round(time.time()) - 6)
    progress = await run.progress()
    assert (progress.enabled, progress.rate) == (100, 0)
    assert 5 < progress.members[0].seconds < 60


@pytest.mark.parametrize("off", [3600, 30, -30, -3600])
async def test_the_clock_of_who_asks_does_not_matter(
    off: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_client, "_NEXT_BEAT", 0.0)
    busy, beat, clock = BusyRun(), count(round(time.time())), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + off)

    async def describe() -> BusyRun:
        busy.chunk.last_heartbeat_time.FromSeconds(next(beat))
        return busy

    monkeypatch.setattr(busy, "describe", describe)
    client: Any = busy
    run = FleetRun(client, "https://t")
    progress = await run.progress()
    assert (progress.rate, progress.members[0].seconds < 4) == (50, True)
    monkeypatch.setattr(time, "time", clock)  # it is set while somebody watches
    progress = await run.progress()
    assert (progress.rate, progress.members[0].seconds < 4) == (50, True)


ORDERS: list[Callable[[FleetRun], Awaitable[object]]] = [
    FleetRun.progress,
    FleetRun.failures,
    FleetRun.pause,
    FleetRun.resume,
    FleetRun.cancel,
    lambda run: run.set_rate(5),
]


@pytest.mark.parametrize("order", ORDERS)
async def test_every_order_tells_why_the_workflow_itself_fails(
    order: Callable[[FleetRun], Awaitable[object]],
) -> None:
    client: Any = BrokenRun(attempt=3)
    with pytest.raises(FleetError, match=r"the run cannot go on, because .*: nondeterminism"):
        await order(FleetRun(client, "https://t"))


@pytest.mark.parametrize("question", [FleetRun.progress, FleetRun.failures])
async def test_a_query_that_the_coordinator_refuses_is_a_fleet_error(
    question: Callable[[FleetRun], Awaitable[object]],
) -> None:
    client: Any = BrokenRun(attempt=1)
    with pytest.raises(FleetError, match=r"the coordinator cannot answer .*: no such query"):
        await question(FleetRun(client, "https://t"))


class EndingRun(BrokenRun):
    """A run whose end is asked for on a bad line."""

    def __init__(self, *answers: RPCStatusCode) -> None:
        super().__init__(attempt=1)
        self._answers = list(answers)

    async def result(self) -> FleetReport:
        if self._answers:
            raise RPCError("transport error", self._answers.pop(0), b"")
        return new_state(plan()).report("finished")


async def test_the_end_of_a_run_is_waited_for_whatever_becomes_of_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_client, "_AGAIN", 0.0)
    lost = (code for code in RPCStatusCode if code not in REFUSALS)
    client: Any = EndingRun(*lost)
    assert (await FleetRun(client, "https://t").result()).how == "finished"
    client = EndingRun(RPCStatusCode.PERMISSION_DENIED)
    with pytest.raises(FleetError, match=r"Temporal refused \(PERMISSION_DENIED\)"):
        await FleetRun(client, "https://t").result()
    assert "cannot answer now (UNKNOWN: transport error)" in str(
        to_fleet_error(RPCError("transport error", RPCStatusCode.UNKNOWN, b""), "https://t")
    )
