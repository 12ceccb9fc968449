"""The forms in which ids can be written down; apart from their reader, so that help is quick."""

from enum import StrEnum


class Format(StrEnum):
    """How ids are written down."""

    TXT = "txt"
    CSV = "csv"
    JSONL = "jsonl"
