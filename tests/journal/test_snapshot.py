"""A journal that may be anybody's is read without a trace, and never without an end."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from recorded import outcome, write

from monocloud_async import ConfigurationError
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.schema import APPLICATION
from monocloud_async.journal.snapshot import EmptyJournalError, reading
from monocloud_async.journal.store import InputInfo, JournalStore

USERS = 50
COUNT = "SELECT count(*) FROM users"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    outcomes = [outcome(place, f"user{place}") for place in range(USERS)]
    return write(tmp_path / "run.journal", outcomes)


@pytest.fixture
def killed(path: Path) -> Path:
    """A journal whose last user is in its log only, as after kill -9; whoever wrote it is gone."""
    code = (
        "import os, sqlite3, sys\n"
        "sql = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "sql.execute(\"INSERT INTO users SELECT 1000, 'last', outcome, status, attempts, ms, at,"
        ' error, title, trace_id FROM users LIMIT 1")\n'
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert Path(f"{path}-wal").stat().st_size > 0
    return path


def changed(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        for statement in statements:
            sql.execute(statement)


def folder(path: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        file.name: ((status := file.stat()).st_ino, status.st_mtime_ns, file.read_bytes())
        for file in path.parent.iterdir()
    }


@contextlib.contextmanager
def untouched(path: Path) -> Iterator[None]:
    before = folder(path)
    yield
    assert folder(path) == before


def test_a_finished_journal_is_read_without_a_trace(path: Path) -> None:
    with untouched(path), reading(path) as (sql, _):
        assert sql.execute(COUNT).fetchone() == (USERS,)
        with pytest.raises(sqlite3.Error, match="readonly"):
            sql.execute("DELETE FROM users")
        assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.process
@pytest.mark.parametrize("lost", ["", "-shm"])
def test_what_only_the_log_has_is_read_without_a_trace(killed: Path, lost: str) -> None:
    if lost:  # copied elsewhere, without the index of the log
        Path(f"{killed}{lost}").unlink()
    with untouched(killed), reading(killed) as (sql, _):
        assert sql.execute(COUNT).fetchone() == (USERS + 1,)
    with untouched(killed), reading(killed) as (sql, _):
        assert sql.execute("SELECT max(position) FROM users").fetchone() == (1000,)


@pytest.mark.process
def test_a_copy_without_the_log_has_all_but_the_log(killed: Path) -> None:
    copy = killed.parent / "copy"
    shutil.copy(killed, copy)
    with untouched(copy), reading(copy) as (sql, _):
        assert sql.execute(COUNT).fetchone() == (USERS,)


def test_while_a_run_writes_a_reader_sees_one_moment_of_it(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as run:
        run.execute("PRAGMA wal_autocheckpoint = 1")
        run.execute("DELETE FROM users WHERE position = 0")
        with reading(path) as (sql, _):
            assert sql.execute(COUNT).fetchone() == (USERS - 1,)
            run.execute("DELETE FROM users WHERE position < 10")
            assert sql.execute(COUNT).fetchone() == (USERS - 1,)
        run.execute("DELETE FROM users WHERE position < 20")
        with reading(path) as (sql, _):
            assert sql.execute(COUNT).fetchone() == (USERS - 20,)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_link_is_read_with_the_log_of_its_journal(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as run:
        run.execute("DELETE FROM users WHERE position = 0")
        with reading(link) as (sql, _):
            assert sql.execute(COUNT).fetchone() == (USERS - 1,)


ENDLESS = (
    "WITH RECURSIVE r(position) AS (SELECT 0 UNION ALL SELECT position + 1 FROM r) SELECT position,"
    " 'x' AS user_id, 'failed' AS outcome, 404 AS status, 1 AS attempts, 1 AS ms, 1 AS at,"
    " 'E' AS error, NULL AS title, NULL AS trace_id FROM r"
)


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE users RENAME TO other", f"CREATE VIEW users AS {ENDLESS}"],
        [f"CREATE VIEW other AS {ENDLESS}"],
        ["CREATE TRIGGER t AFTER INSERT ON users BEGIN DELETE FROM users; END"],
        ["DROP TABLE samples"],
        ["DROP TABLE bad_lines", "CREATE TABLE bad_lines (line INTEGER, sitting, problem)"],
        ["ALTER TABLE users ADD COLUMN more AS (hex(zeroblob(100000000)))"],
        ["DROP TABLE commands", "CREATE VIRTUAL TABLE commands USING rtree(id, x, y)"],
        ["PRAGMA user_version = 0"],
    ],
)
def test_a_file_that_is_laid_out_otherwise_is_no_journal(path: Path, statements: list[str]) -> None:
    changed(path, *statements)
    with pytest.raises(ConfigurationError, match="is not a journal of this program"):
        reading(path).__enter__()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET user_id = NULL WHERE position = 7",
        "UPDATE users SET user_id = x'ff' WHERE position = 7",
        "UPDATE users SET outcome = NULL",
        "UPDATE users SET outcome = 'fine'",
        "UPDATE users SET ms = 'x'",
        "UPDATE users SET attempts = '<b>'",
        "UPDATE users SET attempts = -1",
        "UPDATE users SET at = 9223372036854775807",
        "UPDATE users SET position = -5 WHERE position = 7",
        "UPDATE users SET position = 9223372036854775807 WHERE position = 7",
        "UPDATE users SET title = x'ff'",
        "UPDATE users SET title = hex(zeroblob(100000))",
        "UPDATE sittings SET began = 1763000000000000",
        "UPDATE sittings SET ended = 9223372036854775807",
        "UPDATE sittings SET how = x'ff'",
        "UPDATE header SET created = 9223372036854775807",
        "UPDATE header SET tenant = NULL",
        "DELETE FROM header",
        "INSERT INTO header SELECT * FROM header",
        "UPDATE samples SET requests = 'x'",
        "UPDATE input SET ids = 'many'",
        "UPDATE input SET named_by = x'ff'",
        "DELETE FROM input",
        "INSERT INTO input SELECT * FROM input",
        "DELETE FROM sittings",
        "DELETE FROM sittings; DELETE FROM users; INSERT INTO samples VALUES (1, 1, 1, 1, 1, 1, 1)",
        "CREATE TABLE chunks (bad_lines); INSERT INTO chunks VALUES ('many')",
        "INSERT INTO bad_lines VALUES (-1, 1, 'no')",
        "UPDATE commands SET login = x'ff'",
        "INSERT INTO earlier SELECT * FROM users; UPDATE earlier SET ms = 'x'",
    ],
)
def test_a_value_that_no_run_writes_is_damage(path: Path, statement: str) -> None:
    changed(path, *statement.split("; "))
    with pytest.raises(ConfigurationError, match=r"cannot read the journal .*: .*backup"):
        reading(path).__enter__()


def forged(path: Path, table: str, column: str, value: object) -> None:
    """Give a column a value of another type than its own, as a damaged page has it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        (text,) = sql.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (version,) = sql.execute("PRAGMA schema_version").fetchone()
    untyped = re.sub(rf"\b{column} (TEXT|INTEGER)", column, text)
    update = f"UPDATE {table} SET {column} = ?"  # noqa: S608  names of the schema
    for number, (schema, change) in enumerate([(untyped, "SELECT ?"), (text, update)], 1):
        with closing(sqlite3.connect(path, isolation_level=None)) as sql:
            sql.execute("PRAGMA synchronous = OFF")
            sql.execute(change, (value,))
            sql.execute("PRAGMA writable_schema = ON")
            sql.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (schema, table))
            sql.execute(f"PRAGMA schema_version = {version + number}")


def test_a_value_of_another_type_is_damage(path: Path, tmp_path: Path) -> None:
    changed(
        path,
        "INSERT INTO earlier SELECT * FROM users",
        "INSERT INTO bad_lines VALUES (1, 1, 'is bad')",
        "INSERT INTO before VALUES (1, 'ada', 1)",
        "INSERT INTO failed_in VALUES (1, 1)",
    )
    with reading(path) as (sql, _):
        columns = sql.execute(
            "SELECT tables.name, columns.name FROM sqlite_master AS tables,"
            " pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
            " AND NOT columns.pk AND columns.name <> 'version'"
            " AND (tables.name, columns.name) <> ('bad_lines', 'sitting')"
        ).fetchall()
    assert len(columns) > 40
    for table, column in columns:
        copy = Path(shutil.copy(path, tmp_path / f"{table}.{column}"))
        forged(copy, table, column, 7.5)
        with pytest.raises(ConfigurationError, match=f"it has values in `{table}` that no run"):
            reading(copy).__enter__()


def test_a_table_whose_pages_lead_in_a_circle_is_given_up(path: Path) -> None:
    outcomes = [outcome(place, f"user{place}" * 20) for place in range(5000)]
    path.unlink()
    write(path, outcomes)
    with closing(sqlite3.connect(path)) as sql:
        (root,) = sql.execute("SELECT rootpage FROM sqlite_master WHERE name='users'").fetchone()
    pages = bytearray(path.read_bytes())
    start = (root - 1) * 4096
    assert pages[start] == 5  # an interior page
    cells = int.from_bytes(pages[start + 3 : start + 5])
    for cell in range(
        cells
    ):  # every child is the same page, which is a copy of this one, and so on
        at = start + int.from_bytes(pages[start + 12 + 2 * cell : start + 14 + 2 * cell])
        pages[at : at + 4] = (len(pages) // 4096 + 1).to_bytes(4)
    depth = 4
    for level in range(depth):
        page = bytearray(pages[start : start + 4096])
        leaf = int.from_bytes(page[8:12])
        below = leaf if level == depth - 1 else len(pages) // 4096 + 2
        for cell in range(cells):
            at = int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell])
            page[at : at + 4] = below.to_bytes(4)
        pages += page
    pages[28:32] = (len(pages) // 4096).to_bytes(4)  # the size that the file says of itself
    path.write_bytes(pages)
    with pytest.raises(ConfigurationError, match="more rows than its size allows"):
        reading(path).__enter__()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Interrupt the process as Ctrl-C does, once it has worked for another 0.05 s."""
    before = signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_reader_that_is_interrupted_does_not_call_the_journal_damaged(path: Path) -> None:
    endless = "WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(KeyboardInterrupt), reading(path) as (sql, _):
        sql.execute(endless)


def other_database(path: Path) -> None:
    path.unlink()
    changed(path, "CREATE TABLE users (position INTEGER)")


def newborn(path: Path) -> None:
    path.unlink()
    changed(path, "PRAGMA journal_mode = WAL", "VACUUM")


def without_log(path: Path) -> None:
    path.unlink()
    store = JournalStore(path, "https://acme.eu.monocloud.com", ENABLE, InputInfo())
    store.open()
    copy = path.read_bytes()
    store.close()
    path.write_bytes(copy)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (lambda path: path.write_bytes(b""), EmptyJournalError, "is empty"),
        (newborn, EmptyJournalError, "is empty"),
        (without_log, EmptyJournalError, r"is lost: .* in a copy without run\.journal-wal"),
        (other_database, ConfigurationError, "is not a journal of this program"),
        (lambda path: path.write_text("ada\n"), ConfigurationError, "is not a journal"),
        (pipe, ConfigurationError, "is not a journal"),
        (lambda path: (path.unlink(), path.mkdir()), ConfigurationError, "is not a journal"),
        (lambda path: path.unlink(), ConfigurationError, "No such file or directory"),
        (
            lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
            ConfigurationError,
            "is not a journal",
        ),
    ],
)
def test_what_is_no_journal_is_told_in_one_line(
    path: Path, make: Callable[[Path], object], error: type[ConfigurationError], why: str
) -> None:
    make(path)
    with pytest.raises(error, match=why) as caught:
        reading(path).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.process
def test_a_journal_that_another_program_has_locked_is_told_from_a_damaged_one(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM users WHERE position = 0")
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from monocloud_async.journal.snapshot import reading\n"
            "try:\n    reading(Path(sys.argv[1])).__enter__()\n"
            "except Exception as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
    assert "another program has locked it: close that program" in done.stdout, done


def test_the_mark_of_a_journal_stays(path: Path) -> None:
    assert int.from_bytes(path.read_bytes()[68:72]) == APPLICATION
