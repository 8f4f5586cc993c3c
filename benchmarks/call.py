"""One request after the other on one keep-alive connection, by http.client: the leanest there is in Python itself."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, NamedTuple

from clients.column_batches import RUNS

JSON = "application/json"
KEPT = 5.0  # seconds that a connection is kept unused


class Leased(NamedTuple):
    """Receipts of so many messages."""

    receipts: list[str]
    messages: int


class Caller:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._used = time.monotonic()

    def call(self, method: str, path: str, body: str | None = None, kind: str = JSON, accept: str = JSON) -> bytes:
        """The reply's body. Raises RuntimeError unless it is a 200 or 204."""
        if time.monotonic() - self._used > KEPT:
            self._connection.close()  # before the service does; the request opens it anew
        self._used = time.monotonic()
        headers = {"Accept": accept} | ({"Content-Type": kind} if body else {})
        self._connection.request(method, path, body, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status not in (200, 204):
            raise RuntimeError(f"{method} {path} was answered {reply.status}: {content[:200]!r}")
        return content

    def send(self, queue: str, batch: str) -> None:
        """A JSON array of messages, at most 10,000."""
        self.call("POST", f"/queues/{queue}/messages", batch)

    def send_run(self, queue: str, run: str) -> None:
        self.call("POST", f"/queues/{queue}/messages", run, RUNS)

    def lease(self, queue: str, limit: int) -> Leased:
        """As many messages, or fewer."""
        content = self.call("GET", f"/queues/{queue}/messages?limit={limit}&lease=600")
        receipts = [message["receipt"] for message in json.loads(content)] if content else []
        return Leased(receipts, len(receipts))

    def lease_runs(self, queue: str, limit: int) -> Leased:
        """As lease, told as runs."""
        content = self.call("GET", f"/queues/{queue}/messages?limit={limit}&lease=600", accept=RUNS)
        reply = json.loads(content) if content else []
        return Leased([one["receipt"] for one in reply], sum(one.get("count", 1) for one in reply))

    def ack(self, leased: Leased) -> None:
        """Raises RuntimeError unless all of them held."""
        reply: dict[str, Any] = json.loads(
            self.call("POST", "/messages/ack", json.dumps({"receipts": leased.receipts}))
        )
        if reply["acked"] != leased.messages:
            raise RuntimeError(f"{reply['acked']} of {leased.messages} messages were held")

    def close(self) -> None:
        self._connection.close()


def batch_of(count: int) -> str:
    """So many messages of 60 bytes, as JSON."""
    return json.dumps([{"text": "x" * 60}] * count)


def run_of(count: int) -> str:
    """The same as a run."""
    return json.dumps({"texts": ["x" * 60] * count})
