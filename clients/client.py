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
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from clients.consuming import LONGEST_WAIT, consume
from clients.errors import NotFound, StaleReceipt
from clients.leases import LeaseKeeper
from clients.messages import (
    AckResult,
    Attribute,
    Lease,
    Message,
    NextMessages,
    Outgoing,
    Source,
    TransactionReply,
    encode,
    given,
    outgoing,
    received,
    several,
)
from clients.runs import RUNS, Run, encode_batch, messages_of, runs_of
from clients.settling import Settling
from clients.transport import Reply, Transport, retry_after


class QueueClient(Settling):
    """One queue service, with `queue` as the queue meant where a call names none. Safe to share between threads.

    `timeout` (s) is for connecting and for one reply. A call that found no connection, lost its reply, or was
    told 503 or 429 is tried again for `retry_for` seconds, with backoff and as Retry-After asks; a write carries
    one Idempotency-Key over all its tries, so that it is stored once. `trust_env` honours proxy and certificate
    settings in the environment; `verify` is as in requests.

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
    ) -> str:
        """The message is on disk; its id. What each field means is said at clients.Outgoing.

        Raises QueueFull, BadRequest, ValueError for a lone surrogate.
        """
        message = given(
            text=text, key=key, priority=priority, recipient=recipient, attributes=attributes, delay=delay, ttl=ttl,
            dedup_id=dedup_id,
        )  # fmt: skip
        return str(json.loads(self._post(queue, encode(message)).body)["id"])

    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> list[str]:
        """All are on disk, in order, or none is; their ids. At most 10,000; a bare string is a message's text.

        `idempotency_key`: for a caller that can repeat the call itself, after a crash for instance.
        """
        batch = list(several(messages))
        if not batch:
            return []
        content, kind = encode_batch(batch)
        return self.send_encoded(content, kind, queue=queue, idempotency_key=idempotency_key)

    def send_encoded(
        self,
        batch: bytes,
        kind: str = "application/json",
        *,
        queue: str | None = None,
        idempotency_key: str | None = None,
    ) -> list[str]:
        """As send_many, for a caller that made the batch's JSON itself; `kind` is its media type."""
        return list(json.loads(self._post(queue, batch, idempotency_key, kind).body)["ids"])

    def receive(
        self,
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease | None = None,
        recipient: str | None = None,
        queue: str | None = None,
        queues: Sequence[str] | None = None,
    ) -> list[Message]:
        """Up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are gone from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and have to be acked. With `recipient`
        only what is addressed to it is read, without it only what is addressed to nobody. `queues`: take from
        these, in this order of preference.
        """
        documents = self.receive_documents(
            limit=limit, wait=wait, lease=lease, recipient=recipient, queue=queue, queues=queues
        )
        return [received(document, queue or self.queue, self) for document in documents]

    def receive_documents(
        self,
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease | None = None,
        recipient: str | None = None,
        queue: str | None = None,
        queues: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """As receive, but in the words of the wire: cheaper where messages come by the thousand."""
        reply = self._read(Source(queue, queues, recipient), limit, wait, lease, {})
        return [] if reply is None else _documents(reply)

    def receive_runs(
        self,
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        recipient: str | None = None,
        queue: str | None = None,
        queues: Sequence[str] | None = None,
    ) -> list[Run]:
        """As receive, in columns: for a reader that takes messages by the thousand and looks at texts and attributes.

        They are acked as runs, by ack_many or ack_and_receive_runs, or one by one by their `receipts`.
        """
        reply = self._read(Source(queue, queues, recipient), limit, wait, lease, {"Accept": RUNS})
        return [] if reply is None else runs_of(json.loads(reply.body))

    def _read(
        self, source: Source, limit: int, wait: float, lease: Lease | None, headers: dict[str, str]
    ) -> Reply | None:
        query: list[tuple[str, str | int | float]] = [("limit", limit)] if limit != 1 or lease is not None else []
        if lease is not None:
            query.append(("lease", round(lease, 3) if isinstance(lease, float) else lease))
        if source.recipient is not None:
            query.append(("recipient", source.recipient))
        query += [("queue", name) for name in source.queues or ()]
        path = "/messages" if source.queues else f"{self._path(source.queue)}/messages"
        return self._poll(path, query, wait, headers, once=lease is None)

    def consume(
        self,
        *,
        lease: float = 60,
        batch: int = 1,
        idle: float | None = None,
        recipient: str | None = None,
        queue: str | None = None,
        queues: Sequence[str] | None = None,
    ) -> Iterator[Message]:
        """Messages one after the other, for ever, or until there was none for `idle` seconds.

        Each is acked when the loop comes back for the next one, unless the body settled it. When the body
        raises or breaks, the message in hand is given back unacked. The lease (s) is renewed in the background
        while the body works. `batch`: how many are leased at once. The others are as in receive.
        """
        source = Source(queue, queues, recipient)
        return consume(self, self._leases, lease=lease, batch=batch, idle=idle, source=source)

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
        sent = [{"queue": self.queue, **outgoing(message)} for message in several(send)]
        document: dict[str, Any] = {"ack": self._let_go(ack), "send": sent}
        if receive is not None:
            document["receive"] = {"queue": self.queue, **given(**receive)}
        told = self._transact(document, {"Idempotency-Key": idempotency_key or uuid.uuid4().hex})
        name = (receive or {}).get("queue") or self.queue
        messages = [received(document, name, self) for document in told.get("messages", ())]
        return TransactionReply(list(told.get("ids", ())), messages)

    def ack_and_receive(
        self,
        messages: Iterable[Message | str],
        *,
        limit: int = 1,
        wait: float = 0,
        lease: Lease = "default",
        recipient: str | None = None,
        queue: str | None = None,
    ) -> tuple[AckResult, list[dict[str, Any]]]:
        """Ack these, as ack_many does, and lease the next ones, in one request: a reader's whole loop."""
        receipts = self._let_go(messages)
        ask = given(limit=limit, wait=wait, lease=lease, recipient=recipient, queue=queue)
        done, told = self._settle_and_read(receipts, ask, {})
        return (done, told) if done else (self.ack_many(receipts, queue=queue), self.receive_documents(**ask))

    def ack_and_receive_runs(
        self,
        messages: Iterable[Message | Run | str],
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        recipient: str | None = None,
        queue: str | None = None,
    ) -> tuple[AckResult, list[Run]]:
        """Ack these runs (or messages, or receipts) and lease the next ones, in one request: a reader's whole loop.

        What is no longer ours is told, as by ack_many, and keeps nothing else from being acked.
        """
        receipts = self._let_go(messages)
        ask = given(limit=limit, wait=wait, lease=lease, recipient=recipient, queue=queue)
        done, told = self._settle_and_read(receipts, ask, {"Accept": RUNS})
        return (done, runs_of(told)) if done else (self.ack_many(receipts, queue=queue), self.receive_runs(**ask))

    def _settle_and_read(
        self, receipts: list[str], ask: dict[str, Any], headers: Mapping[str, str]
    ) -> tuple[AckResult | None, list[dict[str, Any]]]:
        """None: one of the receipts did not hold, so nothing was done."""
        try:
            told = self._transact({"ack": receipts, "receive": {"queue": self.queue, **ask}}, headers)
        except (NotFound, StaleReceipt):
            return None, []
        return AckResult(messages_of(receipts), [], []), told.get("messages", [])

    def close(self) -> None:
        """Stop renewing leases and close idle connections; calls that wait for their next try give up."""
        self._leases.close()
        super().close()

    def _post(self, queue: str | None, body: bytes, key: str | None = None, kind: str = "application/json") -> Reply:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex, "Content-Type": kind}
        return self._transport.call("POST", f"{self._path(queue)}/messages", body=body, headers=headers)

    def _poll(
        self, path: str, query: list[tuple[str, str | int | float]], wait: float, headers: dict[str, str], *, once: bool
    ) -> Reply | None:
        """The first reply that has messages; None if there was none in `wait` seconds.

        `once`: what a reply brings is gone from the queue, so a retry has to be given the one that was lost.
        """
        until = time.monotonic() + wait
        while True:
            if once:
                headers["Idempotency-Key"] = uuid.uuid4().hex
            left = max(0.0, until - time.monotonic())
            this = min(LONGEST_WAIT, round(left, 3))
            asked = urlencode([*query, ("wait", this)] if this else query)
            reply = self._transport.call("GET", f"{path}?{asked}" if asked else path, headers=headers, waits=this)
            if reply.status != 204:
                return reply
            # A 204 with a Retry-After did not wait: the service has as many pollers as it takes.
            pause = retry_after(reply.headers)
            if pause is not None and left > 0:
                time.sleep(pause)
            if time.monotonic() >= until:
                return None

    def _transact(self, document: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        waits = document.get("receive", {}).get("wait", 0)
        reply = self._transport.call("POST", "/transactions", body=encode(document), headers=headers, waits=waits)
        if reply.status == 204:  # done, with nothing to receive and no place to wait for it
            time.sleep(retry_after(reply.headers) or 0)
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
