"""What time does to a queue: leases and delays end, messages expire."""

from __future__ import annotations

from storage import sqlite_runs as runs
from storage.sqlite_work import CHUNK, LEASED, QueueRow, Work


def bring_up_to_date(work: Work, queue: QueueRow) -> bool:
    """What time has done by now: leases and delays that ended, messages that expired; True when more is left.

    At most CHUNK of each, so that half a million leases that end at once do not stop everybody.
    """
    if queue.id in work.up_to_date:
        return False
    due, expires = next_due(work, queue.id)
    more = False
    if due is not None and due <= work.now:
        more = _return_due(work, queue)
        expires = 0  # one whose lease ended may have expired meanwhile
    if expires is not None and expires <= work.now:
        more = _drop_expired(work, queue) or more
    if not more:
        work.up_to_date.add(queue.id)
    return more


def catch_up(work: Work, name: str) -> bool:
    """As bring_up_to_date, of a queue that may be gone meanwhile."""
    queue = work.find_queue(name)
    return queue is not None and bring_up_to_date(work, queue)


def next_due(work: Work, queue_id: int) -> tuple[int | None, int | None]:
    """When the next lease or delay ends, and when the next message expires."""
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


def _return_due(work: Work, queue: QueueRow) -> bool:
    more = runs.return_due(work, queue)
    rows = work.all(
        "SELECT id, key, state, receive_count FROM messages "
        "WHERE queue_id = ? AND state IN (1, 2) AND due_at <= ? ORDER BY due_at, id LIMIT ?",
        (queue.id, work.now, CHUNK),
    )
    most = queue.settings.max_receives
    spent = {row[0] for row in rows if most and row[2] == LEASED and row[3] >= most}
    work.bury(queue, sorted(spent), "max_receives")
    back = [row for row in rows if row[0] not in spent]
    work.give_back(queue, [row[0] for row in back], {row[1] for row in back if row[1] is not None})
    return more or len(rows) == CHUNK


def _drop_expired(work: Work, queue: QueueRow) -> bool:
    ids = [
        row[0]
        for row in work.all(
            "SELECT id FROM messages WHERE queue_id = ? AND expires_at IS NOT NULL AND state <> 1 "
            "AND expires_at <= ? ORDER BY expires_at LIMIT ?",
            (queue.id, work.now, CHUNK),
        )
    ]
    if queue.settings.dead_letter_expired:
        work.bury(queue, ids, "expired", expired=len(ids))
    else:
        work.remove(queue, ids, expired=len(ids))
    return len(ids) == CHUNK
