"""Row 26 and similar cases: clients that are slow, silent or stopped do not block others.

The service under test has few threads, and there are more slow clients than threads. The quick tests run the same code
with shorter timeouts.
"""

from __future__ import annotations

import resource
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
ANSWERED_WITHIN = 10.0  # seconds (row 26)

SHORT_TIMEOUTS = """
from pathlib import Path
from web.server import connection
assert 0.4 < connection.READ_TIMEOUT and 0.2 < connection.LEAST_READ_TIMEOUT
connection.READ_TIMEOUT, connection.LEAST_READ_TIMEOUT = 0.4, 0.2
connection.LEAST_RATE = connection.HURRIED_RATE = 10_000_000
exec(Path("gunicorn.conf.py").read_text())
"""

HIGH_RATE = """
from web.server import connection
assert connection.LEAST_RATE < 100_000 < connection.HURRIED_RATE
connection.READ_TIMEOUT, connection.HURRIED_RATE = 0.4, 10_000_000
from pathlib import Path
exec(Path("gunicorn.conf.py").read_text())
"""

HEAD = b"POST /queues/slow/messages HTTP/1.1\r\nHost: q\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_THREADS": str(THREADS)}) as running:
        yield running


@pytest.fixture(scope="module")
def short_timeouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with server_with_config(tmp_path_factory, SHORT_TIMEOUTS) as running:
        yield running


@pytest.fixture(scope="module")
def high_rate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with server_with_config(tmp_path_factory, HIGH_RATE) as running:
        yield running


def server_with_config(places: pytest.TempPathFactory, text: str) -> LiveServer:
    config = places.mktemp("configured") / "conf.py"
    config.write_text(text)
    more = {"WEB_CONCURRENCY": "1", "QUEUE_THREADS": str(THREADS), "GUNICORN_CMD_ARGS": f"--config {config}"}
    return LiveServer(more)


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Return a stack that closes its connections at the end of the test."""
    with ExitStack() as stack:
        yield stack


def connected(server: LiveServer, clients: ExitStack, *sent: bytes) -> socket.socket:
    connection = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    for piece in sent:
        connection.sendall(piece)
    return connection


def send_request(server: LiveServer, request: bytes, timeout: float = 30.0) -> bytes:
    """Send a request on a new connection and return the beginning of the reply."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def seconds_until_answered(server: LiveServer) -> float:
    start = time.monotonic()
    assert send_request(server, b"GET /health HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )
    return time.monotonic() - start


Begin = Callable[[LiveServer, ExitStack], socket.socket]


def half_a_head(server: LiveServer, clients: ExitStack) -> socket.socket:
    return connected(server, clients, HEAD)


def half_a_body(server: LiveServer, clients: ExitStack) -> socket.socket:
    return connected(server, clients, HEAD + b'Content-Length: 100\r\n\r\n{"text": ')


def sending_in_drops(start: bytes, drop: bytes) -> Begin:
    """Return a function that connects a client which keeps sending, with short pauses only."""

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
        pytest.param(sending_in_drops(HEAD, b"X-Drop: 1\r\n"), id="a head in drops"),
        pytest.param(sending_in_drops(HEAD + b'Content-Length: 100000\r\n\r\n{"text": "', b"x"), id="a body in drops"),
    ],
)


@slow_senders
def test_a_client_that_sends_too_slowly_is_disconnected(
    short_timeouts: LiveServer, clients: ExitStack, begin: Begin
) -> None:
    """This holds although threads are free and no other client waits."""
    connection = begin(short_timeouts, clients)
    connection.settimeout(ANSWERED_WITHIN)
    with suppress(ConnectionResetError):
        assert connection.recv(100) == b""
    # No message was stored.
    assert send_request(short_timeouts, b"GET /queues/slow HTTP/1.1\r\nHost: q\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def reading_nothing(connection: socket.socket) -> None:
    connection.recv(1)  # the server has begun to reply


def reading_in_drops(connection: socket.socket, drop: int = 50_000) -> None:
    """Read slowly in a thread. The default `drop` is large enough for the server to keep sending."""
    connection.recv(1)

    def drip() -> None:
        with suppress(OSError):
            while connection.recv(drop):
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()


@pytest.mark.parametrize("read", [reading_nothing, reading_in_drops])
def test_clients_that_read_their_replies_too_slowly_are_disconnected(
    short_timeouts: LiveServer, clients: ExitStack, read: Callable[[socket.socket], None]
) -> None:
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/%s/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    name = read.__name__.encode()
    for _ in range(4):
        assert send_request(short_timeouts, head % (name, len(text)) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(THREADS):
        read(connected(short_timeouts, clients, b"GET /queues/%s/peek HTTP/1.1\r\nHost: q\r\n\r\n" % name))
    assert seconds_until_answered(short_timeouts) < ANSWERED_WITHIN


def test_clients_that_read_slowly_but_steadily_are_disconnected_while_others_wait_for_a_thread(
    high_rate: LiveServer, clients: ExitStack
) -> None:
    """Without waiting clients 100 kB/s is fast enough, and such a reply holds its thread for minutes."""
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/large/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for _ in range(4):
        assert send_request(high_rate, head % len(text) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(THREADS):
        reading_in_drops(connected(high_rate, clients, b"GET /queues/large/peek HTTP/1.1\r\nHost: q\r\n\r\n"), 10_000)
    time.sleep(0.3)  # they occupy all threads
    assert seconds_until_answered(high_rate) < ANSWERED_WITHIN


@pytest.mark.slow
@slow_senders
def test_row_26_slow_senders_on_every_thread_do_not_delay_others_beyond_the_limit(
    server: LiveServer, clients: ExitStack, begin: Begin
) -> None:
    for _ in range(THREADS):
        begin(server, clients)
    time.sleep(0.3)  # they occupy all threads
    assert seconds_until_answered(server) < ANSWERED_WITHIN
    # No message was stored.
    assert send_request(server, b"GET /queues/slow HTTP/1.1\r\nHost: q\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def test_silent_clients_hold_no_thread(server: LiveServer, clients: ExitStack) -> None:
    for _ in range(10 * THREADS):
        connected(server, clients)
    assert seconds_until_answered(server) < ANSWERED_WITHIN / 2  # 40 connections of 0.1 s on 4 threads take one second


@pytest.mark.slow
def test_slow_bodies_of_any_rate_and_a_crowd_of_readers_delay_no_other_client__row_30(clients: ExitStack) -> None:
    """Bodies of both framings need a thread. All these clients, and the readers, share one worker."""
    bodies, readers = 300, 1_200
    resource.setrlimit(resource.RLIMIT_NOFILE, (4_096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    framings = [b"Content-Length: 8000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n7a1200\r\n"]
    stop = threading.Event()
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_THREADS": str(THREADS)}) as server:
        for _ in range(readers):
            connected(server, clients, b"GET /queues/crowd/messages?wait=20 HTTP/1.1\r\nHost: q\r\n\r\n")
        slow = [connected(server, clients, HEAD + framings[place % 2]) for place in range(bodies)]

        def feed() -> None:
            """Send 10 bytes to 100 kB a second."""
            while not stop.wait(0.1):
                for place, connection in enumerate(slow):
                    with suppress(OSError):
                        connection.send(b"x" * max(1, 10 ** (place % 6) // 10), socket.MSG_DONTWAIT)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            for _ in range(20):
                assert seconds_until_answered(server) < 2.0
                began = time.monotonic()
                sent = HEAD.replace(b"slow", b"quick") + b"Content-Length: 13\r\n\r\n" + b'{"text": "x"}'
                assert send_request(server, sent).startswith(b"HTTP/1.1 200 ")
                assert time.monotonic() - began < 2.0
                time.sleep(0.2)
        finally:
            stop.set()
            feeder.join()
            clients.close()  # a stop would wait for them


@pytest.mark.slow
def test_clients_that_do_not_read_their_replies_lose_their_threads(server: LiveServer, clients: ExitStack) -> None:
    text = b"x" * (MAX_READ_BYTES // 4)
    head = b"POST /queues/large/messages HTTP/1.1\r\nHost: q\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    for _ in range(4):
        assert send_request(server, head % len(text) + text).startswith(b"HTTP/1.1 200 ")
    for _ in range(SLOW):
        connected(server, clients, b"GET /queues/large/peek HTTP/1.1\r\nHost: q\r\n\r\n")
    time.sleep(0.3)
    assert seconds_until_answered(server) < 2 * ANSWERED_WITHIN  # two rounds: there are more clients than threads


def test_a_body_that_arrives_slowly_but_steadily_is_accepted(server: LiveServer, clients: ExitStack) -> None:
    text = b'{"text": "' + b"x" * 40_000 + b'"}'
    connection = connected(server, clients, HEAD + b"Content-Length: %d\r\n\r\n" % len(text))
    for start in range(0, len(text), 10_000):
        connection.sendall(text[start : start + 10_000])
        time.sleep(0.2)
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("options", ["close", "TE, close", "keep-alive,Close"])
def test_a_connection_closes_if_one_of_the_options_says_so(
    server: LiveServer, clients: ExitStack, options: str
) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: q\r\nConnection: {options}\r\n\r\n".encode()
    connection = connected(server, clients, request)
    reply = b""
    while received := connection.recv(65_536):
        reply += received
    assert b"Connection: close\r\n" in reply


def test_the_beginning_of_a_second_request_has_as_long_as_that_of_the_first(
    short_timeouts: LiveServer, clients: ExitStack
) -> None:
    connection = connected(short_timeouts, clients, b"GET /health HTTP/1.1\r\nHost: q\r\n\r\nGET /hea")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
    connection.settimeout(10)
    assert connection.recv(100) == b""


def test_an_idle_connection_is_kept_for_the_set_time(clients: ExitStack) -> None:
    with LiveServer({"WEB_CONCURRENCY": "1", "QUEUE_KEEP_ALIVE": "2"}) as server:
        connection = connected(server, clients)
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: q\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            time.sleep(1)
        connection.settimeout(10)
        assert connection.recv(100) == b""


def test_busy_keep_alive_connections_do_not_block_others(server: LiveServer, clients: ExitStack) -> None:
    """With as many busy clients as threads, the service still serves one more client."""
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
