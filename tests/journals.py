"""Reads a journal's file without the package."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path


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
