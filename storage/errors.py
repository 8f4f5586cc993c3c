"""The errors of a store. Each API translates them into its own protocol.

StoreError
├── InvalidInput            a value breaks the API's rules (field and index name it)
├── QueueNotFound           no queue of this name
├── MessageNotFound         the receipt's message was settled, expired, purged or dead-lettered
├── StaleReceipt            the message was leased again: another reader holds it
├── MessageLeased           a reader holds the message, so it cannot be changed by its id
├── IdempotencyMismatch     another request has used this Idempotency-Key
├── PreconditionFailed      the queue's settings changed since the caller read them, or it exists already
├── MoveRunning             a move of this queue's messages is running already
├── MoveNotFound            no such move is running
├── QueueFull               max_messages or max_bytes would be exceeded; nothing was stored
├── TooManyPollers          no message, and too many readers are waiting; retry later
├── Unavailable             the storage failed; the outcome is unknown
│   ├── Busy                the write lock was not available in time; nothing was done
│   │   └── Moved           a migration to another database has begun or ended; nothing was done
│   ├── DiskFull            the disk has no space for this write; nothing was done
│   └── Interrupted         a request of several transactions stopped after some of them; it says what was done
├── UnusableDatabase        refused at opening: wrong version, foreign file, no access; never raised later
└── Unsound                 a check of the whole database found faults; only the operator's command raises it
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors of a store. `str()` returns one sentence that clients may see."""


class InvalidInput(StoreError):
    """A value that breaks the API's rules. `field` names it; `index` is the message's place in a batch."""

    def __init__(self, detail: str, *, field: str | None = None, index: int | None = None) -> None:
        super().__init__(detail)
        self.field = field
        self.index = index


class QueueError(StoreError):
    """An error of one named queue."""

    def __init__(self, detail: str, *, queue: str) -> None:
        super().__init__(detail)
        self.queue = queue


class QueueNotFound(QueueError):
    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue '{queue}'", queue=queue)


class QueueFull(QueueError):
    """The queue has `there` messages or bytes, and `more` would exceed the limit."""

    def __init__(self, queue: str, limit: str, most: int, there: int, more: int) -> None:
        super().__init__(
            f"queue '{queue}' is full: it has {there} of {most} {limit.removeprefix('max_')} ({limit}), "
            f"and {more} more do not fit; nothing was stored",
            queue=queue,
        )


class PreconditionFailed(QueueError):
    pass


class MoveRunning(QueueError):
    def __init__(self, queue: str) -> None:
        super().__init__(f"a move of the messages of '{queue}' is running already", queue=queue)


class MoveNotFound(StoreError):
    def __init__(self) -> None:
        super().__init__("no such move is running")


class MessageNotFound(StoreError):
    def __init__(self) -> None:
        super().__init__("no such message: it was settled, expired, purged or dead-lettered, or never existed")


class StaleReceipt(StoreError):
    """The lease is over. `index` is the receipt's place in a transaction, also if its message is `missing`."""

    def __init__(self, index: int | None = None, *, missing: bool = False) -> None:
        super().__init__(
            str(MessageNotFound())
            if missing
            else "the receipt is stale: its lease was released, or the message was leased again or settled since"
        )
        self.index = index


class MessageLeased(StoreError):
    def __init__(self) -> None:
        super().__init__("the message is leased: wait until its holder settles or releases it")


class IdempotencyMismatch(StoreError):
    def __init__(self) -> None:
        super().__init__("another request has already used this Idempotency-Key")


class TooManyPollers(StoreError):
    def __init__(self) -> None:
        super().__init__("no message, and too many readers are waiting in this process")


class Unavailable(StoreError):
    pass


class Busy(Unavailable):
    def __init__(self, why: str = "no write lock in time") -> None:
        super().__init__(f"{why}; nothing was done")


class Moved(Busy):
    def __init__(self) -> None:
        Unavailable.__init__(self, "the messages are being moved to another database, or were; nothing was done")


class DiskFull(Unavailable):
    def __init__(self) -> None:
        super().__init__("the disk has no room for this; nothing was done")


class Interrupted(Unavailable):
    """`done` is a clause with the result so far, such as "10,000 messages were purged"."""

    def __init__(self, done: str, cause: Unavailable) -> None:
        super().__init__(f"{done}, then the request stopped; repeat it to continue")
        self.__cause__ = cause


class UnusableDatabase(StoreError):
    pass


class Unsound(StoreError):
    """A check found faults; `str()` has one line for each."""


class TakesLong(Exception):
    """An operation would delay others too long; its group must run in a thread."""
