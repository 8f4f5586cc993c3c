"""The calls of a client, each as steps: QueueClient takes them one after the other, AsyncQueueClient awaits them."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from . import administration
from .column_batches import RUNS, ColumnBatch, column_batches_of, encode_batch
from .http.calls import DEFAULT_URL, Call, Service, Steps
from .http.paths import check_queue_name, message_path, queue_path
from .messages import (
    AckResult,
    Attribute,
    ExtendResult,
    L,
    Lease,
    Leased,
    Message,
    NextMessages,
    Outgoing,
    Reading,
    ReadingOne,
    SentId,
    SentIds,
    Source,
    check_names,
    drop_none,
    encode,
    parse_leased,
    parse_message,
    require_list,
    to_document,
)
from .queues import Chosen, NodeStatus, QueueSettings, QueueState, QueueStats, Reasons, Selection, SettingsChanges
from .reading import Reader
from .settling import LeasedMessages, path_of, reject_body, release_body

JSON = "application/json"

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """Marks the client whose calls return their results."""


class Awaited:
    """Marks the client whose calls return coroutines."""


class Verb(Generic[P, T]):
    """For type checkers: what a call of each client returns."""

    @overload
    def __get__(self, client: Blocking, kind: object = None) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: Awaited, kind: object = None) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __get__(self, client: None, kind: object = None) -> Callable[..., Any]: ...

    def __get__(self, client: object, kind: object = None) -> Any:
        raise NotImplementedError


def verb(steps: Callable[Concatenate[Any, P], Steps[T]]) -> Verb[P, T]:
    """Make a client's call of its steps: a method that lets the client take them in its own way."""

    @wraps(steps)
    def call(client: Any, *arguments: Any, **options: Any) -> Any:
        return client._run(steps(client, *arguments, **options))

    steps.__qualname__ = steps.__name__  # in the errors of wrong arguments
    return cast("Verb[P, T]", call)


class Verbs(ABC):
    """The calls of both clients. Each client has `_run`, which takes a call's steps."""

    _leased: LeasedMessages
    _reader: Reader

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
        self._service = Service(
            url, token=token, timeout=timeout, retry_for=retry_for, trust_env=trust_env, verify=verify
        )
        self._connect()

    @property
    def url(self) -> str:
        """Return the service's URL."""
        return self._service.url

    @abstractmethod
    def _connect(self) -> None:
        """Prepare to make calls: set `_leased` and `_reader`."""

    @verb
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
    ) -> Steps[SentId]:
        """Send a message and return its id. The message is on disk when this returns; clients.Outgoing has the fields.

        If the dedup_id is known, nothing is stored: the id is the first message's, and its `duplicate` is True.
        Raises QueueFull, BadRequest, ValueError for a lone surrogate, TypeError for bytes.

            client.send("cat.png", priority=5, delay=60)
        """
        fields = drop_none(key=key, priority=priority, recipient=recipient, delay=delay, ttl=ttl, dedup_id=dedup_id)
        reply = yield from self._send(queue, encode({"text": text, **fields, **drop_none(attributes=attributes)}))
        sent = SentId(reply["id"])
        sent.duplicate = reply.get("duplicate", False)
        return sent

    @verb
    def send_many(
        self, messages: Iterable[str | Outgoing], *, queue: str | None = None, idempotency_key: str | None = None
    ) -> Steps[SentIds]:
        """Send all messages, in order, or none; return their ids. At most 10,000; a bare string is a message's text.

        The list's `duplicates` has the places of those that a known dedup_id suppressed. Set `idempotency_key` to
        repeat the call yourself, for instance after a crash.

            client.send_many(["cat.png", {"text": "dog.png", "priority": 5}])
        """
        batch = list(require_list(messages))
        if not batch:
            return SentIds()
        content, kind = encode_batch(batch)
        return (yield from self._send_batch(content, kind, queue, idempotency_key))

    @verb
    def send_encoded(
        self, batch: bytes, kind: str = JSON, *, queue: str | None = None, idempotency_key: str | None = None
    ) -> Steps[SentIds]:
        """Send a batch like send_many, from JSON that the caller encoded; `kind` is its media type."""
        return (yield from self._send_batch(batch, kind, queue, idempotency_key))

    @verb
    def receive_runs(
        self, *, lease: Lease, limit: int = 1000, wait: float = 0, **source: Unpack[Reading]
    ) -> Steps[list[ColumnBatch]]:
        """Receive like receive, but return runs: up to 1000 messages in columns, texts and attributes only.

        Ack them as runs, by ack_many or ack_and_receive_runs, or one by one by their `receipts`.
        """
        chosen = self._source("receive_runs", source)
        documents = yield from self._reader.read(chosen, limit, wait, lease, {"Accept": RUNS})
        return column_batches_of(documents)

    @verb
    def ack_and_receive_runs(
        self,
        messages: Iterable[Leased | ColumnBatch | str],
        *,
        lease: Lease,
        limit: int = 1000,
        wait: float = 0,
        **source: Unpack[ReadingOne],
    ) -> Steps[tuple[AckResult, list[ColumnBatch]]]:
        """Ack runs, messages or receipts like ack_many and lease the next runs, in one request."""
        chosen, headers = self._source("ack_and_receive_runs", source, ReadingOne), {"Accept": RUNS}
        result, documents = yield from self._reader.ack_and_read(messages, chosen, limit, wait, lease, headers)
        return result, column_batches_of(documents)

    @verb
    def ack(self, message: Leased | str, *, queue: str | None = None) -> Steps[None]:
        """Remove a finished message: `client.ack(message)`, or `message.ack()`. Raises StaleReceipt, NotFound.

        A bare receipt is one of `queue`, here and in the calls below.
        """
        yield Call("DELETE", self._path_to_settle(message, queue), idempotent=True, done_if_lost=(404,))

    @verb
    def ack_many(self, messages: Iterable[Leased | ColumnBatch | str], *, queue: str | None = None) -> Steps[AckResult]:
        """Ack those whose receipts are valid and report the others.

        A run, or its receipt, counts for all its messages; those that are not acked are reported one by one.
        """
        return (yield from self._leased.ack_many(messages, self._name(queue)))

    @verb
    def extend(self, message: Leased | str, lease: float, *, queue: str | None = None) -> Steps[None]:
        """Let the lease end `lease` seconds from now. Raises StaleReceipt, NotFound."""
        path = path_of(message, self._name(queue))
        yield Call("PATCH", path, encode({"lease": lease}), idempotent=True)

    @verb
    def extend_many(
        self, messages: Iterable[Leased | ColumnBatch | str], lease: float, *, queue: str | None = None
    ) -> Steps[ExtendResult]:
        """Let the leases of valid receipts end `lease` seconds from now; report the others like ack_many."""
        return (yield from self._leased.extend_many(messages, lease, self._name(queue)))

    @verb
    def release(
        self, message: Leased | str, *, delay: float = 0, counted: bool = True, queue: str | None = None
    ) -> Steps[None]:
        """End the lease: `client.release(message, delay=60)`, or `message.release(60)`. Raises StaleReceipt, NotFound.

        The message is redelivered in `delay` seconds. If not `counted`, this delivery is as if it had not happened.
        """
        yield Call("PATCH", self._path_to_settle(message, queue), release_body(delay, counted))

    @verb
    def reject(self, message: Leased | str, *, reason: str | None = None, queue: str | None = None) -> Steps[None]:
        """Dead-letter it: `client.reject(message, reason="no picture")`, or `message.reject("no picture")`.

        Raises StaleReceipt, NotFound.
        """
        yield Call("PATCH", self._path_to_settle(message, queue), reject_body(reason))

    @verb
    def peek(
        self, *, limit: int = 100, queue: str | None = None, **selection: Unpack[Selection]
    ) -> Steps[list[Message]]:
        """Return up to `limit` messages in order of id, changing nothing; none for a queue that does not exist.

        `after` is the id to page on from; `before` the id to page back from, newest first. `state` is one of ready,
        leased, delayed, blocked, dead; `key` the messages' key. `text` is a part of the text; `reason` the latest
        reason of dead letters. A search takes as many requests as it needs.
        """
        check_names("peek", selection, Selection)
        return (yield from administration.peek(self._name(queue), limit, selection))

    @verb
    def message(self, id: str, *, queue: str | None = None) -> Steps[Message]:
        """Return the message with this id, and its state, changing nothing. Raises NotFound."""
        reply = yield Call("GET", message_path(self._name(queue), id), idempotent=True)
        return parse_message(json.loads(reply.body), self._name(queue))

    @verb
    def delete_message(self, id: str, *, queue: str | None = None) -> Steps[None]:
        """Remove the message with this id. Raises NotFound, MessageLeased while a reader has it."""
        yield Call("DELETE", message_path(self._name(queue), id))

    @verb
    def reschedule(self, id: str, delay: float, *, queue: str | None = None) -> Steps[None]:
        """Make the message due `delay` seconds from now, whatever its delay was. Raises NotFound, MessageLeased."""
        yield Call("PATCH", message_path(self._name(queue), id), encode({"delay": delay}))

    @verb
    def dead_letter(self, id: str, *, reason: str | None = None, queue: str | None = None) -> Steps[None]:
        """Move the message with this id to the dead letters. Raises NotFound, MessageLeased."""
        yield Call("PATCH", message_path(self._name(queue), id), reject_body(reason))

    @verb
    def stats(self, queue: str | None = None) -> Steps[QueueStats]:
        """Return how many messages are ready, leased and so on, as in `client.stats()["ready"]`. Raises NotFound."""
        return (yield from administration.describe(self._name(queue)))[0]["stats"]

    @verb
    def queues(self, prefix: str = "") -> Steps[dict[str, QueueStats]]:
        """Return the stats of each queue whose name begins with `prefix`, by name."""
        return (yield from administration.list_queues(prefix))

    @verb
    def settings(self, queue: str | None = None) -> Steps[tuple[QueueSettings, str | None]]:
        """Return a queue's settings, and their ETag for put_settings. Raises NotFound."""
        state, etag = yield from administration.describe(self._name(queue))
        return state["settings"], etag

    @verb
    def put_settings(
        self, settings: SettingsChanges, *, if_match: str | None = None, queue: str | None = None
    ) -> Steps[QueueState]:
        """Change these settings, keep the others and return the changed queue. Creates the queue.

        With `if_match`, an ETag, raises PreconditionFailed if they changed since.

            client.put_settings({"max_receives": 5, "retention": 7 * 86_400})
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        reply = yield Call("PUT", self._path(queue), encode(settings), headers=headers)
        return cast(QueueState, json.loads(reply.body))

    @verb
    def purge(self, queue: str | None = None, **chosen: Unpack[Chosen]) -> Steps[int]:
        """Remove all messages of the queue and forget their dedup_ids; return their number.

        Remove only those with these `ids`, and only dead letters in this queue with this `reason`, where given.
        """
        check_names("purge", chosen, Chosen)
        return (yield from administration.change(self._name(queue), "purge", **chosen))

    @verb
    def reasons(self, queue: str | None = None) -> Steps[Reasons]:
        """Count the dead letters in the queue, or from it, by their latest reason. Raises NotFound."""
        return cast(Reasons, (yield from administration.read(f"{self._path(queue)}/reasons")))

    @verb
    def status(self) -> Steps[NodeStatus]:
        """Return the state of the node that answers: its disk, and totals since it started."""
        return cast(NodeStatus, (yield from administration.read("/status")))

    @verb
    def redrive(self, *, limit: int | None = None, queue: str | None = None, **chosen: Unpack[Chosen]) -> Steps[int]:
        """Move dead letters back to the queues they came from, in order; return how many were moved.

        Move at most `limit`, only those with these `ids`, and only those with this `reason`, where given.
        """
        check_names("redrive", chosen, Chosen)
        return (yield from administration.change(self._name(queue), "redrive", limit, **chosen))

    @verb
    def delete_queue(self, queue: str | None = None) -> Steps[None]:
        """Delete the queue and all in it, totals and settings too. Raises NotFound if it does not exist."""
        yield Call("DELETE", self._path(queue))

    @verb
    def healthy(self, *, retry_for: float = 0) -> Steps[None]:
        """Return when the service answers. Raises Unreachable, at the latest after `retry_for` seconds."""
        yield Call("GET", "/health", idempotent=True, retry_for=retry_for)

    def _send(self, queue: str | None, body: bytes, key: str | None = None, kind: str = JSON) -> Steps[Any]:
        path, headers = f"{self._path(queue)}/messages", {"Content-Type": kind}
        reply = yield Call("POST", path, body, headers, key)
        return json.loads(reply.body)

    def _send_batch(self, batch: bytes, kind: str, queue: str | None, key: str | None) -> Steps[SentIds]:
        reply = yield from self._send(queue, batch, key, kind)
        return SentIds(reply["ids"], reply.get("duplicates", ()))

    def _transact(
        self,
        ack: Iterable[Leased | str],
        send: Iterable[str | Outgoing],
        receive: NextMessages | None,
        key: str | None,
        make: Callable[..., L],
    ) -> Steps[tuple[list[str], list[int], list[L]]]:
        sent = [{"queue": self.queue, **to_document(message)} for message in require_list(send)]
        document: dict[str, Any] = {"ack": self._leased.stop_renewing(ack), "send": sent}
        if receive is not None:
            document["receive"] = {"queue": self.queue, **drop_none(**receive)}
        reply = yield from self._reader.transact(document, key=key)
        messages = parse_leased(reply.get("messages", ()), (receive or {}).get("queue") or self.queue, make)
        return list(reply.get("ids", ())), list(reply.get("duplicates", ())), messages

    def _source(self, call: str, source: ReadingOne, known: type = Reading) -> Source:
        check_names(call, source, known)
        return Source(default=self.queue, **source)

    def _path_to_settle(self, message: Leased | str, queue: str | None) -> str:
        return self._leased.path_to_settle(message, self._name(queue))

    def _path(self, queue: str | None) -> str:
        return queue_path(self._name(queue))

    def _name(self, queue: str | None) -> str:
        return self.queue if queue is None else queue
