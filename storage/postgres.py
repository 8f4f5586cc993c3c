"""The engine for many machines: one PostgreSQL database, shared by all processes of all nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from storage import postgres_reading as reading
from storage.bells import Bell
from storage.clock import Clock
from storage.errors import (
    InvalidInput,
    MessageNotFound,
    PreconditionFailed,
    QueueNotFound,
    StaleReceipt,
)
from storage.kept import read_settings, told, write_settings
from storage.model import (
    MAX_BATCH,
    AckResult,
    Disk,
    Message,
    NewMessage,
    Observer,
    Once,
    Queue,
    QueueSettings,
    Receipt,
    Receive,
    State,
    Transacted,
    check_receipts,
)
from storage.postgres_clock import SharedClock
from storage.postgres_pool import Pool, flat
from storage.postgres_schema import prepare
from storage.postgres_values import ask_of, check, columns, fields_of, once_of, receipt_of, receipts_of
from storage.postgres_watch import CHUNK, Hints, Sight, Upkeep, clear, late_queues
from storage.waiting import Interest, Waiting, receive_after

CHUNK_BYTES = 32 * 1024 * 1024  # of text that one transaction removes at most


class PostgresStore:
    """The Store on PostgreSQL. Open one in each process, after any fork."""

    def __init__(self, url: str, *, pollers: int = 32, clock: Clock | None = None, bell: Bell | None = None) -> None:
        """`pollers` readers may wait at once in this process, whose `bell` it is. Raises UnusableDatabase."""
        connection_info = prepare(url)
        self._pool = Pool(connection_info)
        self._clock: Clock = clock or SharedClock(self._pool)
        self._waiting = Waiting(lambda: Sight(connection_info, self._pool, self._clock), pollers, bell)
        self._hints = Hints(self._pool)
        self._upkeep = Upkeep(self._pool, self._clock, self._catch_up)

    # -- the verbs on messages

    def send(self, queue: str, messages: Sequence[NewMessage], once: Once | None = None) -> list[int]:
        texts = [message.text.encode() for message in messages]
        ids: list[int] = flat(
            self._pool.run(
                "SELECT queue_service.send($1::bigint, $2::bigint, $3::text, $4::bytea[], $5::json, $6::text, "
                "$7::bytea)",
                *self._moment(), queue, texts, fields_of(messages), *once_of(once),
            )
        )  # fmt: skip
        self._became_ready([queue])
        return ids

    def receive(
        self, ask: Receive, once: Once | None = None, present: Callable[[], bool] = lambda: True
    ) -> list[Message]:
        def claim() -> list[Message]:
            while present():
                rows = self._pool.run(
                    "SELECT * FROM queue_service.receive($1::bigint, $2::bigint, $3::text[], $4::int, $5::bytea, "
                    "$6::bigint, $7::bigint, $8::text, $9::bytea)",
                    *self._moment(), *ask_of(ask), *once_of(once),
                )  # fmt: skip
                if not rows or rows[0][0] is None:
                    return self._messages(rows)
            return []

        return self._waiting.receive(claim, Interest(ask.queues, ask.recipient), ask.wait, present)

    def ack(self, receipts: Sequence[str], queue: str | None = None) -> AckResult:
        parsed: dict[Receipt, str] = {}
        stale: list[str] = []
        missing: list[str] = []
        for text in receipts:
            try:
                receipt = receipt_of(text, queue, lambda text: Receipt.parse(text, MAX_BATCH))
            except MessageNotFound:
                missing.append(text)
            else:
                parsed |= {receipt: text} if receipt.length == 1 else {one: str(one) for one in receipt.each()}
        check_receipts(parsed)
        statuses = self._settle(list(parsed)) if parsed else []
        for text, status in zip(parsed.values(), statuses, strict=True):
            if status != "held":
                (stale if status == "stale" else missing).append(text)
        return AckResult(statuses.count("held"), stale, missing)

    def settle(self, receipt: str, queue: str | None = None) -> None:
        check(self._settle([receipt_of(receipt, queue)])[0])

    def _settle(self, receipts: list[Receipt]) -> list[str]:
        statuses: list[str] = flat(
            self._pool.run(
                "SELECT queue_service.ack($1::bigint, $2::text[], $3::bigint[], $4::bigint[])",
                self._clock.now(), *columns(receipts),
            )
        )  # fmt: skip
        self._became_ready({receipt.queue for receipt in receipts}, hint=False)
        return statuses

    def extend(self, receipt: str, lease: float, queue: str | None = None) -> int:
        now = self._clock.now()
        until = now + round(lease * 1000)
        self._change("extend($1::bigint, $2::text, $3::bigint, $4::bigint, $5::bigint)", [now], receipt, queue, until)
        return self._clock.wall(until)

    def release(self, receipt: str, delay: float = 0.0, queue: str | None = None) -> None:
        self._change(
            "release($1::bigint, $2::bigint, $3::text, $4::bigint, $5::bigint, $6::bigint)",
            self._moment(), receipt, queue, round(delay * 1000),
        )  # fmt: skip

    def reject(self, receipt: str, reason: str = "rejected", queue: str | None = None) -> None:
        self._change(
            "reject($1::bigint, $2::bigint, $3::text, $4::bigint, $5::bigint, $6::text)",
            self._moment(), receipt, queue, json.dumps(reason, ensure_ascii=False),
        )  # fmt: skip

    def _change(self, call: str, moment: Sequence[int], receipt: str, queue: str | None, change: Any) -> None:
        parsed = receipt_of(receipt, queue)
        check(flat(self._pool.run(f"SELECT queue_service.{call}", *moment, *parsed[:3], change)))
        self._became_ready([parsed.queue])

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: Once | None = None,
        present: Callable[[], bool] = lambda: True,
    ) -> Transacted:
        receipts, given = receipts_of(ack)
        places: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(send):
            places.setdefault(name, []).append(place)
        batches = {name: [send[place][1] for place in places[name]] for name in sorted(places)}
        stored = {place: n for n, place in enumerate((place for name in batches for place in places[name]), start=1)}
        try:
            told_ids, *rows = self._pool.run(
                "SELECT * FROM queue_service.transact($1::bigint, $2::bigint, $3::text[], $4::bigint[], $5::bigint[], "
                "$6::text[], $7::int[], $8::bytea[], $9::text[], $10::int[], $11::text[], $12::int, $13::bytea, "
                "$14::bigint, $15::bigint, $16::text, $17::bytea)",
                *self._moment(),
                *columns(receipts),
                list(batches),
                [len(batch) for batch in batches.values()],
                [message.text.encode() for batch in batches.values() for message in batch],
                [fields_of(batch) for batch in batches.values()],
                [stored[place] for place in range(len(send))],
                *(ask_of(receive) if receive and present() else [None] * 5),
                *once_of(once),
            )
        except StaleReceipt as fault:
            raise StaleReceipt(None if fault.index is None else given[fault.index]) from None
        sent: list[int] = told_ids[1]
        self._became_ready(batches)
        late = bool(rows) and rows[0][0] is not None
        if receive is not None and (late or (receive.wait > 0 and not rows)):
            return receive_after(self, sent, receive, once, present)
        return Transacted(sent, self._messages(rows))

    # -- the verbs on queues

    def peek(self, queue: str, *, limit: int = 100, after: int = 0, state: State | None = None) -> list[Message]:
        self._bring_up_to_date([queue])
        return reading.peek(self._pool, self._clock, queue, limit, after, state)

    def queues(self) -> list[Queue]:
        self._bring_up_to_date(None)
        return reading.describe(self._pool, self._clock, None)

    def queue(self, name: str) -> Queue:
        self._bring_up_to_date([name])
        found = reading.describe(self._pool, self._clock, name)
        if not found:
            raise QueueNotFound(name)
        return found[0]

    def configure(self, name: str, changes: Mapping[str, Any], version: int | None = None) -> Queue:
        if changes.get("dead_letter_queue") == name:
            raise InvalidInput("a queue cannot be its own dead-letter queue", field="dead_letter_queue")
        while True:
            found = self._pool.run(
                "SELECT version, settings::text FROM queue_service.queues WHERE name = $1::text", name
            )
            if version is not None and (not found or found[0][0] != version):
                raise PreconditionFailed(f"the settings of queue '{name}' have changed", queue=name)
            old, settings = (found[0][0], read_settings(found[0][1])) if found else (1, QueueSettings())
            kept = write_settings(settings.changed(changes))
            statement = "SELECT queue_service.configure($1::text, $2::int, $3::jsonb)"
            if flat(self._pool.run(statement, name, old, kept)):
                break
        self._became_ready([name])
        return self.queue(name)

    def delete_queue(self, name: str) -> None:
        now = self._clock.now()
        gone = self._pool.run(
            "UPDATE queue_service.queues SET name = NULL, gone_at = $2::bigint WHERE name = $1::text RETURNING id",
            name, now,
        )  # fmt: skip
        if not gone:
            raise QueueNotFound(name)
        clear(self._pool, flat(gone), now)

    def purge(self, queue: str) -> int:
        last = self._pool.read(
            "SELECT (SELECT max(id) FROM queue_service.messages WHERE queue_id = q.id) "
            "FROM queue_service.queues AS q WHERE name = $1::text",
            queue,
        )
        if not last:
            raise QueueNotFound(queue)
        statement = "SELECT queue_service.purge($1::bigint, $2::text, $3::bigint, $4::int, $5::bigint)"
        purged = 0
        while count := flat(self._pool.run(statement, self._clock.now(), queue, flat(last) or 0, CHUNK, CHUNK_BYTES)):
            purged += count
        return purged

    def redrive(self, queue: str, limit: int | None = None) -> int:
        moved = 0
        while limit is None or moved < limit:
            most = min(CHUNK, CHUNK if limit is None else limit - moved)
            count = flat(
                self._pool.run(
                    "SELECT queue_service.redrive($1::bigint, $2::text, $3::int)", self._clock.now(), queue, most
                )
            )
            if count is None:
                raise QueueNotFound(queue)
            moved += count
            if count < most:
                break
        self._became_ready([queue])
        return moved

    # -- the service's own needs

    def check_ready(self) -> None:
        self._pool.run("UPDATE queue_service.clock SET ahead = ahead RETURNING ahead")

    def time(self) -> int:
        return self._clock.wall(self._clock.now())

    def on_failure(self, call: Callable[[], None]) -> None:
        """It is never called: a connection that was lost is replaced, and no other failure is this process's."""

    def observe(self, observer: Observer) -> None:
        self._pool.observe = observer.committed
        self._waiting.observe = observer.waiting

    def disk(self) -> Disk:
        return Disk(flat(self._pool.read("SELECT pg_database_size(current_database())")), None, None)

    def stop_waiting(self) -> None:
        self._waiting.stop()

    def close(self) -> None:
        self._upkeep.close()
        self._hints.close()
        self._waiting.close()
        self._pool.close()

    def _moment(self) -> tuple[int, int]:
        now = self._clock.now()
        return now, self._clock.wall(now)

    def _became_ready(self, names: Collection[str], hint: bool = True) -> None:
        """Something may have, in these queues: readers of this process and of the others look."""
        self._waiting.notify(names)
        if hint:
            self._hints.give()

    def _bring_up_to_date(self, names: Collection[str] | None) -> None:
        """Lets a reading verb see what time has done."""
        for name in late_queues(self._pool, self._clock.now(), names):
            self._catch_up(name)

    def _catch_up(self, name: str) -> None:
        statement = "SELECT queue_service.catch_up($1::bigint, $2::bigint, $3::text, $4::int)"
        while flat(self._pool.run(statement, *self._moment(), name, CHUNK)) == CHUNK:
            pass
        self._became_ready([name])

    def _messages(self, rows: Sequence[Any]) -> list[Message]:
        ahead = self._clock.wall(0)  # asked once for all: how far the wall clock is ahead of the service's time
        return [
            Message(
                number, queue, text.decode(), told(fields, death), sent_at + ahead, count,
                None if token is None else str(Receipt(queue, number, token)),
                None if until is None else until + ahead,
            )
            for _, _, queue, number, text, fields, death, sent_at, count, token, until in rows
        ]  # fmt: skip
