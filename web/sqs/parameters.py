"""The parameters of an SQS request, checked as they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from web.sqs.errors import SqsError, invalid, missing

NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in a message neither
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class Parameters:
    """The members of a request's document. A null member is absent; unknown members are ignored.

    Methods raise SqsError: a SerializationException for a value of another type.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def __contains__(self, name: str) -> bool:
        return self._document.get(name) is not None

    def are_among(self, names: Set[str]) -> bool:
        """Return whether there are no other members than these."""
        return self._document.keys() <= names

    def text(self, name: str) -> str | None:
        value = self._document.get(name)
        return value if value is None or type(value) is str else as_text(value)

    def required(self, name: str) -> str:
        """Return a text that is neither absent nor empty."""
        value = self.text(name)
        if not value:
            raise missing(name)
        return value

    def number(self, name: str, least: int, most: int, reason: str = "") -> int | None:
        """Return a whole number: of JSON, or digits in a string."""
        value = self._document.get(name)
        if value is None:
            return None
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise SqsError("SerializationException", f"the value of {name} must be a whole number")
        if not least <= value <= most:
            raise invalid(value, name, reason or f"Must be >= {least} and <= {most}, if provided.")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; an empty one for an absent list."""
        return [as_text(value) for value in self._list(name)]

    def entries(self) -> list[Parameters]:
        """Return the entries of a batch."""
        if "Entries" not in self:
            raise missing("Entries")
        return [Parameters(_as_object(entry)) for entry in self._list("Entries")]

    def objects(self, name: str) -> Iterator[tuple[str, Parameters]]:
        """Yield the names of a map and its values, which are objects."""
        for key, value in self._map(name).items():
            yield key, Parameters(_as_object(value))

    def strings(self, name: str) -> dict[str, str]:
        """Return a map of texts; an empty one for an absent map. A null value is absent."""
        return {key: as_text(value) for key, value in self._map(name).items() if value is not None}

    def _list(self, name: str) -> list[Any]:
        value = self._document.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise SqsError("SerializationException", f"the value of {name} must be a list")
        return value

    def _map(self, name: str) -> Mapping[str, Any]:
        value = self._document.get(name)
        return {} if value is None else _as_object(value)


def check_characters(text: str, shape: str) -> str:
    """Return the text if a message may have all of its characters. Raises SqsError of this shape."""
    if not (text.isascii() and text.isprintable()) and NOT_IN_XML.search(text):
        raise SqsError(
            shape,
            "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD"
            " | #x10000 to #x10FFFF",
        )
    return text


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise SqsError("SerializationException", "a value that must be a string is none")
    return value


def _as_object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SqsError("SerializationException", "a value that must be an object is none")
    return value
