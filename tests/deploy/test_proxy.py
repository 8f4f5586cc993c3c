"""Test deploy/nginx.conf in front of the service: a client gets the service's replies unchanged."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from clients import QueueClient
from settings import Settings
from tests.support.live import REPOSITORY, LiveServer, _connections_to, await_true
from tests.support.programs import program


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Run a service that no other test connects to."""
    with LiveServer() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("certificate")
    made = directory / "pem", directory / "key"
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-out", made[0], "-keyout", made[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@pytest.fixture
def port(server: LiveServer, certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[int]:
    """Run nginx with the repository's file, except for names, ports and certificate; return its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    configuration = (REPOSITORY / "deploy/nginx.conf").read_text()
    for ours, here in {
        "127.0.0.1:5000": f"127.0.0.1:{server.port}",
        "listen 443": f"listen 127.0.0.1:{number}",
        "queue.example.org;": "localhost;",
        "/etc/ssl/certs/queue.example.org.pem": str(certificate[0]),
        "/etc/ssl/private/queue.example.org.key": str(certificate[1]),
    }.items():
        assert ours in configuration
        configuration = configuration.replace(ours, here)
    (tmp_path / "site.conf").write_text(configuration)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; user root; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}"
        f" http {{ access_log off; {places} include {tmp_path}/site.conf; }}"
    )
    with running([program("nginx"), "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/nginx.conf"], number):
        yield number


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        await_true(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def proxied(port: int, certificate: tuple[Path, Path]) -> Iterator[HTTPSConnection]:
    trusted = ssl.create_default_context(cafile=certificate[0])
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


def test_the_client_works_through_nginx(port: int, certificate: tuple[Path, Path], queue: str) -> None:
    with QueueClient(f"https://localhost:{port}", queue=queue, verify=str(certificate[0])) as client:
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
    await_true(lambda: _connections_to(server.port) == 1)
    proxied.close()
    server.await_unconnected()  # nginx has disconnected too
    assert ask(proxied, "POST", path, b'{"text": "one"}')[0] == 200
    assert ask(proxied, "GET", path) == (200, b'{"text": "one"}\n')
