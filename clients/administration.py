"""The part of a client that looks at queues and looks after them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from .messages import Message, drop_none, encode, parse_message, require_list
from .transport import Transport


class Administration:
    """What QueueClient does to queues as a whole. `queue=None` is the client's own queue throughout."""

    queue: str
    _transport: Transport

    @property
    def url(self) -> str:
        """The service's."""
        return self._transport.url

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
        """Return up to `limit` messages as they lie there, in order of id, changing nothing; none for a missing queue.

        `after` is an id, to page on; `before` one to page back from, the newest first. `state` is one of ready, leased,
        delayed, blocked, dead; `key` the messages' key.
        """
        query = urlencode(drop_none(limit=limit, after=after, before=before, state=state, key=key))
        reply = self._transport.call("GET", f"{self._path(queue)}/peek?{query}", idempotent=True)
        return [
            parse_message(document, queue or self.queue, self._self()) for document in json.loads(reply.body or b"[]")
        ]

    def message(self, id: str, *, queue: str | None = None) -> Message:
        """Return the message with this id, and its state, changing nothing. Raises NotFound."""
        reply = self._transport.call("GET", self._of_message(id, queue), idempotent=True)
        return parse_message(json.loads(reply.body), queue or self.queue, self._self())

    def delete_message(self, id: str, *, queue: str | None = None) -> None:
        """Remove the message with this id. Raises NotFound, MessageLeased while a reader holds it."""
        self._transport.call("DELETE", self._of_message(id, queue))

    def reschedule(self, id: str, delay: float, *, queue: str | None = None) -> None:
        """Let the message be due `delay` seconds from now, 0 for now, whatever its delay was. Raises as above."""
        self._transport.call("PATCH", self._of_message(id, queue), body=encode({"delay": delay}))

    def dead_letter(self, id: str, *, reason: str | None = None, queue: str | None = None) -> None:
        """Move the message with this id to the dead letters. Raises as above."""
        body = encode(drop_none(dead=True, reason=reason))
        self._transport.call("PATCH", self._of_message(id, queue), body=body)

    def stats(self, queue: str | None = None) -> dict[str, int | float]:
        """Return how many messages are ready, leased, delayed, blocked, dead; and running totals. Raises NotFound."""
        reply = self._transport.call("GET", self._path(queue), idempotent=True)
        return dict(json.loads(reply.body)["stats"])

    def queues(self, prefix: str = "") -> dict[str, dict[str, int | float]]:
        """Return the stats of each queue whose name begins so, by its name."""
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
        """Change these settings and keep the others; return the queue as it is then. Creates the queue.

        lease, max_receives, dead_letter_queue, dead_letter_expired, retention, max_messages, max_bytes, dedup_window,
        paused, delay (s, of messages that name none), expires (s after which an unused, empty queue is deleted). With
        `if_match`, an ETag, raises PreconditionFailed if they changed since.
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        body = encode(dict(settings))
        reply = self._transport.call("PUT", self._path(queue), body=body, headers=headers)
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
        """Move dead letters back to where they came from, in order; return how many were moved.

        At most `limit`, only those with these `ids`, and only those that died of `reason`, where these are given.
        """
        chosen = None if ids is None else list(require_list(ids))
        body = encode(drop_none(limit=limit, ids=chosen, reason=reason))
        reply = self._transport.call("POST", f"{self._path(queue)}/redrive", body=body)
        return int(json.loads(reply.body)["redriven"])

    def delete_queue(self, queue: str | None = None) -> None:
        """Delete the queue and all in it, totals and settings too. Raises NotFound if it does not exist."""
        self._transport.call("DELETE", self._path(queue))

    def healthy(self, *, retry_for: float = 0) -> None:
        """Return when the service answers. Raises Unreachable, at the latest after `retry_for` seconds."""
        self._transport.call("GET", "/health", idempotent=True, retry_for=retry_for)

    def _path(self, queue: str | None) -> str:
        name = self.queue if queue is None else queue
        if not name:  # an empty variable somewhere: not to be taken for the client's own queue
            raise ValueError("the queue name is empty")
        return "/queues/" + quote(name, safe="")

    def _of_message(self, id: str, queue: str | None) -> str:
        if not (id.isascii() and id.isdigit()):  # a receipt has the same place in a path, and would settle the message
            raise ValueError(f"not the id of a message: {id!r}")
        return f"{self._path(queue)}/messages/{id}"

    def _self(self) -> Any:
        raise NotImplementedError
