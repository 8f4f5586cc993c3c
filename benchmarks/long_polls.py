"""waiting readers: the time until a message wakes one, their cost to writers, and the cost of waiting.

Woken: the time from a write until a waiting reader has the message, against the same write followed by a read. The
reader is at the same worker or at another. Mixed: 16 writers with 32 waiting readers, against the writers alone.
Idle: the service's CPU while 50 readers wait and no message arrives, against no readers.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.load import Load, request, run, run_together
from benchmarks.memory import resident
from benchmarks.processes import cpu_of_tree
from benchmarks.report import Figure, Result, compare, ms, ours_to_other, per_second, percentile
from benchmarks.server import Service, service

WAKES = 40  # in a round
ROUNDS = 3
TIMEOUT = 10.0  # seconds until each of two workers has a connection
BURST = 32  # connections
SETTLE = 0.01  # seconds after which a poll certainly waits
WRITERS, READERS = 16, 32
SECONDS = 2.0  # of mixed load, and of writers alone, in a round
POLLERS, IDLE = 50, 10.0  # seconds
MOST_IDLE = 2.0  # % of a core
CROWD, CROWD_QUEUES = 10_000, 100
CROWD_SETTLES, CROWD_IDLE = 5.0, 5.0  # seconds; the readers wait for 20
MOST_EACH, MOST_CROWD_IDLE, MOST_CROWD_P99 = 20.0, 3.0, 20.0  # KiB, % of a core, ms
WRITE = request("POST", "/messages", json.dumps({"text": "x" * 60}).encode())
POLL = request("GET", "/messages?wait=20")
SHORT_POLL = request("GET", "/messages?wait=1")
READ = request("GET", "/messages")


def long_polls() -> list[Result]:
    with service() as server:
        found = [_woken(server), _mixed(server), _idle(server)]
    with service() as server:
        return [*found, _crowd(server)]


def _woken(server: Service) -> Result:
    writer, same, other = _connections(server)
    rounds = []
    for _ in range(ROUNDS):
        by_same = statistics.median(_wake(writer, same) for _ in range(WAKES))
        by_other = statistics.median(_wake(writer, other) for _ in range(WAKES)) if other else None
        rounds.append((by_same, by_other, statistics.median(_write_and_read(writer, same) for _ in range(WAKES))))
    figures = [compare("same worker", [(a, c) for a, _, c in rounds], ms, ratio=ours_to_other)]
    others = [(b, c) for _, b, c in rounds if b is not None]
    if others:
        figures.append(compare("another worker", others, ms, ratio=ours_to_other))
    for connection in (writer, same, other):
        if connection:
            connection.close()
    return Result("woken", "write, then read", figures, "from the write until a waiting reader has the message")


def _connections(server: Service) -> tuple[socket.socket, socket.socket, socket.socket | None]:
    """Return a writer, a reader at the same worker, and a reader at another (None if there is only one worker)."""
    at: dict[int, list[socket.socket]] = {}
    wanted = min(2, len(server.workers))
    deadline = time.monotonic() + TIMEOUT
    while len(at) < wanted or max(map(len, at.values())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError(f"all connections of {TIMEOUT:g} s went to one worker")
        # Many at once: an idle worker accepts one after the other.
        for connection in [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(BURST)]:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _request(connection, READ)  # after the reply a worker has the connection
            at.setdefault(_worker_of(connection, server), []).append(connection)
    busiest = max(at, key=lambda worker: len(at[worker]))
    writer, same, *spare = at.pop(busiest)
    others = [connection for connections in at.values() for connection in connections]
    for connection in spare + others[1:]:
        connection.close()
    return writer, same, others[0] if others else None


def _worker_of(connection: socket.socket, server: Service) -> int:
    """Return the pid of the worker at the other end. On Linux."""
    ours, theirs = (f"0100007F:{address[1]:04X}" for address in (connection.getsockname(), connection.getpeername()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if row[1] == theirs and row[2] == ours)
    for pid in server.workers:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return pid
            except FileNotFoundError:  # closed meanwhile
                continue
    raise RuntimeError("no worker has the connection")


def _wake(writer: socket.socket, reader: socket.socket) -> float:
    """Return the seconds from a write until a waiting reader has the message."""
    reader.sendall(POLL)
    time.sleep(SETTLE)
    start = time.perf_counter()
    writer.sendall(WRITE)
    _expect_message(_reply(reader))
    taken = time.perf_counter() - start
    _reply(writer)
    return taken


def _write_and_read(writer: socket.socket, reader: socket.socket) -> float:
    """Return the seconds of a write and a read of its message."""
    time.sleep(SETTLE)
    start = time.perf_counter()
    _request(writer, WRITE)
    _expect_message(_request(reader, READ))
    return time.perf_counter() - start


def _expect_message(reply: bytes) -> None:
    if b'"text"' not in reply:
        raise RuntimeError(f"expected a message, got {reply[:100]!r}")


def _request(connection: socket.socket, what: bytes) -> bytes:
    connection.sendall(what)
    return _reply(connection)


def _reply(connection: socket.socket) -> bytes:
    """Return a short reply, which arrives in one piece."""
    return connection.recv(65_536)


def _mixed(server: Service) -> Result:
    rounds = []
    for _ in range(ROUNDS):
        writes, polls = run_together(server.port, [(WRITE, WRITERS), (SHORT_POLL, READERS)], SECONDS)
        received = polls.statuses[200]
        _drain(server, writes.done - received)
        alone = run(server.port, WRITE, WRITERS, SECONDS)
        _drain(server, alone.done)
        rounds.append((writes, alone, received / polls.seconds))

    def of_writes(what: str, measure: Callable[[Load], float], show: Callable[[float], str]) -> Figure:
        return compare(what, [(measure(a), measure(b)) for a, b, _ in rounds], show, ratio=ours_to_other)

    return Result(
        "with readers",
        "writers alone",
        [
            of_writes("writes", lambda load: load.rate, per_second),
            of_writes("writes: p50", lambda load: percentile(load.latencies, 0.5), ms),
            of_writes("writes: p99", lambda load: percentile(load.latencies, 0.99), ms),
            compare(
                "messages received, to those written",
                [(c, a.rate) for a, _, c in rounds],
                per_second,
                ratio=ours_to_other,
            ),
        ],
        f"{WRITERS} writers and {READERS} waiting readers",
    )


def _drain(server: Service, count: int) -> None:
    """Purge the queue. Raises RuntimeError unless it has exactly `count` messages: none lost, none duplicated."""
    left = run(server.port, READ, 1, 0.0).statuses[200]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        purged = _request(connection, request("POST", "/queues/default/purge"))
    left += int(json.loads(purged.partition(b"\r\n\r\n")[2])["purged"])
    if left != count:
        raise RuntimeError(f"{left} messages are left instead of {count}")


def _idle(server: Service) -> Result:
    alone = _share_of_core(server)
    polls = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(POLLERS)]
    for poll in polls:
        poll.sendall(POLL)
    time.sleep(min(1.0, IDLE / 2))  # until all wait
    waiting = _share_of_core(server)
    for poll in polls:
        poll.close()
    return Result(
        "waiting",
        "no readers",
        [
            Figure(
                f"{POLLERS} readers wait",
                f"{waiting:.2f} %",
                f"{alone:.2f} %",
                waiting,
                at_most=MOST_IDLE,
                unit="% of a core",
            )
        ],
        f"CPU of the service in {IDLE:g} idle seconds",
    )


def _crowd(server: Service) -> Result:
    """Measure many readers in many queues. A final message to each queue wakes one, which proves that they waited."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with ExitStack() as stack:
        readers = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(CROWD)]
        before = resident(server)
        for number, reader in enumerate(readers):
            reader.sendall(request("GET", f"/queues/crowd{number % CROWD_QUEUES}/messages?wait=20"))
        time.sleep(CROWD_SETTLES)
        each = (resident(server) - before) * 1024 / CROWD
        idle = _share_of_core(server, CROWD_IDLE)
        load = run(server.port, WRITE, 1, CROWD_IDLE)
        for number in range(min(CROWD, CROWD_QUEUES)):
            with socket.create_connection(("127.0.0.1", server.port)) as writer:
                _request(writer, WRITE.replace(b"/messages", b"/queues/crowd%d/messages" % number))
        woken = select.poll()
        for reader in readers:
            woken.register(reader, select.POLLIN)
        time.sleep(CROWD_SETTLES / 10)
        if len(woken.poll(0)) != min(CROWD, CROWD_QUEUES):
            raise RuntimeError(f"{min(CROWD, CROWD_QUEUES)} messages woke {len(woken.poll(0))} readers")
    p99 = percentile(load.latencies, 0.99)
    return Result(
        "measured",
        "",
        [
            Figure("memory of each", f"{each:.1f} KiB", "", each, at_most=MOST_EACH, unit="KiB"),
            Figure(
                "CPU while no message arrives", f"{idle:.2f} %", "", idle, at_most=MOST_CROWD_IDLE, unit="% of a core"
            ),
            Figure("a write: p99", ms(p99), "", p99 * 1000, at_most=MOST_CROWD_P99, unit="ms"),
        ],
        f"{CROWD:,} readers wait in {CROWD_QUEUES} queues",
    )


def _share_of_core(server: Service, seconds: float = 0.0) -> float:
    """Return the service's CPU as a percentage of one core."""
    used, start = cpu_of_tree(server.pid), time.perf_counter()
    time.sleep(seconds or IDLE)
    return 100 * (cpu_of_tree(server.pid) - used) / (time.perf_counter() - start)
