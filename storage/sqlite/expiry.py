"""Changes that become due: leases and delays end, messages expire or reach max_receives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from storage.model import CHUNK_BYTES
from storage.sqlite import column_batches
from storage.sqlite.transaction import ARRIVED, LEASED, LETTER, SIZE, QueueRow, WriteTransaction

SHARE = 1_000  # deferrable removals that one read does at most


class Cutoff(NamedTuple):
    """The limit of retention: messages up to `id`, and those that arrived by `moment`, are past it."""

    id: int
    moment: int


def bring_up_to_date(work: WriteTransaction, queue: QueueRow) -> bool:
    """Apply what must precede the choice of messages: ended leases and delays, messages past their ttl.

    Return whether more is due than one transaction processes; then call this again in another.
    """
    if queue.id in work.up_to_date:
        return False
    if not work.budget:
        return True
    due, expires = next_due(work, queue.id)
    more = False
    if due is not None and due <= work.now:
        more = _return_due(work, queue)
        expires = 0  # a message whose lease ended may have expired meanwhile
    if expires is not None and expires <= work.now:
        more = _drop_expired(work, queue) or more
    if not more:
        work.up_to_date.add(queue.id)
    return more


def remove_undeliverable(work: WriteTransaction, queue: QueueRow, most: int = SHARE) -> bool:
    """Remove some of the messages that reads skip: past retention, or spent because max_receives was lowered.

    Return whether more are left.
    """
    if queue.id in work.swept:  # all reads of one transaction share the limit
        return True
    more = False
    if queue.retention is not None:
        more = _sweep_batches(work, queue, most) or _sweep(work, queue, most)
    if queue.settings.max_receives:
        more = _dead_letter_spent(work, queue, most) or more
    work.swept.add(queue.id)
    return more


def catch_up(work: WriteTransaction, name: str, most: int) -> bool:
    """Call both for a queue that may not exist; return whether more is left."""
    queue = work.find_queue(name)
    if queue is None:
        return False
    more = bring_up_to_date(work, queue)
    return remove_undeliverable(work, queue, most) or more


def is_late(work: WriteTransaction, queue: QueueRow) -> bool:
    """Return whether catch_up would change anything."""
    if any(at is not None and at <= work.now for at in next_due(work, queue.id)):
        return True
    most = queue.settings.max_receives
    if (
        most
        and work.execute(
            "SELECT EXISTS (SELECT 1 FROM messages WHERE queue_id = ?1 AND state = 0 AND receive_count > 0 "
            "                                        AND receive_count >= ?2) "
            f"OR EXISTS (SELECT 1 FROM runs {column_batches.READY_BATCHES} AND receive_count >= ?2)",
            (queue.id, most),
        ).get
    ):
        return True
    if queue.retention is None:
        return False
    cutoff = work.now - queue.retention
    first = _first(work, queue.id, queue.swept)
    packed = work.execute(
        f"SELECT sent_at FROM runs {column_batches.READY_BATCHES} ORDER BY id LIMIT 1", (queue.id,)
    ).get
    return (first is not None and first[1] <= cutoff) or (packed is not None and packed <= cutoff)


def late_queues(work: WriteTransaction, names: Sequence[str]) -> list[str]:
    """Return those of these queues for which something is due; one statement skips most of a page of 1,000."""
    rows = work.all(
        """
        SELECT name FROM queues
         WHERE name IN (SELECT value FROM json_each(?1))
           AND (settings <> '{}'
                OR EXISTS (SELECT 1 FROM messages WHERE queue_id = queues.id AND state IN (1, 2) AND due_at <= ?2)
                OR EXISTS (SELECT 1 FROM runs WHERE queue_id = queues.id AND state = 1 AND due_at <= ?2)
                OR EXISTS (SELECT 1 FROM messages WHERE queue_id = queues.id AND state <> 1
                                                    AND expires_at IS NOT NULL AND expires_at <= ?2))
        """,
        (json.dumps(names), work.now),
    )
    found = [work.find_queue(name) for (name,) in rows]  # one may have been deleted meanwhile
    return [queue.name for queue in found if queue is not None and is_late(work, queue)]


def next_due(work: WriteTransaction, queue_id: int) -> tuple[int | None, int | None]:
    """Return when the next lease or delay ends, and when the next message passes its ttl."""
    row: tuple[int | None, int | None] = work.execute(
        """
        SELECT (SELECT min(due_at)
                  FROM (SELECT min(due_at) AS due_at FROM messages WHERE queue_id = ?1 AND state IN (1, 2)
                         UNION ALL
                        SELECT min(due_at) FROM runs WHERE queue_id = ?1 AND state = 1)),
               (SELECT min(expires_at) FROM messages
                 WHERE queue_id = ?1 AND expires_at IS NOT NULL AND state <> 1)
        """,
        (queue_id,),
    ).get
    return row


def find_cutoff(work: WriteTransaction, queue: QueueRow) -> Cutoff:
    """Find the limit of retention by binary search, so that many expired messages cost little."""
    if queue.retention is None:
        return Cutoff(0, -1)
    cutoff = work.now - queue.retention
    low = work.queue(queue.name).swept
    first = _first(work, queue.id, low)
    if first is None or first[1] > cutoff:
        return Cutoff(0, cutoff)
    low, high = first[0], work.execute("SELECT max(id) FROM messages WHERE queue_id = ?", (queue.id,)).get
    while low < high:  # arrival increases with id: low has expired, and ids above high have not
        middle = (low + high) // 2
        found = _first(work, queue.id, middle)
        if found is not None and found[1] <= cutoff:
            low = found[0]
        else:
            high = middle
    return Cutoff(low, cutoff)


def _first(work: WriteTransaction, queue_id: int, after: int) -> tuple[int, int] | None:
    """Return the id and arrival of the first single message with an id above `after`."""
    found: tuple[int, int] | None = work.execute(
        f"SELECT id, {ARRIVED} FROM messages WHERE queue_id = ? AND id > ? ORDER BY id LIMIT 1", (queue_id, after)
    ).get
    return found


def _return_due(work: WriteTransaction, queue: QueueRow) -> bool:
    more = column_batches.return_due(work, queue)
    limit = _limit(work, queue.settings.max_receives > 0)
    most = queue.settings.max_receives or column_batches.UNLIMITED
    rows = work.all(
        f"SELECT id, iif(state = 1 AND receive_count >= ?3, {SIZE}, 0), key, state = 1 AND receive_count >= ?3 "
        "FROM messages WHERE queue_id = ?1 AND state IN (1, 2) AND due_at <= ?2 ORDER BY due_at, id LIMIT ?4",
        (queue.id, work.now, most, limit),
    )
    chosen = _within_budget(work, rows)
    work.dead_letter(queue, sorted(row[0] for row in chosen if row[3]), "max_receives")
    back = [row for row in chosen if not row[3]]
    work.give_back(queue, [row[0] for row in back], {row[2] for row in back if row[2] is not None})
    return more or not work.budget or len(chosen) == limit


def _drop_expired(work: WriteTransaction, queue: QueueRow) -> bool:
    limit = _limit(work, queue.settings.dead_letter_expired)
    rows = work.all(
        f"SELECT id, {SIZE} FROM messages WHERE queue_id = ? AND expires_at IS NOT NULL AND state <> 1 "
        "AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        (queue.id, work.now, limit),
    )
    chosen = _within_budget(work, rows)
    work.expire(queue, [row[0] for row in chosen])
    return len(chosen) == limit or len(chosen) < len(rows)


def _limit(work: WriteTransaction, dead_letters: bool, most: int = column_batches.UNLIMITED) -> int:
    """Return how many messages, at most `most`, this transaction may still move; fewer if they become dead letters."""
    return min(most, max(1, work.budget // LETTER) if dead_letters and work.budget else work.budget)


def _within_budget(work: WriteTransaction, rows: list[Any]) -> list[Any]:
    """Return as many of these rows as this transaction may still move; the second column is a size."""
    size = 0
    for count, row in enumerate(rows, 1):
        size += row[1]
        if size > CHUNK_BYTES:
            work.budget = 0
            return rows[:count]
    work.budget = max(0, work.budget - len(rows))
    return rows


def _sweep(work: WriteTransaction, queue: QueueRow, most: int) -> bool:
    """Remove messages past retention, in order of id, and store how far it got."""
    cutoff = work.now - (queue.retention or 0)
    swept = work.queue(queue.name).swept
    first = _first(work, queue.id, swept)
    if first is None or first[1] > cutoff:
        return False
    limit = _limit(work, queue.settings.dead_letter_expired, most)
    rows = work.all(
        f"SELECT id, iif(state = 1, 0, {SIZE}), state, {ARRIVED} FROM messages "
        "WHERE queue_id = ? AND id > ? ORDER BY id LIMIT ?",
        (queue.id, swept, limit),
    )
    past = _within_budget(work, list(takewhile(lambda row: row[3] <= cutoff, rows)))
    if past:
        work.swept_to(queue, past[-1][0])
        work.expire(queue, [row[0] for row in past if row[2] != LEASED])
    return not past or not work.budget or len(past) == limit


def _sweep_batches(work: WriteTransaction, queue: QueueRow, most: int) -> bool:
    """Remove batches past retention, except leased ones."""
    cutoff = work.now - (queue.retention or 0)
    limit = _limit(work, queue.settings.dead_letter_expired, most)
    limit = max(1, limit // column_batches.LONGEST) if limit else 0
    past = list(takewhile(lambda batch: batch.sent_at <= cutoff, column_batches.select_ready(work, queue, limit)))
    work.budget = max(0, work.budget - column_batches.count_messages(past))
    if queue.settings.dead_letter_expired:
        column_batches.unpack(work, queue, past)
        work.expire(queue, [number for batch in past for number in batch.ids])
    else:
        column_batches.remove(work, queue, past, expired=column_batches.count_messages(past))
    return bool(past) and len(past) == limit


def _dead_letter_spent(work: WriteTransaction, queue: QueueRow, most: int) -> bool:
    """Dead-letter ready messages that reached max_receives because it was lowered."""
    limit = _limit(work, True, most)
    receives = queue.settings.max_receives
    packed = column_batches.select_ready(work, queue, max(1, limit // column_batches.LONGEST) if limit else 0, receives)
    column_batches.unpack(work, queue, packed)
    while limit:
        rows = work.all(
            f"SELECT id, {SIZE} FROM messages WHERE queue_id = ? AND state = 0 AND receive_count > 0 "
            "AND receive_count >= ? ORDER BY receive_count, id LIMIT ?",
            (queue.id, receives, limit),
        )
        if not rows:
            return bool(packed)
        chosen = _within_budget(work, rows)
        work.dead_letter(queue, sorted(row[0] for row in chosen), "max_receives")
        limit = min(limit - len(chosen), work.budget)  # the next message of a key may be spent too
    return True
