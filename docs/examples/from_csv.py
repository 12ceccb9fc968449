"""Enable the users of a CSV, and write those who could not be enabled to another CSV.

Start it:  python from_csv.py users.csv failed.csv
It prints nothing if all are enabled. After a kill or a stop, the same command resumes the run, with
the journal users.csv.journal.
"""

import asyncio
import csv
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from monocloud_async import BulkReport, MonoCloudError, MonoCloudSession, Outcome


async def enable(
    user_ids: Iterable[str], journal: Path, on_outcome: Callable[[Outcome], None]
) -> BulkReport:
    async with MonoCloudSession() as session:
        return await session.bulk_enable(user_ids, journal=journal, on_outcome=on_outcome)


def main(users: Path, failed: Path) -> str | None:
    # Excel writes a byte order mark at the start, which utf-8-sig removes.
    with (
        users.open(encoding="utf-8-sig", newline="") as source,
        failed.open("w", encoding="utf-8", newline="") as target,
    ):
        user_ids = (row["user_id"] for row in csv.DictReader(source))
        failures = csv.writer(target)
        failures.writerow(["user_id", "status", "why"])

        def note(outcome: Outcome) -> None:
            if outcome.status not in {"enabled", "already_enabled"}:
                failures.writerow([outcome.user_id, outcome.status, outcome.error])

        try:
            report = asyncio.run(enable(user_ids, Path(f"{users}.journal"), note))
        except MonoCloudError as error:
            return str(error)
    enabled = report.enabled + report.already_enabled
    if enabled < report.total:
        return f"{enabled} of {report.total} are enabled; {failed} has the others"
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
