"""Runs the fault table: every fault must give its expected result."""

import asyncio
import re
import time
from collections import Counter

import pytest
from clients import POLICY, TIMEOUT, Costs, against, nothing_left_behind, run
from faults import Fault, faults
from invariants import is_alone, is_ours
from runs import adds_up

import monocloud_async as m

FAULTS = faults()
ONCE = m.RetryPolicy(attempts=1)
# Loop iterations, then seconds: while it connects, sends, waits, reads, or waits to retry.
POINTS = [*((turns, 0.0) for turns in (0, 1, 2, 3, 4, 5, 7, 10, 15, 30)), (0, 0.3), (0, 2.9)]
every = pytest.mark.parametrize("fault", FAULTS, ids=map(str, FAULTS))


@every
def test_the_expected_result(fault: Fault) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with nothing_left_behind(), against(fault) as (server, session):
            began, error = loop.time(), None
            with Costs() as costs:
                try:
                    user = await session.enable_user("ada")
                    assert user.user_id == "ada"
                except m.MonoCloudError as caught:
                    error = caught
            took = loop.time() - began
        attempts = POLICY.attempts if fault.retried else 1
        if fault.error is None:
            assert error is None
        else:
            late = fault.error is m.TransportError and fault.seconds == TIMEOUT
            assert isinstance(error, m.RequestTimeoutError if late else fault.error)
            assert late or not isinstance(error, m.RequestTimeoutError)
            assert re.search(fault.says, str(error))
            assert (error.user_id, error.attempts) == ("ada", attempts)
            is_alone(error)
            if isinstance(error, m.TransportError):
                assert error.sent is (fault.reaches if fault.sent is None else fault.sent)
                assert error.transient is fault.retried
        assert len(server.requests) == (attempts if fault.reaches else 0)
        assert took <= attempts * (fault.seconds + 0.01)
        # The clock above does not advance during computations. What reads a body more than once
        # for each of its bytes takes minutes; a busy machine takes a second.
        assert costs.cpu < 10 * attempts
        assert costs.bytes < 16 << 20

    run(main())


@every
def test_cancellation_ends_it_at_any_point(fault: Fault) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with nothing_left_behind(), against(fault) as (_server, session):
            for turns, seconds in POINTS:
                task = asyncio.create_task(session.enable_user("ada"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await asyncio.sleep(seconds)
                began, cpu = loop.time(), time.process_time()
                task.cancel()
                await asyncio.wait([task])
                assert loop.time() - began <= 0.1
                assert time.process_time() - cpu <= 1  # the clock above stands still meanwhile
                if not task.cancelled() and (error := task.exception()) is not None:
                    assert isinstance(error, m.MonoCloudError)

    run(main())


STATUSES = ("enabled", "failed", "unknown", "not_attempted")


def ends(fault: Fault) -> set[str]:
    """Return the possible outcomes of the users of a run."""
    if fault.error is None:
        return {"enabled", "failed"}  # the response is for one user only
    if not issubclass(fault.error, m.TransportError):
        return {"failed"}
    if fault.sent or (fault.sent is None and fault.reaches):
        return {"unknown", "not_attempted"}
    return {"failed", "not_attempted"}


@every
def test_a_run_knows_what_became_of_everybody(fault: Fault) -> None:
    ids = ["ada", *(f"u{number}" for number in range(12))]

    async def main() -> None:
        seen: list[m.Outcome] = []
        async with nothing_left_behind(), against(fault, ONCE) as (_server, session):
            running = session.bulk_enable(ids, concurrency=4, max_outage=20, on_outcome=seen.append)
            try:
                report = await running
                assert report.total == len(ids)
            except m.RunStoppedError as stopped:
                is_ours(stopped)
                report = stopped.report
        counts = Counter(outcome.status for outcome in seen)
        assert counts == Counter({status: getattr(report, status) for status in STATUSES})
        assert adds_up(report)
        assert set(counts) <= ends(fault)
        assert [o.position for o in sorted(seen, key=lambda o: o.position)] == [
            *range(report.total)
        ]
        enabled = {outcome.user_id for outcome in seen if outcome.status == "enabled"}
        assert enabled == ({"ada"} if fault.error is None else set())

    run(main())
