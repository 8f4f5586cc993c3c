"""Conversion of values to the parameters of the functions in PostgreSQL, and of their results."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from storage.clock import Clock
from storage.codec import with_dead_letter_history
from storage.errors import MessageNotFound, StaleReceipt
from storage.model import IdempotencyKey, Message, NewMessage, Receipt, Receive, check_receipts
from storage.steps import group_by_queue
from storage.validation import MAX_BATCH


def fields_json(messages: Sequence[NewMessage]) -> str | None:
    """Return everything but the texts, for `store` in sql/sending.sql; None if the messages have only texts."""
    if all(message.fields is None for message in messages):
        return None
    rows = [
        {
            "fields": message.fields,
            "key": _hex(message.key),
            "priority": message.priority,
            "recipient": _hex(message.recipient),
            "delay": message.delay,
            "ttl": message.ttl,
            "dedup_id": _hex(message.dedup_id),
        }
        for message in messages
    ]
    return json.dumps(rows, ensure_ascii=False)


class Batches(NamedTuple):
    """The parameters of `transact` in sql/verbs.sql for the messages to send."""

    names: list[str]
    counts: list[int]
    texts: list[bytes]
    fields: list[str | None]
    places: list[int]


def to_batches(send: Sequence[tuple[str, NewMessage]]) -> Batches:
    places = group_by_queue(send)
    batches = [[send[place][1] for place in where] for where in places.values()]
    stored = {place: n for n, place in enumerate((place for where in places.values() for place in where), start=1)}
    return Batches(
        list(places),
        [len(batch) for batch in batches],
        [message.text.encode() for batch in batches for message in batch],
        [fields_json(batch) for batch in batches],
        [stored[place] for place in range(len(send))],
    )


def _hex(text: str | None) -> str | None:
    return None if text is None else text.encode().hex()


def receive_parameters(ask: Receive) -> list[Any]:
    lease = None if ask.lease is None else -1 if isinstance(ask.lease, str) else round(1000 * ask.lease)
    recipient = None if ask.recipient is None else ask.recipient.encode()
    return [list(ask.queues), ask.limit, recipient, lease, secrets.randbits(63) | 1]


def key_parameters(once: IdempotencyKey | None) -> tuple[str | None, bytes | None]:
    return (None, None) if once is None else (once.key, once.fingerprint)


def parse_receipt(text: str, queue: str | None, parse: Callable[[str], Receipt] = Receipt.parse_one) -> Receipt:
    """Parse a receipt (of this queue). Raises MessageNotFound for any other text."""
    receipt = parse(text)
    if queue is not None and receipt.queue != queue:
        raise MessageNotFound
    return receipt


def parse_receipts(texts: Sequence[str], queue: str | None) -> tuple[dict[Receipt, str], list[str]]:
    """Return each receipt of one message with its text in the result, and the texts that are none (of this queue).

    Raises InvalidInput for receipts of too many messages.
    """
    known: dict[Receipt, str] = {}
    missing: list[str] = []
    for text in texts:
        try:
            receipt = parse_receipt(text, queue, lambda text: Receipt.parse(text, MAX_BATCH))
        except MessageNotFound:
            missing.append(text)
        else:
            known |= {receipt: text} if receipt.length == 1 else {single: str(single) for single in receipt.each()}
    check_receipts(known)
    return known, missing


def expand_receipts(texts: Sequence[str]) -> tuple[list[Receipt], list[int]]:
    """Return a receipt for each message, and the place of its text.

    Raises StaleReceipt, with its index, for a text that is no receipt.
    """
    parsed: list[Receipt] = []
    for index, text in enumerate(texts):
        try:
            parsed.append(Receipt.parse(text, MAX_BATCH))
        except MessageNotFound:
            raise StaleReceipt(index, missing=True) from None
    check_receipts(parsed)
    each = [(single, index) for index, receipt in enumerate(parsed) for single in receipt.each()]
    return [single for single, _ in each], [index for _, index in each]


def columns(receipts: Sequence[Receipt]) -> tuple[list[str], list[int], list[int]]:
    return [r.queue for r in receipts], [r.id for r in receipts], [r.token for r in receipts]


def failed(known: Mapping[Receipt, str], statuses: Sequence[str], missing: list[str]) -> tuple[list[str], list[str]]:
    """Return the stale and the missing receipts."""
    by_status: dict[str, list[str]] = {"held": [], "stale": [], "missing": missing}
    for text, status in zip(known.values(), statuses, strict=True):
        by_status[status].append(text)
    return by_status["stale"], by_status["missing"]


def to_messages(rows: Sequence[Any], clock: Clock) -> list[Message]:
    """Return the messages in the rows of a function that leases or removes them."""
    ahead = clock.wall(0)  # computed once: the wall clock's lead over the service's time
    return [
        Message(
            number, queue, text.decode(), with_dead_letter_history(fields, deaths), sent_at + ahead, count,
            None if token is None else str(Receipt(queue, number, token)),
            None if until is None else until + ahead,
            first_received_at=None if first is None else first + ahead, deaths=deaths,
        )
        for _, _, _, queue, number, text, fields, deaths, sent_at, count, token, until, first in rows
    ]  # fmt: skip


def storable(reason: str | None) -> str | None:
    """Return the reason as `last_death` in sql/changes.sql returns it: a text of PostgreSQL cannot hold U+0000."""
    return None if reason is None else reason.replace("\0", "\ufffd")


def is_too_much_due(rows: Sequence[Any]) -> bool:
    """Return whether these rows report that a queue is not up to date."""
    return bool(rows) and rows[0][0] is not None


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
