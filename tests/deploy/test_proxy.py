"""Test deploy/nginx.conf in front of the service: a client gets the service's replies unchanged."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from clients import Unreachable
from settings import Settings
from tests.clients.connect import ClientClass, both_classes
from tests.support.live import REPOSITORY, LiveServer, await_true
from tests.support.nginx import Certificate, make_certificate, nginx


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Run a service that no other test connects to."""
    with LiveServer() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def port(server: LiveServer, certificate: Certificate, tmp_path: Path) -> Iterator[int]:
    with nginx(server, certificate, tmp_path) as number:
        yield number


@pytest.fixture
def proxied(port: int, certificate: Certificate) -> Iterator[HTTPSConnection]:
    trusted = ssl.create_default_context(cafile=certificate.pem)
    connection = HTTPSConnection("localhost", port, context=trusted, timeout=60)
    yield connection
    connection.close()


def ask(connection: HTTPSConnection, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection.request(method, target, body)
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_nginx_closes_its_connections_before_the_service_does() -> None:
    kept = re.search(r"keepalive_timeout ([0-9]+)s;", (REPOSITORY / "deploy/nginx.conf").read_text())
    assert kept is not None
    assert int(kept[1]) < Settings().keep_alive


@both_classes
def test_the_client_works_through_nginx(
    port: int, certificate: Certificate, queue: str, client_class: ClientClass
) -> None:
    url = f"https://localhost:{port}"
    with client_class(url, queue=queue) as untrusting, pytest.raises(Unreachable, match="not trusted"):
        untrusting.stats()
    with client_class(url, queue=queue, verify=str(certificate.pem)) as client:
        client.send_many([f"{number} " * 1_000 for number in range(50)])
        got = [message.text for message in client.consume(lease=60, idle=0.1)]
    assert got == [f"{number} " * 1_000 for number in range(50)]


def test_paths_arrive_as_sent_and_consume_nothing_by_mistake(proxied: HTTPSConnection, queue: str) -> None:
    path = f"/queues/{queue}/messages"
    ask(proxied, "POST", path, b'{"text": "one"}')
    for wrong in (f"/{path}", f"{path}%ff", f"{path}%0a"):
        assert ask(proxied, "GET", wrong)[0] == 404
    assert ask(proxied, "HEAD", path)[0] == 405
    assert ask(proxied, "GET", path.replace("messages", "m%65ssages")) == (200, b'{"text": "one"}\n')


def test_a_body_of_the_largest_size_passes_and_a_larger_one_does_not(proxied: HTTPSConnection, queue: str) -> None:
    path, most = f"/queues/{queue}/messages", 8 * 1024 * 1024
    body = b'{"text": "%s"}' % (b"x" * (most - len(b'{"text": ""}')))
    assert len(body) == most
    assert ask(proxied, "POST", path, body)[0] == 200
    assert ask(proxied, "POST", path, body + b" ")[0] == 413


def test_a_reader_that_hangs_up_while_it_waits_takes_nothing(
    proxied: HTTPSConnection, server: LiveServer, queue: str
) -> None:
    path = f"/queues/{queue}/messages"
    proxied.request("GET", f"{path}?wait=20")
    await_true(lambda: server.connections() == 1)
    proxied.close()
    server.await_unconnected()  # nginx has disconnected too
    assert ask(proxied, "POST", path, b'{"text": "one"}')[0] == 200
    assert ask(proxied, "GET", path) == (200, b'{"text": "one"}\n')
