"""What the service checks before it starts, and the one line it prints once it has."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection, HTTPException
from typing import Any

from settings import VERSION, Settings, is_loopback
from storage import location_of

HANDOVER = 10.0  # seconds in which the workers of a master that was killed give its port up, also under load

OURS, OTHER = "another queue_service", "another program"


def summary(settings: Settings, address: str, readers: int) -> str:
    """Describe in one line what is served: version, address, database, access and waiting readers."""
    return (
        f"queue_service {VERSION} at {address} (open it in a browser for the page), "
        f"messages in {location_of(settings.database_url)}, access for {_access(settings)}, "
        f"up to {readers:,} waiting readers"
    )


def open_listener(settings: Settings, listeners: Iterable[Any]) -> str | None:
    """Return the sentence that says which listener lets other machines in without access control, or None.

    systemd or gunicorn's own options may have opened others than QUEUE_HOST names.
    """
    if settings.has_tokens or settings.allow_anonymous:
        return None
    for listener in listeners:
        address = listener.sock.getsockname()
        if isinstance(address, tuple) and not is_loopback(address[0]):
            return open_address(f"the address {address[0]}")
    return None


def open_address(what: str) -> str:
    """Return the sentence that refuses an address which other machines can reach."""
    return (
        f"{what} would let anyone who can reach this machine read and write; set QUEUE_TOKENS or "
        "QUEUE_TOKENS_FILE, or QUEUE_ALLOW_ANONYMOUS=yes to allow this"
    )


def port_conflict(settings: Settings, report: Callable[[str], None]) -> str | None:
    """Return the sentence that says why the port cannot be used, or None.

    Unless another program answers on it, wait up to HANDOVER seconds, and `report` that: the workers of a killed master
    may end just now.
    """
    deadline, seen = None, None
    while (code := _refusal(settings.host, settings.port)) is not None:
        if code != errno.EADDRINUSE:
            return f"cannot listen on {settings.bind}: {os.strerror(code)}"
        owner = _owner(settings.host, settings.port)
        seen = owner or seen
        taken = f"port {settings.port} is taken by {seen or OTHER}"
        if owner == OTHER or (deadline is not None and time.monotonic() > deadline):
            return f"{taken}; choose another, for example PORT={_free_port(settings)}"
        if deadline is None:
            deadline = time.monotonic() + HANDOVER
            report(f"{taken}; waiting up to {HANDOVER:.0f} s for it to end")
        time.sleep(0.1)
    return None


def _access(settings: Settings) -> str:
    if settings.has_tokens:
        return "clients with a token"
    return "anyone on this machine" if settings.is_private else "anyone who can reach the port"


def _refusal(host: str, port: int) -> int | None:
    """Return the error number of listening there, or None. Binding alone shows it: no client can connect meanwhile."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            return fault.errno
    return None


def _owner(host: str, port: int) -> str | None:
    """Return what answers on the port, or None if nothing does."""
    connection = HTTPConnection("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host, port, timeout=1)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse().read(1_000)
        return OURS if json.loads(answer) == {"status": "alive"} else OTHER
    except OSError:
        return None
    except (HTTPException, ValueError, RecursionError):
        return OTHER
    finally:
        connection.close()


def _free_port(settings: Settings) -> int:
    """Return the next free port, for a suggestion."""
    return next((port for port in range(settings.port + 1, 65_536) if _refusal(settings.host, port) is None), 0)
