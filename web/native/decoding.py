"""Decode JSON strictly, with limits on its size and depth."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from storage.errors import InvalidInput
from storage.literals import read_float, read_int
from storage.validation import MAX_ATTRIBUTES, MAX_BATCH
from web.native.request import BadRequest, utf8

MANY = 200_000  # structural bytes up to which a body is decoded at once, since it needs little memory
# The limits of a valid body. A body beyond them is refused before all of it is decoded.
MOST_MEMBERS = MAX_ATTRIBUTES // 6  # in one object: `"a":1,` is the shortest member of the attributes
MOST_CONTAINERS = 3 * MAX_BATCH + MOST_MEMBERS + 10  # messages, their attributes and types, a run's columns
MOST_DEPTH = 5  # nested arrays and objects

_BLANK = re.compile(r"[ \t\n\r]*")
_MINUS_ZERO = re.compile(rb"-0(?![.0-9eE])")


def parse_json(raw: bytes) -> Any:
    """Return a JSON value (RFC 8259, UTF-8 without a BOM). Raises BadRequest, also for repeated names and NaN.

    Raises InvalidInput for an array of more than MAX_BATCH elements, in a large body as soon as it has decoded them.
    """
    if not raw or raw.isspace():
        raise BadRequest("the body, or this line of it, must be JSON, but is empty")
    if raw.startswith(codecs.BOM_UTF8):
        raise BadRequest("the body must not begin with a byte order mark")
    # One byte is found far faster than two.
    text, decoder = utf8(raw), _EXACT if b"-" in raw and _MINUS_ZERO.search(raw) else _DECODER
    try:
        if len(raw) <= MANY or structure(raw) <= MANY:
            if text.startswith("{") and text.endswith("}"):  # most bodies: without blanks, for which `decode` looks
                value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]  # undocumented
                if end == len(text):
                    return value
            return decoder.decode(text)
        return _Bounded(text, decoder).decode()
    except StopIteration as fault:  # the scanner raises this where no value follows
        raise BadRequest(f"the body is not valid JSON: Expecting value at character {fault.value}") from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None
    except ValueError as fault:
        why = f"{fault.msg} at character {fault.pos}" if isinstance(fault, json.JSONDecodeError) else str(fault)
        why = "a number of more than 4,300 digits" if "digits" in why else why  # Python's limit
        raise BadRequest(f"the body is not valid JSON: {why}") from None


def structure(raw: bytes) -> int:
    """Return about how many values the body can contain, as a measure of the cost to decode it."""
    return len(raw) - len(raw.translate(None, b",[{"))  # one pass; counting each byte takes three


class _Bounded:
    """A decoder that reads arrays and objects element by element, and stops at the limits."""

    def __init__(self, text: str, decoder: json.JSONDecoder) -> None:
        self._text = text
        self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]  # undocumented
        self._containers = 0

    def decode(self) -> Any:
        value, end = self._value(self._skip(0), 1)
        if (end := self._skip(end)) != len(self._text):
            self._fail("Extra data", end)
        return value

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        first = self._text[at : at + 1]
        if first not in ("[", "{"):
            return self._scan(self._text, at)
        self._containers += 1
        if depth > MOST_DEPTH or self._containers > MOST_CONTAINERS:
            raise ValueError("too many arrays and objects")
        return self._array(at, depth) if first == "[" else self._object(at, depth)

    def _array(self, at: int, depth: int) -> tuple[list[Any], int]:
        text, scan = self._text, self._scan
        values: list[Any] = []
        at = self._skip(at + 1)
        if text[at : at + 1] == "]":
            return values, at + 1
        while True:
            if len(values) == MAX_BATCH:
                raise InvalidInput(f"an array has at most {MAX_BATCH} elements", index=MAX_BATCH)
            first = text[at : at + 1]
            if depth == 1 and first != "{":
                raise InvalidInput("a message must be a JSON object with a 'text'", index=len(values))
            if first == "[":
                raise ValueError("an array must not contain an array")
            value, at = self._value(at, depth + 1) if first == "{" else scan(text, at)
            values.append(value)
            if text[at : at + 1] != ",":
                at = self._skip(at)
                if text[at : at + 1] == "]":
                    return values, at + 1
                if text[at : at + 1] != ",":
                    self._fail("Expecting ',' delimiter", at)
            at = self._skip(at + 1)

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        text = self._text
        members: list[tuple[str, Any]] = []
        at = self._skip(at + 1)
        if text[at : at + 1] == "}":
            return {}, at + 1
        while True:
            if len(members) == MOST_MEMBERS:
                raise ValueError(f"an object has at most {MOST_MEMBERS} members")
            if text[at : at + 1] != '"':
                self._fail("Expecting property name enclosed in double quotes", at)
            name, at = self._scan(text, at)
            at = self._skip(at)
            if text[at : at + 1] != ":":
                self._fail("Expecting ':' delimiter", at)
            value, at = self._value(self._skip(at + 1), depth + 1)
            members.append((name, value))
            at = self._skip(at)
            if text[at : at + 1] == "}":
                return _unique(members), at + 1
            if text[at : at + 1] != ",":
                self._fail("Expecting ',' delimiter", at)
            at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        """Return the next position that is not blank."""
        if self._text[at : at + 1] not in (" ", "\t", "\n", "\r"):
            return at
        return _BLANK.match(self._text, at).end()  # type: ignore[union-attr]  # it matches an empty string too

    def _fail(self, why: str, at: int) -> NoReturn:
        raise ValueError(f"{why} at character {at}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object must not repeat a name")
    return members


def _no_constant(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=read_float, parse_constant=_no_constant)
_EXACT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=read_float, parse_int=read_int, parse_constant=_no_constant
)
