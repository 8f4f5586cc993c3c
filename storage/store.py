"""The Store protocol that every engine implements, and what the serving process needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack

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
    State,
    Transacted,
)
from storage.validation import MAX_PAGE

# The limits of one search by text or reason, and of one list of reasons; the next one continues.
MAX_LOOKED = 10_000  # messages …
MAX_LOOKED_BYTES = 16 * 1024 * 1024  # … and bytes of their texts, fields and deaths
MAX_REASONS = 100  # in one list of reasons


class Peek(NamedTuple):
    """Which messages to show: those that match all that is set, in order of id."""

    limit: int = 100
    after: int = 0  # an id: only messages above it
    before: int | None = None  # an id: only messages below it, the newest first
    state: State | None = None  # DEAD: the messages from this queue that are in a dead-letter queue
    key: str | None = None
    text: str | None = None  # a part of the text, letter for letter
    reason: str | None = None  # the latest reason of a dead letter

    @property
    def is_search(self) -> bool:
        """Return whether it may look at many messages that it does not show."""
        return self.text is not None or self.reason is not None


class PeekOptions(TypedDict, total=False):
    """The fields of a Peek, as keyword arguments."""

    limit: int
    after: int
    before: int | None
    state: State | None
    key: str | None
    text: str | None
    reason: str | None


class Peeked(list[Message]):
    """The messages of a peek. `next` replaces its `after` or `before` in the next peek; None: that was all."""

    def __init__(self, messages: Iterable[Message] = (), next: int | None = None) -> None:
        super().__init__(messages)
        self.next = next


class Reason(NamedTuple):
    """The dead letters with one latest reason. Times are RFC 3339: when the first and the last of them died."""

    reason: str
    dead_letters: int
    oldest_at: str
    newest_at: str


class Reasons(NamedTuple):
    """The reasons of dead letters, the most frequent first. Not `complete`: there are more of either."""

    reasons: list[Reason]
    complete: bool

    @classmethod
    def of(cls, deaths: Sequence[tuple[str, str]], complete: bool) -> Reasons:
        """Count dead letters, given by the reason and the time of their deaths."""
        times: dict[str, list[str]] = {}
        for reason, at in deaths:
            times.setdefault(reason, []).append(at)
        found = [Reason(reason, len(ats), min(ats), max(ats)) for reason, ats in times.items()]
        found.sort(key=lambda one: (-one.dead_letters, one.reason))
        return cls(found[:MAX_REASONS], complete and len(found) <= MAX_REASONS)


class Observer(Protocol):
    """Receives the events of a store, on the threads that cause them: it must be quick, and must not raise."""

    def committed(self, operations: int, seconds: float) -> None:
        """Count a transaction of so many operations that took so many seconds."""

    def waiting(self, readers: int) -> None:
        """Note how many readers wait now."""


class Store(Protocol):
    """A durable set of queues. A method that returns has its change on disk (fsync).

    Any method may raise Busy or DiskFull, with nothing done; Interrupted, which says what was done; or Unavailable,
    with an unknown outcome. With `once`, a repeated call changes nothing and returns the first call's result; an
    interrupted one continues. Raises IdempotencyMismatch if another request has used the key. All methods are safe to
    call from many threads and processes at once.
    """

    @property
    def identity(self) -> bytes:
        """Return 16 random bytes that identify this store for ever, also after a migration."""

    def send(
        self, queue: str, messages: Sequence[NewMessage], once: IdempotencyKey | None = None, *, create: bool = True
    ) -> Sent:
        """Store all messages, in order, after the existing ones, or none. Creates the queue. Raises QueueFull.

        Raises InvalidInput for a text over the queue's max_message_bytes, and QueueNotFound if not `create`.

        A message whose dedup_id was used within the queue's dedup_window is not stored: its id is the first message's,
        and its place is among the duplicates.
        """

    def receive(
        self, ask: Receive, once: IdempotencyKey | None = None, present: Callable[[], bool] = ...
    ) -> Sequence[Message]:
        """Return at most `limit` messages in delivery order, or none if none arrived in `wait` seconds.

        Remove them, or with a lease hide them until it ends. Call `present` right before taking messages, and take none
        if it returns False because the reader has disconnected. With `once`, a repeated call gets the same messages and
        receipts, except settled ones. Raises TooManyPollers; QueueNotFound if the queues `must_exist`.
        """

    def ack(
        self,
        receipts: Sequence[str],
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        held: bool = False,
    ) -> AckResult:
        """Remove the messages of valid receipts, and report the other receipts. Receipts of other queues are missing.

        A batch's receipt counts as one for each message. With `held`, a receipt whose lease is over is stale. Raises
        InvalidInput for more than MAX_BATCH messages.
        """

    def settle(
        self, receipt: str, queue: str | None = None, once: IdempotencyKey | None = None, *, held: bool = False
    ) -> None:
        """Remove the message. Raises MessageNotFound, StaleReceipt; with `held`, this also if the lease is over."""

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: IdempotencyKey | None = None) -> int:
        """Set the lease to end `lease` seconds from now; return that time (ms, wall clock).

        This renews a lease that has expired, but not one that was released. Raises MessageNotFound, StaleReceipt.
        """

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: IdempotencyKey | None = None
    ) -> ExtendResult:
        """Extend the valid leases in one transaction, as `extend` does, and report the others. Receipts as in `ack`."""

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        counted: bool = True,
    ) -> None:
        """Return the message to the queue, for delivery after `delay` seconds. Raises as `settle` does.

        If not `counted`, undo the delivery: its receive_count decreases by one, and the message is not dead-lettered.
        The receipt can still settle the message, but no longer extend its lease.
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

        Nothing is done if a receipt is stale or missing (StaleReceipt, with its index) or a queue is full. A wait for
        messages follows the commit. Raises InvalidInput for receipts and messages of more than MAX_TRANSACTION_QUEUES
        queues.
        """

    def message(self, queue: str, id: int) -> Message:
        """Return a message with its state, without changing it. Raises QueueNotFound, MessageNotFound."""

    def delete_message(self, queue: str, id: int, once: IdempotencyKey | None = None) -> None:
        """Remove a message that is not leased. Raises QueueNotFound, MessageNotFound, MessageLeased."""

    def reschedule(self, queue: str, id: int, delay: float, once: IdempotencyKey | None = None) -> None:
        """Make a message that is not leased due in `delay` seconds. Raises as delete_message does."""

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: IdempotencyKey | None = None) -> None:
        """Move a message that is not leased to the dead-letter queue. Raises as delete_message does."""

    def peek(self, queue: str, **options: Unpack[PeekOptions]) -> Peeked:
        """Return messages in order of id, unchanged, as Peek specifies; none if the queue does not exist.

        With `text` or `reason`, look at MAX_LOOKED messages and MAX_LOOKED_BYTES at most; `next` says where to go on.
        """

    def reasons(self, queue: str) -> Reasons:
        """Return why the dead letters in this queue, or from it, died last: of the newest, as many as a search may see.

        Raises QueueNotFound.
        """

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        """Return the queues whose names begin with `prefix` and are greater than `after`, in order of name."""

    def names(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[str]:
        """Return the names of the queues that `queues` returns; this costs much less."""

    def queue(self, name: str) -> Queue:
        """Return a queue. Raises QueueNotFound."""

    def settings(self, name: str) -> QueueSettings:
        """Return a queue's settings; this costs much less than `queue`. Raises QueueNotFound."""

    def sources(self, queue: str, after: str = "", limit: int = MAX_PAGE) -> list[str]:
        """Return the names, greater than `after` and in order, of the queues that have this dead-letter queue."""

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: IdempotencyKey | None = None
    ) -> Queue:
        """Change these settings and keep the others; change no message. Creates the queue.

        With `version`, raise PreconditionFailed unless it is the settings' version; that of a queue that does not exist
        is 0. Raises InvalidInput, also if dead letters would move in a cycle.
        """

    def delete_queue(self, name: str, once: IdempotencyKey | None = None) -> None:
        """Delete the queue with its messages, settings and totals. Raises QueueNotFound.

        Raises InvalidInput if its default dead-letter queue would move its dead letters in a cycle.
        """

    def purge(
        self,
        queue: str,
        once: IdempotencyKey | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
    ) -> int:
        """Remove all messages that are in the queue now, and forget their dedup_ids; return their number.

        Remove only these `ids`, and only dead letters whose last `reason` is this one, where these are set. Raises
        QueueNotFound.
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
        """Move dead letters in this queue, or from it, back to the queue that each last left; return their number.

        Move them in order, with a receive_count of 0; skip leased ones. Move at most `limit`, only these `ids`, and
        only those whose last `reason` is this one, where these are set. Raises QueueNotFound.
        """

    def start_move(self, source: str, to: str | None = None, rate: int | None = None) -> Move:
        """Start to redrive all dead letters in this queue, at most `rate` a second; with `to`, to that queue.

        With `to`, all messages move, also those that are no dead letters. Raises QueueNotFound, MoveRunning.
        """

    def cancel_move(self, source: str, task: str) -> Move:
        """Stop a running move and return it. Raises QueueNotFound, MoveNotFound."""

    def moves(self, source: str, limit: int = MOVES_KEPT) -> list[Move]:
        """Return the moves from this queue, newest first; the last MOVES_KEPT are known. Raises QueueNotFound."""

    def check_ready(self) -> None:
        """Return if the store committed a write within the last second, or can commit one now."""


class Lifecycle(Protocol):
    """The methods for the process that serves a store; no request needs them."""

    @property
    def engine(self) -> str:
        """Return the name of the database: sqlite or postgresql."""

    def on_failure(self, call: Callable[[], None]) -> None:
        """Set the function to call once if the storage fails so that only reopening the store can help.

        From then on every method raises Unavailable.
        """

    def observe(self, observer: Observer) -> None:
        """Report to this observer from now on."""

    def limit_reads(self, memory: ReadMemory) -> None:
        """Reserve memory in `room` before a large read from now on; such a read may raise Busy."""

    def disk(self) -> Disk:
        """Return the current use of the disk."""

    def stop_waiting(self) -> None:
        """Return no messages to all waiting readers at once, and let no reader wait from now on."""

    def close(self) -> None:
        """Free files, connections and threads; call no other method after this."""


class Engine(Store, Lifecycle, Protocol):
    """The result of `open_store`."""
