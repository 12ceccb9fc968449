"""One rule for which files an output may replace, and outputs that appear whole or not at all."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
from recorded import outcome, write
from terminal import PROGRAM, Cli, environment

from monocloud_async import ConfigurationError
from monocloud_async.cli.exit_codes import STOPPED
from monocloud_async.cli.files import Kept, whole
from monocloud_async.sandbox import Sandbox


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("ada\n")
    return path


def linked(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def hard_linked(path: Path) -> Path:
    link = path.with_name("hard")
    os.link(path, link)
    return link


def behind_a_linked_folder(path: Path) -> Path:
    folder = path.parent / "folder"
    folder.symlink_to(path.parent)
    return folder / path.name


NAMES: list[Callable[[Path], Path]] = [
    lambda path: path,
    lambda path: path.parent / "x" / ".." / path.name,
    lambda path: Path(os.path.relpath(path)),
    linked,
    behind_a_linked_folder,
]


@pytest.mark.parametrize("named", [*NAMES, hard_linked])
def test_no_output_replaces_a_file_that_is_kept_by_whatever_name(
    ids: Path, named: Callable[[Path], Path]
) -> None:
    (ids.parent / "x").mkdir()
    files = Kept()
    files.add("the input", ids)
    with pytest.raises(ConfigurationError, match=r"--failures: .* is the input; choose another"):
        files.check("--failures", named(ids))


@pytest.mark.parametrize("named", NAMES)
@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal", "-lock"])
def test_no_output_becomes_a_file_of_the_journal_that_is_not_there_yet(
    tmp_path: Path, end: str, named: Callable[[Path], Path]
) -> None:
    (tmp_path / "x").mkdir()
    files = Kept()
    files.add_journal(tmp_path / "run.journal")
    with pytest.raises(ConfigurationError, match="is a file of the journal"):
        files.check("-o", named(tmp_path / f"run.journal{end}"))
    with pytest.raises(ConfigurationError, match="is a file of the journal"):
        files.check("-o", tmp_path / f"RUN.journal{end}")  # the same, where case is ignored


def test_a_journal_that_is_named_by_a_link_is_kept_with_its_own_log(tmp_path: Path) -> None:
    journal = tmp_path / "run.journal"
    journal.touch()
    link = linked(journal)
    files = Kept()
    files.add_journal(link)
    for end in ("", "-wal"):
        with pytest.raises(ConfigurationError, match="is a file of the journal"):
            files.check("-o", tmp_path / f"run.journal{end}")


def test_an_input_on_stdin_is_kept(ids: Path) -> None:
    descriptor = os.open(ids, os.O_RDONLY)
    files = Kept()
    files.add("the input", descriptor)
    try:
        with pytest.raises(ConfigurationError, match="is the input"):
            files.check("--failures", ids)
        with pytest.raises(ConfigurationError, match="is the input"):
            files.check("--failures", Path(f"/dev/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def test_a_dash_is_no_name_of_an_output() -> None:
    with pytest.raises(ConfigurationError, match=r"--failures: - is a stream elsewhere"):
        Kept().check("--failures", Path("-"))
    with pytest.raises(ConfigurationError, match=r"the journal: - is a stream elsewhere"):
        Kept().add_journal(Path("-"))


def test_a_journal_is_none_of_the_other_files(ids: Path) -> None:
    for name in (ids, ids.with_name("ids.txt-lock")):
        name.touch()
        files = Kept()
        files.add("the input", name)
        with pytest.raises(ConfigurationError, match=r"the journal: .* is the input"):
            files.add_journal(ids)


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    files = Kept()
    files.check("--failures", tmp_path / "one")
    files.check("-o", tmp_path / "two")
    with pytest.raises(ConfigurationError, match="is the file of --failures"):
        files.check("-o", tmp_path / "one")


def test_any_other_file_and_any_device_may_be_an_output(ids: Path, tmp_path: Path) -> None:
    files = Kept()
    files.add("the input", ids)
    files.add("the key", None)
    files.add("the input", Path(os.devnull))
    files.add_journal(tmp_path / "ids.txt.journal")
    files.add_journal(None)
    for name in ("IDS.txt", "ids.txt.journal.failed", "new"):
        files.check("--failures", tmp_path / name)
    files.check("--failures", None)
    files.check("--failures", Path(os.devnull))
    files.check("--output", Path(os.devnull))


@pytest.fixture(params=["a disk", "shared memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108  a folder of its own is made in it
    if request.param == "a disk":
        yield tmp_path
    elif memory.is_dir() and os.access(memory, os.W_OK):
        with TemporaryDirectory(dir=memory) as name:
            yield Path(name)
    else:
        pytest.skip("this system has no shared memory that is a folder")


def test_an_output_takes_the_place_of_the_old_one_whole(folder: Path) -> None:
    path = folder / "again.txt"
    path.write_text("old")
    path.chmod(0o640)
    link = linked(path)
    with whole(link) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in folder.iterdir()) == ["again.txt", "link"]


@pytest.mark.parametrize("old", ["", "old"])
@pytest.mark.parametrize("error", [ConfigurationError("damaged"), KeyboardInterrupt()])
def test_after_an_error_there_is_no_half_an_output(
    tmp_path: Path, old: str, error: BaseException
) -> None:
    path = tmp_path / "again.txt"
    if old:
        path.write_text(old)
    before = list(tmp_path.iterdir())
    with pytest.raises(type(error)), whole(path) as file:
        file.write("new")
        raise error
    assert list(tmp_path.iterdir()) == before
    assert not old or path.read_text() == old


def test_a_full_disk_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "again.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(typer.Exit) as ended, whole(path) as file:
        file.write("new")
    assert ended.value.exit_code == STOPPED
    assert "again.txt: No space left" in capsys.readouterr().err
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_a_device_is_written_to_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with whole(Path(os.devnull)) as file:
        file.write("new")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    with pytest.raises(typer.Exit) as ended, whole(Path("/dev/full")) as file:
        file.write("new")
    assert ended.value.exit_code == STOPPED
    assert capsys.readouterr().err == "Error: cannot write /dev/full: No space left on device\n"


def test_a_folder_is_not_an_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="it is a folder"), whole(tmp_path):
        pass
    missing = tmp_path / "missing" / "again.txt"
    with pytest.raises(ConfigurationError, match="No such file or directory"), whole(missing):
        pass


READERS = {
    "bulk": ("bulk", "ids.jsonl", "--json"),
    "bulk of stdin": ("bulk", "-", "--format", "jsonl"),
    "a dry run": ("bulk", "ids.jsonl", "--dry-run"),
    "check": ("check", "ids.jsonl"),
    "users": ("users", "--by-email", "ids.jsonl"),
    "undo": ("undo", "ids.jsonl"),
    "report": ("report", "ids.jsonl"),
    "the key": ("whoami", "--api-key-file", "ids.jsonl"),
    "fleet": ("fleet", "start", "ids.jsonl"),
}


@pytest.mark.process
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("argv", READERS.values(), ids=READERS)
def test_no_command_writes_into_the_file_that_it_reads(
    tmp_path: Path, argv: tuple[str, ...], stream: str
) -> None:
    file = tmp_path / "ids.jsonl"
    if argv[0] in {"undo", "report"}:
        write(file, [outcome(0, "ada")])
    else:
        file.write_text('{"id": "ada"}\n')
    before = file.read_bytes()
    other = tmp_path / "other"
    with Sandbox(users=["ada"]) as sandbox, file.open("rb") as stdin:
        with file.open("ab") as same, other.open("wb") as elsewhere:
            code = subprocess.run(
                [*PROGRAM, *argv],
                cwd=tmp_path,
                env=environment(sandbox),
                stdin=stdin,
                timeout=100,
                check=False,
                stdout=same if stream == "stdout" else elsewhere,
                stderr=same if stream == "stderr" else elsewhere,
            ).returncode
        assert (code, sandbox.stats().requests) == (2, 0)
    assert file.read_bytes() == before
    told = other.read_text()
    assert told.startswith(f"Error: {stream} is written to ")
    assert told.endswith("; send it to another file\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.jsonl", "other"]


SPOILED = {
    "the key": ("key", ("whoami", "--api-key-file", "key")),
    "the ids of a run whose key may be read by others": (
        "ids.txt",
        ("bulk", "ids.txt", "--api-key-file", "key"),
    ),
    "the ids of a run without a key": ("ids.txt", ("check", "ids.txt", "--api-key-file", "none")),
    "a default journal": ("ids.txt.journal", ("bulk", "ids.txt", "--yes")),
    "a file that is no journal": ("ids.txt", ("report", "ids.txt")),
    "a journal to undo": ("ids.txt", ("undo", "ids.txt", "--api-key-file", "none")),
}


@pytest.mark.process
@pytest.mark.parametrize("both", ["", "with stdout"])
@pytest.mark.parametrize(("name", "argv"), SPOILED.values(), ids=SPOILED)
def test_no_message_spoils_the_file_that_stderr_is_by_mistake(
    tmp_path: Path, name: str, argv: tuple[str, ...], both: str
) -> None:
    file, other = tmp_path / name, tmp_path / "other"
    (tmp_path / "ids.txt").write_text("ada\n")
    (tmp_path / "key").write_text("k" * 32)
    (tmp_path / "key").chmod(0o644)
    before = file.read_bytes() if file.exists() else b""
    with Sandbox(users=["ada"]) as sandbox, file.open("ab") as same, other.open("wb") as elsewhere:
        code = subprocess.run(
            [*PROGRAM, *argv],
            cwd=tmp_path,
            env=environment(sandbox),
            timeout=100,
            check=False,
            stdout=same if both else elsewhere,
            stderr=same,
        ).returncode
        assert (code, sandbox.stats().requests) == (2, 0)
    assert file.read_bytes() == before
    told = other.read_text()
    assert told == "" if both else told.startswith("Error: stderr is written to ")


MISTAKES = {
    "an unknown option": ("other", "ids.txt", ("bulk", "ids.txt", "--no-such")),
    "a missing value": ("other", "key", ("whoami", "--api-key-file=key", "--timeout")),
    "a bad value": ("other", "ids.txt", ("users", "--by-email", "ids.txt", "--timeout", "x")),
    "two options": ("other", "ids.txt", ("bulk", "ids.txt", "--journal", "j", "--no-journal")),
    "an option with stdin": ("other", "ids.txt", ("bulk", "-", "--no-such")),
    "a profile that is no TOML": ("other", "acme.toml", ("whoami", "--profile", "acme")),
    "an option with a profile": ("other", "key", ("whoami", "--profile", "beta", "--no-such")),
    "stdout, too": ("ids.txt", "key", ("bulk", "ids.txt", "--api-key-file", "key")),
    "stdout and a default journal": ("ids.txt", "ids.txt.journal", ("bulk", "ids.txt")),
    "stdout and an option": ("ids.txt", "key", ("check", "ids.txt", "--api-key-file=key", "-x")),
}


@pytest.mark.process
@pytest.mark.parametrize(("stdout", "stderr", "argv"), MISTAKES.values(), ids=MISTAKES)
def test_no_mistake_of_usage_spoils_a_file_of_the_command(
    tmp_path: Path, stdout: str, stderr: str, argv: tuple[str, ...]
) -> None:
    contents = {
        "ids.txt": b"ada\n",
        "key": b"k" * 32,
        "ids.txt.journal": b"",
        "acme.toml": b"domain",
        "beta.toml": b'api_key_file = "key"\n',
        "other": b"",
    }
    folder = tmp_path / "monocloud-async"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    with (
        Sandbox(users=["ada"]) as sandbox,
        (folder / "ids.txt").open("rb") as stdin,
        (folder / stdout).open("ab") as out,
        (folder / stderr).open("ab") as err,
    ):
        code = subprocess.run(
            [*PROGRAM, *argv],
            cwd=folder,
            env={**environment(sandbox), "XDG_CONFIG_HOME": str(tmp_path)},
            timeout=100,
            check=False,
            stdin=stdin,
            stdout=out,
            stderr=err,
        ).returncode
        assert (code, sandbox.stats().requests) == (2, 0)
    told = (folder / "other").read_bytes()
    assert (b"Error: " in told) == (stdout == "other")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **contents,
        "other": told,
    }


LONG = "a" * 300
NO_PATHS = {
    "a journal": (("bulk", "ids.txt", "--journal", LONG), "File name too long"),
    "a journal of a fleet": (("fleet", "dev", "ids.txt", "--journal", f"{LONG}/x"), "not there"),
    "a table": (("users", "-o", LONG), "File name too long"),
    "a folder that links to itself": (("bulk", "loop/ids.txt"), "Too many levels"),
    "a table behind such a folder": (("users", "-o", "loop/x"), "Too many levels"),
    "a folder to undo": (("undo", "."), ". is not a journal"),
    "the root to undo": (("undo", "/"), "/ is not a journal"),
}


@pytest.mark.parametrize(("argv", "told"), NO_PATHS.values(), ids=NO_PATHS)
def test_what_can_be_no_file_is_told_in_one_line(
    cli: Cli,
    ids: Path,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(ids.parent)
    Path("loop").symlink_to("loop")
    done = cli(*argv)
    assert (done.code, done.out, sandbox.stats().requests) == (2, "", 0)
    *_, last = done.err.splitlines()
    assert last.startswith("Error: ")
    assert told in last
    assert "Traceback" not in done.err


@pytest.mark.process
@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (
            ["check", "ids.txt", "-o", "/dev/stdout"],
            ["user_id,state,block_until,recorded", "ada,disabled,,", "nobody,missing,,"],
        ),
        (["bulk", "ids.txt", "--failures", "/dev/fd/1"], ["nobody"]),
        (["bulk", "ids.txt", "--failures", "/proc/self/fd/1"], ["nobody"]),
        (["bulk", "ids.txt", "--failures", "link"], ["nobody"]),
        (["check", "ids.txt", "-o", "folder/link"], ["ada,disabled,,", "nobody,missing,,"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_an_output_may_go_to_stdout_by_its_name_and_neither_writes_over_the_other(
    tmp_path: Path, argv: list[str], lines: list[str], mode: str
) -> None:
    ids, log = tmp_path / "ids.txt", tmp_path / "log"
    ids.write_text("ada\nnobody\n")
    log.write_text("before\n")
    (tmp_path / "link").symlink_to("/dev/stdout")  # as the logs of a container mostly are
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("../link")
    with Sandbox(users=["ada"]) as sandbox, log.open(mode) as stdout:
        code = subprocess.run(
            [*PROGRAM, *argv],
            cwd=tmp_path,
            env=environment(sandbox),
            stdout=stdout,
            timeout=100,
            check=False,
        ).returncode
    assert code == 1  # somebody is not enabled
    told = log.read_text().splitlines()
    assert told[:1] == ["before"] or mode == "wb"
    assert [line for line in told if line in lines] == lines
    summary = "1 disabled" if argv[0] == "check" else "1  enabled"
    assert summary in (line.rstrip() for line in told)


@pytest.mark.process
@pytest.mark.parametrize(
    "argv",
    [
        ["users", "-o", "/dev/stdout", "--api-key-file", "no"],
        ["bulk", "no", "--failures", "/dev/stderr"],
        ["report", "no", "-o", "/dev/stdout"],
    ],
)
def test_a_stream_by_its_name_is_no_file_that_messages_are_kept_out_of(
    tmp_path: Path, argv: list[str]
) -> None:
    log = tmp_path / "log"
    with Sandbox(users=["ada"]) as sandbox, log.open("wb") as both:
        code = subprocess.run(
            [*PROGRAM, *argv],
            cwd=tmp_path,
            env=environment(sandbox),
            stdout=both,
            stderr=both,
            timeout=100,
            check=False,
        ).returncode
    assert code == 2
    assert log.read_text().startswith("Error: ")


@pytest.mark.process
@pytest.mark.parametrize(
    "argv", [["bulk", "ids.txt", "--failures", "out"], ["check", "ids.txt", "-o", "out"]]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_file_of_an_output_gets_nothing_of_what_a_command_says(
    tmp_path: Path, argv: list[str], name: str
) -> None:
    (tmp_path / "ids.txt").write_text("ada\nnobody\n")
    out, other = tmp_path / "out", tmp_path / "other"
    with (
        Sandbox(users=["ada"]) as sandbox,
        out.open("wb") as same,
        other.open("wb") as elsewhere,
    ):
        code = subprocess.run(
            [*PROGRAM, *argv],
            cwd=tmp_path,
            env=environment(sandbox),
            timeout=100,
            check=False,
            stdout=same if name == "stdout" else elsewhere,
            stderr=same if name == "stderr" else elsewhere,
        ).returncode
        assert (code, sandbox.stats().requests) == (2, 0)
    said = f"{name} is written to out, too; send it to another file"
    assert (said in other.read_text(), out.read_bytes()) == (True, b"")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check", "ids.txt", "-o", "{}"], "cannot write {}: File name too long"),
        (["users", "-o", "{}"], "cannot write {}: File name too long"),
        (["bulk", "ids.txt", "--journal", "{}"], "File name too long; name another path, or run"),
    ],
)
def test_a_place_that_cannot_be_looked_at_is_an_error_of_usage(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("ada\n")
    name = "x" * 300
    done = cli(*(word.format(name) for word in argv))
    assert done.code == 2
    assert says.format(name) in done.err


def test_profiles_in_a_folder_that_cannot_be_looked_at_are_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "x" * 300)
    assert (
        cli("bulk", "missing.txt").err
        == "Error: cannot read missing.txt: No such file or directory\n"
    )


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(users=3) as sandbox:
        yield sandbox


NAME = "na\udcefme"  # as Python has a byte that is not UTF-8
SHOWN = r"na\xefme"


def test_a_name_that_is_not_utf_8_is_shown_with_its_bytes(
    cli: Cli, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, *_ = sandbox.user_ids()
    ids, page, failures = f"{NAME}.txt", f"{NAME}.html", f"{NAME}.failed.txt"
    Path(ids).write_text(f"{first}\n{second}\nnobody\n")
    dry = json.loads(cli("bulk", ids, "--dry-run", "--json").out)
    assert (dry["input"], dry["journal"]) == (f"{SHOWN}.txt", f"{SHOWN}.txt.journal")
    assert SHOWN in cli("bulk", ids, "--dry-run").out
    done = cli("bulk", ids, "--check", "--limit", 2, "--failures", failures)
    assert f"Enabling {SHOWN}.txt on" in done.err
    assert f"{SHOWN}.txt.journal" in done.err

    journal = f"{ids}.journal"
    told = cli("report", journal, "-o", page, "--failures", failures)
    assert f"{SHOWN}.txt on http" in told.out
    assert f"The report as a page: {SHOWN}.html" in told.out
    assert SHOWN in Path(page).read_text()
    assert Path(failures).read_text() == "nobody\n"
    *_, last = cli("report", journal, "--json").out.splitlines()
    summary = json.loads(last)["summary"]
    assert summary["input"] == f"{SHOWN}.txt"
    assert summary["go_on"] == f"monocloud-async bulk $'{tmp_path}/{SHOWN}.txt' --check"
    assert cli("report", journal, "--user", NAME).err == (
        f"Error: {NAME!r} is not in the journal {SHOWN}.txt.journal and not in its input\n"
    )
    assert SHOWN in cli("check", ids).err
    dry = json.loads(cli("undo", journal, "--dry-run", "--json").out)
    assert dry["input"] == f"{SHOWN}.txt.journal"
    assert cli("undo", journal, "--yes", "--limit", 1).code == 0
    first, *_ = cli("report", f"{journal}.undo").out.splitlines()
    assert first.endswith(f"monocloud-async undo $'{tmp_path}/{SHOWN}.txt.journal'")
    assert f"cannot read {SHOWN}: No such file" in cli("bulk", NAME).err


GONE = [
    ("bulk", "{ids}", "--failures", "f"),
    ("bulk", "{ids}", "--journal", "j"),
    ("bulk", "ids.txt"),
    ("check", "{ids}", "-o", "t.csv"),
    ("users", "-o", "t.csv"),
    ("report", "j"),
    ("report", "{journal}", "-o", "p.html"),
    ("report", "{journal}", "--failures", "f"),
    ("undo", "j"),
    ("sandbox", "--ids", "ids"),
    ("fleet", "start", "ids.txt"),
    ("fleet", "dev", "ids.txt"),
    ("fleet", "doctor", "ids.txt"),
]


@pytest.mark.parametrize("argv", GONE, ids=" ".join)
def test_a_folder_that_was_removed_is_told_in_one_line(
    cli: Cli,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ada\n")
    journal = write(tmp_path / "journal", [outcome(0, "ada")])
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = cli(*(word.format(ids=ids, journal=journal) for word in argv))
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "Traceback" not in done.err
    assert "folder" in last or "No such file or directory" in last
    assert sandbox.stats().requests == 0


@pytest.mark.parametrize("end", ["xlsx", "XLS", "xlsb", "xlsm", "ods", "csv.gz"])
def test_text_is_not_written_to_a_file_that_is_named_as_a_workbook(
    cli: Cli, sandbox: Sandbox, ids: Path, tmp_path: Path, end: str
) -> None:
    journal = write(tmp_path / "journal", [outcome(0, "ada")])
    output = tmp_path / f"out.{end}"
    for argv in (
        ("bulk", ids, "--failures", output),
        ("report", journal, "--failures", output),
        ("report", journal, "-o", output),
        ("sandbox", "--ids", output, "--port", 0),
    ):
        done = cli(*argv)
        assert (done.code, done.out) == (2, "")
        assert f": {output} would get text, which" in done.err
        assert "choose a name that ends in ." in done.err
    assert sandbox.stats().requests == 0
    assert not output.exists()
