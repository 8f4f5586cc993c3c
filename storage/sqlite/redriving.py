"""Moving dead letters back to where they came from: for a request, or as a move that upkeep does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing
from heapq import merge
from itertools import islice
from typing import Any

from storage.errors import MoveNotFound, MoveRunning
from storage.model import CHUNK_BYTES, MOVES_KEPT, Move
from storage.sqlite import column_batches
from storage.sqlite.inspection import dead_letter_queues
from storage.sqlite.queues import MOVED, last_id
from storage.sqlite.transaction import LEASED, SIZE, QueueRow, WriteTransaction, int_array
from storage.steps import Progress

_MOVE = "task, destination, rate, started_at, status, moved, to_move, failure"


def redrive(
    work: WriteTransaction,
    name: str,
    limit: int | None,
    ids: Sequence[int] | None,
    reason: str | None,
    at: Progress,
) -> tuple[Progress, bool]:
    """Do a step of Store.redrive. Raises QueueNotFound at the first one."""
    queue = work.queue(name) if not at else work.find_queue(name)
    at = at or {"after": 0, "last": last_id(work), "count": 0}
    left = column_batches.UNLIMITED if limit is None else limit - at["count"]
    if queue is None or left <= 0:
        return at, False
    if ids is not None:
        ids = sorted(set(ids))
        some = ids[at["after"] : at["after"] + min(left, MOVED)]
        count, after, end = _redrive_ids(work, queue, some, reason), at["after"] + len(some), len(ids)
    else:
        bounds, end = (at["after"], at["last"]), at["last"]
        count, after = _redrive_all(work, queue, left, bounds, reason)
    at = at | {"after": after, "count": at["count"] + count}
    return at, after < end and (limit is None or at["count"] < limit)


def _redrive_ids(work: WriteTransaction, queue: QueueRow, ids: Sequence[int], reason: str | None) -> int:
    """Move those of these messages back that are dead letters in this queue or from it; return their number."""
    if not ids:
        return 0
    rows = work.all(
        f"SELECT {_LETTER} FROM messages WHERE id IN carray(?1) AND origin IS NOT NULL "
        "AND (queue_id = ?2 OR origin = ?3) ORDER BY id",
        (int_array(ids), queue.id, queue.name),
    )
    return _redrive_rows(work, [row for row in rows if _can_redrive(row, reason)])


def _redrive_all(
    work: WriteTransaction, queue: QueueRow, limit: int, bounds: tuple[int, int], reason: str | None
) -> tuple[int, int]:
    """Move dead letters in this queue, or from it, with ids above the first bound and up to the second, back.

    Move at most `limit` and MOVED, in order of id, and read a bounded number. Return how many moved, and the last id
    that was read; at the end, the second bound.
    """
    sources: list[tuple[str, tuple[Any, ...]]] = [
        ("queue_id = ?1 AND origin = ?2", (dead_letter_queue, queue.name))
        for dead_letter_queue in dead_letter_queues(work.connection, queue.name)
    ]
    return _redrive(work, [("queue_id = ?1 AND origin IS NOT NULL", (queue.id, None)), *sources], limit, bounds, reason)


def start_move(work: WriteTransaction, source: str, to: str | None, rate: int | None) -> Move:
    """Start a move. Raises QueueNotFound, MoveRunning."""
    queue = work.queue(source)
    if to is not None:
        work.queue(to)
    if source in running_moves(work):
        raise MoveRunning(source)
    work.execute(
        "INSERT INTO moves (queue_id, task, destination, rate, started_at, to_move, last) "
        "SELECT id, ?2, ?3, ?4, ?5, ready + delayed + blocked, ?6 FROM queues WHERE id = ?1",
        (queue.id, str(uuid.uuid4()), to, rate, work.now, last_id(work)),
    )
    work.execute(
        "DELETE FROM moves WHERE queue_id = ?1 "
        "AND id NOT IN (SELECT id FROM moves WHERE queue_id = ?1 ORDER BY id DESC LIMIT ?2)",
        (queue.id, MOVES_KEPT),
    )
    return moves(work, source, 1)[0]


def moves(work: WriteTransaction, source: str, limit: int) -> list[Move]:
    """Return the queue's moves, newest first. Raises QueueNotFound."""
    rows = work.all(
        f"SELECT {_MOVE} FROM moves WHERE queue_id = ? ORDER BY id DESC LIMIT ?", (work.queue(source).id, limit)
    )
    return [_move(work, source, row) for row in rows]


def cancel_move(work: WriteTransaction, source: str, task: str) -> Move:
    """Cancel a running move. Raises QueueNotFound, MoveNotFound."""
    rows = work.all(
        "UPDATE moves SET status = 'cancelled' "
        f"WHERE queue_id = ? AND task = ? AND status = 'running' RETURNING {_MOVE}",
        (work.queue(source).id, task),
    )
    if not rows:
        raise MoveNotFound
    return _move(work, source, rows[0])


def running_moves(work: WriteTransaction) -> list[str]:
    """Return the queues with a running move."""
    return [
        row[0]
        for row in work.all(
            "SELECT name FROM moves JOIN queues ON queues.id = queue_id WHERE status = 'running' AND name IS NOT NULL",
            (),
        )
    ]


def step_move(work: WriteTransaction, source: str) -> bool:
    """Move some messages of the queue's running move; return whether it may move more now."""
    queue = work.find_queue(source)
    if queue is None:
        return False
    found: Any = work.execute(
        "SELECT id, destination, rate, started_at, moved, after, last FROM moves "
        "WHERE queue_id = ? AND status = 'running'",
        (queue.id,),
    ).fetchone()
    if found is None:
        return False
    number, to, rate, started_at, moved, after, last = found
    if to is not None and work.find_queue(to) is None:
        work.execute("UPDATE moves SET status = 'failed', failure = 'queue_not_found' WHERE id = ?", (number,))
        return False
    limit = MOVED if rate is None else rate * (1 + (work.now - started_at) // 1000) - moved
    if limit <= 0:
        return False
    count, after = _empty(work, queue, to, limit, (after, last))
    status, failure = ("running" if after < last else "completed"), None
    if status == "completed" and to is None and _has_other_messages(work, queue):
        status, failure = "failed", "no_origin"
    work.execute(
        "UPDATE moves SET moved = moved + ?, after = ?, status = ?, failure = ? WHERE id = ?",
        (count, after, status, failure, number),
    )
    return status == "running" and (rate is None or count < limit)


def _move(work: WriteTransaction, source: str, row: Any) -> Move:
    move = Move(row[0], source, *row[1:])
    return move._replace(started_at=work.wall(move.started_at))


def _empty(
    work: WriteTransaction, queue: QueueRow, to: str | None, limit: int, bounds: tuple[int, int]
) -> tuple[int, int]:
    """Do the same for the dead letters in this queue alone; or with `to` for all its messages, to that queue."""
    if to is None:
        return _redrive(work, [("queue_id = ?1 AND origin IS NOT NULL", (queue.id, None))], limit, bounds)
    packed = column_batches.select_ready(work, queue, 1 + min(limit, MOVED) // column_batches.LONGEST)
    column_batches.unpack(work, queue, packed)
    return _redrive(work, [("queue_id = ?1", (queue.id, None))], limit, bounds, to=to)


def _has_other_messages(work: WriteTransaction, queue: QueueRow) -> bool:
    """Return whether the queue has messages that are no dead letters."""
    return bool(
        work.execute(
            "SELECT EXISTS (SELECT 1 FROM messages WHERE queue_id = ?1 AND origin IS NULL) "
            "OR EXISTS (SELECT 1 FROM runs WHERE queue_id = ?1)",
            (queue.id,),
        ).get
    )


def _redrive(
    work: WriteTransaction,
    sources: Sequence[tuple[str, tuple[Any, ...]]],
    limit: int,
    bounds: tuple[int, int],
    reason: str | None = None,
    to: str | None = None,
) -> tuple[int, int]:
    most = min(limit, MOVED)
    looked_at = MOVED if reason is not None else most + 100
    with ExitStack() as stack:  # each source reads only the rows that are used
        found = [
            stack.enter_context(
                closing(
                    work.execute(
                        f"SELECT {_LETTER} FROM messages WHERE {which} AND id > ?3 AND id <= ?4 ORDER BY id LIMIT ?5",
                        (*values, *bounds, looked_at),
                    )
                )
            )
            for which, values in sources
        ]
        rows = list(islice(merge(*found), looked_at))
    chosen: list[Any] = []
    size = 0
    for row in rows:
        if _can_redrive(row, reason):
            chosen.append(row)
            size += row[5]
        if len(chosen) == most or size > CHUNK_BYTES:
            _redrive_rows(work, chosen, to)
            return len(chosen), row[0]
    _redrive_rows(work, chosen, to)
    return len(chosen), rows[-1][0] if len(rows) == looked_at else bounds[1]


_LETTER = f"id, queue_id, origin, state, deaths ->> '$[#-1].dead_letter_reason', {SIZE}"


def _can_redrive(row: Any, reason: str | None) -> bool:
    return row[3] != LEASED and reason in (None, row[4])


def _redrive_rows(work: WriteTransaction, rows: Sequence[Any], to: str | None = None) -> int:
    ids_by_route: dict[tuple[int, str], list[int]] = {}
    for number, dead_letter_queue_id, origin, *_ in rows:
        ids_by_route.setdefault((dead_letter_queue_id, to or origin), []).append(number)
    count = 0
    for (dead_letter_queue_id, origin), ids in ids_by_route.items():
        name = work.execute("SELECT name FROM queues WHERE id = ?", (dead_letter_queue_id,)).get
        if name is not None:  # else upkeep is removing the queue
            _undo_dead_lettering(work, work.queue(name), work.queue_for_writing(origin), ids, all_deaths=to is not None)
            count += len(ids)
    return count


def _undo_dead_lettering(
    work: WriteTransaction,
    dead_letter_queue: QueueRow,
    origin_queue: QueueRow,
    ids: Sequence[int],
    all_deaths: bool,
) -> None:
    rows = work.all(
        f"""
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, expires_at,
                              origin, deaths, fields, text)
        SELECT ?1, sent_at, ?2, iif(key IS NULL, 0, 3), priority, recipient, key,
               iif(?4 OR json_array_length(deaths) = 1, ?2 + CAST(ceil(1000 * (fields ->> 'ttl')) AS INTEGER), NULL),
               iif(?4, NULL, deaths ->> '$[#-2].dead_letter_from'),
               iif(?4 OR json_array_length(deaths) = 1, NULL, json_remove(deaths, '$[#-1]')),
               fields, text
          FROM messages WHERE id IN carray(?3) ORDER BY id
        RETURNING state, key, {SIZE}
        """,
        (origin_queue.id, work.now, int_array(ids), all_deaths),
    )
    first = work.connection.last_insert_rowid() - len(ids) + 1
    work.arrived(origin_queue, rows)
    former = work.all(
        "SELECT CAST(deaths ->> '$[#-1].dead_letter_id' AS INTEGER) FROM messages WHERE id IN carray(?) ORDER BY id",
        (int_array(ids),),
    )
    work.remove(dead_letter_queue, ids)
    work.connection.executemany(  # its dedup_id moves with it
        "UPDATE dedup INDEXED BY dedup_of SET message_id = ? WHERE queue_id = ? AND message_id = ?",
        ((first + place, origin_queue.id, number) for place, (number,) in enumerate(former)),
    )
