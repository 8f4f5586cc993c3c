"""How the service is run: the one place for server settings, each with its reason."""

import ipaddress
import os
import signal
import socket
import struct
import sys
from typing import Any

from gunicorn import util
from gunicorn.arbiter import Arbiter

from doors.refusals import write_problem
from settings import BadSetting, Settings
from storage.errors import Busy

try:
    _settings = Settings.from_env()
except BadSetting as fault:
    sys.exit(f"queue_service: {fault}")

wsgi_app = "handler:app"
bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "gthread"  # a waiting poll holds a thread, not a process
threads = _settings.threads
worker_connections = 1_000  # open connections of a worker; those above wait in the backlog
keepalive = 75  # s; a client between two requests keeps its connection
graceful_timeout = 25  # s for requests under way at a stop; polls end at once, so only slow clients need it
timeout = 60  # s without a heartbeat of a worker's loop; no limit on a request
limit_request_line = 8190  # bytes
forwarder_headers = ""  # else a SCRIPT_NAME header from this machine moves every route
control_socket_disable = True  # an admin socket nobody here uses
preload_app = False  # SQLite's connections must not cross a fork
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # the heartbeat file must not wait for a disk
accesslog = None  # a line a request would cost more than the request

util.write_error = write_problem

_HEADER_PATIENCE = 8  # s a thread waits for more of a request from its client


def on_starting(server: Any) -> None:
    """Refuses to serve the whole network without access control, unless told to in so many words."""
    if not (_settings.allow_anonymous or _is_loopback(_settings.host)):
        sys.exit(
            f"queue_service: QUEUE_HOST={_settings.host} would let anybody who reaches this machine read and write; "
            "set QUEUE_ALLOW_ANONYMOUS=yes if that is meant"
        )


def when_ready(server: Any) -> None:
    """A client that sends half a request gives its thread back: connections inherit this time limit."""
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _HEADER_PATIENCE, 0))


def post_worker_init(worker: Any) -> None:
    """Opens the store before the first request, and sends waiting readers home when the worker is told to stop."""
    try:
        store = worker.wsgi.store
    except Busy as fault:
        worker.log.error("queue_service: %s", fault)
        sys.exit(1)  # the master starts another worker, which may find the lock free
    except Exception as fault:
        worker.log.error("queue_service: %s", fault)
        sys.exit(Arbiter.APP_LOAD_ERROR)  # which stops the server instead of starting workers for ever
    store.on_failure(lambda: os.kill(os.getpid(), signal.SIGTERM))  # the master starts a fresh worker
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)

        def stop(received: int, frame: Any, before: Any = before) -> None:
            store.stop_waiting()
            before(received, frame)

        signal.signal(number, stop)
    _end_with_the_master(worker)


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
