"""A run as a page, in a real browser."""

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright
from recorded import NASTY, TENANT, outcome, told

from monocloud_async.cli import main
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.store import InputInfo, JournalStore, Rows, Sample
from monocloud_async.report.page import page
from monocloud_async.report.rows import failures

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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
    assert "of 99,999 users who are not enabled;" in text
    assert re.search(r"also finds [\d,]+ of 900,001 other users;", text)
    assert len(list(failures(path))) == 99_999


@asynccontextmanager
async def opened(
    html: Path, *, width: int, scheme: str, scripts: bool = True
) -> AsyncIterator[Page]:
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
            java_script_enabled=scripts,
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


@pytest.mark.process
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
        assert await view.inner_text("#shown") == "11 of 35 shown; 0 other users found"
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


@pytest.mark.process
@pytest.mark.parametrize("width", [320, 740, 1200])
async def test_no_long_word_makes_the_page_wider_than_the_screen(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE users SET title = ?, trace_id = ? WHERE error > ''", ("W" * 500,) * 2)
        sql.execute("UPDATE users SET user_id = ? WHERE position = 0", ("i" * 1024,))
        sql.execute("UPDATE header SET input = ?", (f"/{'x' * 200}.csv",))
        sql.execute("UPDATE input SET about = 2147483647")
        sql.execute("UPDATE sittings SET how = 'interrupted'")
    told(capsys, journal, "-o", tmp_path / "run.html")
    async with opened(tmp_path / "run.html", width=width, scheme="light") as view:
        assert await view.evaluate("document.documentElement.scrollWidth") <= width
        tiles = "[...document.querySelectorAll('.cards b')]"
        assert await view.evaluate(f"{tiles}.every(b => b.scrollWidth <= b.clientWidth)")
        message = view.locator("#failures td[data-name=Message]").first
        assert await message.evaluate("cell => cell.clientWidth") >= 140


@pytest.mark.process
async def test_ids_do_no_harm_in_the_page(html: Path) -> None:
    assert "\u202e" not in html.read_text(encoding="utf-8")
    async with opened(html, width=1200, scheme="light") as view:
        users = await view.locator("#failures td[data-name=User]").all_inner_texts()
        assert users[: len(NASTY)] == [name.replace("\u202e", "\\u202e") for name in NASTY]
        assert await view.locator("#failures script, #failures img").count() == 0
        assert await view.title() == "Run of users.csv"


@pytest.mark.process
async def test_a_screen_reader_finds_its_way(html: Path) -> None:
    async with opened(html, width=1200, scheme="light") as view:
        tree = await view.locator("main").aria_snapshot()
    for found in (
        'heading "users.csv on https://acme.eu.monocloud.com" [level=1]',
        'figure "Users a second"',
        'searchbox "Find a user"',
        'combobox "Message"',
        "status: 35 of 35 shown",
        'table "Users who are not enabled"',
        'columnheader "Trace"',
        "users a second on average",
    ):
        assert found in tree, found
    assert "- img" not in tree  # the drawings are hidden: their figures are tables


def test_without_its_extra_the_page_says_what_to_install(
    journal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "monocloud_async.report.page", None)
    assert main(["report", str(journal), "-o", "run.html"]) == 2
    assert "pip install 'monocloud-async[report]'" in capsys.readouterr().err


@pytest.mark.process
async def test_any_user_of_the_run_is_found_on_the_page(html: Path) -> None:
    async with opened(html, width=1200, scheme="light") as view:
        found = view.locator("#found li")
        assert await found.count() == 0
        await view.fill("#filter", "user17")
        assert await found.count() == 11
        assert (await found.first.inner_text()).startswith("user17: enabled at 2026-")
        assert await view.inner_text("#shown") == "0 of 35 shown; 11 other users found"
        await view.fill("#filter", "user")
        assert await found.count() == 20
        assert "200 other users found, the first 20 shown" in await view.inner_text("#shown")


@pytest.mark.process
async def test_without_javascript_the_page_has_all_but_the_search(html: Path) -> None:
    async with opened(html, width=1200, scheme="light", scripts=False) as view:
        assert await view.locator("#failures tbody tr:visible").count() == 35
        assert await view.locator("input:visible, select:visible").count() == 0
        assert "--user ID finds any user" in await view.inner_text("main")
    async with opened(html, width=1200, scheme="light") as view:
        assert await view.locator("input:visible").count() == 1
        assert "--user ID finds any user" not in await view.inner_text("main")


def test_the_page_tells_whether_the_run_is_finished(journal: Path) -> None:
    assert 'class="banner"' in (text := page(journal))
    assert "Finished: all 235 users were asked for" in text
    with closing(sqlite3.connect(journal, isolation_level=None)) as sql:
        sql.execute("UPDATE sittings SET how = 'interrupted' WHERE sitting = 2")
        sql.execute("UPDATE input SET ids = 1500, bad_lines = 1")
        sql.execute("INSERT INTO bad_lines VALUES (7, 1, 'is <b>bad</b>')")
        sql.execute(
            "INSERT OR REPLACE INTO commands VALUES (2, 'ann', '/', 'run <i>', 'HELP-7', 'SIGINT')"
        )
    text = page(journal, lacking="the input is gone")
    assert 'class="banner unfinished"' in text
    assert "Not finished (interrupted by SIGINT): 15 %, 1,265 of 1,500 users not yet" in text
    assert "does not list the users who were never asked for: the input is gone." in text
    assert "line 7 is &lt;b&gt;bad&lt;/b&gt;" in text
    assert "run &lt;i&gt;" in text
    assert "HELP-7" in text
