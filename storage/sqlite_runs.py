"""Runs as they lie in the database: batches of plain messages, packed many in a row.

Sent, leased and settled whole, as batches mostly are, a run costs little more than one message. A read that ends within
one splits it; whatever treats one of its messages in a way of its own has it unpacked first, into a row for each. So
nothing but this module, and what takes, counts or lists messages, knows of them.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, islice, pairwise, starmap
from typing import Any, NamedTuple

import apsw

from storage.model import Receipt
from storage.runs import NewRun, Run, unpacked
from storage.sqlite_work import CHUNK, LEASED, READY, QueueRow, Work, int_array

LONGEST = 100  # messages: as many may have to be unpacked for the sake of one; and a few more at a batch's end
SHORTEST = 8  # messages: fewer are as well off in rows of their own
LARGEST = 64 * 1024  # characters of text, about


class RunRow(NamedTuple):
    id: int
    length: int  # messages
    size: int  # bytes, as in NewRun
    receive_count: int
    token: int | None
    queue_id: int

    @property
    def ids(self) -> range:
        return range(self.id, self.id + self.length)

    @property
    def priority(self) -> int:
        return 0


_RUN = "id, count, bytes, receive_count, token, queue_id"
# Unless it is told, SQLite takes the index of all runs, and walks over those that are leased.
_READY = "INDEXED BY deliverable_runs WHERE queue_id = ? AND state = 0"


def pack(work: Work, queue: QueueRow, run: NewRun) -> int:
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


def ready(work: Work, queue: QueueRow, recipient: str) -> Generator[RunRow]:
    """The runs that can be given out to this reader, in order. None has been received too often: see unpack_spent."""
    if recipient:
        return
    rows = work.execute(f"SELECT {_RUN} FROM runs {_READY} ORDER BY id", (queue.id,))
    with closing(rows):  # it may not be read to its end
        yield from map(RunRow._make, rows)


def split(work: Work, run: RunRow, length: int) -> RunRow:
    """The first `length` messages of a ready run are one, the rest another; which is too short becomes rows."""
    texts, attributes = work.execute("SELECT texts, attributes FROM runs WHERE id = ?", (run.id,)).get
    whole = NewRun(json.loads(texts), None if attributes is None else json.loads(attributes))
    head, tail = whole.cut(0, length), whole.cut(length, run.length)
    work.execute(
        "INSERT INTO runs (id, queue_id, count, bytes, token, receive_count, sent_at, texts, attributes) "
        "SELECT id + ?, queue_id, ?, ?, token, receive_count, sent_at, ?, ? FROM runs WHERE id = ?",
        (length, len(tail), tail.size, *tail.columns(), run.id),
    )
    work.execute(
        "UPDATE runs SET count = ?, bytes = ?, texts = ?, attributes = ? WHERE id = ?",
        (len(head), head.size, *head.columns(), run.id),
    )
    first = run._replace(length=len(head), size=head.size)
    second = run._replace(id=run.id + length, length=len(tail), size=tail.size)
    unpack(work, [part for part in (first, second) if part.length < SHORTEST])
    return first


def whole(work: Work, receipts: Iterable[Receipt]) -> tuple[list[tuple[QueueRow, list[RunRow]]], list[Receipt]]:
    """The runs, by queue, that these are all receipts of; and the receipts that are left, each of one message."""
    receipts = dict.fromkeys(receipts)
    if len(receipts) < SHORTEST and all(one.length == 1 for one in receipts):
        return [], list(receipts)
    queues = {name: work.find_queue(name) for name in {one.queue for one in receipts}}
    rest = dict.fromkeys(one for one in receipts if one.length == 1)
    found: dict[int, RunRow] = {}
    for span, run in _spanned(work, [one for one in receipts if one.length > 1]):
        queue = queues[span.queue]
        if queue and run and (run.queue_id, run.token, run.length) == (queue.id, span.token, span.length):
            found[run.id] = run
        else:
            rest |= dict.fromkeys(span.each())
    for queue in filter(None, queues.values()):
        found |= _covered(work, queue, [one for one in rest if one.queue == queue.name])
    by_queue = [(queue, [r for r in found.values() if r.queue_id == queue.id]) for queue in queues.values() if queue]
    if rest:
        settled = {Receipt(queue.name, n, run.token or 0) for queue, runs in by_queue for run in runs for n in run.ids}
        return by_queue, [one for one in rest if one not in settled]
    return by_queue, []


def settle(work: Work, queue: QueueRow, runs: Sequence[RunRow]) -> int:
    """How many messages that was."""
    return _delete(work, queue, runs, acked=_messages(runs))


def unpack(work: Work, runs: Collection[RunRow]) -> None:
    """Each of their messages has a row of its own."""
    if not runs:
        return
    ids = _ids(runs)
    rows = [
        (number, *rest, fields, text)
        for first, texts, attributes, *rest in work.all(
            "SELECT id, texts, attributes, queue_id, state, due_at, token, receive_count, sent_at FROM runs "
            "WHERE id IN carray(?)",
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


def unpack_held(work: Work, deliveries: Collection[tuple[int, int, int | None]]) -> dict[int, int]:
    """The runs in which one of these deliveries (queue_id, id, token) holds have become rows.

    Of those in which none does, though they have one of the messages: their messages' ids, with the queue's.
    """
    elsewhere: dict[int, int] = {}
    for run in _containing(work, {number for _, number, _ in deliveries}):
        if any((run.queue_id, number, run.token) in deliveries for number in run.ids):
            unpack(work, [run])
        else:
            elsewhere.update(dict.fromkeys(run.ids, run.queue_id))
    return elsewhere


def unpack_spent(work: Work, queue: QueueRow, most_receives: int) -> None:
    """The ready runs that have been received so often, of which return_due leaves none, have become rows.

    So a ready run can always be given out.
    """
    _unpack_selected(work, f"{_READY} AND receive_count >= ?", queue.id, most_receives)


def unpack_all(work: Work, queue: QueueRow) -> None:
    """Each message of the queue has a row of its own."""
    _unpack_selected(work, "WHERE queue_id = ?", queue.id)


def _unpack_selected(work: Work, which: str, *values: int) -> None:
    """Some after the other, so that not all of a queue is in memory."""
    while some := _select(work, f"{which} LIMIT ?", *values, CHUNK // LONGEST):
        unpack(work, some)


def return_due(work: Work, queue: QueueRow) -> bool:
    """Runs whose lease has ended are ready again, those received too often unpacked; True when more are left."""
    most = CHUNK // LONGEST
    ended = "WHERE queue_id = ? AND state = 1 AND due_at <= ? ORDER BY due_at LIMIT ?"
    due = _select(work, ended, queue.id, work.now, most)
    most_receives = queue.settings.max_receives
    spent = [run for run in due if most_receives and run.receive_count >= most_receives]
    unpack(work, spent)
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
        SELECT id, sent_at, receive_count, due_at, state, texts, attributes
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
        for first, sent_at, count, due_at, at, texts, attributes in rows
        for number, text, fields in unpacked(first, texts, attributes)
        if number > after
    )
    return {row[0]: row for row in islice(found, limit)}


def _cut(run: NewRun) -> Iterator[NewRun]:
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


def take_away(work: Work, queue: QueueRow, runs: Sequence[RunRow]) -> dict[int, Run]:
    """By the id of its first message."""
    rows = work.all(
        "SELECT id, count, texts, attributes, sent_at, receive_count + 1 FROM runs WHERE id IN carray(?)",
        (_ids(runs),),
    )
    _delete(work, queue, runs, received=_messages(runs))
    ahead = work.wall(0)
    return {
        first: Run(first, count, queue.name, texts, attributes, sent_at + ahead, receive_count)
        for first, count, texts, attributes, sent_at, receive_count in rows
    }


def lease(work: Work, queue: QueueRow, runs: Sequence[RunRow], lease: int) -> dict[int, Run]:
    """By the id of its first message."""
    token, until = secrets.randbits(63) | 1, work.now + lease
    rows = work.all(
        "UPDATE runs SET state = 1, token = ?, due_at = ?, receive_count = receive_count + 1 WHERE id IN carray(?) "
        "RETURNING id, count, texts, attributes, sent_at, receive_count",
        (token, until, _ids(runs)),
    )
    count = _messages(runs)
    work.count(queue, ready=-count, leased=count, received=count)
    ahead = work.wall(0)
    return {
        first: Run(first, count, queue.name, texts, attributes, sent_at + ahead, receive_count, token, until + ahead)
        for first, count, texts, attributes, sent_at, receive_count in rows
    }


def _delete(work: Work, queue: QueueRow, runs: Sequence[RunRow], **totals: int) -> int:
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


def _spanned(work: Work, spans: Sequence[Receipt]) -> Iterator[tuple[Receipt, RunRow | None]]:
    """Each with the run that begins where it does."""
    if spans:
        known = {run.id: run for run in _select(work, "WHERE id IN carray(?)", int_array([one.id for one in spans]))}
        for span in spans:
            yield span, known.get(span.id)


def _covered(work: Work, queue: QueueRow, receipts: Sequence[Receipt]) -> dict[int, RunRow]:
    """The queue's runs, by id, of which every message has one of these receipts of single messages."""
    deliveries: dict[int, set[int]] = {}  # ids by token
    for one in receipts:
        deliveries.setdefault(one.token, set()).add(one.id)
    return {
        run.id: run
        for token, ids in deliveries.items()
        if len(ids) >= SHORTEST
        for run in _containing(work, ids)
        if (run.queue_id, run.token) == (queue.id, token) and ids.issuperset(run.ids)
    }


def _containing(work: Work, ids: Iterable[int]) -> list[RunRow]:
    """The runs that have one of these messages."""
    found: list[RunRow] = []
    end = 0
    for number in sorted(ids):
        if number < end:
            continue
        for run in _select(work, "WHERE id <= ? ORDER BY id DESC LIMIT 1", number):
            if number in run.ids:
                found.append(run)
                end = run.ids.stop
    return found


def _some(work: Work, queue_id: int, last: int) -> list[RunRow]:
    """As many of a queue's runs as one transaction may remove."""
    return _select(work, "WHERE queue_id = ? AND id <= ? ORDER BY id DESC LIMIT ?", queue_id, last, CHUNK // LONGEST)


def _select(work: Work, which: str, *values: Any) -> list[RunRow]:
    """Runs, by the end of a SELECT."""
    return [RunRow(*row) for row in work.all(f"SELECT {_RUN} FROM runs {which}", values)]


def _ids(runs: Iterable[RunRow]) -> Any:
    """Bound as one value, for `IN carray(?)`."""
    return int_array([run.id for run in runs])


def _messages(runs: Iterable[RunRow]) -> int:
    """How many they hold."""
    return sum(run.length for run in runs)
