"""How the values of a verb are given to the functions in PostgreSQL, and what these say of receipts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from storage.clock import Clock
from storage.codec import with_dead_letter_history
from storage.errors import MessageNotFound, StaleReceipt
from storage.model import IdempotencyKey, Message, NewMessage, Receipt, Receive, check_receipts
from storage.validation import MAX_BATCH


def fields_of(messages: Sequence[NewMessage]) -> str | None:
    """All but the texts, as `store` in sql/sending.sql reads it; None for messages that are nothing but text."""
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


def _hex(text: str | None) -> str | None:
    return None if text is None else text.encode().hex()


def ask_of(ask: Receive) -> list[Any]:
    lease = None if ask.lease is None else -1 if isinstance(ask.lease, str) else round(1000 * ask.lease)
    recipient = None if ask.recipient is None else ask.recipient.encode()
    return [list(ask.queues), ask.limit, recipient, lease, secrets.randbits(63) | 1]


def once_of(once: IdempotencyKey | None) -> tuple[str | None, bytes | None]:
    return (None, None) if once is None else (once.key, once.fingerprint)


def receipt_of(text: str, queue: str | None, parse: Callable[[str], Receipt] = Receipt.parse_one) -> Receipt:
    """Raises MessageNotFound for what is no receipt (of this queue)."""
    receipt = parse(text)
    if queue is not None and receipt.queue != queue:
        raise MessageNotFound
    return receipt


def parsed(texts: Sequence[str], queue: str | None) -> tuple[dict[Receipt, str], list[str]]:
    """What each receipt of one message is reported as, and the texts that are no receipts (of this queue).

    Raises InvalidInput for receipts of too many messages.
    """
    known: dict[Receipt, str] = {}
    missing: list[str] = []
    for text in texts:
        try:
            receipt = receipt_of(text, queue, lambda text: Receipt.parse(text, MAX_BATCH))
        except MessageNotFound:
            missing.append(text)
        else:
            known |= {receipt: text} if receipt.length == 1 else {one: str(one) for one in receipt.each()}
    check_receipts(known)
    return known, missing


def receipts_of(texts: Sequence[str]) -> tuple[list[Receipt], list[int]]:
    """A receipt for each message, and the place of the text it stands in.

    Raises StaleReceipt, with its index, for what is no receipt.
    """
    parsed: list[Receipt] = []
    for index, text in enumerate(texts):
        try:
            parsed.append(Receipt.parse(text, MAX_BATCH))
        except MessageNotFound:
            raise StaleReceipt(index, missing=True) from None
    check_receipts(parsed)
    each = [(one, index) for index, receipt in enumerate(parsed) for one in receipt.each()]
    return [one for one, _ in each], [index for _, index in each]


def columns(receipts: Sequence[Receipt]) -> tuple[list[str], list[int], list[int]]:
    return [one.queue for one in receipts], [one.id for one in receipts], [one.token for one in receipts]


def unsettled(known: Mapping[Receipt, str], statuses: Sequence[str], missing: list[str]) -> tuple[list[str], list[str]]:
    """Those that are stale, and those that are missing."""
    by_status: dict[str, list[str]] = {"held": [], "stale": [], "missing": missing}
    for text, status in zip(known.values(), statuses, strict=True):
        by_status[status].append(text)
    return by_status["stale"], by_status["missing"]


def messages_of(rows: Sequence[Any], clock: Clock) -> list[Message]:
    """Return the messages that a function has leased or taken."""
    ahead = clock.wall(0)  # asked once for all: how far the wall clock is ahead of the service's time
    return [
        Message(
            number, queue, text.decode(), with_dead_letter_history(fields, deaths), sent_at + ahead, count,
            None if token is None else str(Receipt(queue, number, token)),
            None if until is None else until + ahead,
        )
        for _, _, _, queue, number, text, fields, deaths, sent_at, count, token, until in rows
    ]  # fmt: skip


def is_late(rows: Sequence[Any]) -> bool:
    """Return whether these rows say that a queue has yet to be caught up with."""
    return bool(rows) and rows[0][0] is not None


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
