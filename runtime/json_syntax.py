"""JSON (RFC 8259), read strictly: what `docs/bundle.md` allows and no more, and refused in words of our own.

Python's decoder accepts more (NaN, half of a surrogate pair), and its sentences differ from version to version; the C++
runtime says the same as this.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 512
"""Levels of lists and objects inside of each other that are accepted."""

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_CHARACTERS = re.compile(
    r"""(?: [^"\\\x00-\x1f\ud800-\udfff]
          | \\["\\/bfnrt]
          | \\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}
          | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
        )*""",
    re.VERBOSE,
)

# What may come next, each by its first character; v stands for a number, true, false or null.
_VALUE, _VALUE_OR_END = 'v"[{', 'v"[{]'
_KEY, _KEY_OR_END = '"', '"}'
_END = ""


class JsonError(ValueError):
    """Text is not JSON, or not such as is accepted here."""


def parse_json(text: str) -> Any:
    """Decode JSON.

    Args:
        text: what to decode

    Returns:
        what it stands for

    Raises:
        JsonError: if it is not JSON, an object has the same key twice, a number is too large, or it is nested too
            deeply
    """
    mistake = _mistake(text)
    if mistake is not None:
        raise JsonError(mistake)
    try:
        return json.loads(text, parse_int=_integer, parse_float=_real, object_pairs_hook=_object)
    except RecursionError:
        raise JsonError("it is nested too deeply to be read here") from None


def _integer(digits: str) -> int:
    _real(digits)  # also an integer: one of thousands of digits takes long to read
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise JsonError("a number is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of two equal keys they take: what one checks, another would not open.
    data = dict(pairs)
    if len(data) != len(pairs):
        raise JsonError("an object has the same key twice")
    return data


def _mistake(text: str) -> str | None:
    """What keeps text from being JSON, the first thing of that kind; None if nothing does."""
    inside: list[str] = []  # the brackets that are open
    expected, at = _VALUE, 0
    while True:
        at = _end(_SPACE, text, at)
        if at == len(text):
            return None if expected == _END else "it ends too early"
        first = text[at]
        kind = first if first in '"[]{}:,' else "v"
        if kind not in expected:
            return _place(text, at)
        if kind in "[{":
            if len(inside) == MAX_DEPTH:
                return f"it is nested more than {MAX_DEPTH} levels deep"
            inside.append(kind)
            expected, at = (_VALUE_OR_END if kind == "[" else _KEY_OR_END), at + 1
            continue
        if kind in ":,":
            expected, at = (_VALUE if kind == ":" or inside[-1] == "[" else _KEY), at + 1
            continue
        is_key = kind == '"' and "v" not in expected
        if kind == '"':
            at = _end(_CHARACTERS, text, at + 1)
            if at == len(text):
                return "it ends too early"
            if text[at] != '"':
                return _place(text, at)
            at += 1
        elif kind == "v":
            end = _end(_SCALAR, text, at)
            if end == at:
                return _place(text, at)
            at = end
        else:
            inside.pop()
            at += 1
        expected = ":" if is_key else _END if not inside else ",]" if inside[-1] == "[" else ",}"


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a match ends; where it would begin if there is none."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _place(text: str, at: int) -> str:
    line, before = text.count("\n", 0, at) + 1, text.rfind("\n", 0, at)
    return f"a syntax error in line {line}, column {at - before}"
