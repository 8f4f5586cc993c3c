"""Changes of whole queues, and of messages by id: settings, purge, deletion; and the steps of upkeep."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from storage.codec import write_settings
from storage.errors import InvalidInput, MessageLeased, MessageNotFound, PreconditionFailed
from storage.model import CHUNK, CHUNK_BYTES, STATES, QueueSettings, check_chain, check_key_lock
from storage.sqlite import column_batches
from storage.sqlite.settling import UNPACKED
from storage.sqlite.transaction import BLOCKED, DELAYED, LEASED, READY, SIZE, QueueRow, WriteTransaction, int_array
from storage.steps import Progress

MOVED = 2_000  # messages in one step of a purge, a clearing or a redrive
SHRINK_PAGES = 500  # pages

ReplyKey = tuple[int, str]  # the scope and the text of an Idempotency-Key
EXPIRED_REPLIES = "FROM replies WHERE (queue_id, key) > (?, ?) AND (queue_id, key) <= (?, ?) AND forget_at <= ?"  # SQL


def configure(work: WriteTransaction, name: str, changes: Mapping[str, Any], version: int | None) -> tuple[int, str]:
    """Change the settings; return their new version and JSON. Raises PreconditionFailed, InvalidInput."""
    found = work.find_queue(name)
    if version is not None and version != (_version(work, found) if found else 0):
        raise PreconditionFailed(f"the settings of queue '{name}' have changed", queue=name)
    queue = found or work.queue_for_writing(name)
    settings = queue.settings.changed(changes)
    _check_chain(work, queue, settings)
    check_key_lock(queue.settings, settings, is_empty=not queue.messages)
    document = write_settings(settings)
    new_version: int = work.execute(
        "UPDATE queues SET settings = ?1, version = version + 1, used_at = ?2, modified_at = ?2 WHERE id = ?3 "
        "RETURNING version",
        (document, work.now, queue.id),
    ).get
    work.forget_queue(queue)
    return new_version, document


def _check_chain(work: WriteTransaction, queue: QueueRow, settings: QueueSettings) -> None:
    if settings.dead_letter_queue != queue.settings.dead_letter_queue:
        default = QueueSettings()
        check_chain(queue.name, settings, lambda name: found.settings if (found := work.find_queue(name)) else default)


def _version(work: WriteTransaction, queue: QueueRow) -> int:
    """Return the version of the settings."""
    version: int = work.execute("SELECT version FROM queues WHERE id = ?", (queue.id,)).get
    return version


def last_id(work: WriteTransaction) -> int:
    """Return the highest id ever given to a message."""
    last: int = work.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").get
    return last


def purge(
    work: WriteTransaction, name: str, at: Progress, ids: Sequence[int] | None = None, reason: str | None = None
) -> tuple[Progress, bool]:
    """Do a step of Store.purge. Raises QueueNotFound at the first one."""
    if not at:
        at = {"queue": work.queue(name).id, "last": last_id(work), "count": 0}
    queue = work.find_queue(name)
    if queue is None or queue.id != at["queue"]:  # it was deleted meanwhile, with its messages
        return at, False
    if ids is None and reason is None:
        count = _purge(work, queue, at["last"])
        return at | {"count": at["count"] + count}, count > 0
    count, last = _purge_some(work, queue, at["last"], ids, reason)
    return at | {"count": at["count"] + count, "last": last}, last > 0


def _purge(work: WriteTransaction, queue: QueueRow, last: int) -> int:
    """Remove some of the messages up to id `last`, newest first to keep keys blocked; return their number."""
    if removed := column_batches.purge(work, queue, last, CHUNK):
        return removed
    return _remove(work, queue, _chunk(work, queue.id, last))


def _purge_some(
    work: WriteTransaction, queue: QueueRow, last: int, ids: Sequence[int] | None, reason: str | None
) -> tuple[int, int]:
    """Remove some of these messages up to id `last`, newest first; return how many, and the next `last` (0: no more).

    Read a bounded number, because many may have another reason.
    """
    columns = f"id, {SIZE}, coalesce(octet_length(deaths), 0), deaths ->> '$[#-1].dead_letter_reason'"
    if ids is None:
        rows = work.all(
            f"SELECT {columns} FROM messages WHERE queue_id = ? AND origin IS NOT NULL AND id <= ? "
            "ORDER BY id DESC LIMIT ?",
            (queue.id, last, MOVED),
        )
        following = rows[-1][0] - 1 if len(rows) == MOVED else 0
    else:
        ids = sorted(set(ids))
        some = _unpack_some(work, queue, ids[: bisect_right(ids, last)][-MOVED:])
        if not some:
            return 0, 0
        rows = work.all(
            f"SELECT {columns} FROM messages WHERE id IN carray(?) AND +queue_id = ? ORDER BY id DESC",
            (int_array(some), queue.id),
        )
        following = some[0] - 1
    chosen, size = [], 0
    for number, length, deaths, latest in rows:
        matches = reason in (None, latest)
        if matches:
            chosen.append(number)
        size += length if matches else deaths
        if size > CHUNK_BYTES:
            following = number - 1
            break
    return _remove(work, queue, chosen), following


def _unpack_some(work: WriteTransaction, queue: QueueRow, ids: Sequence[int]) -> Sequence[int]:
    """Unpack the batches of the queue that contain these messages; return the last ids for which that was enough."""
    batches: dict[int, column_batches.BatchRow] = {}
    for number, batch in sorted(column_batches.containing(work, ids).items(), reverse=True):
        if batch.queue_id == queue.id:
            if len(batches) == UNPACKED and batch.id not in batches:
                ids = ids[bisect_right(ids, number) :]
                break
            batches[batch.id] = batch
    column_batches.unpack(work, queue, list(batches.values()))
    return ids


def _remove(work: WriteTransaction, queue: QueueRow, ids: Sequence[int]) -> int:
    """Remove the messages and forget their dedup_ids; return their number."""
    if ids:
        work.remove(queue, ids)
        work.execute(
            "DELETE FROM dedup INDEXED BY dedup_of WHERE queue_id = ? AND message_id IN carray(?)",
            (queue.id, int_array(ids)),
        )
    return len(ids)


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
    for table, name in (("replies", "key"), ("dedup", "dedup_id"), ("moves", "id")):
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


def forget_dedup_ids(work: WriteTransaction) -> None:
    """Delete expired dedup_ids, at most CHUNK."""
    work.execute(
        "DELETE FROM dedup WHERE (queue_id, dedup_id, key) IN "
        "(SELECT queue_id, dedup_id, key FROM dedup WHERE forget_at <= ? ORDER BY forget_at LIMIT ?)",
        (work.now, CHUNK),
    )


def forget_replies(work: WriteTransaction, after: ReplyKey, last: ReplyKey) -> None:
    """Delete the expired Idempotency-Keys between these, the last included."""
    work.execute(f"DELETE {EXPIRED_REPLIES}", (*after, *last, work.now))


def shrink(work: WriteTransaction) -> None:
    """Return up to SHRINK_PAGES free pages to the disk; SQLite moves used pages from the file's end."""
    work.all(f"PRAGMA incremental_vacuum({SHRINK_PAGES})", ())


def note_time(work: WriteTransaction) -> None:
    """Store the service's time, so that it does not go back at the next boot if the wall clock was set back."""
    work.execute("UPDATE clock SET last_ms = max(last_ms, ?)", (work.now,))


def touch(work: WriteTransaction) -> None:
    """Write without a change, to check whether a write can be committed."""
    work.execute("UPDATE clock SET offset_ms = offset_ms")
