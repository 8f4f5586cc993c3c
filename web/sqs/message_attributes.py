"""Attributes of messages: checks, MD5 sums, and their form in the store.

The store has attributes as JSON scalars. `attribute_types` beside them has the data types that JSON does not show.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from storage.literals import read_float
from web.sqs.errors import invalid, invalid_value
from web.sqs.parameters import Parameters, check_characters

MOST_ATTRIBUTES = 10
MOST_CHARACTERS = 256  # of a name or a type
TRACE = "AWSTraceHeader"
MOST_TRACE = 1024  # characters that the store takes

_NAME = re.compile(r"[A-Za-z0-9_.\u00c0-\u017f-]+")
_RESERVED = re.compile(r"(?:aws|amazon)\.", re.IGNORECASE)
_TYPE = re.compile(r"(String|Number|Binary)(\..+)?", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_INVALID = "InvalidParameterValueException"
_HISTORY = frozenset(
    f"dead_letter_{part}" for part in ("from", "reason", "at", "id", "receive_count", "history")
)  # the store adds these to a dead letter's attributes


class Attribute(NamedTuple):
    type: str
    value: str | bytes  # bytes if the type is Binary

    @property
    def raw(self) -> bytes:
        return self.value if isinstance(self.value, bytes) else self.value.encode()

    def written(self) -> dict[str, str]:
        """Return the members that a reply has."""
        if isinstance(self.value, bytes):
            return {"BinaryValue": b64encode(self.value).decode(), "DataType": self.type}
        return {"StringValue": self.value, "DataType": self.type}


Attributes = Mapping[str, Attribute]


def read(parameters: Parameters) -> dict[str, Attribute]:
    """Return a message's attributes. Raises SqsError."""
    found: dict[str, Attribute] = {}
    for name, parts in parameters.objects("MessageAttributes"):
        _check_name(name)
        found[name] = _read(name, parts)
    if len(found) > MOST_ATTRIBUTES:
        raise invalid_value(f"Number of message attributes [{len(found)}] exceeds the allowed maximum [10].")
    return found


def read_system(parameters: Parameters) -> dict[str, Attribute]:
    """Return a message's system attributes, of which senders can set only the trace. Raises SqsError."""
    found: dict[str, Attribute] = {}
    for name, parts in parameters.objects("MessageSystemAttributes"):
        if name != TRACE:
            raise invalid_value(f"Message system attribute name '{name}' is invalid.")
        found[name] = attribute = _read(name, parts)
        if attribute.type != "String" or len(attribute.value) > MOST_TRACE:
            raise invalid_value(f"Message system attribute '{name}' must be a String of at most {MOST_TRACE}.")
    return found


def size(attributes: Attributes) -> int:
    """Return the bytes that attributes count for in the size of a message."""
    return sum(len(name.encode()) + len(one.type.encode()) + len(one.raw) for name, one in attributes.items())


def md5(attributes: Attributes) -> str:
    """Return the MD5 sum by which SDKs check attributes."""
    digest = hashlib.md5(usedforsecurity=False)
    for name in sorted(attributes):
        attribute = attributes[name]
        for part in (name.encode(), attribute.type.encode()):
            digest.update(len(part).to_bytes(4, "big") + part)
        kind = b"\2" if isinstance(attribute.value, bytes) else b"\1"
        digest.update(kind + len(attribute.raw).to_bytes(4, "big") + attribute.raw)
    return digest.hexdigest()


def stored(attributes: Attributes) -> dict[str, Any]:
    """Return the members of a message in the store."""
    values: dict[str, Any] = {}
    types: dict[str, str] = {}
    for name, (kind, value) in attributes.items():
        number = _as_number(value) if kind == "Number" and isinstance(value, str) else None
        values[name] = _as_json(value) if number is None else number
        if kind != "String" and number is None:
            types[name] = kind
    return ({"attributes": values} if values else {}) | ({"attribute_types": types} if types else {})


def restored(fields: Mapping[str, Any], *, is_dead: bool, clean: Callable[[str], str]) -> dict[str, Attribute]:
    """Return the attributes of a message in the store, which a native client may have sent."""
    types = fields.get("attribute_types", {})
    found = {}
    for name, value in fields.get("attributes", {}).items():
        if value is not None and not (is_dead and name in _HISTORY):
            found[clean(name)] = _restored(value, types.get(name), clean)
    return found


def chosen(attributes: Attributes, names: Iterable[str]) -> dict[str, Attribute]:
    """Return the attributes that a reader asks for: by name, by `prefix.*`, or all of them."""
    names = set(names)
    if names & {"All", "*", ".*"}:
        return dict(attributes)
    prefixes = tuple(name[:-2] for name in names if name.endswith(".*"))
    return {name: one for name, one in attributes.items() if name in names or name.startswith(prefixes)}


def _check_name(name: str) -> None:
    if not name or len(name) > MOST_CHARACTERS:
        raise invalid_value(f"Message (user) attribute name must be 1 to {MOST_CHARACTERS} characters long.")
    if not _NAME.fullmatch(name):
        raise invalid_value(f"Message (user) attribute name '{name}' is invalid: it may contain A-Z, a-z, 0-9, _, -, .")
    if name.startswith(".") or name.endswith(".") or _RESERVED.match(name):
        raise invalid_value(
            f"Message (user) attribute name '{name}' is invalid: it must not start with AWS. or Amazon., "
            "nor start or end with a dot."
        )


def _read(name: str, parts: Parameters) -> Attribute:
    kind = parts.text("DataType")
    if not kind:
        raise invalid_value(f"Message (user) attribute '{name}' must contain a non-empty attribute type.")
    match = _TYPE.fullmatch(check_characters(kind, _INVALID))
    if match is None or len(kind) > MOST_CHARACTERS:
        raise invalid_value(
            f"The type of message (user) attribute '{name}' is invalid. "
            "You must use only the following supported type prefixes: Binary, Number, String."
        )
    value = _bytes(name, parts) if match[1] == "Binary" else check_characters(parts.text("StringValue") or "", _INVALID)
    if not value:
        raise invalid_value(f"Message (user) attribute '{name}' must contain a non-empty value of type '{kind}'.")
    if match[1] == "Number" and not _NUMBER.fullmatch(str(value)):
        raise invalid_value(f"Can't cast the value of message (user) attribute '{name}' to a number.")
    return Attribute(kind, value)


def _bytes(name: str, parts: Parameters) -> bytes | None:
    value = parts.text("BinaryValue")
    try:
        return None if value is None else b64decode(value, validate=True)
    except (NotBase64, ValueError):
        raise invalid(name, "MessageAttributes", "The binary value is not Base64.") from None


def _as_json(value: str | bytes) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _as_number(text: str) -> int | float | None:
    """Return a number that JSON writes just so; None for any other."""
    match = _JSON_NUMBER.fullmatch(text)
    if match is None or text == "-0":
        return None
    if not (match[1] or match[2]):
        return int(text)
    try:
        return read_float(text)
    except ValueError:
        return None


def _restored(value: object, kind: str | None, clean: Callable[[str], str]) -> Attribute:
    if isinstance(value, str):
        if kind is None or not _TYPE.fullmatch(kind):
            return Attribute("String", clean(value))
        if kind.startswith("Binary"):
            try:
                return Attribute(kind, b64decode(value, validate=True))
            except (NotBase64, ValueError):
                return Attribute("String", clean(value))
        return Attribute(clean(kind), clean(value))
    if isinstance(value, bool):
        return Attribute("String", "true" if value else "false")
    return Attribute("Number", str(getattr(value, "literal", value)))
