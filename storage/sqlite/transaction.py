"""One SQLite transaction on the queues: the changes of state that all requests use.

A method that changes messages also changes the counts in the queue's row.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import apsw

from storage.clock import Clock
from storage.codec import read_settings
from storage.errors import IdempotencyMismatch, QueueNotFound, TakesLong
from storage.model import CHUNK, REQUEST_WINDOW, STATES, IdempotencyKey, QueueSettings, dead_letter_name, rfc3339
from storage.size_budget import LargeRead

READY, LEASED, DELAYED, BLOCKED = range(len(STATES))
LETTER = 5  # dead-lettering one message costs as much as removing 5
NO_QUEUE = 0  # scope of an Idempotency-Key that belongs to no queue
ARRIVED = "coalesce(arrived_at, sent_at)"  # SQL
SIZE = "octet_length(text) + coalesce(octet_length(fields), 0)"  # SQL: bytes, as in max_bytes
SIZE_READ = f"{SIZE} + coalesce(octet_length(deaths), 0)"  # SQL: bytes that a read returns

QUICK_BYTES = 128 * 1024  # bytes that an operation may process while others wait
QUICK_BUDGET = 100  # due messages that a transaction may move while others wait

_TOTALS = ("bytes", "sent", "received", "acked", "expired", "dead_lettered")
_COUNTED = {name: place for place, name in enumerate(STATES + _TOTALS)}
_COUNT = f"UPDATE queues SET {', '.join(f'{name} = {name} + ?' for name in _COUNTED)} WHERE id = ?"


_QUEUE = "SELECT id, name, settings, ready + leased + delayed + blocked, bytes, swept, used_at FROM queues"


class QueueRow(NamedTuple):
    id: int
    name: str
    settings: QueueSettings
    messages: int
    bytes: int
    swept: int = 0  # retention has removed all single messages up to this id, except leased ones
    used_at: int = 0

    @property
    def retention(self) -> int | None:
        """Return the retention in ms."""
        return None if self.settings.retention is None else math.ceil(self.settings.retention * 1000)


def _queue(row: Any) -> QueueRow:
    return QueueRow(row[0], row[1], read_settings(row[2]), *row[3:])


class WriteTransaction:
    """One transaction at the time `now`; `woken` collects the queues in which messages became ready.

    It caches the queues' rows and collects the changes of their counts for `write_counts`.
    """

    def __init__(self, connection: apsw.Connection, clock: Clock, nearly_full: bool = False) -> None:
        self.connection = connection
        self.nearly_full = nearly_full
        self.execute = connection.execute
        self.now = clock.now()
        self.wall = clock.wall
        self.woken: set[str] = set()
        self.up_to_date: set[int] = set()  # queues for which nothing is due at `now`
        self.swept: set[int] = set()  # queues that had their share of deferrable work
        self.is_quick = False  # other tasks wait for it
        self.budget = CHUNK  # due messages that this transaction may still move
        self._queues: dict[str, QueueRow] = {}
        self._counts: dict[int, list[int]] = {}  # changes to write, by queue
        self._counted = 0

    @cached_property
    def ahead(self) -> int:
        """Return by how many ms the wall clock is ahead of the service's time."""
        return self.wall(0)

    @property
    def changes(self) -> tuple[int, int]:
        """Return a value that differs after each change of this transaction."""
        return self.connection.total_changes(), self._counted

    def write_counts(self) -> None:
        """Write the collected changes of the counts."""
        if self._counts:
            self.connection.executemany(_COUNT, [(*counts, number) for number, counts in self._counts.items()])
            self._counts.clear()

    def forget(self) -> None:
        """Discard cached state after a rollback to a savepoint; unwritten counts are lost."""
        self.up_to_date.clear()
        self.swept.clear()
        self._queues.clear()
        self._counts.clear()

    def forget_queue(self, queue: QueueRow) -> None:
        """Discard the cached row of a queue after a change that bypassed `count` or made something due."""
        self.write_counts()
        self.up_to_date.discard(queue.id)
        self.swept.discard(queue.id)
        self._queues.pop(queue.name, None)

    def hurry(self) -> None:
        """Limit this transaction to a few milliseconds, because other tasks wait for it."""
        self.is_quick, self.budget = True, QUICK_BUDGET

    def take_time(self, size: int) -> None:
        """Raise TakesLong if other tasks wait and an operation must process this many bytes."""
        if self.is_quick and size > QUICK_BYTES:
            raise TakesLong

    def all(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """Return all rows at once: an open cursor would hold the transaction, and RETURNING has no order."""
        return self.execute(sql, values).fetchall()

    # -- queues

    def queue(self, name: str) -> QueueRow:
        """Return the queue. Raises QueueNotFound."""
        found = self.find_queue(name)
        if found is None:
            raise QueueNotFound(name)
        return found

    def find_queue(self, name: str) -> QueueRow | None:
        """Return the queue, or None if it does not exist."""
        found = self._queues.get(name)
        if found is None and (row := self.execute(f"{_QUEUE} WHERE name = ?", (name,)).get) is not None:
            found = self._queues[name] = _queue(row)
        return found

    def create_queues(self, names: Sequence[str]) -> None:
        """Create those of the queues that do not exist, and cache all, with one statement for each step."""
        wanted = json.dumps(names)
        self.execute(
            "INSERT INTO queues (name, used_at, created_at, modified_at) "
            "SELECT value, ?1, ?1, ?1 FROM json_each(?2) WHERE true ON CONFLICT DO NOTHING",
            (self.now, wanted),
        )
        rows = self.all(f"{_QUEUE} WHERE name IN (SELECT value FROM json_each(?))", (wanted,))
        self._queues = {row[1]: _queue(row) for row in rows} | self._queues  # these hold counts not yet written

    def queue_for_writing(self, name: str, *, create: bool = True) -> QueueRow:
        """Return the queue; create it if it does not exist, or raise QueueNotFound."""
        found = self.find_queue(name) if create else self.queue(name)
        if found is None:
            self.execute(
                "INSERT INTO queues (name, used_at, created_at, modified_at) VALUES (?1, ?2, ?2, ?2)", (name, self.now)
            )
            found = QueueRow(self.connection.last_insert_rowid(), name, QueueSettings(), 0, 0, 0, self.now)
            self._queues[name] = found
        self.note_use(found)
        return found

    def note_use(self, queue: QueueRow) -> None:
        """Store the time of this use for the setting `expires`.

        Store it at most once a second, or once in a tenth of an `expires` under 10 s, to avoid a write at each read.
        """
        expires = queue.settings.expires
        if expires is not None and self.now - queue.used_at >= min(1_000, expires * 1000 / 10):
            self.execute("UPDATE queues SET used_at = ? WHERE id = ?", (self.now, queue.id))
            self._replace(queue, used_at=self.now)

    def lower_swept(self, queue: QueueRow, least: int) -> None:
        """Lower `swept` below this message, which is no longer leased and may be past retention."""
        current = self._queues.get(queue.name, queue)
        if least <= current.swept:
            self.swept_to(queue, least - 1)

    def swept_to(self, queue: QueueRow, last: int) -> None:
        self.execute("UPDATE queues SET swept = ? WHERE id = ?", (last, queue.id))
        self._replace(queue, swept=last)

    def _replace(self, queue: QueueRow, **changes: Any) -> None:
        known = self._queues.get(queue.name)
        if known is not None and known.id == queue.id:
            self._queues[queue.name] = known._replace(**changes)

    def count(self, queue: QueueRow, **changes: int) -> None:
        """Add these changes to the queue's counts of states and its totals."""
        if changes.get("ready", 0) > 0:
            self.woken.add(queue.name)
        self._counted += 1
        counts = self._counts.get(queue.id) or self._counts.setdefault(queue.id, [0] * len(_COUNTED))
        messages = 0
        for name, change in changes.items():
            place = _COUNTED[name]
            counts[place] += change
            messages += change if place < len(STATES) else 0
        size = changes.get("bytes", 0)
        known = self._queues.get(queue.name)
        if (messages or size) and known is not None and known.id == queue.id:
            self._queues[queue.name] = QueueRow(*known[:3], known.messages + messages, known.bytes + size, *known[5:])

    def note_lease(self, queue: QueueRow, until: int) -> None:
        """Note a lease that ends at `until`: one of 0 s is due in this transaction already."""
        if until <= self.now:
            self.up_to_date.discard(queue.id)

    # -- idempotency

    def once(self, scope: int, once: IdempotencyKey | None, window: float, do: Callable[[], Any]) -> Any:
        """Return the JSON value of `do`, or of the first call with this key within `window` s.

        None means that nothing changed, and is not stored. Raises IdempotencyMismatch.
        """
        if once is None:
            return do()
        reply = self.recall(once, scope)
        if reply is None and (reply := do()) is not None:
            self.remember(once, reply, scope, window)
        return reply

    def recall(self, once: IdempotencyKey, scope: int = NO_QUEUE, reserved: int = sys.maxsize) -> Any:
        """Return the stored reply, or None.

        Raises IdempotencyMismatch if it belongs to another request, and LargeRead if it exceeds the reserved bytes.
        """
        known = self.execute(
            "SELECT fingerprint, octet_length(reply) FROM replies WHERE queue_id = ? AND key = ? AND forget_at > ?",
            (scope, once.key, self.now),
        ).get
        if known is None:
            return None
        fingerprint, size = known
        if fingerprint != once.fingerprint:
            raise IdempotencyMismatch
        if size > reserved:
            raise LargeRead(size)
        self.take_time(size)
        return json.loads(
            self.execute("SELECT reply FROM replies WHERE queue_id = ? AND key = ?", (scope, once.key)).get
        )

    def remember(self, once: IdempotencyKey, value: Any, scope: int = NO_QUEUE, window: float = REQUEST_WINDOW) -> None:
        self.execute(
            "INSERT OR REPLACE INTO replies (queue_id, key, fingerprint, reply, forget_at) VALUES (?, ?, ?, ?, ?)",
            (scope, once.key, once.fingerprint, json.dumps(value), self.now + round(window * 1000)),
        )

    # -- changes of state

    def give_back(
        self,
        queue: QueueRow,
        ids: Sequence[int],
        keys: Collection[str],
        due_at: int | None = None,
        uncounted: int = 0,
    ) -> None:
        """Return leased or delayed messages, with these keys, to the queue.

        With `due_at` they were released until then, so their leases cannot be extended. None means that their lease or
        delay has ended. Messages with a key become blocked. `promote` then makes the first of each key
        ready, unless the key has another lease.
        """
        if not ids:
            return
        self.up_to_date.discard(queue.id)  # leased messages do not expire; returned ones may have to
        self.swept.discard(queue.id)
        was = Counter(self.all("SELECT state FROM messages WHERE id IN carray(?)", (int_array(ids),)))
        rows = self.all(
            """
            UPDATE messages
               SET state = iif(key IS NOT NULL, 3, iif(coalesce(?1, due_at) > ?2, 2, 0)), due_at = coalesce(?1, due_at),
                   token = iif(?1 IS NULL, token, -abs(token)), receive_count = receive_count - iif(token > 0, ?3, 0)
             WHERE id IN carray(?4)
            RETURNING state
            """,
            (due_at, self.now, uncounted, int_array(ids)),
        )
        now = Counter(rows)
        self.count(queue, **{name: now[(state,)] - was[(state,)] for state, name in enumerate(STATES)})
        self.lower_swept(queue, min(ids))
        self.promote(queue, keys)

    def expire(self, queue: QueueRow, ids: Sequence[int]) -> None:
        """Remove expired messages, or move them to the dead-letter queue, by the queue's setting."""
        if queue.settings.dead_letter_expired:
            self.dead_letter(queue, ids, "expired", expired=len(ids))
        else:
            self.remove(queue, ids, expired=len(ids))

    def remove(self, queue: QueueRow, ids: Sequence[int], columns: str = "", /, **totals: int) -> list[tuple[Any, ...]]:
        """Remove the messages and promote the next ones of their keys.

        Return unordered rows of state, key, size and `columns`, so that only callers that need texts read them.
        """
        return self.remove_where(queue, "id IN carray(?)", (int_array(ids),), columns, **totals) if ids else []

    def remove_where(
        self, queue: QueueRow, which: str, values: tuple[Any, ...], columns: str = "", /, **totals: int
    ) -> list[tuple[Any, ...]]:
        """Do the same as `remove` for the messages that match this SQL. Without a match, count nothing."""
        rows = self.all(
            f"DELETE FROM messages WHERE {which} RETURNING state, key, {SIZE}{columns and ', '}{columns}", values
        )
        if rows:
            size = sum([row[2] for row in rows])
            self.count(queue, bytes=-size, **by_state([row[0] for row in rows], each=-1), **totals)
            self.promote(queue, {row[1] for row in rows if row[1] is not None})
        return rows

    def dead_letter(self, queue: QueueRow, ids: Sequence[int], reason: str, **totals: int) -> None:
        """Move the messages to the dead-letter queue in order; add a death to each, and set its receive_count to 0."""
        if not ids:
            return
        self.budget = max(0, self.budget - (LETTER - 1) * len(ids))
        dead_letter_queue = self.queue_for_writing(dead_letter_name(queue.name, queue.settings))
        rows = self.all(
            f"""
            INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, first_received_at,
                                  origin, deaths, fields, text)
            SELECT ?1, sent_at, ?2, iif(key IS NULL, 0, 3), priority, recipient, key, first_received_at, ?3,
                   json_insert(coalesce(deaths, '[]'), '$[#]',
                               json_object('dead_letter_from', ?3, 'dead_letter_reason', ?4, 'dead_letter_at', ?5,
                                           'dead_letter_id', CAST(id AS TEXT),
                                           'dead_letter_receive_count', receive_count)),
                   fields, text
              FROM messages WHERE id IN carray(?6) ORDER BY id
            RETURNING state, key, {SIZE}
            """,
            (dead_letter_queue.id, self.now, queue.name, reason, rfc3339(self.wall(self.now)), int_array(ids)),
        )
        self.arrived(dead_letter_queue, rows)
        self.remove(queue, ids, dead_lettered=len(ids), **totals)

    def arrived(self, queue: QueueRow, rows: list[tuple[Any, ...]]) -> None:
        """Count inserted messages, given as rows of state, key and size, and promote their keys."""
        states = Counter(row[0] for row in rows)
        self.count(queue, ready=states[READY], blocked=states[BLOCKED], bytes=sum(row[2] for row in rows))
        self.promote(queue, {row[1] for row in rows if row[1] is not None}, ready_since=0)

    def promote(self, queue: QueueRow, keys: Collection[str], ready_since: int | None = None) -> None:
        """Make the first message of each key ready (or delayed, by its own delay) unless one of the key is leased.

        With key_lock "head", leases of later messages do not matter. Without `ready_since` it counts as ready since
        now, and with 0 since its arrival.
        """
        if not keys:
            return
        rows = self.all(
            """
            UPDATE messages SET state = iif(due_at > ?1, 2, 0), due_at = iif(due_at > ?1, due_at, ?4)
             WHERE id IN (SELECT (SELECT min(id) FROM messages WHERE queue_id = ?2 AND key = wanted.value)
                            FROM json_each(?3) AS wanted)
               AND state = 3
               AND (?5 OR NOT EXISTS (SELECT 1 FROM messages AS other
                                       WHERE other.queue_id = ?2 AND other.key = messages.key AND other.state = 1))
            RETURNING state
            """,
            (
                self.now,
                queue.id,
                json.dumps(list(keys), ensure_ascii=False),
                self.now if ready_since is None else ready_since,
                queue.settings.key_lock == "head",
            ),
        )
        if rows:
            states = Counter(rows)
            self.count(queue, blocked=-len(rows), ready=states[(READY,)], delayed=states[(DELAYED,)])

    def block(self, queue: QueueRow, keys: Collection[str]) -> None:
        """Block the first message of each key unless it is leased, because the lease of a later one was renewed."""
        if not keys or queue.settings.key_lock == "head":
            return
        heads = self.all(
            """
            SELECT id, state FROM messages
             WHERE id IN (SELECT (SELECT min(id) FROM messages WHERE queue_id = ? AND key = wanted.value)
                            FROM json_each(?) AS wanted)
               AND state IN (0, 2)
            """,
            (queue.id, json.dumps(list(keys), ensure_ascii=False)),
        )
        if heads:
            self.execute("UPDATE messages SET state = 3 WHERE id IN carray(?)", (int_array([row[0] for row in heads]),))
            self.count(queue, blocked=len(heads), **by_state([row[1] for row in heads], each=-1))


def by_state(states: Sequence[int], each: int = 1) -> dict[str, int]:
    """Count the messages in each state for WriteTransaction.count; for one message faster than a Counter."""
    return {STATES[state]: each * states.count(state) for state in set(states)}


def int_array(numbers: Sequence[int]) -> Any:
    """Return one value to bind for `IN carray(?)`. It takes at least one number."""
    return apsw.carray(array("q", numbers))
