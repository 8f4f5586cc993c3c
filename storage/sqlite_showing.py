"""What is shown of messages and queues, changing nothing."""

from __future__ import annotations

from typing import Any

import apsw

from storage import sqlite_runs as runs
from storage.clock import Clock
from storage.kept import read_settings, told
from storage.model import Message, Queue, QueueStats, State
from storage.sqlite_work import LIVING, STATES, Room


def peek(
    connection: apsw.Connection, clock: Clock, queue: str, limit: int, after: int, state: State | None
) -> list[Message]:
    """At most `limit` of the queue's messages with an id above `after`, in order of id."""
    if state is State.DEAD:
        which, number = f"origin = ?1 AND {LIVING}", None
    else:
        which = "queue_id = (SELECT id FROM queues WHERE name = ?1)"
        number = None if state is None else STATES.index(state)
        which += "" if number is None else f" AND state = {number}"
    with connection:  # one snapshot for all of it: meanwhile runs may be unpacked
        packed = {} if state is State.DEAD else runs.peek(connection, queue, limit, after, number)
        sizes: list[Any] = connection.execute(
            f"SELECT id, octet_length(text) FROM messages WHERE {which} AND id > ?2 ORDER BY id LIMIT ?3",
            (queue, after, limit),
        ).fetchall()
        sizes = sorted([*sizes, *((number, len(row[1].encode())) for number, row in packed.items())])
        room = Room()
        ids = [one for one, size in sizes[:limit] if room.holds(size)]
        rows: list[Any] = connection.execute(
            "SELECT id, text, fields, death, sent_at, receive_count, due_at, state FROM messages "
            f"WHERE id BETWEEN ?2 AND ?3 AND {which}",
            (queue, ids[0], ids[-1]) if ids else (queue, 0, 0),
        ).fetchall()
    return [
        Message(
            one, queue, text, told(fields, death), clock.wall(sent_at), count,
            leased_until=clock.wall(due_at) if STATES[at] == State.LEASED else None,
            state=State.DEAD if state is State.DEAD else State(STATES[at]),
        )
        for one, text, fields, death, sent_at, count, due_at, at in sorted(
            [*rows, *(packed[one] for one in ids if one in packed)]
        )
    ]  # fmt: skip


def describe(connection: apsw.Connection, clock: Clock, name: str | None = None) -> list[Queue]:
    """The queue of this name, if it is there; or (None) all, in order of name."""
    rows: list[Any] = connection.execute(
        f"""
        SELECT name, queues.version, settings, ready, leased, delayed, blocked,
               (SELECT count(*) FROM messages WHERE origin = queues.name AND {LIVING}),
               iif(run.id IS NULL OR message.id < run.id, message.sent_at, run.sent_at),
               queues.bytes, sent, received, acked, expired, dead_lettered
          FROM queues
          LEFT JOIN messages AS message ON message.id = (SELECT min(id) FROM messages WHERE queue_id = queues.id)
          LEFT JOIN runs AS run         ON run.id     = (SELECT min(id) FROM runs     WHERE queue_id = queues.id)
         WHERE name IS NOT NULL AND (?1 IS NULL OR name = ?1)
         ORDER BY name
        """,
        (name,),
    ).fetchall()
    now = clock.now()

    def told_of(name: str, version: int, settings: str, *counts: Any) -> Queue:
        oldest = counts[5]
        age = 0.0 if oldest is None else max(0, now - oldest) / 1000
        return Queue(name, version, read_settings(settings), QueueStats._make((*counts[:5], age, *counts[6:])))

    return [told_of(*row) for row in rows]
