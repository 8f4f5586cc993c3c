"""The verbs that only look: at messages, and at queues and their counts."""

from __future__ import annotations

from storage.clock import Clock
from storage.kept import read_settings, told
from storage.model import MAX_READ_BYTES, Message, Queue, QueueStats, State
from storage.postgres_pool import Pool

STATES = ("ready", "leased", "delayed", "blocked")


def peek(pool: Pool, clock: Clock, queue: str, limit: int, after: int, state: State | None) -> list[Message]:
    """As Store.peek, of a queue brought up to date."""
    rows = pool.read(
        """
        SELECT id, text, fields, death, sent_at, receive_count, due_at, state
          FROM (SELECT *, sum(octet_length(text)) OVER way AS total, row_number() OVER way AS n
                  FROM (SELECT * FROM queue_service.messages
                         WHERE id > $2::bigint AND CASE WHEN $4::int = -1
                               THEN origin = $1::text AND queue_id IN (
                                    SELECT g.queue_id FROM queue_service.graves AS g
                                      JOIN queue_service.queues AS q ON q.id = g.queue_id AND q.name IS NOT NULL
                                     WHERE g.origin = $1::text AND EXISTS (
                                           SELECT FROM queue_service.queues WHERE name = $1::text))
                               ELSE queue_id = (SELECT id FROM queue_service.queues WHERE name = $1::text)
                                    AND ($4::int IS NULL OR state = $4::int) END
                         ORDER BY id LIMIT $3::int) AS found
                WINDOW way AS (ORDER BY id)) AS summed
         WHERE n = 1 OR total <= $5::bigint
         ORDER BY id
        """,
        queue,
        after,
        limit,
        -1 if state is State.DEAD else None if state is None else STATES.index(state),
        MAX_READ_BYTES,
    )
    wall = clock.wall
    return [
        Message(
            number, queue, text.decode(), told(fields, death), wall(sent_at), count,
            leased_until=wall(due_at) if STATES[at] == State.LEASED else None,
            state=State.DEAD if state is State.DEAD else State(STATES[at]),
        )
        for number, text, fields, death, sent_at, count, due_at, at in rows
    ]  # fmt: skip


def describe(pool: Pool, clock: Clock, name: str | None) -> list[Queue]:
    """The queue of this name, or all, in order of name; brought up to date."""
    rows = pool.read(
        """
        SELECT name, version, settings::text, counted.*,
               (SELECT count(*) FROM queue_service.graves AS g
                  JOIN queue_service.queues AS grave ON grave.id = g.queue_id AND grave.name IS NOT NULL
                  JOIN queue_service.messages AS m ON m.queue_id = g.queue_id AND m.origin = g.origin
                 WHERE g.origin = q.name),
               (SELECT sent_at FROM queue_service.messages WHERE queue_id = q.id ORDER BY id LIMIT 1)
          FROM queue_service.queues AS q CROSS JOIN LATERAL (
               SELECT sum(ready)::bigint, sum(leased)::bigint, sum(delayed)::bigint, sum(blocked)::bigint,
                      sum(bytes)::bigint, sum(sent)::bigint, sum(received)::bigint, sum(acked)::bigint,
                      sum(expired)::bigint, sum(dead_lettered)::bigint
                 FROM queue_service.counts WHERE queue_id = q.id) AS counted
         WHERE name IS NOT NULL AND ($1::text IS NULL OR name = $1::text)
         ORDER BY name
        """,
        name,
    )
    now = clock.now()

    def describe(name: str, version: int, settings: str, *counts: int | None) -> Queue:
        ready, leased, delayed, blocked, *totals = [count or 0 for count in counts[:10]]
        dead, oldest = counts[10:]
        age = 0.0 if oldest is None else max(0, now - oldest) / 1000
        stats = QueueStats._make((ready, leased, delayed, blocked, dead, age, *totals))
        return Queue(name, version, read_settings(settings), stats)

    return [describe(*row) for row in rows]
