"""No acknowledged message is lost when processes are killed, stopped or locked out.

Each test names its row in docs/reliability.md. The short forms run in every test run; `-m torture` runs the same code
with larger numbers.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

import apsw
import pytest

from settings import Settings
from tests.support.checker import History, Operation, Outcome, judge, read_histories
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Actor, Connection, Load, Reply

LONG = [pytest.mark.slow, pytest.mark.torture]
POST_P99 = 0.250  # seconds (row 12)
STOPS_WITHIN = 15.0  # seconds: well before a poll of 20 s times out, and within the graceful timeout of 25 s


class Victim(LiveServer):
    """A service whose processes can be killed one by one."""

    def kill_a_worker(self) -> None:
        """Kill a worker at random. The master replaces it."""
        os.kill(random.choice(self.all_workers()), signal.SIGKILL)

    def kill_the_master(self) -> None:
        """Kill the master and start a new service at once, as a supervisor does. The old workers end by themselves."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self.start()

    def kill_the_group(self) -> None:
        self.kill()
        _assert_sound(self.database)
        self.start()

    def all_workers(self) -> list[int]:
        """Wait until all workers run, and return their pids."""
        await_true(lambda: len(self.workers) == Settings().workers)
        return self.workers


@pytest.fixture
def victim() -> Iterator[Victim]:
    with Victim() as server:
        yield server


# Row 1: kill -9.


@pytest.mark.parametrize("kills", [3, pytest.param(70, marks=LONG)])
@pytest.mark.parametrize("target", ["a_worker", "the_master", "the_group"])
def test_no_acknowledged_message_is_lost_when_processes_are_killed_under_load__row_1(
    target: str, kills: int, victim: Victim, tmp_path: Path, add_row: AddRow
) -> None:
    kill = {
        "a_worker": victim.kill_a_worker,
        "the_master": victim.kill_the_master,
        "the_group": victim.kill_the_group,
    }[target]
    with Load(victim.port, tmp_path) as load:
        load.write().write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        await_true(lambda: len(list(read_histories(tmp_path))) > 20)
        for _ in range(kills):
            victim.all_workers()
            time.sleep(random.uniform(0.0, 0.4))
            kill()
        verdict = load.finish()
    victim.stop()
    add_row(fault=f"kill -9 of {target.replace('_', ' ')}", times=kills, **verdict.figures)
    assert verdict.faultless, verdict
    assert verdict.acknowledged > kills
    _assert_sound(victim.database)


# Row 11: SIGTERM.


@pytest.mark.parametrize("stops", [1, pytest.param(20, marks=LONG)])
def test_a_stop_under_load_loses_no_message_and_ends_waiting_reads__row_11(
    stops: int, victim: Victim, tmp_path: Path, add_row: AddRow
) -> None:
    with Load(victim.port, tmp_path) as load:
        load.write(2).read(lease=2.0, batch=20)
        for _ in range(stops):
            await_true(lambda: len(list(read_histories(tmp_path))) > 20)
            polls = [_send_only(victim, "GET /queues/empty/messages?wait=20") for _ in range(8)]
            victim.await_read(*polls)
            began = time.monotonic()
            victim.stop()
            assert time.monotonic() - began < STOPS_WITHIN
            for poll in polls:
                assert poll.recv(1_000).startswith(b"HTTP/1.1 204 ")
                poll.close()
            _assert_sound(victim.database)
            victim.start()
        verdict = load.finish()
    add_row(fault="SIGTERM", times=stops, **verdict.figures)
    assert verdict.faultless, verdict


# Row 13: readers that disconnect.


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_reader_that_disconnects_while_it_waits_takes_no_message__row_13(
    reset: bool, server: LiveServer, queue: str
) -> None:
    disconnected = [_send_only(server, f"GET /queues/{queue}/messages?wait=15") for _ in range(6)]
    server.await_read(*disconnected)
    for reader in disconnected:
        _disconnect(reader, reset)
    _send(server, queue, "kept")
    assert _ask(server, "GET", f"/queues/{queue}/messages?wait=5").document["text"] == "kept"


def test_a_reader_that_disconnects_before_its_turn_takes_no_message__row_13(queue: str) -> None:
    with LiveServer() as server:
        _send(server, queue, "kept")
        with _write_lock(server.database):
            disconnected = [_send_only(server, f"GET /queues/{queue}/messages") for _ in range(6)]
            server.await_read(*disconnected)  # they wait for the lock
            for reader in disconnected:
                _disconnect(reader, reset=True)
        assert _ask(server, "GET", f"/queues/{queue}/messages?wait=5").document["text"] == "kept"


# Row 8: a consumer that dies.


@pytest.mark.parametrize("slack", [5.0, pytest.param(1.0, marks=LONG)])  # seconds; a busy machine is late
def test_a_dead_consumers_message_is_redelivered_and_its_late_ack_is_refused__row_8(
    slack: float, server: LiveServer, queue: str
) -> None:
    _send(server, queue, "work")
    dying = Connection(server.port)
    assert dying.open()
    asked = time.monotonic()
    (first,) = dying.ask("GET", f"/queues/{queue}/messages?lease=1&limit=1").document
    leased = time.monotonic()
    dying.close()
    (second,) = _ask(server, "GET", f"/queues/{queue}/messages?lease=60&limit=1&wait=10").document
    assert asked + 1 - 0.005 <= time.monotonic() <= leased + 1 + slack
    assert (second["text"], second["receive_count"]) == ("work", 2)
    late = _ask(server, "DELETE", f"/queues/{queue}/messages/{first['receipt']}")
    assert (late.status, late.document["code"]) == (409, "stale_receipt")
    batch = _ask(server, "POST", f"/queues/{queue}/messages/ack", {"receipts": [first["receipt"]]})
    assert batch.document == {"acked": 0, "stale": [first["receipt"]], "missing": []}
    assert _ask(server, "DELETE", f"/queues/{queue}/messages/{second['receipt']}").status == 204


# Row 9: many consumers, and one.


@pytest.mark.parametrize("messages", [4_000, pytest.param(20_000, marks=LONG)])
def test_sixteen_consumers_at_each_of_two_processes_ack_each_message_once__row_9(
    messages: int, queue: str, tmp_path: Path, add_row: AddRow
) -> None:
    """Run two services with one worker each on the same file."""
    histories = tmp_path / "histories"
    histories.mkdir()
    one_worker = {"WEB_CONCURRENCY": "1", "QUEUE_DATABASE_URL": f"sqlite:///{tmp_path}/queue.db"}
    with LiveServer(one_worker) as first, LiveServer(one_worker) as second:
        written = _fill(first, queue, messages)

        def consume(number: int) -> None:
            history = History(histories / f"{number}.jsonl")
            port = (first, second)[number % 2].port
            actor = Actor(port, queue, history, batch=10, lease=300.0, stopping=lambda: True)
            actor.read()
            actor.close()

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(consume, range(32)))
    operations = list(read_histories(histories))
    acked = [receipt for operation in operations if operation.kind == "ack" for receipt in operation.given]
    refused = [receipt for operation in operations if operation.kind == "ack" for receipt in operation.got]
    verdict = judge([*written, *operations])
    add_row(fault="16 consumers at each of 2 services", times=1, **verdict.figures)
    assert verdict.faultless, verdict
    assert (len(acked), len(set(acked)), refused) == (messages, messages, [])
    assert sorted(_texts(operations), key=int) == [str(number) for number in range(messages)]


def test_one_consumer_gets_messages_in_strict_order__row_9(server: LiveServer, queue: str) -> None:
    _fill(server, queue, 1_000)
    path = f"/queues/{queue}/messages"
    one_by_one = [_ask(server, "GET", path).document for _ in range(50)]
    leased = [_ask(server, "GET", f"{path}?lease=300").document for _ in range(50)]
    batches = [message for _ in range(9) for message in _ask(server, "GET", f"{path}?limit=100").document]
    assert [message["text"] for message in one_by_one + leased + batches] == [str(number) for number in range(1_000)]


# Row 12: more pollers than threads.


def test_writes_are_answered_while_twice_as_many_readers_wait_as_there_are_threads__row_12() -> None:
    threads, pollers = 8, 16
    with LiveServer({"QUEUE_THREADS": str(threads), "WEB_CONCURRENCY": "1"}) as server:
        with ThreadPoolExecutor(pollers) as pool:
            polls = [pool.submit(_ask, server, "GET", "/queues/empty/messages?wait=2.5") for _ in range(pollers)]
            during = _p99_of_writes(server, lambda _: not all(poll.done() for poll in polls))
        assert {(poll.result().status, poll.result().headers.get("Retry-After")) for poll in polls} == {(204, None)}
        alone = _p99_of_writes(server, lambda seconds: len(seconds) < 300)
        assert during < max(POST_P99, 5 * alone)  # a busy machine is slow without readers too


def _p99_of_writes(server: LiveServer, is_running: Callable[[list[float]], bool]) -> float:
    connection, seconds = Connection(server.port), list[float]()
    connection.open()
    while is_running(seconds):
        began = time.monotonic()
        assert connection.ask("POST", "/messages", {"text": "x"}).status == 200
        seconds.append(time.monotonic() - began)
    connection.close()
    return quantiles(seconds, n=100)[-1]


# Row 14: a paused service.


@pytest.mark.parametrize("seconds", [2.5, pytest.param(20.0, marks=LONG)])
def test_after_a_pause_only_messages_with_expired_leases_are_redelivered__row_14(
    seconds: float, victim: Victim, queue: str, tmp_path: Path, add_row: AddRow
) -> None:
    for text in ("short", "long"):
        _send(victim, queue, text)
    path = f"/queues/{queue}/messages"
    short = _ask(victim, "GET", f"{path}?lease=1").document
    long = _ask(victim, "GET", f"{path}?lease=300").document
    with Load(victim.port, tmp_path) as load:
        load.write(2).read(lease=2.0, batch=10).read(lease=60.0)
        await_true(lambda: len(list(read_histories(tmp_path))) > 50)
        os.killpg(victim.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(victim.pid, signal.SIGCONT)
        assert _ask(victim, "GET", f"{path}?limit=10&lease=300&wait=5").document[0]["text"] == "short"
        assert _ask(victim, "GET", f"{path}?limit=10").status == 204
        verdict = load.finish()
    add_row(fault="SIGSTOP", times=1, **verdict.figures)
    assert verdict.faultless, verdict
    assert _ask(victim, "DELETE", f"{path}/{short['receipt']}").status == 409
    assert _ask(victim, "DELETE", f"{path}/{long['receipt']}").status == 204


# Row 15: ids after a restart.


def test_ids_keep_increasing_after_a_drain_and_a_restart__row_15(victim: Victim, queue: str) -> None:
    path = f"/queues/{queue}/messages"
    before = [_send(victim, queue, "before") for _ in range(3)]
    receipts = [_ask(victim, "GET", f"{path}?lease=300").document["receipt"] for _ in range(2)]
    assert _ask(victim, "GET", path).document == {"text": "before"}
    for receipt in receipts:
        assert _ask(victim, "DELETE", f"{path}/{receipt}").status == 204
    for end in (victim.stop, victim.kill):
        end()
        victim.start()
        after = [_send(victim, queue, "after") for _ in range(2)]
        assert [*before, *after] == sorted({*before, *after})
        before += after
        for receipt in receipts:
            assert _ask(victim, "DELETE", f"{path}/{receipt}").status == 404
        assert [_ask(victim, "GET", path).document for _ in after] == [{"text": "after"}] * 2


# Row 22: another process holds the write lock.


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "within"), [(10.0, 8.0), pytest.param(30.0, 6.0, marks=LONG)])
def test_while_another_process_holds_the_write_lock_requests_get_503_within_6_s__row_22(
    seconds: float, within: float, victim: Victim, queue: str, tmp_path: Path, add_row: AddRow
) -> None:
    _send(victim, queue, "first")
    with Load(victim.port, tmp_path) as load, ThreadPoolExecutor(64) as pool:
        with _write_lock(victim.database):
            load.write(2).read(lease=30.0)
            asked = [
                pool.submit(_timed, victim, "POST", f"/queues/{queue}/messages", {"text": "refused"}) for _ in range(4)
            ]
            victim.kill_a_worker()  # its successor must open the locked file
            released = time.monotonic() + seconds
            while time.monotonic() < released - within:
                time.sleep(0.25)
                asked.append(pool.submit(_timed, victim, "GET", f"/queues/{queue}/messages", None))
                asked.append(pool.submit(_timed, victim, "POST", f"/queues/{queue}/messages", {"text": "refused"}))
            time.sleep(max(0.0, released - time.monotonic()))
        answers = [answer.result() for answer in asked]
        kept = [(reply, took) for reply, took in answers if reply.status]  # 0: the worker was killed
        assert {(reply.status, reply.headers.get("Retry-After")) for reply, _ in kept} == {(503, "1")}
        assert max(took for _, took in kept) < within
        assert len(kept) > len(answers) / 2
        await_true(lambda: _ask(victim, "GET", "/ready").status == 200)
        assert _ask(victim, "GET", f"/queues/{queue}/messages").document == {"text": "first"}
        assert _ask(victim, "GET", f"/queues/{queue}/messages").status == 204
        verdict = load.finish()
    add_row(fault="write lock held", times=1, **verdict.figures)
    assert verdict.faultless, verdict


# Row 27: two services start at the same time.


@pytest.mark.parametrize("starts", [1, pytest.param(25, marks=LONG)])
def test_two_services_started_at_the_same_time_on_a_new_file_share_it__row_27(starts: int, tmp_path: Path) -> None:
    for start in range(starts):
        database = tmp_path / f"{start}.db"
        servers = [LiveServer({"QUEUE_DATABASE_URL": f"sqlite:///{database}"}) for _ in range(2)]
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(LiveServer.start, servers))
            ids = [_send(server, "shared", "x") for server in servers * 3]
            assert ids == sorted(set(ids))
            texts = [_ask(server, "GET", "/queues/shared/messages").document for server in servers * 3]
            assert texts == [{"text": "x"}] * 6
            assert not [line for server in servers for line in server.log().splitlines() if "ERROR" in line]
        finally:
            for server in servers:
                server.stop()
                shutil.rmtree(server.directory)
        _assert_sound(database)


# Helpers.


def _ask(server: LiveServer, method: str, path: str, body: object = None) -> Reply:
    connection = Connection(server.port)
    try:
        return connection.ask(method, path, body) if connection.open() else Reply(Outcome.UNKNOWN)
    finally:
        connection.close()


def _timed(server: LiveServer, method: str, path: str, body: object) -> tuple[Reply, float]:
    began = time.monotonic()
    return _ask(server, method, path, body), time.monotonic() - began


def _send(server: LiveServer, queue: str, text: str) -> int:
    return int(_ask(server, "POST", f"/queues/{queue}/messages", {"text": text}).document["id"])


def _fill(server: LiveServer, queue: str, messages: int) -> list[Operation]:
    written = []
    for first in range(0, messages, 1_000):
        texts, asked = [str(number) for number in range(first, first + 1_000)], time.monotonic()
        reply = _ask(server, "POST", f"/queues/{queue}/messages", [{"text": text} for text in texts])
        assert reply.status == 200
        written.append(Operation("write", asked, texts, None, reply.outcome, time.monotonic(), reply.document["ids"]))
    return written


def _send_only(server: LiveServer, request: str) -> socket.socket:
    """Send a request; return its connection without reading the reply."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"{request} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return connection


def _disconnect(connection: socket.socket, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def _write_lock(database: Path) -> Iterator[None]:
    """Hold SQLite's write lock in this process, which is not one of the service."""
    holder = apsw.Connection(str(database))
    holder.set_busy_timeout(5_000)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def _assert_sound(database: Path) -> None:
    """Assert that a copy of the file and its log opens, is intact, and has correct counts."""
    copy = database.parent / "copy.db"
    for suffix in ("", "-wal"):
        if (part := Path(f"{database}{suffix}")).exists():
            shutil.copyfile(part, f"{copy}{suffix}")
    connection = apsw.Connection(str(copy))
    try:
        assert connection.pragma("integrity_check") == "ok"
        counts = connection.execute(
            """
            SELECT name, ready, leased, delayed, blocked FROM queues WHERE name IS NOT NULL
            EXCEPT
            SELECT name, total((state = 0) * count), total((state = 1) * count), total((state = 2) * count),
                   total((state = 3) * count)
              FROM queues
              LEFT JOIN (SELECT queue_id, state, 1 AS count FROM messages
                          UNION ALL
                         SELECT queue_id, state, count FROM runs) ON queue_id = queues.id
             GROUP BY queues.id
            """
        ).fetchall()
        assert counts == []
    finally:
        connection.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)


def _texts(operations: Iterable[Operation]) -> list[str]:
    return [message["text"] for operation in operations if operation.kind == "read" for message in operation.got]
