"""Uses atheris to find bytes that break a promise of `invariants.py`.

python tests/hostile/fuzz.py answers -max_total_time=60
python tests/hostile/fuzz.py inputs -max_total_time=60
python tests/hostile/fuzz.py plain -runs=1000000

What follows the target's name is libFuzzer's own: a folder for the corpus, -runs, -seed, ...
A run that finds nothing ends with code 0; one that finds something leaves the input in a file.
"""

import asyncio
import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import atheris

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))  # as pytest does it

# pyright: reportAttributeAccessIssue=false
with atheris.instrument_imports(include=["monocloud_async", "email", "urllib", "csv"]):
    import conversations
    import invariants

    from monocloud_async.inputs import Format

_LOOP = asyncio.new_event_loop()
SAMPLES = TESTS / "samples"
STATUSES = [200, 200, 200, 302, 400, 401, 404, 422, 422, 429, 500, 503]
NAMES = ["Retry-After", "Content-Type", "Location", "Date"]
COLUMNS = [None, None, "user_id", "naïve"]
WORDS = {
    "answers": [
        *(b'"user_id"', b'"errors"', b'"title"', b'"detail"', b'"trace_id"', b'"identities"'),
        *(b'{"a":', b"[", b"]", b"}", b"null", rb"\ud800", rb"\u202e", b"1e999", b"uuuuuuuu"),
        *(
            b"Mon, 23 Nov 2026 10:00:30 GMT",
            b"https://h:1/",
            b"\xff",
            b"\xed\xa0\x80",
            b"%2e",
            b"..",
        ),
    ],
    "plain": [
        *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n"),
        *(b"Connection: ", b"close", b"Upgrade: ", b"Trailer: ", b"\r\n", b": ", b";a=b", b"+1"),
        *(b"0\r\n\r\n", b"1\r\na\r\n", b"HTTP/1.1 200 ", b"HTTP/1.0", b"chunked, ", b", gzip"),
    ],
    "inputs": [
        *(b"user_id", b"id", b'"', b";", b"\t", b"\n", b"\r", b'{"id":"a"}', b"\x00", b".."),
        *(b"\xef\xbb\xbf", b"\xff\xfe", rb"\ud800", b"\xe2\x80\xa8", b"\xc2\x85"),
    ],
}


def answers(data: bytes) -> None:
    """Fuzz a response, an id and a configuration: a few bytes select, the rest is the body."""
    chooser = atheris.FuzzedDataProvider(data)
    status = chooser.PickValueInList(STATUSES)
    headers = {}
    for name in NAMES:
        # aiohttp decodes bytes like this.
        value = chooser.ConsumeBytes(chooser.ConsumeIntInRange(0, 40))
        headers[name] = value.decode(errors="surrogateescape")
    words = chooser.ConsumeUnicode(chooser.ConsumeIntInRange(0, 40))
    invariants.a_wait_is_finite_or_none(headers["Retry-After"], headers["Date"])
    invariants.an_id_is_itself_or_refused(words)
    invariants.a_domain_is_itself_or_refused(words)
    invariants.a_key_is_sent_or_refused_without_being_shown(words)
    body = chooser.ConsumeBytes(chooser.remaining_bytes())
    invariants.an_answer_is_the_user_or_an_error_of_ours(status, headers, body)


def inputs(data: bytes) -> None:
    """Fuzz a file of ids: the first two bytes select the format."""
    if len(data) < 2:
        return
    form, column = list(Format)[data[0] % len(Format)], COLUMNS[data[1] % len(COLUMNS)]
    invariants.an_input_is_read_or_its_lines_are_told(
        data[2:], form, None if form is Format.TXT else column
    )


def plain(data: bytes) -> None:
    """Fuzz a whole response: its bytes, or what the tables of conversations make of them."""
    said = data if data.startswith(b"HTTP") else conversations.reply(Random(data), "ada", 0).said
    invariants.a_plain_response_is_what_other_readers_read(said, _LOOP)


def responses() -> Iterator[bytes]:
    """Yield plain responses, to begin with."""
    body = b'{"user_id":"ada"}'
    pieces = b"4\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:4], len(body) - 4, body[4:])
    packed = gzip.compress(body, mtime=0)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    for headers, sent in (
        (b"Content-Length: %d\r\n" % len(body), body),
        (b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n", pieces),
        (b"Content-Length: %d\r\nContent-Encoding: gzip\r\n" % len(packed), packed),
        (b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n", chunk),
    ):
        yield b"HTTP/1.1 200 OK\r\nServer: a\r\n%b\r\n%b" % (headers, sent)


TARGETS = {"answers": answers, "inputs": inputs, "plain": plain}


def main(name: str, *options: str) -> None:
    """Fuzz until libFuzzer's options end it."""
    with tempfile.TemporaryDirectory() as folder:
        words, seeds = Path(folder, "words"), Path(folder, "seeds")
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[name])
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        seeds.mkdir()
        for sample in SAMPLES.glob("*.json"):
            # The provider reads from the end: zeros are a 200 without headers.
            (seeds / sample.name).write_bytes(sample.read_bytes() + bytes(8))
        for number, response in enumerate(responses()):
            (seeds / f"plain{number}").write_bytes(response)
        (seeds / "csv").write_bytes(b'\1\0user_id,name\nada,"x\ny"\n')
        given = [option for option in options if not option.startswith("-")]
        flags = [option for option in options if option.startswith("-")]
        atheris.Setup([sys.argv[0], f"-dict={words}", *flags, *given, str(seeds)], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\nTargets: {', '.join(TARGETS)}")
    main(*sys.argv[1:])
