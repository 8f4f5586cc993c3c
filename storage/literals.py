"""JSON that keeps the spelling of numbers: 1.10, 1E5, -0, more digits than a float holds."""

from __future__ import annotations

import json
import re
from typing import Any

_quote = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would create an encoder at every call
_SIGNIFICANT = re.compile(r"[1-9]")


class LiteralFloat(float):
    """A number whose `literal`, as read, differs from Python's spelling."""

    __slots__ = ("literal",)
    literal: str


class MinusZero(int):
    """-0, the only whole number that Python spells differently."""

    literal = "-0"


_LITERALS = frozenset({LiteralFloat, MinusZero})


def read_float(literal: str) -> float:
    """Return the number, for json's parse_float. Raises ValueError for one that a float cannot hold."""
    number = float(literal)
    if repr(number) == literal:
        return number
    if number in (float("inf"), float("-inf")) or (number == 0 and _SIGNIFICANT.search(re.split("[eE]", literal)[0])):
        raise ValueError("a number is too large or too small")
    literal_float = LiteralFloat(number)
    literal_float.literal = literal
    return literal_float


def read_int(literal: str) -> int:
    """Return the number, for json's parse_int; only texts that contain -0 need it."""
    return MinusZero() if literal == "-0" else int(literal)


def encode(document: dict[str, Any]) -> str:
    """Return an object of scalars, and of objects of scalars, as JSON with its numbers as they were read."""
    if not _has_literal(document):
        return _quote(document)
    return f"{{{', '.join(f'{_quote(name)}: {_encode_value(value)}' for name, value in document.items())}}}"


def decode(text: str) -> Any:
    """Parse what `encode` wrote."""
    return _DECODER.decode(text)


def _encode_value(value: Any) -> str:
    if isinstance(value, dict):
        return encode(value)
    return str(value.literal) if type(value) in _LITERALS else _quote(value)


def _has_literal(document: dict[str, Any]) -> bool:
    """Return whether a value needs its own spelling; json's encoder handles all others much faster."""
    for value in document.values():
        if type(value) in _LITERALS or (type(value) is dict and not _LITERALS.isdisjoint(map(type, value.values()))):
            return True
    return False


_DECODER = json.JSONDecoder(parse_float=read_float, parse_int=read_int)
