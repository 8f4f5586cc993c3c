"""Runs as they lie in the database: batches of plain messages, packed many in a row.

Sent, leased, extended and settled whole, by its own receipt, a run costs little more than one message. Whatever treats
one of its messages in a way of its own, or reads a part of it, unpacks it first, into a row for each.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, pairwise, starmap
from typing import Any, NamedTuple

import apsw

from storage.column_batches import ColumnBatch, NewColumnBatch, unpacked
from storage.model import CHUNK_BYTES, STATES, Receipt
from storage.size_budget import SizeBudget
from storage.sqlite.transaction import QueueRow, WriteTransaction, int_array

LONGEST = 100  # messages: as many may have to be unpacked for the sake of one; and a few more at a batch's end
SHORTEST = 8  # messages: fewer are as well off in rows of their own
LARGEST = 64 * 1024  # characters of text, about
MANY = 1 << 62


class BatchRow(NamedTuple):
    id: int
    length: int  # messages
    size: int  # bytes, as in NewColumnBatch
    receive_count: int
    token: int | None
    queue_id: int
    sent_at: int
    brings: int  # bytes of its columns, which a read gets

    @property
    def ids(self) -> range:
        return range(self.id, self.id + self.length)

    @property
    def priority(self) -> int:
        return 0


_BRINGS = "octet_length(texts) + coalesce(octet_length(attributes), 0)"
_BATCH = f"id, count, bytes, receive_count, token, queue_id, sent_at, {_BRINGS}"
# SQL. Unless it is told, SQLite takes the index of all runs, and walks over those that are leased.
READY_BATCHES = "INDEXED BY deliverable_runs WHERE queue_id = ?1 AND state = 0"


def pack(work: WriteTransaction, queue: QueueRow, run: NewColumnBatch) -> int:
    """Stores the messages, in order and ready, as runs; the last one's id. Counting them is the caller's."""
    last: int = work.execute(
        "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'messages' RETURNING seq", (len(run),)
    ).get
    first = last - len(run) + 1
    rows = []
    for piece in _cut(run):
        rows.append((first, queue.id, len(piece), piece.size, work.now, *piece.columns()))
        first += len(piece)
    work.connection.executemany(
        "INSERT INTO runs (id, queue_id, count, bytes, sent_at, texts, attributes) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
    )
    return last


def ready(work: WriteTransaction, queue: QueueRow, recipient: str | None, after: int = -1) -> Generator[BatchRow]:
    """The runs that can be given out to this reader, in order: those that arrived after a moment."""
    if recipient:
        return
    rows = work.execute(
        f"SELECT {_BATCH} FROM runs {READY_BATCHES} AND sent_at > ?2 AND receive_count < ?3 ORDER BY id",
        (queue.id, after, queue.settings.max_receives or MANY),
    )
    with closing(rows):  # it may not be read to its end
        yield from map(BatchRow._make, rows)


def select_ready(work: WriteTransaction, queue: QueueRow, limit: int, receives: int = 0) -> list[BatchRow]:
    """The first ready runs, of those that have been received so often."""
    return _select(work, f"{READY_BATCHES} AND receive_count >= ?2 ORDER BY id LIMIT ?3", queue.id, receives, limit)


def whole(work: WriteTransaction, receipts: Iterable[Receipt]) -> tuple[list[tuple[QueueRow, BatchRow]], list[Receipt]]:
    """The runs of which one of these is the receipt; and for all other receipts one of each message."""
    spans = [one for one in receipts if one.length > 1]
    rest = dict.fromkeys(one for one in receipts if one.length == 1)
    if not spans:
        return [], list(rest)
    known = {run.id: run for run in _select(work, "WHERE id IN carray(?)", int_array([one.id for one in spans]))}
    found: dict[int, tuple[QueueRow, BatchRow]] = {}
    for span in spans:
        queue, run = work.find_queue(span.queue), known.get(span.id)
        if queue and run and (run.queue_id, run.token, run.length) == (queue.id, span.token, span.length):
            found[run.id] = queue, run
        else:
            rest |= dict.fromkeys(span.each())
    # A receipt of one message of a run that is dealt with whole says nothing more.
    settled = {Receipt(queue.name, n, run.token or 0) for queue, run in found.values() for n in run.ids} if rest else ()
    return list(found.values()), [one for one in rest if one not in settled]


def containing(work: WriteTransaction, ids: Iterable[int]) -> dict[int, BatchRow]:
    """The run that each of these messages is in, of those that are in one."""
    found: dict[int, BatchRow] = {}
    last: BatchRow | None = None
    for number in sorted(ids):
        if last is None or number not in last.ids:
            last = next(iter(_select(work, "WHERE id <= ? ORDER BY id DESC LIMIT 1", number)), None)
        if last is not None and number in last.ids:
            found[number] = last
    return found


def extend(work: WriteTransaction, queue: QueueRow, run: BatchRow, until: int) -> None:
    """The lease of all of it ends then; one that had ended holds again."""
    was = work.execute("SELECT state FROM runs WHERE id = ?", (run.id,)).get
    work.execute("UPDATE runs SET state = 1, due_at = ? WHERE id = ?", (until, run.id))
    work.count(queue, **{STATES[was]: -run.length, "leased": run.length} if STATES[was] != "leased" else {})


def unpack(work: WriteTransaction, queue: QueueRow, runs: Collection[BatchRow]) -> None:
    """Each message of these runs of the queue has a row of its own."""
    if not runs:
        return
    ids = _ids(runs)
    rows = [
        (number, *rest, fields, text)
        for first, texts, attributes, *rest in work.all(
            # A ready one keeps since when: it comes after later rows, which the oldest one is looked for behind.
            "SELECT id, texts, attributes, queue_id, state, iif(state = 0 AND due_at = 0, sent_at, due_at), token, "
            "receive_count, sent_at FROM runs WHERE id IN carray(?)",
            (ids,),
        )
        for number, text, fields in unpacked(first, texts, attributes)
    ]
    work.connection.executemany(
        "INSERT INTO messages (id, queue_id, state, due_at, token, receive_count, sent_at, fields, text) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    work.execute("DELETE FROM runs WHERE id IN carray(?)", (ids,))
    work.lower_swept(queue, min(run.id for run in runs))


def return_due(work: WriteTransaction, queue: QueueRow) -> bool:
    """Runs whose lease has ended are ready again, those received too often unpacked; True when more are left."""
    most = max(1, work.budget // LONGEST)
    ended = "WHERE queue_id = ? AND state = 1 AND due_at <= ? ORDER BY due_at LIMIT ?"
    due = _select(work, ended, queue.id, work.now, most)
    most_receives = queue.settings.max_receives
    spent = [run for run in due if most_receives and run.receive_count >= most_receives]
    unpack(work, queue, spent)
    back = [run for run in due if run not in spent]
    if back:
        work.execute("UPDATE runs SET state = 0 WHERE id IN carray(?)", (_ids(back),))
        count = count_messages(back)
        work.count(queue, ready=count, leased=-count)
        work.swept.discard(queue.id)
    work.budget = max(0, work.budget - count_messages(back))  # those that were unpacked come next
    return len(due) == most


def purge(work: WriteTransaction, queue: QueueRow, last: int, most: int) -> int:
    """Removes some of the runs that begin up to id `last`, the newest first; how many messages."""
    return remove(work, queue, _some(work, queue.id, last, most))


def clear(work: WriteTransaction, queue_id: int, most: int) -> bool:
    """Removes some of a disowned queue's runs; False when there were none."""
    runs = _some(work, queue_id, MANY, most)
    if runs:
        work.execute("DELETE FROM runs WHERE id IN carray(?)", (_ids(runs),))
    return bool(runs)


def peek(
    connection: apsw.Connection,
    queue_id: int,
    limit: int,
    bounds: tuple[int, int, int],
    state: int | None,
    newest: bool,
    reserved: int,
) -> dict[int, tuple[Any, ...]]:
    """The first (or the newest) messages in runs, by id, as rows of what `messages` has of them.

    `bounds`: those with an id between the first two, that arrived after the third or are leased. Of each row: id, text,
    fields, deaths (they have none), sent_at, receive_count, due_at, state. Raises LargeRead, see Room.
    """
    after, before, moment = bounds
    found: list[tuple[Any, ...]] = []
    room = SizeBudget(reserved)
    rows: Any = connection.execute(
        f"""
        SELECT {_BRINGS}, id, sent_at, receive_count, due_at, state, texts, attributes
          FROM runs
         WHERE queue_id = ?1 AND id > ?2 - {LONGEST + SHORTEST} AND id < ?3 AND id + count - 1 > ?2
           AND (?4 IS NULL OR state = ?4) AND (state = 1 OR sent_at > ?5)
         ORDER BY id {"DESC" if newest else ""}
        """,
        (queue_id, after, before, state, moment),
    )
    with closing(rows):
        for size, first, sent_at, count, due_at, at, texts, attributes in rows:
            if len(found) >= limit or not room.holds(size):
                break
            room.check()
            found += (
                (number, text, fields, None, sent_at, count, due_at, at)
                for number, text, fields in (list(unpacked(first, texts, attributes))[:: -1 if newest else 1])
                if after < number < before
            )
    return {row[0]: row for row in found[:limit]}


def _cut(run: NewColumnBatch) -> Iterator[NewColumnBatch]:
    # A rest that is too short goes with what is before it.
    if run.longest * LONGEST <= LARGEST:
        starts = range(0, max(1, len(run) - SHORTEST + 1), LONGEST)
        yield from starmap(run.cut, pairwise([*starts, len(run)]))
        return
    lengths = list(accumulate(run.lengths()))  # of each and all before it
    start = 0
    while start < len(run):
        before = lengths[start - 1] if start else 0
        end = min(start + LONGEST, bisect_left(lengths, before + LARGEST) + 1)
        if len(run) - end < SHORTEST:
            end = len(run)
        yield run.cut(start, end)
        start = end


def take_away(work: WriteTransaction, queue: QueueRow, runs: Sequence[BatchRow]) -> dict[int, ColumnBatch]:
    """By the id of its first message."""
    rows = work.all(
        "SELECT id, count, texts, attributes, sent_at, receive_count + 1 FROM runs WHERE id IN carray(?)",
        (_ids(runs),),
    )
    remove(work, queue, runs, received=count_messages(runs))
    ahead = work.wall(0)
    return {
        first: ColumnBatch(first, count, queue.name, texts, attributes, sent_at + ahead, receive_count)
        for first, count, texts, attributes, sent_at, receive_count in rows
    }


def lease(work: WriteTransaction, queue: QueueRow, runs: Sequence[BatchRow], lease: int) -> dict[int, ColumnBatch]:
    """By the id of its first message."""
    token, until = secrets.randbits(63) | 1, work.now + lease
    rows = work.all(
        "UPDATE runs SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1 WHERE id IN carray(?) "
        "RETURNING id, count, texts, attributes, sent_at, receive_count",
        (token, until, _ids(runs)),
    )
    count = count_messages(runs)
    work.count(queue, ready=-count, leased=count, received=count)
    ahead = work.wall(0)
    return {
        first: ColumnBatch(
            first, count, queue.name, texts, attributes, sent_at + ahead, receive_count, token, until + ahead
        )
        for first, count, texts, attributes, sent_at, receive_count in rows
    }


def size_leased_again(work: WriteTransaction, bounds: tuple[int, int, int, int]) -> int:
    """Bytes of what `leased_again` finds."""
    return sum(
        row[0]
        for row in work.all(
            f"SELECT {_BRINGS} FROM runs WHERE queue_id = ? AND id BETWEEN ? AND ? AND token = ?", bounds
        )
    )


def leased_again(work: WriteTransaction, queue: QueueRow, bounds: tuple[int, int, int, int]) -> list[ColumnBatch]:
    """The runs of a queue's id with ids between these two that were leased by this token."""
    ahead = work.wall(0)
    return [
        ColumnBatch(first, count, queue.name, texts, attributes, sent_at + ahead, receive_count, token, due_at + ahead)
        for first, count, texts, attributes, sent_at, receive_count, token, due_at in work.all(
            "SELECT id, count, texts, attributes, sent_at, receive_count, token, due_at FROM runs "
            "WHERE queue_id = ? AND id BETWEEN ? AND ? AND token = ? ORDER BY id",
            bounds,
        )
    ]


def remove(work: WriteTransaction, queue: QueueRow, runs: Sequence[BatchRow], **totals: int) -> int:
    """The runs are gone; how many messages that was."""
    if not runs:
        return 0
    rows = work.all("DELETE FROM runs WHERE id IN carray(?) RETURNING state, count, bytes", (_ids(runs),))
    by_state = {name: -sum(row[1] for row in rows if row[0] == state) for state, name in enumerate(STATES[:2])}
    work.count(queue, bytes=-sum(row[2] for row in rows), **by_state, **totals)
    return sum(row[1] for row in rows)


def count_messages(runs: Iterable[BatchRow]) -> int:
    """How many messages they hold."""
    return sum(run.length for run in runs)


def _some(work: WriteTransaction, queue_id: int, last: int, most: int) -> list[BatchRow]:
    """The newest of a queue's runs up to `last`, as many as one transaction may remove."""
    chosen, size = [], 0
    for run in _select(
        work, "WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?", queue_id, last, max(1, most // LONGEST)
    ):
        chosen.append(run)
        size += run.size
        if size > CHUNK_BYTES:
            break
    return chosen


def _select(work: WriteTransaction, which: str, *values: Any) -> list[BatchRow]:
    """Runs, by the end of a SELECT."""
    return [BatchRow(*row) for row in work.all(f"SELECT {_BATCH} FROM runs {which}", values)]


def _ids(runs: Iterable[BatchRow]) -> Any:
    """Bound as one value, for `IN carray(?)`."""
    return int_array([run.id for run in runs])
