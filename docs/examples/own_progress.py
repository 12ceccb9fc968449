"""Your own progress bar, with the state of the rate limiter beside it, and failures above it.

Start it:  python own_progress.py users.txt
"""

import asyncio
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.text import Text

from monocloud_async import MonoCloudSession, RunStoppedError


class Tenant(ProgressColumn):
    """The state of the rate limiter; also updated during pauses, when there are no outcomes."""

    def __init__(self, session: MonoCloudSession) -> None:
        super().__init__()
        self._pace = session.pace

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text()
        rate = "" if self._pace.rate is None else f", {self._pace.rate:.0f}/s"
        return Text("down" if self._pace.down else f"{self._pace.state}{rate}")


async def main(user_ids: list[str]) -> None:
    async with MonoCloudSession() as session:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Tenant(session))
        with Progress(*columns) as progress:
            bar = progress.add_task("Enabling", total=len(user_ids))
            async with session.bulk_enable(user_ids) as run:
                async for outcome in run:
                    progress.advance(bar)
                    if outcome.error is not None:
                        # No markup: the text of a server may contain brackets.
                        progress.console.print(str(outcome.error), markup=False)


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]).read_text(encoding="utf-8").split()))
    except RunStoppedError as error:
        sys.exit(str(error))
