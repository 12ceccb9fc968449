"""The code of three documentation pages works unchanged, and prints what the pages show.

A ```text block is what the block before it prints. docs/tutorial.md is one walk, in two terminals.
The blocks of the other pages stand for themselves; each meets a tenant of its own.
"""

import ast
import asyncio
import inspect
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import journals
import pytest
import trustme
from raw_server import Peer, RawServer, http
from terminal import wait_for
from test_docs import DOMAIN, run
from test_docs_bulk import free_port

from monocloud_async import MonoCloudSession, config
from monocloud_async.sandbox import Sandbox

pytestmark = pytest.mark.process

DOCS = Path(__file__).parents[2] / "docs"
MOST_LINES = {"tutorial.md": 170, "errors.md": 170, "network.md": 150}

# What varies: times, traces, and how far a run had come at Ctrl-C.
VARIES = (
    (r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", "TRACE"),
    (r"[\d,.]+ (ms|s|users a second|requests|calls in flight)\b", r"N \1"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "THEN"),
)
INTERRUPTED = ((r"(?m)^ *[\d,]+( +enabled)", r"N\1"), (r"(?m)^( *THEN +N s) +[\d,]+", r"\1 N"))

PROGRAMS = {"monocloud-async": "-m monocloud_async", "pip": "-m pip", "python": ""}
USERS = ["UOtBaOybB6dTpIJNrnkRw", "ada", "bob", "eve", "ivy", "max"]
SCRIPTS: dict[str, tuple[int | str, ...]] = {
    "bob": (503, 503, 503, 503),
    "eve": ("422:identity",),
    "ivy": ("429:90",),
    "max": ("hang",),
}


class Block(NamedTuple):
    """One executed block of a page, with its output if the page shows it."""

    place: str
    language: str
    code: str
    printed: str | None

    def on_port(self, port: str) -> "Block":
        """Return the block with another port than 8080."""
        printed = None if self.printed is None else self.printed.replace("8080", port)
        return self._replace(code=self.code.replace("8080", port), printed=printed)


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        place = f"{page}:{text.count(chr(10), 0, fence.start()) + 1}"
        language, code = fence.groups()
        if language != "text":
            assert language in {"sh", "python"}, place
            found.append(Block(place, language, code, None))
        else:
            assert found, place
            assert found[-1].printed is None, f"{place} has no block before it"
            found[-1] = found[-1]._replace(printed=code)
    return found


def check(block: Block, printed: str, *, interrupted: bool = False) -> None:
    """Check that the output matches the page, except for what varies."""
    if block.printed is None:
        return
    expected = shape(block.printed, interrupted=interrupted)
    assert shape(printed, interrupted=interrupted) == expected, block.place


def shape(text: str, *, interrupted: bool) -> list[str]:
    for pattern, stands_for in (*VARIES, *(INTERRUPTED if interrupted else ())):
        text = re.sub(pattern, stands_for, text)
    # Tables are as wide as their numbers, and a terminal shows which key was pressed.
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if line not in {"", "^C"}]


# In a terminal


class Terminal:
    """A shell that runs one block after the other."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, module in PROGRAMS.items():
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
            program.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",  # everything is already installed
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "COLUMNS": "100",
            **environment,
        }
        self._shell = self.start("sh", stdin=subprocess.PIPE)
        self._last: Block | None = None
        self._tell("trap : INT\n")  # a terminal's own shell outlives Ctrl-C

    def start(self, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a program with stdout and stderr in one stream."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def type(self, block: Block) -> None:
        """Start to run a block."""
        self._last = block
        self._tell(f"{{ {block.code}\n}} </dev/null; printf '\\n== %s\\n' $?\n")

    def read(self) -> str:
        """Wait for the block and return its output; the page must show a failure."""
        assert self._shell.stdout
        assert self._last
        printed = ""
        for line in self._shell.stdout:
            if line.startswith("== "):
                assert line == "== 0\n" or self._last.printed, f"{self._last.place}: {printed}"
                return printed
            printed += line
        raise AssertionError(f"{self._last.place}: the shell is gone: {printed}")

    def press_ctrl_c(self) -> None:
        """Interrupt the foreground program."""
        os.killpg(self._shell.pid, signal.SIGINT)

    def close(self) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)  # and what still runs in front of it
        with self._shell:  # closes the pipes
            pass

    def _tell(self, text: str) -> None:
        assert self._shell.stdin
        self._shell.stdin.write(text)
        self._shell.stdin.flush()


@contextmanager
def terminal(folder: Path, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(folder, **environment)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def in_a_terminal_of_its_own(shell: Terminal, block: Block) -> Iterator[None]:
    """Start a program that keeps running, and check its first output."""
    with shell.start("sh", "-c", f"exec {block.code}") as program:
        try:
            assert program.stdout
            assert block.printed, block.place
            lines = block.printed.count("\n")
            check(block, "".join(program.stdout.readline() for _ in range(lines)))
            yield
        finally:
            program.terminate()


def enabled(journal: Path) -> int:
    """Return how many users the run has enabled so far."""
    return journals.outcomes(journal)["enabled"] if journal.exists() else 0


def test_the_tutorial_is_a_walk_to_a_finished_run(tmp_path: Path) -> None:
    port = str(free_port())
    journal, interrupted = tmp_path / "users.csv.journal", False
    install, sandbox, *others = (block.on_port(port) for block in blocks("tutorial.md"))
    with terminal(tmp_path) as shell:
        shell.type(install)
        shell.read()
        with in_a_terminal_of_its_own(shell, sandbox):
            for block in others:
                if block.language == "python":
                    name = re.match(r"# (\w+\.py)\n", block.code)
                    assert name, f"{block.place} does not say which file it is"
                    (tmp_path / name[1]).write_text(block.code)
                    continue
                shell.type(block)
                if "^C" in (block.printed or ""):
                    interrupted = True
                    wait_for(lambda: enabled(journal) > 200)
                    shell.press_ctrl_c()
                check(block, shell.read(), interrupted=interrupted)
    assert interrupted
    assert journals.outcomes(journal) == {"enabled": 999, "failed": 1}


# Against a tenant behind a network


class Network:
    """A sandbox, a TLS terminator in front of it, and a proxy that tunnels to any host.

    Attributes:
        authority: who signs certificates here; nobody else knows it.
        certificates: of the clients, one for each connection that had one.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.tenant = sandbox
        self.authority = trustme.CA()
        self.certificates: list[object] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        self.authority.configure_trust(context)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        self.front = RawServer(self._end_tls, tls=context)
        self.proxy = RawServer(self._tunnel)

    def trusting(self) -> ssl.SSLContext:
        """Return the context of a client that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def here(self, code: str) -> str:
        """Return the code with the addresses of this network."""
        proxy = self.proxy.url.removeprefix("http://")
        for there, address in (
            (f'"{DOMAIN}', f'"{self.front.url}'),
            (f" {DOMAIN}", f" {self.front.url}"),
            ("proxy.example:3128", proxy),
        ):
            code = code.replace(there, address)
        return code

    async def _end_tls(self, peer: Peer) -> None:
        if certificate := peer._writer.get_extra_info("peercert"):
            self.certificates.append(certificate)
        await passed_on(peer, self.tenant.port)

    async def _tunnel(self, peer: Peer) -> None:
        method, target, _ = (await peer.request()).split(b" ", 2)
        if method != b"CONNECT":
            return
        await peer.send(http(b"", length=False))
        await passed_on(peer, int(target.rpartition(b":")[2]))


async def passed_on(peer: Peer, port: int) -> None:
    """Forward bytes in both directions, until one side ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ways = [
        asyncio.create_task(copied(peer._reader, writer)),
        asyncio.create_task(copied(reader, peer._writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        writer.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def copied(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        sink.write(data)
        await sink.drain()


@asynccontextmanager
async def network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """Set up the sandbox, the files and the settings that network.md assumes."""
    async with Sandbox(users=USERS) as sandbox:
        for user_id, steps in SCRIPTS.items():
            sandbox.script(user_id, *steps)
        around = Network(sandbox)
        around.authority.cert_pem.write_to_path(folder / "company-ca.pem")
        around.authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(
            folder / "client.pem"
        )
        async with around.front, around.proxy:
            for name in ("no_proxy", "NO_PROXY", "https_proxy"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("HTTPS_PROXY", around.proxy.url)
            monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", around.trusting())
            monkeypatch.chdir(folder)
            yield around


@pytest.mark.parametrize(
    "block", blocks("errors.md") + blocks("network.md"), ids=lambda block: block.place
)
async def test_a_block_prints_what_its_page_shows(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with network(tmp_path, monkeypatch) as around:
        code = around.here(block.code)
        if block.language == "sh":
            with terminal(tmp_path, **{config.API_KEY: around.tenant.api_key}) as shell:
                shell.type(block._replace(code=code))
                printed = await asyncio.to_thread(shell.read)
        else:
            await in_python(code, block.place, around.tenant.api_key)
            # Where nobody sets up logging, Python prints warnings as they are.
            warned = [f"{r.message}\n" for r in caplog.records if r.levelno >= logging.WARNING]
            printed = capsys.readouterr().out + "".join(warned)
        check(block, printed)
        assert around.tenant.stats().requests > 0
        assert bool(around.proxy.requests) == ("proxy" in block.code.lower())
        for request in around.proxy.requests:
            assert (b"Proxy-Authorization: Basic" in request) == ("password@" in block.code)
            assert around.tenant.api_key.encode() not in request
        assert bool(around.certificates) == ("client certificate" in block.code)


async def in_python(code: str, place: str, api_key: str) -> None:
    """Run a block with the names that every page assumes."""
    names = {
        "MonoCloudSession": MonoCloudSession,
        "api_key": api_key,
        "user_ids": ["UOtBaOybB6dTpIJNrnkRw", "ada", "nobody"],
    }
    compiled = compile(code, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await run(compiled, names)
    else:  # it may bring an event loop of its own
        await asyncio.to_thread(exec, compiled, names)


@pytest.mark.parametrize("page", MOST_LINES)
def test_a_page_is_short_and_its_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES[page]
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        path, _, heading = target.partition("#")
        other = (DOCS / path).read_text(encoding="utf-8") if path else text
        headings = re.findall(r"^#+ (.+)$", other, re.MULTILINE)
        assert not heading or heading in {slug(found) for found in headings}, target


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
