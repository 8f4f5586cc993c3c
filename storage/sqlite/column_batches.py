"""Column batches in the database: many plain messages packed in one row.

Sending, leasing, extending or settling a whole batch costs little more than one message. An operation on a part of a
batch first unpacks it into a row for each message.
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

LONGEST = 100  # messages in a batch (the last has a few more): one of them may cause the unpacking of all
SHORTEST = 8  # messages in a batch: for fewer, rows of their own cost the same
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
    brings: int  # bytes of its columns, as a read returns them

    @property
    def ids(self) -> range:
        return range(self.id, self.id + self.length)

    @property
    def priority(self) -> int:
        return 0


_BRINGS = "octet_length(texts) + coalesce(octet_length(attributes), 0)"
_BATCH = f"id, count, bytes, receive_count, token, queue_id, sent_at, {_BRINGS}"
# SQL. Without INDEXED BY, SQLite uses the index of all batches and walks over leased ones.
READY_BATCHES = "INDEXED BY deliverable_runs WHERE queue_id = ?1 AND state = 0"


def pack(work: WriteTransaction, queue: QueueRow, run: NewColumnBatch) -> int:
    """Store the messages, in order and ready, as batches; return the last id. The caller counts them."""
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
    """Yield the batches that this reader can take, in order, that arrived after a time."""
    if recipient:
        return
    rows = work.execute(
        f"SELECT {_BATCH} FROM runs {READY_BATCHES} AND sent_at > ?2 AND receive_count < ?3 ORDER BY id",
        (queue.id, after, queue.settings.max_receives or MANY),
    )
    with closing(rows):  # the caller may not read to the end
        yield from map(BatchRow._make, rows)


def select_ready(work: WriteTransaction, queue: QueueRow, limit: int, receives: int = 0) -> list[BatchRow]:
    """Return the first ready batches with at least so many receives."""
    return _select(work, f"{READY_BATCHES} AND receive_count >= ?2 ORDER BY id LIMIT ?3", queue.id, receives, limit)


def whole(work: WriteTransaction, receipts: Iterable[Receipt]) -> tuple[list[tuple[QueueRow, BatchRow]], list[Receipt]]:
    """Return the batches that one of these receipts covers, and the other receipts, each split into single messages."""
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
    # Drop receipts of single messages in a batch that is settled whole.
    settled = {Receipt(queue.name, n, run.token or 0) for queue, run in found.values() for n in run.ids} if rest else ()
    return list(found.values()), [one for one in rest if one not in settled]


def containing(work: WriteTransaction, ids: Iterable[int]) -> dict[int, BatchRow]:
    """Return the batch of each of these messages that is in one."""
    found: dict[int, BatchRow] = {}
    last: BatchRow | None = None
    for number in sorted(ids):
        if last is None or number not in last.ids:
            last = next(iter(_select(work, "WHERE id <= ? ORDER BY id DESC LIMIT 1", number)), None)
        if last is not None and number in last.ids:
            found[number] = last
    return found


def extend(work: WriteTransaction, queue: QueueRow, run: BatchRow, until: int) -> None:
    """Set the lease of a batch to end at `until`, also one that has expired."""
    was = work.execute("SELECT state FROM runs WHERE id = ?", (run.id,)).get
    work.execute("UPDATE runs SET state = 1, due_at = ? WHERE id = ?", (until, run.id))
    work.count(queue, **{STATES[was]: -run.length, "leased": run.length} if STATES[was] != "leased" else {})


def unpack(work: WriteTransaction, queue: QueueRow, runs: Collection[BatchRow]) -> None:
    """Give each message of these batches a row of its own."""
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
    """Make batches with expired leases ready again, and unpack spent ones; return whether more are left."""
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
    work.budget = max(0, work.budget - count_messages(back))  # the unpacked ones are counted later
    return len(due) == most


def purge(work: WriteTransaction, queue: QueueRow, last: int, most: int) -> int:
    """Remove some of the batches that begin up to id `last`, newest first; return the number of messages."""
    return remove(work, queue, _some(work, queue.id, last, most))


def clear(work: WriteTransaction, queue_id: int, most: int) -> bool:
    """Remove some of a deleted queue's batches; return False if it had none."""
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
    """Return the first (or the newest) messages in batches, by id, as rows of the columns that a peek selects.

    `bounds` selects ids between the first two, and messages that arrived after the third or are leased. A row has id,
    text, fields, deaths (None), sent_at, receive_count, due_at, state. Raises LargeRead, as SizeBudget.check does.
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
    # Messages too few for a last batch go to the one before it.
    if run.longest * LONGEST <= LARGEST:
        starts = range(0, max(1, len(run) - SHORTEST + 1), LONGEST)
        yield from starmap(run.cut, pairwise([*starts, len(run)]))
        return
    lengths = list(accumulate(run.lengths()))  # cumulative
    start = 0
    while start < len(run):
        before = lengths[start - 1] if start else 0
        end = min(start + LONGEST, bisect_left(lengths, before + LARGEST) + 1)
        if len(run) - end < SHORTEST:
            end = len(run)
        yield run.cut(start, end)
        start = end


def take_away(work: WriteTransaction, queue: QueueRow, runs: Sequence[BatchRow]) -> dict[int, ColumnBatch]:
    """Remove these batches and return them, by their first id."""
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
    """Lease these batches and return them, by their first id."""
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
    """Return the bytes of the batches that `leased_again` returns."""
    return sum(
        row[0]
        for row in work.all(
            f"SELECT {_BRINGS} FROM runs WHERE queue_id = ? AND id BETWEEN ? AND ? AND token = ?", bounds
        )
    )


def leased_again(work: WriteTransaction, queue: QueueRow, bounds: tuple[int, int, int, int]) -> list[ColumnBatch]:
    """Return the batches of a queue's id, with ids between these two, that have this token."""
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
    """Remove the batches; return the number of their messages."""
    if not runs:
        return 0
    rows = work.all("DELETE FROM runs WHERE id IN carray(?) RETURNING state, count, bytes", (_ids(runs),))
    by_state = {name: -sum(row[1] for row in rows if row[0] == state) for state, name in enumerate(STATES[:2])}
    work.count(queue, bytes=-sum(row[2] for row in rows), **by_state, **totals)
    return sum(row[1] for row in rows)


def count_messages(runs: Iterable[BatchRow]) -> int:
    """Return the number of messages in these batches."""
    return sum(run.length for run in runs)


def _some(work: WriteTransaction, queue_id: int, last: int, most: int) -> list[BatchRow]:
    """Return the newest of a queue's batches up to `last`, as many as one transaction may remove."""
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
    """Return the batches that the rest of a SELECT selects."""
    return [BatchRow(*row) for row in work.all(f"SELECT {_BATCH} FROM runs {which}", values)]


def _ids(runs: Iterable[BatchRow]) -> Any:
    """Bind their ids as one value, for `IN carray(?)`."""
    return int_array([run.id for run in runs])
