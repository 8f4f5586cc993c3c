"""gunicorn's worker: one loop that serves plain, small requests, many at a time, and threads that serve all others.

A connection holds no thread while it is idle, slow, or waits for a message. A turn of the loop reads what has arrived,
runs each request until it waits, commits for all of them, and sends their replies (loop.py, plain.py, threads.py).
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from heapq import nsmallest
from io import BytesIO
from math import inf
from typing import Any

from greenlet import getcurrent
from gunicorn.http import wsgi
from gunicorn.workers.base import Worker as BaseWorker

from web.native.request import Environ
from web.server import connection as limits
from web.server import plain
from web.server.connection import Connection
from web.server.loop import Loop
from web.server.plain import Reply, Weight
from web.server.threads import RequestThreads

LAST_REQUESTS = 2.0  # seconds that a stopping worker still takes requests from idle connections
MOST_UNSENT = 64 * 1024 * 1024  # bytes of replies in memory that clients have not read yet
SWEEP_EVERY = 0.25  # seconds
STALLED = 0.5  # seconds of a commit in the loop after which threads serve new clients
STALLED_FOR = 120.0  # seconds of a commit after which the master may kill the worker
SWITCH = 0.0005  # seconds that a thread computes before the loop continues

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
# Edge-triggered and registered once, so that a request needs no epoll_ctl.
_ALL = select.EPOLLIN | select.EPOLLOUT | _GONE | select.EPOLLET


class Worker(BaseWorker):
    """The worker of gunicorn.conf.py."""

    wsgi: Any

    def init_process(self) -> None:
        self._server = self.sockets[0].getsockname()
        self.loop = Loop(ThreadPoolExecutor(self.cfg.threads, "queue-call"))
        self._threads = RequestThreads(self, self._server)
        self._poll = select.epoll()
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        self._connections: dict[int, Connection] = {}  # by file descriptor
        self._again: deque[Connection] = deque()  # may have received their next request already
        self._is_listening = False
        self._turned = time.monotonic()
        super().init_process()

    # -- the loop

    def run(self) -> None:
        """Serve until the worker stops. gunicorn calls this in each worker process."""
        sys.setswitchinterval(SWITCH)
        for descriptor in (self.PIPE[0], self.loop.bell):
            self._poll.register(descriptor, select.EPOLLIN)
        self._base = self._base_environ()
        self._listen(True)
        threading.Thread(target=self._watch, name="queue-watch", daemon=True).start()
        sweep_at = ends_at = 0.0
        while not ends_at or (self._connections and self._turned < ends_at):
            wait = min(self.loop.turn(), 0.0 if self._again else SWEEP_EVERY)
            events = self._poll.poll(wait)
            self._turned = time.monotonic()
            for descriptor, event in events:
                connection = self._connections.get(descriptor)
                if connection is None:
                    self._on_other(descriptor)
                else:
                    self._on_event(connection, event)
            for _ in range(len(self._again)):
                self._continue(self._again.popleft())
            if self._turned >= sweep_at:
                sweep_at = self._turned + SWEEP_EVERY
                self._sweep()
            if not self.alive and not ends_at:
                ends_at = self._turned + self.cfg.graceful_timeout
                self._begin_to_stop()
        for connection in list(self._connections.values()):
            self._close(connection)

    def return_reply(self, connection: Connection, reply: Reply) -> None:
        """Continue with a connection after a thread has served its request. Threads post this to the loop."""
        connection.sock.setblocking(False)
        connection.is_readable = True  # events were not recorded while the thread read from it
        self._reply(connection, reply)

    def answer(self, connection: Connection, environ: Environ, is_read: Callable[[], bool] = lambda: True) -> Reply:
        """Run a request and return its reply, an empty one after an error.

        `is_read` returns whether its body has been read, so that the next request can be.
        """
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("this worker has reached max_requests and stops")
            self.alive = False

        def closes() -> bool:
            connection.closes = connection.closes or not self.alive or not is_read()
            return connection.closes

        if "HTTP_CONNECTION" in environ:
            options = environ["HTTP_CONNECTION"].lower().split(",")
            connection.closes = connection.closes or "close" in [option.strip(" \t") for option in options]
        try:
            return plain.answer(self.wsgi, environ, closes)
        except Exception:
            self.log.exception("a request failed")
            connection.closes = True
            return Reply(b"")

    def _on_other(self, descriptor: int) -> None:
        if descriptor in self._listeners:
            self._accept(self._listeners[descriptor])
        elif descriptor == self.loop.bell:
            self.loop.hush()
        elif descriptor == self.PIPE[0]:
            os.read(descriptor, 4096)  # a signal arrived; its handler has run

    def _sweep(self) -> None:
        """Close connections whose time is over, and check that the master is alive."""
        self.notify()
        if self.ppid != os.getppid() and self.alive:
            self.log.info("the master has ended, so this worker stops")
            self._listen(False)
            for listener in self.sockets:
                listener.close()  # the next master needs the port
            self.alive = False
        for connection in [one for one in self._connections.values() if one.deadline <= self._turned]:
            self._close(connection)
        unsent = [(one, len(one.outbound)) for one in self._connections.values() if one.outbound]
        excess = sum([size for _, size in unsent]) - MOST_UNSENT
        for connection, size in unsent:
            if excess > 0:
                self._close(connection)
                excess -= size
        if self.alive:
            self._listen(True)

    def _begin_to_stop(self) -> None:
        self._listen(False)
        self.wsgi.unrestricted_store.stop_waiting()
        for connection in self._connections.values():
            if not connection.is_busy:
                connection.deadline = min(connection.deadline, self._turned + LAST_REQUESTS)

    def _listen(self, listens: bool) -> None:
        if listens != self._is_listening:
            self._is_listening = listens
            for descriptor, listener in self._listeners.items():
                if listens:
                    listener.setblocking(False)
                    self._poll.register(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE)
                else:
                    self._poll.unregister(descriptor)

    def _accept(self, listener: Any) -> None:
        if len(self._connections) >= self.cfg.worker_connections and not self._make_room():
            self._listen(False)  # until the next sweep
            return
        try:
            sock, peer = listener.accept()
        except OSError:  # another worker accepted it, or the client disconnected
            return
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = Connection(sock, peer)
        connection.deadline = self._turned + self.cfg.keepalive
        self._poll.register(sock.fileno(), _ALL)

    def _make_room(self) -> bool:
        """Close 1 % of the connections: silent ones first, then idle ones, then slow ones. Return whether any closed.

        One at a time would take a search for each connection of a flood.
        """
        closable = [one for one in self._connections.values() if not one.is_busy]
        first = nsmallest(
            len(self._connections) // 100 + 1,
            closable,
            key=lambda one: (bool(one.inbound), one.was_used, one.deadline),
        )
        for connection in first:
            self._close(connection)
        return bool(first)

    # -- connections

    def _on_event(self, connection: Connection, event: int) -> None:
        if event & _GONE:
            connection.is_gone = True
            if connection.task is not None:
                connection.task.wake()  # it may wait for a message
        if connection.outbound is not None and event & select.EPOLLOUT:
            self._send(connection)
        elif connection.is_busy:
            connection.is_readable = True
        elif event & ~select.EPOLLOUT:
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            received = connection.sock.recv(plain.MOST)
        except BlockingIOError:
            connection.is_readable = False
            return
        except OSError:
            received, connection.closes = b"", True
        # A short read has emptied the socket, but the end of the stream must be read too.
        connection.is_readable = bool(received) and (connection.is_gone or len(received) == plain.MOST)
        connection.has_ended = not received
        if connection.closes or not (received or connection.inbound):
            connection.deadline -= len(received) / limits.WASTE_RATE
            self._end(connection)  # what the client sends after the last reply is ignored
            return
        if not connection.inbound:
            connection.deadline = self._turned + limits.READ_TIMEOUT
        connection.deadline += len(received) / limits.LEAST_RATE
        connection.inbound += received
        self._continue(connection)

    def _continue(self, connection: Connection) -> None:
        """Run the request that has arrived, or wait for the rest of it."""
        received, wanted, environ = connection.inbound, connection.wanted, None
        if connection.is_busy:
            return
        if not received or connection.closes:
            if connection.is_readable:
                self._read(connection)
            return
        if len(received) >= wanted:
            end = received.find(b"\r\n\r\n") + 4
            environ = plain.read_head(received[:end]) if 4 <= end <= plain.MOST_HEAD else None
            if environ is not None:
                wanted = end + int(environ.get("CONTENT_LENGTH", "0"))
            elif end >= 4 or not plain.may_begin(received):
                wanted = plain.MOST
        if environ is not None and len(received) >= wanted:
            connection.inbound, connection.wanted = received[wanted:], 0
            self._run(connection, environ, received[end:wanted])
        elif connection.has_ended or wanted >= plain.MOST:
            self._to_thread(connection, partial(self._threads.read, connection))
        else:
            connection.wanted = wanted
            if connection.is_readable:
                self._read(connection)

    def _run(self, connection: Connection, environ: Environ, body: bytes) -> None:
        environ |= self._base
        environ["REMOTE_ADDR"] = connection.peer[0] if isinstance(connection.peer, tuple) else ""
        environ["gunicorn.socket"] = connection.sock
        environ["wsgi.input"] = BytesIO(body)
        if (weight := plain.weigh(environ, body)) is Weight.LONG:
            self._to_thread(connection, partial(self.answer, connection, environ))
        else:
            connection.is_busy, connection.deadline = True, inf
            self.loop.run(partial(self._run_in_loop, connection, environ, weight))

    def _run_in_loop(self, connection: Connection, environ: Environ, weight: Weight) -> None:
        task = connection.task = getcurrent()
        task.is_heavy = weight is Weight.HEAVY
        task.on_resume = partial(self.wsgi.resume, environ)
        try:
            reply = self.answer(connection, environ)
        finally:
            connection.task = None
        self._reply(connection, reply)

    def _to_thread(self, connection: Connection, make: Callable[[], Reply]) -> None:
        connection.is_busy, connection.deadline = True, inf
        self._threads.submit(connection, make)

    def _reply(self, connection: Connection, reply: Reply) -> None:
        if reply.rest is not None:
            self._to_thread(connection, lambda: reply)
            return
        connection.outbound = memoryview(reply.begin)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        try:
            while connection.outbound:
                connection.outbound = connection.outbound[connection.sock.send(connection.outbound) :]
        except BlockingIOError:
            allowed = limits.READ_TIMEOUT + len(connection.outbound or b"") / limits.LEAST_RATE
            connection.deadline = min(connection.deadline, time.monotonic() + allowed)
            return
        except OSError:
            connection.closes = connection.has_ended = True
        connection.outbound, connection.is_busy, connection.was_used = None, False, True
        if connection.closes or (connection.has_ended and not connection.inbound):
            self._end(connection)
            return
        # Not from the start of the turn, because its commit may have taken long.
        until_next = self.cfg.keepalive if self.alive else LAST_REQUESTS
        connection.deadline = time.monotonic() + (limits.READ_TIMEOUT if connection.inbound else until_next)
        if connection.inbound or connection.is_readable:
            self._again.append(connection)

    def _end(self, connection: Connection) -> None:
        """Close the connection once the client has closed its side; before, the system might discard the last reply."""
        if connection.has_ended or (connection.is_shut and connection.deadline <= self._turned):
            self._close(connection)
            return
        self._again.append(connection)
        if not connection.is_shut:
            connection.closes = connection.is_shut = connection.is_readable = True
            connection.deadline = self._turned + limits.CLOSE_WITHIN
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)

    def _close(self, connection: Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.closes, connection.is_readable = True, False
        connection.sock.close()

    def _watch(self) -> None:
        """While a commit stalls the loop, send the master the heartbeat, and serve new clients with threads."""
        while self.alive:
            time.sleep(SWEEP_EVERY)
            while STALLED < time.monotonic() - self._turned < STALLED_FOR and self.loop.is_committing:
                self.notify()
                time.sleep(SWEEP_EVERY)
                for listener in self.sockets:
                    with suppress(OSError):  # no client is waiting
                        while True:
                            self._threads.serve(Connection(*listener.accept()))

    def _base_environ(self) -> Environ:
        return {
            **wsgi.base_environ(self.cfg),
            "wsgi.multithread": True,
            "wsgi.url_scheme": "http",
            "SERVER_NAME": str(self._server[0]),
            "SERVER_PORT": str(self._server[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
        }
