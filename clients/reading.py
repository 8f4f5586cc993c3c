"""Requests that lease or remove messages: polls, and transactions that ack what was read before."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlencode

from .column_batches import ColumnBatch, column_batches_of, messages_of
from .errors import NotFound, ProblemError, StaleReceipt, Unreachable
from .http.calls import Call, IsCut, Pause, Reply, Steps, retry_after
from .http.paths import queue_path
from .messages import AckResult, Lease, Leased, Source, encode
from .settling import LeasedMessages

LONGEST_WAIT = 20.0  # seconds that the service holds one poll
LONGEST_UNCUT_WAIT = 5.0  # seconds of a loop's poll where `is_cut` cannot end it


class Reader:
    """Read messages, and ack the `leased` ones. Calls return the messages as in the replies, one document each."""

    def __init__(
        self, leased: LeasedMessages, is_closed: IsCut, *, can_cut: bool, drops_late_replies: bool = False
    ) -> None:
        """`can_cut`: a poll ends once it is cut. `drops_late_replies`: its reply may then be lost."""
        self.leased = leased
        self.is_closed = is_closed
        # seconds of one poll of a loop that should end soon after it was asked to
        self.longest_wait = LONGEST_WAIT if can_cut else LONGEST_UNCUT_WAIT
        self._drops_late_replies = drops_late_replies

    def read(
        self,
        source: Source,
        limit: int,
        wait: float,
        lease: Lease | None,
        headers: Mapping[str, str] | None = None,
        is_cut: IsCut | None = None,
    ) -> Steps[list[dict[str, Any]]]:
        """Poll until there are messages, or return none after `wait` seconds.

        With a lease the wait ends at `close`, and once `is_cut` returns True. Then it returns none, or raises
        QueueError.
        """
        is_cut = is_cut or self.is_closed
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
            late_reply = partial(_late_read, at_once, waiting, headers or {}, key)
            try:
                # A poll without a lease is not cut: the messages that it removed are in its reply alone.
                reply = yield Call(
                    "GET", waiting, headers=headers or {}, key=key, waits=poll,
                    is_cut=is_cut if lease is not None else None, late_reply=None if lease is None else late_reply,
                )  # fmt: skip
            except Unreachable:
                if lease is None or not poll or not is_cut():
                    raise
                reply = yield from late_reply()
            if reply.status != 204:
                return documents_of(reply)
            # A 204 with a Retry-After did not wait, because too many readers were waiting.
            pause = retry_after(reply.headers)
            if pause is not None and left > 0:
                yield Pause(pause, is_cut)
            if time.monotonic() >= until or is_cut():
                return []

    def ack_and_read(
        self,
        messages: Iterable[Leased | ColumnBatch | str],
        source: Source,
        limit: int,
        wait: float,
        lease: Lease,
        headers: Mapping[str, str] | None = None,
        is_cut: IsCut | None = None,
    ) -> Steps[tuple[AckResult, list[dict[str, Any]]]]:
        """Ack the messages and lease the next ones, in one request if all receipts are valid; `is_cut` as in read.

        If the reply to a cut request may be dropped, the wait is a request of its own, which can recover from that.
        """
        receipts = self.leased.stop_renewing(messages)
        waits_apart = self._drops_late_replies
        receive = {"queue": source.name, "limit": limit, "wait": 0 if waits_apart else wait, "lease": lease}
        receive |= source.readers
        try:
            reply = yield from self.transact({"ack": receipts, "receive": receive}, headers, is_cut=is_cut)
        except (NotFound, StaleReceipt):  # one of the receipts was not valid, so nothing was done
            acked = yield from self.leased.ack_many(receipts, source.name)
            return acked, (yield from self.read(source, limit, wait, lease, headers, is_cut))
        documents = reply.get("messages", [])
        if waits_apart and wait and not documents:
            documents = yield from self.read(source, limit, wait, lease, headers, is_cut)
        return AckResult(messages_of(receipts), [], []), documents

    def release_late(self, reply: Reply) -> Steps[None]:
        """Release the messages of a reply that nothing waits for any more, as if they had not been delivered."""
        content = json.loads(reply.body or b"[]")
        documents = content if isinstance(content, list) else content.get("messages", ())
        for batch in column_batches_of(documents):
            yield from self.leased.release_all(batch.receipts, batch.queue, counted=False)

    def transact(
        self,
        document: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        is_cut: IsCut | None = None,
    ) -> Steps[dict[str, Any]]:
        """Make a transaction and return the reply's JSON; {} if there was nothing to receive."""
        waits, is_cut = document.get("receive", {}).get("wait", 0), is_cut or self.is_closed
        is_uncut = waits and self._drops_late_replies
        call = Call(
            "POST", "/transactions", encode(document), headers=headers or {}, key=key or os.urandom(16).hex(),
            waits=waits, is_cut=None if is_uncut else is_cut,
        )  # fmt: skip

        def late_reply() -> Steps[Reply]:
            at_once = encode({**document, "receive": {**document["receive"], "wait": 0}})
            return (yield from _late_reply(replace(call, body=at_once), call))

        reply = yield replace(call, late_reply=late_reply) if "receive" in document else call
        if reply.status == 204:  # done, and the service did not wait for messages
            yield Pause(retry_after(reply.headers) or 0, is_cut)
            return {}
        return dict(json.loads(reply.body))


def _late_read(at_once: str, waiting: str, headers: Mapping[str, str], key: str) -> Steps[Reply]:
    return (yield from _late_reply(*(Call("GET", path, headers=headers, key=key) for path in (at_once, waiting))))


def _late_reply(at_once: Call, waiting: Call) -> Steps[Reply]:
    """Return the reply of a poll that was cut and got none, or of the same without a wait. Raises QueueError.

    A proxy may drop the reply to a reader that has hung up, so the poll may have leased messages. Then the service
    refuses its key to the read without a wait, and repeats the poll's reply.
    """
    try:
        return (yield replace(at_once, waits=0, is_cut=None, retry_for=0, last=True))
    except ProblemError as fault:
        if fault.code != "idempotency_mismatch":
            raise
    return (yield replace(waiting, waits=0, is_cut=None, retry_for=0, last=True))


def documents_of(reply: Reply) -> list[dict[str, Any]]:
    """Return the messages of a read's reply."""
    content = json.loads(reply.body)
    if isinstance(content, list):
        return content
    for name, header in (("id", "message-id"), ("sent_at", "message-sent-at"), ("queue", "message-queue")):
        if header in reply.headers:
            content.setdefault(name, reply.headers[header])
    return [content]
