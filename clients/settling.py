"""The part of a client that settles messages it holds by a lease: done with, more time, given back, or dead."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from .administration import Administration
from .column_batches import ColumnBatch, in_batches
from .errors import NotFound, QueueError, StaleReceipt
from .leases import LeaseKeeper, log
from .messages import AckResult, ExtendResult, Message, drop_none, encode, moment, require_list

LARGEST_BATCH = 10_000  # messages in one request
GIVES_BACK_WITHIN = 2.0  # seconds for trying again, on the way out


class Settling(Administration):
    """What QueueClient does to leased messages. Each is named by message, or by receipt and `queue`."""

    _leases: LeaseKeeper

    def ack(self, message: Message | str, *, queue: str | None = None) -> None:
        """Remove a message that was worked on. By message, or by receipt and queue. Raises StaleReceipt, NotFound."""
        self._transport.call("DELETE", self._settling(message, queue), idempotent=True, done_if_lost=(404,))

    def ack_many(self, messages: Iterable[Message | ColumnBatch | str], *, queue: str | None = None) -> AckResult:
        """Ack those that are still ours and report which are not. A bare receipt is one of `queue`.

        A run, or its receipt, counts for all of its messages; which of them are not ours is reported one by one.
        """
        return self._ack_many(messages, queue=queue)

    def extend(self, message: Message | str, lease: float, *, queue: str | None = None) -> None:
        """Let the lease end `lease` seconds from now. Raises StaleReceipt, NotFound."""
        self._transport.call("PATCH", self._held(message, queue), body=encode({"lease": lease}), idempotent=True)

    def extend_many(
        self, messages: Iterable[Message | ColumnBatch | str], lease: float, *, queue: str | None = None
    ) -> ExtendResult:
        """Let the leases of those that are still ours end `lease` seconds from now; report the others as ack_many."""
        total = ExtendResult(0, None, [], [])
        for name, receipts in _by_queue(messages, queue).items():
            for batch in in_batches(receipts, LARGEST_BATCH):
                total += self._extend_batch(name, batch, lease)
        return total

    def release(
        self, message: Message | str, *, delay: float = 0, counted: bool = True, queue: str | None = None
    ) -> None:
        """Give it back, to be delivered again in `delay` seconds. Raises StaleReceipt, NotFound.

        Not `counted`: as if it had not been delivered, so that it comes no nearer to the queue's max_receives.
        """
        self._transport.call("PATCH", self._settling(message, queue), body=_release(delay, counted))

    def release_all(self, messages: Iterable[Message | str], *, delay: float = 0, counted: bool = True) -> None:
        """Release those that are still ours, as far as the service can be reached, after `close` too. Never raises.

        For a reader on its way out.
        """
        body, until = _release(delay, counted), time.monotonic() + GIVES_BACK_WITHIN
        for message in messages:
            try:
                left = max(0.0, until - time.monotonic())
                path = self._settling(message, None)
                self._transport.call("PATCH", path, body=body, retry_for=left, last=True)
            except (NotFound, StaleReceipt):
                continue
            except QueueError as error:
                log.info("could not release messages, they come back when their leases end: %s", error)
                return

    def reject(self, message: Message | str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move it to the dead letters now. Raises StaleReceipt, NotFound."""
        body = encode(drop_none(dead=True, reason=reason))
        self._transport.call("PATCH", self._settling(message, queue), body=body)

    dead = reject

    def _hand_back(self, messages: list[Message]) -> None:
        """Give back those that are held, as if undelivered; the leases of those whose turn has yet to come hold on."""
        try:
            self.release_all(
                (message for message in messages if self._leases.stop_renewing(message.receipt)), counted=False
            )
        finally:
            self._stop_renewing(messages)

    def _ack_last(self, messages: Iterable[Message | ColumnBatch | str]) -> AckResult:
        """As ack_many, after `close` too: for work that was under way then.

        After a lost reply, messages that its try acked are among the missing ones.
        """
        retry_for = GIVES_BACK_WITHIN if self._transport.is_closed() else None
        return self._ack_many(messages, idempotent=True, last=True, retry_for=retry_for)

    def _renew(self, messages: list[Message], lease: float, timeout: float) -> ExtendResult:
        """Extend messages of one queue, within about `timeout` seconds; for the lease keeper, after `close` too."""
        total = ExtendResult(0, None, [], [])
        receipts = [_receipt(message) for message in messages]
        for batch in in_batches(receipts, LARGEST_BATCH):
            total += self._extend_batch(
                messages[0].queue, batch, lease, timeout=timeout, retry_for=timeout / 2, last=True
            )
        return total

    def _extend_batch(self, queue: str | None, receipts: list[str], lease: float, **options: Any) -> ExtendResult:
        path = f"{self._path(queue)}/messages/extend"
        body = encode({"receipts": receipts, "lease": lease})
        result = json.loads(self._transport.call("POST", path, body=body, idempotent=True, **options).body)
        until = moment(result["leased_until"]) if result["extended"] else None
        return ExtendResult(result["extended"], until, result["stale"], result["missing"])

    def _ack_many(
        self, messages: Iterable[Message | ColumnBatch | str], *, queue: str | None = None, **options: Any
    ) -> AckResult:
        by_queue = _by_queue(messages, queue)
        for receipts in by_queue.values():
            self._stop_renewing(receipts)
        total = AckResult(0, [], [])
        for name, receipts in by_queue.items():
            for batch in in_batches(receipts, LARGEST_BATCH):
                path = f"{self._path(name)}/messages/ack"
                reply = self._transport.call("POST", path, body=encode({"receipts": batch}), **options)
                result = json.loads(reply.body)
                total += AckResult(result["acked"], result["stale"], result["missing"])
        return total

    def _stop_renewing(self, messages: Iterable[Message | ColumnBatch | str]) -> list[str]:
        """Their receipts. Before they are settled, so that no renewal takes a lease anew."""
        receipts = [_receipt(message) for message in require_list(messages)]
        for receipt in receipts:
            self._leases.stop_renewing(receipt)
        return receipts

    def _settling(self, message: Message | str, queue: str | None) -> str:
        """The path under which it is settled; its lease is renewed no more."""
        self._stop_renewing([message])
        return self._held(message, queue)

    def _held(self, message: Message | str, queue: str | None) -> str:
        path = self._path(message.queue if isinstance(message, Message) else queue)
        return f"{path}/messages/{quote(_receipt(message), safe='~')}"


def _by_queue(messages: Iterable[Message | ColumnBatch | str], queue: str | None) -> dict[str | None, list[str]]:
    """The receipts, by queue; a bare receipt is one of `queue`."""
    by_queue: dict[str | None, list[str]] = {}
    for message in require_list(messages):
        by_queue.setdefault(queue if isinstance(message, str) else message.queue, []).append(_receipt(message))
    return by_queue


def _release(delay: float, counted: bool) -> bytes:
    return encode({"lease": 0, **drop_none(delay=delay or None, counted=None if counted else False)})


def _receipt(message: Message | ColumnBatch | str) -> str:
    if isinstance(message, str):
        return message
    if message.receipt is None:
        raise ValueError("this message was read without a lease, so it needs no settling")
    return message.receipt
