"""The operations on a receipt: ack, extend, release, reject."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from storage.errors import MessageNotFound, StaleReceipt
from storage.model import ExtendResult, Receipt, check_receipts
from storage.sqlite import column_batches
from storage.sqlite.transaction import BLOCKED, LEASED, QueueRow, WriteTransaction, by_state, int_array
from storage.steps import Progress
from storage.validation import MAX_BATCH

ACKED_AT_ONCE = 1_000  # receipts in one transaction of an ack
UNPACKED = 100  # batches that one transaction unpacks at most, to settle single messages


class Held(NamedTuple):
    """The message of a valid receipt."""

    id: int
    queue: QueueRow
    state: int
    key: str | None
    token: int  # negative after a release
    receive_count: int
    due_at: int

    def is_leased(self, now: int) -> bool:
        """Return whether the lease has neither ended nor been released."""
        return self.state == LEASED and self.token > 0 and self.due_at > now


Found = Held | MessageNotFound | StaleReceipt
Whole = list[tuple[QueueRow, column_batches.BatchRow]]


def find_held(work: WriteTransaction, receipt: str, queue: str | None = None) -> Held:
    """Return the message of a receipt (of this queue). Raises MessageNotFound, StaleReceipt, InvalidInput."""
    parsed = Receipt.parse_one(receipt)
    if queue is not None and parsed.queue != queue:
        raise MessageNotFound
    _, found = _find(work, [parsed], may_stay=lambda _: False) or ([], {})
    if isinstance(held := found[parsed], Exception):
        raise held
    work.note_use(held.queue)
    return held


def parse_all(receipts: Sequence[str]) -> dict[Receipt, int]:
    """Return receipts with places. Raises StaleReceipt, with its index, for other texts; InvalidInput for too many."""
    places: dict[Receipt, int] = {}
    for index, text in enumerate(receipts):
        try:
            places.setdefault(Receipt.parse(text, MAX_BATCH), index)
        except MessageNotFound:
            raise StaleReceipt(index, missing=True) from None
    check_receipts(places)
    return places


def ack_all(work: WriteTransaction, places: dict[Receipt, int]) -> bool:
    """Settle all receipts. Raises StaleReceipt, with its index, if one is invalid.

    Return False, with nothing settled, if more batches must first be unpacked in further transactions.
    """
    whole, rest = column_batches.match_receipts(work, places)
    found = _find(work, rest)
    if found is None:
        return False
    valid: list[Held] = []
    for receipt, match in found[1].items():
        if not isinstance(match, Held):
            index = next(place for covering, place in places.items() if covering.covers(receipt))
            raise StaleReceipt(index, missing=isinstance(match, MessageNotFound))
        valid.append(match)
    _remove(work, valid, whole + found[0])
    return True


def settle(work: WriteTransaction, receipt: str, queue: str | None, held_only: bool) -> None:
    """Settle the message of this receipt. Raises as `find_held` does; `held_only`: StaleReceipt without a lease."""
    parsed = Receipt.parse_one(receipt)
    row = work.find_queue(parsed.queue) if queue in (None, parsed.queue) and not held_only else None
    values = (parsed.id, row.id if row else None, parsed.token)
    if row and work.remove_where(row, "id = ? AND queue_id = ? AND abs(token) = ?", values, acked=1):
        work.note_use(row)
    else:  # it is packed, or not to be had
        held = find_held(work, receipt, queue)
        if held_only and not held.is_leased(work.now):
            raise StaleReceipt
        work.remove(held.queue, [held.id], acked=1)


def parse(receipts: Sequence[str], queue: str | None) -> tuple[dict[Receipt, str], list[str]]:
    """Return the receipts (of this queue) with their texts, and the other texts. Raises InvalidInput for too many."""
    parsed: list[Receipt] = []
    known: dict[Receipt, str] = {}
    missing: dict[str, None] = {}
    for text in receipts:
        try:
            parsed.append(receipt := Receipt.parse(text, MAX_BATCH))
        except MessageNotFound:
            missing[text] = None
            continue
        if queue in (None, receipt.queue):
            known[receipt] = text
        else:
            missing[text] = None
    check_receipts(parsed)
    return known, list(missing)


def ack(
    work: WriteTransaction, at: Progress, wanted: Sequence[tuple[Receipt, str]], held_only: bool
) -> tuple[Progress, bool]:
    """Do a step of Store.ack: settle the messages of valid receipts, and report the others."""
    end = at["next"] + ACKED_AT_ONCE
    result = _sort_receipts(work, dict(wanted[at["next"] : end]), held_only)
    if result is None:
        return at, True
    valid, whole, stale, missing = result
    at = {
        "next": end,
        "acked": at["acked"] + _remove(work, valid, whole),
        "stale": at["stale"] + stale,
        "missing": at["missing"] + missing,
    }
    return at, end < len(wanted)


def extend_many(work: WriteTransaction, receipts: Mapping[Receipt, str], lease: int) -> ExtendResult | None:
    """Extend the leases of valid receipts by `lease` ms, report the others. Return None as ack_all returns False."""
    result = _sort_receipts(work, receipts)
    if result is None:
        return None
    valid, whole, stale, missing = result
    until = work.now + lease
    for row, batch in whole:
        column_batches.extend(work, row, batch, until)
    extended = _extend(work, valid, until)
    stale += [str(Receipt(held.queue.name, held.id, abs(held.token))) for held in valid if held.id not in extended]
    count = sum(batch.length for _, batch in whole) + len(extended)
    return ExtendResult(count, work.wall(until), stale, missing)


def extend(work: WriteTransaction, held: Held, until: int) -> None:
    """Set the lease to end at `until`, also one that has expired. Raises StaleReceipt for one that was released."""
    if not _extend(work, [held], until):
        raise StaleReceipt


def _extend(work: WriteTransaction, valid: Sequence[Held], until: int) -> set[int]:
    """Extend the leases unless they were released or another lease has their key; return the ids of their messages.

    With key_lock "head" several leases may have a key.
    """
    extended = {held.id for held in valid if held.state == LEASED and held.token > 0}
    ended: dict[str, list[Held]] = {}
    for held in sorted(valid, key=lambda held: held.id):
        if held.state != LEASED and held.token > 0:
            ended.setdefault(held.queue.name, []).append(held)
    for group in ended.values():
        queue = group[0].queue
        keys = json.dumps(list({held.key for held in group if held.key is not None}), ensure_ascii=False)
        leased = "queue_id = ? AND state = 1 AND key IN (SELECT value FROM json_each(?))"
        tokens = dict(work.all(f"SELECT key, token FROM messages WHERE {leased}", (queue.id, keys)))
        # The key's first message wins, together with all of the same read.
        locks = queue.settings.key_lock == "run"
        renewed = [
            held
            for held in group
            if held.key is None or not locks or tokens.setdefault(held.key, held.token) == held.token
        ]
        extended.update(held.id for held in renewed)
        work.count(queue, leased=len(renewed), **by_state([held.state for held in renewed], each=-1))
    if extended:
        work.execute("UPDATE messages SET state = 1, due_at = ? WHERE id IN carray(?)", (until, int_array([*extended])))
    for group in ended.values():
        behind = {held.key for held in group if held.state == BLOCKED and held.id in extended and held.key is not None}
        work.block(group[0].queue, behind)
    return extended


def release(work: WriteTransaction, held: Held, delay: int, counted: bool) -> None:
    """Return the message to the queue for delivery after `delay` ms, or dead-letter it at max_receives."""
    most = held.queue.settings.max_receives
    if counted and most and held.receive_count >= most:
        work.dead_letter(held.queue, [held.id], "max_receives")
        return
    keys = [] if held.key is None else [held.key]
    work.give_back(held.queue, [held.id], keys, work.now + delay, uncounted=0 if counted else 1)


def _sort_receipts(
    work: WriteTransaction, receipts: Mapping[Receipt, str], held_only: bool = False
) -> tuple[list[Held], Whole, list[str], list[str]] | None:
    """Sort receipts into valid ones, by message and by batch, stale and missing ones. Return None as _find does.

    `held_only`: receipts without a lease are stale too.
    """
    whole, rest = column_batches.match_receipts(work, () if held_only else receipts)
    rest += [single for receipt in receipts for single in receipt.each()] if held_only else []
    found = _find(work, rest, lambda batch: batch.is_leased(work.now) or not held_only)
    if found is None:
        return None
    whole += found[0]
    valid: list[Held] = []
    stale: list[str] = []
    missing: list[str] = []
    for receipt, match in found[1].items():
        if isinstance(match, Held) and (not held_only or match.is_leased(work.now)):
            valid.append(match)
        else:
            (missing if isinstance(match, MessageNotFound) else stale).append(receipts.get(receipt, str(receipt)))
    return valid, whole, stale, missing


def _remove(work: WriteTransaction, valid: Sequence[Held], whole: Whole) -> int:
    """Settle these messages and batches, of any queues; return the number of messages."""
    packed: dict[str, tuple[QueueRow, list[column_batches.BatchRow]]] = {}
    for row, batch in whole:
        packed.setdefault(row.name, (row, []))[1].append(batch)
    for row, group in packed.values():
        column_batches.remove(work, row, group, acked=column_batches.count_messages(group))
        work.note_use(row)
    single: dict[str, tuple[QueueRow, list[int]]] = {}
    for held in valid:
        single.setdefault(held.queue.name, (held.queue, []))[1].append(held.id)
    for row, ids in single.values():
        work.remove(row, ids, acked=len(ids))
        work.note_use(row)
    return len(valid) + column_batches.count_messages(batch for _, batch in whole)


def _find(
    work: WriteTransaction,
    receipts: Sequence[Receipt],
    may_stay: Callable[[column_batches.BatchRow], bool] = lambda _: True,
) -> tuple[Whole, dict[Receipt, Found]] | None:
    """Return the batches of which these receipts of one message cover all, and the result for each other receipt.

    Return None after unpacking some of too many batches. Unpack also a covered one that may not stay packed.
    """
    if not receipts:
        return [], {}
    queues = {name: work.find_queue(name) for name in {receipt.queue for receipt in receipts}}
    rows = _rows(work, receipts)
    unknown = [receipt for receipt in receipts if receipt.id not in rows]
    packed = column_batches.containing(work, [receipt.id for receipt in unknown])
    whole, parts = _sort_batches(unknown, queues, packed.values())
    parts += [match for match in whole if not may_stay(match[1])]
    whole = [match for match in whole if may_stay(match[1])]
    if column_batches.count_messages(batch for _, batch in whole) == len(receipts):
        return whole, {}
    for queue, batch in parts[:UNPACKED]:
        column_batches.unpack(work, queue, [batch])
    if len(parts) > UNPACKED:
        return None
    if parts:
        rows |= _rows(work, unknown)

    def find(receipt: Receipt) -> Found:
        queue, row = queues[receipt.queue], rows.get(receipt.id)
        if row is None and queue and (batch := packed.get(receipt.id)) and batch.queue_id == queue.id:
            return StaleReceipt()
        if queue is None or row is None or row[1] != queue.id:
            return MessageNotFound()
        if row[2] is None or abs(row[2]) != receipt.token:
            return StaleReceipt()
        return Held(row[0], queue, row[3], row[4], row[2], *row[5:])

    settled = {receipt for queue, batch in whole for receipt in batch.receipts(queue)}
    return whole, {receipt: find(receipt) for receipt in receipts if receipt not in settled}


def _sort_batches(
    receipts: Sequence[Receipt], queues: Mapping[str, QueueRow | None], batches: Iterable[column_batches.BatchRow]
) -> tuple[Whole, Whole]:
    """Return those of the batches of which these receipts cover all messages, and those of which they cover some."""
    ids: dict[tuple[int, int | None], set[int]] = {}  # by queue and token
    for receipt in receipts:
        if queue := queues[receipt.queue]:
            ids.setdefault((queue.id, receipt.token), set()).add(receipt.id)
    queues_by_id = {queue.id: queue for queue in queues.values() if queue}
    whole: Whole = []
    parts: Whole = []
    for batch in dict.fromkeys(batches):
        covered = ids.get((batch.queue_id, batch.token), set())
        if not covered.isdisjoint(batch.ids):
            (whole if covered.issuperset(batch.ids) else parts).append((queues_by_id[batch.queue_id], batch))
    return whole, parts


def _rows(work: WriteTransaction, receipts: Sequence[Receipt]) -> dict[int, Any]:
    """Return the id, queue_id, token, state, key, receive_count and due_at of these messages, by id."""
    if not receipts:
        return {}
    return {
        row[0]: row
        for row in work.all(
            "SELECT id, queue_id, token, state, key, receive_count, due_at FROM messages WHERE id IN carray(?)",
            (int_array([receipt.id for receipt in receipts]),),
        )
    }
