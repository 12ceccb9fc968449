"""The code blocks of README.md and of the pages work unchanged."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from _pytest.mark import ParameterSet

from monocloud_async import MonoCloudSession
from monocloud_async.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
# Pages whose blocks need no setup; the others have their own tests.
PAGES = (
    "README.md",
    *(f"docs/{page}.md" for page in ("bulk", "design", "observability", "pace", "security")),
)
DOMAIN = "acme.eu.monocloud.com"


def blocks() -> Iterator[ParameterSet]:
    files = {path.read_text(encoding="utf-8") for path in (ROOT / "docs/examples").glob("*.py")}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            if found[1] not in files:  # they are run as files
                yield pytest.param(found[1], id=f"{page}:{line}")


@pytest.mark.parametrize("block", list(blocks()))
async def test_a_block_runs_against_a_tenant(
    block: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DOMAIN in block
    monkeypatch.chdir(tmp_path)  # a page may leave a journal
    async with Sandbox(users=["UOtBaOybB6dTpIJNrnkRw", "ada", "bob"]) as sandbox:
        names = {
            "MonoCloudSession": MonoCloudSession,
            "api_key": sandbox.api_key,
            "user_ids": ["UOtBaOybB6dTpIJNrnkRw", "ada", "nobody"],
        }
        source = block.replace(DOMAIN, sandbox.url)
        code = compile(source, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await run(code, names)
        assert sandbox.stats().requests > 0
    if "print(report.enabled" in block:
        assert "2 1 0\n" in capsys.readouterr().out


async def run(code: CodeType, names: dict[str, object]) -> None:
    result = eval(code, names)  # noqa: S307  our own page
    assert inspect.isawaitable(result)
    await result


def test_the_readme_is_short_and_opens_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    commands = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert commands[0].rstrip().endswith("monocloud-async demo")
    assert commands[1].rstrip().endswith("pytest -q")


@pytest.mark.parametrize(
    "page", ["README.md", *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target
