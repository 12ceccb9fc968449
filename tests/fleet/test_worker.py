"""One chunk of a fleet's run: what is done, what is handed back, and why the run pauses."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from plans import plan
from temporalio.activity import ActivityCancellationDetails
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from monocloud_async import MonoCloudSession, RetryPolicy
from monocloud_async.fleet import FleetError, heartbeats, worker
from monocloud_async.fleet.codec import PayloadRefusedError
from monocloud_async.fleet.follower import Follower
from monocloud_async.fleet.id_file import digest_of, inspect_file
from monocloud_async.fleet.messages import Chunk, ChunkResult, Pace, Plan, Progress, Span
from monocloud_async.fleet.sources import Sources
from monocloud_async.fleet.temporal import member_name
from monocloud_async.journal.store import Rows
from monocloud_async.sandbox import Sandbox

RATE = 1000.0
ONCE = RetryPolicy(attempts=1)


class SilentNews:
    """A workflow that does not answer."""

    def __init__(self, session: MonoCloudSession) -> None:
        self.follower = Follower(session.pace, "me", lambda _: None, lambda: 0.0)

    async def first(self) -> None:
        """Give up at once."""


class Work:
    """A worker with a file of ids, and all of the file as one chunk."""

    def __init__(self, sandbox: Sandbox, session: MonoCloudSession, path: Path) -> None:
        self.sandbox = sandbox
        self.path = path
        self.told: list[ChunkResult] = []  # the heartbeats with results
        self.beats = 0  # all of them
        self.environment = ActivityEnvironment()
        self.environment.on_heartbeat = self._heartbeat
        news: Any = SilentNews(session)
        self.activities = worker._Activities(session, Sources([path.parent]), news)

    def _heartbeat(self, *results: ChunkResult) -> None:
        self.beats += 1
        for result in results:
            self._tell(result)

    def _tell(self, result: ChunkResult) -> None:
        self.told.append(msgspec.convert(msgspec.to_builtins(result), ChunkResult))

    def write(self, *ids: str) -> None:
        self.path.write_text("".join(f"{user_id}\n" for user_id in ids))

    async def plan(self, **changes: Any) -> Plan:
        source = await inspect_file(str(self.path), None, None)
        return msgspec.structs.replace(plan(**changes), source=source)

    async def do(
        self, so_far: ChunkResult | None = None, *, proved: bool = False, **changes: Any
    ) -> ChunkResult:
        task = await self.plan(**changes)
        chunk = Chunk(span=Span(0, task.source.size), so_far=so_far or ChunkResult(), proved=proved)
        return await self.environment.run(self.activities.run_chunk, task, chunk, RATE)


@pytest.fixture
async def work(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Work]:
    async with MonoCloudSession(sandbox.url, sandbox.api_key, retry=ONCE) as session:
        work = Work(sandbox, session, tmp_path / "ids.txt")
        work.write(*sandbox.user_ids())
        yield work


def outcomes(result: ChunkResult) -> dict[object, object]:
    """Return position and outcome of the users who are not done."""
    return {row[0]: row[2] for row in result.rows.others_each()}


async def test_a_chunk_is_done_with_every_id_at_its_place_in_it(work: Work) -> None:
    work.write("nobody", "", "..", *work.sandbox.user_ids()[:3])
    result = await work.do()
    assert (result.done, result.why, result.bad_lines) == (True, None, 1)
    assert (result.rows.users_done, outcomes(result)) == (3, {0: "failed"})
    assert result.rows.positions() == {0, 1, 2, 3}
    assert result.requests == 4
    ids = [row[1] for row in result.rows.others_each()]
    assert ids == [""]  # results have no ids


@pytest.mark.parametrize("what", ["a slow lane", "a slow source"])
async def test_a_worker_is_alive_while_it_waits(
    work: Work, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    if what == "a slow source":
        monkeypatch.setattr(Sources, "read", read)
    monkeypatch.setattr(heartbeats, "BEAT", 0.01)
    chunk = Chunk(span=Span(0, 10))
    waiting = asyncio.create_task(
        work.environment.run(work.activities.run_chunk, await work.plan(), chunk, 0.001)
    )
    async with asyncio.timeout(30):
        while work.beats < 5:  # noqa: ASYNC110  heartbeats set no event
            await asyncio.sleep(0.01)
    assert work.told == []
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.sandbox.stats().requests == 0


async def test_the_operation_is_the_plan_s(work: Work) -> None:
    await work.do()
    assert (await work.do(operation="disable")).rows.users_done == 20
    assert work.sandbox.stats().users == {"enabled": 0, "disabled": 20}


async def test_an_operation_that_is_unknown_here_pauses_the_run(work: Work) -> None:
    result = await work.do(operation="promote")
    assert not result.done
    assert "operation must be one of enable, " in (result.why or "")
    assert work.sandbox.stats().requests == 0


async def test_who_is_done_is_not_sent_again_and_counts_go_on(work: Work) -> None:
    first, *_, last = ids = work.sandbox.user_ids()
    work.write(*ids[:5])
    before = await work.do()
    work.write(*ids)
    result = await work.do(before)
    assert (result.done, result.rows.users_done, result.requests) == (True, 20, 20)
    assert not work.sandbox.is_disabled(first)
    assert not work.sandbox.is_disabled(last)
    assert work.sandbox.stats().requests == 20


async def test_a_refused_key_pauses_the_run_and_its_users_are_handed_back(work: Work) -> None:
    ids = work.sandbox.user_ids()
    work.sandbox.script(ids[0], 401)
    result = await work.do()
    assert not result.done
    assert "401 Unauthorized" in (result.why or "")
    assert result.rows.positions() == set()
    assert work.sandbox.stats().requests == 1
    assert (result.worker, work.activities.left.is_set()) == (member_name(), True)
    work.activities.take_in()
    assert (await work.do(result)).done


async def test_who_failed_for_another_reason_than_the_run_is_not_sent_again(work: Work) -> None:
    ids = work.sandbox.user_ids()
    work.sandbox.latency = 0.05  # the user fails while the refusal is on its way
    work.write(ids[0], "nobody", *ids[1:])
    work.sandbox.script(ids[1], 401)
    work.sandbox.script(ids[2], 503)
    result = await work.do()
    assert "401" in (result.why or "")
    assert outcomes(result) == {1: "failed"}  # neither the refused one nor the transient one


async def test_a_forbidden_user_is_no_refusal_where_the_key_is_known_to_be_good(
    work: Work,
) -> None:
    work.sandbox.script(work.sandbox.user_ids()[0], 403)
    assert "403" in ((await work.do()).why or "")
    work.activities.take_in()
    work.sandbox.script(work.sandbox.user_ids()[0], 403)
    result = await work.do(proved=True)
    assert (result.done, result.why, outcomes(result)) == (True, None, {0: "failed"})


async def test_a_file_that_changed_pauses_the_run_before_any_call(work: Work) -> None:
    task = await work.plan()
    work.write("somebody-else")
    chunk = Chunk(span=Span(0, 10), so_far=ChunkResult(requests=7))
    result = await work.environment.run(work.activities.run_chunk, task, chunk, RATE)
    assert (result.done, result.requests) == (False, 7)
    assert "changed since the run was planned" in (result.why or "")
    assert work.sandbox.stats().requests == 0


async def test_a_worker_that_cannot_read_the_file_leaves_and_says_so(work: Work) -> None:
    task = await work.plan()
    work.path.unlink()
    chunk = Chunk(span=Span(0, 10), so_far=ChunkResult(requests=7))
    result = await work.environment.run(work.activities.run_chunk, task, chunk, RATE)
    assert (result.done, result.requests, result.worker) == (False, 7, member_name())
    assert "cannot read" in (result.why or "")
    assert work.activities.left.is_set()
    work.write(*work.sandbox.user_ids())
    again = await work.do()  # a chunk that came before the worker had left
    assert (again.why, again.worker) == (result.why, result.worker)
    assert work.sandbox.stats().requests == 0


async def test_a_worker_with_other_lines_than_the_coordinator_leaves_before_any_call(
    work: Work,
) -> None:
    result = await work.do(ChunkResult(digest="another"))
    assert "are different" in (result.why or "")
    assert result.worker == member_name()
    assert work.sandbox.stats().requests == 0


async def test_a_result_has_only_what_the_journal_has_not(work: Work) -> None:
    first, second, third = work.sandbox.user_ids()[:3]
    work.write(first, second, third)
    digest = digest_of(work.path.read_bytes())
    known = ChunkResult(rows=Rows([1, "", 0, 0, 0], []), digest=digest)
    os.utime(work.path, ns=(1, 1))  # dates do not matter
    result = await work.do(known)
    assert (result.done, result.why, result.digest) == (True, None, digest)
    assert result.rows.positions() == {0, 2}
    assert work.sandbox.is_disabled(second)


async def test_failures_that_fill_a_payload_are_handed_back(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MAX_FAILED", 500)
    work.sandbox.latency = 0.01
    work.write(*(f"nobody{number}" for number in range(500)))
    result = await work.do()
    assert (result.done, result.why) == (False, None)
    assert 4 < result.rows.count("failed") < 400


async def until(work: Work, requests: int) -> None:
    while work.sandbox.stats().requests < requests:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("how", ["cancelled", "worker ends"])
async def test_a_chunk_that_is_taken_back_lets_calls_finish_and_keeps_results(
    work: Work, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT", 0.01)
    work.sandbox.latency = 0.02
    work.write(*work.sandbox.user_ids() * 100)
    running = asyncio.create_task(work.do())
    await until(work, 30)
    if how == "cancelled":
        work.environment.cancel()
    else:
        work.environment.worker_shutdown()
    result = await running
    assert (result.done, result.why) == (False, None)
    assert result.rows.users_done == result.requests == work.sandbox.stats().requests < 2000
    assert work.told[-1].requests <= result.requests


@pytest.mark.parametrize("lost", ["timed_out", "not_found"])
async def test_a_chunk_that_another_worker_has_is_cancelled_at_once(work: Work, lost: str) -> None:
    for user_id in work.sandbox.user_ids()[1:]:
        work.sandbox.script(user_id, "hang")
    running = asyncio.create_task(work.do())
    await until(work, 2)
    work.environment.cancel(ActivityCancellationDetails(**{lost: True}))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)


async def test_a_worker_that_was_suspended_too_long_gives_its_chunk_up(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT", 0.05)
    monkeypatch.setattr(worker, "HEARTBEAT", 0.01)  # so every heartbeat comes too late
    work.sandbox.script(work.sandbox.user_ids()[1], "hang")
    with pytest.raises(ApplicationError, match="no heartbeat for too long") as caught:
        await asyncio.wait_for(work.do(), 10)
    (so_far,) = caught.value.details
    assert not so_far.done


class TemporalWorker:
    """A worker with a call in flight, which ends as Temporal's does."""

    def __init__(self, *_args: object, **_options: object) -> None:
        self.asked_to_end = asyncio.Event()
        self.call = asyncio.Event()
        self.ended = asyncio.Event()
        self.log: list[str] = []

    async def run(self) -> None:
        cancelled = None
        try:
            await self.asked_to_end.wait()
        except asyncio.CancelledError as error:
            cancelled = error
        self.asked_to_end.set()
        try:
            await self.call.wait()
            self.log.append("the call is finished")
        except asyncio.CancelledError:
            self.log.append("the call is cut")
            raise
        finally:
            self.ended.set()
        if cancelled:
            raise cancelled

    async def shutdown(self) -> None:
        self.asked_to_end.set()
        await self.ended.wait()


def test_the_rate_of_a_worker_is_that_of_all_its_chunks_whichever_of_them_tells_it() -> None:
    meter = worker._Meter()
    runs: list[Any] = [Mock(report=Mock(requests=0)) for _ in range(2)]
    for run in runs:
        meter.begin(run, 0.0, "run")
    for tenth in range(1, 101):
        for run in runs:
            run.report.requests += 5
        if tenth % 10 in {0, 3}:  # each tells it once a second
            assert meter.rate(tenth / 10)[0] == pytest.approx(100)
    meter.end(runs.pop())
    runs[0].report.requests += 5
    assert meter.rate(10.1)[0] == pytest.approx(100, rel=0.05)
    assert meter.rate(20.0)[0] == 0
    runs[0].report.requests += 50
    rate, seconds = meter.rate(21.0)  # of the last seconds, in which it rested
    assert rate == pytest.approx(50 / 6, rel=0.02)
    assert seconds == 6
    meter.end(runs.pop())


@pytest.mark.parametrize(("rest", "of"), [(5.0, "run"), (0.125, "next run")])
def test_the_rate_of_a_worker_is_measured_anew_after_a_rest_and_in_another_run(
    rest: float, of: str
) -> None:
    meter = worker._Meter()
    first: Any = Mock(report=Mock(requests=0))
    meter.begin(first, 0.0, "run")
    first.report.requests = 100
    assert meter.rate(2.0) == (50, 2)
    meter.end(first)
    second: Any = Mock(report=Mock(requests=0))
    meter.begin(second, 2 + rest, of)
    second.report.requests = 80
    assert meter.rate(2.5 + rest) == (160, 0.5)


@pytest.mark.parametrize("what", ["works", "leaves"])
async def test_a_worker_that_is_cancelled_lets_calls_finish_also_while_it_leaves_the_run(
    work: Work, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporal = TemporalWorker()
    monkeypatch.setattr(worker, "Worker", lambda *_args, **_options: temporal)
    monkeypatch.setattr(worker, "telling", lambda same, _: same)
    client: Any = None
    working = asyncio.create_task(worker._until_left(client, "https://t", work.activities))
    await asyncio.sleep(0.01)
    if what == "leaves":
        work.activities.left.set()
        await temporal.asked_to_end.wait()
    working.cancel()
    await temporal.asked_to_end.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not working.done()
    temporal.call.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert temporal.log == ["the call is finished"]


async def test_a_worker_that_leaves_the_run_lets_calls_finish(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporal = TemporalWorker()
    monkeypatch.setattr(worker, "Worker", lambda *_args, **_options: temporal)
    monkeypatch.setattr(worker, "telling", lambda same, _: same)
    client: Any = None
    work.activities.left.set()
    working = asyncio.create_task(worker._until_left(client, "https://t", work.activities))
    await asyncio.sleep(0.01)
    assert not working.done()
    temporal.call.set()
    await working
    assert temporal.log == ["the call is finished"]


async def test_a_worker_ends_only_if_the_run_itself_needs_another_key(
    work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tell: list[Callable[[PayloadRefusedError], object]] = []
    answers: list[Exception | None] = [None, RPCError("down", RPCStatusCode.UNAVAILABLE, b"")]
    looked = asyncio.Queue[Exception | None]()

    async def check_readable(*_: object) -> None:
        answer = answers.pop(0) if answers else PayloadRefusedError("the run has another key")
        looked.put_nowait(answer)
        if answer is not None:
            raise answer

    temporal = TemporalWorker()
    temporal.call.set()
    monkeypatch.setattr(worker, "telling", lambda _client, refused: tell.append(refused))
    monkeypatch.setattr(worker, "Worker", lambda *_args, **_options: temporal)
    monkeypatch.setattr(worker, "check_readable", check_readable)
    client: Any = None
    working = asyncio.create_task(worker._until_left(client, "https://t", work.activities))
    while not tell:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0)
    for number in (1, 2):
        tell[0](PayloadRefusedError("forged"))
        await looked.get()
        await asyncio.sleep(0)
        assert not temporal.asked_to_end.is_set()
        assert len(caplog.messages) == number
    tell[0](PayloadRefusedError("of the run"))
    with pytest.raises(FleetError, match="the run has another key"):
        await working
    assert temporal.log == ["the call is finished"]


async def test_a_worker_that_left_waits_for_a_coordinator_that_can_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_ASK", 0)
    progress = Progress(tenant="https://t", source="ids", size=1, expected=1, max_rate=1)
    answers: list[Any] = [WorkflowQueryFailedError("no such query"), progress]

    class Run:
        async def query(self, *_: object, **_options: object) -> Progress:
            answer: Progress | WorkflowQueryFailedError = answers.pop(0)
            if isinstance(answer, WorkflowQueryFailedError):
                raise answer
            return answer

    run: Any = Run()
    await worker._until_away(run, away=False)
    assert not answers


class Answers:
    """A workflow that answers, or raises, one after the other; then it is silent."""

    def __init__(self, *answers: Pace | Exception) -> None:
        self.answers = list(answers)
        self.silent = asyncio.Event()

    async def query(self, *_: object, **_options: object) -> Pace:
        if not self.answers:
            self.silent.set()
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_answer_that_cannot_be_read_is_told_once_and_the_next_one_counts(
    session: MonoCloudSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker, "_OFTEN", 0)
    error = msgspec.ValidationError("of another version")
    answers = Answers(error, error, Pace(run="r", epoch=3))
    run: Any = answers
    news = worker._News(session, run)
    news.follower.chunks = 1
    following = asyncio.create_task(news.exchange())
    await answers.silent.wait()
    assert news.follower.epoch == ("r", 3)
    assert caplog.messages == [
        "the answer of the run's workflow cannot be read: of another version"
    ]
    following.cancel()
    await asyncio.wait({following})


async def test_the_first_chunk_after_an_idle_time_waits_for_news(
    session: MonoCloudSession,
) -> None:
    answers = Answers(Pace(run="first"), Pace(run="second"))
    run: Any = answers
    news = worker._News(session, run)
    following = asyncio.create_task(news.exchange())
    for name in ("first", "second"):
        news.follower.chunks = 1
        await news.first()
        assert news.follower.epoch == (name, 0)
        news.follower.chunks = 0
    following.cancel()
    await asyncio.wait({following})


async def test_a_chunk_that_joins_the_only_one_waits_until_that_has_heard_of_it(
    session: MonoCloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(worker, "HEARD", 0.011)
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", counted)
    run: Any = Answers(Pace(run="r"), Pace(run="r", lanes=2, joins=True))
    news = worker._News(session, run)
    following = asyncio.create_task(news.exchange())
    news.follower.chunks = 1
    await news.first()
    assert slept == []
    await news.first()
    assert slept == [0.011]
    following.cancel()
    await asyncio.wait({following})


async def test_a_session_whose_worker_has_ended_is_free_of_the_fleet(
    session: MonoCloudSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners = set(session.pace.listeners)
    began = asyncio.Event()

    async def until_left(*_: object) -> None:
        began.set()
        await asyncio.Event().wait()

    @asynccontextmanager
    async def answering(*_: object) -> AsyncIterator[None]:
        yield

    async def readable(*_: object) -> None:
        """There is no run whose messages need a key."""

    class Client:
        def get_workflow_handle_for(self, *_: object) -> Answers:
            return Answers()

    client: Any = Client()
    monkeypatch.setattr(worker, "_until_left", until_left)
    monkeypatch.setattr(worker, "answering", answering)
    monkeypatch.setattr(worker, "check_readable", readable)
    monkeypatch.setattr(worker, "with_message_codec", lambda same: same)
    working = asyncio.create_task(worker.run_worker(session, client=client))
    await began.wait()
    assert session.pace.listeners > listeners
    working.cancel()
    await asyncio.wait({working})
    assert session.pace.listeners == listeners
    assert [task for task in asyncio.all_tasks() if "exchange" in repr(task)] == []


async def test_an_error_that_ends_the_news_is_logged_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing() -> None:
        raise KeyError("a mistake")

    following = asyncio.create_task(failing())
    following.add_done_callback(worker._log_error)
    await asyncio.wait({following})
    await asyncio.sleep(0)
    assert caplog.messages == ["this worker hears no news of the run's rate any more"]
