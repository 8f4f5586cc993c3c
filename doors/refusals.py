"""gunicorn's own refusals of what it cannot read, as problems: it would cite the request in them."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

# status → code; any other status of gunicorn's is a bad_request
REFUSALS = {414: "uri_too_long", 431: "headers_too_large", 500: "internal_error"}


def write_problem(sock: socket.socket, status_int: int, reason: str, mesg: str) -> None:
    """In place of gunicorn.util.write_error, whose `mesg` may hold what the client sent, and so is left out."""
    code = REFUSALS.get(status_int, "bad_request")
    told = {"type": "about:blank", "title": reason, "status": status_int, "detail": reason.lower(), "code": code}
    body = f"{json.dumps(told)}\n".encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.setblocking(False)  # who sends what cannot be read may not read either
    with suppress(BlockingIOError):
        sock.sendall(head.encode() + body)
