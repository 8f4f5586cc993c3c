"""The part of a client that looks at queues and looks after them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote, urlencode

from clients.messages import Message, encode, received
from clients.transport import Transport


class Administration:
    """What QueueClient does to queues as a whole. `queue=None` is the client's own queue throughout."""

    queue: str
    _transport: Transport

    @property
    def url(self) -> str:
        """The service's."""
        return self._transport.url

    def peek(
        self, *, limit: int = 100, after: str | None = None, state: str | None = None, queue: str | None = None
    ) -> list[Message]:
        """Up to `limit` messages as they lie there, in order of id, changing nothing; `after` an id, to page on.

        `state` is one of ready, leased, delayed, blocked, dead. A queue that does not exist is an empty one.
        """
        query: dict[str, str | int] = {"limit": limit}
        if after is not None:
            query["after"] = after
        if state is not None:
            query["state"] = state
        reply = self._transport.call("GET", f"{self._path(queue)}/peek?{urlencode(query)}")
        return [received(document, queue or self.queue, self._self()) for document in json.loads(reply.body or b"[]")]

    def stats(self, queue: str | None = None) -> dict[str, int | float]:
        """How many messages are ready, leased, delayed, blocked and dead; and running totals. Raises NotFound."""
        reply = self._transport.call("GET", self._path(queue))
        return dict(json.loads(reply.body)["stats"])

    def queues(self) -> dict[str, dict[str, int | float]]:
        """Each queue's stats, by its name."""
        listed = json.loads(self._transport.call("GET", "/queues").body)["queues"]
        return {queue["queue"]: queue["stats"] for queue in listed}

    def settings(self, queue: str | None = None) -> tuple[dict[str, Any], str | None]:
        """A queue's settings, and their ETag for put_settings. Raises NotFound."""
        reply = self._transport.call("GET", self._path(queue))
        return dict(json.loads(reply.body)["settings"]), reply.headers.get("etag")

    def put_settings(
        self, settings: Mapping[str, Any], *, if_match: str | None = None, queue: str | None = None
    ) -> dict[str, Any]:
        """Set them; the queue comes into being if it was not there. The queue as it is then.

        With `if_match`, an ETag, raises PreconditionFailed if they changed since.
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        body = encode(dict(settings))
        reply = self._transport.call("PUT", self._path(queue), body=body, headers=headers)
        return dict(json.loads(reply.body or b"{}"))

    def purge(self, queue: str | None = None) -> int:
        """All messages of the queue are gone; their number."""
        reply = self._transport.call("POST", f"{self._path(queue)}/purge")
        return int(json.loads(reply.body)["purged"])

    def redrive(self, *, limit: int | None = None, queue: str | None = None) -> int:
        """Dead letters go back to where they came from, in order; how many did."""
        body = encode({} if limit is None else {"limit": limit})
        reply = self._transport.call("POST", f"{self._path(queue)}/redrive", body=body)
        return int(json.loads(reply.body)["redriven"])

    def delete_queue(self, queue: str | None = None) -> None:
        """The queue and all in it are gone, totals and settings too. Raises NotFound if it was not there."""
        self._transport.call("DELETE", self._path(queue), done_if_lost=(404,))

    def healthy(self, *, retry_for: float = 0) -> None:
        """Returns when the service answers. Raises Unreachable, at the latest after `retry_for` seconds."""
        self._transport.call("GET", "/health", retry_for=retry_for)

    def close(self) -> None:
        """Close idle connections; calls that wait for their next try give up."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _path(self, queue: str | None) -> str:
        name = self.queue if queue is None else queue
        if not name:  # an empty variable somewhere: not to be taken for the client's own queue
            raise ValueError("a queue's name is empty")
        return "/queues/" + quote(name, safe="")

    def _self(self) -> Any:
        return self
