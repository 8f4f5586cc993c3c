"""Changes of whole queues, and of messages by id: settings, purge, deletion, redrive; and the steps of upkeep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from heapq import merge
from itertools import islice
from typing import Any

from storage.codec import write_settings
from storage.errors import InvalidInput, MessageLeased, MessageNotFound
from storage.model import CHUNK, CHUNK_BYTES, STATES, QueueSettings, check_chain
from storage.sqlite import column_batches
from storage.sqlite.inspection import dead_letter_queues
from storage.sqlite.transaction import BLOCKED, DELAYED, LEASED, READY, SIZE, QueueRow, WriteTransaction, int_array

MOVED = 2_000  # messages in one step of a purge, a clearing or a redrive
SHRINK_PAGES = 500  # pages


def configure(work: WriteTransaction, queue: QueueRow, changes: Mapping[str, Any]) -> tuple[int, str]:
    """Change the settings; return their version and JSON. Raises InvalidInput."""
    settings = queue.settings.changed(changes)
    _check_chain(work, queue, settings)
    document = write_settings(settings)
    version: int = work.execute(
        "UPDATE queues SET settings = ?, version = version + 1, used_at = ? WHERE id = ? RETURNING version",
        (document, work.now, queue.id),
    ).get
    work.forget_queue(queue)
    return version, document


def _check_chain(work: WriteTransaction, queue: QueueRow, settings: QueueSettings) -> None:
    if settings.dead_letter_queue != queue.settings.dead_letter_queue:
        default = QueueSettings()
        check_chain(queue.name, settings, lambda name: found.settings if (found := work.find_queue(name)) else default)


def version(work: WriteTransaction, queue: QueueRow) -> int:
    """Return the version of the settings."""
    version: int = work.execute("SELECT version FROM queues WHERE id = ?", (queue.id,)).get
    return version


def last_id(work: WriteTransaction) -> int:
    """Return the highest id ever given to a message."""
    last: int = work.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").get
    return last


def purge(work: WriteTransaction, queue: QueueRow, last: int) -> int:
    """Remove some of the messages up to id `last`, newest first to keep keys blocked; return their number."""
    if removed := column_batches.purge(work, queue, last, CHUNK):
        return removed
    rows = work.remove(queue, _chunk(work, queue.id, last), "id, fields ->> 'dedup_id'")
    names = {row[4]: row[3] for row in rows if row[4] is not None}
    if names:
        work.execute(
            "DELETE FROM dedup WHERE queue_id = ?1 AND dedup_id IN (SELECT value FROM json_each(?2)) "
            "AND message_id IN carray(?3)",
            (queue.id, json.dumps(list(names), ensure_ascii=False), int_array(list(names.values()))),
        )
    return len(rows)


def mark_deleted(work: WriteTransaction, queue: QueueRow) -> None:
    """Mark the queue as deleted; upkeep removes its contents by `clear`. Raises InvalidInput."""
    _check_chain(work, queue, QueueSettings())
    work.execute("UPDATE queues SET name = NULL WHERE id = ?", (queue.id,))
    work.forget_queue(queue)


def delete_if_unused(work: WriteTransaction, name: str) -> None:
    """Mark the queue as deleted if it has been empty and unused for as long as its setting `expires`."""
    queue = work.find_queue(name)
    if queue is None or queue.settings.expires is None or queue.messages:
        return
    if queue.used_at + queue.settings.expires * 1000 <= work.now:
        with suppress(InvalidInput):  # without its settings its dead letters would move in a cycle
            mark_deleted(work, queue)


def clear(work: WriteTransaction, queue_id: int) -> bool:
    """Remove some of a deleted queue's contents, finally the queue itself; return whether more is left."""
    if column_batches.clear(work, queue_id, CHUNK):
        return True
    if ids := _chunk(work, queue_id, column_batches.UNLIMITED):
        work.execute("DELETE FROM messages WHERE id IN carray(?)", (int_array(ids),))
        return True
    for table, name in (("replies", "key"), ("dedup", "dedup_id")):
        chosen = f"SELECT {name} FROM {table} WHERE queue_id = ?1 LIMIT {CHUNK}"
        work.execute(f"DELETE FROM {table} WHERE queue_id = ?1 AND {name} IN ({chosen})", (queue_id,))
        if work.connection.changes():
            return True
    work.execute("DELETE FROM queues WHERE id = ? AND name IS NULL", (queue_id,))
    return False


def _chunk(work: WriteTransaction, queue_id: int, last: int) -> list[int]:
    """Return ids of the newest messages up to `last`, as many as one step may remove."""
    ids, size = [], 0
    for number, length in work.all(
        f"SELECT id, {SIZE} FROM messages WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?",
        (queue_id, last, MOVED),
    ):
        ids.append(number)
        size += length
        if size > CHUNK_BYTES:
            break
    return ids


# -- redrive


def redrive_ids(work: WriteTransaction, queue: QueueRow, ids: Sequence[int], reason: str | None) -> int:
    """Move those of these messages back that are dead letters in this queue or from it; return their number."""
    if not ids:
        return 0
    rows = work.all(
        f"SELECT {_LETTER} FROM messages WHERE id IN carray(?1) AND origin IS NOT NULL "
        "AND (queue_id = ?2 OR origin = ?3) ORDER BY id",
        (int_array(ids), queue.id, queue.name),
    )
    return _redrive_rows(work, [row for row in rows if _can_redrive(row, reason)])


def redrive(
    work: WriteTransaction, queue: QueueRow, limit: int, bounds: tuple[int, int], reason: str | None
) -> tuple[int, int]:
    """Move dead letters in this queue, or from it, with ids above the first bound and up to the second, back.

    Move at most `limit` and MOVED, in order of id, and read a bounded number. Return how many moved, and the last id
    that was read; at the end, the second bound.
    """
    most = min(limit, MOVED)
    looked_at = MOVED if reason is not None else most + 100
    sources: list[tuple[str, tuple[Any, ...]]] = [("queue_id = ?1 AND origin IS NOT NULL", (queue.id, None))]
    sources += [
        ("queue_id = ?1 AND origin = ?2", (dead_letter_queue, queue.name))
        for dead_letter_queue in dead_letter_queues(work.connection, queue.name)
    ]
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
            _redrive_rows(work, chosen)
            return len(chosen), row[0]
    _redrive_rows(work, chosen)
    return len(chosen), rows[-1][0] if len(rows) == looked_at else bounds[1]


_LETTER = f"id, queue_id, origin, state, deaths ->> '$[#-1].dead_letter_reason', {SIZE}"


def _can_redrive(row: Any, reason: str | None) -> bool:
    return row[3] != LEASED and reason in (None, row[4])


def _redrive_rows(work: WriteTransaction, rows: Sequence[Any]) -> int:
    ids_by_route: dict[tuple[int, str], list[int]] = {}
    for number, dead_letter_queue_id, origin, *_ in rows:
        ids_by_route.setdefault((dead_letter_queue_id, origin), []).append(number)
    count = 0
    for (dead_letter_queue_id, origin), ids in ids_by_route.items():
        name = work.execute("SELECT name FROM queues WHERE id = ?", (dead_letter_queue_id,)).get
        if name is not None:  # else upkeep is removing the queue
            _undo_dead_lettering(work, work.queue(name), work.queue_for_writing(origin), ids)
            count += len(ids)
    return count


def _undo_dead_lettering(
    work: WriteTransaction, dead_letter_queue: QueueRow, origin_queue: QueueRow, ids: Sequence[int]
) -> None:
    rows = work.all(
        f"""
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, expires_at,
                              origin, deaths, fields, text)
        SELECT ?1, sent_at, ?2, iif(key IS NULL, 0, 3), priority, recipient, key,
               iif(json_array_length(deaths) = 1, ?2 + CAST(ceil(1000 * (fields ->> 'ttl')) AS INTEGER), NULL),
               deaths ->> '$[#-2].dead_letter_from',
               iif(json_array_length(deaths) = 1, NULL, json_remove(deaths, '$[#-1]')),
               fields, text
          FROM messages WHERE id IN carray(?3) ORDER BY id
        RETURNING state, key, {SIZE}
        """,
        (origin_queue.id, work.now, int_array(ids)),
    )
    first = work.connection.last_insert_rowid() - len(ids) + 1
    work.arrived(origin_queue, rows)
    new_ids = {number: first + place for place, number in enumerate(sorted(ids))}
    named = work.all(
        "SELECT id, fields, deaths FROM messages WHERE id IN carray(?) AND instr(fields, '\"dedup_id\"')",
        (int_array(ids),),
    )
    known = [
        (json.loads(fields).get("dedup_id"), int(json.loads(deaths)[-1]["dead_letter_id"]), new_ids[number])
        for number, fields, deaths in named
    ]
    work.remove(dead_letter_queue, ids)
    work.execute(  # its dedup_id moves with it
        "UPDATE dedup SET message_id = value ->> 2 FROM json_each(?2) "
        "WHERE queue_id = ?1 AND dedup_id = value ->> 0 AND message_id = value ->> 1",
        (origin_queue.id, json.dumps(known, ensure_ascii=False)),
    )


# -- one message by its id


def delete_message(work: WriteTransaction, queue: QueueRow, number: int) -> None:
    _require_unleased(work, queue, number)
    work.remove(queue, [number])


def dead_letter(work: WriteTransaction, queue: QueueRow, number: int, reason: str) -> None:
    _require_unleased(work, queue, number)
    work.dead_letter(queue, [number], reason)


def reschedule(work: WriteTransaction, queue: QueueRow, number: int, delay: int) -> None:
    state = _require_unleased(work, queue, number)
    if state == READY and not delay:
        return
    due = work.now + delay
    new_state = BLOCKED if state == BLOCKED else DELAYED if delay else READY
    work.execute(  # an expired lease must not be extended
        "UPDATE messages SET state = ?, due_at = ?, token = -abs(token) WHERE id = ?", (new_state, due, number)
    )
    if new_state != state:
        work.count(queue, **{STATES[state]: -1, STATES[new_state]: 1})


def _require_unleased(work: WriteTransaction, queue: QueueRow, number: int) -> int:
    """Return the state of a message that is not leased; unpack its batch. Raises MessageNotFound, MessageLeased."""
    packed = column_batches.containing(work, [number])
    column_batches.unpack(work, queue, [batch for batch in packed.values() if batch.queue_id == queue.id])
    found: int | None = work.execute("SELECT state FROM messages WHERE id = ? AND queue_id = ?", (number, queue.id)).get
    if found is None:
        raise MessageNotFound
    if found == LEASED:
        raise MessageLeased
    work.note_use(queue)
    return found


# -- upkeep


def forget(work: WriteTransaction) -> None:
    """Delete expired Idempotency-Keys and dedup_ids, at most CHUNK of each."""
    work.execute(
        "DELETE FROM replies WHERE (queue_id, key) IN "
        "(SELECT queue_id, key FROM replies WHERE forget_at <= ? ORDER BY forget_at LIMIT ?)",
        (work.now, CHUNK),
    )
    work.execute(
        "DELETE FROM dedup WHERE (queue_id, dedup_id) IN "
        "(SELECT queue_id, dedup_id FROM dedup WHERE forget_at <= ? ORDER BY forget_at LIMIT ?)",
        (work.now, CHUNK),
    )


def shrink(work: WriteTransaction) -> None:
    """Return up to SHRINK_PAGES free pages to the disk; SQLite moves used pages from the file's end."""
    work.all(f"PRAGMA incremental_vacuum({SHRINK_PAGES})", ())


def note_time(work: WriteTransaction) -> None:
    """Store the service's time, so that it does not go back at the next boot if the wall clock was set back."""
    work.execute("UPDATE clock SET last_ms = max(last_ms, ?)", (work.now,))


def touch(work: WriteTransaction) -> None:
    """Write without a change, to check whether a write can be committed."""
    work.execute("UPDATE clock SET offset_ms = offset_ms")
