"""Test which certificates the client trusts, and how it reports the others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clients import QueueClient, Unreachable
from tests.support.live import REPOSITORY, FaultProxy, LiveServer
from tests.support.nginx import Certificate
from tests.support.programs import program


@pytest.fixture
def url(nginx_port: int) -> str:
    return f"https://localhost:{nginx_port}"


def test_a_certificate_is_trusted_by_file_by_folder_by_the_environment_or_unseen(
    url: str, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(certificate.pem, tmp_path / "authority.pem")
    subprocess.run([program("openssl"), "rehash", tmp_path], check=True, capture_output=True)
    for verify in (str(certificate.pem), str(tmp_path), False):
        with QueueClient(url, verify=verify) as client:
            client.healthy()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.pem))
    with QueueClient(url, trust_env=True) as client:
        client.healthy()


def test_a_certificate_that_is_not_trusted_is_reported_without_a_retry(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unreachable, match="its TLS certificate is not trusted; set `verify`"):
        QueueClient(url).healthy(retry_for=0.5)
    assert caplog.records == []  # a retry is logged


def test_a_certificate_of_another_host_is_not_trusted(url: str, certificate: Certificate) -> None:
    with pytest.raises(Unreachable, match="its TLS certificate is not trusted"):
        QueueClient(url.replace("localhost", "127.1"), verify=str(certificate.pem)).healthy()


def test_a_missing_file_of_certificates_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ValueError, match=r"`verify` is not a file or folder of certificates: '.*missing\.pem'"):
        QueueClient("https://localhost", verify=missing)


def test_a_service_that_dies_during_a_reply_breaks_the_connection(
    server: LiveServer, certificate: Certificate, queue: str
) -> None:
    with FaultProxy(server, certificate.server_context()) as proxy:
        proxy.losing = 1
        client = QueueClient(proxy.url, queue=queue, verify=str(certificate.pem), retry_for=0)
        with pytest.raises(Unreachable, match="the connection broke"):
            client.send("x")


def test_requests_of_one_client_share_a_connection(server: LiveServer, certificate: Certificate, queue: str) -> None:
    handshakes = []
    context = certificate.server_context()
    context.sni_callback = lambda *arguments: handshakes.append(arguments)
    with FaultProxy(server, context) as proxy:
        url = proxy.url.replace("127.0.0.1", "localhost")
        with QueueClient(url, queue=queue, verify=str(certificate.pem)) as client:
            for number in range(5):
                client.send(str(number))
    assert len(handshakes) == 1


def test_a_client_without_tls_does_not_wait_for_the_import_of_requests() -> None:
    script = "import sys, clients; clients.QueueClient('http://localhost'); sys.exit('requests' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)
