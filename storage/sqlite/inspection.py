"""Reading without changes: messages, queues and their counts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from storage.clock import Clock
from storage.codec import read_settings, with_dead_letter_history
from storage.errors import QueueNotFound
from storage.model import STATES, Message, Queue, QueueSettings, QueueStats, State
from storage.size_budget import SizeBudget
from storage.sqlite import column_batches
from storage.sqlite.expiry import Cutoff, find_cutoff
from storage.sqlite.transaction import ARRIVED, SIZE_READ, WriteTransaction

MAX_DEAD_LETTER_QUEUES = 100  # dead-letter queues that are searched for one queue's dead letters
MAX_SCANNED = 100_000  # messages that one search for the oldest ready one reads at most
MAX_ID = (1 << 63) - 1

_MESSAGE = "id, text, fields, deaths, sent_at, receive_count, due_at, state, first_received_at"


class Peek(NamedTuple):
    limit: int = 100
    after: int = 0
    before: int | None = None
    state: State | None = None
    key: str | None = None
    reserved: int = sys.maxsize  # bytes, as in SizeBudget


def peek(connection: apsw.Connection, clock: Clock, name: str, ask: Peek) -> list[Message]:
    """Return messages of a queue. Raises LargeRead."""
    with connection:  # one snapshot, because batches may be unpacked meanwhile
        work = WriteTransaction(connection, clock)
        found = work.find_queue(name)
        if found is None:
            return []
        if ask.state is State.DEAD:
            rows = _peek_dead(connection, name, ask)
        else:
            rows = _peek(connection, found.id, ask, find_cutoff(work, found))
    return [_message(clock, name, row, dead=ask.state is State.DEAD) for row in rows]


def dead_letter_queues(connection: apsw.Connection, name: str) -> dict[int, str]:
    """Return the ids and names of the queues that have dead letters from this one."""
    rows: Any = connection.execute(
        """
        WITH RECURSIVE known(id) AS (
            SELECT min(queue_id) FROM messages WHERE origin = ?1
             UNION ALL
            SELECT (SELECT min(queue_id) FROM messages WHERE origin = ?1 AND queue_id > known.id)
              FROM known WHERE id IS NOT NULL)
        SELECT queues.id, queues.name
          FROM known JOIN queues ON queues.id = known.id WHERE queues.name IS NOT NULL LIMIT ?2
        """,
        (name, MAX_DEAD_LETTER_QUEUES),
    )
    return dict(rows)


def names(connection: apsw.Connection, prefix: str, after: str, limit: int) -> list[str]:
    """Return names of queues, in order. No name has a character above "z"."""
    rows: list[Any] = connection.execute(
        "SELECT name FROM queues WHERE name > ?1 AND name >= ?2 AND name < ?2 || '{' ORDER BY name LIMIT ?3",
        (after, prefix, limit),
    ).fetchall()
    return [row[0] for row in rows]


def identity(connection: apsw.Connection) -> bytes:
    found: bytes = connection.execute("SELECT bytes FROM identity").get
    return found


def settings(connection: apsw.Connection, name: str) -> QueueSettings:
    """Return a queue's settings. Raises QueueNotFound."""
    found: str | None = connection.execute("SELECT settings FROM queues WHERE name = ?", (name,)).get
    if found is None:
        raise QueueNotFound(name)
    return read_settings(found)


def sources(connection: apsw.Connection, queue: str, after: str, limit: int) -> list[str]:
    """Return names of queues that have this dead-letter queue, in order."""
    rows: list[Any] = connection.execute(
        "SELECT name FROM queues WHERE coalesce(settings ->> 'dead_letter_queue', substr(name, 1, 75) || '.dead') = ? "
        "AND name > ? ORDER BY name LIMIT ?",
        (queue, after, limit),
    ).fetchall()
    return [row[0] for row in rows]


def describe(connection: apsw.Connection, clock: Clock, names: Sequence[str], scanned: dict[int, int]) -> list[Queue]:
    """Return the existing ones of these queues.

    `scanned` caches for each queue an id: no message up to it is ready for the first time, now or later, so the search
    for the oldest ready message skips it.
    """
    connection.execute("BEGIN")  # one snapshot
    try:
        found = [_describe(connection, clock, name, scanned) for name in names]
    finally:
        connection.execute("COMMIT")
    return [queue for queue in found if queue is not None]


def _describe(connection: apsw.Connection, clock: Clock, name: str, scanned: dict[int, int]) -> Queue | None:
    row: Any = connection.execute(
        "SELECT id, version, settings, created_at, modified_at, ready, leased, delayed, blocked, "
        "bytes, sent, received, acked, expired, dead_lettered FROM queues WHERE name = ?",
        (name,),
    ).get
    if row is None:
        return None
    number, version, settings, created_at, modified_at, ready, leased, delayed, blocked, *totals = row
    dead = sum(
        connection.execute(
            "SELECT count(*) FROM messages WHERE origin = ? AND queue_id = ?", (name, dead_letter_queue)
        ).get
        for dead_letter_queue in dead_letter_queues(connection, name)
    )
    age = 0.0
    if ready and not read_settings(settings).paused:
        work = WriteTransaction(connection, clock)
        since = _ready_since(work, name, number, scanned)
        age = 0.0 if since is None else max(0, work.now - since) / 1000
    counts = QueueStats(ready, leased, delayed, blocked, dead, age, *totals)
    return Queue(name, version, read_settings(settings), counts, clock.wall(created_at), clock.wall(modified_at))


def _ready_since(work: WriteTransaction, name: str, number: int, scanned: dict[int, int]) -> int | None:
    """Return when the oldest ready message became ready, None if none is ready."""
    cutoff = find_cutoff(work, work.queue(name))
    moments = [
        work.execute("SELECT min(due_at) FROM messages WHERE queue_id = ? AND state = 0 AND due_at > 0", (number,)).get,
        work.execute(
            f"SELECT min(iif(due_at, due_at, sent_at)) FROM runs {column_batches.READY_BATCHES} AND sent_at > ?2",
            (number, cutoff.moment),
        ).get,
    ]
    rows = work.execute(
        f"SELECT id, state = 0 AND due_at = 0, {ARRIVED} FROM messages WHERE queue_id = ? AND id > ? "
        "ORDER BY id LIMIT ?",
        (number, max(cutoff.id, scanned.get(number, 0)), MAX_SCANNED),
    )
    for id, is_fresh, arrived in rows:
        if is_fresh:
            moments.append(arrived)
            break
        scanned[number] = id
    rows.close()
    return min((moment for moment in moments if moment is not None), default=None)


def _peek(connection: apsw.Connection, number: int, ask: Peek, cutoff: Cutoff) -> list[Any]:
    # Only leased messages before the limit of retention are shown.
    after = ask.after if ask.state is State.LEASED else max(ask.after, cutoff.id)
    bounds = after, MAX_ID if ask.before is None else ask.before
    newest = ask.before is not None
    state = None if ask.state is None else STATES.index(ask.state)
    which = "queue_id = ?1" + ("" if state is None else f" AND state = {state}")
    which += "" if ask.key is None else " AND key = ?4"
    keyed = () if ask.key is None else (ask.key,)
    packed = (
        {}
        if keyed
        else column_batches.peek(connection, number, ask.limit, (*bounds, cutoff.moment), state, newest, ask.reserved)
    )
    sizes: list[Any] = connection.execute(
        f"SELECT id, {SIZE_READ} FROM messages WHERE {which} AND id > ?2 AND id < ?3 "
        f"ORDER BY id {'DESC' if newest else ''} LIMIT {ask.limit}",
        (number, *bounds, *keyed),
    ).fetchall()
    sizes += ((id, len(row[1].encode()) + len((row[2] or "").encode())) for id, row in packed.items())
    sizes.sort(reverse=newest)
    budget = SizeBudget(ask.reserved)
    ids = [id for id, size in sizes[: ask.limit] if budget.add(size)]
    budget.check()
    if not ids:
        return []
    rows: list[Any] = connection.execute(
        f"SELECT {_MESSAGE} FROM messages WHERE {which} AND id BETWEEN ?2 AND ?3", (number, min(ids), max(ids), *keyed)
    ).fetchall()
    return sorted([*rows, *(packed[id] for id in ids if id in packed)], reverse=newest)


def _peek_dead(connection: apsw.Connection, name: str, ask: Peek) -> list[Any]:
    """Return dead letters from a queue; they are never in batches."""
    newest = ask.before is not None
    bounds = ask.after, MAX_ID if ask.before is None else ask.before
    which = "origin = ?1 AND queue_id = ?2 AND id > ?3 AND id < ?4" + ("" if ask.key is None else " AND key = ?5")
    keyed = () if ask.key is None else (ask.key,)
    sizes: list[Any] = [
        (id, size)
        for dead_letter_queue in dead_letter_queues(connection, name)
        for id, size in connection.execute(
            f"SELECT id, {SIZE_READ} FROM messages WHERE {which} ORDER BY id {'DESC' if newest else ''} "
            f"LIMIT {ask.limit}",
            (name, dead_letter_queue, *bounds, *keyed),
        ).fetchall()
    ]
    budget = SizeBudget(ask.reserved)
    ids = [id for id, size in sorted(sizes, reverse=newest)[: ask.limit] if budget.add(size)]
    budget.check()
    return [connection.execute(f"SELECT {_MESSAGE} FROM messages WHERE id = ?", (id,)).fetchone() for id in ids]


def _message(clock: Clock, queue: str, row: Any, dead: bool) -> Message:
    number, text, fields, deaths, sent_at, count, due_at, state_number, received_at = row
    return Message(
        number, queue, text, with_dead_letter_history(fields, deaths), clock.wall(sent_at), count,
        leased_until=clock.wall(due_at) if STATES[state_number] == State.LEASED else None,
        state=State.DEAD if dead else State(STATES[state_number]),
        first_received_at=None if received_at is None else clock.wall(received_at),
        deaths=deaths,
    )  # fmt: skip
