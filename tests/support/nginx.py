"""nginx with deploy/nginx.conf, which ends TLS in front of a service, and a certificate for it."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.live import REPOSITORY, LiveServer, await_true, free_port
from tests.support.programs import program


class Certificate(NamedTuple):
    """A certificate for localhost and 127.0.0.1, which is its own authority, and its key."""

    pem: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self)
        return context


def make_certificate(folder: Path) -> Certificate:
    made = Certificate(folder / "pem", folder / "key")
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-out", made.pem, "-keyout", made.key],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@contextmanager
def nginx(server: LiveServer, certificate: Certificate, folder: Path) -> Iterator[int]:
    """Run nginx with the repository's file, except for names, ports and certificate; yield its port."""
    port = free_port()
    configuration = (REPOSITORY / "deploy/nginx.conf").read_text()
    for ours, here in {
        "127.0.0.1:5000": f"127.0.0.1:{server.port}",
        "listen 443": f"listen 127.0.0.1:{port}",
        "queue.example.org;": "localhost;",
        "/etc/ssl/certs/queue.example.org.pem": str(certificate.pem),
        "/etc/ssl/private/queue.example.org.key": str(certificate.key),
    }.items():
        assert ours in configuration
        configuration = configuration.replace(ours, here)
    (folder / "site.conf").write_text(configuration)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; user root; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
        f" http {{ access_log off; {places} include {folder}/site.conf; }}"
    )
    with running(folder, port):
        yield port


@contextmanager
def running(folder: Path, port: int) -> Iterator[None]:
    """Run nginx with the folder's nginx.conf, which listens on the port."""
    process = subprocess.Popen([program("nginx"), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
    try:
        await_true(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
