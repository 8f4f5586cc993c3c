"""Storing new messages: room, dedup, order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from storage import sqlite_runs as runs
from storage.errors import DiskFull, QueueFull
from storage.model import CHUNK, NewMessage, Sent
from storage.runs import NewRun, plain_form, size_of
from storage.sqlite_due import bring_up_to_date, clear_out
from storage.sqlite_work import BLOCKED, DELAYED, READY, QueueRow, Work, by_state
from storage.steps import group_by_queue


def send(work: Work, queue: QueueRow, messages: Sequence[NewMessage]) -> Sent:
    """Stores the messages in order; their ids, for a dedup_id known already the first message's."""
    if not isinstance(messages, NewRun) and any(message.dedup_id is not None for message in messages):
        return _send_deduplicated(work, queue, messages)
    return Sent(_insert(work, queue, messages), [])


def send_to_queues(work: Work, messages: Sequence[tuple[str, NewMessage]]) -> Sent:
    """Each queue gets its own messages, in the order given."""
    ids = [0] * len(messages)
    duplicates: list[int] = []
    for name, where in group_by_queue(messages).items():
        sent = send(work, work.queue_for_writing(name), [messages[place][1] for place in where])
        for place, number in zip(where, sent.ids, strict=True):
            ids[place] = number
        duplicates += [where[place] for place in sent.duplicates]
    return Sent(ids, sorted(duplicates))


def _send_deduplicated(work: Work, queue: QueueRow, messages: Sequence[NewMessage]) -> Sent:
    # A message without a dedup_id goes by its place, which is no string and so equals no dedup_id.
    names = [place if message.dedup_id is None else message.dedup_id for place, message in enumerate(messages)]
    given = [name for name in names if isinstance(name, str)]
    known: dict[str | int, int] = dict(
        work.all(
            "SELECT dedup_id, message_id FROM dedup WHERE queue_id = ? AND forget_at > ? "
            "AND dedup_id IN (SELECT value FROM json_each(?))",
            (queue.id, work.now, json.dumps(given, ensure_ascii=False)),
        )
    )
    fresh: dict[str | int, NewMessage] = {}
    for name, message in zip(names, messages, strict=True):
        if name not in known:
            fresh.setdefault(name, message)
    stored = dict(zip(fresh, _insert(work, queue, list(fresh.values())) if fresh else (), strict=True))
    work.execute(
        "INSERT OR REPLACE INTO dedup (queue_id, dedup_id, message_id, forget_at) "
        "SELECT ?, value->>0, value->>1, ? FROM json_each(?)",
        (
            queue.id,
            work.now + round(queue.settings.dedup_window * 1000),
            json.dumps([item for item in stored.items() if isinstance(item[0], str)], ensure_ascii=False),
        ),
    )
    ids = [known.get(name) or stored[name] for name in names]
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return Sent(ids, [place for place, name in enumerate(names) if name in known or first[name] < place])


def _insert(work: Work, queue: QueueRow, messages: Sequence[NewMessage]) -> list[int]:
    queue = _make_room(work, queue, messages)
    states: list[int] = []
    last = 0
    for stretch in _stretches(queue, messages):
        if isinstance(stretch, NewRun):
            last = runs.pack(work, queue, stretch)
            states += [READY] * len(stretch)
        else:
            rows = [_row(work, queue, message) for message in stretch]
            states += [row[0] for row in rows]
            _insert_rows(work, queue, rows)
            last = work.connection.last_insert_rowid()
    work.count(queue, sent=len(messages), bytes=size_of(messages), **by_state(states))
    if not isinstance(messages, NewRun):
        work.promote(queue, {message.key for message in messages if message.key is not None}, ready_since=0)
    return list(range(last - len(messages) + 1, last + 1))


def _stretches(queue: QueueRow, messages: Sequence[NewMessage]) -> Iterator[NewRun | list[NewMessage]]:
    """The messages in order, cut into those that are packed and those that get rows of their own."""
    if queue.settings.delay or len(messages) < runs.SHORTEST:
        yield list(messages)
    elif isinstance(messages, NewRun):
        yield messages
    else:
        alone: list[NewMessage] = []
        for form, group in groupby(messages, plain_form):
            stretch = list(group)
            if form is None or len(stretch) < runs.SHORTEST:
                alone += stretch
                continue
            if alone:
                yield alone
                alone = []
            yield NewRun.of_messages(stretch)
        if alone:
            yield alone


def _make_room(work: Work, queue: QueueRow, messages: Sequence[NewMessage]) -> QueueRow:
    if work.nearly_full:
        raise DiskFull
    if queue.settings.max_messages is None and queue.settings.max_bytes is None:
        return queue
    count, size = len(messages), size_of(messages)
    if _excess(queue, count, size):  # what has expired by now leaves its place; of very much, upkeep goes on with it
        bring_up_to_date(work, queue)
        clear_out(work, work.queue(queue.name), CHUNK)
        queue = work.queue(queue.name)
    if excess := _excess(queue, count, size):
        raise excess
    return queue


def _excess(queue: QueueRow, count: int, size: int) -> QueueFull | None:
    """Return the limit that so many more messages, of so many bytes, would exceed."""
    settings = queue.settings
    if settings.max_messages is not None and queue.messages + count > settings.max_messages:
        return QueueFull(queue.name, "max_messages", settings.max_messages, queue.messages, count)
    if settings.max_bytes is not None and queue.bytes + size > settings.max_bytes:
        return QueueFull(queue.name, "max_bytes", settings.max_bytes, queue.bytes, size)
    return None


def _row(work: Work, queue: QueueRow, message: NewMessage) -> tuple[Any, ...]:
    delay = round(queue.settings.delay * 1000) if message.delay is None else message.delay
    due_at = work.now + delay if delay else 0
    # One with a key starts blocked, and is promoted at once if it turns out to be the key's first.
    state = BLOCKED if message.key is not None else DELAYED if due_at else READY
    expires_at = None if message.ttl is None else work.now + message.ttl
    return state, message.priority, message.recipient, message.key, due_at, expires_at, message.fields, message.text


def _insert_rows(work: Work, queue: QueueRow, rows: list[tuple[Any, ...]]) -> None:
    columns = "queue_id, sent_at, state, priority, recipient, key, due_at, expires_at, fields, text"
    if len(rows) == 1:
        work.execute(
            f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (queue.id, work.now, *rows[0]),
        )
        return
    work.execute(
        f"INSERT INTO messages ({columns}) "
        "SELECT ?, ?, value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7 "
        "FROM json_each(?)",
        (queue.id, work.now, json.dumps(rows, ensure_ascii=False)),
    )
