"""Makes the pictures of bulk.md from a real run: a terminal with tmux, a page with Chromium.

python docs/pictures/make.py
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.async_api import async_playwright
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, LINES = 104, 22
PROMPT = "ready>"
PROGRAM = f"{sys.executable} -m monocloud_async"


def tmux(*argv: str) -> str:
    done = subprocess.run(["tmux", "-L", "pictures", *argv], check=True, capture_output=True)
    return done.stdout.decode()


def terminal(name: str, command: str, shown: str, wait: float) -> None:
    """Save the terminal as SVG, some seconds after the command was started."""
    tmux("send-keys", f"clear; {command}", "Enter")
    time.sleep(wait)
    lines = tmux("capture-pane", "-p", "-e").rstrip().split("\n")
    tmux("send-keys", "C-c", "")
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text(f"$ {shown}", style="bold"))
        console.print(Text.from_ansi("\n".join(line for line in lines if PROMPT not in line)))
        svg = console.export_svg(title="")
    # Remove the fonts, which would be loaded from the network.
    (HERE / name).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


async def page(html: Path) -> None:
    async with async_playwright() as browsers:
        browser = await browsers.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, width, height in [("page-light.png", 1000, 1000), ("page-dark.png", 375, 812)]:
            view = await browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if "dark" in name else "light",
            )
            await view.goto(html.as_uri())
            await view.screenshot(path=HERE / name)
        await browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", name)
        options = "--port 0 --users 30000 --ids ids.txt --rate-limit 900 --burst 1200"
        options += " --error-rate 0.002 --latency 0.02"
        sandbox = subprocess.Popen(
            f"{PROGRAM} sandbox {options}".split(), cwd=folder, stdout=subprocess.PIPE, text=True
        )
        try:
            assert sandbox.stdout is not None
            url = sandbox.stdout.readline().strip()
            ids = (folder / "ids.txt").read_text().split()
            ids[200:200] = [f"nobody{number}" for number in range(7)]
            rows = "".join(f"{user_id},HELP-7\n" for user_id in ids)
            (folder / "users.csv").write_text("user_id,ticket\n" + rows)
            tmux("send-keys", f"PS1='{PROMPT} '", "Enter")
            tmux("send-keys", f"export MONOCLOUD_MANAGEMENT_DOMAIN={url}", "Enter")
            tmux("send-keys", "export MONOCLOUD_MANAGEMENT_API_KEY=sandbox-key", "Enter")
            bulk = "monocloud-async bulk users.csv"
            terminal("run.svg", f"{PROGRAM} bulk users.csv", bulk, 14)
            time.sleep(3)
            environment = {
                **os.environ,
                "MONOCLOUD_MANAGEMENT_DOMAIN": url,
                "MONOCLOUD_MANAGEMENT_API_KEY": "sandbox-key",
            }
            subprocess.run(
                [*PROGRAM.split(), "bulk", "users.csv"], cwd=folder, env=environment, check=False
            )
            report = "monocloud-async report users.csv.journal"
            terminal("report.svg", f"{PROGRAM} report users.csv.journal", report, 3)
            subprocess.run(
                [*PROGRAM.split(), "report", "users.csv.journal", "-o", "run.html"],
                cwd=folder,
                check=True,
            )
            asyncio.run(page(folder / "run.html"))
        finally:
            sandbox.terminate()
            tmux("kill-server")


if __name__ == "__main__":
    main()
