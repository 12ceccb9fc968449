"""Records the history that the tests replay: a small run that is refused, paused and slowed down.

    python benchmarks/fleet_history.py tests/samples/fleet_history_NAME.json

When the workflow's steps change, they change with Temporal's patching, and one more history is
recorded: those that are there stand for the runs that are under way.
"""

import asyncio
import json
import re
import socket
import sys
from pathlib import Path

from fleets import fleet, temporal

from monocloud_async.fleet.temporal import workflow_id

USERS = 300
FOLDER = Path("/tmp/fleet-history")  # noqa: S108  it is in the history, so no random name


async def main(target: Path) -> None:
    FOLDER.mkdir()
    with temporal(FOLDER) as server:
        async with fleet(FOLDER, server, USERS, rate_limit=80, burst=20) as parts:
            parts.sandbox.script(parts.sandbox.user_ids()[50], 404)
            parts.part("coordinator")
            parts.part("worker")
            run = await parts.start(100)
            await parts.until(100)
            await run.pause()
            await parts.until_paused(run)
            await run.set_rate(60)
            await run.resume()
            report = await run.result()
            assert (report.enabled, report.failed) == (USERS - 1, 1)
            client = await server.client()
            history = await client.get_workflow_handle(
                workflow_id(parts.sandbox.url)
            ).fetch_history()
    members = json.loads(history.to_json())
    target.write_text(anonymous(json.dumps(members, indent=1)) + "\n")


def anonymous(text: str) -> str:
    """Return the history without the name of this machine and its process ids."""
    return re.sub(rf"\d+@{re.escape(socket.gethostname())}", "1@host", text)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
