"""Any split of a file has every line once, for any content, on disk or at a URL."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec import structs
from plans import plan

from monocloud_async import ConfigurationError
from monocloud_async.fleet import id_file
from monocloud_async.fleet.id_file import IdFile, inspect_file
from monocloud_async.fleet.messages import new_state
from monocloud_async.fleet.sources import Sources
from monocloud_async.inputs import Format
from monocloud_async.inputs.reader import open_ids
from monocloud_async.inputs.table import MAX_LINE


def at_once(path: Path, form: Format) -> list[str | None]:
    """Return the lines as the command line reads them."""
    with open_ids(path, form, None) as source:
        return [line.user_id for line in source]


async def in_parts(source: IdFile, borders: list[int]) -> list[str | None]:
    found = []
    for start, end in pairwise([source.begin, *borders, source.size]):
        found += [line.user_id for line in await source.lines(start, end)]
    return found


LINES = st.lists(
    st.sampled_from(
        [
            b"ada",
            b"",
            b"  ",
            b"b\xc3\xb6",
            b"\xff",
            b"..",
            b'"x',
            b"a\rb",
            b'{"id":"c"}',
            b"User ID",
            b"id,x",
        ]
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lines=LINES,
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
    form=st.sampled_from([Format.TXT, Format.JSONL]),
    data=st.data(),
)
def test_any_split_has_every_line_once(
    tmp_path: Path,
    lines: list[bytes],
    end: bytes,
    *,
    last: bool,
    mark: bool,
    form: Format,
    data: st.DataObject,
) -> None:
    path = tmp_path / "ids"
    content = end.join(lines) + end * last
    assume(b"\r" not in content or b"\n" in content)
    path.write_bytes(b"\xef\xbb\xbf" * mark + content)

    async def main() -> None:
        try:
            whole = at_once(path, form)
        except ConfigurationError as error:
            says = str(error).split(" looks ")[1]
            with pytest.raises(ConfigurationError, match=f" looks {says}"):
                await inspect_file(str(path), form)
            return
        if not whole:
            with pytest.raises(ConfigurationError, match="there are no ids"):
                await inspect_file(str(path), form)
            return
        source = await inspect_file(str(path), form)
        place = st.integers(source.begin, source.size)
        borders = sorted(data.draw(st.lists(place)))
        assert await in_parts(source, borders) == whole

    asyncio.run(main())


async def test_a_csv_has_its_header_in_front_of_every_part(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text('\ufeffname;user_id\n"Ö; x";ada\nBob;bob\nCy;cy;;\nDi;di\n')
    source = await inspect_file(str(path))
    parts = await in_parts(source, list(range(source.begin, source.size, 3)))
    assert parts == ["ada", "bob", "cy", "di"]


@pytest.mark.parametrize("rows", ['ada,"hello\nVICTIM,bye"\nbob,\n', 'ada,x\nbob,"open'])
async def test_a_cell_over_several_lines_is_refused(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("user_id,note\n" + rows)
    with pytest.raises(ConfigurationError, match=r"line [23] of .* is not one whole row"):
        await inspect_file(str(path))


async def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "na\udcefme.txt"
    path.write_text("ada\n")
    with pytest.raises(ConfigurationError, match=r"na\\xefme.txt is not a path that Temporal can"):
        await inspect_file(str(path))


async def test_the_shortest_lines_of_the_file_count(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"{n:0500}\n" for n in range(1000)) + "ada\n" * 400_000)
    assert (await inspect_file(str(path))).line == 4


async def test_a_line_that_is_too_long_is_told_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"ada\n" + b"x" * (3 * MAX_LINE) + b"\nbob\n")
    source = await inspect_file(str(path))
    ids = await source.lines(0, 10)
    assert [line.user_id for line in ids] == ["ada", None]
    assert len(ids[1].text) < 2 * MAX_LINE
    assert await source.lines(10, MAX_LINE) == []
    assert [line.user_id for line in await source.lines(MAX_LINE, source.size)] == ["bob"]


MAC = b"somebody\r" * (3 * MAX_LINE // 9)


@pytest.mark.parametrize(
    "content", [b"ada\n" + MAC, b"ada\n" + MAC + b"\nbob\n", b"x" * MAX_LINE * 9 + b"\r" + MAC]
)
async def test_lines_without_line_feeds_that_would_be_cut_are_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"no line feed for more than .*mac2unix"):
        await inspect_file(str(path))


@pytest.mark.parametrize(
    "content", [b"ada\rbob\r" * 99 + b"\n", b"x" * (3 * MAX_LINE) + b"\r\nada"]
)
async def test_some_carriage_returns_and_an_overlong_line_are_no_fault(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"ada\r\n" + content)
    source = await inspect_file(str(path))
    assert (await source.lines(0, source.size))[0].user_id == "ada"


async def test_an_earlier_plan_of_lines_without_line_feeds_cuts_no_id(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"ada\nbob\n")
    source = await inspect_file(str(path))
    path.write_bytes(b"ada\n" + MAC)
    source = structs.replace(source, size=4 + len(MAC))
    with pytest.raises(ConfigurationError, match="mac2unix"):
        await source.lines(0, 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [("ids.txt", ""), ("ids.txt", "\n \n\n"), ("ids.csv", "user_id\n"), ("ids.jsonl", "\n")],
)
async def test_a_file_without_ids_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=f"there are no ids in .*{name}"):
        await inspect_file(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no fifos here")
async def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="is not a regular file"):
        await inspect_file(str(path))


@pytest.mark.skipif(os.name == "nt", reason="it has no list of open files")
async def test_a_folder_is_refused_and_not_left_open(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.mkdir()
    before = os.open(tmp_path, os.O_RDONLY)  # the lowest number that is free
    os.close(before)
    for _ in range(3):
        with pytest.raises(ConfigurationError, match=r"cannot read .*: Is a directory"):
            await inspect_file(str(path))
    after = os.open(tmp_path, os.O_RDONLY)
    os.close(after)
    assert after == before


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_static("/", tmp_path)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/ids.txt"
    await runner.cleanup()


async def test_a_url_is_read_in_ranges(tmp_path: Path, url: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"user{number}\n" for number in range(20_000)))
    source = await inspect_file(url)
    assert source.size == path.stat().st_size
    parts = await in_parts(source, [5, 100_000, 100_001])
    assert parts == at_once(path, Format.TXT)


@pytest.mark.parametrize("left", [0, 90_000])
async def test_a_file_at_a_url_that_became_shorter_has_changed(
    tmp_path: Path, url: str, left: int
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("user123\n" * 20_000)
    source = await inspect_file(url)
    path.write_text("user123\n" * (left // 8))
    with pytest.raises(ConfigurationError, match=f"160,000 bytes, now it has {left:,}; restore"):
        await source.lines(100_000 if left else 0, 110_000)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("ftp://host/ids.txt", "begins with https://"),
        ("http://files.example.com/ids.txt", "begins with https://"),
        ("https://me:secret@host/ids.txt", "has credentials in it"),
        ("https://[::1/ids.txt", "is not a URL"),
        ("https://host:99999/ids.txt", "is not a URL"),
        ("nowhere\0.txt", "contains a NUL character"),
        ("nowhere.txt", "cannot read"),
        ("ids", "the format of .* is unknown"),
        ("http://127.0.0.1:9/ids.txt", "Connect call failed"),
    ],
)
async def test_what_no_worker_could_read_is_refused(where: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        await inspect_file(where)
    assert "secret" not in str(caught.value)


SIGNATURE = "X-Amz-Signature=" + 80 * "0123456789"


def answer(status: int, text: str = "ada\nbob\n", span: str | None = None) -> web.Response:
    headers = {"ETag": "1"} if span is None else {"ETag": "1", "Content-Range": f"bytes {span}"}
    return web.Response(status=status, text=text, headers=headers)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: answer(200), "does not serve ranges"),
        (lambda: answer(206), "does not serve ranges"),
        (lambda: answer(206, span="0-7/*"), "does not serve ranges"),
        (lambda: answer(206, "ada\n", "0-3/8"), "sent bytes 0-3, not 0-65535"),
        (lambda: answer(206, "ada\n", "0-7/8"), "sent bytes 0-7, not 0-65535"),
        (lambda: answer(206, "bob\n", "4-7/8"), "sent bytes 4-7, not 0-65535"),
        (lambda: answer(302), "redirects to another address"),
        (lambda: answer(403), r"is refused \(the server answered 403\): .* a new URL and the same"),
        (lambda: answer(404), "the file may be gone"),
        (lambda: answer(416), "there are no ids in http"),
        (lambda: answer(503), "the server answered 503"),
        (lambda: answer(429), "the server answered 429"),
    ],
)
async def test_a_server_that_does_not_serve_the_range_is_refused(
    given: Callable[[], web.Response], says: str
) -> None:
    async def serve(_: web.Request) -> web.Response:
        return given()

    app = web.Application()
    app.router.add_get("/ids.txt", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/ids.txt?{SIGNATURE}"
        with pytest.raises(ConfigurationError, match=says) as caught:
            await inspect_file(url)
    finally:
        await runner.cleanup()
    assert SIGNATURE not in str(caught.value)


async def test_a_server_that_does_not_answer_in_time_is_told_without_the_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has gone
        writer.close()
        await writer.wait_closed()
        closed.set()

    monkeypatch.setattr(id_file, "_TIMEOUT", aiohttp.ClientTimeout(sock_read=0.05))
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ids.txt?{SIGNATURE}"
    with pytest.raises(ConfigurationError, match="the server did not answer in time") as caught:
        await inspect_file(url)
    await closed.wait()
    server.close()
    assert SIGNATURE not in str(caught.value)


async def test_a_proxy_that_refuses_is_told_without_the_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(ConfigurationError, match="the proxy refused: 407 Proxy Auth") as caught:
        await inspect_file(f"https://bucket.invalid/ids.txt?{SIGNATURE}")
    proxy.close()
    assert SIGNATURE not in str(caught.value)


async def test_no_message_has_the_signature_of_a_url() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 206 Partial Content\r\nno header\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ids.txt"
    with pytest.raises(ConfigurationError, match="the server's answer is malformed") as caught:
        await inspect_file(f"{address}?{SIGNATURE}")
    server.close()
    source = structs.replace(plan().source, where=f"{address}?{SIGNATURE}")
    changed = source.changed("it has another size")
    with pytest.raises(ConfigurationError, match="is not below") as found:
        Sources().check(source.where)
    for said in (caught.value, changed, found.value):
        assert str(said).startswith((f"cannot read {address}?...: ", f"{address}?... "))
        assert SIGNATURE[-20:] not in str(said)
    state = new_state(structs.replace(plan(), source=source))
    assert state.progress.source == f"{address}?..."
    assert state.plan.source.where.endswith(SIGNATURE)


@pytest.mark.parametrize(
    "target",
    [
        "/ids.txt?type=text%2Fplain&Signature=qZ0A%2Bk%3D",
        "/%69ds.txt?hdnts=exp=1~acl=%2F%2A~hmac=ab&empty=&flag",
        "//double/ids.txt?e=%C3%BC&f=%c3%bc",
    ],
)
async def test_a_url_is_requested_exactly_as_given(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature may cover every character; and a password of .netrc is for nobody here."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asked: list[tuple[str, str | None]] = []

    async def serve(request: web.BaseRequest) -> web.Response:
        asked.append((request.raw_path, request.headers.get("Authorization")))
        return answer(206, span="0-7/8")

    server = web.ServerRunner(web.Server(serve))
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    try:
        await inspect_file(f"http://127.0.0.1:{server.addresses[0][1]}{target}")
    finally:
        await server.cleanup()
    assert set(asked) == {(target, None)}
