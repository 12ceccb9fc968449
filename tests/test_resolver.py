"""Names are looked up as aiohttp does it, and nobody waits for a look-up that takes too long."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from terminal import wait_for

import monocloud_async
from monocloud_async.resolver import Resolver

SILENT = """
import pathlib, socket, sys, threading
def look_up(*_args, **_options):
    pathlib.Path("began").touch()
    threading.Event().wait()
socket.getaddrinfo = look_up
"""


@pytest.mark.process
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_process_ends_although_the_name_servers_are_silent(loop: str, tmp_path: Path) -> None:
    pytest.importorskip(loop)
    without = "" if loop == "uvloop" else "sys.modules['uvloop'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(SILENT + without)
    command = [sys.executable, "-m", "monocloud_async", "whoami", "--domain", "acme.invalid"]
    key = {
        "MONOCLOUD_MANAGEMENT_API_KEY": "k",
        "PYTHONPATH": f"{tmp_path}:{Path(monocloud_async.__file__).parents[1]}",
    }
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | key) as process:
        try:
            wait_for((tmp_path / "began").exists)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNSPEC])
async def test_the_answer_is_that_of_aiohttp(
    family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(
        host: str,
        port: int,
        family: int = 0,
        type: int = 0,  # noqa: A002  as getaddrinfo calls it
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, ...]]:
        asked.append((host, port, family, type, proto, flags))
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 1)),
        ]

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    ours = await Resolver().resolve("acme.invalid", 443, family)
    assert ours == await aiohttp.ThreadedResolver().resolve("acme.invalid", 443, family)
    assert len(ours) == 3
    assert ours[2]["host"].startswith("fe80::1%")
    assert asked[0] == asked[1]
    assert asked[0][:3] == ("acme.invalid", 443, family)


async def test_a_name_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(socket.gaierror, match="unknown"):
        await Resolver().resolve("acme.invalid")


async def test_a_look_up_that_nobody_waits_for_any_more_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look_up(*_args: object, **_options: object) -> list[object]:
        began.set()
        end.wait(60)
        threads.append(threading.current_thread())
        return []

    began, end, threads = threading.Event(), threading.Event(), list[threading.Thread]()
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolving = asyncio.create_task(Resolver().resolve("acme.invalid"))
    await asyncio.to_thread(began.wait, 60)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving
    end.set()
    await asyncio.to_thread(wait_for, lambda: bool(threads))
    await asyncio.to_thread(threads[0].join)
    assert not caplog.records  # an error in the thread would also be a warning, which fails


async def test_a_thread_that_cannot_start_is_a_fault_of_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread for the look-up"):
        await resolver.resolve("acme.invalid", 443)
