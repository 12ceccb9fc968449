"""What a file is by its bytes, whatever its name says: compressed, a workbook, its encoding."""

import codecs
import gzip
import io
import zipfile
from collections.abc import Sequence
from typing import BinaryIO, Final, NamedTuple, cast

from monocloud_async.errors import ConfigurationError

SAMPLE: Final = 1 << 16  # bytes from which the encoding is known
_LOOKED_AT: Final = 512  # bytes in which most binary files have zeros, as a tar archive has

_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_DATABASE: Final = b"SQLite format 3\0"
_OLD_WORKBOOK: Final = bytes.fromhex("d0cf11e0a1b11ae1")
_OTHERS: Final = {  # first bytes, and what unpacks the file
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\x00": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"7z\xbc\xaf\x27\x1c": "7z x",
    b"Rar!": "unrar x",
}
_DOCUMENTS: Final = {  # first characters, in lower case, of what has lines that may look like ids
    b"%pdf-": "a PDF",
    b"{\\rtf": "rich text (RTF)",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
}
_MARKS: Final = {  # UTF-32's first: it begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# What spreadsheets write on Windows and on a Mac, by Python's names; the most frequent ones first.
_OLD_ENCODINGS: Final = {
    "cp1252": "Windows-1252",
    "mac_roman": "Mac OS Roman",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
}


class Encoding(NamedTuple):
    """How bytes become text.

    Attributes:
        name: Python's name of the encoding; ASCII for an older one that contains it: there, ids are
            read, and other bytes become lone surrogates.
        mark: the length of the byte order mark.
        guesses: Python's names of the older encodings that the file may be in, as far as that is
            known; or None if it is UTF-8.
    """

    name: str
    mark: int
    guesses: tuple[str, ...] | None = None

    @property
    def note(self) -> str | None:
        """What to tell people, or None for UTF-8."""
        if self.guesses is not None:
            named = " or ".join(_OLD_ENCODINGS[guess] for guess in self.guesses)
            looks = named and f", and looks like {named}"
            return f"not UTF-8{looks}: ids are read, where they are plain ASCII"
        return None if self.name == "utf-8" else self.name.upper()

    def readings(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the lines of a header in each of the encodings that it may be in."""
        if not self.guesses:
            return [[*texts]]
        lines = [text.encode(errors="surrogateescape") for text in texts]
        return [[line.decode(guess, errors="replace") for line in lines] for guess in self.guesses]


def peek(stream: BinaryIO, size: int) -> bytes:
    """Return the next bytes, at most `size`, without taking them; waits for a pipe's first ones."""
    return cast("io.BufferedReader", stream).peek(size)[:size]


def is_workbook(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is a workbook, or an archive."""
    return start.startswith((_ZIP, _OLD_WORKBOOK))


def is_packed(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is compressed or a workbook."""
    return start.startswith((_GZIP, *_OTHERS)) or is_workbook(start)


def unpacked(name: str, stream: BinaryIO, start: bytes) -> BinaryIO:
    """Return the stream that has the file's content.

    Raises:
        ConfigurationError: the file is packed in a way that is not read.
    """
    if start.startswith(_GZIP):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    for magic, command in _OTHERS.items():
        if start.startswith(magic):
            raise ConfigurationError(f"{name} is compressed; unpack it first: {command}")
    return stream


def refuse_database(name: str, start: bytes) -> None:
    """Raise `ConfigurationError` if a file that starts with these bytes is a database."""
    if start.startswith(_DATABASE):
        raise ConfigurationError(
            f"{name} is a database, and no list of ids; if it is the journal of a run, `report`"
            " tells what goes on with that run"
        )


def refuse_document(name: str, sample: bytes, encoding: Encoding) -> None:
    """Raise `ConfigurationError` if the content is no plain text: its lines would be read as ids.

    Args:
        name: the name of the input, for error messages.
        sample: its first bytes.
        encoding: what `encoding_of` returns for them.
    """
    refuse_database(name, sample)
    text = sample[encoding.mark :].lstrip()[:_LOOKED_AT].lower()
    for start, what in _DOCUMENTS.items():
        if text.startswith(start):
            raise ConfigurationError(
                f"{name} is {what}, and no list of ids; save the ids as CSV UTF-8 or as plain text"
            )
    if encoding.name in {"ascii", "utf-8"} and b"\0" in text.partition(b"\n")[0]:
        raise ConfigurationError(
            f"{name} is no text: its first line has zero bytes; save the ids as CSV UTF-8 or as"
            " plain text"
        )


def refuse_archive(name: str, stream: BinaryIO) -> None:
    """Raise `ConfigurationError` if a zip file holds no workbook."""
    start = stream.read(len(_OLD_WORKBOOK))
    stream.seek(0)
    if not start.startswith(_ZIP):
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(f"{name} is a damaged zip archive or workbook: {error}") from None
    finally:
        stream.seek(0)
    if any(part.endswith(".iwa") for part in names):
        raise ConfigurationError(
            f"{name} is a document of Apple Numbers; export it as CSV, in the encoding UTF-8"
        )
    if not names & {"[Content_Types].xml", "content.xml"}:
        raise ConfigurationError(f"{name} is a zip archive; unpack it first: unzip")


def encoding_of(sample: bytes) -> Encoding:
    """Return the encoding of a text that starts with these bytes."""
    for mark, encoding in _MARKS.items():
        if sample.startswith(mark):
            return Encoding(encoding, len(mark))
    # Every other byte of an ASCII text in UTF-16 is zero.
    for encoding, zeros in (("utf-16-le", sample[1:1024:2]), ("utf-16-be", sample[0:1024:2])):
        others = sample[:1024].count(0) - zeros.count(0)
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and not others:
            return Encoding(encoding, 0)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return Encoding("ascii", 0, guessed(sample))
    return Encoding("utf-8", 0)


def guessed(sample: bytes) -> tuple[str, ...]:
    """Return the names of the older encodings that these bytes look like equally."""
    try:
        from charset_normalizer import from_bytes  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return ()
    matches = from_bytes(sample, cp_isolation=[*_OLD_ENCODINGS])
    best = matches.best()
    if best is None:
        return ()
    equal = {
        name
        for match in matches
        if match.chaos <= best.chaos
        for name in match.could_be_from_charset
    }
    return tuple(name for name in _OLD_ENCODINGS if name in equal)


def text_of(stream: BinaryIO, encoding: Encoding) -> io.TextIOWrapper:
    """Return the text of this stream, with its line ends as they are."""
    errors = "surrogateescape" if encoding.name in {"ascii", "utf-8"} else "replace"
    return io.TextIOWrapper(stream, encoding=encoding.name, errors=errors, newline="")
