"""gunicorn's own error responses, as problems: gunicorn would quote the request in them."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

# status → code; any other status of gunicorn is a bad_request
ERROR_CODES = {414: "uri_too_long", 431: "headers_too_large", 500: "internal_error"}


def write_problem(sock: socket.socket, status_int: int, reason: str, mesg: str) -> None:
    """Replace gunicorn.util.write_error; omit `mesg`, which may contain what the client sent."""
    code = ERROR_CODES.get(status_int, "bad_request")
    problem = {"type": "about:blank", "title": reason, "status": status_int, "detail": reason.lower(), "code": code}
    body = f"{json.dumps(problem)}\n".encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.setblocking(False)  # such a client may not read its reply
    with suppress(BlockingIOError):
        sock.sendall(head.encode() + body)
