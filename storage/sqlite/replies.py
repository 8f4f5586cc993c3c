"""The stored replies to sends, receives and transactions with an Idempotency-Key: JSON objects.

`ids` is a list of [first, count] for spans of successive ids; `duplicates` is as in Sent. Leased messages stay in the
database, so the reply has only their spans, in `leased`. Others are in `messages`, as the fields of Message.
"""

from __future__ import annotations

import sys
from typing import Any

from storage.column_batches import Messages
from storage.model import Message, Sent
from storage.sqlite.receiving import leased_again, spans_of
from storage.sqlite.transaction import WriteTransaction

Reply = dict[str, Any]


def of_sent(sent: Sent) -> Reply:
    return {"ids": _spans(sent.ids), "duplicates": sent.duplicates}


def sent(reply: Reply) -> Sent:
    ids = [number for first, count in reply["ids"] for number in range(first, first + count)]
    return Sent(ids, reply["duplicates"])


def of_messages(found: Messages | None) -> Reply:
    """Return the reply for these messages; None means that too many messages were due for one transaction."""
    if found is None:
        return {"messages": None}
    if found.parts and found.parts[0].leased_until is not None:
        return {"leased": spans_of(found)}
    return {"messages": [message[:6] for message in found]}


def messages(work: WriteTransaction, reply: Reply, reserved: int = sys.maxsize) -> Messages | None:
    """Return the messages of a reply, except those settled since. Raises LargeRead."""
    if "leased" in reply:
        return Messages(leased_again(work, reply["leased"], reserved))
    if reply["messages"] is None:
        return None
    return Messages([Message(*message) for message in reply["messages"]])


def _spans(ids: list[int]) -> list[list[int]]:
    if ids and ids == list(range(ids[0], ids[0] + len(ids))):
        return [[ids[0], len(ids)]]
    spans: list[list[int]] = []
    for number in ids:
        if spans and number == sum(spans[-1]):
            spans[-1][1] += 1
        else:
            spans.append([number, 1])
    return spans
