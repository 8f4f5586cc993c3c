"""The Store protocol that every engine keeps, and what the process that serves one needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from storage.model import (
    AckResult,
    Disk,
    ExtendResult,
    IdempotencyKey,
    Message,
    NewMessage,
    Queue,
    ReadRoom,
    Receive,
    Sent,
    State,
    Transacted,
)
from storage.validation import MAX_PAGE


class Observer(Protocol):
    """Is told what a store does in this process, on the threads that do it: it must be quick, and not raise."""

    def committed(self, operations: int, seconds: float) -> None:
        """A transaction of so many operations has ended, so long after it was begun with."""

    def waiting(self, readers: int) -> None:
        """So many readers wait now."""


class Store(Protocol):
    """A durable set of queues. Every method that returns has its change on disk (fsync) before it does.

    Any method may raise Busy or DiskFull, nothing having been done; Interrupted, which says how much was; or
    Unavailable, when what became of it is not known. With `once`, a repeated call changes nothing and returns what the
    first one did; one that was interrupted goes on where it was. Raises IdempotencyMismatch for another request's key.
    All methods are safe to call from many threads and many processes at once.
    """

    def send(self, queue: str, messages: Sequence[NewMessage], once: IdempotencyKey | None = None) -> Sent:
        """Store all messages, in order, behind all that are there, or none.

        A message whose dedup_id was used within the queue's dedup window is not stored: its id is the first
        one's, and its place is among the duplicates. Creates the queue. Raises QueueFull.
        """

    def receive(
        self, ask: Receive, once: IdempotencyKey | None = None, present: Callable[[], bool] = ...
    ) -> Sequence[Message]:
        """Return at most `limit` messages in delivery order, or none when `wait` seconds brought none.

        Without a lease they are removed; with one they are invisible until it ends. `present` is asked right
        before messages are taken: when it says False (the reader has gone) nothing is. With `once`, a repeated
        call gets the same messages and receipts, as far as they have not been settled. Raises TooManyPollers.
        """

    def ack(self, receipts: Sequence[str], queue: str | None = None, once: IdempotencyKey | None = None) -> AckResult:
        """Remove the messages whose receipts hold, and report the others. Receipts not of `queue` are missing.

        A batch's receipt stands for one of each of its messages. Raises InvalidInput for more than MAX_BATCH messages.
        """

    def settle(self, receipt: str, queue: str | None = None, once: IdempotencyKey | None = None) -> None:
        """Remove the message. Raises MessageNotFound, StaleReceipt."""

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: IdempotencyKey | None = None) -> int:
        """Let the lease end `lease` seconds from now; return that moment (ms, wall clock).

        A lease that has ended holds again, one that was released does not. Raises MessageNotFound, StaleReceipt.
        """

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: IdempotencyKey | None = None
    ) -> ExtendResult:
        """Extend those that hold, as `extend` does, in one transaction, and report the others. Receipts as in `ack`."""

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        counted: bool = True,
    ) -> None:
        """Give the message back, to be delivered again after `delay` seconds. Raises as `settle` does.

        Not `counted`: as if it had not been delivered, so that its receive_count is one less and it does not die.
        The receipt can still settle the message, and no longer extend its lease.
        """

    def reject(
        self, receipt: str, reason: str = "rejected", queue: str | None = None, once: IdempotencyKey | None = None
    ) -> None:
        """Move the message to the dead-letter queue now. Raises as `settle` does."""

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: IdempotencyKey | None = None,
        present: Callable[[], bool] = ...,
    ) -> Transacted:
        """Settle all receipts, send all messages to their queues and lease the next messages, in one commit.

        Nothing happens at all when a receipt is stale or missing (StaleReceipt, with its index) or a queue full.
        Waiting for messages, if asked for, comes after that commit. Raises InvalidInput for receipts and messages of
        more than MAX_TRANSACTION_QUEUES queues.
        """

    def message(self, queue: str, id: int) -> Message:
        """Return a message with its state, changing nothing. Raises QueueNotFound, MessageNotFound."""

    def delete_message(self, queue: str, id: int, once: IdempotencyKey | None = None) -> None:
        """Remove a message that is not leased. Raises QueueNotFound, MessageNotFound, MessageLeased."""

    def reschedule(self, queue: str, id: int, delay: float, once: IdempotencyKey | None = None) -> None:
        """Let a message that is not leased be due `delay` seconds from now, whatever its delay was. Raises as above."""

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: IdempotencyKey | None = None) -> None:
        """Move a message that is not leased to the dead-letter queue. Raises as above."""

    def peek(
        self,
        queue: str,
        *,
        limit: int = 100,
        after: int = 0,
        before: int | None = None,
        state: State | None = None,
        key: str | None = None,
    ) -> list[Message]:
        """Return messages with an id above `after`, in order of id, changing nothing; none for a queue not there.

        With `before`, those with a lower id than that, the newest first. `key`: only messages of this key.
        """

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        """Return the queues whose names begin with `prefix` and are greater than `after`, in order of name."""

    def queue(self, name: str) -> Queue:
        """Raises QueueNotFound."""

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: IdempotencyKey | None = None
    ) -> Queue:
        """Change these of QueueSettings and keep the others; touches no message. Creates the queue.

        With `version`, only if that is still the settings' version, else PreconditionFailed. Raises InvalidInput, also
        where dead letters would go round in a circle.
        """

    def delete_queue(self, name: str, once: IdempotencyKey | None = None) -> None:
        """Delete the queue and all in it, its settings and totals too. Raises QueueNotFound.

        Raises InvalidInput where by default, without its settings, its dead letters would come back to it.
        """

    def purge(self, queue: str, once: IdempotencyKey | None = None) -> int:
        """Remove all messages that are in the queue at the call, and forget their dedup_ids; return their number.

        Raises QueueNotFound.
        """

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        once: IdempotencyKey | None = None,
    ) -> int:
        """Move dead letters in this queue, or from it, back where they last died, in order, with a fresh count.

        At most `limit`, only these `ids`, and only those that last died of `reason`, where these are given; return
        how many. Leased ones stay. Raises QueueNotFound.
        """

    def check_ready(self) -> None:
        """Return if a write was committed within the last second, or could be just now."""


class Lifecycle(Protocol):
    """What the process that serves a store needs of it, and no request."""

    def on_failure(self, call: Callable[[], None]) -> None:
        """`call` is called, once, when the storage has failed so that only opening it anew can help.

        From then on every method raises Unavailable.
        """

    def observe(self, observer: Observer) -> None:
        """Report to this observer from now on."""

    def limit_reads(self, room: ReadRoom) -> None:
        """From now on ask this room for memory before a read that may need much. It then may raise Busy."""

    def disk(self) -> Disk:
        """As of now."""

    def stop_waiting(self) -> None:
        """Let all that wait in `receive` return empty-handed at once, and nobody wait from now on."""

    def close(self) -> None:
        """Free files, connections and threads; no other method may be called after."""


class Engine(Store, Lifecycle, Protocol):
    """What `open_store` returns."""
