"""The examples of docs/examples.md work: each in its own process, against the sandbox."""

import asyncio
import configparser
import csv
import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import journals
import pytest
from terminal import PROGRAM, environment

from monocloud_async import config
from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
PAGE = (DOCS / "examples.md").read_text(encoding="utf-8")
KEY = "planted-2fQx9"
GONE = "nobody"
REFUSED = f"user '{GONE}': 404 Not Found: The user was not found"


class Told(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
async def tenant() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=20, api_key=KEY) as tenant:
        yield tenant


@pytest.fixture
def ids(tenant: Sandbox) -> list[str]:
    """Twenty users, one of whom fails at first, and one who does not exist."""
    flaky, *others = tenant.user_ids()
    tenant.script(flaky, 503)
    return [flaky, GONE, *others]


@asynccontextmanager
async def started(
    tenant: Sandbox, folder: Path, *argv: object, **variables: object
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a real process in this folder, and end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        cwd=folder,
        env=environment(tenant) | {name: str(value) for name, value in variables.items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def end(process: asyncio.subprocess.Process, stdin: str = "") -> Told:
    async with asyncio.timeout(90):
        out, err = await process.communicate(stdin.encode())
    assert KEY.encode() not in out + err
    return Told(process.returncode, out.decode(), err.decode())


async def run(
    tenant: Sandbox, folder: Path, name: str, *arguments: str, stdin: str = "", **variables: object
) -> Told:
    async with started(
        tenant, folder, sys.executable, EXAMPLES / name, *arguments, **variables
    ) as process:
        return await end(process, stdin)


def all_have_access(tenant: Sandbox) -> None:
    """Check that all existing users are enabled, and that no request was repeated without need."""
    assert tenant.stats().users == {"enabled": 20, "disabled": 0}
    assert tenant.stats().by_status == {"200": 20, "404": 1, "503": 1}


def key_in_no_file(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path.name for path in files if KEY.encode() in path.read_bytes()]


def write_csv(path: Path, ids: list[str]) -> None:
    rows = "".join(f"{user_id},HELP-7\n" for user_id in ids)
    path.write_text(f"user_id,ticket\n{rows}", encoding="utf-8-sig")


async def test_from_csv_writes_the_failures_out_and_goes_on(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    write_csv(tmp_path / "users.csv", ids)
    command = ("from_csv.py", "users.csv", "failed.csv")
    assert await run(tenant, tmp_path, *command) == (
        1,
        "",
        "20 of 21 are enabled; failed.csv has the others\n",
    )
    all_have_access(tenant)
    assert journals.outcomes(tmp_path / "users.csv.journal") == {"enabled": 20, "failed": 1}
    with (tmp_path / "failed.csv").open(encoding="utf-8", newline="") as file:
        [failure] = csv.DictReader(file)
    assert failure["user_id"] == GONE
    assert failure["status"] == "failed"
    assert failure["why"].startswith(REFUSED)

    tenant.add_user(GONE)
    assert await run(tenant, tmp_path, *command) == (0, "", "")
    assert not tenant.is_disabled(GONE)
    assert tenant.stats().requests == 23
    assert (tmp_path / "failed.csv").read_text(encoding="utf-8").split() == ["user_id,status,why"]
    key_in_no_file(tmp_path)


async def test_from_sql_has_each_outcome_in_its_table_and_goes_on(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    write_table(tmp_path / "users.db", ids)
    assert await run(tenant, tmp_path, "from_sql.py", "users.db") == (1, "", "")
    all_have_access(tenant)
    found = rows(tmp_path / "users.db")
    assert found.pop(GONE)[0] == "failed"
    assert set(found.values()) == {("enabled", None)}
    assert len(found) == 20

    tenant.add_user(GONE)
    assert await run(tenant, tmp_path, "from_sql.py", "users.db") == (0, "", "")
    assert tenant.stats().requests == 23
    assert set(rows(tmp_path / "users.db").values()) == {("enabled", None)}
    key_in_no_file(tmp_path)


async def test_from_sql_reads_page_by_page(tmp_path: Path) -> None:
    async with Sandbox(users=1100, api_key=KEY) as tenant:
        write_table(tmp_path / "users.db", tenant.user_ids())
        assert await run(tenant, tmp_path, "from_sql.py", "users.db") == (0, "", "")
        assert tenant.stats().users == {"enabled": 1100, "disabled": 0}
        assert tenant.stats().requests == 1100


async def test_from_sql_tells_of_every_row_also_of_an_empty_id(
    tenant: Sandbox, tmp_path: Path
) -> None:
    write_table(tmp_path / "users.db", ["", *tenant.user_ids()])
    assert await run(tenant, tmp_path, "from_sql.py", "users.db") == (1, "", "")
    assert tenant.stats().by_status == {"200": 20}
    status, why = rows(tmp_path / "users.db").pop("")
    assert status == "failed"
    assert why


def write_table(path: Path, ids: list[str]) -> None:
    """Create the table as the docstring of the example says."""
    source = (EXAMPLES / "from_sql.py").read_text(encoding="utf-8")
    [table] = re.findall(r"^The table: (CREATE TABLE .*?\))$", source, re.DOTALL | re.MULTILINE)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(table)
        db.executemany("INSERT INTO access (user_id) VALUES (?)", [(user_id,) for user_id in ids])


def rows(path: Path) -> dict[str, tuple[str, str | None]]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT user_id, status, why FROM access")
        return {user_id: (status, why) for user_id, status, why in found}


async def test_own_progress_shows_the_bar_and_each_failure(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    (tmp_path / "users.txt").write_text("\n".join(ids), encoding="utf-8")
    command = ("own_progress.py", "users.txt")
    code, out, err = await run(tenant, tmp_path, *command, COLUMNS=400)
    assert (code, err) == (0, "")
    assert f"{REFUSED} [trace " in out
    assert re.search(r"^Enabling ━+ 21/21", out, re.MULTILINE)
    all_have_access(tenant)


async def test_from_queue_enables_what_comes_until_no_more_does(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    stdin = "".join(f"{user_id}\n" for user_id in ids)
    code, out, err = await run(tenant, tmp_path, "from_queue.py", stdin=stdin)
    assert (code, out) == (0, "")
    *outcomes, last = logged(err)
    assert last == "Done: 20 of 21 enabled"
    ids.remove(GONE)
    [failure] = set(outcomes) - {f"{user_id}: enabled" for user_id in ids}
    assert failure.startswith(f"{GONE}: {REFUSED}")
    assert len(outcomes) == 21
    all_have_access(tenant)


async def test_from_queue_ends_on_sigterm_with_its_calls_finished(
    tenant: Sandbox, tmp_path: Path
) -> None:
    tenant.latency = 2
    first, *others = tenant.user_ids()
    async with started(tenant, tmp_path, sys.executable, EXAMPLES / "from_queue.py") as process:
        assert process.stdin
        process.stdin.write(f"{first}\n".encode())
        await until(lambda: tenant.stats().in_flight == 1)
        process.stdin.writelines(f"{user_id}\n".encode() for user_id in others)
        await process.stdin.drain()
        process.send_signal(signal.SIGTERM)
        # Its stdin is still open, so only the signal can have ended it.
        await asyncio.wait_for(process.wait(), 90)
        code, _, err = await end(process)
    assert code == 0
    assert logged(err) == [f"{first}: enabled", "Done: 1 of 1 enabled"]
    assert tenant.stats().by_status == {"200": 1}


async def test_from_queue_gives_back_only_who_must_come_again(
    tenant: Sandbox, tmp_path: Path
) -> None:
    first, waiting, *_ = tenant.user_ids()
    tenant.script(waiting, "503:30")
    async with started(tenant, tmp_path, sys.executable, EXAMPLES / "from_queue.py") as process:
        assert process.stdin
        process.stdin.write(f"{first}\n{GONE}\n{waiting}\n".encode())
        await until(lambda: tenant.stats().by_status == {"200": 1, "404": 1, "503": 1})
        process.send_signal(signal.SIGTERM)
        code, out, err = await end(process)
    assert (code, out) == (0, f"{waiting}\n")
    assert logged(err)[-1] == "Done: 1 of 3 enabled"


async def test_from_queue_gives_back_whom_a_refused_key_stopped(
    tenant: Sandbox, tmp_path: Path
) -> None:
    tenant.api_key = "another"
    told = await run(tenant, tmp_path, "from_queue.py", stdin="ada\n", **{config.API_KEY: KEY})
    assert (told.code, told.out) == (1, "ada\n")


def logged(err: str) -> list[str]:
    """Return the log lines of the example, without those of the library."""
    ours = "from_queue: "
    return [line.removeprefix(ours) for line in err.splitlines() if line.startswith(ours)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110  what it looks at sets no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["from_csv.py", "from_sql.py", "own_progress.py", "from_queue.py"])
async def test_a_refused_key_is_told_in_one_line(
    tenant: Sandbox, tmp_path: Path, name: str
) -> None:
    write_csv(tmp_path / "users.csv", ["ada"])
    (tmp_path / "users.txt").write_text("ada\n", encoding="utf-8")
    write_table(tmp_path / "users.db", ["ada"])
    inputs = {
        "from_csv.py": ("users.csv", "failed.csv"),
        "from_sql.py": ("users.db",),
        "own_progress.py": ("users.txt",),
    }
    tenant.api_key = "another"
    told = await run(
        tenant, tmp_path, name, *inputs.get(name, ()), stdin="ada\n", **{config.API_KEY: KEY}
    )
    assert told.code == 1
    assert "Traceback" not in told.err
    assert re.search(r"the run was stopped.*401 Unauthorized", told.err.splitlines()[-1])
    assert tenant.stats().by_status == {"401": 1}


async def test_the_notebook_ends_with_a_table_of_outcomes(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    for cell in notebook(EXAMPLES / "notebook.ipynb"):
        assert cell.get("execution_count") is None
        assert not cell.get("outputs")

    shutil.copy(EXAMPLES / "notebook.ipynb", tmp_path)
    (tmp_path / "users.txt").write_text("\n".join(ids), encoding="utf-8")
    jupyter = (sys.executable, "-m", "jupyter", "execute", "notebook.ipynb", "--output", "done")
    homes = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"), tmp_path)
    async with started(tenant, tmp_path, *jupyter, **homes) as process:
        done = await end(process)
    assert done.code == 0, done.err
    all_have_access(tenant)
    count, table, reasons, again = shown(tmp_path / "done.ipynb")
    assert count["text/plain"] == "21"
    lines = table["text/markdown"].splitlines()
    assert lines[0] == "| status | users | examples |"
    assert any(re.fullmatch(r"\| enabled \| 20 \| \w+, \w+, \w+ \|", line) for line in lines)
    assert f"| failed | 1 | {GONE} |" in lines
    assert REFUSED in reasons["text/plain"]
    assert again["text/plain"] == "(0, 0)"
    key_in_no_file(tmp_path)


def notebook(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def shown(path: Path) -> list[dict[str, str]]:
    """Return the outputs of the cells, by kind."""
    outputs = [output for cell in notebook(path) for output in cell.get("outputs", ())]
    return [{kind: "".join(text) for kind, text in one["data"].items()} for one in outputs]


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # as configparser's page says
    parser.read(EXAMPLES / name, encoding="utf-8")
    return parser


async def test_the_service_does_its_command_every_time_it_is_started(
    tenant: Sandbox, ids: list[str], tmp_path: Path
) -> None:
    service = unit("re-enable.service")["Service"]
    assert service["Type"] == "oneshot"
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    (tmp_path / "key").chmod(0o600)
    line = service["ExecStart"].replace("${CREDENTIALS_DIRECTORY}", str(tmp_path))
    program, *arguments = shlex.split(line)
    assert Path(program).name == "monocloud-async"
    state = tmp_path / "state"
    state.mkdir()

    async def start() -> Told:
        # As systemd does: the domain from the environment's file, the key from one of its own.
        variables = {config.API_KEY: ""}
        async with started(tenant, state, *PROGRAM, *arguments, **variables) as process:
            return await end(process)

    write_csv(state / "users.csv", ids)
    code, out, err = await start()
    assert code == 1
    assert re.search(r"^ *20 +enabled", out, re.MULTILINE)
    assert "The journal of this run is users.csv.journal" in err
    assert (state / "failed.csv").read_text(encoding="utf-8-sig").split() == [
        "user_id,ticket",
        f"{GONE},HELP-7",
    ]
    all_have_access(tenant)

    tenant.add_user(GONE)
    tenant.add_user("late")
    with (state / "users.csv").open("a", encoding="utf-8") as file:
        file.write("late,HELP-8\n")
    code, out, err = await start()
    assert code == 0
    assert re.search(r"^ *20 +enabled before, according to the journal", out, re.MULTILINE)
    assert "Resuming the run of the journal users.csv.journal" in err
    assert tenant.stats().users == {"enabled": 22, "disabled": 0}
    assert tenant.stats().requests == 24
    key_in_no_file(state)


def test_the_timer_starts_the_service_and_is_started_itself() -> None:
    timer = unit("re-enable.timer")
    assert "OnCalendar" in timer["Timer"]
    assert "Unit" not in timer["Timer"]  # so it is the service of the same name
    assert timer["Install"]["WantedBy"] == "timers.target"
    service = unit("re-enable.service")
    assert service["Unit"]["ConditionPathExists"] == "%S/re-enable/users.csv"
    assert service["Service"]["WorkingDirectory"] == "%S/re-enable"
    assert "Install" not in service  # only the timer starts it


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_has_nothing_against_the_units(tmp_path: Path) -> None:
    text = (EXAMPLES / "re-enable.service").read_text(encoding="utf-8")
    # It looks whether the program is there.
    text, places = re.subn(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text)
    assert places == 1
    (tmp_path / "re-enable.service").write_text(text, encoding="utf-8")
    shutil.copy(EXAMPLES / "re-enable.timer", tmp_path)
    units = [tmp_path / name for name in ("re-enable.service", "re-enable.timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name",
    [
        "from_csv.py",
        "from_sql.py",
        "from_queue.py",
        "own_progress.py",
        "notebook.ipynb",
        "re-enable.service",
        "re-enable.timer",
    ],
)
def test_the_page_names_the_example(name: str) -> None:
    assert f"[{name}](examples/{name})" in PAGE


def test_the_page_is_short() -> None:
    assert PAGE.count("\n") < 120


def test_the_page_shows_code_as_it_stands_in_the_files() -> None:
    files = [path.read_text(encoding="utf-8") for path in EXAMPLES.iterdir() if path.is_file()]
    files += ["".join([*cell["source"], "\n"]) for cell in notebook(EXAMPLES / "notebook.ipynb")]
    blocks = re.findall(r"^```(?:python|ini)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    assert [block for block in blocks if not any(block in text for text in files)] == []


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", PAGE):
        assert (DOCS / target).exists(), target
