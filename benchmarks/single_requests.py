"""one message a request, over 1, 16 and 64 keep-alive connections, against a route that does nothing.

A write (`POST`), a pop (a plain `GET`), and a lease and its ack (`GET` and `DELETE`, two requests), all durable before
their replies. In turn with `GET /health` on as many connections.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import NamedTuple

from benchmarks.call import Caller, batch_of
from benchmarks.load import Load, Script, request, run
from benchmarks.processes import TICK, cpu_of_tree
from benchmarks.report import Figure, Result, compare, ms, ours_to_other, per_second, percentile, us
from benchmarks.server import Service, service

CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SECONDS = 1.0  # of each in a round
READY = 20_000  # messages before each round of reads: more than it reads
MOST_P99 = {64: 3.0}  # times the latency of the route that does nothing, by connections
ONE_REQUEST = ("write", "pop")  # operations of one request
WRITE = request("POST", "/queues/written/messages", json.dumps({"text": "x" * 60}).encode())
POP = request("GET", "/queues/popped/messages")
LEASE = request("GET", "/queues/leased/messages?lease=600")
NOTHING = request("GET", "/health")


class Sample(NamedTuple):
    load: Load
    cpu: float  # seconds of the service's CPU per request


Round = dict[str, Sample]  # by operation
Rounds = dict[int, list[Round]]  # by connections


def single_requests() -> list[Result]:
    with service() as server, closing(Caller(server.port)) as caller:
        rounds = {count: [_round(server, caller, count) for _ in range(ROUNDS + 1)][1:] for count in CONNECTIONS}
    plot = "a message a request: {} relative to a no-op"
    return [
        Result("ours", "GET /health", _rates(rounds), "requests", plot=plot.format("rate (more is better)")),
        Result("ours", "GET /health", _latencies(rounds), "latency", plot=plot.format("latency (less is better)")),
        Result("ours", "GET /health", _cpu(rounds), "CPU of the service, a request"),
    ]


def lease_and_ack(reply: bytes) -> bytes:
    """The request that follows: the ack of what was leased, or else a lease."""
    receipt = json.loads(reply).get("receipt") if reply else None
    return LEASE if receipt is None else request("DELETE", f"/messages/{receipt}")


KINDS: dict[str, Script] = {"write": WRITE, "pop": POP, "lease, ack": lease_and_ack, "nothing": NOTHING}
# What each does: the counts of its queue that rise, by as many together as there were requests.
COUNTS = {"write": ("written", "sent"), "pop": ("popped", "received"), "lease, ack": ("leased", "received", "acked")}


def fill(caller: Caller) -> None:
    """What the reads of a round are to find."""
    for queue in ("popped", "leased"):
        for _ in range(0, READY, 10_000):
            caller.send(queue, batch_of(min(READY, 10_000)))


def empty(caller: Caller) -> None:
    for queue in ("written", "popped", "leased"):
        caller.call("POST", f"/queues/{queue}/purge")


def sample(server: Service, caller: Caller, kind: str, connections: int) -> Sample:
    """Raise RuntimeError unless as many messages were written, read and acked as replies say so."""
    queue, *counts = COUNTS.get(kind, ("none",))
    stats, cpu = caller.stats(queue), cpu_of_tree(server.pid)
    load = run(server.port, KINDS[kind], connections, SECONDS)
    used = cpu_of_tree(server.pid) - cpu
    if load.failed:
        raise RuntimeError(f"{load.failed} of {load.done + load.failed} requests were refused")
    if counts:
        after = caller.stats(queue)
        done = {name: after[name] - stats.get(name, 0) for name in counts}
        # Of leases the last may not be acked yet.
        if sum(done.values()) != load.done or max(done.values()) - min(done.values()) > connections:
            raise RuntimeError(f"{load.done} requests of '{kind}' did {done}")
    return Sample(load, max(TICK, used) / load.done)


def _round(server: Service, caller: Caller, connections: int) -> Round:
    fill(caller)
    found = {kind: sample(server, caller, kind, connections) for kind in KINDS}
    empty(caller)
    return found


def _rates(rounds: Rounds) -> list[Figure]:
    return [
        compare(
            f"{what}, {_label(connections)}",
            [(r[what].load.rate, r["nothing"].load.rate) for r in found],
            per_second,
            ratio=ours_to_other,
        )
        for connections, found in rounds.items()
        for what in (*ONE_REQUEST, "lease, ack")
    ]


def _latencies(rounds: Rounds) -> list[Figure]:
    return [
        compare(
            f"{what}, {_label(connections)}: {name}",
            [
                (percentile(r[what].load.latencies, share), percentile(r["nothing"].load.latencies, share))
                for r in found
            ],
            ms,
            ratio=ours_to_other,
            at_most=MOST_P99.get(connections) if name == "p99" else None,
        )
        for connections, found in rounds.items()
        for what in ONE_REQUEST
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    ]


def _cpu(rounds: Rounds) -> list[Figure]:
    return [
        compare(
            f"{what}, {_label(connections)}",
            [(r[what].cpu, r["nothing"].cpu) for r in found],
            us,
            ratio=ours_to_other,
        )
        for connections, found in rounds.items()
        for what in (*ONE_REQUEST, "lease, ack")
    ]


def _label(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"
