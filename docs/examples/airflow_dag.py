"""An Airflow DAG that enables the users of a file; a retry does the rest of the attempt before.

Put it into the folder of DAGs, set MONOCLOUD_MANAGEMENT_DOMAIN and MONOCLOUD_MANAGEMENT_API_KEY for
the workers, and trigger it with: {"ids": "/data/users.txt"}
"""

import asyncio
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, task  # pyright: ignore[reportMissingImports]  # only in Airflow's venv

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


def enable_users(ids: str) -> dict[str, int]:
    return asyncio.run(enable(Path(ids)))


with DAG(
    dag_id="enable_users", schedule=None, params={"ids": "/data/users.txt"}, max_active_runs=1
):
    # A run stops if the tenant is down for five minutes, or if it refuses the key.
    task(enable_users, retries=10, retry_delay=timedelta(minutes=1))("{{ params.ids }}")
