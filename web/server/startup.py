"""What the service checks before it starts, and the one line it prints once it has."""

from __future__ import annotations

import errno
import json
import socket
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException

from settings import VERSION, Settings
from storage import location_of

HANDOVER = 3.0  # seconds in which the workers of a master that was killed give its port up


def summary(settings: Settings) -> str:
    """Describe in one line what is served: version, address, database, access and waiting readers."""
    return (
        f"queue_service {VERSION} at http://{settings.bind} (open it in a browser for the page), "
        f"messages in {location_of(settings.database_url)}, access for {_access(settings)}, "
        f"up to {settings.pollers * settings.workers} waiting readers"
    )


def port_conflict(settings: Settings) -> str | None:
    """Return the sentence that says why the port cannot be used, or None.

    If another queue_service answers on it, wait up to HANDOVER seconds: it may be one that ends just now.
    """
    deadline = time.monotonic() + HANDOVER
    while _is_taken(settings.host, settings.port):
        ours = _answers_health(settings.host, settings.port)
        if not ours or time.monotonic() > deadline:
            owner = "another queue_service" if ours else "another program"
            return f"port {settings.port} is taken by {owner}; choose another, for example PORT={_free_port(settings)}"
        time.sleep(0.1)
    return None


def _access(settings: Settings) -> str:
    if settings.has_tokens:
        return "clients with a token"
    return "anyone on this machine" if settings.is_private else "anyone who can reach the port"


def _is_taken(host: str, port: int) -> bool:
    """Whether a program listens there. Binding alone shows it, and no client can connect meanwhile."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            return fault.errno == errno.EADDRINUSE
    return False


def _answers_health(host: str, port: int) -> bool:
    connection = HTTPConnection("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host, port, timeout=1)
    with suppress(OSError, HTTPException, ValueError):
        try:
            connection.request("GET", "/health")
            return bool(json.loads(connection.getresponse().read(1_000)) == {"status": "alive"})
        finally:
            connection.close()
    return False


def _free_port(settings: Settings) -> int:
    """Return the next free port, for a suggestion."""
    return next((port for port in range(settings.port + 1, 65_536) if not _is_taken(settings.host, port)), 0)
