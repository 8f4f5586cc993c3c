"""Column batches in the database: many plain messages packed in one row.

Sending, leasing, extending or settling a whole batch costs little more than one message. An operation on a part of a
batch first unpacks it into a row for each message.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, pairwise, repeat, starmap
from typing import Any, NamedTuple

import apsw

from storage.column_batches import ColumnBatch, NewColumnBatch, unpack_columns
from storage.model import CHUNK_BYTES, STATES, Receipt
from storage.sqlite.transaction import LEASED, QueueRow, WriteTransaction, int_array

LONGEST = 100  # messages in a batch (the last has a few more): one of them may cause the unpacking of all
SHORTEST = 8  # messages in a batch: for fewer, rows of their own cost the same
LARGEST = 64 * 1024  # characters of text, about
UNLIMITED = 1 << 62


class Lease(NamedTuple):
    length: int  # ms
    holder: str | None  # as Message.leased_by


class BatchRow(NamedTuple):
    id: int
    length: int  # messages
    size: int  # bytes, as in NewColumnBatch
    receive_count: int
    token: int | None
    queue_id: int
    sent_at: int
    state: int
    due_at: int
    read_size: int  # bytes of its columns, as a read returns them

    def is_leased(self, now: int) -> bool:
        """Return whether the lease has not ended."""
        return self.state == LEASED and self.due_at > now

    @property
    def ids(self) -> range:
        return range(self.id, self.id + self.length)

    @property
    def priority(self) -> int:
        return 0

    def receipts(self, queue: QueueRow) -> Iterable[Receipt]:
        """Return a receipt for each message, of the last delivery."""
        return map(Receipt, repeat(queue.name), self.ids, repeat(self.token or 0))


_READ_SIZE = "octet_length(texts) + coalesce(octet_length(attributes), 0)"
_BATCH = f"id, count, bytes, receive_count, token, queue_id, sent_at, state, due_at, {_READ_SIZE}"
# SQL. Without INDEXED BY, SQLite uses the index of all batches and walks over leased ones.
READY_BATCHES = "INDEXED BY deliverable_runs WHERE queue_id = ?1 AND state = 0"


def pack(work: WriteTransaction, queue: QueueRow, batch: NewColumnBatch) -> int:
    """Store the messages, in order and ready, as batches; return the last id. The caller counts them."""
    last: int = work.execute(
        "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'messages' RETURNING seq", (len(batch),)
    ).get
    first = last - len(batch) + 1
    rows = []
    for piece in _split(batch):
        rows.append((first, queue.id, len(piece), piece.size, work.now, *piece.columns()))
        first += len(piece)
    work.connection.executemany(
        "INSERT INTO runs (id, queue_id, count, bytes, sent_at, texts, attributes) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
    )
    return last


def ready(work: WriteTransaction, queue: QueueRow, recipient: str | None, after: int = -1) -> Generator[BatchRow]:
    """Yield the batches that this reader can take, in order, that arrived after a time."""
    if recipient:
        return
    rows = work.execute(
        f"SELECT {_BATCH} FROM runs {READY_BATCHES} AND sent_at > ?2 AND receive_count < ?3 ORDER BY id",
        (queue.id, after, queue.settings.max_receives or UNLIMITED),
    )
    with closing(rows):  # the caller may not read to the end
        yield from map(BatchRow._make, rows)


def select_ready(work: WriteTransaction, queue: QueueRow, limit: int, receives: int = 0) -> list[BatchRow]:
    """Return the first ready batches with at least so many receives."""
    return _select(work, f"{READY_BATCHES} AND receive_count >= ?2 ORDER BY id LIMIT ?3", queue.id, receives, limit)


def match_receipts(
    work: WriteTransaction, receipts: Collection[Receipt]
) -> tuple[list[tuple[QueueRow, BatchRow]], list[Receipt]]:
    """Return the batches that one of these receipts covers, and the other receipts, each split into single messages."""
    spans = [r for r in receipts if r.length > 1]
    if not spans:
        return [], list(receipts)
    rest = dict.fromkeys(r for r in receipts if r.length == 1)
    known = {batch.id: batch for batch in _select(work, "WHERE id IN carray(?)", int_array([r.id for r in spans]))}
    found: dict[int, tuple[QueueRow, BatchRow]] = {}
    for span in spans:
        queue, batch = work.find_queue(span.queue), known.get(span.id)
        if queue and batch and (batch.queue_id, batch.token, batch.length) == (queue.id, span.token, span.length):
            found[batch.id] = queue, batch
        else:
            rest |= dict.fromkeys(span.each())
    # Drop receipts of single messages in a batch that is settled whole.
    settled = {receipt for queue, batch in found.values() for receipt in batch.receipts(queue)} if rest else ()
    return list(found.values()), [r for r in rest if r not in settled]


def containing(work: WriteTransaction, ids: Iterable[int]) -> dict[int, BatchRow]:
    """Return the batch of each of these messages that is in one."""
    found: dict[int, BatchRow] = {}
    numbers = sorted(ids)
    place = 0
    while place < len(numbers):
        end = place + 1
        for batch in _select(work, "WHERE id <= ? ORDER BY id DESC LIMIT 1", numbers[place]):
            if numbers[place] in batch.ids:
                end = bisect_left(numbers, batch.ids.stop)
                found |= dict.fromkeys(numbers[place:end], batch)
        place = end
    return found


def extend(work: WriteTransaction, queue: QueueRow, batch: BatchRow, until: int) -> None:
    """Set the lease of a batch to end at `until`, also one that has expired."""
    work.execute("UPDATE runs SET state = 1, due_at = ? WHERE id = ?", (until, batch.id))
    was = STATES[batch.state]
    work.count(queue, **{was: -batch.length, "leased": batch.length} if was != "leased" else {})


def unpack(work: WriteTransaction, queue: QueueRow, batches: Collection[BatchRow]) -> None:
    """Give each message of these batches a row of its own."""
    if not batches:
        return
    ids = _ids(batches)
    rows = [
        (number, *rest, fields, text)
        for first, texts, attributes, *rest in work.all(
            # A ready one keeps since when: it comes after later rows, which the oldest one is looked for behind.
            "SELECT id, texts, attributes, queue_id, state, iif(state = 0 AND due_at = 0, sent_at, due_at), token, "
            "receive_count, sent_at, first_received_at, holder FROM runs WHERE id IN carray(?)",
            (ids,),
        )
        for number, text, fields in unpack_columns(first, texts, attributes)
    ]
    work.connection.executemany(
        "INSERT INTO messages (id, queue_id, state, due_at, token, receive_count, sent_at, first_received_at, holder, "
        "fields, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    work.execute("DELETE FROM runs WHERE id IN carray(?)", (ids,))
    work.lower_swept(queue, min(batch.id for batch in batches))


def return_due(work: WriteTransaction, queue: QueueRow) -> bool:
    """Make batches with expired leases ready again, and unpack spent ones; return whether more are left."""
    most = max(1, work.budget // LONGEST)
    ended = "WHERE queue_id = ? AND state = 1 AND due_at <= ? ORDER BY due_at LIMIT ?"
    due = _select(work, ended, queue.id, work.now, most)
    most_receives = queue.settings.max_receives
    spent = [batch for batch in due if most_receives and batch.receive_count >= most_receives]
    unpack(work, queue, spent)
    back = [batch for batch in due if batch not in spent]
    if back:
        work.execute("UPDATE runs SET state = 0 WHERE id IN carray(?)", (_ids(back),))
        count = count_messages(back)
        work.count(queue, ready=count, leased=-count)
        work.swept.discard(queue.id)
    work.budget = max(0, work.budget - count_messages(back))  # the unpacked ones are counted later
    return len(due) == most


def purge(work: WriteTransaction, queue: QueueRow, last: int, most: int) -> int:
    """Remove some of the batches that begin up to id `last`, newest first; return the number of messages."""
    return remove(work, queue, _newest(work, queue.id, last, most))


def clear(work: WriteTransaction, queue_id: int, most: int) -> bool:
    """Remove some of a deleted queue's batches; return False if it had none."""
    batches = _newest(work, queue_id, UNLIMITED, most)
    if batches:
        work.execute("DELETE FROM runs WHERE id IN carray(?)", (_ids(batches),))
    return bool(batches)


def peek(
    connection: apsw.Connection, queue_id: int, bounds: tuple[int, int, int], state: int | None, newest: bool
) -> Generator[tuple[tuple[Any, ...], int]]:
    """Yield the messages in batches, in order of id, as rows of the columns that a peek selects, and their sizes.

    `bounds` selects ids between the first two, and messages that arrived after the third or are leased. A row has id,
    text, fields, deaths (None), sent_at, receive_count, due_at, state, first_received_at, holder.
    """
    after, before, moment = bounds
    rows: Any = connection.execute(
        f"""
        SELECT id, texts, attributes, sent_at, receive_count, due_at, state, first_received_at, holder
          FROM runs
         WHERE queue_id = ?1 AND id > ?2 - {LONGEST + SHORTEST} AND id < ?3 AND id + count - 1 > ?2
           AND (?4 IS NULL OR state = ?4) AND (state = 1 OR sent_at > ?5)
         ORDER BY id {"DESC" if newest else ""}
        """,
        (queue_id, after, before, state, moment),
    )
    with closing(rows):
        for first, texts, attributes, *rest in rows:
            for number, text, fields in list(unpack_columns(first, texts, attributes))[:: -1 if newest else 1]:
                if after < number < before:
                    row = (number, text, fields, None, *rest)
                    yield row, len(text.encode()) + len((fields or "").encode())


def _split(batch: NewColumnBatch) -> Iterator[NewColumnBatch]:
    # Messages too few for a last batch go to the one before it.
    if batch.longest * LONGEST <= LARGEST:
        starts = range(0, max(1, len(batch) - SHORTEST + 1), LONGEST)
        yield from starmap(batch.cut, pairwise([*starts, len(batch)]))
        return
    lengths = list(accumulate(batch.lengths()))  # cumulative
    start = 0
    while start < len(batch):
        before = lengths[start - 1] if start else 0
        end = min(start + LONGEST, bisect_left(lengths, before + LARGEST) + 1)
        if len(batch) - end < SHORTEST:
            end = len(batch)
        yield batch.cut(start, end)
        start = end


def take(work: WriteTransaction, queue: QueueRow, batches: Sequence[BatchRow]) -> dict[int, ColumnBatch]:
    """Remove these batches and return them, by their first id."""
    rows = work.all(
        "SELECT id, count, texts, attributes, sent_at, receive_count + 1 FROM runs WHERE id IN carray(?)",
        (_ids(batches),),
    )
    remove(work, queue, batches, received=count_messages(batches))
    ahead = work.ahead
    return {
        first: ColumnBatch(first, count, queue.name, texts, attributes, sent_at + ahead, receive_count)
        for first, count, texts, attributes, sent_at, receive_count in rows
    }


def lease(work: WriteTransaction, queue: QueueRow, batches: Sequence[BatchRow], lease: Lease) -> dict[int, ColumnBatch]:
    """Lease these batches and return them, by their first id."""
    token, until = secrets.randbits(63) | 1, work.now + lease.length
    rows = work.all(
        "UPDATE runs SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1, "
        "first_received_at = coalesce(first_received_at, ?), holder = ? WHERE id IN carray(?) "
        "RETURNING id, count, texts, attributes, sent_at, receive_count, first_received_at",
        (token, until, work.now, lease.holder, _ids(batches)),
    )
    work.note_lease(queue, until)
    count = count_messages(batches)
    work.count(queue, ready=-count, leased=count, received=count)
    ahead = work.ahead
    return {
        first: ColumnBatch(
            first, count, queue.name, texts, attributes, sent_at + ahead, receive_count, token, until + ahead,
            received_at + ahead,
        )
        for first, count, texts, attributes, sent_at, receive_count, received_at in rows
    }  # fmt: skip


def size_leased_again(work: WriteTransaction, bounds: tuple[int, int, int, int]) -> int:
    """Return the bytes of the batches that `leased_again` returns."""
    return sum(
        row[0]
        for row in work.all(
            f"SELECT {_READ_SIZE} FROM runs WHERE queue_id = ? AND id BETWEEN ? AND ? AND token = ?", bounds
        )
    )


def leased_again(work: WriteTransaction, queue: QueueRow, bounds: tuple[int, int, int, int]) -> list[ColumnBatch]:
    """Return the batches of a queue's id, with ids between these two, that have this token."""
    ahead = work.ahead
    return [
        ColumnBatch(
            first, count, queue.name, texts, attributes, sent_at + ahead, receive_count, token, due_at + ahead,
            received_at and received_at + ahead,
        )
        for first, count, texts, attributes, sent_at, receive_count, token, due_at, received_at in work.all(
            "SELECT id, count, texts, attributes, sent_at, receive_count, token, due_at, first_received_at FROM runs "
            "WHERE queue_id = ? AND id BETWEEN ? AND ? AND token = ? ORDER BY id",
            bounds,
        )
    ]  # fmt: skip


def remove(work: WriteTransaction, queue: QueueRow, batches: Sequence[BatchRow], **totals: int) -> int:
    """Remove the batches; return the number of their messages."""
    if not batches:
        return 0
    rows = work.all("DELETE FROM runs WHERE id IN carray(?) RETURNING state, count, bytes", (_ids(batches),))
    by_state = {name: -sum(row[1] for row in rows if row[0] == state) for state, name in enumerate(STATES[:2])}
    work.count(queue, bytes=-sum(row[2] for row in rows), **by_state, **totals)
    return sum(row[1] for row in rows)


def count_messages(batches: Iterable[BatchRow]) -> int:
    """Return the number of messages in these batches."""
    return sum(batch.length for batch in batches)


def _newest(work: WriteTransaction, queue_id: int, last: int, most: int) -> list[BatchRow]:
    """Return the newest of a queue's batches up to `last`, as many as one transaction may remove."""
    chosen, size = [], 0
    for batch in _select(
        work, "WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?", queue_id, last, max(1, most // LONGEST)
    ):
        chosen.append(batch)
        size += batch.size
        if size > CHUNK_BYTES:
            break
    return chosen


def _select(work: WriteTransaction, which: str, *values: Any) -> list[BatchRow]:
    """Return the batches that the rest of a SELECT selects."""
    return [BatchRow(*row) for row in work.all(f"SELECT {_BATCH} FROM runs {which}", values)]


def _ids(batches: Iterable[BatchRow]) -> Any:
    """Bind their ids as one value, for `IN carray(?)`."""
    return int_array([batch.id for batch in batches])
