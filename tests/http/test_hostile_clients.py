"""Test hundreds and thousands of hostile clients: a healthy one is always answered, and later as fast as before.

It is row 26 of docs/reliability.md with many clients of every kind, and figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import pytest

from tests.http.hostile import KINDS, LARGE
from tests.support.figures import AddRow
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.load import Connection

LONG = [pytest.mark.slow, pytest.mark.torture]
ANSWERED_WITHIN = 10.0  # seconds, by row 26
FEW_FILES = """
import resource
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
exec(Path("gunicorn.conf.py").read_text())
"""


class Waits(NamedTuple):
    """The seconds that a healthy client waited."""

    p99: float
    most: float

    def __str__(self) -> str:
        return f"{1_000 * self.p99:,.1f} ms"


class Healthy:
    """A client that repeatedly sends a message and reads it back, each time on a new connection."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._numbers = count()

    def repeat(self, *, times: int = 0, seconds: float = 0.0) -> Waits:
        """Repeat at least that often and that long. Every request must get the correct answer."""
        waits: list[float] = []
        ends = time.monotonic() + seconds
        while len(waits) < 2 * times or time.monotonic() < ends:
            text = f"healthy {next(self._numbers)}"
            for method, body, wants in [("POST", {"text": text}, None), ("GET", None, {"text": text})]:
                began = time.monotonic()
                connection = Connection(self._server.port)
                assert connection.open()
                reply = connection.ask(method, "/queues/healthy/messages", body)
                connection.close()
                waits.append(time.monotonic() - began)
                assert reply.status == 200, reply
                assert wants is None or reply.document == wants
        return Waits(quantiles(waits, n=100, method="inclusive")[-1], max(waits))


@contextmanager
def hostile(kind: str, server: LiveServer, connections: int) -> Iterator[Callable[[], int]]:
    """Run that many hostile clients; yield a function that returns how many connections were opened."""
    log = server.directory / "hostile"
    with log.open("wb") as begun:
        command = [sys.executable, "-m", "tests.http.hostile", kind, str(server.port), str(connections)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=begun, stderr=subprocess.DEVNULL)
    try:
        await_true(lambda: log.stat().st_size >= connections)
        yield lambda: log.stat().st_size
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_THREADS": "32"}) as running:
        connection = Connection(running.port)
        assert connection.open()
        for _ in range(2):
            assert connection.ask("POST", f"/queues/{LARGE}/messages", {"text": "x" * 500_000}).status == 200
        connection.close()
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "slow", "flooding", "quick"), [(1.0, 64, 1_500, 32), pytest.param(10.0, 200, 5_000, 64, marks=LONG)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_client_is_answered_during_an_attack_and_as_fast_as_before_after_it(
    kind: str, seconds: float, slow: int, flooding: int, quick: int, server: LiveServer, add_row: AddRow
) -> None:
    connections = flooding if kind.startswith("floods") else slow if kind.startswith("slow") else quick
    healthy = Healthy(server)
    healthy.repeat(times=20)  # warm-up
    before = healthy.repeat(times=60)
    workers = server.workers
    with hostile(kind, server, connections) as begun:
        during = healthy.repeat(times=1, seconds=seconds)
        attempts = begun()
    after = healthy.repeat(times=60)
    add_row(
        hostile_clients=kind, connections=connections, attempts=attempts,
        p99_before=before, p99_during=during, p99_after=after,
    )  # fmt: skip
    assert during.most < ANSWERED_WITHIN
    assert after.p99 < max(10 * before.p99, 0.5)  # the machine may be busier now
    assert server.workers == workers  # no worker has died
    _assert_nothing_came_of_it(server)


def _assert_nothing_came_of_it(server: LiveServer) -> None:
    connection = Connection(server.port)
    assert connection.open()
    assert connection.ask("GET", "/queues/hostile").status == 404
    assert connection.ask("GET", f"/queues/{LARGE}").document["stats"]["ready"] == 2
    connection.close()
    assert "Traceback" not in server.log()


@pytest.mark.slow
def test_a_flood_of_connections_leaves_a_worker_the_file_descriptors_it_needs(tmp_path: Path) -> None:
    (config := tmp_path / "few_files.py").write_text(FEW_FILES)
    settings = {"WEB_CONCURRENCY": "1", "QUEUE_THREADS": "16", "GUNICORN_CMD_ARGS": f"--config {config}"}
    with LiveServer(settings) as server:
        workers = server.workers
        with hostile("floods of connections", server, 600):
            assert Healthy(server).repeat(times=1).most < ANSWERED_WITHIN
        assert server.workers == workers
        assert "Too many open files" not in server.log()
