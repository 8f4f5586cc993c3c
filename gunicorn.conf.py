"""How the service is run: the one place for server settings, each with its reason."""

import ctypes
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from gunicorn import util

from doors.counts import Counts
from doors.refusals import hide_request, write_problem
from doors.tokens import BadTokens, Tokens
from doors.worker import cached_http_date
from settings import BadSetting, Settings
from storage.bells import Bells

try:
    _settings = Settings.from_env()
except BadSetting as fault:
    sys.exit(f"queue_service: {fault}")

# A worker that is out of files ends: there are some for each connection, and for its threads' to the database.
_least, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = max(_least, 4_096 if _most == resource.RLIM_INFINITY else min(4_096, _most))
resource.setrlimit(resource.RLIMIT_NOFILE, (_files, _most))

wsgi_app = "handler:app"
bind = _settings.bind
workers = _settings.workers
worker_class = "doors.worker.Worker"  # gthread, so that a waiting poll holds a thread and not a process; and more
threads = _settings.threads
worker_connections = max(threads + 10, min(1_000, _files - 3 * threads - 100))  # open ones; more wait in the backlog
keepalive = 20  # s between two requests of a connection; idle ones count as worker_connections too
graceful_timeout = 25  # s for requests under way at a stop; polls end at once, so only slow clients need it
timeout = 30  # s without a heartbeat of a worker's loop until it is killed; no limit on a request
limit_request_line = 8190  # bytes
forwarder_headers = ""  # else a SCRIPT_NAME header from this machine moves every route
secure_scheme_headers: dict[str, str] = {}  # nor does anything here depend on the scheme …
forwarded_allow_ips = "*"  # … so whose such headers are need not be found out, at each request
control_socket_disable = True  # an admin socket nobody here uses
preload_app = False  # SQLite's connections must not cross a fork
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # the heartbeat file must not wait for a disk
accesslog = None  # a line a request would cost more than the request

util.write_error = write_problem
logging.getLogger("gunicorn.error").addFilter(hide_request)
util.http_date = cached_http_date

_counts = Counts()  # what every worker adds to and /metrics tells
_bells = Bells(workers + 8)  # by which they wake each other's waiting readers; for some more at a reload
_CLIENT_PATIENCE = 4  # s a thread waits for a client to send more of its request or take more of its reply
_MMAP_FROM = 1024 * 1024  # bytes


def on_starting(server: Any) -> None:
    """Refuses, in one sentence, to start where the service would be open to everybody or could not store anything."""
    if not (_settings.has_tokens or _settings.allow_anonymous or _settings.is_private):
        sys.exit(
            f"queue_service: QUEUE_HOST={_settings.host} would let anyone who can reach this machine read and write; "
            "set QUEUE_TOKENS or QUEUE_TOKENS_FILE, or QUEUE_ALLOW_ANONYMOUS=yes to allow this"
        )
    if _settings.has_tokens:
        try:
            Tokens(_settings).load()
        except BadTokens as fault:
            sys.exit(f"queue_service: {fault}")
    _try_database()
    with socket.socket(socket.AF_INET6 if ":" in _settings.host else socket.AF_INET) as probe:
        if probe.connect_ex((_settings.host, _settings.port)) == 0:
            server.log.warning("queue_service: another program serves %s; choose another port with PORT=…", bind)


def when_ready(server: Any) -> None:
    """A client that stops in its request, or reads nothing of its reply, gives its thread back.

    Connections inherit these limits, which cost nothing; Python's own take three system calls each time.
    """
    for listener in server.LISTENERS:
        for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.sock.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", _CLIENT_PATIENCE, 0))


def pre_fork(server: Any, worker: Any) -> None:
    worker.slot, worker.bell = _counts.take(), _bells.take()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, however the worker has ended."""
    worker.slot.free()
    _bells.give_back(worker.bell)


def post_fork(server: Any, worker: Any) -> None:
    """A worker that is told to stop before it has begun stops.

    Until it has signal handlers of its own it has the master's, which only take note; the master would wait in vain.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def post_worker_init(worker: Any) -> None:
    """Opens the store before the first request, and sends waiting readers home when the worker is told to stop."""
    _return_large_blocks()
    try:
        worker.wsgi.slot, worker.wsgi.bell = worker.slot, worker.bell
        store = worker.wsgi.whole_store
    except Exception as fault:
        # The master found the database fit, so this may pass: it starts another worker, and the others go on.
        worker.log.error("queue_service: %s", fault)
        time.sleep(1)
        sys.exit(1)
    store.on_failure(lambda: os.kill(os.getpid(), signal.SIGTERM))  # the master starts a fresh worker
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)

        def stop(received: int, frame: Any, before: Any = before) -> None:
            store.stop_waiting()
            before(received, frame)

        signal.signal(number, stop)
    _end_with_the_master(worker)


def post_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
    """A worker that goes because it has had its max_requests sends waiting readers home: its successor waits for it."""
    if not worker.alive:
        worker.wsgi.whole_store.stop_waiting()


def worker_exit(server: Any, worker: Any) -> None:
    """Leaves the file tidy: the last one out folds the log into the database."""
    if getattr(worker, "wsgi", None) is not None:  # not set when the application could not be loaded
        worker.wsgi.close()


def _end_with_the_master(worker: Any) -> None:
    """A worker whose master was killed stops as by SIGTERM, and gives up the port at once.

    gunicorn's own way is that it serves the connections it has for graceful_timeout and keeps the port meanwhile,
    which is longer than the next master tries to have it.
    """
    is_parent_alive = worker.is_parent_alive

    def is_master_alive() -> bool:
        if is_parent_alive():
            return True
        worker.set_accept_enabled(False)
        for listener in worker.sockets:
            listener.close()
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    worker.is_parent_alive = is_master_alive


def _return_large_blocks() -> None:
    """Memory of large bodies and replies goes back to the system when they are done, where glibc would keep it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(ctypes.c_int(-3), ctypes.c_int(_MMAP_FROM))  # M_MMAP_THRESHOLD


def _try_database() -> None:
    """Exits if the database cannot be used. In a process of its own: none of SQLite's state may cross the fork."""
    child = os.fork()
    if child == 0:
        from storage import open_store
        from storage.errors import Busy, UnusableDatabase

        try:
            open_store(_settings.database_url).close()
        except UnusableDatabase as fault:
            print(f"queue_service: QUEUE_DATABASE_URL: {fault}", file=sys.stderr, flush=True)
            os._exit(1)
        except Busy:  # somebody holds the lock just now: a worker will wait for it
            pass
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
