"""The users of the sandbox: one SQLite table, in memory or in a file."""

from __future__ import annotations

import sqlite3
import string
import time
import weakref
from random import Random
from typing import TYPE_CHECKING, Any

from monocloud_async.sandbox.people import person

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SCHEMA = """
    CREATE TABLE IF NOT EXISTS users (
        position     INTEGER PRIMARY KEY,
        user_id      TEXT NOT NULL UNIQUE,
        disabled     INTEGER NOT NULL,
        last_updated INTEGER  -- seconds since 1970; NULL until the user is changed
    )
"""

# MonoCloud's ids are URL-safe base64, too. '-' and '_' are left out here, so that no id looks like
# an option on a command line.
ALPHABET = string.ascii_letters + string.digits


class Users:
    """The table of users; every method is one statement and commits before it returns."""

    def __init__(self, db: str | Path) -> None:
        # The statements take microseconds, so they run on the event loop: a thread would cost more.
        # The garbage collector may close the connection from any thread.
        self._sql = sqlite3.connect(db, isolation_level=None, check_same_thread=False)
        # Not closed when the sandbox stops: tests read the users afterwards.
        self._close = weakref.finalize(self, self._sql.close)
        # Other processes can read during writes, and a killed sandbox loses nothing. Only a power
        # cut could lose data, which does not matter here.
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute("PRAGMA synchronous=OFF")
        self._sql.execute(SCHEMA)

    def seed(self, users: int | Iterable[str], *, seed: int) -> None:
        """Add disabled users, unless the table already has users."""
        if self._sql.execute("SELECT EXISTS (SELECT 1 FROM users)").fetchone()[0]:
            return
        user_ids = _invented_ids(users, seed=seed) if isinstance(users, int) else users
        self._sql.execute("BEGIN")
        with self._sql:
            self._sql.executemany(
                "INSERT OR IGNORE INTO users (user_id, disabled) VALUES (?, 1)",
                ((user_id,) for user_id in user_ids),
            )

    def put(self, user_id: str, *, disabled: bool) -> None:
        """Add or reset this user."""
        self._sql.execute(
            "INSERT INTO users (user_id, disabled) VALUES (?, ?) ON CONFLICT (user_id)"
            " DO UPDATE SET disabled = excluded.disabled, last_updated = NULL",
            (user_id, disabled),
        )

    def get(self, user_id: str) -> dict[str, Any] | None:
        """Return the user's JSON, or None if the user does not exist."""
        return _profile(
            self._sql.execute(
                "SELECT user_id, disabled, last_updated FROM users WHERE user_id = ?", (user_id,)
            ).fetchone()
        )

    def switch(self, user_id: str, *, disabled: bool) -> dict[str, Any] | None:
        """Enable or disable the user; returns the new JSON, or None if the user does not exist."""
        return _profile(
            self._sql.execute(
                "UPDATE users SET disabled = ?, last_updated = ? WHERE user_id = ?"
                " RETURNING user_id, disabled, last_updated",
                (disabled, int(time.time()), user_id),
            ).fetchone()
        )

    def ids(self) -> list[str]:
        """Return all ids, in the order in which they were added."""
        return [row[0] for row in self._sql.execute("SELECT user_id FROM users ORDER BY position")]

    def counts(self) -> dict[str, int]:
        """Return how many users are enabled and disabled."""
        total, disabled = self._sql.execute(
            "SELECT count(*), coalesce(sum(disabled), 0) FROM users"
        ).fetchone()
        return {"enabled": total - disabled, "disabled": disabled}


def _profile(row: tuple[str, int, int | None] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    user_id, disabled, last_updated = row
    user = person(user_id)
    user["disabled"] = bool(disabled)
    if last_updated is not None:
        user["last_updated"] = last_updated
    return user


def _invented_ids(count: int, *, seed: int) -> Iterator[str]:
    rng = Random(seed)  # noqa: S311 - repeatable, and not a secret
    for _ in range(count):
        yield "".join(rng.choices(ALPHABET, k=21))
