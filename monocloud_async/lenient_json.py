r"""Reads JSON leniently: replaces what a strict decoder refuses, and reads the rest.

A user's data may contain what JSON's grammar allows but decoders refuse: half of a surrogate pair,
numbers of any size, any depth (RFC 8259, sections 6, 8.2 and 9). Servers also send what the grammar
forbids: `NaN`, a raw line break in a string, invalid UTF-8. The other members remain valid.

This module decides whether a text is complete, ends early or is malformed: the error messages of
decoders change between versions.
"""

import json
import re
import sys
from typing import Any, Final, Literal, NamedTuple

import msgspec

_UNKNOWN: Final = "\ufffd"  # the replacement character

_MOST_DIGITS: Final = 4300  # Python's own default
_MAX_DEPTH: Final = 100  # decoders and encoders recurse
# A string, without its closing quote if the input ends in it; a punctuation mark; or a word. The
# first character decides which, so the expression never backtracks.
_TOKEN: Final = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)|[{}\[\],:]|[^ \t\n\r"{}\[\],:]+', re.DOTALL
)
_TO_ESCAPE: Final = re.compile(r"[\x00-\x1f\\]")
_ESCAPE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a surrogate pair
    r'|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|\\["\\/bfnrt]'
    r"|(?P<unknown>\\u[0-9a-fA-F]{4}|\\.)|(?P<control>[\x00-\x1f])",
    re.DOTALL,
)
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_OBJECT: Final = re.compile(r'[ \t\n\r]*\{[ \t\n\r]*(?:["}]|\Z)')
# Which tokens may come next, by their first character; "w" for a word.
_MARKS: Final = '"{}[],:'
_VALUE, _NAME, _FIRST_NAME = '"{[w', '"', '"}'
_NAMES: Final = {_NAME, _FIRST_NAME}
_AFTER_VALUE: Final = {"": "", "}": ",}", "]": ",]"}  # by the innermost open bracket's closer

TextEnd = Literal["whole", "early", "malformed"]

_decoder = msgspec.json.Decoder()


class Reading(NamedTuple):
    """The result of reading.

    Attributes:
        value: the value, or None if the text is not complete.
        end: whether the text is complete; "early" if it is valid so far, but cut off.
        is_object: whether the text begins like a JSON object, unlike any HTML page or plain text.
    """

    value: Any
    end: TextEnd
    is_object: bool


def read(body: bytes) -> Reading:
    """Read the JSON value of this body, as far as possible.

    Invalid characters become U+FFFD. Numbers out of range, unknown words, and values nested deeper
    than 100 become null.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    strict, end = _strict(text)
    value = _decoder.decode(strict) if end == "whole" else None
    return Reading(value, end, _OBJECT.match(text) is not None)


def _strict(text: str) -> tuple[str, TextEnd]:
    """Return the text in a form that a strict decoder accepts, if complete, and how it ends."""
    out: list[str] = []
    closers = [""]  # closing brackets of the open ones, innermost last
    allowed = _VALUE
    for found in _TOKEN.finditer(text):
        token = found[0]
        kind = token[0] if token[0] in _MARKS else "w"
        if kind not in allowed:
            return "", "malformed"
        if found[1] in {"", "\\"}:
            return "", "early"
        depth = len(closers)
        if depth <= _MAX_DEPTH or (depth == _MAX_DEPTH + 1 and kind not in "{["):
            out.append(_harmless(kind, token))
        elif depth == _MAX_DEPTH + 1:
            out.append("null")  # in place of the whole value
        allowed = _next(kind, closers, is_name=kind == '"' and allowed in _NAMES)
    return ("", "early") if allowed else ("".join(out), "whole")


def _next(kind: str, closers: list[str], *, is_name: bool) -> str:
    """Return which tokens may follow this one."""
    if kind in "{[":
        closers.append("}" if kind == "{" else "]")
        return _FIRST_NAME if kind == "{" else _VALUE + "]"
    if kind == ",":
        return _NAME if closers[-1] == "}" else _VALUE
    if kind == ":":
        return _VALUE
    if is_name:
        return ":"
    if kind in "}]":
        closers.pop()
    return _AFTER_VALUE[closers[-1]]


def _harmless(kind: str, token: str) -> str:
    if kind == '"':
        return _ESCAPE.sub(_escaped, token) if _TO_ESCAPE.search(token) else token
    return _word(token) if kind == "w" else token


def _escaped(found: re.Match[str]) -> str:
    if found["unknown"]:
        return _UNKNOWN
    return f"\\u{ord(found[0]):04x}" if found["control"] else found[0]


def _word(word: str) -> str:
    if word in {"true", "false"}:
        return word
    if _INTEGER.fullmatch(word):
        # Python neither reads nor prints longer ones; 0 stands for no limit.
        return word if len(word) <= (sys.get_int_max_str_digits() or _MOST_DIGITS) else "null"
    if _NUMBER.fullmatch(word) and abs(float(word)) != float("inf"):
        return word
    return "null"
