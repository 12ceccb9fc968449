"""What docs/testing.md tells people to write works as it stands there."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from suites import run_suite

from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.answers import checked_step

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_is_a_suite_that_passes(block: str, tmp_path: Path) -> None:
    tests = block.count("def test_")
    assert tests > 0
    output = run_suite(tmp_path, block)
    assert f" {tests} passed in " in output, output


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
async def test_the_curl_lines_work_against_a_sandbox() -> None:
    async with Sandbox(users=100) as sandbox:
        for block in blocks("sh"):
            assert "http://127.0.0.1:8080" in block
            command = block.replace("http://127.0.0.1:8080", sandbox.url)
            curl = await asyncio.create_subprocess_shell(command)
            assert await curl.wait() == 0
        assert sandbox.user_ids()[100:] == ["bob"]
        assert sandbox.stats().requests == 0


def test_every_step_in_the_table_exists() -> None:
    table = PAGE[PAGE.index("| Step |") : PAGE.index("The whole tenant")]
    cells = re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)
    steps = [step.strip('"') for cell in cells for step in re.findall(r"`(.+?)`", cell)]
    assert len(steps) == 12
    assert [checked_step(step) for step in steps] == steps
