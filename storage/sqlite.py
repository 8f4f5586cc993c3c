"""The default engine: one SQLite file, in WAL mode, shared by all processes of one machine."""

from __future__ import annotations

import queue as threadsafe
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import apsw

from storage import sqlite_managing as managing
from storage import sqlite_settling as settling
from storage import sqlite_showing as showing
from storage.bells import Bell
from storage.clock import Clock
from storage.commit import GroupCommit
from storage.errors import (
    InvalidInput,
    PreconditionFailed,
    QueueNotFound,
)
from storage.model import (
    MAX_READ_BYTES,
    AckResult,
    Disk,
    Message,
    NewMessage,
    Observer,
    Once,
    Queue,
    QueueSettings,
    Receive,
    State,
    Transacted,
)
from storage.runs import Messages, Run
from storage.sqlite_commit import Committer, translate
from storage.sqlite_due import bring_up_to_date, catch_up, next_due
from storage.sqlite_file import DatabaseFile
from storage.sqlite_sending import send
from storage.sqlite_taking import take
from storage.sqlite_watch import Sight, Upkeep
from storage.sqlite_work import CHUNK, QueueRow, Room, Work
from storage.waiting import LOOK_EVERY, LOOK_SELDOM, Interest, Waiting, receive_after

T = TypeVar("T")

SMALL_READ = 1024 * 1024  # bytes of text in one read while the disk is nearly full
ACKED_AT_ONCE = 1_000  # receipts in one transaction: each may have a run unpacked, and nobody else is to wait long
NO_QUEUE = 0  # the scope of an Idempotency-Key for a request over several queues …
TRANSACTION_WINDOW = 300.0  # … and the seconds it is remembered


class SqliteStore:
    """The Store on a SQLite file. Open one in each process, after any fork."""

    def __init__(self, path: Path, *, pollers: int = 32, clock: Clock | None = None, bell: Bell | None = None) -> None:
        """`pollers` readers may wait at once in this process, whose `bell` it is. Raises UnusableDatabase."""
        self._file = DatabaseFile(path)
        self._clock: Clock = clock or self._file.clock
        self._failed: Callable[[], None] = lambda: None
        self._readers: threadsafe.SimpleQueue[apsw.Connection] = threadsafe.SimpleQueue()
        look_every = LOOK_SELDOM if bell and bell.is_shared else LOOK_EVERY
        self._waiting = Waiting(lambda: Sight(self._file.connect(), self._clock), pollers, bell, look_every)
        self._committer = Committer(self._file, self._clock, self._waiting.notify, lambda: self._failed())
        self._commits: GroupCommit[Work] = GroupCommit(self._committer.run_group)
        self._upkeep = Upkeep(self._file.connect, self._clock, self._commits, self._committer.give_up)

    # -- the verbs on messages

    def send(self, queue: str, messages: Sequence[NewMessage], once: Once | None = None) -> list[int]:
        def operation(work: Work) -> list[int]:
            row = work.queue_for_writing(queue)
            spans = work.once(row.id, once, row.settings.dedup_window, lambda: _spans(send(work, row, messages)))
            return [number for first, count in spans for number in range(first, first + count)]

        return self._commits.run(operation)

    def receive(self, ask: Receive, once: Once | None = None, present: Callable[[], bool] = lambda: True) -> Messages:
        def claim() -> Messages:
            while (
                found := self._commits.run(lambda work: self._claim(work, ask, once) if present() else Messages())
            ) is None:
                pass
            return found

        return self._waiting.receive(claim, Interest(ask.queues, ask.recipient), ask.wait, present)

    def _claim(self, work: Work, ask: Receive, once: Once | None) -> Messages | None:
        """None: ask again, more has fallen due than one transaction deals with."""
        rows = [row for row in map(work.find_queue, ask.queues) if row is not None]
        # A key over several queues is no one queue's: what came from which must not depend on which is there now.
        scope, window = (
            (rows[0].id, rows[0].settings.dedup_window)
            if rows and len(ask.queues) == 1
            else (NO_QUEUE, TRANSACTION_WINDOW)
        )
        found = work.once(scope, once, window, lambda: _told(_take_from(work, rows, ask), once))
        return None if found is None else _remembered(found)

    def ack(self, receipts: Sequence[str], queue: str | None = None) -> AckResult:
        if len(receipts) <= ACKED_AT_ONCE:
            return self._commits.run(lambda work: settling.ack(work, receipts, queue))
        settling.check(receipts)
        acked, stale, missing = 0, list[str](), list[str]()
        left = list(dict.fromkeys(receipts))
        while left:
            some, left = left[:ACKED_AT_ONCE], left[ACKED_AT_ONCE:]
            result = self._commits.run(lambda work, some=some: settling.ack(work, some, queue))  # type: ignore[misc]
            acked += result.acked
            stale += result.stale
            missing += result.missing
        return AckResult(acked, stale, missing)

    def settle(self, receipt: str, queue: str | None = None) -> None:
        self._commits.run(lambda work: settling.remove(work, [settling.hold(work, receipt, queue)]))

    def extend(self, receipt: str, lease: float, queue: str | None = None) -> int:
        def operation(work: Work) -> int:
            until = work.now + round(lease * 1000)
            settling.extend(work, settling.hold(work, receipt, queue), until)
            return self._clock.wall(until)

        return self._commits.run(operation)

    def release(self, receipt: str, delay: float = 0.0, queue: str | None = None) -> None:
        self._commits.run(lambda work: settling.release(work, settling.hold(work, receipt, queue), round(delay * 1000)))

    def reject(self, receipt: str, reason: str = "rejected", queue: str | None = None) -> None:
        def operation(work: Work) -> None:
            held = settling.hold(work, receipt, queue)
            work.bury(held.queue, [held.id], reason)

        self._commits.run(operation)

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: Once | None = None,
        present: Callable[[], bool] = lambda: True,
    ) -> Transacted:
        def operation(work: Work) -> list[Any]:
            settling.ack_all(work, ack)
            ids = _send_to_queues(work, send)
            found = self._claim(work, receive, None) if receive and present() else Messages()
            return [ids, _told(found, once)]

        ids, found = self._commits.run(
            lambda work: work.once(NO_QUEUE, once, TRANSACTION_WINDOW, lambda: operation(work))
        )
        if receive is not None and (found is None or (receive.wait > 0 and not found)):
            return receive_after(self, ids, receive, once, present)
        return Transacted(ids, _remembered(found))

    # -- the verbs on queues

    def peek(self, queue: str, *, limit: int = 100, after: int = 0, state: State | None = None) -> list[Message]:
        if not self._bring_up_to_date(queue):
            return []
        with self._reading() as connection:
            return showing.peek(connection, self._clock, queue, limit, after, state)

    def queues(self) -> list[Queue]:
        with self._reading() as connection:
            names = [row[0] for row in connection.execute("SELECT name FROM queues WHERE name IS NOT NULL")]
        for name in names:
            self._bring_up_to_date(name)
        with self._reading() as connection:
            return showing.describe(connection, self._clock)

    def queue(self, name: str) -> Queue:
        self._bring_up_to_date(name)
        with self._reading() as connection:
            found = showing.describe(connection, self._clock, name)
        if not found:
            raise QueueNotFound(name)
        return found[0]

    def configure(self, name: str, changes: Mapping[str, Any], version: int | None = None) -> Queue:
        if changes.get("dead_letter_queue") == name:
            raise InvalidInput("a queue cannot be its own dead-letter queue", field="dead_letter_queue")

        def operation(work: Work) -> None:
            found = work.find_queue(name)
            if version is not None and (found is None or managing.version(work, found) != version):
                raise PreconditionFailed(f"the settings of queue '{name}' have changed", queue=name)
            managing.configure(work, found or work.queue_for_writing(name), changes)

        self._commits.run(operation)
        return self.queue(name)

    def delete_queue(self, name: str) -> None:
        number = self._commits.run(lambda work: managing.disown(work, work.queue(name)))
        while self._commits.run(lambda work: managing.clear(work, number)):
            pass

    def purge(self, queue: str) -> int:
        last = self._commits.run(lambda work: managing.last_id(work, work.queue(queue)))
        purged = 0
        while count := self._commits.run(lambda work: managing.purge(work, work.queue(queue), last)):
            purged += count
        return purged

    def redrive(self, queue: str, limit: int | None = None) -> int:
        moved = 0
        while limit is None or moved < limit:
            most = CHUNK if limit is None else limit - moved
            count = self._commits.run(lambda work, most=most: managing.redrive(work, queue, most))  # type: ignore[misc]
            moved += count
            if count < min(most, CHUNK):
                break
        return moved

    # -- the service's own needs

    def check_ready(self) -> None:
        self._commits.run(managing.touch)

    def time(self) -> int:
        return self._clock.wall(self._clock.now())

    def on_failure(self, call: Callable[[], None]) -> None:
        self._failed = call
        if self._committer.broken:
            call()  # it failed before anybody wanted to know

    def observe(self, observer: Observer) -> None:
        self._commits.observe = observer.committed
        self._waiting.observe = observer.waiting

    def disk(self) -> Disk:
        return self._file.disk()

    def stop_waiting(self) -> None:
        self._waiting.stop()

    def close(self) -> None:
        self._upkeep.close()
        self._waiting.close()
        while not self._readers.empty():
            self._readers.get().close()
        self._committer.close()
        self._file.close()

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """A connection for statements that only read; every cursor on it must be finished inside."""
        try:
            connection = self._readers.get_nowait()
        except threadsafe.Empty:
            connection = self._file.connect()
        try:
            yield connection
        except (apsw.IOError, apsw.CorruptError) as fault:
            self._committer.give_up(fault)
            raise translate(fault) from fault
        except apsw.BusyError as fault:
            raise translate(fault) from fault
        finally:
            self._readers.put(connection)

    def _bring_up_to_date(self, name: str) -> bool:
        """Lets a reading verb see what time has done; False when there is no such queue."""
        with self._reading() as connection:
            work = Work(connection, self._clock)
            found = work.find_queue(name)
            late = found is not None and any(at is not None and at <= work.now for at in next_due(work, found.id))
        while late:
            late = self._commits.run(lambda work: catch_up(work, name))
        return found is not None


def _take_from(work: Work, rows: Sequence[QueueRow], ask: Receive) -> Messages | None:
    """What these queues have for the reader, in its order of preference; None when one has yet to be caught up with."""
    taken: list[Message | Run] = []
    left = ask.limit
    room = Room(SMALL_READ if work.nearly_full else MAX_READ_BYTES)  # a lease writes what it gives out
    for row in rows:
        if not left or room.full:
            break
        if bring_up_to_date(work, row):
            return Messages(taken) if taken else None
        taken += (found := take(work, row, left, ask.recipient, _lease(ask, row.settings), room))
        left -= len(Messages(found))
    return Messages(taken)


def _send_to_queues(work: Work, messages: Sequence[tuple[str, NewMessage]]) -> list[int]:
    """The ids, in the order given; each queue gets its own in that order."""
    places: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(messages):
        places.setdefault(name, []).append(place)
    ids = [0] * len(messages)
    for name, where in sorted(places.items()):  # an order that the other engine can keep too
        sent = send(work, work.queue_for_writing(name), [messages[place][1] for place in where])
        for place, number in zip(where, sent, strict=True):
            ids[place] = number
    return ids


def _lease(ask: Receive, settings: QueueSettings) -> int | None:
    """The lease in ms that a reader asks for, None for none."""
    if ask.lease is None:
        return None
    return round(1000 * (settings.lease if isinstance(ask.lease, str) else ask.lease))


def _spans(ids: list[int]) -> list[list[int]]:
    """Ids as [first, count] of each span of successive ones: what a batch's reply is remembered as."""
    if ids and ids == list(range(ids[0], ids[0] + len(ids))):
        return [[ids[0], len(ids)]]
    spans: list[list[int]] = []
    for number in ids:
        if spans and number == sum(spans[-1]):
            spans[-1][1] += 1
        else:
            spans.append([number, 1])
    return spans


def _told(found: Messages | None, once: Once | None) -> Messages | list[Message] | None:
    """What a read brought, in the form in which it can be remembered where it is to be."""
    return found if found is None or once is None else list(found)


def _remembered(found: Messages | list[Any]) -> Messages:
    """What was found just now, or when the Idempotency-Key was first used."""
    return found if isinstance(found, Messages) else Messages([Message(*message) for message in found])
