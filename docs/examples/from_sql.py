"""Enable the users of a table, and record the outcome of each user in the table.

Start it:  python from_sql.py users.db
The table: CREATE TABLE access (
               user_id TEXT PRIMARY KEY, status TEXT NOT NULL DEFAULT 'waiting', why TEXT)
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence

import aiosqlite

from monocloud_async import BulkReport, MonoCloudSession, Outcome, RunStoppedError

PAGE = """
    SELECT user_id FROM access WHERE user_id > ? AND status <> 'enabled'
    ORDER BY user_id LIMIT 1000
"""
FIRST_PAGE = PAGE.replace("> ?", ">= ?")  # an empty id is a row, too
WRITE = "UPDATE access SET status = ?, why = ? WHERE user_id = ?"


class Access:
    """The table: the users of a run, and its journal, which is written in groups."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db

    async def users(self) -> AsyncIterator[str]:
        query, last = FIRST_PAGE, ""
        while page := list(await self._db.execute_fetchall(query, (last,))):
            for (user_id,) in page:
                yield user_id
            query, last = PAGE, page[-1][0]

    async def enabled(self, _position: int, _user_id: str) -> bool:
        """Return False: `users` already leaves out enabled users."""
        return False

    async def write(self, outcomes: Sequence[Outcome]) -> None:
        rows = [(o.status, o.error and str(o.error), o.user_id) for o in outcomes]
        await self._db.executemany(WRITE, rows)
        await self._db.commit()


async def main(path: str) -> BulkReport:
    async with aiosqlite.connect(path) as db, MonoCloudSession() as session:
        access = Access(db)
        return await session.bulk_enable(access.users(), journal=access)


if __name__ == "__main__":
    try:
        report = asyncio.run(main(sys.argv[1]))
    except RunStoppedError as error:
        sys.exit(str(error))
    sys.exit(0 if report.enabled == report.total else 1)
