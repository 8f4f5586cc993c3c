"""the server's memory while 1,000,000 messages pass: sent in batches of 1,000, leased, acked.

Resident memory of both workers together, after each 50,000 messages, against that after the first 100,000.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from benchmarks.report import Figure, Found
from benchmarks.server import Service, service

MESSAGES = 1_000_000
WARM_UP = 100_000  # messages, in which caches fill
STEP = 50_000  # messages
BATCH = 1_000
MOST = 20.0  # MiB
WRITE = json.dumps([{"text": "x" * 60}] * BATCH)


def memory() -> Found:
    with service() as server:
        clients = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(4)]
        sizes = []
        for passed in range(0, MESSAGES, BATCH):
            _pass(clients[passed // BATCH % len(clients)])  # over several connections, so that all workers serve
            if passed >= WARM_UP and passed % STEP == 0:
                sizes.append(_resident(server))
    base = sizes[0]
    furthest = max(sizes, key=lambda size: abs(size - base))
    off = abs(furthest - base)
    return Found(
        "furthest from it",
        f"after {WARM_UP:,}",
        [Figure("resident memory", f"{furthest:.1f} MiB", f"{base:.1f} MiB", off, at_most=MOST, unit="MiB off")],
    )


def _pass(client: http.client.HTTPConnection) -> None:
    """A batch is sent, and one leased and acked."""
    _call(client, "POST", "/messages", WRITE)
    leased = json.loads(_call(client, "GET", f"/messages?limit={BATCH}&lease=60"))
    acked = json.loads(_call(client, "POST", "/messages/ack", json.dumps({"receipts": [m["receipt"] for m in leased]})))
    if acked["acked"] != BATCH:
        raise RuntimeError(f"{acked['acked']} of {BATCH} receipts held")


def _call(client: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> bytes:
    client.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    reply = client.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{method} {path} was answered {reply.status}: {content[:200]!r}")
    return content


def _resident(server: Service) -> float:
    """MiB."""
    kib = 0
    for pid in server.workers:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kib += int(line.split()[1])
    return kib / 1024
