"""Successive requests on one keep-alive connection by http.client, the fastest client in Python's standard library."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, NamedTuple

from clients.column_batches import RUNS

JSON = "application/json"
MAX_IDLE = 5.0  # seconds that an unused connection stays open


class Leased(NamedTuple):
    """Receipts of so many messages; one receipt may cover several."""

    receipts: list[str]
    messages: int


class Caller:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._used = time.monotonic()

    def call(self, method: str, path: str, body: str | None = None, kind: str = JSON, accept: str = JSON) -> bytes:
        """Send a request and return the reply's body. Raises RuntimeError unless its status is 200 or 204."""
        if time.monotonic() - self._used > MAX_IDLE:
            self._connection.close()  # before the service does; the request opens it again
        self._used = time.monotonic()
        headers = {"Accept": accept} | ({"Content-Type": kind} if body else {})
        self._connection.request(method, path, body, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status not in (200, 204):
            raise RuntimeError(f"{method} {path} returned {reply.status}: {content[:200]!r}")
        return content

    def send(self, queue: str, batch: str) -> None:
        """Send a JSON array of messages, at most 10,000."""
        self.call("POST", f"/queues/{queue}/messages", batch)

    def send_run(self, queue: str, run: str) -> None:
        self.call("POST", f"/queues/{queue}/messages", run, RUNS)

    def lease(self, queue: str, limit: int) -> Leased:
        """Lease at most `limit` messages."""
        content = self.call("GET", f"/queues/{queue}/messages?limit={limit}&lease=600")
        receipts = [message["receipt"] for message in json.loads(content)] if content else []
        return Leased(receipts, len(receipts))

    def lease_runs(self, queue: str, limit: int) -> Leased:
        """Lease at most `limit` messages, as runs."""
        content = self.call("GET", f"/queues/{queue}/messages?limit={limit}&lease=600", accept=RUNS)
        reply = json.loads(content) if content else []
        return Leased([one["receipt"] for one in reply], sum(one.get("count", 1) for one in reply))

    def ack(self, leased: Leased) -> None:
        """Ack the messages. Raises RuntimeError unless all receipts are valid."""
        reply: dict[str, Any] = json.loads(
            self.call("POST", "/messages/ack", json.dumps({"receipts": leased.receipts}))
        )
        if reply["acked"] != leased.messages:
            raise RuntimeError(f"{reply['acked']} of {leased.messages} messages were acked")

    def stats(self, queue: str) -> dict[str, int]:
        """Return the stats of a queue, which may not exist. Old revisions list queues only without parameters."""
        listed = json.loads(self.call("GET", "/queues"))["queues"]
        found: list[dict[str, int]] = [one["stats"] for one in listed if one["queue"] == queue]
        return found[0] if found else {}

    def expect(self, queue: str, **counts: int) -> None:
        """Raise RuntimeError unless the queue's stats are these."""
        stats = self.stats(queue)
        if found := {name: stats.get(name, 0) for name, count in counts.items() if stats.get(name, 0) != count}:
            raise RuntimeError(f"queue '{queue}' has {found} where {counts} should be")

    def close(self) -> None:
        self._connection.close()


def batch_of(count: int) -> str:
    """Return so many messages of 60 bytes, as JSON."""
    return json.dumps([{"text": "x" * 60}] * count)


def run_of(count: int) -> str:
    """Return the same messages as a run."""
    return json.dumps({"texts": ["x" * 60] * count})
