"""What people see of a run where there is no terminal, and the counts of what failed."""

import asyncio
import io

from rich.console import Console
from runs import bulk
from virtual_time import run

import monocloud_async as m
from monocloud_async import Outcome, User
from monocloud_async.cli.display import Display, Tally, reasons


def test_of_many_kinds_of_failure_the_first_hundred_are_told_apart() -> None:
    tally = Tally()
    for position in range(250):
        problem = m.ProblemDetails(title=f"Said {position % 125}")
        error = m.NotFoundError(status=404, user_id="u", problem=problem)
        tally.outcome(Outcome(user_id="u", position=position, status="failed", error=error))
    assert len(tally.kinds) == 101
    assert tally.kinds.total() == 250
    assert tally.kinds["other failures"] == 50
    assert len(reasons(tally)) == 5


def test_a_log_has_a_line_every_ten_seconds() -> None:
    said = io.StringIO()

    async def send(user_id: str, _seconds: float) -> User:
        await asyncio.sleep(1)
        return User(user_id=user_id)

    async def main() -> None:
        running = bulk([f"u{number}" for number in range(35)], send, concurrency=1)
        with Display(Console(file=said), running, Tally(), title="Enabling", expected=35) as shown:
            task = asyncio.ensure_future(running)
            while not task.done():
                await asyncio.wait([task], timeout=0.2)
                shown.refresh()

    run(main(), sockets=False)
    title, *lines = said.getvalue().splitlines()
    assert title == "Enabling"
    assert [line.split(" |")[0] for line in lines] == ["10 of 35", "20 of 35", "30 of 35"]
    assert lines[0].endswith("| 10 enabled, 1 in flight")
