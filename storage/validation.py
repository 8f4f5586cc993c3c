"""The limits of a request, and the checks of messages and settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from storage.errors import InvalidInput
from storage.literals import encode

MAX_BATCH = 10_000  # messages in one write, receipts in one ack
MAX_LIMIT = 1_000  # messages in one read
MAX_LEASE = 43_200.0  # seconds
MAX_WAIT = 20.0  # seconds
MAX_DURATION = 10 * 366 * 86_400.0  # seconds: the longest delay, ttl, retention or dedup_window
MAX_NAME = 128  # characters of a key, recipient or dedup_id
MAX_REASON = 1_024  # characters of the reason of a rejection
MAX_ATTRIBUTES = 65_536  # bytes of the attributes, as JSON …
MAX_ATTRIBUTES_LARGE = 3 * 1024 * 1024  # … and of those that an endpoint limits by their own bytes
MAX_SEARCH = 1_024  # characters to search for in texts
MAX_TYPE = 256  # characters of the type of an attribute
MAX_TRACE = 1_024  # characters of a trace
MAX_STRINGS = 32_768  # bytes of a setting that is an object of strings, as JSON
MAX_READ_BYTES = (
    16 * 1024 * 1024
)  # bytes of text and fields in one read; the first message always comes, whatever its size
MAX_PAGE = 1_000  # queues in one listing
MAX_RECIPIENTS = 1_000  # recipients in one read with `recipient=None`
MAX_CHAIN = 100  # dead-letter queues in a chain
MAX_TRANSACTION_QUEUES = 1_000  # queues in one transaction

QUEUE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


def check_queue_name(name: str, field: str | None = "queue") -> str:
    """Return a valid name. Raises InvalidInput."""
    if not QUEUE_NAME.fullmatch(name):
        raise InvalidInput("a queue name must be 1 to 80 of A-Z a-z 0-9 . _ - and not start with a dot", field=field)
    return name


def milliseconds(value: object, field: str, *, least: float = 0.0, most: float = MAX_DURATION) -> int:
    """Convert a duration in seconds to whole ms, rounded up so that only 0 becomes 0. Raises InvalidInput."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidInput(f"'{field}' must be a number of seconds from {least:g} to {most:.12g}", field=field)
    return math.ceil(value * 1000)


def check_text(document: object) -> dict[str, Any]:
    """Return a decoded message if it is an object with a text. Raises InvalidInput naming the field."""
    if not isinstance(document, dict):
        raise InvalidInput("a message must be a JSON object with a 'text'")
    if not isinstance(document.get("text"), str):
        _no_unknown(document)
        raise InvalidInput("'text' is required and must be a string", field="text")
    _no_lone_surrogates(document["text"], "text")
    return document


def check_fields(document: dict[str, Any], most_attributes: int = MAX_ATTRIBUTES) -> tuple[dict[str, Any], str]:
    """Return a message's optional fields, and their JSON for storage. Raises InvalidInput naming the field."""
    fields = document.copy()
    del fields["text"]
    for name, value in fields.items():
        check = _CHECKS.get(name)
        if check is None:
            _no_unknown(document)
        else:
            check(name, value)
    written = encode(fields)
    if "attributes" in fields or "attribute_types" in fields:  # all other fields are checked, and small
        _no_lone_surrogates(written, "attributes")
        if len(written) > most_attributes // 4 and len(written.encode()) > most_attributes:
            raise InvalidInput(f"'attributes' must be at most {most_attributes} bytes", field="attributes")
    return fields, written


def check_setting(name: str, value: object) -> None:
    """Check one setting; None resets any. Raises InvalidInput naming it."""
    check = _SETTINGS.get(name)
    if check is None:
        raise InvalidInput(f"unknown setting '{name[:MAX_NAME]}': use {', '.join(_SETTINGS)}", field=name[:MAX_NAME])
    if value is not None:
        check(name, value)


def _no_unknown(document: Mapping[str, Any]) -> None:
    for name in document:
        if name != "text" and name not in _CHECKS:
            raise InvalidInput(
                f"unknown field '{name[:MAX_NAME]}': use text, {', '.join(_CHECKS)}", field=name[:MAX_NAME]
            )


def check_name(field: str, value: object, most: int = MAX_NAME) -> str:
    """Return a valid key, recipient, dedup_id or reason. Raises InvalidInput."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise InvalidInput(f"'{field}' must be a string of 1 to {most} characters", field=field)
    _no_lone_surrogates(value, field)
    return value


def _check_priority(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise InvalidInput("'priority' must be a whole number from 0 to 9", field=field)


def _check_attributes(field: str, value: object) -> None:
    if isinstance(value, dict):
        for item in value.values():
            if not isinstance(item, _SCALARS):
                break
        else:
            return
    raise InvalidInput("'attributes' must be an object of strings, numbers, booleans and nulls", field=field)


_SCALARS = (str, int, float, bool, type(None))


def _check_types(field: str, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(t, str) and len(t) <= MAX_TYPE for t in value.values()):
        raise InvalidInput(f"'{field}' must be an object of strings of at most {MAX_TYPE} characters", field=field)


def _check_ttl(field: str, value: object) -> None:
    if milliseconds(value, field) == 0:
        raise InvalidInput(f"'{field}' must be a number of seconds greater than 0", field=field)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "key": check_name,
    "priority": _check_priority,
    "recipient": check_name,
    "attributes": _check_attributes,
    "delay": lambda field, value: milliseconds(value, field),
    "ttl": _check_ttl,
    "dedup_id": check_name,
    "attribute_types": _check_types,
    "group": check_name,
    "trace": lambda field, value: check_name(field, value, MAX_TRACE),
}


def _check_whole(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise InvalidInput(f"'{field}' must be a whole number of at least {least}", field=field)


def _check_yes_or_no(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"'{field}' must be true or false", field=field)


def _check_queue(field: str, value: object) -> None:
    check_queue_name(value if isinstance(value, str) else "", field)


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInput(f"'{field}' must be {' or '.join(choices)}", field=field)


def _check_strings(field: str, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidInput(f"'{field}' must be an object of strings", field=field)
    written = encode(value)
    _no_lone_surrogates(written, field)
    if len(written.encode()) > MAX_STRINGS or "\0" in "".join(
        chain(*value.items())
    ):  # PostgreSQL's JSON cannot hold it
        raise InvalidInput(f"'{field}' must be at most {MAX_STRINGS} bytes, without U+0000", field=field)


DEDUP_SCOPES = ("queue", "key")
# What waits behind an unsettled message of a key. run: everything, also what comes before it and is free again.
# head: only what comes after it; so the key's first message is never blocked. A read takes one key after the other.
KEY_LOCKS = ("run", "head")


_SETTINGS: dict[str, Callable[[str, Any], object]] = {
    "lease": lambda field, value: milliseconds(value, field, most=MAX_LEASE),
    "max_receives": lambda field, value: _check_whole(field, value, 0),
    "dead_letter_queue": _check_queue,
    "retention": _check_ttl,
    "max_messages": lambda field, value: _check_whole(field, value, 1),
    "max_bytes": lambda field, value: _check_whole(field, value, 1),
    "dedup_window": lambda field, value: milliseconds(value, field),
    "dead_letter_expired": _check_yes_or_no,
    "paused": _check_yes_or_no,
    "delay": lambda field, value: milliseconds(value, field),
    "expires": lambda field, value: milliseconds(value, field, least=1),
    "wait": lambda field, value: milliseconds(value, field, most=MAX_WAIT),
    "max_message_bytes": lambda field, value: _check_whole(field, value, 1),
    "dedup_content": _check_yes_or_no,
    "dedup_scope": lambda field, value: _check_choice(field, value, DEDUP_SCOPES),
    "key_lock": lambda field, value: _check_choice(field, value, KEY_LOCKS),
    "sqs": _check_strings,
    "tags": _check_strings,
}


def _no_lone_surrogates(text: str, field: str) -> None:
    if text.isascii():  # fast: a str stores this, and most texts are ASCII
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"'{field}' must be Unicode text without lone surrogates", field=field) from None
