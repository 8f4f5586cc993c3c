"""Delivering messages: which come next, and how they are leased or removed."""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, NamedTuple

from storage.codec import with_dead_letter_history
from storage.column_batches import ColumnBatch, Messages
from storage.model import Message, QueueSettings, Receipt, Receive
from storage.size_budget import LargeRead, SizeBudget
from storage.sqlite import column_batches
from storage.sqlite.column_batches import BatchRow, Lease
from storage.sqlite.expiry import SHARE, Cutoff, bring_up_to_date, find_cutoff, remove_undeliverable
from storage.sqlite.transaction import LEASED, QUICK_BYTES, SIZE_READ, QueueRow, WriteTransaction, int_array
from storage.validation import MAX_BATCH, MAX_RECIPIENTS

# SQL: the message that comes next, where it is small, and no batch comes before it. Batches have the lowest priority.
_FIRST = f"""
    id = (SELECT id FROM messages
           WHERE queue_id = ? AND state = 0 AND receive_count < ? AND recipient = ?
           ORDER BY priority DESC, id LIMIT 1)
    AND (priority > 0
         OR NOT EXISTS (SELECT 1 FROM runs WHERE queue_id = ? AND state = 0 AND runs.id < messages.id))
    AND {SIZE_READ} <= ?
"""


class Candidate(NamedTuple):
    """A message that could be taken now. `followed`: later messages of its key are blocked behind it."""

    id: int
    priority: int
    key: str | None
    read_size: int  # bytes of text and fields
    receive_count: int
    followed: bool

    @property
    def length(self) -> int:
        return 1


def take_from_queues(
    work: WriteTransaction, rows: Sequence[QueueRow], ask: Receive, budget: SizeBudget
) -> Messages | None:
    """Take the next messages of these queues, in order of preference; None if too many are due for one transaction."""
    taken: list[Message | ColumnBatch] = []
    left = ask.limit
    for row in rows:
        if not left or budget.full:
            break
        if bring_up_to_date(work, row):
            return Messages(taken) if taken else None
        remove_undeliverable(work, row, min(SHARE, work.budget))
        work.note_use(row)
        taken += (found := take(work, row, left, ask, budget))
        left -= len(Messages(found))
    return Messages(taken)


def take(
    work: WriteTransaction, queue: QueueRow, limit: int, ask: Receive, budget: SizeBudget
) -> list[Message | ColumnBatch]:
    """Take at most `limit` of the next messages of an up-to-date queue. Raises LargeRead."""
    if queue.settings.paused:
        return []
    recipient, lease = ask.recipient, _lease_of(ask, queue.settings)
    if limit == 1 and recipient is not None and queue.retention is None:
        receives = queue.settings.max_receives or column_batches.UNLIMITED
        values = (queue.id, receives, recipient, queue.id, QUICK_BYTES)
        first = _remove(work, queue, _FIRST, values, 1) if lease is None else _lease(work, queue, _FIRST, values, lease)
        if first:
            return list(first.values())
    chosen = _choose(work, queue, limit, recipient, budget)
    budget.check()
    work.take_time(budget.size)
    rows = [candidate for candidate in chosen if isinstance(candidate, Candidate)]
    packed = [candidate for candidate in chosen if isinstance(candidate, BatchRow)]
    taken: dict[int, Message | ColumnBatch] = {}
    if rows:
        which, ids = "id IN carray(?)", (int_array([one.id for one in rows]),)
        if lease is None:
            taken |= _remove(work, queue, which, ids, len(rows))
        else:
            keyed = [one.key for one in rows if one.key is not None]
            # A key's followers were blocked, all others ready.
            taken |= _lease(work, queue, which, ids, lease, blocked=len(keyed) - len(set(keyed)))
    if packed:
        taken |= (
            column_batches.take(work, queue, packed)
            if lease is None
            else column_batches.lease(work, queue, packed, lease)
        )
    return [taken[candidate.id] for candidate in chosen]


def available(work: WriteTransaction, queue: QueueRow, recipient: str | None, most: int) -> int:
    """Return how many messages `take` would return, at most `most`."""
    if queue.settings.paused:
        return 0
    cutoff = find_cutoff(work, queue)
    with (
        _candidates(work, queue, most, recipient, cutoff) as heads,
        closing(column_batches.ready(work, queue, recipient, cutoff.moment)) as packed,
    ):
        count = sum(1 for _ in islice(heads, most))
        while count < most and (batch := next(packed, None)) is not None:
            count += batch.length
    return min(count, most)


def leased_again(
    work: WriteTransaction, spans: Sequence[tuple[str, int, int, int]], reserved: int
) -> list[Message | ColumnBatch]:
    """Return the messages leased as (queue, first id, number, token), except those settled since, as first returned.

    Raises LargeRead for more bytes than are reserved.
    """
    found: list[Message | ColumnBatch] = []
    ahead, size = work.ahead, 0
    for name, start, length, token in spans:
        queue = work.find_queue(name)
        if queue is None:
            continue
        bounds = (queue.id, start, start + length - 1, token)
        which = "FROM messages WHERE queue_id = ? AND id BETWEEN ? AND ? AND abs(token) = ?"
        size += sum(row[0] for row in work.all(f"SELECT {SIZE_READ} {which}", bounds))
        size += column_batches.size_leased_again(work, bounds)
        if size > reserved:
            raise LargeRead(size)
        rows = work.all(
            f"SELECT id, text, fields, deaths, sent_at, receive_count, due_at, first_received_at {which} ORDER BY id",
            bounds,
        )
        messages = [
            Message(number, name, text, with_dead_letter_history(fields, deaths), sent_at + ahead, count,
                    str(Receipt(name, number, token)), due_at + ahead,
                    first_received_at=first and first + ahead, deaths=deaths)
            for number, text, fields, deaths, sent_at, count, due_at, first in rows
        ]  # fmt: skip
        packed = column_batches.leased_again(work, queue, bounds)
        found += sorted([*messages, *packed], key=lambda part: part.id)
    return found


def spans_of(found: Messages) -> list[tuple[str, int, int, int]]:
    """Return the spans of leased messages for `leased_again`."""
    spans: list[tuple[str, int, int, int]] = []
    for part in found.parts:
        receipt = Receipt.parse(part.receipt or "", MAX_BATCH)
        if spans:
            queue, first, length, token = spans[-1]
            if (queue, first + length, token) == (receipt.queue, receipt.id, receipt.token):
                spans[-1] = queue, first, length + receipt.length, token
                continue
        spans.append((receipt.queue, receipt.id, receipt.length, receipt.token))
    return spans


def _choose(
    work: WriteTransaction, queue: QueueRow, limit: int, recipient: str | None, budget: SizeBudget
) -> list[Candidate | BatchRow]:
    chosen: list[Candidate | BatchRow] = []
    left = limit
    cutoff = find_cutoff(work, queue)
    with (
        _candidates(work, queue, limit, recipient, cutoff) as heads,
        closing(column_batches.ready(work, queue, recipient, cutoff.moment)) as packed,
    ):
        for candidate in _in_delivery_order(work, queue, limit, recipient, heads, packed):
            if candidate.length > left:
                break
            if not budget.add(candidate.read_size):
                return chosen
            chosen.append(candidate)
            left -= candidate.length
            if not left:
                return chosen
        else:
            return chosen
    assert isinstance(candidate, BatchRow)
    column_batches.unpack(work, queue, [candidate])  # the next read will probably take a part too
    ids = int_array(candidate.ids[:left])
    for number, size in work.all(f"SELECT id, {SIZE_READ} FROM messages WHERE id IN carray(?) ORDER BY id", (ids,)):
        if not budget.add(size):
            break
        chosen.append(Candidate(number, 0, None, size, candidate.receive_count, False))
    return chosen


def _in_delivery_order(
    work: WriteTransaction, queue: QueueRow, limit: int, recipient: str | None, *sources: Iterator[Candidate | BatchRow]
) -> Iterator[Candidate | BatchRow]:
    """Yield the messages in order of delivery: after a key's message, the key's next one competes with the others.

    With key_lock "head" it comes next.
    """
    heap: list[tuple[int, int, Candidate | BatchRow, Iterator[Candidate | BatchRow]]] = []

    def compete(source: Iterator[Candidate | BatchRow]) -> None:
        for candidate in source:
            heapq.heappush(heap, (-candidate.priority, candidate.id, candidate, source))
            break

    for source in sources:
        compete(source)
    while heap:
        _, _, candidate, source = heapq.heappop(heap)
        yield candidate
        limit -= candidate.length
        compete(source)
        if isinstance(candidate, Candidate) and candidate.followed and limit:
            followers = _followers(work, queue, candidate, limit, recipient)
            if queue.settings.key_lock == "run":
                compete(followers)
                continue
            for follower in followers:
                yield follower
                limit -= 1


@contextmanager
def _candidates(
    work: WriteTransaction, queue: QueueRow, limit: int, recipient: str | None, cutoff: Cutoff
) -> Iterator[Iterator[Candidate]]:
    """Yield an iterator of ready single messages, in order, `limit` or more."""
    if recipient is not None:
        yield iter(_heads(work, queue, limit, recipient, cutoff))
        return
    names = [
        row[0]
        for row in work.all(
            """
            WITH RECURSIVE known(name) AS (
                SELECT min(recipient) FROM messages WHERE queue_id = ?1 AND state = 0
                 UNION ALL
                SELECT (SELECT min(recipient) FROM messages WHERE queue_id = ?1 AND state = 0 AND recipient > name)
                  FROM known WHERE name IS NOT NULL)
            SELECT name FROM known WHERE name IS NOT NULL LIMIT ?2
            """,
            (queue.id, MAX_RECIPIENTS),
        )
    ]
    if len(names) < 2:  # the usual case
        yield iter(_heads(work, queue, limit, names[0], cutoff) if names else [])
        return
    sources = [_paged_heads(work, queue, limit, name, cutoff) for name in names]
    yield heapq.merge(*sources, key=lambda candidate: (-candidate.priority, candidate.id))


def _paged_heads(
    work: WriteTransaction, queue: QueueRow, limit: int, recipient: str, cutoff: Cutoff
) -> Iterator[Candidate]:
    """Yield a recipient's messages, read in growing pages: with a thousand recipients most need only the first."""
    known, size = 0, 1
    while known < limit:
        heads = _heads(work, queue, min(size, limit), recipient, cutoff)
        yield from heads[known:]
        if len(heads) < size:
            return
        known, size = len(heads), size * 4


def _heads(work: WriteTransaction, queue: QueueRow, limit: int, recipient: str, cutoff: Cutoff) -> list[Candidate]:
    if not cutoff.id:
        return _select_heads(work, queue, "ORDER BY priority DESC, id LIMIT ?4", recipient, limit)
    heads: list[Candidate] = []
    for priority in range(9, -1, -1):  # one index lookup each, however many expired messages precede
        if len(heads) < limit:
            behind = "AND priority = ?5 AND id > ?6 ORDER BY id LIMIT ?4"
            heads += _select_heads(work, queue, behind, recipient, limit - len(heads), priority, cutoff.id)
    return heads


def _select_heads(work: WriteTransaction, queue: QueueRow, which: str, *values: str | int) -> list[Candidate]:
    rows = work.all(
        f"""
        SELECT id, priority, key, {SIZE_READ}, receive_count,
               key IS NOT NULL AND EXISTS (SELECT 1 FROM messages AS next
                                            WHERE next.queue_id = ?1 AND next.key = messages.key
                                              AND next.id > messages.id)
          FROM messages
         WHERE queue_id = ?1 AND state = 0 AND receive_count < ?2 AND recipient = ?3 {which}
        """,
        (queue.id, queue.settings.max_receives or column_batches.UNLIMITED, *values),
    )
    return list(map(Candidate._make, rows))


def _followers(
    work: WriteTransaction, queue: QueueRow, head: Candidate, limit: int, recipient: str | None
) -> Iterator[Candidate]:
    """Yield the messages after `head` in its key, up to the first that this reader cannot take."""
    most = queue.settings.max_receives
    for *row, addressee, due_at, state in work.all(
        f"SELECT id, priority, key, {SIZE_READ}, receive_count, 0, recipient, due_at, state FROM messages "
        "WHERE queue_id = ? AND key = ? AND id > ? ORDER BY id LIMIT ?",
        (queue.id, head.key, head.id, limit),
    ):
        follower = Candidate(*row)
        if recipient not in (None, addressee) or due_at > work.now or (most and follower.receive_count >= most):
            return
        if state == LEASED:  # with key_lock "head"
            return
        yield follower


def _remove(
    work: WriteTransaction, queue: QueueRow, which: str, values: tuple[Any, ...], received: int
) -> dict[int, Message]:
    """Remove the messages and return them, by id."""
    columns = "id, text, fields, deaths, sent_at, receive_count"
    rows = work.remove_where(queue, which, values, columns, received=received)
    ahead = work.ahead
    return {
        number: Message(
            number, queue.name, text, with_dead_letter_history(fields, deaths), sent_at + ahead, count + 1,
            deaths=deaths,
        )
        for *_, number, text, fields, deaths, sent_at, count in rows
    }  # fmt: skip


def _lease(
    work: WriteTransaction, queue: QueueRow, which: str, values: tuple[Any, ...], lease: Lease, blocked: int = 0
) -> dict[int, Message]:
    """Lease the messages and return them, by id."""
    token = secrets.randbits(63) | 1
    until = work.now + lease.length
    rows = work.all(
        "UPDATE messages SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1, "
        "first_received_at = coalesce(first_received_at, ?), holder = ? "
        f"WHERE {which} RETURNING id, text, fields, deaths, sent_at, receive_count, first_received_at",
        (token, until, work.now, lease.holder, *values),
    )
    work.note_lease(queue, until)
    if rows:
        work.count(queue, ready=blocked - len(rows), blocked=-blocked, leased=len(rows), received=len(rows))
    ahead = work.ahead
    return {
        number: Message(
            number, queue.name, text, with_dead_letter_history(fields, deaths), sent_at + ahead, count,
            str(Receipt(queue.name, number, token)), until + ahead, first_received_at=first + ahead, deaths=deaths,
        )
        for number, text, fields, deaths, sent_at, count, first in rows
    }  # fmt: skip


def _lease_of(ask: Receive, settings: QueueSettings) -> Lease | None:
    """Return the lease that a reader asks for, None for none."""
    if ask.lease is None:
        return None
    return Lease(round(1000 * (settings.lease if isinstance(ask.lease, str) else ask.lease)), ask.holder or None)
