"""Authorization: a store whose verbs check the token's right on every queue they touch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from storage.model import (
    MOVES_KEPT,
    AckResult,
    ExtendResult,
    IdempotencyKey,
    Message,
    Move,
    NewMessage,
    Queue,
    QueueSettings,
    Receive,
    Sent,
    Transacted,
)
from storage.store import Peeked, PeekOptions, Reasons, Store
from storage.validation import MAX_PAGE
from web.access.authentication import Forbidden
from web.access.tokens import ADMIN, RECEIVE, SEND, Grant

T = TypeVar("T")


class AuthorizedStore(Store):
    """A Store, as storage.model specifies it, whose verbs raise Forbidden before they change anything."""

    def __init__(self, store: Store, grant: Grant | None) -> None:
        """Take the token's grant; None for a request that needed no token."""
        self._store = store
        self._grant = grant

    @property
    def identity(self) -> bytes:
        return self._store.identity

    def send(
        self, queue: str, messages: Sequence[NewMessage], once: IdempotencyKey | None = None, *, create: bool = True
    ) -> Sent:
        self._need(queue, SEND)
        return self._store.send(queue, messages, once, create=create)

    def receive(
        self, ask: Receive, once: IdempotencyKey | None = None, present: Callable[[], bool] = lambda: True
    ) -> Sequence[Message]:
        self._need_all(ask.queues, RECEIVE)
        return self._store.receive(ask, once, present)

    def ack(
        self,
        receipts: Sequence[str],
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        held: bool = False,
    ) -> AckResult:
        self._need_receipts(receipts, queue)
        return self._store.ack(receipts, queue, once, held=held)

    def settle(
        self, receipt: str, queue: str | None = None, once: IdempotencyKey | None = None, *, held: bool = False
    ) -> None:
        self._need_receipts([receipt], queue)
        self._store.settle(receipt, queue, once, held=held)

    def extend(self, receipt: str, lease: float, queue: str | None = None, once: IdempotencyKey | None = None) -> int:
        self._need_receipts([receipt], queue)
        return self._store.extend(receipt, lease, queue, once)

    def extend_many(
        self, receipts: Sequence[str], lease: float, queue: str | None = None, once: IdempotencyKey | None = None
    ) -> ExtendResult:
        self._need_receipts(receipts, queue)
        return self._store.extend_many(receipts, lease, queue, once)

    def release(
        self,
        receipt: str,
        delay: float = 0.0,
        queue: str | None = None,
        once: IdempotencyKey | None = None,
        *,
        counted: bool = True,
    ) -> None:
        self._need_receipts([receipt], queue)
        self._store.release(receipt, delay, queue, once, counted=counted)

    def reject(
        self, receipt: str, reason: str = "rejected", queue: str | None = None, once: IdempotencyKey | None = None
    ) -> None:
        """Reject; this needs no right on the dead-letter queue, because an authorized PUT chose it."""
        self._need_receipts([receipt], queue)
        self._store.reject(receipt, reason, queue, once)

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None = None,
        once: IdempotencyKey | None = None,
        present: Callable[[], bool] = lambda: True,
    ) -> Transacted:
        self._need_receipts(ack, None)
        self._need_all({queue for queue, _ in send}, SEND)
        self._need_all(receive.queues if receive else (), RECEIVE)
        return self._store.transact(ack, send, receive, once, present)

    def message(self, queue: str, id: int) -> Message:
        self._need(queue, RECEIVE, ADMIN)
        return self._store.message(queue, id)

    def delete_message(self, queue: str, id: int, once: IdempotencyKey | None = None) -> None:
        self._need(queue, ADMIN)
        self._store.delete_message(queue, id, once)

    def reschedule(self, queue: str, id: int, delay: float, once: IdempotencyKey | None = None) -> None:
        self._need(queue, ADMIN)
        self._store.reschedule(queue, id, delay, once)

    def dead_letter(self, queue: str, id: int, reason: str = "rejected", once: IdempotencyKey | None = None) -> None:
        self._need(queue, ADMIN)
        self._store.dead_letter(queue, id, reason, once)

    def peek(self, queue: str, **options: Unpack[PeekOptions]) -> Peeked:
        self._need(queue, RECEIVE, ADMIN)
        return self._store.peek(queue, **options)

    def reasons(self, queue: str) -> Reasons:
        self._need(queue, RECEIVE, ADMIN)
        return self._store.reasons(queue)

    def queues(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[Queue]:
        """Return the queues that the token names, whatever its rights."""
        return self._covered(self._store.queues, lambda queue: queue.name, prefix, after, limit)

    def names(self, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> list[str]:
        """Return the names of the queues that the token names, whatever its rights."""
        return self._covered(self._store.names, str, prefix, after, limit)

    def sources(self, queue: str, after: str = "", limit: int = MAX_PAGE) -> list[str]:
        """Return the names of those sources that the token names."""
        self._need(queue, SEND, RECEIVE, ADMIN)
        return self._covered(lambda _, after, limit: self._store.sources(queue, after, limit), str, "", after, limit)

    def settings(self, name: str) -> QueueSettings:
        self._need(name, SEND, RECEIVE, ADMIN)
        return self._store.settings(name)

    def queue(self, name: str) -> Queue:
        self._need(name, SEND, RECEIVE, ADMIN)
        return self._store.queue(name)

    def configure(
        self, name: str, changes: Mapping[str, Any], version: int | None = None, once: IdempotencyKey | None = None
    ) -> Queue:
        """Configure; this needs `send` or `admin` on a new dead-letter queue too, because it will get messages."""
        self._need(name, ADMIN)
        if isinstance(dead_letter_queue := changes.get("dead_letter_queue"), str):
            self._need(dead_letter_queue, SEND, ADMIN)
        return self._store.configure(name, changes, version, once)

    def delete_queue(self, name: str, once: IdempotencyKey | None = None) -> None:
        self._need(name, ADMIN)
        self._store.delete_queue(name, once)

    def purge(
        self,
        queue: str,
        once: IdempotencyKey | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
    ) -> int:
        self._need(queue, ADMIN)
        return self._store.purge(queue, once, ids=ids, reason=reason)

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        once: IdempotencyKey | None = None,
    ) -> int:
        """Redrive; this needs the right at one end only, because messages return to where they came from."""
        self._need(queue, ADMIN)
        return self._store.redrive(queue, limit, ids=ids, reason=reason, once=once)

    def start_move(self, source: str, to: str | None = None, rate: int | None = None) -> Move:
        self._need(source, ADMIN)
        if to is not None:
            self._need(to, SEND, ADMIN)
        return self._store.start_move(source, to, rate)

    def cancel_move(self, source: str, task: str) -> Move:
        self._need(source, ADMIN)
        return self._store.cancel_move(source, task)

    def moves(self, source: str, limit: int = MOVES_KEPT) -> list[Move]:
        self._need(source, SEND, RECEIVE, ADMIN)
        return self._store.moves(source, limit)

    def check_ready(self) -> None:
        self._store.check_ready()

    def _covered(
        self,
        list_page: Callable[[str, str, int], list[T]],
        name: Callable[[T], str],
        prefix: str,
        after: str,
        limit: int,
    ) -> list[T]:
        grant, found = self._grant, list[T]()
        if grant is None or not (prefix.startswith(grant.prefix) or grant.prefix.startswith(prefix)):
            return found
        prefix = max(prefix, grant.prefix, key=len)
        while len(found) < limit:
            page = list_page(prefix, after, MAX_PAGE)
            found += (item for item in page if grant.covers(name(item)))
            if len(page) < MAX_PAGE:
                break
            after = name(page[-1])
        return found[:limit]

    def _need_receipts(self, receipts: Iterable[str], queue: str | None) -> None:
        """Raise Forbidden unless the token may receive from the receipts' queues. The store reports malformed ones."""
        named = {name for name, tilde, _ in (receipt.partition("~") for receipt in receipts) if tilde}
        self._need_all(named if queue is None else {queue, *named}, RECEIVE)

    def _need_all(self, queues: Iterable[str], right: str) -> None:
        for queue in queues:
            self._need(queue, right)

    def _need(self, queue: str, *rights: str) -> None:
        """Raise Forbidden unless the token has one of these rights on this queue."""
        grant = self._grant
        if grant is None or grant.rights.isdisjoint(rights) or not grant.covers(queue):
            who = f"the token '{grant.name}'" if grant else "a request without a token"
            raise Forbidden(f"{who} may not {' or '.join(rights)} here", queue=queue[:80])
