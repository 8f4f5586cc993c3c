"""The store, as far as a token lets its bearer at it: each verb asks for its right on every queue it touches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from doors.auth import Forbidden
from doors.tokens import ADMIN, RECEIVE, SEND, Grant
from storage.model import AckResult, Disk, Message, NewMessage, Once, Queue, Receive, State, Store, Transacted


class GrantedStore:
    """The verbs of storage.model.Store that a request may lead to; all raise Forbidden, nothing having been done."""

    def __init__(self, store: Store, grant: Grant | None) -> None:
        """`grant` None: of a request that needed no token."""
        self._store = store
        self._grant = grant

    def send(self, queue: str, messages: Sequence[NewMessage], once: Once | None = None) -> list[int]:
        self._need(queue, SEND)
        return self._store.send(queue, messages, once)

    def receive(self, ask: Receive, once: Once | None, present: Callable[[], bool]) -> Sequence[Message]:
        self._need_all(ask.queues, RECEIVE)
        return self._store.receive(ask, once, present)

    def ack(self, receipts: Sequence[str], queue: str | None = None) -> AckResult:
        self._need_receipts(receipts, queue)
        return self._store.ack(receipts, queue)

    def settle(self, receipt: str, queue: str | None = None) -> None:
        self._need_receipts([receipt], queue)
        self._store.settle(receipt, queue)

    def extend(self, receipt: str, lease: float, queue: str | None = None) -> int:
        self._need_receipts([receipt], queue)
        return self._store.extend(receipt, lease, queue)

    def release(self, receipt: str, delay: float = 0.0, queue: str | None = None) -> None:
        self._need_receipts([receipt], queue)
        self._store.release(receipt, delay, queue)

    def reject(self, receipt: str, reason: str = "rejected", queue: str | None = None) -> None:
        """To whatever dead-letter queue this one has: who chose that had the right to."""
        self._need_receipts([receipt], queue)
        self._store.reject(receipt, reason, queue)

    def transact(
        self,
        ack: Sequence[str],
        send: Sequence[tuple[str, NewMessage]],
        receive: Receive | None,
        once: Once | None,
        present: Callable[[], bool],
    ) -> Transacted:
        self._need_receipts(ack, None)
        self._need_all({queue for queue, _ in send}, SEND)
        self._need_all(receive.queues if receive else (), RECEIVE)
        return self._store.transact(ack, send, receive, once, present)

    def peek(self, queue: str, *, limit: int = 100, after: int = 0, state: State | None = None) -> list[Message]:
        self._need(queue, RECEIVE, ADMIN)
        return self._store.peek(queue, limit=limit, after=after, state=state)

    def queues(self) -> list[Queue]:
        """Those the token names, whatever it may do there."""
        grant = self._grant
        return [queue for queue in self._store.queues() if grant is not None and grant.covers(queue.name)]

    def queue(self, name: str) -> Queue:
        self._need(name, SEND, RECEIVE, ADMIN)
        return self._store.queue(name)

    def configure(self, name: str, changes: Mapping[str, Any], version: int | None = None) -> Queue:
        """A dead-letter queue that is named gets messages, so sending there has to be allowed too."""
        self._need(name, ADMIN)
        if isinstance(grave := changes.get("dead_letter_queue"), str):
            self._need(grave, SEND, ADMIN)
        return self._store.configure(name, changes, version)

    def delete_queue(self, name: str) -> None:
        self._need(name, ADMIN)
        self._store.delete_queue(name)

    def purge(self, queue: str) -> int:
        self._need(queue, ADMIN)
        return self._store.purge(queue)

    def redrive(self, queue: str, limit: int | None = None) -> int:
        """At either end: messages only go back to where they came from."""
        self._need(queue, ADMIN)
        return self._store.redrive(queue, limit)

    def check_ready(self) -> None:
        self._store.check_ready()

    def disk(self) -> Disk:
        return self._store.disk()

    def _need_receipts(self, receipts: Iterable[str], queue: str | None) -> None:
        """What is no receipt at all is the store's to tell."""
        named = {name for name, tilde, _ in (receipt.partition("~") for receipt in receipts) if tilde}
        self._need_all(named if queue is None else {queue, *named}, RECEIVE)

    def _need_all(self, queues: Iterable[str], right: str) -> None:
        for queue in queues:
            self._need(queue, right)

    def _need(self, queue: str, *rights: str) -> None:
        """One of these rights, on this queue."""
        grant = self._grant
        if grant is None or grant.rights.isdisjoint(rights) or not grant.covers(queue):
            who = f"the token '{grant.name}'" if grant else "nobody"
            raise Forbidden(f"{who} may not {' or '.join(rights)} here", queue=queue[:80])
