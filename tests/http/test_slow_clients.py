"""Row 26 and its kin: clients that are slow, silent or stopped do not keep others from being served.

The service under test has few threads, and there are more slow clients than these. The quick tests run one with less
patience, which is the same code with smaller numbers.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from storage.validation import MAX_READ_BYTES
from tests.support.live import LiveServer

THREADS = 4
SLOW = THREADS + 2
ANSWERED_WITHIN = 10.0  # seconds, by row 26

IMPATIENT = """
from pathlib import Path
from web.server import worker
assert 0.4 < worker.READ_TIMEOUT and 0.2 < worker.LEAST_READ_TIMEOUT
worker.READ_TIMEOUT, worker.LEAST_READ_TIMEOUT = 0.4, 0.2
worker.LEAST_RATE = worker.HURRIED_RATE = 10_000_000
exec(Path("gunicorn.conf.py").read_text())
assert 1 < _CLIENT_TIMEOUT
_CLIENT_TIMEOUT = 1
"""

HURRIED = """
from web.server import worker
assert worker.LEAST_RATE < 100_000 < worker.HURRIED_RATE
worker.READ_TIMEOUT, worker.HURRIED_RATE = 0.4, 10_000_000
from pathlib import Path
exec(Path("gunicorn.conf.py").read_text())
_CLIENT_TIMEOUT = 1
"""

HEAD = b"POST /queues/slow/messages HTTP/1.1\r\nHost: q\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_THREADS": str(THREADS)}) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with configured(tmp_path_factory, IMPATIENT) as running:
        yield running


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with configured(tmp_path_factory, HURRIED) as running:
        yield running


def configured(places: pytest.TempPathFactory, text: str) -> LiveServer:
    config = places.mktemp("configured") / "conf.py"
    config.write_text(text)
    more = {"WEB_CONCURRENCY": "1", "QUEUE_THREADS": str(THREADS), "GUNICORN_CMD_ARGS": f"--config {config}"}
    return LiveServer(more)


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes its connections at the end."""
    with ExitStack() as stack:
        yield stack


def connected(server: LiveServer, clients: ExitStack, *sent: bytes) -> socket.socket:
    connection = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    for piece in sent:
        connection.sendall(piece)
    return connection


def ask(server: LiveServer, request: bytes, timeout: float = 30.0) -> bytes:
    """The head of the reply to a request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def seconds_until_answered(server: LiveServer) -> float:
    start = time.monotonic()
    assert ask(server, b"GET /health HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    return time.monotonic() - start


Begin = Callable[[LiveServer, ExitStack], socket.socket]


def half_a_head(server: LiveServer, clients: ExitStack) -> socket.socket:
    return connected(server, clients, HEAD)


def half_a_body(server: LiveServer, clients: ExitStack) -> socket.socket:
    return connected(server, clients, HEAD + b'Content-Length: 100\r\n\r\n{"text": ')


def dripping(start: bytes, drop: bytes) -> Begin:
    """A client that sends something all the time, so that no pause is long."""

    def begin(server: LiveServer, clients: ExitStack) -> socket.socket:
        connection = connected(server, clients, start)

        def drip() -> None:
            with suppress(OSError):
                while True:
                    connection.sendall(drop)
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        return connection

    return begin


slow_senders = pytest.mark.parametrize(
    "begin",
    [
        pytest.param(half_a_head, id="half a head"),
        pytest.param(half_a_body, id="half a body"),
        pytest.param(dripping(HEAD, b"X-Drop: 1\r\n"), id="a head in drops"),
        pytest.param(dripping(HEAD + b'Content-Length: 100000\r\n\r\n{"text": "', b"x"), id="a body in drops"),
    ],
)


@slow_senders
def test_a_client_that_sends_too_slowly_is_cut_off(impatient: LiveServer, clients: ExitStack, begin: Begin) -> None:
    """Alone, and with threads to spare: its request has an end whether others wait or not."""
    connection = begin(impatient, clients)
    connection.settimeout(ANSWERED_WITHIN)
    with suppress(ConnectionResetError):
        assert connection.recv(100) == b""
    assert ask(impatient, b"GET /queues/slow HTTP/1.1\r\nHost: q\r\n\r\n").startswith(
        b"HTTP/1.1 404 "
    )  # stored nothing


def reading_nothing(connection: socket.socket) -> None:
    connection.recv(1)  # the reply is on its way


def reading_in_drops(connection: socket.socket, drop: int = 50_000) -> None:
    """By default enough to let the server send on, again and again."""
    connection.recv(1)

    def drip() -> None:
        with suppress(OSError):
            while connection.recv(drop):
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()


@pytest.mark.parametrize("read", [reading_nothing, reading_in_drops])
def test_clients_that_take_their_replies_too_slowly_are_cut_off(
    impatient: LiveServer, clients: ExitStack, read: Callable[[socket.socket], None]
) -> None:
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/%s/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    name = read.__name__.encode()
    for _ in range(4):
        assert ask(impatient, head % (name, len(text)) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(THREADS):
        read(connected(impatient, clients, b"GET /queues/%s/peek HTTP/1.1\r\nHost: q\r\n\r\n" % name))
    assert seconds_until_answered(impatient) < ANSWERED_WITHIN


def test_clients_that_take_their_replies_steadily_go_faster_or_go_while_others_wait_for_their_threads(
    hurried: LiveServer, clients: ExitStack
) -> None:
    """100 kB/s is enough for one that nobody waits for, and would hold its thread for minutes."""
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/large/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for _ in range(4):
        assert ask(hurried, head % len(text) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(THREADS):
        reading_in_drops(connected(hurried, clients, b"GET /queues/large/peek HTTP/1.1\r\nHost: q\r\n\r\n"), 10_000)
    time.sleep(0.3)  # they have the threads
    assert seconds_until_answered(hurried) < ANSWERED_WITHIN


@pytest.mark.slow
@slow_senders
def test_row_26_clients_that_send_slowly_on_every_thread_let_others_through_in_time(
    server: LiveServer, clients: ExitStack, begin: Begin
) -> None:
    for _ in range(THREADS):
        begin(server, clients)
    time.sleep(0.3)  # they have the threads
    assert seconds_until_answered(server) < ANSWERED_WITHIN
    assert ask(server, b"GET /queues/slow HTTP/1.1\r\nHost: q\r\n\r\n").startswith(b"HTTP/1.1 404 ")  # stored nothing


def test_clients_that_say_nothing_hold_no_thread(server: LiveServer, clients: ExitStack) -> None:
    for _ in range(10 * THREADS):
        connected(server, clients)
    assert seconds_until_answered(server) < ANSWERED_WITHIN / 2  # 40 of 0.1 s by 4 threads are one second


@pytest.mark.slow
def test_clients_that_do_not_read_their_replies_give_the_threads_back(server: LiveServer, clients: ExitStack) -> None:
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/large/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for _ in range(4):
        assert ask(server, head % len(text) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(SLOW):
        connected(server, clients, b"GET /queues/large/peek HTTP/1.1\r\nHost: q\r\n\r\n")
    time.sleep(0.3)
    assert seconds_until_answered(server) < 2 * ANSWERED_WITHIN  # two rounds: there are more of them than threads


def test_a_body_that_comes_slowly_but_steadily_is_taken(server: LiveServer, clients: ExitStack) -> None:
    text = b'{"text": "' + b"x" * 40_000 + b'"}'
    connection = connected(server, clients, HEAD + b"Content-Length: %d\r\n\r\n" % len(text))
    for start in range(0, len(text), 10_000):
        connection.sendall(text[start : start + 10_000])
        time.sleep(0.2)
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_requests_one_after_the_other_on_one_connection_let_others_through(
    server: LiveServer, clients: ExitStack
) -> None:
    """As many busy clients as threads keep a thread each, and one more is served all the same."""
    stop = threading.Event()
    served = [0] * THREADS

    def be_busy(place: int, connection: socket.socket) -> None:
        while not stop.is_set():
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: q\r\n\r\n")
            reply = b""
            while not reply.endswith(b"}\n"):
                reply += connection.recv(65_536)
            assert reply.startswith(b"HTTP/1.1 200 ")
            served[place] += 1

    busy = [threading.Thread(target=be_busy, args=(place, connected(server, clients))) for place in range(THREADS)]
    for thread in busy:
        thread.start()
    try:
        assert all(seconds_until_answered(server) < 2.0 for _ in range(10))
    finally:
        stop.set()
        for thread in busy:
            thread.join()
    assert min(served) > 0
