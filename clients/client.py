"""Call a queue service over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, Unpack, cast, overload
from urllib.parse import urlencode

from .column_batches import RUNS, ColumnBatch, column_batches_of, encode_batch
from .consuming.loop import consume
from .consuming.options import Consuming, Loop
from .consuming.worker import Handler, Worker
from .http.paths import check_queue_name, message_path, queue_path
from .http.transport import DEFAULT_URL, Transport
from .messages import (
    AckResult,
    Attribute,
    ExtendResult,
    Lease,
    LeasedMessage,
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
    parse_leased,
    parse_message,
    require_list,
    to_document,
)
from .queues import QueueSettings, QueueState, QueueStats, Selection, SettingsChanges, list_queues
from .reading import Reader
from .settling import LeasedMessages, path_of, reject_body, release_body

JSON = "application/json"


class QueueClient:
    """One queue service; `queue` is used where a call names none. Threads may share a client, as may forked processes.

    The defaults are $QUEUE_URL, or else http://127.0.0.1:5000, and $QUEUE_TOKEN. `timeout` (s) is for connecting and
    for one reply. `retry_for` (s) is how long a call is retried after a failed connection, a lost reply, or a 429, 502,
    503 or 504. Retries back off, and obey Retry-After. All tries of a call that changes something carry one
    Idempotency-Key, so the service does it once. A retried read returns what the first try took. `trust_env` uses proxy
    and certificate settings of the environment; `verify` is as in requests. Every call raises ProblemError with the
    service's problem document, or Unreachable.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        queue: str = "default",
        token: str | None = None,
        timeout: float = 30.0,
        retry_for: float = 30.0,
        trust_env: bool = False,
        verify: bool | str = True,
    ) -> None:
        check_queue_name(queue)
        self.queue = queue
        url = url or os.environ.get("QUEUE_URL") or DEFAULT_URL
        token = os.environ.get("QUEUE_TOKEN") if token is None else token
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
        Raises QueueFull, BadRequest, ValueError for a lone surrogate, TypeError for bytes.

            client.send("cat.png", priority=5, delay=60)
        """
        fields = drop_none(key=key, priority=priority, recipient=recipient, delay=delay, ttl=ttl, dedup_id=dedup_id)
        reply = self._send(queue, encode({"text": text, **fields, **drop_none(attributes=attributes)}))
        sent = SentId(reply["id"])
        sent.duplicate = reply.get("duplicate", False)
        return sent

    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> SentIds:
        """Send all messages, in order, or none; return their ids. At most 10,000; a bare string is a message's text.

        The list's `duplicates` has the places of those that a known dedup_id suppressed. Set `idempotency_key` to
        repeat the call yourself, for instance after a crash.

            client.send_many(["cat.png", {"text": "dog.png", "priority": 5}])
        """
        batch = list(require_list(messages))
        if not batch:
            return SentIds()
        content, kind = encode_batch(batch)
        return self.send_encoded(content, kind, queue=queue, idempotency_key=idempotency_key)

    def send_encoded(
        self, batch: bytes, kind: str = JSON, *, queue: str | None = None, idempotency_key: str | None = None
    ) -> SentIds:
        """Send a batch like send_many, from JSON that the caller encoded; `kind` is its media type."""
        reply = self._send(queue, batch, idempotency_key, kind)
        return SentIds(reply["ids"], reply.get("duplicates", ()))

    @overload
    def receive(
        self, *, lease: Lease, limit: int = 1, wait: float = 0, **source: Unpack[Reading]
    ) -> list[LeasedMessage]: ...

    @overload
    def receive(self, *, limit: int = 1, wait: float = 0, **source: Unpack[Reading]) -> list[Message]: ...

    def receive(
        self, *, limit: int = 1, wait: float = 0, lease: Lease | None = None, **source: Unpack[Reading]
    ) -> list[Message] | list[LeasedMessage]:
        """Return up to `limit` messages (1–1000) as soon as there is one, or none after `wait` seconds.

        Without a lease they are removed from the queue: delivered at most once. With one, in seconds or "default"
        for the queue's own, they are invisible to others until it ends, and must be acked. `recipient` reads only
        messages addressed to it, `any_recipient` reads all, neither reads unaddressed ones. `queues` reads from
        several, in this order of preference.

            for message in client.receive(limit=10, wait=20, lease=60):
                message.ack()
        """
        chosen = self._source(source)
        documents = self._reader.read(chosen, limit, wait, lease)
        if lease is not None:
            return parse_leased(documents, chosen.name, self)
        return [parse_message(document, chosen.name) for document in documents]

    def receive_runs(
        self, *, lease: Lease, limit: int = 1000, wait: float = 0, **source: Unpack[Reading]
    ) -> list[ColumnBatch]:
        """Receive like receive, but return runs: up to 1000 messages in columns, texts and attributes only.

        Ack them as runs, by ack_many or ack_and_receive_runs, or one by one by their `receipts`.
        """
        return column_batches_of(self._reader.read(self._source(source), limit, wait, lease, {"Accept": RUNS}))

    def consume(
        self, *, batch: int = 1, max_tries: int | None = None, **options: Unpack[Consuming]
    ) -> Iterator[LeasedMessage]:
        """Yield messages one after the other, until there was none for `idle` seconds, `stop` is set, or `close`.

        A message is acked when the loop asks for the next one, unless the body settled it. Its lease (s) is renewed
        in the background while the body works. `batch` is how many are leased at once.

        If the body breaks or raises, its message is redelivered after a second. The pause doubles at each further
        delivery, up to five minutes, or is that of `backoff`. At the last of `max_tries` it is dead-lettered instead.
        Settle it before the break to do neither. Messages that the body has not seen are released at once, as if they
        had not been delivered. A signal does so only if its handler raises, as that of SIGINT does, or sets `stop`.

            for message in client.consume(lease=60, max_tries=5):
                make_thumbnail(message.text)
        """
        self._transport.check_open()
        return consume(self, self._reader, Loop(default=self.queue, max_tries=max_tries, **options), batch)

    def work(
        self, handler: Handler, *, concurrency: int = 8, max_tries: int | None = 5, **options: Unpack[Consuming]
    ) -> None:
        """Call the handler with each message, with `concurrency` of them at once, in threads. Return as consume ends.

        In the main thread, SIGTERM and SIGINT end it too; a second one ends the process. Running handlers are finished
        first, and other messages are released, as if they had not been delivered.

        If the handler returns, the message is acked, unless the handler settled it. If it raises, the message is
        released, as in consume, or at the last of `max_tries` rejected with the exception as the reason. Messages of
        one key are handled in order. Raises QueueError if the service fails for `retry_for`.

            client.work(lambda message: make_thumbnail(message.text), concurrency=4)
        """
        self._transport.check_open()
        loop = Loop(default=self.queue, max_tries=max_tries, **options)
        Worker(self, self._reader, loop, handler, concurrency).run()

    def transact(
        self,
        *,
        ack: Iterable[LeasedMessage | str] = (),
        send: Iterable[str | Outgoing] = (),
        receive: NextMessages | None = None,
        idempotency_key: str | None = None,
    ) -> TransactionReply:
        """Ack and send, over any queues, in one commit: all or nothing; then receive, in the same request.

        Raises StaleReceipt if a receipt is no longer valid; then nothing was done.

            client.transact(ack=[message], send=[{"queue": "thumbnails", "text": "cat-small.png"}])
        """
        sent = [{"queue": self.queue, **to_document(message)} for message in require_list(send)]
        document: dict[str, Any] = {"ack": self._leased.stop_renewing(ack), "send": sent}
        if receive is not None:
            document["receive"] = {"queue": self.queue, **drop_none(**receive)}
        reply = self._reader.transact(document, key=idempotency_key)
        messages = parse_leased(reply.get("messages", ()), (receive or {}).get("queue") or self.queue, self)
        return TransactionReply(list(reply.get("ids", ())), list(reply.get("duplicates", ())), messages)

    def ack_and_receive_runs(
        self,
        messages: Iterable[LeasedMessage | ColumnBatch | str],
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

    def ack(self, message: LeasedMessage | str, *, queue: str | None = None) -> None:
        """Remove a finished message: `client.ack(message)`, or `message.ack()`. Raises StaleReceipt, NotFound.

        A bare receipt is one of `queue`, here and in the calls below.
        """
        self._transport.call("DELETE", self._path_to_settle(message, queue), idempotent=True, done_if_lost=(404,))

    def ack_many(self, messages: Iterable[LeasedMessage | ColumnBatch | str], *, queue: str | None = None) -> AckResult:
        """Ack those whose receipts are valid and report the others.

        A run, or its receipt, counts for all its messages; those that are not acked are reported one by one.
        """
        return self._leased.ack_many(messages, self._name(queue))

    def extend(self, message: LeasedMessage | str, lease: float, *, queue: str | None = None) -> None:
        """Let the lease end `lease` seconds from now. Raises StaleReceipt, NotFound."""
        path = path_of(message, self._name(queue))
        self._transport.call("PATCH", path, body=encode({"lease": lease}), idempotent=True)

    def extend_many(
        self, messages: Iterable[LeasedMessage | ColumnBatch | str], lease: float, *, queue: str | None = None
    ) -> ExtendResult:
        """Let the leases of valid receipts end `lease` seconds from now; report the others like ack_many."""
        return self._leased.extend_many(messages, lease, self._name(queue))

    def release(
        self, message: LeasedMessage | str, *, delay: float = 0, counted: bool = True, queue: str | None = None
    ) -> None:
        """End the lease: `client.release(message, delay=60)`, or `message.release(60)`. Raises StaleReceipt, NotFound.

        The message is redelivered in `delay` seconds. If not `counted`, this delivery is as if it had not happened.
        """
        self._transport.call("PATCH", self._path_to_settle(message, queue), body=release_body(delay, counted))

    def reject(self, message: LeasedMessage | str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Dead-letter it: `client.reject(message, reason="no picture")`, or `message.reject("no picture")`.

        Raises StaleReceipt, NotFound.
        """
        self._transport.call("PATCH", self._path_to_settle(message, queue), body=reject_body(reason))

    def peek(self, *, limit: int = 100, queue: str | None = None, **selection: Unpack[Selection]) -> list[Message]:
        """Return up to `limit` messages in order of id, changing nothing; none for a queue that does not exist.

        `after` is the id to page on from; `before` the id to page back from, newest first. `state` is one of ready,
        leased, delayed, blocked, dead; `key` the messages' key.
        """
        query = urlencode(drop_none(limit=limit, **selection))
        reply = self._transport.call("GET", f"{self._path(queue)}/peek?{query}", idempotent=True)
        return [parse_message(document, self._name(queue)) for document in json.loads(reply.body or b"[]")]

    def message(self, id: str, *, queue: str | None = None) -> Message:
        """Return the message with this id, and its state, changing nothing. Raises NotFound."""
        reply = self._transport.call("GET", message_path(self._name(queue), id), idempotent=True)
        return parse_message(json.loads(reply.body), self._name(queue))

    def delete_message(self, id: str, *, queue: str | None = None) -> None:
        """Remove the message with this id. Raises NotFound, MessageLeased while a reader has it."""
        self._transport.call("DELETE", message_path(self._name(queue), id))

    def reschedule(self, id: str, delay: float, *, queue: str | None = None) -> None:
        """Make the message due `delay` seconds from now, whatever its delay was. Raises NotFound, MessageLeased."""
        self._transport.call("PATCH", message_path(self._name(queue), id), body=encode({"delay": delay}))

    def dead_letter(self, id: str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move the message with this id to the dead letters. Raises NotFound, MessageLeased."""
        self._transport.call("PATCH", message_path(self._name(queue), id), body=reject_body(reason))

    def stats(self, queue: str | None = None) -> QueueStats:
        """Return how many messages are ready, leased and so on, as in `client.stats()["ready"]`. Raises NotFound."""
        return self._queue(queue)[0]["stats"]

    def queues(self, prefix: str = "") -> dict[str, QueueStats]:
        """Return the stats of each queue whose name begins with `prefix`, by name."""
        return list_queues(self._transport, prefix)

    def settings(self, queue: str | None = None) -> tuple[QueueSettings, str | None]:
        """Return a queue's settings, and their ETag for put_settings. Raises NotFound."""
        state, etag = self._queue(queue)
        return state["settings"], etag

    def put_settings(
        self, settings: SettingsChanges, *, if_match: str | None = None, queue: str | None = None
    ) -> QueueState:
        """Change these settings, keep the others and return the changed queue. Creates the queue.

        With `if_match`, an ETag, raises PreconditionFailed if they changed since.

            client.put_settings({"max_receives": 5, "retention": 7 * 86_400})
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        reply = self._transport.call("PUT", self._path(queue), body=encode(settings), headers=headers)
        return cast(QueueState, json.loads(reply.body))

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
        """Let later calls raise Closed, and calls that wait for a retry or for messages give up.

        Loops end once their body or handlers have returned; messages that these have not seen are released now.
        """
        unworked = self._leased.keeper.close()
        self._transport.close()
        self._leased.release_unworked(unworked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, queue: str | None, body: bytes, key: str | None = None, kind: str = JSON) -> Any:
        path, headers = f"{self._path(queue)}/messages", {"Content-Type": kind}
        return json.loads(self._transport.call("POST", path, body=body, headers=headers, key=key).body)

    def _queue(self, queue: str | None) -> tuple[QueueState, str | None]:
        reply = self._transport.call("GET", self._path(queue), idempotent=True)
        return json.loads(reply.body), reply.headers.get("etag")

    def _source(self, source: ReadingOne) -> Source:
        return Source(default=self.queue, **source)

    def _path_to_settle(self, message: LeasedMessage | str, queue: str | None) -> str:
        return self._leased.path_to_settle(message, self._name(queue))

    def _path(self, queue: str | None) -> str:
        return queue_path(self._name(queue))

    def _name(self, queue: str | None) -> str:
        return self.queue if queue is None else queue
