"""The report of a journal: in the terminal, as a file of failures, and as a page."""

import asyncio
import csv
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import journals
import pytest
from playwright.async_api import Page, async_playwright

from monocloud_async import (
    MonoCloudSession,
    NotFoundError,
    Outcome,
    ProblemDetails,
    RetryPolicy,
    User,
)
from monocloud_async.cli import main
from monocloud_async.endpoint import ENABLE
from monocloud_async.inputs.reader import open_ids
from monocloud_async.journal.file import JournalFile
from monocloud_async.journal.store import InputInfo, JournalStore, Rows, Sample
from monocloud_async.report.figures import Halt, failures, read
from monocloud_async.report.page import page
from monocloud_async.sandbox import Sandbox

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TENANT = "https://acme.eu.monocloud.com"
NASTY = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\uff1d1",
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=document.title="owned">',
    "evil\u202egpj.exe",
    "a,b;c",
    "{{ 7 * 7 }}",
]


def outcome(position: int, user_id: str, error: str = "", *, attempts: int = 1) -> Outcome:
    if not error:
        user = User(user_id=user_id)
        return Outcome(
            user_id=user_id, position=position, status="enabled", user=user, attempts=attempts,
            seconds=0.001 * (position % 100 + 1),
        )  # fmt: skip
    problem = ProblemDetails(title=error, trace_id="00-abc-01")
    refused = NotFoundError(status=404, user_id=user_id, problem=problem)
    return Outcome(user_id=user_id, position=position, status="failed", error=refused, attempts=1)


def write(path: Path, outcomes: list[Outcome], source: InputInfo = InputInfo()) -> Path:  # noqa: B008  frozen
    """A journal of two runs: a second each, the first one killed, a pause and an outage."""
    middle = len(outcomes) // 2
    for number, part in enumerate((outcomes[:middle], outcomes[middle:])):
        records = JournalStore(path, TENANT, ENABLE, source)
        records.open()
        began = 1_790_000_000_000 + number * 86_400_000
        for tick in range(10):
            at = began + 100 * tick
            records.write(Rows.of(part[tick::10], at), at)
        records.add_sample(Sample(10, 1, 0, 0, down=False), began + 300)
        records.add_sample(Sample(15, 1, 2, 200, down=False), began + 600)
        end = "finished" if number else None
        records.add_sample(Sample(20, 2, 3, 200, down=bool(number)), began + 1000, end)
        records.close()
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    names = [f"user{n}" for n in range(200)] + NASTY + [f"ghost{n}" for n in range(25)]
    outcomes = [
        outcome(place, name, "" if name.startswith("user") else "Not Found", attempts=place % 3 + 1)
        for place, name in enumerate(names)
    ]
    source = InputInfo("users.csv", "csv", "id")
    return write(tmp_path / "users.csv.journal", outcomes, source)


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["report", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_the_night_after_a_kill_is_no_work(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(journal)) as sql:
        # The first users of the next run may have a time just before its start.
        sql.execute(
            "UPDATE users SET at = (SELECT max(began) FROM sittings) - 5 WHERE position = 140"
        )
        sql.commit()
    assert "2.0 s of work" in told(capsys, journal)


def test_the_summary_tells_what_became_of_everybody(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys, journal)
    assert f"users.csv on {TENANT}, from the journal {journal}"[:60] in out
    assert re.search(r"^200 +enabled", out, re.MULTILINE)
    assert re.search(r"^ +35 +failed", out, re.MULTILINE)
    assert "2.0 s of work, 118 users a second" in out
    assert "40 requests, 4 of them retries, 6 answered 429" in out
    assert "paused for 0.4 s" in out
    assert "within 50 ms, 90 % within 90 ms, 99 % within 99 ms, all within 100 ms" in out
    assert "killed" in out
    assert "still running" not in out  # another run came after it
    assert "finished" in out
    assert "404 Not Found" in out
    assert "\u202e" not in out


def test_a_terminal_is_told_no_ids_that_move_its_cursor_or_turn_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a\u202eb", "c\u2066d", "[red]e[/]", "f\u061cg"]
    path = write(tmp_path / "j", [outcome(*each, "\x1b[31mNo\x07") for each in enumerate(names)])
    out = told(capsys, path)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\u2066\u061c]", out)
    assert "a\\u202eb" in out.replace("\\\\", "\\")
    assert "[red]e[/]" in out
    assert "404" in out


def test_the_figures_put_the_runs_one_after_the_other(journal: Path) -> None:
    figures = read(journal)
    assert [run.ended is None for run in figures.runs] == [True, False]
    assert figures.seconds == pytest.approx(2.0)
    assert figures.borders == [pytest.approx(1.0)]
    assert sum(point.done for point in figures.timeline) * figures.step == pytest.approx(200)
    assert sum(point.other for point in figures.timeline) * figures.step == pytest.approx(35)
    assert [(m.what, round(m.start, 3), round(m.end, 3)) for m in figures.halts] == [
        ("paused", 0.3, 0.6),
        ("paused", 1.3, 1.6),
        ("outage", 1.6, 2.0),
    ]
    assert sum(count for _, count in figures.times) == 200
    assert dict(figures.attempts) == {1: 67, 2: 67, 3: 66}
    assert figures.unrecorded == 0
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("DELETE FROM users WHERE position < 3")
    assert read(journal).unrecorded == 3
    assert isinstance(figures.halts[0], Halt)


@pytest.mark.parametrize(
    ("form", "column", "name"),
    [
        ("csv", "id", "out.csv"),
        ("csv", None, "out.csv"),
        ("jsonl", None, "x.jsonl"),
        ("txt", None, "x.txt"),
    ],
)
def test_the_failures_are_a_file_that_bulk_takes_as_exactly_those_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, column: str | None, name: str
) -> None:
    outcomes = [outcome(place, user_id, "No") for place, user_id in enumerate(NASTY)]
    path = write(tmp_path / "j", [*outcomes, outcome(10, "ada")], InputInfo("x", form, column))
    out = told(capsys, path, "--failures", tmp_path / name)
    assert "10 users to retry" in out
    with open_ids(tmp_path / name, None, column) as source:
        assert sorted(line.user_id or "" for line in source) == sorted(NASTY)


def test_no_cell_of_a_csv_is_a_formula(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, journal, "--failures", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert cells[0] == "id"
    assert len(cells) == 36
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"]


async def test_ids_that_cannot_be_sent_are_no_ids_to_feed_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "j"
    async with (
        Sandbox(users=["ada"]) as sandbox,
        MonoCloudSession(sandbox.url, sandbox.api_key) as session,
    ):
        await session.bulk_enable(["ada", "..", "nobody", "x\ud800"], journal=path)
    out = told(capsys, path, "--failures", tmp_path / "out.txt")
    assert "1 users to retry" in out
    assert "2 invalid ids are left out" in out
    assert (tmp_path / "out.txt").read_text() == "nobody\n"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "is still empty"),
        (lambda path: path.write_text("user_id\n"), "is not a journal of this program"),
        (
            lambda path: write(path, [outcome(0, "ada")]).write_bytes(path.read_bytes()[:9000]),
            "read",
        ),
    ],
)
def test_what_is_no_journal_is_an_error_of_usage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    why: str,
) -> None:
    make(tmp_path / "j")
    assert main(["report", str(tmp_path / "j")]) == 2
    assert why in capsys.readouterr().err


def test_the_journal_is_not_overwritten_by_its_report(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = journals.rows(journal)
    for option in ("-o", "--failures"):
        assert main(["report", str(journal), option, str(journal)]) == 2
        assert "is the journal itself" in capsys.readouterr().err
    assert main(["report", str(journal), "-o", "/nowhere/run.html"]) == 2
    assert "cannot write /nowhere/run.html" in capsys.readouterr().err
    assert journals.rows(journal) == before


async def test_a_run_can_be_looked_at_while_it_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "j"
    async with Sandbox(users=20) as sandbox:
        ids = sandbox.user_ids()
        sandbox.script(ids[19], "hang")
        async with (
            MonoCloudSession(sandbox.url, sandbox.api_key) as session,
            session.bulk_enable(ids, journal=path) as run,
        ):
            async with asyncio.timeout(30):
                while not path.exists() or not path.stat().st_size or len(journals.rows(path)) < 19:  # noqa: ASYNC110  another thread writes it
                    await asyncio.sleep(0.01)
            assert read(path).outcomes == {"enabled": 19}
            assert run.in_flight == 1


def test_a_page_of_a_million_users_is_under_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "j"
    records = JournalStore(path, TENANT, ENABLE, InputInfo("users.csv", "csv"))
    records.open()
    records.write(Rows.of([outcome(0, "ada")], 1_790_000_000_000), 1_790_000_000_000)
    records.add_sample(Sample(1, 0, 0, 0, down=False), 1_790_000_600_000, "finished")
    records.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:  # faster than outcomes
        sql.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999999)"
            " INSERT INTO users SELECT i, 'user' || i || hex(zeroblob(i % 500)),"
            " iif(i % 10, 'enabled', 'failed'),"
            " iif(i % 10, 200, 404), 1, abs(random()) % 3000, 1790000000000 + i * 6 / 10,"
            " iif(i % 10, NULL, 'NotFoundError'), iif(i % 10, NULL, 'Said ' || i % 70), NULL FROM n"
        )
    text = page(path)
    assert 200_000 < len(text.encode()) < 1_000_000
    assert "of 99,999;" in text
    assert len(list(failures(path))) == 99_999


@asynccontextmanager
async def opened(html: Path, *, width: int, scheme: str) -> AsyncIterator[Page]:
    """Open the page in a real browser, which must not log errors or request anything."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; .ci/run brings one")
    told: list[str] = []
    async with async_playwright() as browsers:
        flags = ["--disable-background-networking", "--no-first-run", "--disable-gpu"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await browsers.chromium.launch(executable_path=CHROMIUM, args=flags)
        view = await browser.new_page(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        requests: list[str] = []
        view.on("console", lambda message: told.append(message.text))
        view.on("pageerror", lambda error: told.append(str(error)))
        view.on("request", lambda request: requests.append(request.url))
        await view.goto(html.as_uri())
        yield view
        await browser.close()
    assert told == []
    assert requests == [html.as_uri()]


@pytest.fixture
def html(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    told(capsys, journal, "-o", tmp_path / "run.html")
    return tmp_path / "run.html"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, "light"), (1200, "dark"), (375, "light"), (375, "dark")]
)
async def test_the_page_opens_from_disk_and_its_failures_can_be_filtered(
    html: Path, width: int, scheme: str
) -> None:
    async with opened(html, width=width, scheme=scheme) as view:
        rows = view.locator("#failures tbody tr:visible")
        assert await view.title() == "Run of users.csv"
        assert await rows.count() == 35
        assert await view.inner_text("#shown") == "35 of 35 shown"
        await view.fill("#filter", "GHOST1")
        assert await rows.count() == 11
        assert await view.inner_text("#shown") == "11 of 35 shown"
        await view.select_option("#kind", label="404 Not Found")
        assert await rows.count() == 11
        await view.fill("#filter", "no such user")
        assert await rows.count() == 0
        assert await view.evaluate("document.documentElement.scrollWidth") <= width
        drawn = "narrow" if width < 800 else "wide"
        assert await view.locator(f".{drawn} svg:visible").count() == 3
        assert await view.locator("svg:visible").count() == 3
        background = await view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(18, 21, 28)" if scheme == "dark" else "rgb(255, 255, 255)")


async def test_ids_do_no_harm_in_the_page(html: Path) -> None:
    assert "\u202e" not in html.read_text(encoding="utf-8")
    async with opened(html, width=1200, scheme="light") as view:
        users = await view.locator("#failures td[data-name=User]").all_inner_texts()
        assert users[: len(NASTY)] == [name.replace("\u202e", "\\u202e") for name in NASTY]
        assert await view.locator("#failures script, #failures img").count() == 0
        assert await view.title() == "Run of users.csv"


async def test_a_screen_reader_finds_its_way(html: Path) -> None:
    async with opened(html, width=1200, scheme="light") as view:
        tree = await view.locator("main").aria_snapshot()
    for found in (
        'heading "users.csv on https://acme.eu.monocloud.com" [level=1]',
        'figure "Users a second"',
        'searchbox "Filter"',
        'combobox "Message"',
        "status: 35 of 35 shown",
        'table "Users who are not enabled"',
        'columnheader "Trace"',
        "118 users a second on average",
    ):
        assert found in tree, found
    assert "- img" not in tree  # the drawings are hidden: their figures are tables


async def test_neither_the_page_nor_the_summary_has_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sentinel-key-4711"
    path = tmp_path / "j"
    async with (
        Sandbox(users=3, api_key=key) as sandbox,
        MonoCloudSession(sandbox.url, key, retry=RetryPolicy(attempts=1)) as session,
    ):
        ids = sandbox.user_ids()
        sandbox.script(ids[1], "reset")
        await session.bulk_enable([*ids, "nobody"], journal=JournalFile(path, sandbox.url))
    out = told(capsys, path, "-o", tmp_path / "run.html", "--failures", tmp_path / "f.txt")
    for text in (out, (tmp_path / "run.html").read_text(), (tmp_path / "f.txt").read_text()):
        assert key not in text
    assert json.dumps(key)[1:-1] not in out


def test_without_its_extra_the_page_says_what_to_install(
    journal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "monocloud_async.report.page", None)
    assert main(["report", str(journal), "-o", "run.html"]) == 2
    assert "pip install 'monocloud-async[report]'" in capsys.readouterr().err


def test_a_clock_that_was_set_back_is_no_reason_to_fail(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in (
        "UPDATE users SET at = at - 3600000 WHERE position > 100",
        "UPDATE sittings SET ended = began - 7200000",
        "UPDATE sittings SET began = began + 864000000 WHERE sitting = 1",
    ):
        with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
            sql.execute(change)
        told(capsys, journal)


def test_an_id_that_begins_with_a_mark_is_fed_back_as_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ["\ufeffnobody1", "\ufeffnobody2"]
    path = write(tmp_path / "j", [outcome(*each, "No") for each in enumerate(ids)])
    told(capsys, path, "--failures", tmp_path / "x.txt")
    with open_ids(tmp_path / "x.txt", None, None) as source:
        assert [line.user_id for line in source] == ids


def test_the_input_is_not_overwritten_by_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("ada\n")
    path = write(tmp_path / "j", [outcome(0, "ada")], InputInfo(str(users)))
    for option in ("-o", "--failures"):
        assert main(["report", str(path), option, str(users)]) == 2
        assert "is the input itself" in capsys.readouterr().err
    assert users.read_text() == "ada\n"
