"""Settle leased messages: ack them, extend their leases or release them, and stop renewing what is settled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .column_batches import ColumnBatch, in_batches
from .consuming.leases import Extend, LeaseKeeper
from .errors import NotFound, QueueError, StaleReceipt
from .http.calls import Call, Steps
from .http.paths import queue_path, receipt_path
from .log import log
from .messages import AckResult, ExtendResult, Leased, drop_none, encode, moment, require_list

LARGEST_BATCH = 10_000  # messages in one request
RELEASES_WITHIN = 2.0  # seconds for retries after `close`
LONGEST_REASON = 1_000  # characters; the service allows a few more


class LeasedMessages:
    """The messages that a client has leased, and the requests that settle them.

    A call names messages, column batches, or receipts; a receipt belongs to the `queue` of the call. `options` are
    those of Call.
    """

    def __init__(self, is_closed: Callable[[], bool], keeper: Callable[[Extend], LeaseKeeper]) -> None:
        self.keeper = keeper(self._renew)
        self._is_closed = is_closed

    def ack_many(
        self, messages: Iterable[Leased | ColumnBatch | str], queue: str = "", **options: Any
    ) -> Steps[AckResult]:
        by_queue = _by_queue(messages, queue)
        for receipts in by_queue.values():
            self.stop_renewing(receipts)
        total = AckResult(0, [], [])
        for name, receipts in by_queue.items():
            for batch in in_batches(receipts, LARGEST_BATCH):
                path = f"{queue_path(name)}/messages/ack"
                reply = yield Call("POST", path, encode({"receipts": batch}), **options)
                result = json.loads(reply.body)
                total += AckResult(result["acked"], result["stale"], result["missing"])
        return total

    def ack_last(self, messages: Iterable[Leased | ColumnBatch | str], queue: str = "") -> Steps[AckResult]:
        """Ack as ack_many, also after `close`: for work that was under way then.

        If the reply to a try was lost, the messages that it acked are among the missing ones.
        """
        retry_for = RELEASES_WITHIN if self._is_closed() else None
        return (yield from self.ack_many(messages, queue, idempotent=True, last=True, retry_for=retry_for))

    def extend_many(
        self, messages: Iterable[Leased | ColumnBatch | str], lease: float, queue: str = "", **options: Any
    ) -> Steps[ExtendResult]:
        total = ExtendResult(0, None, [], [])
        for name, receipts in _by_queue(messages, queue).items():
            for batch in in_batches(receipts, LARGEST_BATCH):
                path = f"{queue_path(name)}/messages/extend"
                body = encode({"receipts": batch, "lease": lease})
                reply = yield Call("POST", path, body, idempotent=True, **options)
                result = json.loads(reply.body)
                until = moment(result["leased_until"]) if result["extended"] else None
                total += ExtendResult(result["extended"], until, result["stale"], result["missing"])
        return total

    def release_all(
        self, messages: Iterable[Leased | str], queue: str = "", *, delay: float = 0, counted: bool = True
    ) -> Steps[None]:
        """Release those that are still leased, also after `close`. Never raises QueueError."""
        yield from self._settle_all(messages, queue, release_body(delay, counted))

    def reject_last(self, message: Leased, reason: str) -> Steps[None]:
        """Move a leased message to the dead letters, also after `close`. Never raises QueueError."""
        reason = reason[:LONGEST_REASON].encode("utf-8", "replace").decode()  # it may quote any exception
        yield from self._settle_all([message], "", reject_body(reason))

    def _settle_all(self, messages: Iterable[Leased | str], queue: str, body: bytes) -> Steps[None]:
        until = time.monotonic() + RELEASES_WITHIN
        for message in messages:
            try:
                left = max(0.0, until - time.monotonic())
                path = self.path_to_settle(message, queue)
                yield Call("PATCH", path, body, retry_for=left, last=True)
            except (NotFound, StaleReceipt):
                continue
            except QueueError as error:
                log.warning("could not release messages, they come back when their leases end: %s", error)
                return

    def release_unworked(self, messages: Sequence[Leased]) -> Steps[None]:
        """Release those that are still leased, as if they had not been delivered. Renew each lease until its turn."""
        try:
            held = (message for message in messages if self.keeper.stop_renewing(message.receipt))
            yield from self.release_all(held, counted=False)
        finally:
            self.stop_renewing(messages)

    def stop_renewing(self, messages: Iterable[Leased | ColumnBatch | str]) -> list[str]:
        """Return the receipts, whose leases are renewed no more. Call it before settling, or a renewal may follow."""
        receipts = [receipt_of(message) for message in require_list(messages)]
        for receipt in receipts:
            self.keeper.stop_renewing(receipt)
        return receipts

    def path_to_settle(self, message: Leased | str, queue: str) -> str:
        """Stop renewing the message's lease and return the path to settle it at."""
        self.stop_renewing([message])
        return path_of(message, queue)

    def _renew(self, messages: list[Leased], lease: float, timeout: float) -> Steps[ExtendResult]:
        """Extend leases for the lease keeper, within about `timeout` seconds, also after `close`."""
        return (yield from self.extend_many(messages, lease, timeout=timeout, retry_for=timeout / 2, last=True))


def path_of(message: Leased | str, queue: str) -> str:
    """Return the path of a leased message."""
    return receipt_path(message.queue if isinstance(message, Leased) else queue, receipt_of(message))


def receipt_of(message: Leased | ColumnBatch | str) -> str:
    """Return the receipt. Raises ValueError for a message without one."""
    if isinstance(message, str):
        return message
    if message.receipt is None:
        raise ValueError("this message was read without a lease, so it needs no settling")
    return message.receipt


def release_body(delay: float, counted: bool) -> bytes:
    """Return the JSON of a release."""
    return encode({"lease": 0, **drop_none(delay=delay or None, counted=None if counted else False)})


def reject_body(reason: str | None) -> bytes:
    """Return the JSON that moves a message to the dead letters."""
    return encode(drop_none(dead=True, reason=reason))


def report_stale(result: AckResult) -> None:
    """Log the messages that another reader gets again, although this one finished them."""
    for receipt in result.stale:
        log.warning("the lease of the message with receipt %s ended too early: another reader has it", receipt)


def _by_queue(messages: Iterable[Leased | ColumnBatch | str], queue: str) -> dict[str, list[str]]:
    """Return the receipts by queue."""
    by_queue: dict[str, list[str]] = {}
    for message in require_list(messages):
        by_queue.setdefault(queue if isinstance(message, str) else message.queue, []).append(receipt_of(message))
    return by_queue
