"""One SQLite transaction on the queues: the changes of state every verb is made of.

Whatever changes the state of a message goes through here, together with the counts of it in its queue's row.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import apsw

from storage.clock import Clock
from storage.errors import IdempotencyMismatch, QueueNotFound
from storage.kept import read_settings
from storage.model import MAX_READ_BYTES, Once, QueueSettings, rfc3339

READY, LEASED, DELAYED, BLOCKED = range(4)
STATES = ("ready", "leased", "delayed", "blocked")
LIVING = "queue_id IN (SELECT id FROM queues WHERE name IS NOT NULL)"  # SQL: not of a queue that is being cleared
CHUNK = 10_000  # rows one transaction moves at most in work without a bound of its own, so that no other waits long

_TOTALS = ("bytes", "sent", "received", "acked", "expired", "dead_lettered")
_COUNTED = {name: place for place, name in enumerate(STATES + _TOTALS)}
_COUNT = f"UPDATE queues SET {', '.join(f'{name} = {name} + ?' for name in _COUNTED)} WHERE id = ?"


class QueueRow(NamedTuple):
    id: int
    name: str
    settings: QueueSettings
    messages: int
    bytes: int

    @property
    def dead_letter_queue(self) -> str:
        # A name of 80 characters that ends so already would else be its own.
        return self.settings.dead_letter_queue or f"{self.name[: 75 if self.name[75:] != '.dead' else 70]}.dead"


class Room:
    """The bytes of text one read may bring. Its first message finds room whatever its size."""

    def __init__(self, most: int = MAX_READ_BYTES) -> None:
        self.full = False
        self._most = most
        self._size = 0
        self._empty = True

    def holds(self, size: int) -> bool:
        """Whether a message of this size comes along; after the first that does not the room is full."""
        self._size += size
        self.full = self.full or (not self._empty and self._size > self._most)
        self._empty = False
        return not self.full


class Work:
    """One transaction. `now` is its time; `woken` gathers the queues in which something became ready.

    What its operations need again and again is looked up once, and their counts are written once: `write_counts`.
    """

    def __init__(self, connection: apsw.Connection, clock: Clock, nearly_full: bool = False) -> None:
        self.connection = connection
        self.nearly_full = nearly_full
        self.execute = connection.execute
        self.now = clock.now()
        self.wall = clock.wall
        self.woken: set[str] = set()
        self.up_to_date: set[int] = set()  # queues that have nothing left to be done by `now`
        self._queues: dict[str, QueueRow] = {}
        self._counts: dict[int, list[int]] = {}  # what is to be added, by queue
        self._counted = 0

    @property
    def changes(self) -> tuple[int, int]:
        """The same as before, as long as nothing was changed."""
        return self.connection.total_changes(), self._counted

    def write_counts(self) -> None:
        for queue_id, counts in self._counts.items():
            self.execute(_COUNT, (*counts, queue_id))
        self._counts.clear()

    def forget(self) -> None:
        """The transaction goes on from an earlier state: counts that were not written are gone."""
        self.up_to_date.clear()
        self._queues.clear()
        self._counts.clear()

    def forget_queue(self, queue: QueueRow) -> None:
        """Its row was changed by another way than `count`, or what falls due in it."""
        self.write_counts()
        self.up_to_date.discard(queue.id)
        self._queues.pop(queue.name, None)

    def all(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """All rows at once: a cursor left open would hold the transaction, and RETURNING has no order anyway."""
        return self.execute(sql, values).fetchall()

    # -- queues

    def queue(self, name: str) -> QueueRow:
        found = self.find_queue(name)
        if found is None:
            raise QueueNotFound(name)
        return found

    def find_queue(self, name: str) -> QueueRow | None:
        found = self._queues.get(name)
        if found is None:
            row = self.execute(
                "SELECT id, settings, ready + leased + delayed + blocked, bytes FROM queues WHERE name = ?", (name,)
            ).get
            if row is not None:
                found = self._queues[name] = QueueRow(row[0], name, read_settings(row[1]), row[2], row[3])
        return found

    def queue_for_writing(self, name: str) -> QueueRow:
        """The queue, which comes into being if it was not there."""
        found = self.find_queue(name)
        if found is None:
            self.execute("INSERT INTO queues (name) VALUES (?)", (name,))
            found = QueueRow(self.connection.last_insert_rowid(), name, QueueSettings(), 0, 0)
            self._queues[name] = found
        return found

    def count(self, queue: QueueRow, **changes: int) -> None:
        """Adds to the queue's counts of states and its totals."""
        if changes.get("ready", 0) > 0:
            self.woken.add(queue.name)
        self._counted += 1
        counts = self._counts.setdefault(queue.id, [0] * len(_COUNTED))
        for name, change in changes.items():
            counts[_COUNTED[name]] += change
        known = self._queues.get(queue.name)
        if known is not None and known.id == queue.id:
            messages = known.messages + sum([changes[state] for state in STATES if state in changes])
            size = known.bytes + changes.get("bytes", 0)
            self._queues[queue.name] = QueueRow(known.id, known.name, known.settings, messages, size)

    # -- idempotency

    def once(self, queue_id: int, once: Once | None, window: float, do: Callable[[], Any]) -> Any:
        """What `do` returned (a JSON value) the first time this key was used within `window` seconds."""
        if once is None:
            return do()
        known = self.execute(
            "SELECT fingerprint, reply FROM replies WHERE queue_id = ? AND key = ? AND forget_at > ?",
            (queue_id, once.key, self.now),
        ).get
        if known is not None:
            if known[0] != once.fingerprint:
                raise IdempotencyMismatch
            return json.loads(known[1])
        reply = do()
        if reply:  # an empty read has done nothing, so asking again may find something
            self.execute(
                "INSERT OR REPLACE INTO replies (queue_id, key, fingerprint, reply, forget_at) VALUES (?, ?, ?, ?, ?)",
                (queue_id, once.key, once.fingerprint, json.dumps(reply), self.now + round(window * 1000)),
            )
        return reply

    def expiry(self, queue: QueueRow, ttl: int | None) -> int | None:
        retention = queue.settings.retention
        limits = [limit for limit in (ttl, None if retention is None else round(retention * 1000)) if limit is not None]
        return self.now + min(limits) if limits else None

    # -- changes of state

    def give_back(self, queue: QueueRow, ids: Sequence[int], keys: Collection[str], due_at: int = 0) -> None:
        """Leased or delayed messages wait for delivery again, from `due_at` on; `keys` are theirs.

        One with a key waits blocked until the key's other leases are settled too (promote sees to that).
        """
        if not ids:
            return
        self.up_to_date.discard(queue.id)  # what was leased does not expire; now it may have
        was = Counter(self.all("SELECT state FROM messages WHERE id IN carray(?)", (int_array(ids),)))
        rows = self.all(
            "UPDATE messages SET state = iif(key IS NOT NULL, 3, iif(?1 > 0, 2, 0)), due_at = ?1 "
            "WHERE id IN carray(?2) RETURNING state",
            (due_at, int_array(ids)),
        )
        now = Counter(rows)
        self.count(queue, **{name: now[(state,)] - was[(state,)] for state, name in enumerate(STATES)})
        self.promote(queue, keys)

    def remove(self, queue: QueueRow, ids: Sequence[int], **totals: int) -> list[tuple[Any, ...]]:
        """The messages are gone, and the next of their keys take their places.

        Returns rows of id, text, fields, death, sent_at, receive_count, state, key and size, in no order.
        """
        if not ids:
            return []
        rows = self.all(
            "DELETE FROM messages WHERE id IN carray(?) RETURNING id, text, fields, death, sent_at, receive_count, "
            "state, key, octet_length(text) + coalesce(octet_length(fields), 0)",
            (int_array(ids),),
        )
        self.count(queue, bytes=-sum(row[8] for row in rows), **by_state([row[6] for row in rows], each=-1), **totals)
        self.promote(queue, {row[7] for row in rows if row[7] is not None})
        return rows

    def bury(self, queue: QueueRow, ids: Sequence[int], reason: str, **totals: int) -> None:
        """The messages move to the dead-letter queue, in order, with the story of their death and a fresh count."""
        if not ids:
            return
        grave = self.queue_for_writing(queue.dead_letter_queue)
        rows = self.all(
            """
            INSERT INTO messages (queue_id, sent_at, state, priority, recipient, key, expires_at,
                                  origin, death, fields, text)
            SELECT ?, sent_at, iif(key IS NULL, 0, 3), priority, recipient, key, ?, ?,
                   json_object('dead_letter_from', ?, 'dead_letter_reason', ?, 'dead_letter_at', ?,
                               'dead_letter_id', CAST(id AS TEXT), 'dead_letter_receive_count', receive_count),
                   fields, text
              FROM messages WHERE id IN carray(?) ORDER BY id
            RETURNING state, key, octet_length(text) + coalesce(octet_length(fields), 0)
            """,
            (grave.id, self.expiry(grave, None), queue.name, queue.name, reason,
             rfc3339(self.wall(self.now)), int_array(ids)),
        )  # fmt: skip
        self.arrived(grave, rows)
        self.remove(queue, ids, dead_lettered=len(ids), **totals)

    def arrived(self, queue: QueueRow, rows: list[tuple[Any, ...]]) -> None:
        states = Counter(row[0] for row in rows)
        self.count(queue, ready=states[READY], blocked=states[BLOCKED], bytes=sum(row[2] for row in rows))
        self.promote(queue, {row[1] for row in rows if row[1] is not None})

    def promote(self, queue: QueueRow, keys: Collection[str]) -> None:
        """The first message of each key becomes ready (or delayed, by its own delay) if none of the key is leased."""
        if not keys:
            return
        rows = self.all(
            """
            UPDATE messages SET state = iif(due_at > ?1, 2, 0)
             WHERE id IN (SELECT (SELECT min(id) FROM messages WHERE queue_id = ?2 AND key = wanted.value)
                            FROM json_each(?3) AS wanted)
               AND state = 3
               AND NOT EXISTS (SELECT 1 FROM messages AS other
                                WHERE other.queue_id = ?2 AND other.key = messages.key AND other.state = 1)
            RETURNING state
            """,
            (self.now, queue.id, json.dumps(list(keys), ensure_ascii=False)),
        )
        if rows:
            states = Counter(rows)
            self.count(queue, blocked=-len(rows), ready=states[(READY,)], delayed=states[(DELAYED,)])

    def block(self, queue: QueueRow, key: str) -> None:
        """The key's first message waits, unless it is leased itself: one behind it has come to be leased again."""
        state: int | None = self.execute(
            "SELECT state FROM messages WHERE id = (SELECT min(id) FROM messages WHERE queue_id = ? AND key = ?)",
            (queue.id, key),
        ).get
        if state in (READY, DELAYED):
            self.execute(
                "UPDATE messages SET state = 3 "
                "WHERE id = (SELECT min(id) FROM messages WHERE queue_id = ? AND key = ?)",
                (queue.id, key),
            )
            self.count(queue, **{STATES[state]: -1, "blocked": 1})


def by_state(states: Sequence[int], each: int = 1) -> dict[str, int]:
    """How many there are of each state, for Work.count. Quicker than a Counter for the one message it mostly is."""
    return {STATES[state]: each * states.count(state) for state in set(states)}


def int_array(numbers: Sequence[int]) -> Any:
    """Numbers bound as one value, for `IN carray(?)`; at least one."""
    return apsw.carray(array("q", numbers))
