"""Storing new messages: limits, deduplication, order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from storage.column_batches import NewColumnBatch, plain_form, size_of
from storage.errors import DiskFull, InvalidInput, QueueFull, TakesLong
from storage.model import CHUNK, STATES, NewMessage, QueueSettings, Sent
from storage.sqlite import column_batches
from storage.sqlite.expiry import bring_up_to_date, remove_undeliverable
from storage.sqlite.transaction import BLOCKED, DELAYED, READY, QueueRow, WriteTransaction, by_state
from storage.steps import group_by_queue

SKIPPED = len(STATES)  # in place of a state: do not store the message

_COLUMNS = "queue_id, sent_at, state, priority, recipient, key, due_at, expires_at, fields, text"
_json = json.JSONEncoder(ensure_ascii=False).encode


class Rows(NamedTuple):
    """Messages in rows of their own, as JSON: the columns, and the keys, each once and in order."""

    messages: list[NewMessage]
    columns: str
    keys: str | None  # None: no message has a key


class DedupIds(NamedTuple):
    """The dedup_ids of messages, each with the key among whose messages it must be unique."""

    names: dict[int, tuple[str, str]]  # by the message's place
    firsts: dict[tuple[str, str], int]  # the first place of each, in the order of the database


NO_DEDUP_IDS = DedupIds({}, {})
DEFAULTS = QueueSettings()


class Batch(NamedTuple):
    """Messages for one queue, prepared as far as possible without the lock."""

    messages: Sequence[NewMessage]
    parts: list[NewColumnBatch | Rows]  # the messages in order: packed ones, and those in rows of their own
    size: int
    dedup_ids: DedupIds  # with the default settings


def prepare(messages: Sequence[NewMessage]) -> Batch:
    dedup_ids = NO_DEDUP_IDS if isinstance(messages, NewColumnBatch) else _dedup_ids(messages, DEFAULTS)
    return Batch(messages, list(_parts(messages)), size_of(messages), dedup_ids)


def prepare_for_queues(messages: Sequence[tuple[str, NewMessage]]) -> list[tuple[str, list[int], Batch]]:
    """Return each queue's own messages, and their places."""
    return [
        (name, places, prepare([messages[place][1] for place in places]))
        for name, places in group_by_queue(messages).items()
    ]


def send_to_queues(work: WriteTransaction, batches: Sequence[tuple[str, list[int], Batch]]) -> Sent:
    """Store each queue's messages; return the ids in the order of the request."""
    ids: dict[int, int] = {}
    duplicates: list[int] = []
    if len(batches) > 1:
        work.create_queues([name for name, *_ in batches])
    for name, places, batch in batches:
        sent = send(work, work.queue_for_writing(name), batch)
        ids |= zip(places, sent.ids, strict=True)
        duplicates += [places[place] for place in sent.duplicates]
    return Sent([ids[place] for place in range(len(ids))], sorted(duplicates))


def send(work: WriteTransaction, queue: QueueRow, batch: Batch) -> Sent:
    """Store the messages in order; return their ids: for a known dedup_id, the id of its first message."""
    _check_lengths(batch.messages, queue.settings)
    settings = queue.settings
    if not (batch.dedup_ids.names or settings.dedup_content):
        return Sent(_insert(work, queue, batch, ()), [])
    is_default = settings.dedup_scope == "queue" and not settings.dedup_content
    names, firsts = batch.dedup_ids if is_default else _dedup_ids(batch.messages, settings)
    known = {
        (dedup_id, key): number
        for dedup_id, key, number in work.all(
            "SELECT dedup_id, key, message_id FROM dedup WHERE queue_id = ? AND forget_at > ? "
            "AND (dedup_id, key) IN (SELECT value->>0, value->>1 FROM json_each(?))",
            (queue.id, work.now, _json(list(firsts))),
        )
    }
    duplicates = {place: name for place, name in names.items() if name in known or firsts[name] < place}
    ids = _insert(work, queue, batch, duplicates)
    work.execute(
        "INSERT OR REPLACE INTO dedup (queue_id, dedup_id, key, message_id, forget_at) "
        "SELECT ?, value->>0, value->>1, value->>2, ? FROM jsonb_each(?) AS item",
        (
            queue.id,
            work.now + round(queue.settings.dedup_window * 1000),
            _json([(*name, ids[place]) for name, place in firsts.items() if name not in known]),
        ),
    )
    for place, name in duplicates.items():
        ids[place] = known.get(name) or ids[firsts[name]]
    return Sent(ids, list(duplicates))


def _check_lengths(messages: Sequence[NewMessage], settings: QueueSettings) -> None:
    most = settings.max_message_bytes
    if most is not None and any(len(message.text.encode()) > most for message in messages):
        raise InvalidInput(f"'text' must be at most {most} bytes here (max_message_bytes)", field="text")


def _dedup_ids(messages: Sequence[NewMessage], settings: QueueSettings) -> DedupIds:
    found: dict[int, tuple[str, str]] = {}
    for place, message in enumerate(messages):
        name = message.dedup_id
        if name is None and settings.dedup_content:
            name = hashlib.sha256(message.text.encode()).hexdigest()
        if name is not None:
            found[place] = name, (message.key or "") if settings.dedup_scope == "key" else ""
    if not found:
        return NO_DEDUP_IDS
    firsts = {name: place for place, name in reversed(found.items())}
    return DedupIds(found, dict(sorted(firsts.items())))


def _insert(work: WriteTransaction, queue: QueueRow, batch: Batch, skipped: Collection[int]) -> list[int]:
    """Store the messages except those at the `skipped` places; return the ids, 0 for skipped ones."""
    stored: Sequence[NewMessage] = batch.messages
    size = batch.size
    if skipped:
        stored = [message for place, message in enumerate(batch.messages) if place not in skipped]
        size = size_of(stored)
    if not stored:
        return [0] * len(batch.messages)
    queue = _check_limits(work, queue, len(stored), size)
    states: list[int] = []
    last = 0
    for part in batch.parts:
        if isinstance(part, NewColumnBatch) and not queue.settings.delay and not queue.settings.dedup_content:
            last = column_batches.pack(work, queue, part)
            states += [READY] * len(part)
        else:
            rows = _rows(list(part)) if isinstance(part, NewColumnBatch) else part
            part_states = _states(work, queue, rows, {place - len(states) for place in skipped})
            if set(part_states) != {SKIPPED}:
                last = _insert_rows(work, queue, rows, part_states)
            states += part_states
    work.count(queue, sent=len(stored), bytes=size, **by_state([state for state in states if state != SKIPPED]))
    ids = iter(range(last - len(stored) + 1, last + 1))
    return [0 if state == SKIPPED else next(ids) for state in states]


def _parts(messages: Sequence[NewMessage]) -> Iterator[NewColumnBatch | Rows]:
    if len(messages) < column_batches.SHORTEST:
        yield _rows(list(messages))
        return
    if isinstance(messages, NewColumnBatch):
        yield messages
        return
    single: list[NewMessage] = []
    for form, group in groupby(messages, plain_form):
        messages_of_form = list(group)
        if form is None or len(messages_of_form) < column_batches.SHORTEST:
            single += messages_of_form
            continue
        if single:
            yield _rows(single)
            single = []
        yield NewColumnBatch.of_messages(messages_of_form)
    if single:
        yield _rows(single)


def _rows(messages: list[NewMessage]) -> Rows:
    columns = [(m.priority, m.recipient, m.key, m.delay, m.ttl, m.fields, m.text) for m in messages]
    keys = {message.key for message in messages if message.key is not None}
    return Rows(messages, _json(columns), _json(sorted(keys)) if keys else None)


def _check_limits(work: WriteTransaction, queue: QueueRow, count: int, size: int) -> QueueRow:
    if work.nearly_full:
        raise DiskFull
    if queue.settings.max_messages is None and queue.settings.max_bytes is None:
        return queue
    if work.is_quick and _exceeded_limit(queue, count, size):
        raise TakesLong
    if _exceeded_limit(queue, count, size):  # remove expired messages first; upkeep removes the rest of very many
        bring_up_to_date(work, queue)
        remove_undeliverable(work, work.queue(queue.name), CHUNK)
        queue = work.queue(queue.name)
    if error := _exceeded_limit(queue, count, size):
        raise error
    return queue


def _exceeded_limit(queue: QueueRow, count: int, size: int) -> QueueFull | None:
    """Return the error for the limit that so many more messages, of so many bytes, would exceed."""
    settings = queue.settings
    if settings.max_messages is not None and queue.messages + count > settings.max_messages:
        return QueueFull(queue.name, "max_messages", settings.max_messages, queue.messages, count)
    if settings.max_bytes is not None and queue.bytes + size > settings.max_bytes:
        return QueueFull(queue.name, "max_bytes", settings.max_bytes, queue.bytes, size)
    return None


def _states(work: WriteTransaction, queue: QueueRow, rows: Rows, skipped: Collection[int]) -> list[int]:
    """Return the initial state of each message: a key's first may be ready, and later ones are blocked."""
    held: set[str | None] = set()
    if rows.keys is not None:
        found = "EXISTS (SELECT 1 FROM messages WHERE queue_id = ? AND key = value)"
        held.update(row[0] for row in work.all(f"SELECT value FROM json_each(?) WHERE {found}", (rows.keys, queue.id)))
    states: list[int] = []
    for place, message in enumerate(rows.messages):
        if place in skipped:
            states.append(SKIPPED)
        elif message.key in held:
            states.append(BLOCKED)
        else:
            delay = queue.settings.delay if message.delay is None else message.delay
            states.append(DELAYED if delay else READY)
            if message.key is not None:
                held.add(message.key)
    return states


def _insert_rows(work: WriteTransaction, queue: QueueRow, rows: Rows, states: list[int]) -> int:
    """Insert the messages and return the last id. The states are bound as one digit each."""
    delay = round(queue.settings.delay * 1000)
    if len(states) == 1:  # the statement for many would cost a third more
        message = rows.messages[0]
        delay = delay if message.delay is None else message.delay
        due_at, expires_at = work.now + delay if delay else 0, None if message.ttl is None else work.now + message.ttl
        work.execute(
            f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                queue.id,
                work.now,
                states[0],
                message.priority,
                message.recipient,
                message.key,
                due_at,
                expires_at,
                message.fields,
                message.text,
            ),
        )
        return work.connection.last_insert_rowid()
    work.execute(
        f"""
        INSERT INTO messages ({_COLUMNS})
        SELECT ?1, ?2, CAST(substr(?3, item.key + 1, 1) AS INTEGER), value->>0, value->>1, value->>2,
               iif(coalesce(value->>3, ?4) > 0, ?2 + coalesce(value->>3, ?4), 0), ?2 + value->>4, value->>5, value->>6
          FROM jsonb_each(?5) AS item
         WHERE CAST(substr(?3, item.key + 1, 1) AS INTEGER) <> {SKIPPED}
        """,
        (queue.id, work.now, "".join(map(str, states)).encode(), delay, rows.columns),
    )
    return work.connection.last_insert_rowid()
