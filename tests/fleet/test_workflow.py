"""A fleet of real processes with a real Temporal, with faults of machines and of operators.

How well it keeps its pace meanwhile is measured by `benchmarks/fleet.py`, which has the long
faults too; here it is counted who was enabled, who was asked for twice, and what is recorded.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fleets import Fleet, Temporal, fleet, temporal
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from monocloud_async.fleet import FleetError, FleetRun, run_coordinator, workflow
from monocloud_async.fleet.temporal import converter, workflow_id

pytestmark = pytest.mark.process

USERS = 1500
RATE = 300.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    with temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def parts(tmp_path: Path, server: Temporal) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, server, USERS, latency=0.02) as parts:
        yield parts


async def finished(parts: Fleet, run: FleetRun) -> int:
    """Check that every user is enabled and recorded once; return the number of repeated calls."""
    report = await asyncio.wait_for(run.result(), 90)
    assert (report.how, report.gaps) == ("finished", [])
    assert report.enabled == USERS
    assert parts.sandbox.stats().users == {"enabled": USERS, "disabled": 0}
    assert parts.recorded() == {"enabled": USERS}
    return parts.sandbox.repeats()


async def test_a_worker_that_is_killed_costs_a_second_of_its_lanes(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(400)
    (await parts.busy_worker()).kill()
    assert 0 < await finished(parts, run) < RATE * 1.5


async def test_a_worker_that_is_stopped_hands_back_what_it_has(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(400)
    leaving = await parts.busy_worker()
    leaving.send(signal.SIGTERM)
    assert await finished(parts, run) == 0
    assert leaving.ended() == 0


async def test_a_run_is_paused_sped_up_and_resumed(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(300)
    async with asyncio.timeout(60):
        while True:
            progress = await run.progress()
            assert progress.enabled + progress.under_way <= USERS
            # A chunk that ended is with nobody until its worker has the next one.
            chunks = sum(member.chunks for member in progress.members)
            if chunks == 6 and RATE * 0.5 < progress.rate < RATE * 1.5:
                break
    await run.pause("a deployment")
    progress = await parts.until_paused(run)
    asked = len(parts.sandbox.asked)
    assert progress.paused == "a deployment"
    assert progress.enabled == asked == parts.recorded()["enabled"]
    await asyncio.sleep(1)
    assert len(parts.sandbox.asked) == asked < USERS
    await run.set_rate(700)
    await run.resume()
    assert await finished(parts, run) == 0
    assert (await run.progress()).max_rate == 700


async def test_what_a_cancelled_run_left_the_next_one_does(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(500)
    await run.cancel()
    ending, told = asyncio.create_task(run.result()), [0]
    while not ending.done():
        told.append((await run.progress()).enabled)
    report = await ending
    assert told == sorted(told)
    assert (await run.progress()).enabled == report.enabled >= told[-1]
    assert report.how == "cancelled"
    assert report.gaps
    assert report.enabled == len(parts.sandbox.asked) == parts.recorded()["enabled"] < USERS
    again = await parts.start(RATE)
    assert await finished(parts, again) == 0


async def test_a_coordinator_that_dies_is_followed_by_another_one(parts: Fleet) -> None:
    first = parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(300)
    first.kill()
    with pytest.raises(FleetError, match="no coordinator answers for http"):
        await run.progress()
    parts.part("coordinator")
    assert await finished(parts, run) == 0


async def test_a_cancel_that_comes_with_results_forgets_none_of_them(parts: Fleet) -> None:
    first = parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(300)
    first.kill()
    await run.cancel()
    asked = 0
    while asked < len(parts.sandbox.asked):  # to about the end of the chunks that are out
        asked = len(parts.sandbox.asked)
        await asyncio.sleep(1)
    parts.part("coordinator")
    report = await asyncio.wait_for(run.result(), 60)
    assert (report.how, report.enabled) == ("cancelled", len(parts.sandbox.asked))
    assert parts.recorded() == {"enabled": report.enabled}


async def test_a_pause_after_a_kill_forgets_a_second_and_no_more(parts: Fleet) -> None:
    parts.part("coordinator")
    worker = parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(800)
    worker.kill()
    await run.pause()
    await parts.until_paused(run)
    parts.part("worker")
    await run.resume()
    assert 0 < await finished(parts, run) < RATE * 1.5


async def test_a_file_that_changed_pauses_the_run_with_who_was_done_recorded(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(100)
    content = parts.ids.read_text()
    parts.ids.write_text(content + "eve\n")
    progress = await parts.until_paused(run)
    assert "changed since the run was planned" in (progress.paused or "")
    assert progress.enabled == len(parts.sandbox.asked) == parts.recorded()["enabled"]
    parts.ids.write_text(content)
    await run.resume()
    assert await finished(parts, run) == 0


async def test_a_touched_file_is_nothing(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(100)
    parts.ids.touch()
    assert await finished(parts, run) == 0


async def test_two_coordinators_with_two_folders_pause_the_run(
    parts: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(100)
    await run.set_rate(RATE / 10)  # it must not end before the other one has begun
    other = parts.part("coordinator", folder=tmp_path_factory.mktemp("other"))
    paused = (await parts.until_pausing(run)).paused or ""
    assert f"coordinator {other.pid}@" in paused
    assert "does not have the journal of this run" in paused
    other.kill()
    await run.set_rate(RATE)
    await run.resume()
    assert await finished(parts, run) == 0


async def test_a_worker_with_an_old_key_leaves_and_the_others_go_on(parts: Fleet) -> None:
    parts.part("coordinator")
    await parts.until_hosted()
    bad = parts.part("worker", key="old-key")
    run = await parts.start(RATE)
    progress = await parts.until_away(run)
    ((name, why),) = progress.away.items()
    assert {member.role for member in progress.members} == {"worker", "coordinator"}
    assert name in {member.name for member in progress.members}
    assert name.startswith(f"{bad.pid}@")
    assert "401" in why
    parts.part("worker")
    await finished(parts, run)
    assert parts.sandbox.stats().by_status["401"] <= 6  # one for each lane
    assert "old-key" not in bad.said()


async def test_a_user_who_is_forbidden_is_no_news_of_a_key_that_is_good(parts: Fleet) -> None:
    parts.part("coordinator")
    worker = parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(300)
    await run.pause()
    await parts.until_paused(run)
    for user_id in parts.sandbox.user_ids():
        if parts.sandbox.is_disabled(user_id):
            parts.sandbox.script(user_id, 403)
            break
    worker.kill()  # the next worker does not know the key yet
    parts.part("worker")
    await run.resume()
    report = await asyncio.wait_for(run.result(), 90)
    assert (report.enabled, report.failed) == (USERS - 1, 1)


async def test_a_key_that_is_refused_pauses_the_run(parts: Fleet) -> None:
    parts.part("coordinator")
    worker = parts.part("worker")
    run = await parts.start(RATE)
    await parts.until(300)
    key, parts.sandbox.api_key = parts.sandbox.api_key, "another-key"
    progress = await parts.until_paused(run)
    assert "401" in (progress.paused or "")
    refused = parts.sandbox.stats().by_status["401"]
    assert refused < RATE * 0.1
    parts.sandbox.api_key = key
    await run.resume()
    assert await finished(parts, run) == refused
    assert key not in worker.said()


@pytest.mark.parametrize("told", [None, RATE])
async def test_a_tenant_that_grants_less_than_was_asked_for(
    tmp_path: Path, server: Temporal, told: float | None
) -> None:
    async with fleet(tmp_path, server, USERS, rate_limit=200, burst=50) as parts:
        parts.part("coordinator")
        parts.part("worker")
        parts.part("worker")
        run = await parts.start(told)
        repeats = await finished(parts, run)
        assert repeats == parts.sandbox.stats().by_status["429"] > 0


async def test_users_who_fail_are_told_and_do_not_hold_up_the_run(parts: Fleet) -> None:
    gone, flaky = parts.sandbox.user_ids()[700], parts.sandbox.user_ids()[900]
    parts.sandbox.script(gone, "422:identity")
    parts.sandbox.script(flaky, 503)
    with parts.ids.open("a") as ids:
        ids.write("nobody\nno good\tid\n")
    parts.part("coordinator")
    parts.part("worker")
    run = await parts.start(900)
    report = await run.result()
    assert (report.enabled, report.failed, report.bad_lines) == (USERS - 1, 2, 1)
    assert report.retries == 1
    told = {(each.user_id, each.position, each.status) for each in report.failures}
    assert told == {(gone, 700, 422), ("nobody", USERS, 404)}
    assert await run.failures() == report.failures


async def test_a_fleet_disables_and_does_the_rest_of_its_journal(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    first = await parts.start(RATE)
    assert await finished(parts, first) == 0
    with pytest.raises(FleetError, match=r"is of POST .*/enable, .* of POST .*/disable"):
        await (await parts.start(RATE, operation="disable")).result()
    parts.journal.rename(parts.folder / "enabled.journal")
    run = await parts.start(RATE, operation="disable")
    await parts.until(USERS + 300)
    await run.cancel()
    report = await run.result()
    assert (report.operation, report.enabled) == ("disable", 0)
    assert 0 < report.disabled == parts.recorded()["disabled"] < USERS
    report = await (await parts.start(RATE, operation="disable")).result()
    assert (report.disabled, report.failed, report.gaps) == (USERS, 0, [])
    assert parts.sandbox.stats().users == {"enabled": 0, "disabled": USERS}
    assert parts.recorded() == {"disabled": USERS}


async def test_a_journal_of_something_else_ends_the_run(parts: Fleet) -> None:
    parts.journal.write_text("somebody's notes\n")
    parts.part("coordinator")
    run = await parts.start(RATE)
    with pytest.raises(FleetError, match="is not a journal of this program"):
        await run.result()
    assert parts.journal.read_text() == "somebody's notes\n"


async def test_a_failing_workflow_tells_its_cause(
    parts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("steps of another version")

    monkeypatch.chdir(parts.folder)
    monkeypatch.setattr(workflow, "next_chunk", failing)
    client = await parts.server.client()
    coordinator = asyncio.create_task(run_coordinator(parts.sandbox.url, client=client))
    run = await parts.start(RATE)
    with pytest.raises(FleetError, match=r"cannot go on, .*: steps of another version"):
        while True:
            await run.progress()
            await asyncio.sleep(0.5)
    with pytest.raises(FleetError, match="cannot go on"):  # the order has no effect
        await run.pause()
    coordinator.cancel()
    await asyncio.gather(coordinator, return_exceptions=True)


async def test_a_long_run_goes_on_in_a_new_history(
    parts: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts.folder)
    monkeypatch.setattr(workflow, "_MAX_EVENTS", 60)
    with parts.ids.open("a") as ids:
        ids.writelines(f"nobody{number}\n" for number in range(USERS))
    client = await parts.server.client()
    coordinator = asyncio.create_task(run_coordinator(parts.sandbox.url, client=client))
    parts.part("worker")
    run = await parts.start(900)
    report = await asyncio.wait_for(run.result(), 90)
    assert (report.enabled, report.failed, report.gaps) == (USERS, USERS, [])
    assert parts.recorded() == {"enabled": USERS, "failed": USERS}
    assert parts.sandbox.repeats() == 0
    assert (await run.progress()).kinds == {"failed 404 NotFoundError": USERS}
    handle = client.get_workflow_handle(workflow_id(parts.sandbox.url))
    history = await handle.fetch_history()
    started = history.events[0].workflow_execution_started_event_attributes
    assert started.continued_execution_run_id
    coordinator.cancel()
    await asyncio.gather(coordinator, return_exceptions=True)


@pytest.mark.parametrize(
    "name", ["fleet_history", "fleet_history_records_at_once", "fleet_history_one_rate"]
)
async def test_a_run_that_was_begun_with_these_steps_goes_on(name: str) -> None:
    """The workflow still takes the recorded steps; `benchmarks/fleet_history.py` records them."""
    path = Path(__file__).parents[1] / "samples" / f"{name}.json"
    text = path.read_text(encoding="utf-8")
    replayer = Replayer(
        workflows=[workflow.RunWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        data_converter=converter(),
    )
    history = WorkflowHistory.from_json("recorded", text)
    await replayer.replay_workflow(history)
    assert len(history.events) > 50
    changed = text.replace('"enable_chunk"', '"something_else"')
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(WorkflowHistory.from_json("changed", changed))
