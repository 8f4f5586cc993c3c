"""Runs: batches of plain messages, packed many in a row of the database.

Sent, leased and settled whole, as batches mostly are, a run costs little more than one message. Whatever wants less
than the whole of it, or treats one of its messages in a way of its own, has it unpacked first into a row for each
message; so nothing but this module, and what counts or lists messages, knows of runs.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

import apsw

from storage.model import Message, NewMessage, Receipt, total_size
from storage.sqlite_work import CHUNK, LEASED, READY, QueueRow, Room, Work, int_array

LONGEST = 100  # messages: as many may have to be unpacked for the sake of one; and a few more at a batch's end
SHORTEST = 8  # messages: fewer are as well off in rows of their own
LARGEST = 64 * 1024  # characters …
LARGEST_MESSAGE = LARGEST // (2 * SHORTEST)  # … and of one message, so that no run is too short

_json = json.JSONEncoder(ensure_ascii=False).encode


class Run(NamedTuple):
    id: int
    length: int  # messages
    bytes: int
    receive_count: int
    token: int | None
    queue_id: int

    @property
    def ids(self) -> range:
        return range(self.id, self.id + self.length)


_RUN = "id, count, bytes, receive_count, token, queue_id"
# Unless it is told, SQLite takes the index of all runs, and walks over those that are leased.
_READY = "INDEXED BY deliverable_runs WHERE queue_id = ? AND state = 0"


def packable(queue: QueueRow, message: NewMessage) -> bool:
    """Whether it is as plain as the messages of a run: it has its place by its id, and no time of its own."""
    return message[2:7] == _PLAIN and queue.settings.retention is None and _length(message) <= LARGEST_MESSAGE


_PLAIN = NewMessage("")[2:7]  # key, priority, recipient, delay, ttl


def pack(work: Work, queue: QueueRow, messages: Sequence[NewMessage]) -> int:
    """Stores packable messages, in order and ready, as runs; the last one's id. Counting them is the caller's."""
    last: int = work.execute(
        "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'messages' RETURNING seq", (len(messages),)
    ).get
    first = last - len(messages) + 1
    rows = []
    for run in _cut(messages):
        fields = [message.fields for message in run]
        rows.append(
            (
                first,
                queue.id,
                len(run),
                total_size(run),
                work.now,
                _json(fields) if any(fields) else None,
                _json([message.text for message in run]),
            )
        )
        first += len(run)
    work.connection.executemany(
        "INSERT INTO runs (id, queue_id, count, bytes, sent_at, fields, texts) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
    )
    return last


def take(work: Work, queue: QueueRow, limit: int, recipient: str, lease: int | None, room: Room) -> list[Message]:
    """The runs that come before all other messages, as far as the reader takes them whole: leased or (None) removed.

    When it would take more, what it may want of the next runs is unpacked.
    """
    if recipient:
        return []
    runs = _select(work, f"{_READY} ORDER BY id LIMIT ?", queue.id, limit // SHORTEST + 1)
    if not runs:
        return []
    chosen = list(_whole(runs, _other(work, queue, 1), limit, room))
    left, rest = limit - _messages(chosen), runs[len(chosen) :]
    most = queue.settings.max_receives or 2**63 - 1  # who has been received that often is buried instead
    if left and rest and not room.full and not _comes_before(_other(work, queue, left, most), rest[0]):
        _unpack(work, _holding(rest, left))
    if not chosen:
        return []
    return _take_away(work, queue, chosen) if lease is None else _lease(work, queue, chosen, lease)


def whole(work: Work, receipts: Sequence[Receipt]) -> tuple[list[tuple[QueueRow, list[Run]]], Sequence[Receipt]]:
    """The runs, by queue, of which these are all receipts; and the receipts that are left."""
    if len(receipts) < SHORTEST:
        return [], receipts
    deliveries: dict[tuple[str, int], set[int]] = {}
    for receipt in receipts:
        deliveries.setdefault((receipt.queue, receipt.token), set()).add(receipt.id)
    found: list[tuple[QueueRow, list[Run]]] = []
    for (name, token), ids in deliveries.items():
        queue = work.find_queue(name) if len(ids) >= SHORTEST else None
        if queue is not None:
            runs = [
                run
                for run in _containing(work, ids)
                if run.token == token and run.queue_id == queue.id and ids.issuperset(run.ids)
            ]
            found.append((queue, runs))
    settled = {(queue.name, number, run.token) for queue, runs in found for run in runs for number in run.ids}
    return found, [receipt for receipt in receipts if receipt not in settled]


def settle(work: Work, queue: QueueRow, runs: Sequence[Run]) -> None:
    _delete(work, queue, runs, acked=_messages(runs))


def unpack_held(work: Work, deliveries: Collection[tuple[int, int, int | None]]) -> dict[int, int]:
    """The runs in which one of these deliveries (queue_id, id, token) holds have become rows.

    Of those in which none does, though they have one of the messages: their messages' ids, with the queue's.
    """
    elsewhere: dict[int, int] = {}
    for run in _containing(work, {number for _, number, _ in deliveries}):
        if any((run.queue_id, number, run.token) in deliveries for number in run.ids):
            _unpack(work, [run])
        else:
            elsewhere.update(dict.fromkeys(run.ids, run.queue_id))
    return elsewhere


def unpack_spent(work: Work, queue: QueueRow, most_receives: int) -> None:
    """The ready runs that have been received so often, of which return_due leaves none, have become rows.

    So a ready run can always be given out.
    """
    _unpack(work, _select(work, f"{_READY} AND receive_count >= ?", queue.id, most_receives))


def unpack_all(work: Work, queue: QueueRow) -> None:
    """Each message of the queue has a row of its own."""
    _unpack(work, _select(work, "WHERE queue_id = ?", queue.id))


def return_due(work: Work, queue: QueueRow) -> bool:
    """Runs whose lease has ended are ready again, those received too often unpacked; True when more are left."""
    most = CHUNK // LONGEST
    ended = "WHERE queue_id = ? AND state = 1 AND due_at <= ? ORDER BY due_at LIMIT ?"
    due = _select(work, ended, queue.id, work.now, most)
    most_receives = queue.settings.max_receives
    spent = [run for run in due if most_receives and run.receive_count >= most_receives]
    _unpack(work, spent)
    back = [run for run in due if run not in spent]
    if back:
        work.execute("UPDATE runs SET state = 0, due_at = 0 WHERE id IN carray(?)", (_ids(back),))
        count = _messages(back)
        work.count(queue, ready=count, leased=-count)
    return len(due) == most


def purge(work: Work, queue: QueueRow, last: int) -> int:
    """Removes a chunk of the runs that begin up to id `last`; how many messages."""
    return _delete(work, queue, _some(work, queue.id, last))


def clear(work: Work, queue_id: int) -> bool:
    """Removes a chunk of a disowned queue's runs; False when there were none."""
    runs = _some(work, queue_id, 2**63 - 1)
    if runs:
        work.execute("DELETE FROM runs WHERE id IN carray(?)", (_ids(runs),))
    return bool(runs)


def peek(
    connection: apsw.Connection, queue: str, limit: int, after: int, state: int | None
) -> dict[int, tuple[Any, ...]]:
    """The first messages in runs with an id above `after`, by id, as rows of what `messages` has of them:

    id, text, fields, death (they have none), sent_at, receive_count, due_at, state.
    """
    rows: list[Any] = connection.execute(
        f"""
        SELECT id, sent_at, receive_count, due_at, state, texts, coalesce(fields, '[]')
          FROM runs
         WHERE queue_id = (SELECT id FROM queues WHERE name = ?1)
           AND id > ?2 - {LONGEST + SHORTEST} AND id + count - 1 > ?2 AND (?3 IS NULL OR state = ?3)
         ORDER BY id
         LIMIT ?4
        """,
        (queue, after, state, limit // SHORTEST + 2),
    ).fetchall()
    found = (
        (number, text, fields, None, sent_at, count, due_at, at)
        for first, sent_at, count, due_at, at, texts, all_fields in rows
        for number, text, fields in unpacked(first, texts, all_fields)
        if number > after
    )
    return {row[0]: row for row in islice(found, limit)}


def unpacked(first: int, texts: str, fields: str) -> Iterable[tuple[int, str, str | None]]:
    """Each message's id, text and fields."""
    known: list[str] = json.loads(texts)
    return zip(range(first, first + len(known)), known, json.loads(fields) or repeat(None))  # noqa: B905


def _cut(messages: Sequence[NewMessage]) -> Iterator[Sequence[NewMessage]]:
    start, size = 0, 0
    for place in range(len(messages) - SHORTEST + 1):  # a rest that is too short goes with what is before it
        if place - start >= LONGEST or size >= LARGEST:
            yield messages[start:place]
            start, size = place, 0
        size += _length(messages[place])
    yield messages[start:]


def _length(message: NewMessage) -> int:
    """Its characters."""
    return len(message.text) + (0 if message.fields is None else len(message.fields))


def _other(work: Work, queue: QueueRow, place: int, below: int = 2**63 - 1) -> tuple[int, int] | None:
    """Priority and id of the message at this place (from 1) among those in rows of their own that are ready.

    Those that have been received `below` times or more have no place.
    """
    row: tuple[int, int] | None = work.execute(
        "SELECT priority, id FROM messages WHERE queue_id = ? AND recipient = '' AND state = 0 "
        "AND receive_count < ? ORDER BY priority DESC, id LIMIT 1 OFFSET ?",
        (queue.id, below, place - 1),
    ).get
    return row


def _comes_before(other: tuple[int, int] | None, run: Run) -> bool:
    return other is not None and (other[0] > 0 or other[1] < run.id)


def _whole(runs: Iterable[Run], other: tuple[int, int] | None, limit: int, room: Room) -> Iterator[Run]:
    for run in runs:
        if _comes_before(other, run):
            return
        if run.length > limit or not room.holds(run.bytes):
            return
        limit -= run.length
        yield run


def _holding(runs: Iterable[Run], count: int) -> list[Run]:
    """The first of the runs, until they have `count` messages."""
    chosen = []
    for run in runs:
        if count <= 0:
            break
        chosen.append(run)
        count -= run.length
    return chosen


def _take_away(work: Work, queue: QueueRow, runs: Sequence[Run]) -> list[Message]:
    rows = work.all(
        "SELECT id, sent_at, receive_count + 1, texts, coalesce(fields, '[]') FROM runs "
        "WHERE id IN carray(?) ORDER BY id",
        (_ids(runs),),
    )
    _delete(work, queue, runs, received=_messages(runs))
    ahead = work.wall(0)
    return [
        Message(number, queue.name, text, fields, sent_at + ahead, count)
        for first, sent_at, count, texts, all_fields in rows
        for number, text, fields in unpacked(first, texts, all_fields)
    ]


def _lease(work: Work, queue: QueueRow, runs: Sequence[Run], lease: int) -> list[Message]:
    token, until = secrets.randbits(63) | 1, work.now + lease
    rows = work.all(
        "UPDATE runs SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1 WHERE id IN carray(?) "
        "RETURNING id, sent_at, receive_count, texts, coalesce(fields, '[]')",
        (token, until, _ids(runs)),
    )
    count = _messages(runs)
    work.count(queue, ready=-count, leased=count, received=count)
    ahead = work.wall(0)
    before, _, behind = str(Receipt(queue.name, 0, token)).partition("~0~")
    return [
        Message(
            number, queue.name, text, fields, sent_at + ahead, count, f"{before}~{number}~{behind}", until + ahead
        )
        for first, sent_at, count, texts, all_fields in sorted(rows)
        for number, text, fields in unpacked(first, texts, all_fields)
    ]  # fmt: skip


def _delete(work: Work, queue: QueueRow, runs: Sequence[Run], **totals: int) -> int:
    """The runs are gone; how many messages that was."""
    if not runs:
        return 0
    states = work.all(
        "DELETE FROM runs WHERE id IN carray(?) RETURNING state, count, bytes",
        (_ids(runs),),
    )
    work.count(
        queue,
        ready=-sum(count for state, count, _ in states if state == READY),
        leased=-sum(count for state, count, _ in states if state == LEASED),
        bytes=-sum(size for *_, size in states),
        **totals,
    )
    return sum(count for _, count, _ in states)


def _unpack(work: Work, runs: Collection[Run]) -> None:
    if not runs:
        return
    ids = _ids(runs)
    work.execute(
        """
        INSERT INTO messages (id, queue_id, state, due_at, token, receive_count, sent_at, fields, text)
        SELECT runs.id + item.key, queue_id, state, due_at, token, receive_count, sent_at,
               runs.fields ->> item.key, item.value
          FROM runs, json_each(runs.texts) AS item
         WHERE runs.id IN carray(?)
        """,
        (ids,),
    )
    work.execute("DELETE FROM runs WHERE id IN carray(?)", (ids,))


def _containing(work: Work, ids: Iterable[int]) -> list[Run]:
    """The runs that have one of these messages."""
    found: list[Run] = []
    end = 0
    for number in sorted(ids):
        if number < end:
            continue
        for run in _select(work, "WHERE id <= ? ORDER BY id DESC LIMIT 1", number):
            if number in run.ids:
                found.append(run)
                end = run.ids.stop
    return found


def _some(work: Work, queue_id: int, last: int) -> list[Run]:
    """As many of a queue's runs as one transaction may remove."""
    return _select(work, "WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?", queue_id, last, CHUNK // LONGEST)


def _select(work: Work, which: str, *values: int) -> list[Run]:
    """Runs, by the end of a SELECT."""
    return [Run(*row) for row in work.all(f"SELECT {_RUN} FROM runs {which}", values)]


def _ids(runs: Iterable[Run]) -> Any:
    """Bound as one value, for `IN carray(?)`."""
    return int_array([run.id for run in runs])


def _messages(runs: Iterable[Run]) -> int:
    """How many they hold."""
    return sum(run.length for run in runs)
