"""The engine for many machines: one PostgreSQL database, shared by all processes of all nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack

from storage.clock import Clock
from storage.codec import read_settings
from storage.errors import MessageNotFound, QueueNotFound, StaleReceipt
from storage.model import (
    MOVES_KEPT,
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
    rfc3339,
)
from storage.postgres import inspection, moves, parameters, queues
from storage.postgres.clock import SharedClock
from storage.postgres.pool import Pool, WriteTransaction, scalar
from storage.postgres.schema import prepare
from storage.postgres.upkeep import CatchUp, Hints, QueueSnapshot, Upkeep
from storage.scheduling import Scheduler, Threads
from storage.size_budget import read_reserved
from storage.steps import Progress, check_queues, describe_progress, in_steps, until_done
from storage.store import Observer, Peek, Peeked, PeekOptions, Reasons
from storage.validation import MAX_PAGE
from storage.waiting import Subscription, Waiting, receive_after

T = TypeVar("T")

READY_FOR = 1.0  # seconds that one write proves that writes work


class PostgresStore:
    """The Store on PostgreSQL. Open one in each process, after any fork."""

    engine = "postgresql"

    def __init__(
        self, url: str, *, pollers: int = 32, clock: Clock | None = None, scheduler: Scheduler = Threads()
    ) -> None:
        """Open the database. At most `pollers` readers wait at once. Raises UnusableDatabase."""
        connection_info = prepare(url)
        self._pool = Pool(connection_info, scheduler)
        self._clock: Clock = clock or SharedClock(self._pool)
        self._waiting = Waiting(
            lambda: QueueSnapshot(connection_info, self._pool, self._clock), pollers, scheduler, looking_with=Threads()
        )
        self._hints = Hints(self._pool)
        self._catch_up = CatchUp(self._pool, self._clock, self._notify_readers)
        self._upkeep = Upkeep(self._pool, self._clock, self._catch_up.step)
        self._memory: ReadMemory | None = None
        self._ready_until = 0.0

    # -- messages

    @cached_property
    def identity(self) -> bytes:
        return scalar(self._pool.read("SELECT bytes FROM queue_service.identity"))  # type: ignore[no-any-return]

    def send(
        self, queue: str, messages: Sequence[NewMessage], once: IdempotencyKey | None = None, *, create: bool = True
    ) -> Sent:
        texts = [message.text.encode() for message in messages]
        ((ids, duplicates),) = self._pool.run(
            "SELECT * FROM queue_service.send($1::bigint, $2::text, $3::text, $4::bytea[], $5::json, $6::text, "
            "$7::bytea, $8::boolean)",
            *self._times(), queue, texts, parameters.fields_json(messages), *parameters.key_parameters(once), create,
        )  # fmt: skip
        self._notify_readers([queue])
        return Sent(ids, duplicates)

    def receive(
        self, ask: Receive, once: IdempotencyKey | None = None, present: Callable[[], bool] = lambda: True
    ) -> list[Message]:
        def attempt(reserved: int) -> list[Message] | None:
            # The client may have gone while this waited for a connection.
            rows = self._pool.run_late(
                "SELECT * FROM queue_service.receive($1::bigint, $2::text, $3::text[], $4::int, $5::bytea, "
                "$6::bigint, $7::bigint, $8::text, $9::bytea, $10::bigint, $11::boolean, $12::text)",
                lambda: [
                    *self._times(), *parameters.receive_parameters(ask), *parameters.key_parameters(once), reserved,
                    ask.must_exist, ask.holder or None,
                ] if present() else None,
            )  # fmt: skip
            return None if parameters.is_too_much_due(rows) else parameters.to_messages(rows, self._clock)

        def claim() -> list[Message]:
            return read_reserved(
                self._memory, lambda size: until_done(lambda: attempt(size)), lambda found: found, of_one=ask.limit == 1
            )

        return self._waiting.receive(claim, Subscription(ask.queues, ask.recipient), ask.wait, present)

    def ack(
        self,
        receipts: Sequence[str],
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        held: bool = False,
    ) -> AckResult:
        known, missing = parameters.parse_receipts(receipts, queue)
        statuses = self._change(
            once,
            "ack($1::bigint, $2::text[], $3::bigint[], $4::bigint[], $5::boolean)",
            self._clock.now(), *parameters.columns(list(known)), held,
        )  # fmt: skip
        self._notify_readers({receipt.queue for receipt in known}, hint=False)
        return AckResult(statuses.count("held"), *parameters.failed(known, statuses, missing))

    def settle(
        self, receipt: str, queue: str | None = None, once: IdempotencyKey | None = None, *, held: bool = False
    ) -> None:
        parsed = parameters.parse_receipt(receipt, queue)
        call = "settle($1::bigint, $2::text, $3::bigint, $4::bigint, $5::boolean)"
        self._change(once, call, self._clock.now(), *parsed[:3], held)
        self._notify_readers([parsed.queue], hint=False)

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: IdempotencyKey | None = None) -> int:
        parameters.parse_receipt(receipt, queue)
        result = self.extend_many([receipt], lease, queue, once)
        if result.stale:
            raise StaleReceipt
        if result.missing:
            raise MessageNotFound
        return result.leased_until

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: IdempotencyKey | None = None
    ) -> ExtendResult:
        known, missing = parameters.parse_receipts(receipts, queue)
        now = self._clock.now()
        until, statuses = self._change(
            once,
            "extend($1::bigint, $2::text[], $3::bigint[], $4::bigint[], $5::bigint)",
            now, *parameters.columns(list(known)), now + round(lease * 1000),
        )  # fmt: skip
        return ExtendResult(
            statuses.count("held"), self._clock.wall(until), *parameters.failed(known, statuses, missing)
        )

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        counted: bool = True,
    ) -> None:
        parsed = parameters.parse_receipt(receipt, queue)
        self._change(
            once,
            "release($1::bigint, $2::text, $3::text, $4::bigint, $5::bigint, $6::bigint, $7::boolean)",
            *self._times(), *parsed[:3], round(delay * 1000), counted,
        )  # fmt: skip
        self._notify_readers([parsed.queue])

    def reject(
        self, receipt: str, reason: str = "rejected", queue: str | None = None, once: IdempotencyKey | None = None
    ) -> None:
        parsed = parameters.parse_receipt(receipt, queue)
        self._change(
            once,
            "reject($1::bigint, $2::text, $3::text, $4::bigint, $5::bigint, $6::text)",
            *self._times(), *parsed[:3], parameters.json_text(reason),
        )  # fmt: skip
        self._notify_readers([parsed.queue])

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: IdempotencyKey | None = None,
        present: Callable[[], bool] = lambda: True,
    ) -> Transacted:
        receipts, text_places = parameters.expand_receipts(ack)
        check_queues({receipt.queue for receipt in receipts} | {name for name, _ in send})
        batches = parameters.to_batches(send)

        def attempt(reserved: int) -> tuple[Any, bool, list[Message]]:
            done, *rows = self._pool.run_late(
                "SELECT * FROM queue_service.transact($1::bigint, $2::text, $3::text[], $4::bigint[], $5::bigint[], "
                "$6::text[], $7::int[], $8::bytea[], $9::text[], $10::int[], $11::text[], $12::int, $13::bytea, "
                "$14::bigint, $15::bigint, $16::text, $17::bytea, $18::bigint, $19::boolean, $20::text)",
                lambda: [
                    *self._times(), *parameters.columns(receipts), *batches,
                    *(parameters.receive_parameters(receive) if receive and present() else [None] * 5),
                    *parameters.key_parameters(once), reserved, receive is not None and receive.must_exist,
                    receive.holder or None if receive else None,
                ],
            )  # fmt: skip
            too_much_due = parameters.is_too_much_due(rows)
            return done, too_much_due, [] if too_much_due else parameters.to_messages(rows, self._clock)

        try:
            done, too_much_due, found = read_reserved(self._memory if receive else None, attempt, lambda done: done[2])
        except StaleReceipt as fault:
            if fault.index is not None:
                fault.index = text_places[fault.index]
            raise
        ids, duplicates = done[1], tuple(done[2])
        self._notify_readers(batches.names)
        if receive is not None and (too_much_due or (receive.wait > 0 and not found)):
            return receive_after(self, ids, receive, once, present)._replace(duplicates=duplicates)
        return Transacted(ids, found, duplicates=duplicates)

    def message(self, queue: str, id: int) -> Message:
        self._catch_up.all([queue])
        return read_reserved(
            self._memory, partial(inspection.message, self._pool, self._clock, queue, id), lambda found: [found]
        )

    def delete_message(self, queue: str, id: int, once: IdempotencyKey | None = None) -> None:
        self._catch_up.all([queue])
        self._change(once, "delete_message($1::bigint, $2::text, $3::bigint)", self._clock.now(), queue, id)
        self._notify_readers([queue])

    def reschedule(self, queue: str, id: int, delay: float, once: IdempotencyKey | None = None) -> None:
        self._catch_up.all([queue])
        call = "reschedule($1::bigint, $2::text, $3::bigint, $4::bigint)"
        self._change(once, call, self._clock.now(), queue, id, round(delay * 1000))
        self._notify_readers([queue])

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: IdempotencyKey | None = None) -> None:
        self._catch_up.all([queue])
        call = "dead_letter($1::bigint, $2::text, $3::text, $4::bigint, $5::text)"
        self._change(once, call, *self._times(), queue, id, parameters.json_text(reason))
        self._notify_readers([queue])

    def peek(self, queue: str, **options: Unpack[PeekOptions]) -> Peeked:
        self._catch_up.all([queue])
        read = partial(inspection.peek, self._pool, self._clock, queue, Peek(**options))
        return read_reserved(self._memory, read, lambda found: found)

    def reasons(self, queue: str) -> Reasons:
        self._catch_up.all([queue])
        return inspection.reasons(self._pool, queue)

    # -- queues

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        names = self.names(prefix, after, limit)
        self._catch_up.all(names)
        return inspection.describe(self._pool.read, self._clock, names)

    def names(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[str]:
        return inspection.names(self._pool, prefix, after, limit)

    def queue(self, name: str) -> Queue:
        self._catch_up.all([name])
        found = inspection.describe(self._pool.read, self._clock, [name])
        if not found:
            raise QueueNotFound(name)
        return found[0]

    def settings(self, name: str) -> QueueSettings:
        return inspection.settings(self._pool, name)

    def sources(self, queue: str, after: str = "", limit: int = MAX_PAGE) -> list[str]:
        return inspection.sources(self._pool, queue, after, limit)

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: IdempotencyKey | None = None
    ) -> Queue:
        def operation(work: WriteTransaction) -> list[Queue]:
            configured = work.once(once, lambda: queues.configure(work, name, changes, version))
            return [
                queue._replace(version=configured[0], settings=read_settings(configured[1]))
                for queue in inspection.describe(work.run, self._clock, [name])
            ]

        found = self._transact(operation)
        self._notify_readers([name])
        if not found:  # a repeated request; the queue was deleted since
            raise QueueNotFound(name)
        return found[0]

    def delete_queue(self, name: str, once: IdempotencyKey | None = None) -> None:
        self._once(once, lambda work: queues.delete_queue(work, name))

    def purge(
        self,
        queue: str,
        once: IdempotencyKey | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
    ) -> int:
        call = "purge($1::bigint, $2::text, $3::jsonb, $4::bigint[], $5::text)"
        return self._in_steps(
            once, "purged", call, queue, None if ids is None else list(ids), parameters.storable(reason)
        )

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        once: IdempotencyKey | None = None,
    ) -> int:
        self._catch_up.all([queue, *inspection.dead_letter_queues(self._pool, queue)])
        moved = self._in_steps(
            once, "redriven", "redrive($1::bigint, $2::text, $3::jsonb, $4::bigint, $5::bigint[], $6::text)",
            queue, limit, None if ids is None else list(ids), parameters.storable(reason),
        )  # fmt: skip
        self._notify_readers([queue])
        return moved

    def start_move(self, source: str, to: str | None = None, rate: int | None = None) -> Move:
        return self._transact(lambda work: moves.start_move(work, self._clock, source, to, rate))

    def cancel_move(self, source: str, task: str) -> Move:
        return self._transact(lambda work: moves.cancel_move(work, self._clock, source, task))

    def moves(self, source: str, limit: int = MOVES_KEPT) -> list[Move]:
        return self._transact(lambda work: moves.moves(work, self._clock, source, limit))

    # -- the serving process

    def check_ready(self) -> None:
        if time.monotonic() >= self._ready_until:
            self._pool.run("UPDATE queue_service.clock SET ahead = ahead RETURNING ahead")
            self._ready_until = time.monotonic() + READY_FOR

    def on_failure(self, call: Callable[[], None]) -> None:
        """Ignore `call`: the pool replaces lost connections, and no other failure needs a new process."""

    def observe(self, observer: Observer) -> None:
        self._pool.observe = observer.committed
        self._waiting.observe = observer.waiting

    def limit_reads(self, memory: ReadMemory) -> None:
        self._memory = memory

    def disk(self) -> Disk:
        return Disk(scalar(self._pool.read("SELECT pg_database_size(current_database())")), None, None)

    def stop_waiting(self) -> None:
        self._waiting.stop()

    def close(self) -> None:
        self._upkeep.close()
        self._hints.close()
        self._waiting.close()
        self._pool.close()

    def _times(self) -> tuple[int, str]:
        """Return the service's time (ms), and the wall clock's as RFC 3339."""
        now = self._clock.now()
        return now, rfc3339(self._clock.wall(now))

    def _change(self, once: IdempotencyKey | None, call: str, *values: Any) -> Any:
        """Call a function as a transaction of its own and return its result, or with `once` the first call's."""
        statement = f"SELECT to_jsonb(queue_service.{call})"
        if once is None:
            return scalar(self._pool.run(statement, *values))
        return self._once(once, lambda work: scalar(work.run(statement, *values)))

    def _once(self, once: IdempotencyKey | None, operation: Callable[[WriteTransaction], Any]) -> Any:
        """Return the JSON value of an operation of one transaction, or of the first call with this key."""
        return self._transact(lambda work: work.once(once, lambda: operation(work)))

    def _transact(self, operation: Callable[[WriteTransaction], T]) -> T:
        return self._pool.transact(self._clock.now(), operation)

    def _in_steps(self, once: IdempotencyKey | None, action: str, call: str, queue: str, *values: Any) -> int:
        """Call a function that does one step, with its previous result, until it is done; return its count."""

        def step(work: WriteTransaction, at: Progress) -> tuple[Progress, bool]:
            state = json.dumps(at) if at else None
            at = scalar(work.run(f"SELECT queue_service.{call}", work.now, queue, state, *values))
            return at, not at["done"]

        done = in_steps(self._transact, {}, step, lambda at: describe_progress(at.get("count"), action), once)
        return int(done["count"])

    def _notify_readers(self, names: Collection[str], hint: bool = True) -> None:
        """Wake the readers of these queues in this process, and with `hint` in the others, to look for messages."""
        self._waiting.notify(names)
        if hint:
            self._hints.give()
