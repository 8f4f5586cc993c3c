"""One request after the other on one keep-alive connection, by http.client: the leanest there is in Python itself."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

KEPT = 5.0  # seconds that a connection is kept unused


class Caller:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._used = time.monotonic()

    def call(self, method: str, path: str, body: str | None = None) -> bytes:
        """The reply's body. Raises RuntimeError unless it is a 200 or 204."""
        if time.monotonic() - self._used > KEPT:
            self._connection.close()  # before the service does; the request opens it anew
        self._used = time.monotonic()
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status not in (200, 204):
            raise RuntimeError(f"{method} {path} was answered {reply.status}: {content[:200]!r}")
        return content

    def send(self, queue: str, batch: str) -> None:
        """A JSON array of messages, at most 10,000."""
        self.call("POST", f"/queues/{queue}/messages", batch)

    def lease(self, queue: str, limit: int) -> list[str]:
        """The receipts of as many messages, or fewer."""
        content = self.call("GET", f"/queues/{queue}/messages?limit={limit}&lease=600")
        return [message["receipt"] for message in json.loads(content)] if content else []

    def ack(self, receipts: list[str]) -> None:
        """Raises RuntimeError unless all of them held."""
        told: dict[str, Any] = json.loads(self.call("POST", "/messages/ack", json.dumps({"receipts": receipts})))
        if told["acked"] != len(receipts):
            raise RuntimeError(f"{told['acked']} of {len(receipts)} receipts held")

    def close(self) -> None:
        self._connection.close()


def batch_of(count: int) -> str:
    """So many messages of 60 bytes, as JSON."""
    return json.dumps([{"text": "x" * 60}] * count)
