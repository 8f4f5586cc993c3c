"""A queue service over HTTP, from Python.

For example:

    with QueueClient("http://127.0.0.1:5000", queue="thumbnails") as client:
        client.send("cat.png", priority=5)
        for message in client.consume(lease=60):
            make_thumbnail(message.text)  # acked when the loop comes back; not if this raises
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, Unpack
from urllib.parse import urlencode

from .column_batches import RUNS, ColumnBatch, column_batches_of, encode_batch, messages_of
from .consuming import LONGEST_WAIT, consume
from .errors import NotFound, StaleReceipt
from .leases import LeaseKeeper
from .messages import (
    AckResult,
    Attribute,
    Lease,
    Message,
    NextMessages,
    Outgoing,
    Reading,
    ReadingOne,
    SentId,
    SentIds,
    Source,
    TransactionReply,
    drop_none,
    encode,
    parse_message,
    require_list,
    to_document,
)
from .settling import Settling
from .transport import Reply, Transport, retry_after


class QueueClient(Settling):
    """One queue service, with `queue` as the queue meant where a call names none. Safe to share between threads.

    `timeout` (s) is for connecting and for one reply. A call that found no connection, lost its reply, or was
    answered 429, 502, 503 or 504 is tried again for `retry_for` seconds, with backoff and as Retry-After asks. A
    call that changes something carries one Idempotency-Key over all its tries, so it is done once, and a read
    returns what the first try took. `trust_env` honours proxy and certificate settings in the environment; `verify`
    is as in requests.

    Every call raises ProblemError with the service's problem document, or Unreachable; see clients.errors.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:5000",
        *,
        queue: str = "default",
        token: str | None = None,
        timeout: float = 30.0,
        retry_for: float = 30.0,
        trust_env: bool = False,
        verify: bool | str = True,
    ) -> None:
        self.queue = queue
        self._transport = Transport(
            url, token=token, timeout=timeout, retry_for=retry_for, trust_env=trust_env, verify=verify
        )
        self._leases = LeaseKeeper(self._renew)

    def is_closed(self) -> bool:
        return self._transport.is_closed()

    def send(
        self,
        text: str,
        *,
        key: str | None = None,
        priority: int | None = None,
        recipient: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        delay: float | None = None,
        ttl: float | None = None,
        dedup_id: str | None = None,
        queue: str | None = None,
    ) -> SentId:
        """Send a message and return its id. The message is on disk when this returns; clients.Outgoing has the fields.

        Where the dedup_id is known, nothing is stored: the id is the first message's, and its `duplicate` is True.
        Raises QueueFull, BadRequest, ValueError for a lone surrogate.
        """
        message = drop_none(
            text=text, key=key, priority=priority, recipient=recipient, attributes=attributes, delay=delay, ttl=ttl,
            dedup_id=dedup_id,
        )  # fmt: skip
        reply = json.loads(self._post(queue, encode(message)).body)
        sent = SentId(reply["id"])
        sent.duplicate = reply.get("duplicate", False)
        return sent

    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> SentIds:
        """Send all messages, in order, or none; return their ids. At most 10,000; a bare string is a message's text.

        The list's `duplicates` has the places of those that a known dedup_id suppressed. `idempotency_key`: for a
        caller that can repeat the call itself, after a crash for instance.
        """
        batch = list(require_list(messages))
        if not batch:
            return SentIds()
        content, kind = encode_batch(batch)
        return self.send_encoded(content, kind, queue=queue, idempotency_key=idempotency_key)

    def send_encoded(
        self,
        batch: bytes,
        kind: str = "application/json",
        *,
        queue: str | None = None,
        idempotency_key: str | None = None,
    ) -> SentIds:
        """As send_many, for a caller that made the batch's JSON itself; `kind` is its media type."""
        reply = json.loads(self._post(queue, batch, idempotency_key, kind).body)
        return SentIds(reply["ids"], reply.get("duplicates", ()))

    def receive(
        self,
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease | None = None,
        **source: Unpack[Reading],
    ) -> list[Message]:
        """Return up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are removed from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and have to be acked. With `recipient` only
        messages addressed to it are read, without it only unaddressed ones, with `any_recipient` all. `queues`: take
        from these, in this order of preference.
        """
        documents = self.receive_documents(limit=limit, wait=wait, lease=lease, **source)
        return [parse_message(document, source.get("queue") or self.queue, self) for document in documents]

    def receive_documents(
        self,
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease | None = None,
        **source: Unpack[Reading],
    ) -> list[dict[str, Any]]:
        """As receive, but in the words of the wire: cheaper where messages come by the thousand."""
        return self._read(Source(**source), limit, wait, lease)

    def receive_runs(
        self,
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        **source: Unpack[Reading],
    ) -> list[ColumnBatch]:
        """As receive, in columns: for a reader that takes messages by the thousand and looks at texts and attributes.

        They are acked as runs, by ack_many or ack_and_receive_runs, or one by one by their `receipts`.
        """
        return column_batches_of(self._read(Source(**source), limit, wait, lease, {"Accept": RUNS}))

    def consume(
        self,
        *,
        lease: float = 60,
        batch: int = 1,
        idle: float | None = None,
        **source: Unpack[Reading],
    ) -> Iterator[Message]:
        """Yield messages one after the other, for ever, or until there was none for `idle` seconds.

        Each is acked when the loop comes back for the next one, unless the body settled it. The lease (s) is renewed
        in the background while the body works. `batch`: how many are leased at once. The others are as in receive.

        When the body breaks or raises, the message in hand is given back, to be delivered again in a second, and
        after twice as long at each further delivery, up to five minutes: so one that always fails does not hold up the
        others. To give it back otherwise, release it before the break. Messages that the body has not seen are
        given back at once, as if they had not been delivered. After `close` the loop ends likewise, once the body has
        returned. A process that ends by a signal gives back only if its handler raises, as that of SIGINT does.
        """
        self._transport.check_open()
        return consume(self, self._leases, lease=lease, batch=batch, idle=idle, source=Source(**source))

    def transact(
        self,
        *,
        ack: Iterable[Message | str] = (),
        send: Iterable[str | Outgoing] = (),
        receive: NextMessages | None = None,
        idempotency_key: str | None = None,
    ) -> TransactionReply:
        """Ack and send, over any queues, in one commit: all or nothing; then receive, in the same request.

        Raises StaleReceipt if any of the receipts is no longer ours; then nothing was done.
        """
        sent = [{"queue": self.queue, **to_document(message)} for message in require_list(send)]
        document: dict[str, Any] = {"ack": self._stop_renewing(ack), "send": sent}
        if receive is not None:
            document["receive"] = {"queue": self.queue, **drop_none(**receive)}
        reply = self._transact(document, key=idempotency_key)
        name = (receive or {}).get("queue") or self.queue
        messages = [parse_message(document, name, self) for document in reply.get("messages", ())]
        return TransactionReply(list(reply.get("ids", ())), list(reply.get("duplicates", ())), messages)

    def ack_and_receive(
        self,
        messages: Iterable[Message | str],
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease = "default",
        **source: Unpack[ReadingOne],
    ) -> tuple[AckResult, list[dict[str, Any]]]:
        """Ack these, as ack_many does, and lease the next ones, in one request: a reader's whole loop."""
        return self._settle_and_read(messages, Source(**source), limit, wait, lease)

    def ack_and_receive_runs(
        self,
        messages: Iterable[Message | ColumnBatch | str],
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        **source: Unpack[ReadingOne],
    ) -> tuple[AckResult, list[ColumnBatch]]:
        """Ack these runs (or messages, or receipts) and lease the next ones, in one request: a reader's whole loop.

        Those that are no longer ours are reported, as by ack_many, and keep nothing else from being acked.
        """
        done, documents = self._settle_and_read(messages, Source(**source), limit, wait, lease, {"Accept": RUNS})
        return done, column_batches_of(documents)

    def close(self) -> None:
        """End the client: later calls raise Closed, those that wait for their next try or for messages give up.

        A loop of `consume` ends once its body has returned; what its body has not seen is given back now.
        """
        unbegun = self._leases.close()
        self._transport.close()
        self._hand_back(unbegun)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _settle_and_read(
        self,
        messages: Iterable[Message | ColumnBatch | str],
        source: Source,
        limit: int,
        wait: float,
        lease: Lease,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[AckResult, list[dict[str, Any]]]:
        """As ack_and_receive, for a source that was checked before."""
        receipts = self._stop_renewing(messages)
        queue = self.queue if source.queue is None else source.queue
        ask = {"queue": queue, "limit": limit, "wait": wait, "lease": lease, **source.readers}
        try:
            reply = self._transact({"ack": receipts, "receive": ask}, headers)
        except (NotFound, StaleReceipt):  # one of the receipts did not hold, so nothing was done
            return self.ack_many(receipts, queue=queue), self._read(source, limit, wait, lease, headers)
        return AckResult(messages_of(receipts), [], []), reply.get("messages", [])

    def _read(
        self, source: Source, limit: int, wait: float, lease: Lease | None, headers: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """As receive_documents, for a source that was checked before."""
        query: list[tuple[str, str | int | float]] = [("limit", limit)] if limit != 1 or lease is not None else []
        if lease is not None:
            query.append(("lease", round(lease, 3) if isinstance(lease, float) else lease))
        query += source.readers.items()
        query += [("queue", name) for name in source.queues or ()]
        path = "/messages" if source.queues else f"{self._path(source.queue)}/messages"
        until = time.monotonic() + wait
        while True:
            left = max(0.0, until - time.monotonic())
            this = min(LONGEST_WAIT, round(left, 3))
            asked = urlencode([*query, ("wait", this)] if this else query)
            # A poll without a lease is not cut: what it has taken is in its reply alone.
            reply = self._transport.call(
                "GET", f"{path}?{asked}" if asked else path, headers=headers, waits=this,
                cut_at_close=bool(this) and lease is not None,
            )  # fmt: skip
            if reply.status != 204:
                return _documents(reply)
            # A 204 with a Retry-After did not wait: the service has as many pollers as it takes.
            pause = retry_after(reply.headers)
            if pause is not None and left > 0:
                self._transport.sleep(pause)
            if time.monotonic() >= until:
                return []

    def _transact(
        self, document: Mapping[str, Any], headers: Mapping[str, str] | None = None, key: str | None = None
    ) -> dict[str, Any]:
        waits = document.get("receive", {}).get("wait", 0)
        reply = self._transport.call(
            "POST", "/transactions", body=encode(document), headers=headers, key=key, waits=waits,
            cut_at_close=bool(waits),
        )  # fmt: skip
        if reply.status == 204:  # done, with nothing to receive and no place to wait for it
            self._transport.sleep(retry_after(reply.headers) or 0)
            return {}
        return dict(json.loads(reply.body))

    def _post(self, queue: str | None, body: bytes, key: str | None = None, kind: str = "application/json") -> Reply:
        path = f"{self._path(queue)}/messages"
        return self._transport.call("POST", path, body=body, headers={"Content-Type": kind}, key=key)

    def _self(self) -> QueueClient:
        return self


def _documents(reply: Reply) -> list[dict[str, Any]]:
    content = json.loads(reply.body)
    if isinstance(content, list):
        return content
    for name, header in (("id", "message-id"), ("sent_at", "message-sent-at"), ("queue", "message-queue")):
        if header in reply.headers:
            content.setdefault(name, reply.headers[header])
    return [content]
