"""Requests that lease or remove messages: polls, and transactions that ack what was read before."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from .column_batches import ColumnBatch, messages_of
from .errors import NotFound, ProblemError, StaleReceipt, Unreachable
from .http.paths import queue_path
from .http.transport import Reply, Transport, retry_after
from .messages import AckResult, Lease, LeasedMessage, Source, encode
from .settling import LeasedMessages

LONGEST_WAIT = 20.0  # seconds that the service holds one poll
LONGEST_UNCUT_WAIT = 5.0  # seconds of a loop's poll where `is_cut` cannot end it


class Reader:
    """Read messages, and ack the `leased` ones. Calls return the messages as in the replies, one document each."""

    def __init__(self, transport: Transport, leased: LeasedMessages) -> None:
        self._transport = transport
        self.leased = leased
        self.is_closed = transport.is_closed

    @property
    def longest_wait(self) -> float:
        """Return the seconds of one poll of a loop that should end soon after it was asked to."""
        return LONGEST_WAIT if self._transport.can_cut else LONGEST_UNCUT_WAIT

    def read(
        self,
        source: Source,
        limit: int,
        wait: float,
        lease: Lease | None,
        headers: Mapping[str, str] | None = None,
        is_cut: Callable[[], bool] | None = None,
    ) -> list[dict[str, Any]]:
        """Poll until there are messages, or return none after `wait` seconds.

        With a lease the wait ends at `close`, and once `is_cut` returns True. Then it returns none, or raises
        QueueError.
        """
        is_cut = is_cut or self._transport.is_closed
        query: list[tuple[str, str | int | float]] = [("limit", limit)] if limit != 1 or lease is not None else []
        if lease is not None:
            query.append(("lease", round(lease, 3) if isinstance(lease, float) else lease))
        query += source.readers.items()
        query += [("queue", name) for name in source.queues or ()]
        path = "/messages" if source.queues else f"{queue_path(source.name)}/messages"
        until = time.monotonic() + wait
        while True:
            left = max(0.0, until - time.monotonic())
            poll = min(LONGEST_WAIT, round(left, 3))
            at_once = f"{path}?{urlencode(query)}" if query else path
            waiting = f"{path}?{urlencode([*query, ('wait', poll)])}" if poll else at_once
            key = os.urandom(16).hex()
            try:
                # A poll without a lease is not cut: the messages that it removed are in its reply alone.
                reply = self._transport.call(
                    "GET", waiting, headers=headers, key=key, waits=poll, is_cut=is_cut if lease is not None else None
                )
            except Unreachable:
                if lease is None or not poll or not is_cut():
                    raise
                reply = self._late_reply(waiting, at_once, headers, key)
            if reply.status != 204:
                return _documents(reply)
            # A 204 with a Retry-After did not wait, because too many readers were waiting.
            pause = retry_after(reply.headers)
            if pause is not None and left > 0:
                self._transport.sleep(pause, is_cut)
            if time.monotonic() >= until or is_cut():
                return []

    def _late_reply(self, waiting: str, at_once: str, headers: Mapping[str, str] | None, key: str) -> Reply:
        """Return the reply of a poll that was cut and got none, or of a read without a wait. Raises QueueError.

        A proxy may drop the reply to a reader that has hung up, so the poll may have leased messages. Then the service
        refuses its key to the read without a wait, and repeats the poll's reply.
        """
        call = partial(self._transport.call, headers=headers, key=key, retry_for=0, last=True)
        try:
            return call("GET", at_once)
        except ProblemError as fault:
            if fault.code != "idempotency_mismatch":
                raise
            return call("GET", waiting)

    def ack_and_read(
        self,
        messages: Iterable[LeasedMessage | ColumnBatch | str],
        source: Source,
        limit: int,
        wait: float,
        lease: Lease,
        headers: Mapping[str, str] | None = None,
        is_cut: Callable[[], bool] | None = None,
    ) -> tuple[AckResult, list[dict[str, Any]]]:
        """Ack the messages and lease the next ones, in one request if all receipts are valid; `is_cut` as in read.

        If the reply to a cut request may be dropped, the wait is a request of its own, which can recover from that.
        """
        receipts = self.leased.stop_renewing(messages)
        waits_apart = self._transport.drops_late_replies
        receive = {"queue": source.name, "limit": limit, "wait": 0 if waits_apart else wait, "lease": lease}
        receive |= source.readers
        try:
            reply = self.transact({"ack": receipts, "receive": receive}, headers, is_cut=is_cut)
        except (NotFound, StaleReceipt):  # one of the receipts was not valid, so nothing was done
            acked = self.leased.ack_many(receipts, source.name)
            return acked, self.read(source, limit, wait, lease, headers, is_cut)
        documents = reply.get("messages", [])
        if waits_apart and wait and not documents:
            documents = self.read(source, limit, wait, lease, headers, is_cut)
        return AckResult(messages_of(receipts), [], []), documents

    def transact(
        self,
        document: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        is_cut: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Make a transaction and return the reply's JSON; {} if there was nothing to receive."""
        waits, is_cut = document.get("receive", {}).get("wait", 0), is_cut or self._transport.is_closed
        is_uncut = waits and self._transport.drops_late_replies
        reply = self._transport.call(
            "POST", "/transactions", body=encode(document), headers=headers, key=key, waits=waits,
            is_cut=None if is_uncut else is_cut,
        )  # fmt: skip
        if reply.status == 204:  # done, and the service did not wait for messages
            self._transport.sleep(retry_after(reply.headers) or 0, is_cut)
            return {}
        return dict(json.loads(reply.body))


def _documents(reply: Reply) -> list[dict[str, Any]]:
    content = json.loads(reply.body)
    if isinstance(content, list):
        return content
    for name, header in (("id", "message-id"), ("sent_at", "message-sent-at"), ("queue", "message-queue")):
        if header in reply.headers:
            content.setdefault(name, reply.headers[header])
    return [content]
