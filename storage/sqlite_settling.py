"""What the holder of a receipt may do with its message: ack, extend, release, reject."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from storage import sqlite_runs as runs
from storage.errors import MessageNotFound, StaleReceipt
from storage.model import MAX_BATCH, AckResult, Receipt, check_receipts
from storage.sqlite_work import BLOCKED, LEASED, STATES, QueueRow, Work, int_array


class Held(NamedTuple):
    """A message found by a receipt that holds."""

    id: int
    queue: QueueRow
    state: int
    key: str | None
    token: int
    receive_count: int


def hold(work: Work, receipt: str, queue: str | None = None) -> Held:
    """The message of a receipt (of this queue). Raises MessageNotFound, StaleReceipt, InvalidInput."""
    parsed = Receipt.parse_one(receipt)
    if queue is not None and parsed.queue != queue:
        raise MessageNotFound
    found = _find(work, [parsed])[0]
    if isinstance(found, Exception):
        raise found
    return found


def ack_all(work: Work, receipts: Sequence[str]) -> None:
    """The messages of all these receipts are settled. Raises StaleReceipt, with its index, if one does not hold."""
    places: dict[Receipt, int] = {}
    for index, text in enumerate(receipts):
        try:
            places.setdefault(Receipt.parse(text, MAX_BATCH), index)
        except MessageNotFound:
            raise StaleReceipt(index) from None
    check_receipts(places)
    whole, rest = runs.whole(work, places)
    helds: list[Held] = []
    for receipt, found in zip(rest, _find(work, rest), strict=True):
        if not isinstance(found, Held):
            raise StaleReceipt(next(place for given, place in places.items() if given.covers(receipt)))
        helds.append(found)
    remove(work, helds, whole)


def remove(work: Work, helds: Sequence[Held], whole: Sequence[tuple[QueueRow, list[runs.RunRow]]] = ()) -> int:
    """The messages are settled, whichever queues they are in, those of whole runs too; how many there were."""
    count = len(helds)
    for row, some in whole:
        count += runs.settle(work, row, some)
    by_queue: dict[str, tuple[QueueRow, list[int]]] = {}
    for held in helds:
        by_queue.setdefault(held.queue.name, (held.queue, []))[1].append(held.id)
    for row, ids in by_queue.values():
        work.remove(row, ids, acked=len(ids))
    return count


def check(receipts: Sequence[str]) -> None:
    """Raises InvalidInput for too many."""
    parsed = []
    for text in receipts:
        with suppress(MessageNotFound):
            parsed.append(Receipt.parse(text, MAX_BATCH))
    check_receipts(parsed)


def ack(work: Work, receipts: Sequence[str], queue: str | None) -> AckResult:
    """Settles the messages of those receipts that hold, and tells the others."""
    parsed: dict[Receipt, str] = {}
    missing: list[str] = []
    stale: list[str] = []
    for text in receipts:
        try:
            receipt = Receipt.parse(text, MAX_BATCH)
        except MessageNotFound:
            missing.append(text)
            continue
        if queue is None or receipt.queue == queue:
            parsed[receipt] = text
        else:
            missing.append(text)
    check_receipts(parsed)
    whole, rest = runs.whole(work, parsed)
    helds = []
    for receipt, found in zip(rest, _find(work, rest), strict=True):
        if isinstance(found, Held):
            helds.append(found)
        else:
            (stale if isinstance(found, StaleReceipt) else missing).append(parsed.get(receipt, str(receipt)))
    return AckResult(remove(work, helds, whole), stale, missing)


def extend(work: Work, held: Held, until: int) -> None:
    """The lease ends at `until`; one that had ended holds again."""
    if held.state == BLOCKED and _locked_by_another(work, held):
        raise StaleReceipt
    work.execute("UPDATE messages SET state = 1, due_at = ? WHERE id = ?", (until, held.id))
    if held.state != LEASED:
        work.count(held.queue, **{STATES[held.state]: -1, "leased": 1})
        if held.key is not None:
            work.block(held.queue, held.key)


def release(work: Work, held: Held, delay: int) -> None:
    """The message is given back for delivery after `delay` ms, or buried when it has been received too often."""
    most = held.queue.settings.max_receives
    if most and held.receive_count >= most:
        work.bury(held.queue, [held.id], "max_receives")
        return
    keys = [] if held.key is None else [held.key]
    work.give_back(held.queue, [held.id], keys, work.now + delay if delay else 0)


def _locked_by_another(work: Work, held: Held) -> bool:
    return bool(
        work.execute(
            "SELECT 1 FROM messages WHERE queue_id = ? AND key = ? AND state = 1 AND token <> ?",
            (held.queue.id, held.key, held.token),
        ).get
    )


def _find(work: Work, receipts: Sequence[Receipt]) -> list[Held | MessageNotFound | StaleReceipt]:
    if not receipts:
        return []
    queues = {name: work.find_queue(name) for name in {receipt.queue for receipt in receipts}}
    rows = _rows(work, receipts)
    unknown = [receipt for receipt in receipts if receipt.id not in rows]
    packed = runs.unpack_held(
        work, {(queue.id, one.id, one.token) for one in unknown if (queue := queues[one.queue]) is not None}
    )
    rows |= _rows(work, unknown)

    def find(receipt: Receipt) -> Held | MessageNotFound | StaleReceipt:
        queue, row = queues[receipt.queue], rows.get(receipt.id)
        if row is None and queue is not None and packed.get(receipt.id) == queue.id:
            return StaleReceipt()
        if queue is None or row is None or row[1] != queue.id:
            return MessageNotFound()
        if row[2] != receipt.token:
            return StaleReceipt()
        return Held(row[0], queue, row[3], row[4], row[2], row[5])

    return [find(receipt) for receipt in receipts]


def _rows(work: Work, receipts: Sequence[Receipt]) -> dict[int, Any]:
    """By id: id, queue_id, token, state, key and receive_count of these messages."""
    if not receipts:
        return {}
    return {
        row[0]: row
        for row in work.all(
            "SELECT id, queue_id, token, state, key, receive_count FROM messages WHERE id IN carray(?)",
            (int_array([receipt.id for receipt in receipts]),),
        )
    }
