"""The kinds of an input; kept apart from the reader, so that `--help` is quick."""

from enum import StrEnum


class Format(StrEnum):
    """The format of an input."""

    TXT = "txt"
    CSV = "csv"
    JSONL = "jsonl"


class By(StrEnum):
    """What the lines of an input name users by."""

    ID = "id"
    EMAIL = "email"
