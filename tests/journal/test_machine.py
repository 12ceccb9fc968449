"""Any order of {send, answer, commit, kill, resume}: no user is lost or sent without need."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import journals
import virtual_time
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from runs import adds_up, bulk

from monocloud_async import NotFoundError, Outcome, RetryPolicy, User
from monocloud_async.bulk.run import BulkRun
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.store import InputInfo, JournalStore, Rows

IDS = [f"user-{number}" for number in range(12)]
MISSING = {IDS[3], IDS[7]}


class Held:
    """A journal with a real file, whose commits wait for permission; a kill denies it forever."""

    def __init__(self, path: Path) -> None:
        self.records = JournalStore(path, "https://tenant.example", ENABLE, InputInfo())
        self.records.open()
        self.pending: asyncio.Future[None] | None = None

    async def enabled(self, position: int, user_id: str, /) -> bool:
        if position >= self.records.reached:
            return False
        page = self.records.page(0)
        assert page.ids[position] in {user_id, None}
        return page.done[position] == "1"

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        self.pending = asyncio.get_running_loop().create_future()
        await self.pending
        self.pending = None
        self.records.write(Rows.of(outcomes, 0), 0)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal"
        self.loop = virtual_time.VirtualLoop()
        self.loop._virtual.grace = 0.0
        self.sent: dict[str, asyncio.Future[User]] = {}
        self.requests = 0
        self.run: BulkRun | None = None
        self.resume()

    def committed(self) -> set[str]:
        return {row[1] for row in journals.rows(self.path) if row[2] == "enabled"}

    def go_on(self, seconds: float = 0.0) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    async def send(self, user_id: str, _seconds: float) -> User:
        assert user_id not in self.enabled_before, "a committed enabled user was sent again"
        assert user_id not in self.sent, "one user was in flight twice"
        self.requests += 1
        answer: asyncio.Future[User] = self.loop.create_future()
        self.sent[user_id] = answer
        try:
            return await answer
        finally:
            self.sent.pop(user_id, None)

    @precondition(lambda self: self.run is None)
    @rule()
    def resume(self) -> None:
        self.journal = Held(self.path)
        self.enabled_before = self.committed() if self.path.stat().st_size else set()
        self.task = self.loop.create_task(self.main())
        self.go_on()

    async def main(self) -> None:
        self.run = bulk(
            IDS, self.send, concurrency=3, journal=self.journal, policy=RetryPolicy(attempts=1)
        )
        await self.run

    def answer_one(self, user_id: str) -> None:
        if user_id in MISSING:
            error = NotFoundError(status=404, user_id=user_id)
            self.sent[user_id].set_exception(error)
        else:
            self.sent[user_id].set_result(User(user_id=user_id))
        self.go_on()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.answer_one(data.draw(st.sampled_from(sorted(self.sent))))

    @precondition(lambda self: self.run is not None)
    @rule(seconds=st.sampled_from([0.01, 0.03, 0.1]))
    def wait(self, seconds: float) -> None:
        self.go_on(seconds)

    def commit_one(self) -> None:
        self.go_on(0.03)
        if self.journal.pending is not None:
            self.journal.pending.set_result(None)
            self.go_on()

    @precondition(lambda self: self.run is not None)
    @rule()
    def commit(self) -> None:
        self.commit_one()

    @precondition(lambda self: self.run is not None)
    @rule()
    def kill(self) -> None:
        """Kill the run: everything that was not committed is lost."""
        self.task.cancel()
        self.go_on()
        while not self.task.done():
            if self.journal.pending is not None:
                self.journal.pending.cancel()
            self.go_on(0.03)
        self.journal.records.close()
        self.sent.clear()
        self.run = None

    @invariant()
    def each_position_has_one_row_at_most(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            found = journals.rows(self.path)
            assert all(IDS[position] == user_id for position, user_id, _, _ in found)
            assert journals.is_intact(self.path)

    def teardown(self) -> None:
        if self.run is None:
            self.resume()
        for _ in range(200):
            if self.task.done():
                break
            for user_id in list(self.sent):
                self.answer_one(user_id)
            self.commit_one()
        self.task.result()
        assert self.run is not None
        assert adds_up(self.run.report)
        self.journal.records.close()
        final = {user_id: outcome for _, user_id, outcome, _ in journals.rows(self.path)}
        assert final == {u: "failed" if u in MISSING else "enabled" for u in IDS}
        self.loop.close()
        self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestMachine = Machine.TestCase
