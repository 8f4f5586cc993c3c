"""What is done to whole queues: settings, purge, deletion, redrive; and what upkeep clears away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage import sqlite_runs as runs
from storage.kept import write_settings
from storage.sqlite_work import CHUNK, LIVING, QueueRow, Work, int_array

CHUNK_BYTES = 32 * 1024 * 1024  # of text that one transaction removes at most
SHRUNK = 500  # pages


def _lifetime(ttl: str, retention: str) -> str:
    """SQL: the ms a message may live by its ttl and the queue's retention (s or NULL); NULL: without end."""
    return f"CAST(ceil(1000 * min(coalesce({ttl}, {retention}), coalesce({retention}, {ttl}))) AS INTEGER)"


_LIFETIME = _lifetime("fields ->> 'ttl'", "?1")
TTL = "iif(origin IS NULL, fields ->> 'ttl', NULL)"  # SQL: in s; a dead letter's is over and done with


def beginning(retention: str) -> str:
    """SQL: ms when a message's life began: its sending, but for one that was redriven or died since."""
    return f"""coalesce(expires_at - {_lifetime(TTL, retention)},
                        CAST(1000 * unixepoch(death ->> 'dead_letter_at', 'subsec') AS INTEGER), sent_at)"""


def configure(work: Work, queue: QueueRow, changes: Mapping[str, Any]) -> None:
    """Changes settings; a new retention holds for all messages that are there. Raises InvalidInput."""
    settings = queue.settings.changed(changes)
    kept = write_settings(settings)
    work.execute("UPDATE queues SET settings = ?, version = version + 1 WHERE id = ?", (kept, queue.id))
    if settings.max_receives:
        runs.unpack_spent(work, queue, settings.max_receives)
    if settings.retention != queue.settings.retention:
        runs.unpack_all(work, queue)
        work.execute(
            f"UPDATE messages SET expires_at = {beginning('?2')} + {_lifetime(TTL, '?1')} WHERE queue_id = ?3",
            (settings.retention, queue.settings.retention, queue.id),
        )
    work.forget_queue(queue)


def version(work: Work, queue: QueueRow) -> int:
    """Of the settings."""
    version: int = work.execute("SELECT version FROM queues WHERE id = ?", (queue.id,)).get
    return version


def last_id(work: Work, queue: QueueRow) -> int:
    """The highest id in the queue, 0 when it is empty."""
    last: int = work.execute(
        "SELECT max(coalesce((SELECT max(id) FROM messages WHERE queue_id = ?1), 0), "
        "coalesce((SELECT max(id) FROM runs WHERE queue_id = ?1), 0))",
        (queue.id,),
    ).get
    return last


def purge(work: Work, queue: QueueRow, last: int) -> int:
    """Removes a chunk of the messages up to id `last`, newest first: no key's next one shows up. How many."""
    return runs.purge(work, queue, last) or len(work.remove(queue, _chunk(work, queue.id, last)))


def disown(work: Work, queue: QueueRow) -> int:
    """The queue is gone for everybody; its number, by which `clear` removes what is left of it."""
    work.execute("UPDATE queues SET name = NULL WHERE id = ?", (queue.id,))
    work.forget_queue(queue)
    return queue.id


def clear(work: Work, queue_id: int) -> bool:
    """Removes a chunk of what is left of a disowned queue, in the end itself; True when more is left."""
    if runs.clear(work, queue_id):
        return True
    if ids := _chunk(work, queue_id, 2**63 - 1):
        work.execute("DELETE FROM messages WHERE id IN carray(?)", (int_array(ids),))
        return True
    for table, name in (("replies", "key"), ("dedup", "dedup_id")):
        chosen = f"SELECT {name} FROM {table} WHERE queue_id = ?1 LIMIT {CHUNK}"
        work.execute(f"DELETE FROM {table} WHERE queue_id = ?1 AND {name} IN ({chosen})", (queue_id,))
        if work.connection.changes():
            return True
    work.execute("DELETE FROM queues WHERE id = ? AND name IS NULL", (queue_id,))
    return False


def _chunk(work: Work, queue_id: int, last: int) -> list[int]:
    """Ids of the newest messages up to `last`, as many as one transaction may remove."""
    ids, size = [], 0
    for number, length in work.all(
        "SELECT id, octet_length(text) + coalesce(octet_length(fields), 0) FROM messages "
        "WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?",
        (queue_id, last, CHUNK),
    ):
        ids.append(number)
        size += length
        if size > CHUNK_BYTES:
            break
    return ids


def redrive(work: Work, name: str, limit: int) -> int:
    """Dead letters that lie in this queue or came from it go back, in order of death; how many (CHUNK at most)."""
    queue = work.queue(name)
    rows = work.all(
        "SELECT id, queue_id, origin FROM messages WHERE state <> 1 AND origin IS NOT NULL "
        f"AND (queue_id = ? OR origin = ?) AND {LIVING} ORDER BY id LIMIT ?",
        (queue.id, name, min(limit, CHUNK)),
    )
    ways: dict[tuple[int, str], list[int]] = {}
    for number, grave_id, origin in rows:
        ways.setdefault((grave_id, origin), []).append(number)
    for (grave_id, origin), ids in ways.items():
        _raise_dead(work, _queue_by_id(work, grave_id), work.queue_for_writing(origin), ids)
    return len(rows)


def _raise_dead(work: Work, grave: QueueRow, home: QueueRow, ids: Sequence[int]) -> None:
    rows = work.all(
        f"""
        INSERT INTO messages (queue_id, sent_at, state, priority, recipient, key, expires_at, fields, text)
        SELECT ?2, sent_at, iif(key IS NULL, 0, 3), priority, recipient, key,
               ?3 + {_LIFETIME},
               fields, text
          FROM messages WHERE id IN carray(?4) ORDER BY id
        RETURNING state, key, octet_length(text) + coalesce(octet_length(fields), 0)
        """,
        (home.settings.retention, home.id, work.now, int_array(ids)),
    )
    work.arrived(home, rows)
    work.remove(grave, ids)


def _queue_by_id(work: Work, number: int) -> QueueRow:
    return work.queue(work.execute("SELECT name FROM queues WHERE id = ?", (number,)).get)


def forget(work: Work) -> None:
    """Forgets (CHUNK of each at most) the keys and dedup_ids whose window has passed."""
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


def shrink(work: Work) -> None:
    """Gives up to SHRUNK free pages back to the disk, moving pages in use from the file's end into other free ones."""
    work.all(f"PRAGMA incremental_vacuum({SHRUNK})", ())


def touch(work: Work) -> None:
    """Writes without changing anything, to learn whether a write can be committed."""
    work.execute("UPDATE clock SET offset_ms = offset_ms")
