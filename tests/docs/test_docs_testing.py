"""The code of docs/testing.md works unchanged."""

import argparse
import re
import shlex
from pathlib import Path

import aiohttp
import pytest
from suites import run_suite

from monocloud_async.sandbox import Sandbox
from monocloud_async.sandbox.answers import checked_step

pytestmark = pytest.mark.process

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_is_a_suite_that_passes(block: str, tmp_path: Path) -> None:
    tests = block.count("def test_")
    assert tests > 0
    output = run_suite(tmp_path, block)
    assert f" {tests} passed in " in output, output


async def curl(command: str) -> int:
    """A replacement for curl, as far as the page uses it: not every machine has curl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail-with-body", action="store_true")
    parser.add_argument("-X", dest="method", default="GET")
    parser.add_argument("-H", dest="header")
    parser.add_argument("-d", dest="data")
    parser.add_argument("url")
    name, *words = shlex.split(command.replace("\\\n", " "))
    assert name == "curl"
    options = parser.parse_args(words)
    key, _, value = options.header.partition(": ")
    async with (
        aiohttp.ClientSession() as client,
        client.request(
            options.method, options.url, data=options.data, headers={key: value}
        ) as answer,
    ):
        return answer.status


async def test_the_curl_lines_work_against_a_sandbox() -> None:
    async with Sandbox(users=100) as sandbox:
        for block in blocks("sh"):
            assert "http://127.0.0.1:8080" in block
            assert await curl(block.replace("http://127.0.0.1:8080", sandbox.url)) < 300
        assert sandbox.user_ids()[100:] == ["bob"]
        assert sandbox.stats().requests == 0


def test_every_step_in_the_table_exists() -> None:
    table = PAGE[PAGE.index("| Step |") : PAGE.index("The whole tenant")]
    cells = re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)
    steps = [step.strip('"') for cell in cells for step in re.findall(r"`(.+?)`", cell)]
    assert len(steps) == 12
    assert [checked_step(step) for step in steps] == steps
