"""The formats of an input; kept apart from the reader, so that `--help` is quick."""

from enum import StrEnum


class Format(StrEnum):
    """The format of an input."""

    TXT = "txt"
    CSV = "csv"
    JSONL = "jsonl"  # or one JSON document with an array
    WORKBOOK = "workbook"
