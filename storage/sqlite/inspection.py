"""Reading without changes: messages, queues and their counts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from heapq import merge
from operator import itemgetter
from typing import Any

import apsw

from storage.clock import Clock
from storage.codec import read_settings, with_dead_letter_history
from storage.errors import QueueNotFound
from storage.model import STATES, Message, Queue, QueueSettings, QueueStats, State
from storage.size_budget import SizeBudget
from storage.sqlite import column_batches
from storage.sqlite.expiry import find_cutoff
from storage.sqlite.transaction import ARRIVED, SIZE_READ, QueueRow, WriteTransaction, int_array
from storage.store import MAX_LOOKED, MAX_LOOKED_BYTES, Peek, Peeked, Reasons

MAX_DEAD_LETTER_QUEUES = 100  # dead-letter queues that are searched for one queue's dead letters
MAX_SCANNED = 100_000  # messages that one search for the oldest ready one reads at most
MAX_ID = (1 << 63) - 1

_MESSAGE = "id, text, fields, deaths, sent_at, receive_count, due_at, state, first_received_at, holder"


Looked = tuple[int, int, bool, Any]  # a message's id and size, whether it matches, and if it is packed its row


def peek(connection: apsw.Connection, clock: Clock, name: str, ask: Peek, reserved: int) -> Peeked:
    """Return messages of a queue. Raises LargeRead for more than the `reserved` bytes, as SizeBudget does."""
    with connection, ExitStack() as stack:  # one snapshot, because batches may be unpacked meanwhile
        work = WriteTransaction(connection, clock)
        queue = work.find_queue(name)
        if queue is None:
            return Peeked()
        sources = [stack.enter_context(closing(source)) for source in _sources(work, queue, ask)]
        ids, rows, next = _choose(merge(*sources, key=itemgetter(0), reverse=_is_newest(ask)), ask, reserved)
        if ids:
            which = f"SELECT {_MESSAGE} FROM messages WHERE id IN carray(?)"
            rows |= {row[0]: row for row in work.all(which, (int_array(ids),))}
        is_dead = ask.state is State.DEAD
        places = _places(work, name, ids) if is_dead else dict.fromkeys(ids, name)
    return Peeked((_message(clock, places[id], rows[id], is_dead) for id in ids), next)


def _places(work: WriteTransaction, name: str, ids: Sequence[int]) -> dict[int, str]:
    """Return in which queue each of these dead letters lies."""
    names = dead_letter_queues(work.connection, name)
    rows = work.all("SELECT id, queue_id FROM messages WHERE id IN carray(?)", (int_array(ids),)) if ids else []
    return {id: names[number] for id, number in rows}


def reasons(connection: apsw.Connection, name: str) -> Reasons:
    """Return the reasons of the newest dead letters in a queue, or from it. Raises QueueNotFound."""
    with connection, ExitStack() as stack:
        queue_id: int | None = connection.execute("SELECT id FROM queues WHERE name = ?", (name,)).get
        if queue_id is None:
            raise QueueNotFound(name)
        places = [
            (queue_id, "origin IS NOT NULL"),
            *((id, "origin = ?2") for id in dead_letter_queues(connection, name)),
        ]
        columns = "id, octet_length(deaths), deaths ->> '$[#-1].dead_letter_reason', deaths ->> '$[#-1].dead_letter_at'"
        sources: list[Any] = [
            connection.execute(
                f"SELECT {columns} FROM messages WHERE queue_id = ?1 AND {which} ORDER BY id DESC LIMIT ?3",
                (number, name, MAX_LOOKED + 1),
            )
            for number, which in places
        ]
        for source in sources:
            stack.enter_context(closing(source))
        deaths: list[tuple[str, str]] = []
        size = 0
        for _, length, reason, at in merge(*sources, reverse=True):
            if len(deaths) == MAX_LOOKED or size >= MAX_LOOKED_BYTES:
                return Reasons.of(deaths, complete=False)
            deaths.append((reason, at))
            size += length
    return Reasons.of(deaths, complete=True)


def dead_letter_queues(connection: apsw.Connection, name: str) -> dict[int, str]:
    """Return the ids and names of the queues that have dead letters from this one."""
    rows: Any = connection.execute(
        """
        WITH RECURSIVE known(id) AS (
            SELECT min(queue_id) FROM messages WHERE origin = ?1
             UNION ALL
            SELECT (SELECT min(queue_id) FROM messages WHERE origin = ?1 AND queue_id > known.id)
              FROM known WHERE id IS NOT NULL)
        SELECT queues.id, queues.name
          FROM known JOIN queues ON queues.id = known.id WHERE queues.name IS NOT NULL LIMIT ?2
        """,
        (name, MAX_DEAD_LETTER_QUEUES),
    )
    return dict(rows)


def names(connection: apsw.Connection, prefix: str, after: str, limit: int) -> list[str]:
    """Return names of queues, in order. No name has a character above "z"."""
    rows: list[Any] = connection.execute(
        "SELECT name FROM queues WHERE name > ?1 AND name >= ?2 AND name < ?2 || '{' ORDER BY name LIMIT ?3",
        (after, prefix, limit),
    ).fetchall()
    return [row[0] for row in rows]


def identity(connection: apsw.Connection) -> bytes:
    found: bytes = connection.execute("SELECT bytes FROM identity").get
    return found


def settings(connection: apsw.Connection, name: str) -> QueueSettings:
    """Return a queue's settings. Raises QueueNotFound."""
    found: str | None = connection.execute("SELECT settings FROM queues WHERE name = ?", (name,)).get
    if found is None:
        raise QueueNotFound(name)
    return read_settings(found)


def sources(connection: apsw.Connection, queue: str, after: str, limit: int) -> list[str]:
    """Return names of queues that have this dead-letter queue, in order."""
    rows: list[Any] = connection.execute(
        "SELECT name FROM queues WHERE coalesce(settings ->> 'dead_letter_queue', substr(name, 1, 75) || '.dead') = ? "
        "AND name > ? ORDER BY name LIMIT ?",
        (queue, after, limit),
    ).fetchall()
    return [row[0] for row in rows]


def describe(connection: apsw.Connection, clock: Clock, names: Sequence[str], scanned: dict[int, int]) -> list[Queue]:
    """Return the existing ones of these queues.

    `scanned` caches for each queue an id: no message up to it is ready for the first time, now or later, so the search
    for the oldest ready message skips it.
    """
    connection.execute("BEGIN")  # one snapshot
    try:
        found = [_describe(connection, clock, name, scanned) for name in names]
    finally:
        connection.execute("COMMIT")
    return [queue for queue in found if queue is not None]


def _describe(connection: apsw.Connection, clock: Clock, name: str, scanned: dict[int, int]) -> Queue | None:
    row: Any = connection.execute(
        "SELECT id, version, settings, created_at, modified_at, ready, leased, delayed, blocked, "
        "bytes, sent, received, acked, expired, dead_lettered FROM queues WHERE name = ?",
        (name,),
    ).get
    if row is None:
        return None
    number, version, settings, created_at, modified_at, ready, leased, delayed, blocked, *totals = row
    dead = sum(
        connection.execute(
            "SELECT count(*) FROM messages WHERE origin = ? AND queue_id = ?", (name, dead_letter_queue)
        ).get
        for dead_letter_queue in dead_letter_queues(connection, name)
    )
    age = 0.0
    if ready and not read_settings(settings).paused:
        work = WriteTransaction(connection, clock)
        since = _ready_since(work, name, number, scanned)
        age = 0.0 if since is None else max(0, work.now - since) / 1000
    counts = QueueStats(ready, leased, delayed, blocked, dead, age, *totals)
    return Queue(name, version, read_settings(settings), counts, clock.wall(created_at), clock.wall(modified_at))


def _ready_since(work: WriteTransaction, name: str, number: int, scanned: dict[int, int]) -> int | None:
    """Return when the oldest ready message became ready, None if none is ready."""
    cutoff = find_cutoff(work, work.queue(name))
    moments = [
        work.execute("SELECT min(due_at) FROM messages WHERE queue_id = ? AND state = 0 AND due_at > 0", (number,)).get,
        work.execute(
            f"SELECT min(iif(due_at, due_at, sent_at)) FROM runs {column_batches.READY_BATCHES} AND sent_at > ?2",
            (number, cutoff.moment),
        ).get,
    ]
    rows = work.execute(
        f"SELECT id, state = 0 AND due_at = 0, {ARRIVED} FROM messages WHERE queue_id = ? AND id > ? "
        "ORDER BY id LIMIT ?",
        (number, max(cutoff.id, scanned.get(number, 0)), MAX_SCANNED),
    )
    for id, is_fresh, arrived in rows:
        if is_fresh:
            moments.append(arrived)
            break
        scanned[number] = id
    rows.close()
    return min((moment for moment in moments if moment is not None), default=None)


def _sources(work: WriteTransaction, queue: QueueRow, ask: Peek) -> Iterator[Generator[Looked]]:
    """Yield for each place of such messages those to look at, in order of id."""
    state = None if ask.state in (None, State.DEAD) else STATES.index(ask.state)
    bounds = [ask.after, MAX_ID if ask.before is None else ask.before]
    if ask.state is State.DEAD:
        for dead_letter_queue in dead_letter_queues(work.connection, queue.name):
            values = {"queue": dead_letter_queue, "origin": queue.name}
            yield _singles(work, "queue_id = :queue AND origin = :origin", values, bounds, state, ask)
        return
    cutoff = find_cutoff(work, queue)
    if ask.state is not State.LEASED:  # only leased messages before the limit of retention are shown
        bounds[0] = max(ask.after, cutoff.id)
    which = "queue_id = :queue"
    if ask.reason is not None:
        which += " AND origin IS NOT NULL"
    elif ask.key is not None:
        which += " AND key = :key"
    yield _singles(work, which, {"queue": queue.id}, bounds, state, ask)
    if ask.key is None and ask.reason is None:
        yield _packed(work, queue, (bounds[0], bounds[1], cutoff.moment), state, ask)


def _singles(
    work: WriteTransaction, which: str, values: dict[str, Any], bounds: Sequence[int], state: int | None, ask: Peek
) -> Generator[Looked]:
    """Yield the messages of `which` in these bounds. A search also yields those that do not match, to count them."""
    matches = {
        "state = :state": state,
        "key = :key": ask.key,
        "instr(text, :text)": ask.text,
        "deaths ->> '$[#-1].dead_letter_reason' = :reason": ask.reason,
    }
    condition = " AND ".join(sql for sql, value in matches.items() if value is not None) or "true"
    which, shown = (which, condition) if ask.is_search else (f"{which} AND {condition}", "true")
    rows = work.execute(
        f"SELECT id, {SIZE_READ}, {shown} FROM messages WHERE {which} AND id > :after AND id < :before "
        f"ORDER BY id {'DESC' if _is_newest(ask) else ''} LIMIT {MAX_LOOKED if ask.is_search else ask.limit}",
        values | ask._asdict() | {"after": bounds[0], "before": bounds[1], "state": state},
    )
    with closing(rows):
        for id, size, matching in rows:
            yield id, size, bool(matching), None


def _packed(
    work: WriteTransaction, queue: QueueRow, bounds: tuple[int, int, int], state: int | None, ask: Peek
) -> Generator[Looked]:
    with closing(column_batches.peek(work.connection, queue.id, bounds, state, _is_newest(ask))) as rows:
        for row, size in rows:
            yield row[0], size, ask.text is None or ask.text in row[1], row


def _choose(found: Iterable[Looked], ask: Peek, reserved: int) -> tuple[list[int], dict[int, Any], int | None]:
    """Return the ids to show, the rows of packed ones, and where the next peek continues."""
    ids: list[int] = []
    packed: dict[int, Any] = {}
    budget, size, last = SizeBudget(reserved), 0, None
    for looked, (id, length, matching, row) in enumerate(found, 1):
        if ask.is_search and size >= MAX_LOOKED_BYTES:
            break
        if matching:
            if not budget.add(length):
                return ids, packed, last
            ids.append(id)
            if row is not None:
                packed[id] = row
                budget.check()  # its text is in memory
        size, last = size + length, id
        if len(ids) == ask.limit or (ask.is_search and looked == MAX_LOOKED):
            break
    else:
        last = None
    budget.check()
    return ids, packed, last


def _is_newest(ask: Peek) -> bool:
    return ask.before is not None


def _message(clock: Clock, queue: str, row: Any, dead: bool) -> Message:
    number, text, fields, deaths, sent_at, count, due_at, state_number, received_at, holder = row
    is_leased = STATES[state_number] == State.LEASED
    return Message(
        number, queue, text, with_dead_letter_history(fields, deaths), clock.wall(sent_at), count,
        leased_until=clock.wall(due_at) if is_leased else None,
        state=State.DEAD if dead else State(STATES[state_number]),
        first_received_at=None if received_at is None else clock.wall(received_at),
        deaths=deaths, leased_by=holder if is_leased else None,
    )  # fmt: skip
