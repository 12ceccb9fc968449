"""Reads a JSON document that lists users: an array, or a page of an API with one list in it."""

from typing import Final, NamedTuple

import msgspec

from monocloud_async.errors import ConfigurationError
from monocloud_async.sanitize import clean

MAX_DOCUMENT: Final = 1 << 28  # characters; a document is in memory as a whole, unlike lines

_array = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Paging(msgspec.Struct):
    total_count: int = 0


class Document(NamedTuple):
    """The items of a document, as JSON texts, and what to tell people about it."""

    items: list[str]
    notes: list[str]


def may_be_document(first_line: str) -> bool:
    """Return whether this line begins a document; else it is a line of JSON lines."""
    start = first_line.lstrip()
    if start.startswith("["):
        return True
    if not start.startswith("{"):
        return False
    try:
        members = _object.decode(start.encode(errors="surrogateescape"))
    except (msgspec.MsgspecError, RecursionError):
        return True  # an object over several lines
    return len(_lists(members)) == 1 and not {"user_id", "id"} & members.keys()


def read_document(name: str, text: str) -> Document:
    """Return the items of this document.

    Raises:
        ConfigurationError: it is not JSON, or has no single list.
    """
    if len(text) >= MAX_DOCUMENT:
        raise ConfigurationError(f"{name} is too long for one document; use: jq -c '.[]'")
    content = text.encode(errors="surrogateescape")
    try:
        if text.lstrip().startswith("["):
            return Document(_texts(content), [])
        members = _object.decode(content)
        lists = _lists(members)
        if len(lists) != 1:
            raise ConfigurationError(
                f"{name} is one JSON object without a single list of users;"
                " write one object a line: jq -c"
            )
        items = _texts(members[lists[0]])
        return Document(items, _notes(len(items), members))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not JSON: {clean(str(error))}") from None


def _lists(members: dict[str, msgspec.Raw]) -> list[str]:
    return [name for name, value in members.items() if bytes(value).startswith(b"[")]


def _texts(content: bytes | msgspec.Raw) -> list[str]:
    """Return the items, each on one line: in JSON, a raw line break is only white space."""
    return [
        bytes(item).decode(errors="surrogateescape").replace("\r", " ").replace("\n", " ")
        for item in _array.decode(content)
    ]


def _notes(count: int, members: dict[str, msgspec.Raw]) -> list[str]:
    """Say so if a page knows of more users than it has."""
    try:
        paging = msgspec.json.decode(members.get("page_data", b"{}"), type=_Paging)
    except msgspec.MsgspecError:
        return []
    if paging.total_count <= count:
        return []
    return [f"this is one page: {count:,} of {paging.total_count:,} users"]
