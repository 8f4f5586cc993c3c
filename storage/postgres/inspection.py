"""Reading without changes: messages, queues and their counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from storage.clock import Clock
from storage.codec import read_settings, with_dead_letter_history
from storage.errors import MessageNotFound, QueueNotFound
from storage.model import STATES, Message, Queue, QueueSettings, QueueStats, State
from storage.postgres.parameters import storable
from storage.postgres.pool import Pool, scalar
from storage.size_budget import LargeRead
from storage.store import MAX_LOOKED, MAX_LOOKED_BYTES, Peek, Peeked, Reasons
from storage.validation import MAX_READ_BYTES


def peek(pool: Pool, clock: Clock, queue: str, ask: Peek, reserved: int) -> Peeked:
    """Implement Store.peek for a queue that is up to date. Raises LargeRead."""
    order = "ASC" if ask.before is None else "DESC"
    ids, next = _search(pool, clock, queue, ask, order) if ask.is_search else (None, None)
    rows = pool.read(
        f"""
        WITH found AS (
            SELECT m.*, place.name AS place, queue_service.read_size(m) AS size
              FROM queue_service.queues AS place JOIN queue_service.messages AS m ON m.queue_id = place.id
             WHERE {_places(ask)} AND m.id > $2::bigint AND ($3::bigint IS NULL OR m.id < $3::bigint)
               AND {_MATCHES} AND ($10::bigint[] IS NULL OR m.id = ANY ($10::bigint[]))
             ORDER BY m.id {order} LIMIT $7::int
        ), summed AS (
            SELECT *, sum(size) OVER way AS total, row_number() OVER way AS n, count(*) OVER () AS found
              FROM found WINDOW way AS (ORDER BY id {order})
        ), fitting AS (
            SELECT *, (max(total) OVER ())::bigint AS bytes FROM summed WHERE n = 1 OR total <= $8::bigint
        )
        SELECT id, CASE WHEN bytes <= $9::bigint THEN text END, CASE WHEN bytes <= $9::bigint THEN fields END,
               CASE WHEN bytes <= $9::bigint THEN deaths END, sent_at, receive_count, due_at, state, first_received_at,
               CASE WHEN state = 1 THEN holder END, place, found, bytes
          FROM fitting ORDER BY id {order}
        """,
        *_values(queue, ask, clock), ask.limit, MAX_READ_BYTES, reserved, ids,
    )  # fmt: skip
    if rows and rows[0][-1] > reserved:
        raise LargeRead(rows[0][-1])
    wall = clock.wall
    messages = [
        Message(
            number, place, text.decode(), with_dead_letter_history(fields, deaths), wall(sent_at), count,
            leased_until=wall(due_at) if STATES[state_number] == State.LEASED else None,
            state=State.DEAD if ask.state is State.DEAD else State(STATES[state_number]),
            first_received_at=None if first is None else wall(first), deaths=deaths, leased_by=holder,
        )
        for number, text, fields, deaths, sent_at, count, due_at, state_number, first, holder, place, _, _ in rows
    ]  # fmt: skip
    if rows and (len(rows) < rows[0][-2] or len(rows) == ask.limit):
        next = messages[-1].id
    return Peeked(messages, next)


def _search(pool: Pool, clock: Clock, queue: str, ask: Peek, order: str) -> tuple[list[int], int | None]:
    """Return the ids of messages that match, in order, and where the next search continues."""
    which = "m.queue_id = place.id AND m.id > $2::bigint AND ($3::bigint IS NULL OR m.id < $3::bigint)"
    nulls = "NULLS FIRST" if ask.before is None else "NULLS LAST"  # the order of the index for these messages alone
    if ask.state is State.DEAD:
        which += " AND m.origin = $1::text"
    elif ask.reason is not None:
        which += " AND m.origin IS NOT NULL"
    elif ask.key is not None:
        which += " AND m.key = $5::bytea"
    else:
        nulls = ""
    ((ids, last, all_fit, looked),) = pool.read(
        f"""
        WITH looked AS (
            SELECT m.* FROM queue_service.queues AS place CROSS JOIN LATERAL (
                   SELECT m.id, m.origin, m.text, m.deaths, queue_service.read_size(m) AS size, {_MATCHES} AS matches
                     FROM queue_service.messages AS m
                    WHERE {which} ORDER BY m.id {order} {nulls} LIMIT {MAX_LOOKED}) AS m
             WHERE {_places(ask)} ORDER BY m.id {order} LIMIT {MAX_LOOKED}
        ), summed AS (
            SELECT *, sum(size) OVER (ORDER BY id {order}) - size < {MAX_LOOKED_BYTES} AS fits FROM looked
        )
        SELECT array_agg(id ORDER BY id {order}) FILTER (WHERE CASE WHEN fits AND matches THEN
                   ($7::bytea IS NULL OR position($7::bytea IN text) > 0)
                   AND ($8::text IS NULL OR queue_service.last_death(deaths, 'dead_letter_reason') = $8::text) END),
               {"max" if ask.before is None else "min"}(id) FILTER (WHERE fits), bool_and(fits), count(*)
          FROM summed
        """,
        *_values(queue, ask, clock), None if ask.text is None else ask.text.encode(), storable(ask.reason),
        sorts=False,
    )  # fmt: skip
    found: list[int] = (ids or [])[: ask.limit]
    if len(found) == ask.limit:
        return found, found[-1]
    return found, None if not looked or (all_fit and looked < MAX_LOOKED) else last


_MATCHES = """
    ($4::int IS NULL OR m.state = $4::int) AND ($5::bytea IS NULL OR m.key = $5::bytea)
    AND NOT queue_service.has_expired($6::bigint, queue_service.cutoff($6::bigint, place), m)
"""


def _places(ask: Peek) -> str:
    """Return the SQL that selects the queues, as `place`, in which such messages lie."""
    if ask.state is not State.DEAD:
        return "place.name = $1::text"
    return """
        place.name IS NOT NULL AND m.origin = $1::text
        AND place.id IN (SELECT queue_id FROM queue_service.graves WHERE origin = $1::text)
        AND EXISTS (SELECT FROM queue_service.queues WHERE name = $1::text)
    """


def _values(queue: str, ask: Peek, clock: Clock) -> list[Any]:
    """Return the first six parameters."""
    state = None if ask.state in (None, State.DEAD) else STATES.index(ask.state)
    return [queue, ask.after, ask.before, state, None if ask.key is None else ask.key.encode(), clock.now()]


def reasons(pool: Pool, queue: str) -> Reasons:
    """Return the reasons of the newest dead letters in a queue, or from it. Raises QueueNotFound."""
    newest = f"ORDER BY id DESC NULLS LAST LIMIT {MAX_LOOKED + 1}"
    rows = pool.read(
        f"""
        WITH looked AS (
            SELECT m.* FROM queue_service.graves AS g CROSS JOIN LATERAL (
                   SELECT id, deaths FROM queue_service.messages
                    WHERE queue_id = g.queue_id AND origin = $1::text {newest}) AS m
             WHERE g.origin = $1::text
               AND EXISTS (SELECT FROM queue_service.queues WHERE name = $1::text)
               AND EXISTS (SELECT FROM queue_service.queues WHERE id = g.queue_id AND name IS NOT NULL)
             UNION ALL
            SELECT m.* FROM queue_service.queues AS place CROSS JOIN LATERAL (
                   SELECT id, deaths FROM queue_service.messages
                    WHERE queue_id = place.id AND origin IS NOT NULL {newest}) AS m
             WHERE place.name = $1::text
             ORDER BY id DESC LIMIT {MAX_LOOKED + 1}
        ), summed AS (
            SELECT *, sum(octet_length(deaths)) OVER (ORDER BY id DESC) - octet_length(deaths) AS before FROM looked
        )
        SELECT CASE WHEN before < {MAX_LOOKED_BYTES} THEN deaths END FROM summed ORDER BY id DESC
        """,
        queue,
        sorts=False,
    )
    if not rows:
        settings(pool, queue)  # raises QueueNotFound
    latest = [json.loads(deaths)[-1] for (deaths,) in rows[:MAX_LOOKED] if deaths is not None]
    deaths = [(death["dead_letter_reason"], death["dead_letter_at"]) for death in latest]
    return Reasons.of(deaths, complete=len(deaths) == len(rows))


def message(pool: Pool, clock: Clock, queue: str, id: int, reserved: int) -> Message:
    """Implement Store.message for a queue that is up to date. Raises LargeRead."""
    found = peek(pool, clock, queue, Peek(1, id - 1, id + 1), reserved)
    if found and found[0].id == id:
        return found[0]
    if not pool.read("SELECT 1 FROM queue_service.queues WHERE name = $1::text", queue):
        raise QueueNotFound(queue)
    raise MessageNotFound


def names(pool: Pool, prefix: str, after: str, limit: int) -> list[str]:
    """Return the queues' names, in order."""
    # No character of a name sorts after "z".
    statement = """
        SELECT name FROM queue_service.queues
         WHERE name > $1::text AND name >= $2::text AND name < $2::text || '~' ORDER BY name LIMIT $3::int
    """
    return [row[0] for row in pool.read(statement, after, prefix, limit)]


def settings(pool: Pool, name: str) -> QueueSettings:
    """Return a queue's settings. Raises QueueNotFound."""
    found = pool.read("SELECT settings::text FROM queue_service.queues WHERE name = $1::text", name)
    if not found:
        raise QueueNotFound(name)
    return read_settings(scalar(found))


def sources(pool: Pool, queue: str, after: str, limit: int) -> list[str]:
    """Return names of queues that have this dead-letter queue, in order."""
    statement = """
        SELECT name FROM queue_service.queues
         WHERE coalesce(settings ->> 'dead_letter_queue', left(name, 75) || '.dead') COLLATE "C" = $1::text
           AND name > $2::text ORDER BY name LIMIT $3::int
    """
    return [row[0] for row in pool.read(statement, queue, after, limit)]


def dead_letter_queues(pool: Pool, queue: str) -> list[str]:
    """Return the names of the queues that may have dead letters from this one."""
    statement = """
        SELECT q.name FROM queue_service.graves AS g JOIN queue_service.queues AS q ON q.id = g.queue_id
         WHERE g.origin = $1::text AND q.name IS NOT NULL
    """
    return [row[0] for row in pool.read(statement, queue)]


def describe(read: Callable[..., list[Any]], clock: Clock, names: list[str]) -> list[Queue]:
    """Return the existing ones of these queues, in order of name. `read` runs a statement."""
    rows = read(
        """
        SELECT name, version, settings::text, created_at, modified_at, counted.*,
               (SELECT count(*) FROM queue_service.graves AS g
                  JOIN queue_service.queues AS grave ON grave.id = g.queue_id AND grave.name IS NOT NULL
                  JOIN queue_service.messages AS m ON m.queue_id = g.queue_id AND m.origin = g.origin
                 WHERE g.origin = q.name),
               (SELECT greatest(due_at, arrived_at) FROM queue_service.messages
                 WHERE queue_id = q.id AND state = 0 ORDER BY greatest(due_at, arrived_at) LIMIT 1)
          FROM queue_service.queues AS q CROSS JOIN LATERAL (
               SELECT sum(ready)::bigint, sum(leased)::bigint, sum(delayed)::bigint, sum(blocked)::bigint,
                      sum(bytes)::bigint, sum(sent)::bigint, sum(received)::bigint, sum(acked)::bigint,
                      sum(expired)::bigint, sum(dead_lettered)::bigint
                 FROM queue_service.counts WHERE queue_id = q.id) AS counted
         WHERE name = ANY ($1::text[])
         ORDER BY name
        """,
        names,
    )

    now, wall = clock.now(), clock.wall

    def describe(name: str, version: int, stored: str, created_at: int, modified_at: int, *counts: int | None) -> Queue:
        settings = read_settings(stored)
        ready, leased, delayed, blocked, *totals = [count or 0 for count in counts[:10]]
        dead, since = counts[10:]
        age = 0.0 if since is None or settings.paused else max(0, now - since) / 1000
        stats = QueueStats._make((ready, leased, delayed, blocked, dead, age, *totals))
        return Queue(name, version, settings, stats, wall(created_at), wall(modified_at))

    return [describe(*row) for row in rows]
