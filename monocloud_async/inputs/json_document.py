"""Reads a JSON document that lists users: an array, or a page of an API with one list in it.

An object that has an id itself is a user, whatever lists are in it, such as those of its roles.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs.ids import normalized
from monocloud_async.sanitize import clean

MAX_DOCUMENT: Final = 1 << 28  # characters; a document is in memory as a whole, unlike lines

# What APIs call the list of a page, in lower case and without "_", "-" and spaces.
_LISTS: Final = {
    *("users", "ids", "userids", "data", "items", "results", "result", "records", "rows"),
    *("value", "values", "entries", "elements", "content", "resources", "list", "members"),
}

_BEGUN: Final = re.compile(r"""\s*[\[{]\s*(?:["\[{\]}]|\Z)""")
_NOT_UTF_8: Final = re.compile("[\ud800-\udfff]")

_array = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Paging(msgspec.Struct):
    total_count: int = 0


class Document(NamedTuple):
    """The items of a document, as JSON texts, and what to tell people about it."""

    items: list[str]
    notes: list[str]


def refuse_json(name: str, line: str) -> None:
    """Raise `ConfigurationError` if the first line of another format begins an array or an object.

    A cell may begin like that as well, such as `[user_id]` or an id in braces.
    """
    if _BEGUN.match(line):
        raise ConfigurationError(f"{name} looks like JSON: use --format jsonl")


def may_be_document(first_line: str, is_id: Callable[[str], bool]) -> bool:
    """Return whether this line begins a document; else it is a line of JSON lines.

    `is_id` tells whether a member of this name has the id of a user.
    """
    start = first_line.lstrip()
    if start.startswith("["):
        return True
    if not start.startswith("{"):
        return False
    try:
        members = _object.decode(utf_8(start))
    except (msgspec.MsgspecError, RecursionError):
        return True  # an object over several lines
    lists = _lists(members)
    has_no_id = not any(map(is_id, members))
    return len(lists) == 1 and (has_no_id or _is_doubtful(members, lists, is_id))


def read_document(name: str, text: str, is_id: Callable[[str], bool]) -> Document | None:
    """Return the items of this document, or None if it is no array, and no single object.

    Args:
        name: the name of the input, for error messages.
        text: the text of the document.
        is_id: as for `may_be_document`.

    Raises:
        ConfigurationError: the array is not JSON, or the object has no list of users.
    """
    is_array = text.lstrip().startswith("[")
    if len(text) >= MAX_DOCUMENT:
        if not is_array:
            return None
        raise ConfigurationError(f"{name} is too long for one document; use: jq -c '.[]'")
    content = utf_8(text)
    try:
        if is_array:
            return Document(_texts(content), [])
        members = _object.decode(content)
        lists = _lists(members)
        if _is_doubtful(members, lists, is_id):
            raise ConfigurationError(
                f"{name} is one JSON object with an id and the list {clean(lists[0])!r}, so nobody"
                " can tell whether it is a user or a page of users; write one user a line: jq -c"
            )
        if any(map(is_id, members)):
            return Document([_on_one_line(content)], [])
        if len(lists) != 1:
            raise ConfigurationError(
                f"{name} is one JSON object without a single list of users;"
                " write one object a line: jq -c"
            )
        items = _texts(members[lists[0]])
        if normalized(lists[0]) not in _LISTS and not _has_user_id(items, is_id):
            raise ConfigurationError(
                f"{name} is one JSON object with the list {clean(lists[0])!r}, which may be no list"
                " of users; if it is one, write one of them a line: jq -c"
            )
        return Document(items, _notes(len(items), members))
    except (msgspec.MsgspecError, RecursionError) as error:
        if not is_array:
            return None
        raise ConfigurationError(f"{name} is not JSON: {clean(str(error))}") from None


def utf_8(text: str) -> bytes:
    """Return the text with a replacement character for each byte that was not UTF-8.

    It must not be read as UTF-8 again: two of them may be another letter there.
    """
    return _NOT_UTF_8.sub("\ufffd", text).encode()


def _is_doubtful(
    members: dict[str, msgspec.Raw], lists: list[str], is_id: Callable[[str], bool]
) -> bool:
    """Return whether this may be a page of users as well as a user: many things have an `id`."""
    is_page = len(lists) == 1 and normalized(lists[0]) in _LISTS
    return is_page and {normalized(name) for name in members if is_id(name)} == {"id"}


def _has_user_id(items: list[str], is_id: Callable[[str], bool]) -> bool:
    """Return whether the first item has an id that can only be a user's."""
    try:
        members = _object.decode(items[0]) if items else {}
    except msgspec.MsgspecError:
        return False
    return any(is_id(name) and normalized(name) != "id" for name in members)


def _lists(members: dict[str, msgspec.Raw]) -> list[str]:
    return [name for name, value in members.items() if bytes(value).startswith(b"[")]


def _texts(content: bytes | msgspec.Raw) -> list[str]:
    """Return the items, each on one line: in JSON, a raw line break is only white space."""
    return [_on_one_line(bytes(item)) for item in _array.decode(content)]


def _on_one_line(content: bytes) -> str:
    text = content.decode().strip()
    return text.replace("\r", " ").replace("\n", " ")


def _notes(count: int, members: dict[str, msgspec.Raw]) -> list[str]:
    """Say so if a page knows of more users than it has."""
    try:
        paging = msgspec.json.decode(members.get("page_data", b"{}"), type=_Paging)
    except msgspec.MsgspecError:
        return []
    if paging.total_count <= count:
        return []
    return [f"this is one page: {count:,} of {paging.total_count:,} users"]
