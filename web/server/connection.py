"""A client's connection, and how long the service waits for its client."""

from __future__ import annotations

import socket

from web.server.loop import Task

# A client has READ_TIMEOUT seconds for a request's head. For a body or a reply it has one second more for each
# LEAST_RATE bytes. While others wait for a thread, a client that holds one has less time.
READ_TIMEOUT = 4.0  # seconds
LEAST_READ_TIMEOUT = 0.5  # seconds: the minimum to which waiting requests reduce READ_TIMEOUT
LEAST_RATE = 10_000  # bytes a second
HURRIED_RATE = 1_000_000  # bytes a second, while others wait for a thread or for memory
CLOSE_WITHIN = 1.0  # seconds for a client to close its side after the last reply
WASTE_RATE = 16_000_000  # bytes sent after the last reply that shorten this time by a second


class Connection:
    """The state of a client's connection. It is busy from the start of a request until its reply is sent."""

    __slots__ = (
        "closes", "deadline", "has_ended", "inbound", "is_busy", "is_gone", "is_readable", "is_shut", "outbound",
        "peer", "sock", "task", "wanted", "was_used",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        self.sock = sock
        self.peer = peer
        self.inbound = b""
        self.wanted = 0  # bytes of the request that has begun; 0: not known yet
        self.outbound: memoryview | None = None
        self.deadline = 0.0  # the loop then closes the connection
        self.is_busy = self.is_readable = False
        self.was_used = False  # it has had a request
        self.is_gone = False  # the client has closed its side, but some of what it sent may be unread
        self.has_ended = False  # all of it is read
        self.closes = False  # no request follows
        self.is_shut = False  # this side is closed for sending
        self.task: Task | None = None
