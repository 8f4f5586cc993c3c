"""The part of a client that settles messages it holds by a lease: done with, more time, given back, or dead."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

from clients.administration import Administration
from clients.errors import QueueError
from clients.leases import LeaseKeeper, log
from clients.messages import AckResult, Message, encode, several
from clients.runs import Run, in_batches

LARGEST_BATCH = 10_000  # messages in one request


class Settling(Administration):
    """What QueueClient does to leased messages. Each is told by message, or by receipt and `queue`."""

    _leases: LeaseKeeper

    def ack(self, message: Message | str, *, queue: str | None = None) -> None:
        """Done with: it is gone. By message, or by receipt and queue. Raises StaleReceipt, NotFound."""
        self._transport.call("DELETE", self._settling(message, queue), done_if_lost=(404,))

    def ack_many(self, messages: Iterable[Message | Run | str], *, queue: str | None = None) -> AckResult:
        """Ack those that are still ours and tell which are not. A bare receipt is one of `queue`.

        A run, or its receipt, counts for all of its messages; which of them are not ours is told one by one.
        """
        by_queue: dict[str | None, list[str]] = {}
        for message in several(messages):
            name = queue if isinstance(message, str) else message.queue
            by_queue.setdefault(name, []).extend(self._let_go([message]))
        total = AckResult(0, [], [])
        for name, receipts in by_queue.items():
            for batch in in_batches(receipts, LARGEST_BATCH):
                total += self._ack_batch(name, batch)
        return total

    def extend(self, message: Message | str, lease: float, *, queue: str | None = None) -> None:
        """The lease ends `lease` seconds from now. Raises StaleReceipt, NotFound."""
        self._transport.call("PATCH", self._held(message, queue), body=encode({"lease": lease}))

    def release(self, message: Message | str, *, delay: float = 0, queue: str | None = None) -> None:
        """Give it back, to be delivered again in `delay` seconds. Raises StaleReceipt, NotFound."""
        change = {"lease": 0, "delay": delay} if delay else {"lease": 0}
        self._transport.call("PATCH", self._settling(message, queue), body=encode(change), done_if_lost=(404, 409))

    def give_back(self, messages: Iterable[Message | str]) -> None:
        """Release them at once, as far as the service can be reached: for a reader on its way out. Never raises."""
        for message in messages:
            try:
                self._transport.call("PATCH", self._settling(message, None), body=encode({"lease": 0}), retry_for=0)
            except QueueError as error:
                log.info("messages come back only when their leases end: %s", error)
                return

    def reject(self, message: Message | str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move it to the dead letters now. Raises StaleReceipt, NotFound."""
        change = {"dead": True} if reason is None else {"dead": True, "reason": reason}
        self._transport.call("PATCH", self._settling(message, queue), body=encode(change), done_if_lost=(404,))

    dead = reject

    def _renew(self, message: Message, lease: float) -> None:
        path = self._held(message, None)
        self._transport.call("PATCH", path, body=encode({"lease": lease}), retry_for=lease / 8)

    def _ack_batch(self, queue: str | None, receipts: list[str]) -> AckResult:
        path = f"{self._path(queue)}/messages/ack"
        reply = self._transport.call("POST", path, body=encode({"receipts": receipts}))
        told = json.loads(reply.body)
        if reply.tries > 1:  # what is missing after a try whose reply was lost was acked by that try
            return AckResult(told["acked"] + len(told["missing"]), told["stale"], [])
        return AckResult(told["acked"], told["stale"], told["missing"])

    def _let_go(self, messages: Iterable[Message | Run | str]) -> list[str]:
        """Their receipts. Before they are settled, so that no renewal takes a lease anew."""
        receipts = [_receipt(message) for message in several(messages)]
        for receipt in receipts:
            self._leases.let_go(receipt)
        return receipts

    def _settling(self, message: Message | str, queue: str | None) -> str:
        """The path under which it is settled; its lease is renewed no more."""
        self._let_go([message])
        return self._held(message, queue)

    def _held(self, message: Message | str, queue: str | None) -> str:
        path = self._path(message.queue if isinstance(message, Message) else queue)
        return f"{path}/messages/{quote(_receipt(message), safe='~')}"


def _receipt(message: Message | Run | str) -> str:
    if isinstance(message, str):
        return message
    if message.receipt is None:
        raise ValueError("this message was read without a lease: there is nothing to settle")
    return message.receipt
