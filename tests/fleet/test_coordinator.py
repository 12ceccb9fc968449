"""The activities of the coordinator: what is left, what is recorded once, and the report."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import journals
import pytest
from msgspec import structs
from plans import plan
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from monocloud_async import MonoCloudSession, NotFoundError, Outcome, ProblemDetails
from monocloud_async.fleet.coordinator import _Records
from monocloud_async.fleet.id_file import inspect_file
from monocloud_async.fleet.messages import ChunkResult, FleetReport, Plan, Span, new_state
from monocloud_async.fleet.sources import Sources
from monocloud_async.journal.lock import JournalInUseError
from monocloud_async.journal.store import Rows
from monocloud_async.outcome import Status
from monocloud_async.report.figures import read
from monocloud_async.sandbox import Sandbox

T = TypeVar("T")

IDS = [f"user{number}" for number in range(10)]
LINE = 6  # bytes of each


class Coordinator:
    """The activities, with a file of ten ids, and a journal next to it."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "ids.journal"
        self.ids = folder / "ids.txt"
        self.ids.write_text("".join(f"{user_id}\n" for user_id in IDS))
        self.records = _Records(folder, Sources([folder]))
        self.environment = ActivityEnvironment()

    async def plan(self, **changes: Any) -> Plan:
        source = await inspect_file(str(self.ids), None, None)
        options = {"journal": str(self.journal), **changes}
        return structs.replace(plan(**options), source=source)

    async def do(self, activity: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        return await self.environment.run(activity, *args)


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    made = Coordinator(tmp_path)
    yield made
    await made.records.end()


def lines(first: int, end: int) -> Span:
    return Span(first * LINE, end * LINE)


def result(*statuses: Status, done: bool = True, **members: Any) -> ChunkResult:
    problem = ProblemDetails(title="Not Found", trace_id="t1")
    outcomes = [
        Outcome(
            user_id="",
            position=place,
            status=status,
            error=NotFoundError(status=404, problem=problem) if status == "failed" else None,
        )
        for place, status in enumerate(statuses)
    ]
    return ChunkResult(rows=Rows.of(outcomes, 0), done=done, **members)


def dump(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(path)) as sql:
        yield from sql.iterdump()


async def test_what_is_left_of_a_new_run_is_the_whole_file(coordinator: Coordinator) -> None:
    left = await coordinator.do(coordinator.records.left, await coordinator.plan())
    assert (left.gaps, left.unfinished, left.users_done) == ([lines(0, 10)], [], 0)


async def test_chunks_are_recorded_once_at_their_place_in_the_file_in_any_order(
    coordinator: Coordinator,
) -> None:
    run, record = await coordinator.plan(), coordinator.records.record_chunk
    await coordinator.do(record, run, lines(7, 9), result("enabled", "failed"))
    for _ in range(2):
        told = await coordinator.do(record, run, lines(2, 4), result("unknown", "enabled"))
        assert [(each.user_id, each.position, each.outcome) for each in told] == [
            ("user2", 2, "unknown")
        ]
    assert [row[:3] for row in journals.rows(coordinator.journal)] == [
        (2, "user2", "unknown"),
        (3, "user3", "enabled"),
        (7, "user7", "enabled"),
        (8, "user8", "failed"),
    ]
    left = await coordinator.do(coordinator.records.left, run)
    assert left.gaps == [lines(0, 2), lines(4, 7), lines(9, 10)]
    assert (left.users_done, left.failed, left.unknown) == (2, 1, 1)


async def test_a_failure_has_its_id_and_what_the_tenant_said(coordinator: Coordinator) -> None:
    run = await coordinator.plan()
    (failure,) = await coordinator.do(
        coordinator.records.record_chunk, run, lines(4, 5), result("failed")
    )
    assert structs.asdict(failure) == {
        "user_id": "user4",
        "position": 4,
        "outcome": "failed",
        "error": "NotFoundError",
        "status": 404,
        "title": "Not Found",
        "trace_id": "t1",
    }


async def test_a_partial_result_is_kept_as_begun_and_replaced_by_the_whole(
    coordinator: Coordinator,
) -> None:
    run, record = await coordinator.plan(), coordinator.records.record_chunk
    part = result("enabled", "failed", done=False, requests=5, bad_lines=1)
    await coordinator.do(record, run, lines(0, 10), part)
    left = await coordinator.do(coordinator.records.left, run)
    (begun,) = left.unfinished
    assert (begun.span, left.gaps, left.bad_lines) == (lines(0, 10), [], 0)
    assert begun.so_far.rows.positions() == {0, 1}
    assert begun.so_far.requests == 0  # the next run counts its own
    await coordinator.do(record, run, lines(0, 10), result(*["enabled"] * 10, bad_lines=1))  # type: ignore[arg-type]  # a list of one word
    left = await coordinator.do(coordinator.records.left, run)
    assert (left.gaps, left.unfinished, left.bad_lines) == ([], [], 1)
    assert journals.outcomes(coordinator.journal) == {"enabled": 10}


@pytest.mark.parametrize(("operation", "done"), [("enable", "enabled"), ("disable", "disabled")])
async def test_the_report_is_that_of_the_journal_and_the_requests_of_this_run(
    coordinator: Coordinator, operation: str, done: Status
) -> None:
    run = await coordinator.plan(operation=operation)
    await coordinator.do(
        coordinator.records.record_chunk, run, lines(0, 3), result(done, done, "failed")
    )
    state = new_state(run)
    state.progress.requests = 7
    report: FleetReport = await coordinator.do(
        coordinator.records.close_journal, "cancelled", state
    )
    assert (report.operation, report.users_done, report.failed) == (operation, 2, 1)
    assert getattr(report, done) == 2
    assert (report.requests, report.how, report.gaps) == (7, "cancelled", [lines(3, 10)])
    figures = read(coordinator.journal)
    assert (figures.done_status, figures.outcomes) == (done, {done: 2, "failed": 1})
    assert [run.how for run in figures.runs] == ["cancelled"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"operation": "disable"}, r"is of POST .*/enable, .* of POST .*/disable"),
        ({"tenant": "https://other"}, "https://other"),
        ({"mark": "changed"}, "was started with another file"),
        ({"operation": "promote"}, "operation must be one of enable, "),
    ],
)
async def test_a_journal_of_another_run_is_refused_for_good(
    coordinator: Coordinator, change: dict[str, str], why: str
) -> None:
    run = await coordinator.plan()
    await coordinator.do(coordinator.records.record_chunk, run, lines(0, 1), result("enabled"))
    if "mark" in change:
        other = structs.replace(run, source=structs.replace(run.source, **change))
    else:
        other = structs.replace(run, **change)
    with pytest.raises(ApplicationError, match=why) as caught:
        await coordinator.do(coordinator.records.left, other)
    assert caught.value.non_retryable
    # The run whose journal was open has ended, as Temporal has one run for a tenant.
    assert [run.how for run in read(coordinator.journal).runs] == ["interrupted"]


async def test_the_journal_of_one_machine_is_not_a_fleet_s(
    coordinator: Coordinator, sandbox: Sandbox, session: MonoCloudSession
) -> None:
    await session.bulk_enable(sandbox.user_ids(), journal=coordinator.journal)
    run = structs.replace(await coordinator.plan(), tenant=sandbox.url)
    before = list(dump(coordinator.journal))
    with pytest.raises(ApplicationError, match="is of a run on one machine"):
        await coordinator.do(coordinator.records.left, run)
    assert list(dump(coordinator.journal)) == before


async def test_a_journal_that_another_coordinator_holds_is_waited_for(
    coordinator: Coordinator,
) -> None:
    folder = coordinator.ids.parent
    run, other = await coordinator.plan(), _Records(folder, Sources([folder]))
    await coordinator.do(coordinator.records.left, run)
    with pytest.raises(JournalInUseError):  # Temporal tries again
        await coordinator.do(other.left, run)
    await coordinator.records.end()
    assert (await coordinator.do(other.left, run)).gaps == [lines(0, 10)]
    await other.end()


async def test_a_journal_that_cannot_be_written_names_the_machine(
    coordinator: Coordinator,
) -> None:
    coordinator.journal.mkdir()
    with pytest.raises(ApplicationError, match=r"cannot write the journal .* on .*name another"):
        await coordinator.do(coordinator.records.left, await coordinator.plan())


@pytest.mark.parametrize("name", ["", "..", ".profile", "up/ids.journal", "../j", "/nowhere/j"])
async def test_a_journal_outside_the_coordinator_s_folder_is_refused(
    coordinator: Coordinator, name: str
) -> None:
    with pytest.raises(ApplicationError, match="is not the name of a journal"):
        await coordinator.do(coordinator.records.left, await coordinator.plan(journal=name))


async def test_a_coordinator_that_ends_leaves_its_run_open_for_the_next_one(
    coordinator: Coordinator,
) -> None:
    run = await coordinator.plan()
    await coordinator.do(coordinator.records.record_chunk, run, lines(0, 1), result("enabled"))
    await coordinator.records.end()
    with closing(sqlite3.connect(coordinator.journal)) as sql:
        assert sql.execute("SELECT ended, how FROM sittings").fetchall() == [(None, None)]


async def test_a_slow_step_sends_heartbeats(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monocloud_async.fleet.coordinator.BEAT", 0.001)
    beats = 0

    def beat(*_details: object) -> None:
        nonlocal beats
        beats += 1

    coordinator.environment.on_heartbeat = beat
    opened = coordinator.records._open

    async def slowly(run: Plan) -> Any:
        while beats < 3:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.001)
        return await opened(run)

    monkeypatch.setattr(coordinator.records, "_open", slowly)
    await coordinator.do(coordinator.records.left, await coordinator.plan())
    assert beats >= 3
