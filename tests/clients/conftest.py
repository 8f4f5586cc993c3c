"""Clients over plain HTTP and over TLS, and a service on each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clients import QueueClient
from tests.clients.connect import ClientClass, Connect
from tests.support.live import FaultProxy, LiveServer
from tests.support.nginx import Certificate, make_certificate, nginx


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def nginx_port(server: LiveServer, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with nginx(server, certificate, tmp_path_factory.mktemp("nginx")) as port:
        yield port


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> Certificate | None:
    """Return the certificate of a server with TLS, and None for one without."""
    found: Certificate | None = request.getfixturevalue("certificate") if request.param == "tls" else None
    return found


@pytest.fixture
def client_class() -> ClientClass:
    """Return the class of the clients; the marks of connect.py select another."""
    return QueueClient


@pytest.fixture
def connect(
    request: pytest.FixtureRequest, server: LiveServer, client_class: ClientClass, tls: Certificate | None
) -> Connect:
    """Connect to the service, or over TLS to nginx in front of it."""
    if tls is None:
        return Connect(client_class, server.url)
    return Connect(client_class, f"https://localhost:{request.getfixturevalue('nginx_port')}", str(tls.pem))


@pytest.fixture
def client(connect: Connect, queue: str) -> Iterator[QueueClient]:
    with connect(queue=queue, retry_for=5) as client:
        yield client


@pytest.fixture
def plain_client(server: LiveServer, queue: str) -> Iterator[QueueClient]:
    """Return a client for the results of other processes."""
    with QueueClient(server.url, queue=queue, retry_for=5) as client:
        yield client


@pytest.fixture
def proxy(server: LiveServer, tls: Certificate | None) -> Iterator[FaultProxy]:
    with FaultProxy(server, tls and tls.server_context()) as proxy:
        yield proxy


@pytest.fixture
def proxied(connect: Connect, proxy: FaultProxy, queue: str) -> Iterator[QueueClient]:
    with connect(proxy.url, queue=queue, retry_for=5) as client:
        yield client


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, queue: str) -> Iterator[LiveServer]:
    """Return a service on each engine."""
    if request.param == "sqlite":
        yield request.getfixturevalue("server")
        return
    url = request.getfixturevalue("postgres").create_database(queue)
    with LiveServer({"QUEUE_DATABASE_URL": url}) as server:
        yield server
