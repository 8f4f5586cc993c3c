"""Call a queue service over HTTP, for example:

with QueueClient("http://127.0.0.1:5000", queue="thumbnails") as client:
    client.send("cat.png", priority=5)
    for message in client.consume(lease=60):
        make_thumbnail(message.text)  # acked when the loop asks for the next one; not if this raises
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, Unpack
from urllib.parse import urlencode

from .column_batches import RUNS, ColumnBatch, column_batches_of, encode_batch
from .consuming import consume
from .messages import (
    AckResult,
    Attribute,
    ExtendResult,
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
from .paths import message_path, queue_path
from .reading import Reader
from .settling import LeasedMessages, path_of, release_body
from .transport import Transport


class QueueClient:
    """One queue service; `queue` is used where a call names none. Threads may share a client.

    `timeout` (s) is for connecting and for one reply. `retry_for` (s) is how long a call is retried after a failed
    connection, a lost reply, or a 429, 502, 503 or 504. Retries back off, and obey Retry-After. All tries of a call
    that changes something carry one Idempotency-Key, so the service does it once. A retried read returns what the
    first try took. `trust_env` uses proxy and certificate settings of the environment; `verify` is as in requests.

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
        self._leased = LeasedMessages(self._transport)
        self._reader = Reader(self._transport, self._leased)

    @property
    def url(self) -> str:
        """Return the service's URL."""
        return self._transport.url

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

        If the dedup_id is known, nothing is stored: the id is the first message's, and its `duplicate` is True.
        Raises QueueFull, BadRequest, ValueError for a lone surrogate.
        """
        message = drop_none(
            text=text, key=key, priority=priority, recipient=recipient, attributes=attributes, delay=delay, ttl=ttl,
            dedup_id=dedup_id,
        )  # fmt: skip
        reply = self._send(queue, encode(message))
        sent = SentId(reply["id"])
        sent.duplicate = reply.get("duplicate", False)
        return sent

    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> SentIds:
        """Send all messages, in order, or none; return their ids. At most 10,000; a bare string is a message's text.

        The list's `duplicates` has the places of those that a known dedup_id suppressed. Set `idempotency_key` to
        repeat the call yourself, for instance after a crash.
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
        """Send a batch like send_many, from JSON that the caller encoded; `kind` is its media type."""
        reply = self._send(queue, batch, idempotency_key, kind)
        return SentIds(reply["ids"], reply.get("duplicates", ()))

    def receive(
        self, *, limit: int = 1, wait: float = 0, lease: Lease | None = None, **source: Unpack[Reading]
    ) -> list[Message]:
        """Return up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are removed from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and must be acked. `recipient` reads only
        messages addressed to it, `any_recipient` reads all, neither reads unaddressed ones. `queues` reads from
        several, in this order of preference.
        """
        chosen = self._source(source)
        documents = self._reader.read(chosen, limit, wait, lease)
        return [parse_message(document, chosen.name, self) for document in documents]

    def receive_documents(
        self, *, limit: int = 1, wait: float = 0, lease: Lease | None = None, **source: Unpack[Reading]
    ) -> list[dict[str, Any]]:
        """Receive like receive, but return the JSON of the reply: cheaper for messages by the thousand."""
        return self._reader.read(self._source(source), limit, wait, lease)

    def receive_runs(
        self, *, lease: Lease, limit: int = 1000, wait: float = 0, **source: Unpack[Reading]
    ) -> list[ColumnBatch]:
        """Receive like receive, but return runs: up to 1000 messages in columns, texts and attributes only.

        Ack them as runs, by ack_many or ack_and_receive_runs, or one by one by their `receipts`.
        """
        return column_batches_of(self._reader.read(self._source(source), limit, wait, lease, {"Accept": RUNS}))

    def consume(
        self, *, lease: float = 60, batch: int = 1, idle: float | None = None, **source: Unpack[Reading]
    ) -> Iterator[Message]:
        """Yield messages one after the other, without end, or until there was none for `idle` seconds.

        A message is acked when the loop asks for the next one, unless the body settled it. Its lease (s) is renewed
        in the background while the body works. `batch` is how many are leased at once; the rest is as in receive.

        If the body breaks or raises, its message is released and redelivered after a second. The pause doubles at each
        further delivery, up to five minutes, so one that always fails does not hold up the others. To choose another
        pause, release it before the break. Messages that the body has not seen are released at once, as if they had
        not been delivered. After `close` the loop ends likewise, once the body has returned. A signal that ends the
        process releases messages only if its handler raises, as that of SIGINT does.
        """
        self._transport.check_open()
        return consume(self, self._reader, lease=lease, batch=batch, idle=idle, source=self._source(source))

    def transact(
        self,
        *,
        ack: Iterable[Message | str] = (),
        send: Iterable[str | Outgoing] = (),
        receive: NextMessages | None = None,
        idempotency_key: str | None = None,
    ) -> TransactionReply:
        """Ack and send, over any queues, in one commit: all or nothing; then receive, in the same request.

        Raises StaleReceipt if a receipt is no longer valid; then nothing was done.
        """
        sent = [{"queue": self.queue, **to_document(message)} for message in require_list(send)]
        document: dict[str, Any] = {"ack": self._leased.stop_renewing(ack), "send": sent}
        if receive is not None:
            document["receive"] = {"queue": self.queue, **drop_none(**receive)}
        reply = self._reader.transact(document, key=idempotency_key)
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
        """Ack messages like ack_many and lease the next ones, in one request: a reader's whole loop."""
        return self._reader.ack_and_read(messages, self._source(source), limit, wait, lease)

    def ack_and_receive_runs(
        self,
        messages: Iterable[Message | ColumnBatch | str],
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        **source: Unpack[ReadingOne],
    ) -> tuple[AckResult, list[ColumnBatch]]:
        """Ack runs, messages or receipts like ack_many and lease the next runs, in one request."""
        chosen, headers = self._source(source), {"Accept": RUNS}
        result, documents = self._reader.ack_and_read(messages, chosen, limit, wait, lease, headers)
        return result, column_batches_of(documents)

    def ack(self, message: Message | str, *, queue: str | None = None) -> None:
        """Remove a message that was worked on, by message, or by receipt and queue. Raises StaleReceipt, NotFound."""
        self._transport.call("DELETE", self._path_to_settle(message, queue), idempotent=True, done_if_lost=(404,))

    def ack_many(self, messages: Iterable[Message | ColumnBatch | str], *, queue: str | None = None) -> AckResult:
        """Ack those whose receipts are valid and report the others. A bare receipt is one of `queue`.

        A run, or its receipt, counts for all its messages; those that are not acked are reported one by one.
        """
        return self._leased.ack_many(messages, self._name(queue))

    def extend(self, message: Message | str, lease: float, *, queue: str | None = None) -> None:
        """Let the lease end `lease` seconds from now. Raises StaleReceipt, NotFound."""
        path = path_of(message, self._name(queue))
        self._transport.call("PATCH", path, body=encode({"lease": lease}), idempotent=True)

    def extend_many(
        self, messages: Iterable[Message | ColumnBatch | str], lease: float, *, queue: str | None = None
    ) -> ExtendResult:
        """Let the leases of valid receipts end `lease` seconds from now; report the others like ack_many."""
        return self._leased.extend_many(messages, lease, self._name(queue))

    def release(
        self, message: Message | str, *, delay: float = 0, counted: bool = True, queue: str | None = None
    ) -> None:
        """End the lease; the message is redelivered in `delay` seconds. Raises StaleReceipt, NotFound.

        If not `counted`, the delivery does not count towards the queue's max_receives.
        """
        self._transport.call("PATCH", self._path_to_settle(message, queue), body=release_body(delay, counted))

    def release_all(self, messages: Iterable[Message | str], *, delay: float = 0, counted: bool = True) -> None:
        """Release those that are still leased, also after `close`; try for 2 seconds. Never raises QueueError."""
        self._leased.release_all(messages, self.queue, delay=delay, counted=counted)

    def reject(self, message: Message | str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move a leased message to the dead letters. Raises StaleReceipt, NotFound."""
        body = encode(drop_none(dead=True, reason=reason))
        self._transport.call("PATCH", self._path_to_settle(message, queue), body=body)

    dead = reject

    def peek(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        before: str | None = None,
        state: str | None = None,
        key: str | None = None,
        queue: str | None = None,
    ) -> list[Message]:
        """Return up to `limit` messages in order of id, changing nothing; none for a queue that does not exist.

        `after` is the id to page on from; `before` the id to page back from, newest first. `state` is one of ready,
        leased, delayed, blocked, dead; `key` the messages' key.
        """
        query = urlencode(drop_none(limit=limit, after=after, before=before, state=state, key=key))
        reply = self._transport.call("GET", f"{self._path(queue)}/peek?{query}", idempotent=True)
        return [parse_message(document, self._name(queue), self) for document in json.loads(reply.body or b"[]")]

    def message(self, id: str, *, queue: str | None = None) -> Message:
        """Return the message with this id, and its state, changing nothing. Raises NotFound."""
        name = self._name(queue)
        reply = self._transport.call("GET", message_path(name, id), idempotent=True)
        return parse_message(json.loads(reply.body), name, self)

    def delete_message(self, id: str, *, queue: str | None = None) -> None:
        """Remove the message with this id. Raises NotFound, MessageLeased while a reader has it."""
        self._transport.call("DELETE", message_path(self._name(queue), id))

    def reschedule(self, id: str, delay: float, *, queue: str | None = None) -> None:
        """Make the message due `delay` seconds from now, whatever its delay was. Raises NotFound, MessageLeased."""
        self._transport.call("PATCH", message_path(self._name(queue), id), body=encode({"delay": delay}))

    def dead_letter(self, id: str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move the message with this id to the dead letters. Raises NotFound, MessageLeased."""
        body = encode(drop_none(dead=True, reason=reason))
        self._transport.call("PATCH", message_path(self._name(queue), id), body=body)

    def stats(self, queue: str | None = None) -> dict[str, int | float]:
        """Return how many messages are ready, leased, delayed, blocked, dead; and running totals. Raises NotFound."""
        reply = self._transport.call("GET", self._path(queue), idempotent=True)
        return dict(json.loads(reply.body)["stats"])

    def queues(self, prefix: str = "") -> dict[str, dict[str, int | float]]:
        """Return the stats of each queue whose name begins with `prefix`, by name."""
        found: dict[str, dict[str, int | float]] = {}
        after: str | None = ""
        while after is not None:
            query = urlencode(drop_none(prefix=prefix or None, after=after or None))
            page = json.loads(self._transport.call("GET", f"/queues?{query}".rstrip("?"), idempotent=True).body)
            found |= {queue["queue"]: queue["stats"] for queue in page["queues"]}
            after = page.get("next")
        return found

    def settings(self, queue: str | None = None) -> tuple[dict[str, Any], str | None]:
        """Return a queue's settings, and their ETag for put_settings. Raises NotFound."""
        reply = self._transport.call("GET", self._path(queue), idempotent=True)
        return dict(json.loads(reply.body)["settings"]), reply.headers.get("etag")

    def put_settings(
        self, settings: Mapping[str, Any], *, if_match: str | None = None, queue: str | None = None
    ) -> dict[str, Any]:
        """Change these settings, keep the others and return the changed queue. Creates the queue.

        lease, max_receives, dead_letter_queue, dead_letter_expired, retention, max_messages, max_bytes, dedup_window,
        paused, delay (s, of messages that name none), expires (s after which an unused, empty queue is deleted). With
        `if_match`, an ETag, raises PreconditionFailed if they changed since.
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        reply = self._transport.call("PUT", self._path(queue), body=encode(dict(settings)), headers=headers)
        return dict(json.loads(reply.body or b"{}"))

    def purge(self, queue: str | None = None) -> int:
        """Remove all messages of the queue and forget their dedup_ids; return their number."""
        reply = self._transport.call("POST", f"{self._path(queue)}/purge")
        return int(json.loads(reply.body)["purged"])

    def redrive(
        self,
        *,
        limit: int | None = None,
        ids: Iterable[str] | None = None,
        reason: str | None = None,
        queue: str | None = None,
    ) -> int:
        """Move dead letters back to the queues they came from, in order; return how many were moved.

        Move at most `limit`, only those with these `ids`, and only those with this `reason`, where given.
        """
        chosen = None if ids is None else list(require_list(ids))
        body = encode(drop_none(limit=limit, ids=chosen, reason=reason))
        return int(json.loads(self._transport.call("POST", f"{self._path(queue)}/redrive", body=body).body)["redriven"])

    def delete_queue(self, queue: str | None = None) -> None:
        """Delete the queue and all in it, totals and settings too. Raises NotFound if it does not exist."""
        self._transport.call("DELETE", self._path(queue))

    def healthy(self, *, retry_for: float = 0) -> None:
        """Return when the service answers. Raises Unreachable, at the latest after `retry_for` seconds."""
        self._transport.call("GET", "/health", idempotent=True, retry_for=retry_for)

    def close(self) -> None:
        """Close the client: later calls raise Closed, and calls that wait for a retry or for messages give up.

        A loop of `consume` ends once its body has returned; messages that its body has not seen are released now.
        """
        unworked = self._leased.keeper.close()
        self._transport.close()
        self._leased.release_unworked(unworked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, queue: str | None, body: bytes, key: str | None = None, kind: str = "application/json") -> Any:
        path, headers = f"{self._path(queue)}/messages", {"Content-Type": kind}
        return json.loads(self._transport.call("POST", path, body=body, headers=headers, key=key).body)

    def _source(self, source: ReadingOne) -> Source:
        return Source(default=self.queue, **source)

    def _path_to_settle(self, message: Message | str, queue: str | None) -> str:
        return self._leased.path_to_settle(message, self._name(queue))

    def _path(self, queue: str | None) -> str:
        return queue_path(self._name(queue))

    def _name(self, queue: str | None) -> str:
        return self.queue if queue is None else queue
