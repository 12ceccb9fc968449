"""The streams of the process, each of which may fail, be slow, or be read by nobody."""

import asyncio
import errno
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from monocloud_async import cli as command_line
from monocloud_async.cli import streams
from monocloud_async.cli.display import Tally, summary
from monocloud_async.cli.streams import Output, own_streams
from monocloud_async.endpoint import ENABLE
from monocloud_async.outcome import BulkReport


class File:
    """A file that takes what its script says: a number of bytes, nothing, or an error."""

    name = "file"

    def __init__(self, *script: int | OSError | None) -> None:
        self.script = list(script)
        self.content = b""

    def write(self, data: bytes, /) -> int | None:
        step = self.script.pop(0) if self.script else len(data)
        if isinstance(step, OSError):
            raise step
        if step is not None:
            self.content += data[:step]
            return min(step, len(data))
        return None

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")

    def isatty(self) -> bool:
        return False


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((3, 4, 1), id="short writes"),
        pytest.param((None, None, 5), id="would block"),
        pytest.param((0, 2, BlockingIOError(errno.EAGAIN, "again", 0)), id="would block, raised"),
    ],
)
def test_all_of_it_arrives_however_little_a_write_takes(script: tuple[Any, ...]) -> None:
    file = File(*script)
    output = Output(file)
    output.write(b"one line\n")
    output.write(b"another line\n")
    output.finish()
    assert (file.content, output.error) == (b"one line\nanother line\n", None)


def test_what_a_raised_eagain_says_it_took_is_not_written_twice() -> None:
    file = File()
    taken = BlockingIOError(errno.EAGAIN, "again", 4)

    def write(data: bytes, /) -> int:
        if not file.content:
            file.content = data[:4]
            raise taken
        file.content += data
        return len(data)

    file.write = write  # type: ignore[method-assign]  # one more kind of file
    output = Output(file)
    output.write(b"one line\n")
    output.finish()
    assert file.content == b"one line\n"


def test_no_write_raises_and_the_error_is_known_afterwards() -> None:
    file = File(3, FULL)
    output = Output(file)
    output.write(b"one line\n")
    output.finish()
    output.write(b"another line\n")
    output.finish()
    assert (file.content, output.error) == (b"one", FULL)


def test_two_streams_are_written_in_the_order_of_what_was_said() -> None:
    file = File()
    one, other = Output(file), Output(file)
    for number in range(100):
        (one, other)[number % 2].write(f"{number} ".encode())
    one.finish()
    other.finish()
    assert [int(word) for word in file.content.split()] == list(range(100))


async def test_a_reader_that_sleeps_holds_up_neither_the_loop_nor_another_stream() -> None:
    reads, writes = os.pipe()
    with (
        os.fdopen(writes, "wb", buffering=0) as pipe,
        os.fdopen(reads, "rb", buffering=0) as reader,
    ):
        stuck, file = Output(pipe), File()
        stuck.write(bytes(400_000))
        waiting = asyncio.ensure_future(stuck.room())
        other = Output(file)
        other.write(b"still here\n")
        await other.written()
        assert file.content == b"still here\n"
        assert not waiting.done()
        got = 0
        while got < 400_000:
            got += len(await asyncio.to_thread(reader.read, 65536))
        await asyncio.wait_for(waiting, 30)
        await stuck.written()


async def test_a_display_that_is_slow_leaves_lines_out_and_says_so() -> None:
    reads, writes = os.pipe()
    with os.fdopen(writes, "wb", buffering=0) as pipe, os.fdopen(reads, "rb") as reader:
        display = Output(pipe, display=True)
        for number in range(10_000):
            display.write(f"line {number} {'.' * 40}\n".encode())
        kept = 0
        while not reader.readline().startswith(b"line 1000 "):
            kept += 1
        assert kept == 1000
        rest = asyncio.ensure_future(asyncio.to_thread(reader.readlines))
        await display.written()
        display.write(b"the end\n")
        await display.written()
        pipe.close()
        lines = await rest
        assert streams._LEFT_OUT in lines
        assert lines[-1] == b"the end\n"
        assert len(lines) < 4000


@pytest.mark.parametrize(("code", "told"), [(0, 3), (1, 3), (2, 2), (3, 3), (70, 70), (130, 130)])
def test_a_command_whose_output_is_lost_never_ends_with_0_or_1(
    code: int, told: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with own_streams() as finish:
            sys.stdout.write("results")
            assert finish(code) == told
        monkeypatch.undo()
    assert capfd.readouterr().err == "Error: cannot write to stdout (No space left on device)\n"


@pytest.mark.parametrize(("has_results", "code"), [(True, 3), (False, 0)])
def test_a_reader_that_leaves_misses_results_but_no_help(
    *,
    has_results: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with own_streams() as finish:
            if has_results:
                streams.results()
            sys.stdout.write("results")
            assert finish(0) == code
        monkeypatch.undo()
    assert ("Broken pipe" in capfd.readouterr().err) is has_results


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_was_closed_before_the_start_is_no_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, None)
    assert command_line.main(["--help"]) == 0


def test_letters_that_an_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", file)
    with own_streams() as finish:
        sys.stdout.write("caf\u00e9 \u0436 \ud800")
        assert finish(0) == 0
    file.seek(0)
    assert file.read() == "caf\u00e9 \\u0436 \\ud800"
    monkeypatch.undo()


def test_a_fault_of_the_program_is_no_some_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from monocloud_async.cli import run  # noqa: PLC0415  only here

    def fault(_arguments: list[str]) -> int:
        raise ZeroDivisionError("a \x1b[2J name")

    monkeypatch.setattr(run, "run", fault)
    assert command_line.main([]) == 70
    err = capfd.readouterr().err
    assert "ZeroDivisionError: a  [2J name" in err
    assert err.endswith("please report it with the lines above\n")
    assert "\x1b" not in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
def test_a_fork_writes_by_a_thread_of_its_own(tmp_path: Path) -> None:
    def say(text: str) -> None:
        with (tmp_path / "out").open("ab", buffering=0) as file:
            output = Output(file)
            output.write(text.encode())
            output.finish(10)

    say("parent\n")
    with warnings.catch_warnings():  # since Python 3.12 a fork of a process with threads warns
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            say("child\n")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    assert (tmp_path / "out").read_text() == "parent\nchild\n"


def test_a_command_without_stdin_has_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with own_streams():
        assert (sys.stdin.isatty(), sys.stdin.read()) == (False, "")
    assert sys.stdin is None


@pytest.mark.parametrize("columns", ["0", "²", "-1", "9" * 5000, "", "5", "10", "80"])
def test_no_width_of_the_terminal_loses_a_count_or_a_word(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    report = BulkReport(enabled=20)
    streams.out().print(summary(ENABLE, report, Tally(), skipped=0))
    assert "".join(capsys.readouterr().out.split()) == "20enabled"


@pytest.mark.parametrize(
    ("named", "encoding"), [(None, "ascii"), ("", "ascii"), ("utf-8", "utf-8")]
)
def test_a_terminal_of_a_plain_locale_gets_ascii_unless_python_is_told_an_encoding(
    monkeypatch: pytest.MonkeyPatch, named: str | None, encoding: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if named is not None:
        monkeypatch.setenv("PYTHONIOENCODING", named)
    master, slave = os.openpty()
    with os.fdopen(master), os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with own_streams():
            assert sys.stdout.encoding == encoding
