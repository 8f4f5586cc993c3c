"""Test the client's own HTTP with valid replies of every form, and with invalid ones."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

import pytest

from clients import QueueClient
from clients.errors import ProblemError, Unreachable
from clients.http.connection import tls_context
from clients.http.connection_pool import MOST_HEAD, ConnectionPool
from tests.support.live import LiveServer
from tests.support.nginx import Certificate

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


Answering = Callable[..., AbstractContextManager[tuple[ConnectionPool, list[int]]]]


@pytest.fixture
def answering(tls: Certificate | None) -> Answering:
    return partial(_answering, tls)


@contextmanager
def _answering(tls: Certificate | None, *replies: bytes) -> Iterator[tuple[ConnectionPool, list[int]]]:
    """Serve these replies in turn, in pieces.

    Yield a pool for the server, and a list that grows by one with each connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[int] = []

    def serve() -> None:
        left = list(replies)
        while left:
            peer, _ = listener.accept()
            connections.append(len(connections))
            if tls is not None:
                peer = tls.server_context().wrap_socket(peer, server_side=True)
            with peer, suppress(ConnectionError, ssl.SSLError):  # the client stops reading an invalid reply
                while left and peer.recv(65_536):
                    reply = left.pop(0)
                    for start in range(0, len(reply), 7 if len(reply) < 1000 else 9_999):
                        peer.sendall(reply[start : start + (7 if len(reply) < 1000 else 9_999)])
                    if b"close" in reply or b"HTTP/1.0" in reply or not reply.startswith(b"HTTP"):
                        break
                if isinstance(peer, ssl.SSLSocket):
                    peer.unwrap()

    thread = threading.Thread(target=serve)
    thread.start()
    context = None if tls is None else tls_context(str(tls.pem))
    direct = ConnectionPool("127.0.0.1", listener.getsockname()[1], kept=2, tls=context)
    try:
        yield direct, connections
    finally:
        direct.close()
        listener.shutdown(socket.SHUT_RDWR)  # a failed test may leave replies that no client reads
        thread.join()
        listener.close()


def ask(direct: ConnectionPool, bodiless: bool = False) -> tuple[int, bytes]:
    status, _, body = direct.ask(GET, b"", 5, 5, bodiless)
    return status, body


def test_a_reply_that_drips_is_given_up_in_time() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    direct = ConnectionPool("127.0.0.1", listener.getsockname()[1], kept=0)
    stopped = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer, suppress(ConnectionError):
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stopped.wait(0.05):
                peer.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            direct.ask(GET, b"", 5, 0.3, False)
    finally:
        stopped.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n", 200, b"hello!"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1F\r\n%031d\r\n0\r\n\r\n" % 7, 200, b"%031d" % 7),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, 200, b"x" * 100_000),
    ],
)
def test_a_reply_is_read_and_its_connection_is_reused(
    answering: Answering, reply: bytes, status: int, body: bytes
) -> None:
    with answering(reply, reply) as (direct, connections):
        assert [ask(direct), ask(direct)] == [(status, body)] * 2
        assert len(connections) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
    ],
)
def test_a_reply_that_ends_its_connection_is_followed_by_another_connection(answering: Answering, reply: bytes) -> None:
    with answering(reply, reply) as (direct, connections):
        assert [ask(direct), ask(direct)] == [(200, b"hello")] * 2
        assert len(connections) == 2


def test_a_head_has_no_body_whatever_its_length_says(answering: Answering) -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n") as (direct, _):
        assert ask(direct, bodiless=True) == (200, b"")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n close",
        b"HTTP/1.1 abc\r\n\r\n close",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        b"HTTP/1.1 200 OK close\r\nX: " + b"x" * (MOST_HEAD + 300_000),
    ],
)
def test_an_incomplete_or_malformed_reply_is_a_connection_error(answering: Answering, reply: bytes) -> None:
    with answering(reply) as (direct, _), pytest.raises(ConnectionError):
        ask(direct)


def test_over_tls_a_reply_that_is_cut_off_is_a_connection_error(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        direct = ConnectionPool("127.0.0.1", listener.getsockname()[1], 0, tls_context(str(certificate.pem)))

        def cut_off() -> None:
            with certificate.server_context().wrap_socket(listener.accept()[0], server_side=True) as peer:
                peer.recv(65_536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhel")

        with ThreadPoolExecutor(1) as pool:
            cutting = pool.submit(cut_off)
            with pytest.raises(ConnectionError):
                ask(direct)
            cutting.result()


def test_the_reason_for_a_refused_body_is_read_although_sending_failed(server: LiveServer) -> None:
    with QueueClient(server.url, queue="large", retry_for=0) as client, pytest.raises(ProblemError) as refused:
        client.send("x" * 50_000_000)
    assert refused.value.code == "body_too_large"


def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with QueueClient(url, timeout=0.2, retry_for=0) as client, pytest.raises(Unreachable, match="no reply in time"):
            client.send("x")


def test_a_line_break_in_a_header_is_refused_before_anything_is_sent(server: LiveServer) -> None:
    with QueueClient(server.url, token="x\r\nHost: elsewhere") as client, pytest.raises(ValueError, match="line break"):
        client.stats()
