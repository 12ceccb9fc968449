"""What a journal's file has, read past the package; and a journal of one's own."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from monocloud_async import Outcome


def rows(path: Path) -> list[tuple[int, str, str, int]]:
    """Return position, id, outcome and attempts of each user, in order."""
    with closing(sqlite3.connect(path)) as sql:
        if not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'users'").fetchall():
            return []  # before the first transaction
        return sql.execute(
            "SELECT position, user_id, outcome, attempts FROM users ORDER BY position"
        ).fetchall()


def outcomes(path: Path) -> Counter[str]:
    return Counter(outcome for _, _, outcome, _ in rows(path))


def is_intact(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as sql:
        return sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


class Store:
    """A custom journal, whose two methods can fail."""

    def __init__(self) -> None:
        self.kept: dict[int, Outcome] = {}
        self.groups: list[int] = []
        self.error: Exception | None = None
        self.seconds = 0.0

    async def enabled(self, position: int, user_id: str, /) -> bool:
        kept = self.kept.get(position)
        return kept is not None and kept.user_id == user_id and kept.status == "enabled"

    async def write(self, outcomes: Sequence[Outcome], /) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.groups.append(len(outcomes))
        self.kept |= {outcome.position: outcome for outcome in outcomes}
