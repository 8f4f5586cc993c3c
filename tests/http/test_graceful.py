"""A service that reloads or replaces its workers under load answers every request and loses no message.

tests/faults/test_crash.py tests its stop (row 11 of docs/reliability.md) and the death of its workers (row 1).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from settings import Settings
from tests.support.figures import AddRow
from tests.support.live import LiveServer, await_true
from tests.support.load import Connection, Load

ENDS_WITHIN = 15.0  # seconds: well before a poll of 20 s or an idle connection times out
SECRET = "reader-secret-0123456789"
LONG = [pytest.mark.slow, pytest.mark.torture]


@pytest.mark.parametrize("reloads", [2, pytest.param(30, marks=LONG)])
def test_a_reload_under_load_refuses_no_request_and_loses_no_message(
    reloads: int, tmp_path: Path, add_row: AddRow
) -> None:
    with LiveServer() as server, Load(server.port, tmp_path) as load, ThreadPoolExecutor(1) as pool:
        load.write(2).write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        for _ in range(reloads):
            _await_progress(tmp_path)
            before = _all_workers(server)
            poll = pool.submit(_poll, server)
            os.kill(server.pid, signal.SIGHUP)
            await_true(lambda: _all_workers(server).isdisjoint(before))  # noqa: B023
            assert poll.result() == 204  # ended by the old worker, or answered by a new one
        _await_progress(tmp_path)
        verdict = load.finish()
    add_row(fault="SIGHUP (reload)", times=reloads, **verdict.figures)
    assert verdict.faultless, verdict
    assert verdict.refused == verdict.unknown == 0


@pytest.mark.parametrize("replacements", [4, pytest.param(100, marks=LONG)])
def test_replacing_workers_by_max_requests_refuses_no_request_and_loses_no_message(
    replacements: int, tmp_path: Path, add_row: AddRow
) -> None:
    settings = {"GUNICORN_CMD_ARGS": "--max-requests 150 --max-requests-jitter 100"}
    with LiveServer(settings) as server, Load(server.port, tmp_path) as load:
        load.write(2).write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        seen = _all_workers(server)

        def were_replaced(count: int) -> bool:
            seen.update(server.workers)
            return len(seen) >= Settings().workers + count

        for count in range(1, replacements + 1):
            await_true(partial(were_replaced, count))
        verdict = load.finish()
        server.stop()
        assert "Error" not in server.log()
    add_row(fault="workers replaced by max_requests", times=replacements, **verdict.figures)
    assert verdict.faultless, verdict
    assert verdict.refused == verdict.unknown == 0


@pytest.mark.parametrize("access", [{}, {"QUEUE_TOKENS": f"reader:{SECRET}:receive:*"}], ids=["anonymous", "tokens"])
def test_a_worker_that_reached_max_requests_ends_its_waiting_reads(access: dict[str, str]) -> None:
    settings = {"WEB_CONCURRENCY": "1", "QUEUE_THREADS": "8", "GUNICORN_CMD_ARGS": "--max-requests 300"}
    with LiveServer(settings | access) as server:
        (first,) = server.workers
        connection = Connection(server.port)
        with ThreadPoolExecutor(16) as pool:
            polls = [pool.submit(_poll, server, 20) for _ in range(16)]
            began = time.monotonic()
            while server.workers == [first]:
                if connection.open():
                    connection.ask("POST", "/messages", {"text": "x"})
            assert [poll.result() for poll in polls] == [204] * 16
        assert time.monotonic() - began < ENDS_WITHIN
        connection.close()


@pytest.mark.parametrize("stops", [2, pytest.param(60, marks=LONG)])
def test_a_stop_under_load_ends_with_the_running_requests_and_loses_no_message(
    stops: int, tmp_path: Path, add_row: AddRow
) -> None:
    slowest = 0.0
    with LiveServer() as server, Load(server.port, tmp_path) as load:
        load.write(4).write(batch=10, keyed=True).read().read(lease=2.0, batch=50)
        for _ in range(stops):
            _await_progress(tmp_path)
            began = time.monotonic()
            server.stop()
            slowest = max(slowest, time.monotonic() - began)
            server.start()
        verdict = load.finish()
    add_row(fault=f"SIGTERM under load: ends within {slowest:.1f} s", times=stops, **verdict.figures)
    assert verdict.faultless, verdict
    assert slowest < ENDS_WITHIN


def test_a_stop_does_not_wait_for_silent_clients() -> None:
    with LiveServer() as server, ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert _poll(server, 0.5) == 204  # by now the service has accepted them
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < ENDS_WITHIN


def _all_workers(server: LiveServer) -> set[int]:
    """Wait until the old workers have ended and the new ones run; return the pids."""
    running: list[int] = []

    def are_running() -> bool:
        running[:] = server.workers
        return len(running) == Settings().workers

    await_true(are_running)
    return set(running)


def _poll(server: LiveServer, seconds: float = 3.0) -> int:
    request = f"GET /queues/empty/messages?wait={seconds:g} HTTP/1.1\r\nHost: q\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{request}Authorization: Bearer {SECRET}\r\n\r\n".encode())
        return int(connection.recv(1_000)[9:12])


def _await_progress(histories: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in histories.glob("writer*.jsonl"))

    before = size()
    await_true(lambda: size() > before + 5_000)
