"""durable single writes on PostgreSQL: through this service over HTTP, and by psycopg directly.

Each client is a process that sends texts of 60 bytes, one after the other. Both sides write to one server, in turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg

from benchmarks.processes import Job, Start, run_jobs
from benchmarks.queues.ours import QUEUE
from benchmarks.queues.peer import OURS, NotInstalled, load
from benchmarks.queues.work import SIZE
from benchmarks.report import Result, compare, ours_to_other, per_second
from benchmarks.server import service
from clients import QueueClient

CLIENTS = (1, 16)
ROUNDS = 3
SECONDS = 2.0  # of each round
DIRECT = "postgresql"


class Writes(NamedTuple):
    """So many messages, written in so many seconds."""

    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


def postgres_writes() -> list[Result]:
    try:
        peer = load(DIRECT)
        versions = peer.version()
    except NotInstalled as reason:
        return [Result("ours", "psycopg", [], notes=[f"not measured: {reason}"])]
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as folder:
        private = Path(folder, DIRECT)
        private.mkdir()
        with peer.serve(private) as server, service(database=server.address) as ours:
            addresses = {OURS: ours.url, DIRECT: server.address}
            runs = {count: [_write_each(addresses, count) for _ in range(ROUNDS)] for count in CLIENTS}
            _check(addresses, [run for rounds in runs.values() for run in rounds])
    figures = [
        compare(
            f"write, {count} client{'s' if count > 1 else ''}",
            [(run[OURS].rate, run[DIRECT].rate) for run in rounds],
            per_second,
            ratio=ours_to_other,
        )
        for count, rounds in runs.items()
    ]
    return [Result("ours", "psycopg", figures, notes=[versions], plot="single writes on PostgreSQL: our rate")]


def _write_each(addresses: Mapping[str, str], clients: int) -> dict[str, Writes]:
    return {name: _write(name, address, clients) for name, address in addresses.items()}


def _write(name: str, address: str, clients: int) -> Writes:
    jobs: list[Job] = [(_send, (name, address, SECONDS)) for _ in range(clients)]
    done = run_jobs(jobs)
    seconds = max(one.ended for one in done) - min(one.began for one in done)
    return Writes(sum(one.result for one in done), seconds)


def _send(start: Start, name: str, address: str, seconds: float) -> int:
    client = load(name).connect(address)
    text = "x" * SIZE
    with closing(client):
        start()
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            client.send(text)
            count += 1
    return count


def _check(addresses: Mapping[str, str], runs: Sequence[Mapping[str, Writes]]) -> None:
    """Raise RuntimeError unless each side stored what it was sent."""
    with QueueClient(addresses[OURS], queue=QUEUE) as client, psycopg.connect(addresses[DIRECT]) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM messages").fetchone() or (0,)
        stored = {OURS: client.stats()["sent"], DIRECT: rows}
    sent = {name: sum(run[name].messages for run in runs) for name in addresses}
    if stored != sent:
        raise RuntimeError(f"{sent} messages sent, {stored} stored")
