"""Which ids may be one segment of a path, and how they are encoded.

The key of a request can do anything to the tenant, so an id must not lead to another path, however
often a gateway on the way decodes it (docs/security.md).
"""

import re
from urllib.parse import quote

from monocloud_async.errors import InvalidUserIdError

_MAX_ID_BYTES = 1024  # servers refuse a request line of about 8 KiB; quoting triples the length
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BYTE = re.compile(rb"[\x00-\x1f\x7f]")
_PATH_CHARACTER = re.compile(r"[./\\%;?#]")
_SEPARATOR = re.compile(rb"[/\\]")
_DOTS = frozenset({b".", b".."})
_PARAMETERS = re.compile(rb"[;?#].*", re.DOTALL)  # some servers remove these from a segment
_ESCAPED = re.compile(rb"%(?:[uU]00)?([0-9a-fA-F]{2})")  # IIS also decodes %uXXXX
# Overlong encodings (RFC 3629, section 3), which some decoders accept.
_OVERLONG = re.compile(
    rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]|\xf8[\x80-\x87]|\xfc[\x80-\x83]"
)


def check_user_id(user_id: str) -> None:
    """Raise `InvalidUserIdError` unless the id can be one path segment.

    Refused are other types, the empty string, control characters, lone surrogates, surrounding
    white space, and more than 1,024 bytes; and ids that a proxy or a server could decode into
    another path, to which a request with the admin key would go (docs/security.md).
    """
    if not isinstance(user_id, str):
        raise InvalidUserIdError(f"a user id is a str, not {type(user_id).__name__}")
    user_id = exact_id(user_id)
    if _is_plain(user_id):
        return
    problem = _id_problem(user_id)
    if problem:
        raise InvalidUserIdError(f"this id {problem}; nothing was sent", user_id=user_id[:80])


def exact_id(user_id: str) -> str:
    """Return the id as an exact `str`; what is no string, unchanged.

    A subclass may hash, print or format as something else, as the members of an enum do.
    """
    if type(user_id) is str or not isinstance(user_id, str):
        return user_id
    return str.__str__(user_id)


def path_segment(user_id: str) -> str:
    """Return the id percent-encoded as one segment of a path.

    Raises:
        InvalidUserIdError: it cannot be one; see `check_user_id`.
    """
    if type(user_id) is str and _is_plain(user_id):
        return user_id
    check_user_id(user_id)
    return quote(exact_id(user_id), safe="")


def leaves_folder(path: str) -> bool:
    """Return whether some proxy or server could resolve this path to one in another folder."""
    decoded = _fully_decoded(path)
    return (
        not _DOTS.isdisjoint(_segments(decoded))
        or _OVERLONG.search(decoded) is not None
        or _CONTROL_BYTE.search(decoded) is not None
    )


def _is_plain(user_id: str) -> bool:
    """Return whether the id needs no encoding and no further check, as nearly all ids."""
    return user_id.isalnum() and user_id.isascii() and len(user_id) <= _MAX_ID_BYTES


def _id_problem(user_id: str) -> str | None:
    if not user_id:
        return "is empty"
    if _CONTROL.search(user_id):
        return "has control characters"
    if user_id != user_id.strip():
        return "has white space around it"
    try:
        length = len(user_id.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode (a lone surrogate)"
    if length > _MAX_ID_BYTES:
        return f"is longer than {_MAX_ID_BYTES} bytes"
    return _path_problem(user_id) if _PATH_CHARACTER.search(user_id) else None


def _path_problem(user_id: str) -> str | None:
    """Return the problem of an id after a gateway has decoded it any number of times, or None."""
    decoded = _fully_decoded(user_id)
    if _OVERLONG.search(decoded):
        return "has an overlong encoding of a character in it"
    if len(_SEPARATOR.findall(decoded)) > len(_SEPARATOR.findall(user_id.encode())):
        return "has an encoded slash or backslash, which would address another path"
    parts = _segments(decoded)
    if not _DOTS.isdisjoint(parts):
        what = "is" if len(parts) == 1 else "has"
        return f"{what} a dot segment, which would address another path"
    if b"" in parts:
        return "has nothing before, after or between slashes, which would address another path"
    return "has encoded control characters" if _CONTROL_BYTE.search(decoded) else None


def _segments(decoded: bytes) -> list[bytes]:
    return [_PARAMETERS.sub(b"", part).strip() for part in _SEPARATOR.split(decoded)]


def _fully_decoded(text: str) -> bytes:
    """Return the text as it is after a gateway has decoded it any number of times."""
    decoded, encoded = text.encode(errors="surrogatepass"), b""
    while decoded != encoded:
        decoded, encoded = _ESCAPED.sub(_unescaped, decoded), decoded
    return decoded


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode())
