"""A Prefect flow that enables the users of a file; a retry does the rest of the attempt before.

Start it:  python prefect_flow.py /data/users.txt
"""

import asyncio
import sys
from pathlib import Path

from prefect import flow, task  # pyright: ignore[reportMissingImports]  # only in Prefect's venv

from monocloud_async import MonoCloudSession


async def enable(ids: Path) -> dict[str, int]:
    """Enable the users of a file with one id in a line, and return the counts.

    The journal is next to the file. It must be on a disk that the next attempt has as well.
    """
    async with MonoCloudSession() as session:
        users = await asyncio.to_thread(ids.read_text, encoding="utf-8")
        report = await session.bulk_enable(users.split(), journal=ids.with_suffix(".journal"))
    if report.unknown:
        raise RuntimeError(f"{report.unknown} users are unknown: another attempt asks again")
    return {"enabled": report.enabled + report.already_enabled, "failed": report.failed}


# A run stops if the tenant is down for five minutes, or if it refuses the key.
enable_users = task(enable, name="enable users", retries=10, retry_delay_seconds=60)


async def main(ids: str) -> dict[str, int]:
    counts: dict[str, int] = await enable_users(Path(ids))
    return counts


if __name__ == "__main__":
    print(asyncio.run(flow(main, name="enable users of a file")(sys.argv[1])))
