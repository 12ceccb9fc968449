"""The activities of the coordinator: what is left, what is recorded once, and the report."""

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import journals
import pytest
from msgspec import structs
from plans import plan
from recorded import told
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from monocloud_async import MonoCloudSession, NotFoundError, Outcome, ProblemDetails
from monocloud_async.fleet import coordinator as coordinator_module
from monocloud_async.fleet.coordinator import Pause, _Records
from monocloud_async.fleet.id_file import IdFile, digest_of, inspect_file
from monocloud_async.fleet.journal import FleetJournal
from monocloud_async.fleet.messages import Chunk, ChunkResult, FleetReport, Plan, Span, new_state
from monocloud_async.fleet.sources import Sources
from monocloud_async.journal.lock import JournalInUseError, LockState, lock_state
from monocloud_async.journal.paths import lock_path
from monocloud_async.journal.store import Rows
from monocloud_async.outcome import Status
from monocloud_async.report.figures import read
from monocloud_async.report.rows import everybody
from monocloud_async.sandbox import Sandbox

T = TypeVar("T")

IDS = [f"user{number}" for number in range(10)]
LINE = 6  # bytes of each


async def no_pause(_workflow: str, _run: str, why: str) -> None:
    raise AssertionError(why)


class Coordinator:
    """The activities, with a file of ten ids, and a journal next to it."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "ids.journal"
        self.ids = folder / "ids.txt"
        self.ids.write_text("".join(f"{user_id}\n" for user_id in IDS))
        self.records = _Records(folder, Sources([folder]), no_pause)
        self.environment = ActivityEnvironment()

    async def plan(self, **changes: Any) -> Plan:
        source = await inspect_file(str(self.ids), None, None)
        options = {"journal": str(self.journal), **changes}
        return structs.replace(plan(**options), source=source)

    async def do(self, activity: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run an activity, which Temporal has not tried before."""
        info = self.environment.info
        self.environment.info = replace(info, activity_id=f"{info.activity_id}+")
        return await self.again(activity, *args)

    async def again(self, activity: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run an activity as its next attempt: Temporal has not heard of the end of the last."""
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
        first = await coordinator.do(record, run, lines(2, 4), result("unknown", "enabled"))
        assert [(each.user_id, each.position, each.outcome) for each in first] == [
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


async def test_pauses_of_chunks_that_were_out_together_are_not_added(
    coordinator: Coordinator,
) -> None:
    run, records = await coordinator.plan(), coordinator.records

    async def begin(*spans: Span) -> None:
        for span in spans:
            await coordinator.do(records.begin_chunk, run, span)

    async def record(span: Span, paused: float, *, done: bool = True) -> float:
        users = result("enabled", "enabled", done=done, requests=1, paused=paused)
        await coordinator.do(records.record_result, run, span, users)
        with closing(sqlite3.connect(coordinator.journal)) as sql:
            (most,) = sql.execute("SELECT max(paused) / 1000.0 FROM samples").fetchone()
            return float(most)

    first, second, third, fourth = lines(0, 2), lines(2, 4), lines(4, 6), lines(6, 8)
    await begin(first, second)
    assert await record(first, 2.0) == 2.0
    await begin(third)
    assert await record(second, 3.0, done=False) == 3.0  # it saw the first pause, and another one
    await begin(second, fourth)
    assert await record(third, 1.5) == 3.5
    assert await record(fourth, 1.0) == 4.0
    assert await record(second, 1.0) == 4.0


async def test_a_chunk_is_begun_without_a_second_look_at_those_that_are_out(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, records = await coordinator.plan(), coordinator.records
    first = await coordinator.do(records.begin_chunk, run, lines(0, 2))
    await coordinator.do(
        records.record_result, run, first.span, result("enabled", "enabled", digest="")
    )
    parsed: list[bytes] = []
    parse = IdFile.parse

    def spy(source: IdFile, content: bytes) -> Any:
        parsed.append(content)
        return parse(source, content)

    monkeypatch.setattr(IdFile, "parse", spy)
    for begin in (2, 4, 7):  # a gap is before the last one
        await coordinator.do(records.begin_chunk, run, lines(begin, begin + 2))
    assert b"".join(parsed).decode().split() == [IDS[n] for n in (2, 3, 4, 5, 6, 7, 8)]
    with closing(sqlite3.connect(coordinator.journal)) as sql:
        positions = sql.execute("SELECT position FROM handed_out ORDER BY start").fetchall()
    assert positions == [(2,), (4,), (7,)]


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
        ({"digest": "changed"}, "was started with another file"),
        ({"operation": "promote"}, "operation must be one of enable, "),
    ],
)
async def test_a_journal_of_another_run_is_refused_for_good(
    coordinator: Coordinator, change: dict[str, str], why: str
) -> None:
    run = await coordinator.plan()
    await coordinator.do(coordinator.records.record_chunk, run, lines(0, 1), result("enabled"))
    if "digest" in change:
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


async def test_a_result_is_recorded_whatever_becomes_of_the_file(coordinator: Coordinator) -> None:
    run, records = await coordinator.plan(), coordinator.records
    span = lines(2, 4)
    chunk = await coordinator.do(records.begin_chunk, run, span)
    assert chunk.so_far.digest == digest_of(b"user2\nuser3\n")
    coordinator.ids.unlink()
    for _ in range(2):
        told = await coordinator.do(records.record_result, run, span, result("enabled", "failed"))
        assert [(each.user_id, each.position) for each in told] == [("user3", 3)]
    assert [row[:3] for row in journals.rows(coordinator.journal)] == [
        (2, "user2", "enabled"),
        (3, "user3", "failed"),
    ]
    left = await coordinator.do(records.left, run)
    assert (left.gaps, left.unfinished) == ([lines(0, 2), lines(4, 10)], [])
    assert left.kinds == {"failed 404 NotFoundError": 1}


async def test_a_partial_result_is_recorded_at_once_and_its_users_are_not_given_out_again(
    coordinator: Coordinator,
) -> None:
    run, records = await coordinator.plan(), coordinator.records
    span = lines(0, 10)
    await coordinator.do(records.begin_chunk, run, span)
    part = result("enabled", "failed", done=False, requests=5)
    for _ in range(2):  # a result may arrive twice
        await coordinator.do(records.record_result, run, span, part)
    assert journals.outcomes(coordinator.journal) == {"enabled": 1, "failed": 1}
    again = await coordinator.do(records.begin_chunk, run, span)
    assert again.so_far.rows.positions() == {0, 1}
    left = await coordinator.do(records.left, run)
    assert (left.gaps, left.unfinished) == ([], [Chunk(span=span)])
    assert (left.users_done, left.failed) == (1, 1)
    whole = result(*["enabled"] * 10)  # type: ignore[arg-type]  # a list of one word
    await coordinator.do(records.record_result, run, span, whole)
    assert journals.outcomes(coordinator.journal) == {"enabled": 9, "failed": 1}
    assert (await coordinator.do(records.left, run)).unfinished == []


async def test_what_an_earlier_version_kept_as_begun_goes_on(coordinator: Coordinator) -> None:
    run, records = await coordinator.plan(), coordinator.records
    part = result("enabled", "failed", done=False)
    await coordinator.do(records.record_chunk, run, lines(0, 10), part)
    chunk = await coordinator.do(records.begin_chunk, run, lines(0, 10))
    assert chunk.so_far.rows.positions() == {0, 1}
    assert (await coordinator.do(records.left, run)).unfinished == [Chunk(span=lines(0, 10))]


@pytest.mark.parametrize("who", ["the same coordinator", "its successor"])
@pytest.mark.parametrize(
    "part",
    [
        result("enabled", "failed", done=False, requests=3),
        result(done=False, requests=3, throttled=1),  # nobody has an outcome
        result(*["enabled"] * 4, requests=3),  # type: ignore[arg-type]  # a list of one word
    ],
)
@pytest.mark.parametrize("step", ["record_result", "record_chunk"])
async def test_the_requests_of_a_result_count_once_also_if_it_arrives_again(
    coordinator: Coordinator, step: str, part: ChunkResult, who: str
) -> None:
    run, span = await coordinator.plan(), lines(0, 4)
    if step == "record_result":
        await coordinator.do(coordinator.records.begin_chunk, run, span)
    await coordinator.do(getattr(coordinator.records, step), run, span, part)
    if who == "its successor":
        await coordinator.records._let_go(None)  # as after a kill, which leaves no end
        folder = coordinator.ids.parent
        coordinator.records = _Records(folder, Sources([folder]), no_pause)
    await coordinator.again(getattr(coordinator.records, step), run, span, part)
    assert sum(run.requests for run in read(coordinator.journal).runs) == 3
    if not part.done:  # the same once more is another result
        await coordinator.do(getattr(coordinator.records, step), run, span, part)
        assert sum(run.requests for run in read(coordinator.journal).runs) == 6


async def test_the_requests_of_users_who_were_asked_long_before_count(
    coordinator: Coordinator,
) -> None:
    run, records = await coordinator.plan(), coordinator.records
    await coordinator.do(records.begin_chunk, run, lines(0, 4))
    others = [Outcome(user_id="", position=place, status="enabled", attempts=2) for place in (2, 3)]
    rest = ChunkResult(rows=Rows.of(others, 0), done=True, requests=4)
    await coordinator.do(records.record_result, run, lines(0, 4), rest)
    assert [run.requests for run in read(coordinator.journal).runs] == [4]


async def test_a_result_that_could_not_be_written_counts_once(coordinator: Coordinator) -> None:
    run, records = await coordinator.plan(), coordinator.records
    span, refused = lines(0, 4), result(done=False, requests=3, throttled=1)
    await coordinator.do(records.begin_chunk, run, span)
    with closing(sqlite3.connect(coordinator.journal, isolation_level=None)) as sql:
        sql.execute(
            "CREATE TRIGGER full BEFORE INSERT ON samples BEGIN SELECT raise(ABORT, 'full'); END"
        )
        for _ in range(2):
            with pytest.raises(ApplicationError, match=r"cannot write the journal .*full"):
                await coordinator.do(records.record_result, run, span, refused)
        sql.execute("DROP TRIGGER full")
    await coordinator.again(records.record_result, run, span, refused)
    assert [run.requests for run in read(coordinator.journal).runs] == [3]


async def test_a_file_that_changed_is_refused_before_a_worker_gets_the_chunk(
    coordinator: Coordinator,
) -> None:
    run, records = await coordinator.plan(), coordinator.records
    os.utime(coordinator.ids, ns=(1, 1))
    await coordinator.do(records.begin_chunk, run, lines(0, 2))  # another date is no change
    coordinator.ids.write_text(coordinator.ids.read_text().replace("user9", "other"))
    with pytest.raises(ApplicationError, match="changed since the run was planned") as caught:
        await coordinator.do(records.begin_chunk, run, lines(2, 4))
    assert caught.value.non_retryable


@pytest.mark.parametrize("there", ["none", "new", "other file"])
async def test_without_the_journal_of_the_run_it_is_paused_and_nothing_is_made(
    coordinator: Coordinator, tmp_path: Path, there: str
) -> None:
    plan = await coordinator.plan(journal="ids.journal")
    left = await coordinator.do(coordinator.records.left, plan)
    assert left.journal_id
    run = structs.replace(plan, journal_id=left.journal_id)
    paused: list[str] = []

    async def pause(_workflow: str, _run: str, why: str) -> None:
        paused.append(why)

    folder = tmp_path / "other"
    folder.mkdir()
    other = _Records(folder, Sources([tmp_path]), pause)
    if there == "new":
        await coordinator.do(other.left, plan)
        await other.end()
        other = _Records(folder, Sources([tmp_path]), pause)
    elif there == "other file":
        (folder / "ids.journal").write_text("notes")
    before = sorted(folder.iterdir())
    steps: list[Any] = [
        (other.left, run),
        (other.begin_chunk, run, lines(0, 1)),
        (other.record_result, run, lines(0, 1), result("enabled")),
        (other.close_journal, "cancelled", new_state(run)),
    ]
    for step in steps:
        with pytest.raises(ApplicationError, match="does not have the journal of this run") as told:
            await coordinator.do(*step)
        assert not told.value.non_retryable  # another coordinator may have it
    assert len(paused) == len(steps)
    assert "end that coordinator, or start it again in the folder" in paused[0]
    assert str(os.getpid()) in paused[0]
    await other.end()
    assert sorted(folder.iterdir()) == before
    assert await coordinator.do(coordinator.records.left, run) == left


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
async def test_a_journal_that_is_gone_under_its_coordinator_pauses_the_run_until_it_is_back(
    coordinator: Coordinator, tmp_path: Path, what: str
) -> None:
    paused: list[str] = []

    async def pause(_workflow: str, _run: str, why: str) -> None:
        paused.append(why)

    records = coordinator.records = _Records(tmp_path, Sources([tmp_path]), pause)
    plan = await coordinator.plan(journal="ids.journal")
    left = await coordinator.do(records.left, plan)
    run = structs.replace(plan, journal_id=left.journal_id)
    chunk = await coordinator.do(records.begin_chunk, run, lines(0, 1))
    kept = coordinator.journal.rename(tmp_path / "kept")
    if what == "replaced":
        coordinator.journal.write_text("")
    elif what == "deleted":
        kept.unlink()
    for _ in range(2):
        with pytest.raises(ApplicationError, match="does not have the journal of this run"):
            await coordinator.do(records.record_result, run, chunk.span, result("enabled"))
    assert len(paused) == 2
    assert ("another file" if what == "replaced" else "moved or deleted") in paused[0]
    if what != "deleted":
        kept.rename(coordinator.journal)
        await coordinator.do(records.record_result, run, chunk.span, result("enabled"))
        assert (await coordinator.do(records.left, run)).users_done == 1


async def test_a_copy_of_the_journal_pauses_the_run_as_soon_as_it_is_older(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    paused: list[str] = []

    async def pause(_workflow: str, _run: str, why: str) -> None:
        paused.append(why)

    plan = await coordinator.plan(journal="ids.journal")
    left = await coordinator.do(coordinator.records.left, plan)
    run = structs.replace(plan, journal_id=left.journal_id)
    await coordinator.records.end()
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(coordinator.journal, folder)
    records = coordinator.records = _Records(tmp_path, Sources([tmp_path]), pause)
    copy = _Records(folder, Sources([tmp_path]), pause)
    assert await coordinator.do(copy.left, run) == left
    chunk = await coordinator.do(records.begin_chunk, run, lines(0, 2))
    done = result("enabled", "enabled")
    with pytest.raises(ApplicationError, match="a copy of it that does not know this chunk"):
        await coordinator.do(copy.record_result, run, chunk.span, done)
    await coordinator.do(records.record_result, run, chunk.span, done)
    later = structs.replace(run, recorded=2 * LINE)
    with pytest.raises(ApplicationError, match="an older copy of it, with 0 of 12 bytes"):
        await coordinator.do(copy.begin_chunk, later, lines(2, 4))
    assert len(paused) == 2
    assert (await coordinator.do(records.left, later)).users_done == 2
    report = await coordinator.do(copy.close_journal, "cancelled", new_state(run))
    assert report.enabled == 0  # the run can be cancelled, and started again with this journal
    await copy.end()


async def test_a_full_disk_is_told_with_the_machine_and_what_to_do(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    plan = await coordinator.plan()
    monkeypatch.setattr(FleetJournal, "hand_out", full)
    with pytest.raises(ApplicationError) as told:
        await coordinator.do(coordinator.records.begin_chunk, plan, lines(0, 1))
    assert f"{os.getpid()}@" in told.value.message
    assert f"cannot write the journal {coordinator.journal}: database or disk is full" in str(told)
    assert "when that is mended, the run goes on by itself" in str(told)
    assert not told.value.non_retryable


async def test_the_identity_of_a_journal_lasts(coordinator: Coordinator) -> None:
    plan = await coordinator.plan()
    first = await coordinator.do(coordinator.records.left, plan)
    await coordinator.records.end()
    folder = coordinator.ids.parent
    successor = _Records(folder, Sources([folder]), no_pause)
    run = structs.replace(plan, journal_id=first.journal_id)
    assert await coordinator.do(successor.left, run) == first
    await successor.end()


async def test_a_touched_file_is_the_file_of_its_journal(coordinator: Coordinator) -> None:
    await coordinator.do(coordinator.records.left, await coordinator.plan())
    os.utime(coordinator.ids, ns=(1, 1))
    again = await coordinator.plan()
    assert (await coordinator.do(coordinator.records.left, again)).gaps == [lines(0, 10)]


async def test_a_journal_that_another_coordinator_holds_is_waited_for(
    coordinator: Coordinator,
) -> None:
    folder = coordinator.ids.parent
    run, other = await coordinator.plan(), _Records(folder, Sources([folder]), no_pause)
    await coordinator.do(coordinator.records.left, run)
    with pytest.raises(JournalInUseError):  # Temporal tries again
        await coordinator.do(other.left, run)
    await coordinator.records.end()
    assert (await coordinator.do(other.left, run)).gaps == [lines(0, 10)]
    await other.end()


@pytest.mark.parametrize("step", ["open", "close"])
async def test_a_step_that_is_cancelled_leaves_no_journal_locked(
    coordinator: Coordinator, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, thread = await coordinator.plan(), coordinator.records._thread
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    if step == "open":
        opened = FleetJournal.open

        def open_slowly(journal: FleetJournal, now: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(10)
            opened(journal, now)

        monkeypatch.setattr(FleetJournal, "open", open_slowly)
        task: asyncio.Task[Any] = asyncio.create_task(coordinator.do(coordinator.records.left, run))
        await begun.wait()
    else:
        await coordinator.do(coordinator.records.left, run)
        thread.submit(go_on.wait, 10)
        task = asyncio.create_task(coordinator.records.end())
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    if step == "open":
        await coordinator.do(coordinator.records.left, run)
        await coordinator.records.end()
    thread.shutdown()
    assert lock_state(lock_path(coordinator.journal)) is LockState.MISSING


@pytest.mark.parametrize("what", ["the disk", "the file"])
async def test_a_successor_that_cannot_use_the_journal_of_a_run_does_not_end_the_run(
    coordinator: Coordinator, what: str
) -> None:
    run, before, span = await coordinator.plan(), coordinator.records, lines(0, 2)
    left = await coordinator.do(before.left, run)
    run = structs.replace(run, journal_id=left.journal_id)
    await coordinator.do(before.begin_chunk, run, span)
    await before._let_go(None)  # as after a kill
    pauses, folder = list[str](), coordinator.ids.parent

    async def pause(_workflow: str, _run: str, why: str) -> None:
        pauses.append(why)

    coordinator.records = records = _Records(folder, Sources([folder]), pause)
    other = folder / "other"
    if what == "the disk":
        other = lock_path(coordinator.journal)
        other.mkdir()  # as a disk that is full, or may only be read
        why = "cannot write the journal .* the run goes on by itself"
    else:
        os.link(coordinator.journal, other)
        why = "it cannot be used: .* has another name as well .* and then resume the run"
    users = result("enabled", "failed")
    with pytest.raises(ApplicationError, match=why) as caught:
        await coordinator.do(records.record_result, run, span, users)
    assert not caught.value.non_retryable
    assert pauses == ([] if what == "the disk" else [caught.value.message])
    other.rmdir() if what == "the disk" else other.unlink()
    await coordinator.again(records.record_result, run, span, users)
    assert journals.outcomes(coordinator.journal) == {"enabled": 1, "failed": 1}


async def test_a_journal_that_cannot_be_written_names_the_machine(
    coordinator: Coordinator,
) -> None:
    coordinator.journal.mkdir()
    with pytest.raises(ApplicationError, match=r"cannot write the journal .* on .*name another"):
        await coordinator.do(coordinator.records.left, await coordinator.plan())


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".profile",
        "up/ids.journal",
        "../j",
        "/nowhere/j",
        "a\nb",
        "a\0",
    ],
)
async def test_a_journal_outside_the_coordinator_s_folder_is_refused(
    coordinator: Coordinator, name: str
) -> None:
    with pytest.raises(ApplicationError, match="is not the name of a journal"):
        await coordinator.do(coordinator.records.left, await coordinator.plan(journal=name))


async def test_a_coordinator_that_ends_is_not_told_as_killed_and_its_run_goes_on_with_another_one(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    run, records = await coordinator.plan(), coordinator.records
    await coordinator.do(records.begin_chunk, run, lines(0, 1))
    await coordinator.do(records.record_result, run, lines(0, 1), result("enabled"))
    await records.end()
    said = " ".join(told(capsys, coordinator.journal).split())
    assert "Not finished (coordinator ended): " in said
    assert "go on with: `fleet coordinator` in the folder of the journal" in said
    assert "killed" not in said
    (*_, last) = everybody(coordinator.journal, IDS)
    assert last.message.endswith("or was cut off when it had just come to it")  # by a worker
    folder = coordinator.ids.parent
    coordinator.records = successor = _Records(folder, Sources([folder]), no_pause)
    await coordinator.do(successor.close_journal, "cancelled", new_state(run))
    said = " ".join(told(capsys, coordinator.journal).split())
    assert "Not finished (cancelled): " in said
    assert "go on with: the same `fleet start`" in said
    (*_, last) = everybody(coordinator.journal, IDS)
    assert last.message == "the run has not come to this user"


async def test_a_slow_step_sends_heartbeats(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monocloud_async.fleet.heartbeats.BEAT", 0.001)
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


async def test_a_pause_of_a_run_that_cannot_answer_is_left_to_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Temporal:
        def get_workflow_handle_for(self, *_: object, **_options: object) -> "Temporal":
            return self

        async def query(self, *_: object, **_options: object) -> None:
            raise WorkflowQueryFailedError("no such query")

    pauses: list[Pause] = []

    class Records(_Records):
        def __init__(self, folder: Path, sources: Sources, pause: Pause) -> None:
            super().__init__(folder, sources, pause)
            pauses.append(pause)

    async def pause(_worker: object) -> None:
        await pauses[0]("workflow", "run", "why")

    client: Any = Temporal()
    for name, value in (
        ("_Records", Records),
        ("Worker", lambda *_args, **_options: None),
        ("answering", lambda *_args: nullcontext()),
        ("with_message_codec", lambda client: client),
        ("work", pause),
    ):
        monkeypatch.setattr(coordinator_module, name, value)
    await coordinator_module.run_coordinator("https://t.example", client=client)
