"""What can go wrong in a store. The store names the fault; each door says it in its own protocol's words.

StoreError
├── InvalidInput            the caller asked for something that cannot be (field and index say where)
├── QueueNotFound           no queue of this name
├── MessageNotFound         the receipt's message is gone: settled, expired, purged or dead-lettered
├── StaleReceipt            the message was leased again since: somebody else holds it now
├── MessageLeased           somebody holds the message now, so that it cannot be changed by its id
├── IdempotencyMismatch     this Idempotency-Key was used before, for another request
├── PreconditionFailed      the queue's settings changed since the caller read them
├── QueueFull               max_messages or max_bytes would be exceeded; nothing was stored
├── TooManyPollers          nothing to deliver, and no place left to wait for it; ask again later
├── Unavailable             the storage failed; what became of the operation is not known
│   ├── Busy                the write lock could not be had in time; nothing was done
│   │   └── Moved           all of it is being moved to another database, or has been; nothing was done
│   ├── DiskFull            the disk has no room for this write; nothing was done
│   └── Interrupted         a request of several transactions was cut off after some of them; it says what was done
├── UnusableDatabase        refused at opening: wrong version, foreign file, no access; never raised later
└── Unsound                 a check of the whole database has found something wrong; only its operator meets it
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of all faults a store reports; `str()` of it is one sentence that may be shown to a client."""


class InvalidInput(StoreError):
    """A value outside the API's rules. `field` names the part, `index` the message's place in a batch."""

    def __init__(self, detail: str, *, field: str | None = None, index: int | None = None) -> None:
        super().__init__(detail)
        self.field = field
        self.index = index


class QueueError(StoreError):
    """A fault of one named queue."""

    def __init__(self, detail: str, *, queue: str) -> None:
        super().__init__(detail)
        self.queue = queue


class QueueNotFound(QueueError):
    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue '{queue}'", queue=queue)


class QueueFull(QueueError):
    """`there` are in the queue and `more` were sent: messages or bytes, as the limit that is set counts."""

    def __init__(self, queue: str, limit: str, most: int, there: int, more: int) -> None:
        super().__init__(
            f"queue '{queue}' is full: it has {there} of {most} {limit.removeprefix('max_')} ({limit}), "
            f"and {more} more do not fit; nothing was stored",
            queue=queue,
        )


class PreconditionFailed(QueueError):
    pass


class MessageNotFound(StoreError):
    def __init__(self) -> None:
        super().__init__("no such message: it was settled, expired, purged or dead-lettered, or never existed")


class StaleReceipt(StoreError):
    """`index`: the receipt's place in a transaction, all of which it stops, also where its message is `missing`."""

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
        Unavailable.__init__(self, "the messages are being moved to another database; nothing was done")


class DiskFull(Unavailable):
    def __init__(self) -> None:
        super().__init__("the disk has no room for this; nothing was done")


class Interrupted(Unavailable):
    """`done` says what was done, in a clause, as "10,000 messages were purged"."""

    def __init__(self, done: str, cause: Unavailable) -> None:
        super().__init__(f"{done}, then the request stopped; repeat it to continue")
        self.__cause__ = cause


class UnusableDatabase(StoreError):
    pass


class Unsound(StoreError):
    """`str()` tells what, a line a fault."""
