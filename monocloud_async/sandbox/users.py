"""The users of the sandbox: SQLite tables, in memory or in a file."""

from __future__ import annotations

import functools
import sqlite3
import string
import time
import weakref
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from monocloud_async.sandbox.people import person, times

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SCHEMA = """
    CREATE TABLE IF NOT EXISTS users (
        position      INTEGER PRIMARY KEY,
        user_id       TEXT NOT NULL UNIQUE,
        disabled      INTEGER NOT NULL,
        creation_time INTEGER NOT NULL,  -- seconds since 1970
        last_updated  INTEGER NOT NULL,
        members       TEXT               -- JSON: what differs from the generated data, or NULL
    );
    CREATE INDEX IF NOT EXISTS by_creation ON users (creation_time);
    CREATE INDEX IF NOT EXISTS by_update ON users (last_updated);
    CREATE TABLE IF NOT EXISTS assigned (
        group_id TEXT, user_id TEXT, PRIMARY KEY (group_id, user_id)
    );
    CREATE TABLE IF NOT EXISTS revoked (user_id TEXT PRIMARY KEY);
"""
# MonoCloud's ids are URL-safe base64, too. '-' and '_' are left out here, so that no id looks like
# an option on a command line.
ALPHABET = string.ascii_letters + string.digits
HOUR = 3600
STORED = ("creation_time", "last_updated")  # as columns, so that sorting by them is quick
SORTABLE = (
    *("failure_count", "last_sign_in_attempt", "sign_in_attempts_count", "last_sign_in_success"),
    *("sign_in_success_count", "last_activity", "block_until", *STORED),
)
UNBLOCKED = {"block_until": None, "failure_count": 0}
NOT_IN_A_LIST = ("public_data", "private_data")

Row = tuple[int, str, int, int, int, str | None]


class Users:
    """The table of users; every method commits before it returns."""

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
        self._sql.executescript(SCHEMA)
        self._sql.create_function("member", 3, _member, deterministic=True)
        self._sql.create_function("mentions", 3, _mentions, deterministic=True)
        self._sql.create_function("merged", 2, _merged, deterministic=True)
        self._newcomers = 0
        self._began = int(time.time())

    def seed(
        self, users: int | Iterable[str], others: int, *, seed: int, disabled_at: float | None
    ) -> None:
        """Add disabled users, and others; unless the table already has users.

        Args:
            users: how many disabled users to add, or their ids.
            others: how many others: nine of ten are enabled, the rest was disabled long before.
            seed: selects the ids.
            disabled_at: the users were disabled in the hour from this time on, in seconds since
                1970, in which a few others changed something, too.
        """
        if self._sql.execute("SELECT EXISTS (SELECT 1 FROM users)").fetchone()[0]:
            return
        rng = Random(seed)  # noqa: S311 - repeatable, and not a secret
        disabled = _invented_ids(users, rng) if isinstance(users, int) else users
        self._sql.execute("BEGIN")
        with self._sql:
            for user_id in disabled:
                self._insert(user_id, disabled=True, changed=_in_the_hour(disabled_at, rng))
            for user_id in _invented_ids(others, rng):
                changed = _in_the_hour(disabled_at, rng) if rng.random() < 0.05 else None  # noqa: PLR2004 - a few
                gone_long_ago = changed is None and rng.random() < 0.1  # noqa: PLR2004 - one in ten
                self._insert(user_id, disabled=gone_long_ago, changed=changed)

    def put(self, user_id: str, *, disabled: bool, members: dict[str, Any]) -> None:
        """Add or reset this user; `members` replace those of the generated data."""
        created, changed = times(user_id)
        created = members.pop("creation_time", created)
        changed = members.pop("last_updated", changed)
        self._sql.execute(
            "INSERT INTO users VALUES (NULL, ?, ?, ?, ?, ?) ON CONFLICT (user_id)"
            " DO UPDATE SET disabled = excluded.disabled, creation_time = excluded.creation_time,"
            " last_updated = excluded.last_updated, members = excluded.members",
            (user_id, disabled, created, changed, _json(members)),
        )
        self._sql.execute("DELETE FROM revoked WHERE user_id = ?", (user_id,))

    def get(self, user_id: str) -> dict[str, Any] | None:
        """Return the user's JSON, or None if the user does not exist."""
        return _profile(
            self._sql.execute("SELECT * FROM users WHERE user_id = ?", (user_id,)).fetchone()
        )

    def switch(
        self, user_id: str, *, disabled: bool, revoke_sessions: bool = False
    ) -> dict[str, Any] | None:
        """Enable or disable the user; returns the new JSON, or None if the user does not exist."""
        if revoke_sessions:
            self._sql.execute("INSERT OR IGNORE INTO revoked VALUES (?)", (user_id,))
        return _profile(
            self._sql.execute(
                "UPDATE users SET disabled = ?, last_updated = ? WHERE user_id = ? RETURNING *",
                (disabled, int(time.time()), user_id),
            ).fetchone()
        )

    def unblock(self, user_id: str) -> dict[str, Any] | None:
        """End the lockout; returns the new JSON, or None if the user does not exist."""
        return _profile(
            self._sql.execute(
                "UPDATE users SET members = merged(members, ?), last_updated = ? WHERE user_id = ?"
                " RETURNING *",
                (_json(UNBLOCKED), int(time.time()), user_id),
            ).fetchone()
        )

    def sessions_revoked(self, user_id: str) -> bool:
        """Return whether the user was disabled together with the sessions."""
        found = self._sql.execute("SELECT 1 FROM revoked WHERE user_id = ?", (user_id,))
        return found.fetchone() is not None

    def assign(self, group_id: str, user_ids: Iterable[str]) -> None:
        """Make these users, and no others, the members of a group."""
        self._sql.execute("BEGIN")
        with self._sql:
            self._sql.execute("DELETE FROM assigned WHERE group_id = ?", (group_id,))
            self._sql.executemany(
                "INSERT OR IGNORE INTO assigned VALUES (?, ?)",
                ((group_id, user_id) for user_id in user_ids),
            )

    def has_group(self, group_id: str) -> bool:
        """Return whether there is such a group."""
        found = self._sql.execute("SELECT 1 FROM assigned WHERE group_id = ? LIMIT 1", (group_id,))
        return found.fetchone() is not None

    def page(
        self, number: int, size: int, *, sort: str, descending: bool, text: str, group: str | None
    ) -> tuple[int, list[dict[str, Any]]]:
        """Return how many users match, and the summaries of one page of them."""
        where, bound = ["1"], list[object]()
        if text:
            where.append("mentions(user_id, members, ?)")
            bound.append(text.casefold())
        if group is not None:
            where.append("user_id IN (SELECT user_id FROM assigned WHERE group_id = ?)")
            bound.append(group)
        order = sort if sort in STORED else f"member(user_id, members, '{sort}')"
        way = "DESC" if descending else "ASC"
        rest = f"FROM users WHERE {' AND '.join(where)}"
        (total,) = self._sql.execute(f"SELECT count(*) {rest}", bound).fetchone()
        rows = self._sql.execute(
            f"SELECT * {rest} ORDER BY {order} {way}, position {way} LIMIT ? OFFSET ?",
            (*bound, size, (number - 1) * size),
        )
        return total, [_summary(_person(row)) for row in rows]

    def shift(self) -> None:
        """Delete the oldest enabled user whom nobody has changed, and add a new one.

        The total stays the same, and the pages shift.
        """
        self._newcomers += 1
        with self._sql:
            self._sql.execute(
                "DELETE FROM users WHERE position = (SELECT position FROM users"
                " WHERE NOT disabled AND last_updated < ?"
                " ORDER BY creation_time, position LIMIT 1)",
                (self._began,),
            )
            now = int(time.time())
            self._insert(f"newcomer{self._newcomers}", disabled=False, changed=now, created=now)

    def ids(self) -> list[str]:
        """Return all ids, in the order in which they were added."""
        return [row[0] for row in self._sql.execute("SELECT user_id FROM users ORDER BY position")]

    def counts(self) -> dict[str, int]:
        """Return how many users are enabled and disabled."""
        total, disabled = self._sql.execute(
            "SELECT count(*), coalesce(sum(disabled), 0) FROM users"
        ).fetchone()
        return {"enabled": total - disabled, "disabled": disabled}

    def _insert(
        self, user_id: str, *, disabled: bool, changed: int | None, created: int | None = None
    ) -> None:
        usual_creation, usual_change = times(user_id)
        self._sql.execute(
            "INSERT OR IGNORE INTO users VALUES (NULL, ?, ?, ?, ?, NULL)",
            (user_id, disabled, created or usual_creation, changed or usual_change),
        )


def _json(members: dict[str, Any]) -> str | None:
    return msgspec.json.encode(members).decode() if members else None


def _profile(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else _person(row)


def _person(row: Row) -> dict[str, Any]:
    _, user_id, disabled, created, changed, members = row
    user = person(user_id)
    user |= {"disabled": bool(disabled), "creation_time": created, "last_updated": changed}
    return user if members is None else user | msgspec.json.decode(members)


def _summary(user: dict[str, Any]) -> dict[str, Any]:
    """Return the user as a list shows it: without custom data, and without providers' claims."""
    summary = {name: value for name, value in user.items() if name not in NOT_IN_A_LIST}
    for name in ("external_providers", "idps"):
        if name in summary:
            summary[name] = [
                {key: value for key, value in provider.items() if key != "claims"}
                for provider in summary[name]
            ]
    return summary


@functools.lru_cache(maxsize=100_000)
def _generated(user_id: str) -> dict[str, Any]:
    """Return those generated members that a list is sorted by."""
    user = person(user_id)
    return {name: user.get(name) for name in SORTABLE}


def _member(user_id: str, members: str | None, name: str) -> int | None:
    """Return a member of the user, for the order of a list."""
    changed = {} if members is None else msgspec.json.decode(members)
    value: int | None = changed[name] if name in changed else _generated(user_id)[name]
    return value


def _merged(members: str | None, changes: str) -> str:
    """Return these members with these changes; SQLite's json_patch would drop those of null."""
    before = {} if members is None else msgspec.json.decode(members)
    return msgspec.json.encode(before | msgspec.json.decode(changes)).decode()


def _mentions(user_id: str, members: str | None, text: str) -> bool:
    """Return whether the id, the name, the username or an e-mail address contains this text."""
    user = person(user_id) | ({} if members is None else msgspec.json.decode(members))
    name, username = user["claims"].get("name"), user.get("username") or {}
    emails = [each["email"] for each in user["emails"]]
    words = [user_id, name, username.get("username"), *emails]
    return any(text in word.casefold() for word in words if word)


def _in_the_hour(start: float | None, rng: Random) -> int | None:
    return None if start is None else int(start) + rng.randrange(HOUR)


def _invented_ids(count: int, rng: Random) -> Iterator[str]:
    for _ in range(count):
        yield "".join(rng.choices(ALPHABET, k=21))
