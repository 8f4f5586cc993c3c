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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, Unpack
from urllib.parse import quote, urlencode

from clients.administration import Administration, queue_path
from clients.consuming import LONGEST_WAIT, consume
from clients.errors import NotFound, QueueError, StaleReceipt
from clients.leases import LeaseKeeper, log
from clients.messages import (
    AckResult,
    Ask,
    Envelope,
    Message,
    NextMessages,
    Outgoing,
    Source,
    TransactionReply,
    encode,
    outgoing,
    received,
)
from clients.transport import Reply, Transport, retry_after

LARGEST_BATCH = 10_000  # messages or receipts in one request


class QueueClient(Administration):
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

    def send(self, text: str, *, queue: str | None = None, **envelope: Unpack[Envelope]) -> str:
        """The message is on disk; its id. Raises QueueFull, BadRequest, ValueError for a lone surrogate."""
        return str(json.loads(self._post(queue, encode({"text": text, **envelope})).body)["id"])

    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> list[str]:
        """All are on disk, in order, or none is; their ids. At most 10,000; a bare string is a message's text.

        `idempotency_key`: for a caller that can repeat the call itself, after a crash for instance.
        """
        batch = [outgoing(message) for message in messages]
        return self.send_encoded(encode(batch), queue=queue, idempotency_key=idempotency_key) if batch else []

    def send_encoded(self, batch: bytes, *, queue: str | None = None, idempotency_key: str | None = None) -> list[str]:
        """As send_many, for a caller that made the JSON array itself."""
        return list(json.loads(self._post(queue, batch, idempotency_key).body)["ids"])

    def receive(self, **ask: Unpack[Ask]) -> list[Message]:
        """Up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are gone from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and have to be acked. `queues`: take
        from these, in this order of preference.
        """
        name = ask.get("queue") or self.queue
        return [received(document, name, self) for document in self.receive_documents(**ask)]

    def receive_documents(self, **ask: Unpack[Ask]) -> list[dict[str, Any]]:
        """As receive, but in the words of the wire: cheaper where messages come by the thousand."""
        lease, limit, queues = ask.get("lease"), ask.get("limit", 1), ask.get("queues") or ()
        query: list[tuple[str, str | int | float]] = [("limit", limit)] if limit != 1 or lease is not None else []
        if lease is not None:
            query.append(("lease", round(lease, 3) if isinstance(lease, float) else lease))
        if recipient := ask.get("recipient"):
            query.append(("recipient", recipient))
        query += [("queue", name) for name in queues]
        path = "/messages" if queues else f"{queue_path(ask.get('queue') or self.queue)}/messages"
        # A plain read is gone once done: the key lets a retry have the reply that was lost.
        headers = {} if lease is not None else {"Idempotency-Key": uuid.uuid4().hex}
        reply = self._poll(path, query, ask.get("wait", 0), headers)
        return [] if reply is None else _documents(reply)

    def consume(
        self,
        *,
        lease: float = 60,
        batch: int = 1,
        idle: float | None = None,
        **source: Unpack[Source],
    ) -> Iterator[Message]:
        """Messages one after the other, for ever, or until there was none for `idle` seconds.

        Each is acked when the loop comes back for the next one, unless the body settled it. When the body
        raises or breaks, the message in hand is given back unacked. The lease (s) is renewed in the background
        while the body works. `batch`: how many are leased at once.
        """
        return consume(self, self._leases, lease=lease, batch=batch, idle=idle, source=source)

    def ack(self, message: Message | str, *, queue: str | None = None) -> None:
        """Done with: it is gone. By message, or by receipt and queue. Raises StaleReceipt, NotFound."""
        self._transport.call("DELETE", self._settling(message, queue), done_if_lost=(404,))

    def ack_many(self, messages: Iterable[Message | str], *, queue: str | None = None) -> AckResult:
        """Ack those that are still ours and tell which are not. A bare receipt is one of `queue`."""
        by_queue: dict[str, list[str]] = {}
        for message in messages:
            name = message.queue if isinstance(message, Message) else queue or self.queue
            by_queue.setdefault(name, []).extend(self._let_go([message]))
        total = AckResult(0, [], [])
        for name, receipts in by_queue.items():
            for start in range(0, len(receipts), LARGEST_BATCH):
                total += self._ack_batch(name, receipts[start : start + LARGEST_BATCH])
        return total

    def extend(self, message: Message | str, lease: float, *, queue: str | None = None) -> None:
        """The lease ends `lease` seconds from now. Raises StaleReceipt, NotFound."""
        self._transport.call("PATCH", _path(message, queue or self.queue), body=encode({"lease": lease}))

    def release(self, message: Message | str, *, delay: float = 0, queue: str | None = None) -> None:
        """Give it back, to be delivered again in `delay` seconds. Raises StaleReceipt, NotFound."""
        change = {"lease": 0, "delay": delay} if delay else {"lease": 0}
        self._transport.call("PATCH", self._settling(message, queue), body=encode(change), done_if_lost=(404, 409))

    def give_back(self, messages: Iterable[Message]) -> None:
        """Release them at once, as far as the service can be reached: for a reader on its way out. Never raises."""
        for message in messages:
            try:
                self._transport.call("PATCH", self._settling(message, None), body=encode({"lease": 0}), retry_for=0)
            except QueueError as error:
                log.info("message %s comes back only when its lease ends: %s", message.id, error)
                return

    def reject(self, message: Message | str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move it to the dead letters now. Raises StaleReceipt, NotFound."""
        change = {"dead": True} if reason is None else {"dead": True, "reason": reason}
        self._transport.call("PATCH", self._settling(message, queue), body=encode(change), done_if_lost=(404,))

    dead = reject

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
        document: dict[str, Any] = {"ack": self._let_go(ack)}
        document["send"] = [{"queue": self.queue, **outgoing(message)} for message in send]
        if receive is not None:
            document["receive"] = {"queue": self.queue, **_given(receive)}
        told = self._transact(document, {"Idempotency-Key": idempotency_key or uuid.uuid4().hex})
        name = (receive or {}).get("queue") or self.queue
        messages = [received(document, name, self) for document in told.get("messages", ())]
        return TransactionReply(list(told.get("ids", ())), messages)

    def ack_and_receive(
        self, messages: Iterable[Message | str], **ask: Unpack[NextMessages]
    ) -> tuple[AckResult, list[dict[str, Any]]]:
        """Ack these, as ack_many does, and lease the next ones, in one request: a reader's whole loop."""
        receipts = self._let_go(messages)
        document = {"ack": receipts, "receive": {"queue": self.queue, **_given(ask)}}
        try:
            told = self._transact(document, {})
            return AckResult(len(receipts), [], []), told.get("messages", [])
        except (NotFound, StaleReceipt):  # of one of them: then none was acked
            return self.ack_many(receipts, queue=ask.get("queue")), self.receive_documents(**ask)

    def close(self) -> None:
        """Stop renewing leases and close idle connections; calls that wait for their next try give up."""
        self._leases.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def _post(self, queue: str | None, body: bytes, key: str | None = None) -> Reply:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._transport.call("POST", f"{queue_path(queue or self.queue)}/messages", body=body, headers=headers)

    def _poll(
        self, path: str, query: list[tuple[str, str | int | float]], wait: float, headers: Mapping[str, str]
    ) -> Reply | None:
        """The first reply that has messages; None if there was none in `wait` seconds."""
        until = time.monotonic() + wait
        while True:
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
            if headers:
                headers = {"Idempotency-Key": uuid.uuid4().hex}  # this one has had its reply

    def _renew(self, message: Message, lease: float) -> None:
        path = _path(message, self.queue)
        self._transport.call("PATCH", path, body=encode({"lease": lease}), retry_for=lease / 8)

    def _transact(self, document: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        waits = document.get("receive", {}).get("wait", 0)
        reply = self._transport.call("POST", "/transactions", body=encode(document), headers=headers, waits=waits)
        if reply.status == 204:  # done, with nothing to receive and no place to wait for it
            time.sleep(retry_after(reply.headers) or 0)
            return {}
        return dict(json.loads(reply.body))

    def _ack_batch(self, queue: str, receipts: list[str]) -> AckResult:
        path = f"{queue_path(queue)}/messages/ack"
        reply = self._transport.call("POST", path, body=encode({"receipts": receipts}))
        told = json.loads(reply.body)
        if reply.tries > 1:  # what is missing after a try whose reply was lost was acked by that try
            return AckResult(told["acked"] + len(told["missing"]), told["stale"], [])
        return AckResult(told["acked"], told["stale"], told["missing"])

    def _let_go(self, messages: Iterable[Message | str]) -> list[str]:
        """Their receipts. Before they are settled, so that no renewal takes a lease anew."""
        receipts = [_receipt(message) for message in messages]
        for receipt in receipts:
            self._leases.let_go(receipt)
        return receipts

    def _settling(self, message: Message | str, queue: str | None) -> str:
        """The path under which it is settled; its lease is renewed no more."""
        self._let_go([message])
        return _path(message, queue or self.queue)


def _path(message: Message | str, queue: str) -> str:
    name = message.queue if isinstance(message, Message) else queue
    return f"{queue_path(name)}/messages/{quote(_receipt(message), safe='~')}"


def _given(ask: NextMessages) -> dict[str, Any]:
    return {name: value for name, value in ask.items() if value is not None}


def _documents(reply: Reply) -> list[dict[str, Any]]:
    content = json.loads(reply.body)
    if isinstance(content, list):
        return content
    for name, header in (("id", "Message-Id"), ("sent_at", "Message-Sent-At"), ("queue", "Message-Queue")):
        if header in reply.headers:
            content.setdefault(name, reply.headers[header])
    return [content]


def _receipt(message: Message | str) -> str:
    if isinstance(message, str):
        return message
    if message.receipt is None:
        raise ValueError("this message was read without a lease: there is nothing to settle")
    return message.receipt
