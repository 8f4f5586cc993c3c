"""The default engine: one SQLite file, in WAL mode, shared by all processes of one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

import apsw

from storage.clock import Clock
from storage.codec import read_settings
from storage.column_batches import Messages
from storage.errors import MessageNotFound, QueueNotFound
from storage.model import (
    CHUNK,
    MOVES_KEPT,
    REQUEST_WINDOW,
    AckResult,
    Disk,
    ExtendResult,
    IdempotencyKey,
    Message,
    Move,
    NewMessage,
    Queue,
    QueueSettings,
    ReadMemory,
    Receive,
    Sent,
    Transacted,
)
from storage.scheduling import Scheduler, Threads
from storage.size_budget import SizeBudget, read_reserved
from storage.sqlite import inspection, queues, redriving, replies, settling
from storage.sqlite.disk.committer import Committer
from storage.sqlite.disk.file import DatabaseFile
from storage.sqlite.disk.group_commit import GroupCommit
from storage.sqlite.disk.readers import Readers
from storage.sqlite.expiry import catch_up, late_queues
from storage.sqlite.receiving import take_from_queues
from storage.sqlite.sending import prepare, prepare_for_queues, send, send_to_queues
from storage.sqlite.snapshot import QueueSnapshot
from storage.sqlite.transaction import NO_QUEUE, WriteTransaction
from storage.sqlite.upkeep import Upkeep
from storage.steps import Progress, check_queues, describe_progress, in_steps, until_done
from storage.store import Observer, Peek, Peeked, PeekOptions, Reasons
from storage.validation import MAX_PAGE, MAX_READ_BYTES
from storage.waiting import Subscription, Waiting, receive_after

T = TypeVar("T")

SMALL_READ = 1024 * 1024  # bytes in one read while the disk is nearly full
KEPT_READ = 4 * 1024 * 1024  # bytes in one read with an Idempotency-Key but no lease: its reply is stored
CATCH_UP_FOR = 2.5  # seconds that a read-only call applies what is due


class SqliteStore:
    """The Store on a SQLite file. Open one in each process, after any fork."""

    engine = "sqlite"

    def __init__(
        self, path: Path, *, pollers: int = 32, clock: Clock | None = None, scheduler: Scheduler = Threads()
    ) -> None:
        """Open the database. At most `pollers` readers wait at once. Raises UnusableDatabase."""
        self._file = DatabaseFile(path)
        self._clock: Clock = clock or self._file.clock
        self._failed: Callable[[], None] = lambda: None
        self._scanned: dict[int, int] = {}  # see inspection.describe
        self._memory: ReadMemory | None = None
        self._scheduler = scheduler
        self._waiting = Waiting(lambda: QueueSnapshot(self._file.connect(), self._clock), pollers, self._scheduler)
        self._committer = Committer(self._file, self._clock, self._waiting.notify, lambda: self._failed())
        self._readers = Readers(self._file.connect, self._committer.give_up)
        self._commits: GroupCommit[WriteTransaction] = GroupCommit(
            self._committer.run_group, self._scheduler, self._file.lock
        )
        self._upkeep = Upkeep(self._file.connect, self._clock, self._commits, self._committer.give_up)

    # -- messages

    @cached_property
    def identity(self) -> bytes:
        return self._read(inspection.identity)

    def send(
        self, queue: str, messages: Sequence[NewMessage], once: IdempotencyKey | None = None, *, create: bool = True
    ) -> Sent:
        batch = prepare(messages)

        def operation(work: WriteTransaction) -> Sent:
            row = work.queue_for_writing(queue, create=create)
            if once is None:
                return send(work, row, batch)
            window = row.settings.dedup_window
            return replies.sent(work.once(row.id, once, window, lambda: replies.of_sent(send(work, row, batch))))

        return self._commits.run(operation)

    def receive(
        self, ask: Receive, once: IdempotencyKey | None = None, present: Callable[[], bool] = lambda: True
    ) -> Messages:
        def claim(reserved: int) -> Messages:
            return until_done(
                lambda: self._commits.run(
                    lambda work: self._claim(work, ask, once, reserved) if present() else Messages()
                )
            )

        def claim_reserved() -> Messages:
            return read_reserved(self._memory, claim, lambda found: found, of_one=ask.limit == 1)

        return self._waiting.receive(claim_reserved, Subscription(ask.queues, ask.recipient), ask.wait, present)

    def _claim(
        self, work: WriteTransaction, ask: Receive, once: IdempotencyKey | None, reserved: int
    ) -> Messages | None:
        """Take messages; return None if too many are due for one transaction. Raises LargeRead."""
        rows = [row for row in map(work.queue if ask.must_exist else work.find_queue, ask.queues) if row is not None]
        most = SMALL_READ if work.nearly_full else MAX_READ_BYTES  # a lease writes to the messages
        if once is None:
            return take_from_queues(work, rows, ask, SizeBudget(reserved, most))
        # The store remembers a key over several queues: the result must not depend on which of them exist now.
        scope, window = NO_QUEUE, REQUEST_WINDOW
        if rows and len(ask.queues) == 1:
            scope, window = rows[0].id, rows[0].settings.dedup_window
        if (known := work.recall(once, scope, reserved)) is not None:
            return replies.messages(work, known, reserved)
        most = min(most, KEPT_READ) if ask.lease is None else most
        if found := take_from_queues(work, rows, ask, SizeBudget(reserved, most)):
            work.remember(once, replies.of_messages(found), scope, window)
        return found

    def ack(
        self,
        receipts: Sequence[str],
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        held: bool = False,
    ) -> AckResult:
        known, missing = settling.parse(receipts, queue)
        step = partial(settling.ack, wanted=list(known.items()), held_only=held)
        start = {"next": 0, "acked": 0, "stale": [], "missing": missing}
        done = in_steps(self._commits.run, start, step, lambda at: describe_progress(at["acked"], "acked"), once)
        return AckResult(done["acked"], done["stale"], done["missing"])

    def settle(
        self, receipt: str, queue: str | None = None, once: IdempotencyKey | None = None, *, held: bool = False
    ) -> None:
        self._once(once, lambda work: settling.settle(work, receipt, queue, held))

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: IdempotencyKey | None = None) -> int:
        def operation(work: WriteTransaction) -> int:
            until = work.now + round(lease * 1000)
            settling.extend(work, settling.find_held(work, receipt, queue), until)
            return self._clock.wall(until)

        until: int = self._once(once, operation)
        return until

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: IdempotencyKey | None = None
    ) -> ExtendResult:
        known, missing = settling.parse(receipts, queue)

        def operation(work: WriteTransaction) -> Any:
            return work.once(
                NO_QUEUE, once, REQUEST_WINDOW, lambda: settling.extend_many(work, known, round(lease * 1000))
            )

        result = ExtendResult._make(until_done(lambda: self._commits.run(operation)))
        return result._replace(missing=missing + result.missing)

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        counted: bool = True,
    ) -> None:
        self._once(
            once,
            lambda work: settling.release(work, settling.find_held(work, receipt, queue), round(delay * 1000), counted),
        )

    def reject(
        self, receipt: str, reason: str = "rejected", queue: str | None = None, once: IdempotencyKey | None = None
    ) -> None:
        def operation(work: WriteTransaction) -> None:
            held = settling.find_held(work, receipt, queue)
            work.dead_letter(held.queue, [held.id], reason)

        self._once(once, operation)

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: IdempotencyKey | None = None,
        present: Callable[[], bool] = lambda: True,
    ) -> Transacted:
        places = settling.parse_all(ack)
        check_queues({receipt.queue for receipt in places} | {name for name, _ in send})
        batches = prepare_for_queues(send)

        def operation(work: WriteTransaction, reserved: int) -> tuple[Sent, Messages | None] | None:
            if once is not None and (known := work.recall(once, reserved=reserved)) is not None:
                return replies.sent(known), replies.messages(work, known, reserved)
            if not settling.ack_all(work, places):
                return None
            sent = send_to_queues(work, batches)
            found = self._claim(work, receive, None, reserved) if receive and present() else Messages()
            if once is not None:
                work.remember(once, replies.of_sent(sent) | replies.of_messages(found))
            return sent, found

        def attempt(reserved: int) -> tuple[Sent, Messages | None]:
            return until_done(lambda: self._commits.run(partial(operation, reserved=reserved)))

        sent, found = read_reserved(self._memory if receive else None, attempt, lambda done: done[1])
        if receive is not None and (found is None or (receive.wait > 0 and not found)):
            done = receive_after(self, sent.ids, receive, once, present)
        else:
            done = Transacted(sent.ids, found or Messages())
        return done._replace(duplicates=tuple(sent.duplicates))

    # -- one message by its id

    def message(self, queue: str, id: int) -> Message:
        self._bring_up_to_date([queue])
        found = self._peek(queue, Peek(1, id - 1, id + 1))
        if not found:
            self.settings(queue)  # raises QueueNotFound
            raise MessageNotFound
        return found[0]

    def delete_message(self, queue: str, id: int, once: IdempotencyKey | None = None) -> None:
        self._bring_up_to_date([queue])
        self._once(once, lambda work: queues.delete_message(work, work.queue(queue), id))

    def reschedule(self, queue: str, id: int, delay: float, once: IdempotencyKey | None = None) -> None:
        self._bring_up_to_date([queue])
        self._once(once, lambda work: queues.reschedule(work, work.queue(queue), id, round(delay * 1000)))

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: IdempotencyKey | None = None) -> None:
        self._bring_up_to_date([queue])
        self._once(once, lambda work: queues.dead_letter(work, work.queue(queue), id, reason))

    # -- queues

    def peek(self, queue: str, **options: Unpack[PeekOptions]) -> Peeked:
        self._bring_up_to_date([queue])
        return self._peek(queue, Peek(**options))

    def reasons(self, queue: str) -> Reasons:
        self._bring_up_to_date([queue])
        return self._read(lambda connection: inspection.reasons(connection, queue))

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        names = self.names(prefix, after, limit)
        self._bring_up_to_date(names)
        return self._read(lambda connection: inspection.describe(connection, self._clock, names, self._scanned))

    def queue(self, name: str) -> Queue:
        self._bring_up_to_date([name])
        return self._describe(name)

    def settings(self, name: str) -> QueueSettings:
        return self._read(lambda connection: inspection.settings(connection, name))

    def names(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[str]:
        return self._read(lambda connection: inspection.names(connection, prefix, after, limit))

    def sources(self, queue: str, after: str = "", limit: int = MAX_PAGE) -> list[str]:
        return self._read(lambda connection: inspection.sources(connection, queue, after, limit))

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: IdempotencyKey | None = None
    ) -> Queue:
        number, settings = self._once(once, lambda work: queues.configure(work, name, changes, version))
        # Describe the queue without applying what the change makes due: that may be very much.
        return self._describe(name)._replace(version=number, settings=read_settings(settings))

    def delete_queue(self, name: str, once: IdempotencyKey | None = None) -> None:
        self._once(once, lambda work: queues.mark_deleted(work, work.queue(name)))

    def purge(
        self,
        queue: str,
        once: IdempotencyKey | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
    ) -> int:
        return self._in_steps(once, "purged", lambda work, at: queues.purge(work, queue, at, ids, reason))

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        once: IdempotencyKey | None = None,
    ) -> int:
        dead_letters = self._read(lambda connection: inspection.dead_letter_queues(connection, queue))
        self._bring_up_to_date([queue, *dead_letters.values()])
        return self._in_steps(once, "redriven", lambda work, at: redriving.redrive(work, queue, limit, ids, reason, at))

    def start_move(self, source: str, to: str | None = None, rate: int | None = None) -> Move:
        return self._commits.run(lambda work: redriving.start_move(work, source, to, rate))

    def cancel_move(self, source: str, task: str) -> Move:
        return self._commits.run(lambda work: redriving.cancel_move(work, source, task))

    def moves(self, source: str, limit: int = MOVES_KEPT) -> list[Move]:
        return self._read(lambda connection: redriving.moves(WriteTransaction(connection, self._clock), source, limit))

    # -- the serving process

    def check_ready(self) -> None:
        if not self._committer.has_just_committed():
            self._commits.run(queues.touch)

    def on_failure(self, call: Callable[[], None]) -> None:
        self._failed = call
        if self._committer.broken:
            call()  # it failed before this call

    def observe(self, observer: Observer) -> None:
        self._commits.observe = observer.committed
        self._waiting.observe = observer.waiting

    def limit_reads(self, memory: ReadMemory) -> None:
        self._memory = memory

    def disk(self) -> Disk:
        return self._file.disk()

    def stop_waiting(self) -> None:
        self._waiting.stop()

    def close(self) -> None:
        self._upkeep.close()
        self._waiting.close()
        self._readers.close()
        self._committer.close()
        self._file.close()

    def _peek(self, queue: str, ask: Peek) -> Peeked:
        def read(reserved: int) -> Peeked:
            return self._read(lambda connection: inspection.peek(connection, self._clock, queue, ask, reserved))

        return read_reserved(self._memory, read, lambda found: found)

    def _read(self, read: Callable[[apsw.Connection], T]) -> T:
        with self._readers.reading() as connection:
            return read(connection)

    def _once(self, once: IdempotencyKey | None, operation: Callable[[WriteTransaction], T]) -> T:
        """Run an operation as one transaction and return its JSON value or None, or the first call's with this key."""

        def run(work: WriteTransaction) -> Any:
            return work.once(NO_QUEUE, once, REQUEST_WINDOW, lambda: [operation(work)])

        result: T = self._commits.run(run)[0]  # no commit returns None, which asks for another turn
        return result

    def _in_steps(
        self,
        once: IdempotencyKey | None,
        action: str,
        step: Callable[[WriteTransaction, Progress], tuple[Progress, bool]],
    ) -> int:
        done = in_steps(self._commits.run, {}, step, lambda at: describe_progress(at.get("count"), action), once)
        count: int = done["count"]
        return count

    def _describe(self, name: str) -> Queue:
        found = self._read(lambda connection: inspection.describe(connection, self._clock, [name], self._scanned))
        if not found:
            raise QueueNotFound(name)
        return found[0]

    def _bring_up_to_date(self, names: Sequence[str]) -> None:
        """Apply what is due to these queues, as far as CATCH_UP_FOR allows."""
        late = self._read(lambda connection: late_queues(WriteTransaction(connection, self._clock), names))
        deadline = time.monotonic() + CATCH_UP_FOR
        for name in late:
            while time.monotonic() < deadline and self._commits.run(partial(catch_up, name=name, most=CHUNK)):
                pass
